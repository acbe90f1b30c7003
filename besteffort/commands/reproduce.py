"""`besteffort reproduce`, whose options and work are those of the checkout's `experiments`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from besteffort.errors import InputError


def reproduce() -> None:
    """Run the experiments behind the paper's claims; needs a checkout."""


def reproduce_command() -> Callable[..., Any]:
    """The command of the checkout's `experiments`, which is loaded only where it is asked for."""
    from besteffort.listing import CHECKOUT, has_experiments

    if not has_experiments():
        raise InputError(
            "`reproduce` runs the files under `experiments/`, which only a checkout has; clone the repository and "
            "install from there with `python -m pip install --no-deps -e .`."
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    command: Callable[..., Any] = importlib.import_module("experiments.__main__").run_command
    return command
