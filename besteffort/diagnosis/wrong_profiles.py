"""Profiles that are wrong on purpose: what happens when the tables that a router was made for do not hold."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from besteffort.errors import InputError
from besteffort.profile.types import ModelProfile, Points, Profile, Source

Latency = Literal["mixed", "slower", "faster"]


def perturb_quality(profile: Profile, share: float, seed: int) -> Profile:
    """The profile with every quality `share` higher or lower, by the toss of a coin per task and model.

    No quality exceeds 100%. Qualities are relative to the task's best model (`Profile.quality_table`), so a task whose
    coins all fall alike stays as it is.

    Raises:
      InputError: if `share` is not between 0 and 1.
    """
    _check(share)
    rng = np.random.default_rng(seed)
    tasks = []
    for task in profile.tasks:
        factors = 1 + share * rng.choice([-1.0, 1.0], len(profile.models))
        percent = np.minimum(np.array(task.quality_percent) * factors, 100.0)
        tasks.append(dataclasses.replace(task, quality_percent=tuple(percent.tolist())))
    how = f"each {share:.0%} up or down by chance (seed {seed})"
    provenance = dataclasses.replace(profile.provenance, quality=_wrong(profile.provenance.quality, how))
    return dataclasses.replace(profile, tasks=tuple(tasks), provenance=provenance)


def perturb_latency(profile: Profile, share: float, how: Latency = "mixed", seed: int = 0) -> Profile:
    """The profile with every model's decode and prefill times, and its context cost, multiplied by one factor.

    Args:
      profile: the profile.
      share: by how much, between 0 and 1.
      how: `slower` takes `1 + share` for all models, `faster` takes `1 - share`, `mixed` one of both for each model by
        the toss of a coin.
      seed: of the coins.

    Raises:
      InputError: if `share` is not between 0 and 1.
    """
    _check(share)
    signs = {"slower": [1.0], "faster": [-1.0], "mixed": [-1.0, 1.0]}[how]
    factors = 1 + share * np.random.default_rng(seed).choice(signs, len(profile.models))
    models = tuple(_scaled(model, float(factor)) for model, factor in zip(profile.models, factors, strict=True))
    chance = f", up or down by chance per model (seed {seed})" if how == "mixed" else f", {how}"
    old = profile.provenance
    decode, prefill = (_wrong(source, f"{share:.0%}{chance}") for source in (old.decode, old.prefill))
    return dataclasses.replace(
        profile, models=models, provenance=dataclasses.replace(old, decode=decode, prefill=prefill)
    )


def _scaled(model: ModelProfile, factor: float) -> ModelProfile:
    def scaled(points: Points) -> Points:
        return tuple((x, factor * seconds) for x, seconds in points)

    return dataclasses.replace(
        model,
        decode=scaled(model.decode),
        prefill=scaled(model.prefill),
        context_cost_s=factor * model.context_cost_s,
    )


def _wrong(source: Source, how: str) -> Source:
    return dataclasses.replace(source, kind="modelled", method=f"wrong on purpose: {how}; before that: {source.method}")


def _check(share: float) -> None:
    if not 0 <= share < 1:
        raise InputError(f"A table cannot be wrong by {share:g}; give a share from 0 to below 1.")
