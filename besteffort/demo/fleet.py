"""What the demo serves: the laptop tier, slowed down, so that a few dozen requests per second are a burst."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from besteffort.opt.engine import Pace, Part
from besteffort.profile import Profile, Source
from besteffort.situation import Situation

SLOWER = 20
"""Times of the demo over those of profile `laptop`."""

SITUATION = "demo"
"""Name of its configuration."""


def slowed(profile: Profile) -> Profile:
    """Profile `demo`, from profile `laptop`: `SLOWER` times its times, and models that do not slow each other down.

    An engine at this pace mostly waits, so that any machine is fast enough, and its models are not in each other's way.
    """
    models = tuple(
        dataclasses.replace(
            model,
            decode=tuple((size, round(SLOWER * seconds, 6)) for size, seconds in model.decode),
            prefill=tuple((tokens, round(SLOWER * seconds, 6)) for tokens, seconds in model.prefill),
            slowdown=(),
        )
        for model in profile.models
    )
    source = Source(
        "modelled",
        "profile `laptop`",
        f"{SLOWER} times the times measured there: what `besteffort serve --demo` slows its engine down to",
    )
    provenance = dataclasses.replace(profile.provenance, decode=source, prefill=source, slowdown=source)
    return dataclasses.replace(
        profile, name=SITUATION, device="the engine at the demo's pace", models=models, provenance=provenance
    )


def paces(situation: Situation) -> dict[str, Pace]:
    """How long iterations last, by model: as the tables of a situation say."""
    fleet = situation.fleet
    decode_s = fleet.decode_table().tolist()
    prefill_s = fleet.prefill_table(max(task.prompt_tokens[1] for task in situation.tasks)).tolist()

    def pace_of(index: int) -> Pace:
        decode, prefill = decode_s[index], [0.0, *prefill_s[index][1:]]

        def upto_s(tokens: int) -> float:
            return prefill[min(tokens, len(prefill) - 1)]

        def pace(decoding: int, parts: Sequence[Part]) -> float:
            return float(decode[decoding] + sum(upto_s(after) - upto_s(before) for before, after in parts))

        return pace

    return {name: pace_of(index) for index, name in enumerate(fleet.names)}
