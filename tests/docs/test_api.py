"""The API reference has all that `import besteffort` offers, and the types of what that returns."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import jax
import pytest

pytestmark = pytest.mark.checkout

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "api.md"


def test_every_public_name_is_in_the_reference() -> None:
    import besteffort

    shown = set(re.findall(r"^::: besteffort\.(\w+)$", PAGE.read_text("utf-8"), re.M))
    assert shown == set(besteffort.__all__) - {"__version__"}


def classes(hint: Any) -> set[type]:
    """The package's classes in an annotation."""
    inner = set().union(*map(classes, typing.get_args(hint)))
    return inner | {hint} if getattr(hint, "__module__", "").startswith("besteffort.") else inner


def test_what_simulations_and_the_environment_hand_out_is_in_the_reference() -> None:
    from besteffort import make_env, sample_requests, simulate
    from besteffort.simulator.environment import ServingEnvironment
    from besteffort.simulator.types import TimeStep

    calls = (make_env, simulate, sample_requests, *map(ServingEnvironment.__dict__.get, ("reset", "step", "outcomes")))
    handed = set().union(*(classes(typing.get_type_hints(call)["return"]) for call in calls))
    handed |= classes(typing.get_type_hints(ServingEnvironment)["shape"])
    handed |= classes(typing.get_type_hints(TimeStep)["observation"])
    assert len(handed) >= 8
    page = PAGE.read_text("utf-8")
    assert not {each for each in handed if f"::: {each.__module__}.{each.__name__}\n" not in page}


def stated(kind: type) -> dict[str, str]:
    """By attribute the shape that the docstring begins with."""
    return dict(re.findall(r"^  (\w+): (\([^)]*\)) ", inspect.getdoc(kind) or "", re.M))


def test_shapes_are_as_the_reference_states_them() -> None:
    from besteffort import load_situation, make_env
    from besteffort.workload import Poisson, synthetic

    situation = load_situation("paper")
    env, params = make_env(situation, synthetic(situation, Poisson(100.0)))
    state, step = env.reset(jax.random.key(0), params)
    sizes = {
        "pools": env.shape.pools,
        "rows": env.shape.replicas,
        "tasks": env.shape.tasks,
        "max_batch": env.shape.max_batch,
        "longest prompt": max(task.prompt_tokens[1] for task in situation.tasks),
        "history": env.shape.history,
    }
    checked = 0
    for each in (params, step, step.observation, env.outcomes(state, params)):
        names = [field.name for field in dataclasses.fields(each)] if dataclasses.is_dataclass(each) else each._fields
        for name, text in stated(type(each)).items():
            assert name in names
            value = getattr(each, name)
            if value is None:
                continue
            axes = [axis.split(" + ") for axis in re.split(r",\s*", text.strip("()")) if axis]
            assert value.shape == tuple(sum(sizes.get(term) or int(term) for term in axis) for axis in axes), name
            checked += 1
    assert checked >= 25
