"""A laptop tier: three small OPTs, trained on four generated tasks, shipped with the package and served on any CPU.

With their measured profile (`laptop`) the whole loop, profile, simulate, train, evaluate and serve, runs on a laptop
with nothing modelled. `experiments/laptop_tier.py` trains, judges and measures them.
"""

from __future__ import annotations

import os
from pathlib import Path

from besteffort.errors import InputError

MODELS = ("laptop-100k", "laptop-1m", "laptop-5m")
"""Names of the models, from the smallest to the largest."""

_DIRECTORY = Path(__file__).parent / "models"


def model_directory(name: str) -> Path:
    """Directory of one of `MODELS`: what `besteffort.opt.weights.load_model` and `hub.load_tokenizer` read.

    Raises:
      InputError: if there is no such model.
    """
    if name not in MODELS:
        raise InputError(f"`{name}` is no model of the laptop tier; choose from {', '.join(MODELS)}.")
    return _DIRECTORY / name


def compute_in_one_thread() -> None:
    """Lets XLA use one thread per program, as the profile `laptop` was measured; of use until JAX computes first.

    With more, models beside one another share cores in ways that no factor between two models describes.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
