"""The laptop tier: three small OPTs, trained on four generated tasks, shipped with the package, for any CPU.

With their measured profile (`laptop`) the whole loop (profile, simulate, train, evaluate, serve) runs on a laptop
without modelled figures. `experiments/laptop_tier.py` trains, evaluates and measures them.
"""

from __future__ import annotations

import os
from pathlib import Path

from besteffort.errors import InputError

MODELS = ("laptop-100k", "laptop-1m", "laptop-5m")
"""Names of the models, from the smallest to the largest."""

_DIRECTORY = Path(__file__).parent / "models"


def model_directory(name: str) -> Path:
    """Directory of one of `MODELS`, for `besteffort.opt.weights.load_model` and `hub.load_tokenizer`.

    Raises:
      InputError: if there is no such model.
    """
    if name not in MODELS:
        raise InputError(f"`{name}` is no model of the laptop tier; choose from {', '.join(MODELS)}.")
    return _DIRECTORY / name


def compute_in_one_thread() -> None:
    """Limits XLA to one thread per program, as in the measurement of profile `laptop`; call it before JAX computes.

    With more threads, concurrent models share cores in ways that no factor between two models describes.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
