"""Learned best-effort LLM serving: a small router, trained in simulation, picks a language model for every request.

`import besteffort` is cheap: the names below are loaded when they are first used. Policies, profiles and situations
need no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from besteffort.errors import InputError
from besteffort.lazy import lazy_names
from besteffort.version import __version__

if TYPE_CHECKING:
    from besteffort.policy import Policy, load_policy, save_policy
    from besteffort.profile import load_profile
    from besteffort.runs.config import load_situation
    from besteffort.runs.training import load_training_problem, make_policy
    from besteffort.runs.untrained import default_policy
    from besteffort.simulator.build import make_env
    from besteffort.simulator.simulate import simulate
    from besteffort.workload.sample import sample_requests

__all__ = [
    "InputError",
    "Policy",
    "__version__",
    "default_policy",
    "load_policy",
    "load_profile",
    "load_situation",
    "load_training_problem",
    "make_env",
    "make_policy",
    "sample_requests",
    "save_policy",
    "simulate",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Policy": "besteffort.policy",
        "default_policy": "besteffort.runs.untrained",
        "load_policy": "besteffort.policy",
        "load_profile": "besteffort.profile",
        "load_situation": "besteffort.runs.config",
        "load_training_problem": "besteffort.runs.training",
        "make_policy": "besteffort.runs.training",
        "make_env": "besteffort.simulator.build",
        "sample_requests": "besteffort.workload.sample",
        "save_policy": "besteffort.policy",
        "simulate": "besteffort.simulator.simulate",
    },
)
