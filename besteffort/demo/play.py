"""`besteffort load --demo`: asks what `serve --demo` serves for answers that are known, in bursts, and counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import numpy as np

from besteffort.demo.fleet import SITUATION
from besteffort.errors import InputError, brief
from besteffort.evaluation.report import Column, Table
from besteffort.gateway.http import joined
from besteffort.laptop import MODELS
from besteffort.laptop.requests import CaseList, with_cases
from besteffort.laptop.tasks import ANSWER_TOKENS
from besteffort.load.play import Played, Target, play
from besteffort.runs.experiment import load_run
from besteffort.situation import Situation
from besteffort.workload.config import Steps, build
from besteffort.workload.sample import sample_workload

URL = "http://127.0.0.1:8080/v1"
"""Of the gateway."""

_PERIODS = 2
_MOST = 4096  # requests, more than come in these


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is played.

    Attributes:
      situation: of the demo.
      cases: requests with their answers; how long these are is not told to anyone.
      in_burst: (n,) whether a request comes within a burst.
    """

    situation: Situation
    cases: CaseList
    in_burst: np.ndarray


def ask(seed: int = 0) -> Asked:
    """Calm stretches and bursts, as the demo's configuration says, twice."""
    run, situation = load_run(SITUATION)
    burst = run.evaluation.burst
    assert isinstance(burst, Steps)
    assert burst.period_s is not None
    whole = sample_workload(build(burst, situation), situation.task_names, _MOST, seed)
    count = int(np.searchsorted(whole.arrival_s, _PERIODS * burst.period_s))
    cases = with_cases(whole.part(slice(count), 0.0), situation, seed=seed)
    in_burst = cases.requests.arrival_s % burst.period_s >= burst.starts_s[-1]
    return Asked(situation, cases, in_burst)


def targets(url: str) -> dict[str, Target]:
    """What is asked one after the other: the gateway, and each model alone, at the engine on the next port.

    Raises:
      InputError: if an address has no port.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = None
    if port is None:
        raise InputError(f"{brief(url)} has no port; give the address that `besteffort serve --demo` prints.")
    gateway, engine = (f"{parts.scheme}://{joined(parts.hostname or '', each)}" for each in (port, port + 1))
    alone = {f"always {model}": Target(f"{engine}/{model}/v1", model) for model in MODELS}
    return {"besteffort": Target(f"{gateway}/v1"), **alone}


def play_demo(asked: Asked, target: Target, progress: Callable[[int, int], None]) -> Played:
    """Plays the list to one of `targets`.

    Raises:
      InputError: if nothing answers there.
      KeyboardInterrupt: if an interrupt has come.
    """
    longest = np.full(len(asked.cases.requests), ANSWER_TOKENS)
    requests = dataclasses.replace(asked.cases.requests, output_tokens=longest)
    prompts = [case.prompt for case in asked.cases.cases]
    return play(requests, asked.situation, target, progress, prompts=prompts)


def table(asked: Asked, played: Mapping[str, Played]) -> Table:
    """What came back, a row per target."""
    rows = []
    for name, each in played.items():
        met = each.result.met
        right = np.array([text == case.answer for text, case in zip(each.texts, asked.cases.cases, strict=True)])
        latency_s = each.result.latency_s[np.isfinite(each.result.latency_s)]
        # Of the engine's answers no header says the model, which all have.
        shares = np.bincount(each.result.model[each.result.model >= 0], minlength=len(MODELS))
        told = " / ".join(f"{share:.0%}" for share in shares / max(shares.sum(), 1)) if shares.sum() else "-"
        rows.append(
            (
                name,
                (
                    float((right & met).mean()),
                    float((right & met)[asked.in_burst].mean()),
                    float(met.mean()),
                    float(right.mean()),
                    float(np.quantile(latency_s, 0.95)) if len(latency_s) else None,
                    told,
                ),
            )
        )
    count, bursts = len(asked.in_burst), int(asked.in_burst.sum())
    return Table(
        f"{count:,} requests, {bursts:,} of them in bursts",
        "asked",
        (
            Column("right and in time (%)", brief=True),
            Column("in bursts (%)", brief=True),
            Column("in time (%)", brief=True),
            Column("right (%)", brief=True),
            Column("95% within (ms)", "milliseconds", 0),
            Column("by model", "text", brief=True),
        ),
        tuple(rows),
        focus="besteffort",
    )
