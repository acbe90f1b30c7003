"""How good estimates are: predicted against realised, on lists that nothing is tuned on.

    python -m experiments.estimate_quality [--fast] [--data DIR]

Lists of bursts and of the public traces are played by routers from careful to careless: the best by `own - harm`, that
one with half of its choices drawn at random, and one that draws all of them, so that predictions of every kind occur.
Of each chosen model the estimates made at the decision are held against what happened: the time of the first token, and
whether the answer was in time. `own - harm` is held against the credit that the simulator computes with the true
lengths of all requests in flight, under the same assumption: that no one else comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from besteffort.estimates.estimates import Newcomer, estimate
from besteffort.evaluation import plots
from besteffort.evaluation.judging import EvaluationSet, burst_set, read_halves, trace_set
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Situation
from besteffort.workload.requests import Requests
from besteffort.workload.types import Arrival
from experiments.lab import Claim, Findings, Lab, main

RANDOM = (0.0, 0.5, 1.0)
"""Share of choices that are drawn at random, router by router."""
TRACES = {
    "code": "AzureLLMInferenceTrace_code_2023.csv.gz",
    "conversations": "AzureLLMInferenceTrace_conv_2023.csv.gz",
    "Mooncake": "mooncake_conversation_trace_nohash.csv.gz",
}
LOADS = (1.0, 4.0)
_BINS = 10
_WARM_UP = 10  # the first of so many parts of each list does not count
_FEWEST = 200  # decisions in a bin that is shown


class Foreseen(NamedTuple):
    """Estimates of the chosen models and what came of them, fields of shape (lists, decisions of all routers).

    Attributes:
      chance: predicted chance to be in time.
      met: whether it was.
      first_token_s: predicted.
      realised_s: what it was; nan if rejected.
      value: `own - harm`.
      credit: of the decision, see `besteffort.simulator.types.TimeStep`.
    """

    chance: np.ndarray
    met: np.ndarray
    first_token_s: np.ndarray
    realised_s: np.ndarray
    value: np.ndarray
    credit: np.ndarray


def run(lab: Lab) -> Findings:
    """Plays the lists and compares."""
    data, rows, reliability, first_token = {}, [], {}, {}
    for title, judged in _sets(lab):
        lab.log(f"playing {title}")
        seen = foresee(judged.situation, list(judged.judged[0]))
        served = np.isfinite(seen.realised_s)
        error_s = np.where(served, seen.first_token_s - seen.realised_s, np.nan)
        measures = {
            "first token (ms)": 1e3 * np.nanmean(seen.realised_s, axis=1),
            "its mean error (ms)": 1e3 * np.nanmean(error_s, axis=1),
            "its mean absolute error (ms)": 1e3 * np.nanmean(np.abs(error_s), axis=1),
            "in time (%)": 100 * seen.met.mean(axis=1),
            "predicted (%)": 100 * seen.chance.mean(axis=1),
            "calibration error (%)": 100 * _calibration_error(seen),
            "credit": seen.credit.mean(axis=1),
            "own - harm, bias": (seen.value - seen.credit).mean(axis=1),
            "correlation": np.array([np.corrcoef(*pair)[0, 1] for pair in zip(seen.value, seen.credit, strict=True)]),
        }
        intervals = {name: mean_interval(values) for name, values in measures.items()}
        data[title] = intervals
        rows.append((title, tuple(intervals.values())))
        reliability[title] = _binned(seen.chance, seen.met, np.linspace(0, 1, _BINS + 1))
        first_token[title] = _binned(seen.first_token_s, seen.realised_s / seen.first_token_s, _TIMES_S)
    table = Table(
        title="Estimates at the decision, and what happened",
        head="Lists",
        columns=tuple(Column(name, "number", 3 if i > 5 else 2, brief=True) for i, name in enumerate(measures)),
        rows=tuple(rows),
        note="Mean ± half the 95% interval over lists; decisions of a careful, a half careful and a random router.",
    )
    worst = max(data, key=lambda title: float(data[title]["calibration error (%)"].mean))
    claim = Claim(
        "Estimates: predicted chance to be in time, mean distance from the realised share",
        "",
        f"{float(data[worst]['calibration error (%)'].mean):.1f} points on {worst}, the worst of {len(data)}; first "
        f"tokens are off by {float(data[worst]['its mean absolute error (ms)'].mean):.1f} ms there",
    )
    panels = [
        plots.Panel(
            title="Chance to be in time",
            x=(np.arange(_BINS) + 0.5) / _BINS,
            curves={"as predicted": _exactly((np.arange(_BINS) + 0.5) / _BINS, lab.scale.seeds), **reliability},
            x_label="Predicted",
            y_label="Realised share",
        ),
        plots.Panel(
            title="First token",
            x=_middle(_TIMES_S),
            curves={"as predicted": _exactly(np.ones(len(_TIMES_S) - 1), lab.scale.seeds), **first_token},
            x_label="Predicted (seconds)",
            y_label="Realised over predicted, mean",
            log=True,
            share=False,
        ),
    ]
    return Findings(data, [claim], [table], {"": plots.plot_panels(panels, focus="as predicted")})


_TIMES_S = np.geomspace(0.01, 10.0, 7)


def _sets(lab: Lab) -> Iterator[tuple[str, EvaluationSet]]:
    situation = load_situation("paper")
    yield "bursts", burst_set(situation, lab.evaluation)
    judging = dataclasses.replace(lab.evaluation, trace_loads=LOADS)
    for name, file in TRACES.items():
        path = lab.trace(file)
        if path is not None:
            (trace,) = read_halves([path], situation, judging.judging_seeds)
            for load in LOADS:
                yield (
                    f"{name}, load {load:g}",
                    trace_set(trace, situation, dataclasses.replace(judging, trace_loads=(load,))),
                )


def foresee(situation: Situation, lists: list[Requests]) -> Foreseen:
    """Plays lists of equal length with all routers and keeps the estimates of the chosen models."""
    n = len(lists[0])
    longest = max(int(requests.prompt_tokens.max()) for requests in lists)
    shape, params = build(situation, None, history=n, longest_prompt=longest, record=True, estimates=True)
    kept: list[Foreseen] = []
    for index, requests in enumerate(lists):
        arrivals = Arrival(
            gap_s=jnp.asarray(np.diff(requests.arrival_s, prepend=0.0), params.decode.dtype),
            task=jnp.asarray(requests.task),
            prompt_tokens=jnp.asarray(requests.prompt_tokens),
            output_tokens=jnp.asarray(requests.output_tokens),
            deadline_s=jnp.asarray(requests.deadline_s, params.decode.dtype),
        )
        played = _play(shape, params, arrivals, jnp.asarray(RANDOM), jax.random.key(index))
        kept.append(Foreseen(*(np.asarray(field)[:, n // _WARM_UP :].ravel() for field in played)))
    return Foreseen(*(np.stack(field) for field in zip(*kept, strict=True)))


@partial(jax.jit, static_argnums=0)
def _play(
    shape: EnvShape, params: EnvParams, arrivals: Arrival, share: Float[Array, " routers"], key: Key[Array, ""]
) -> Any:
    environment = ServingEnvironment(shape)

    def one(share: Array) -> Any:
        def decide(state: Any, arrival: Arrival) -> Any:
            state, step = environment.arrive(state, arrival, params)
            newcomer = Newcomer.of(step.observation)
            found = estimate(newcomer, step.observation.in_flight, params, xp=jnp)
            coin, draw = jax.random.split(jax.random.fold_in(key, step.index))
            drawn = jax.random.randint(draw, (), 0, shape.pools)
            model = jnp.where(jax.random.uniform(coin) < share, drawn, jnp.argmax(found.own - found.harm))
            state, placed = environment.place(state, model, params)
            most = params.weight[newcomer.task] * params.quality[newcomer.task, model]
            value = found.own[model] - found.harm[model]
            return state, (found.own[model] / most, found.first_token_s[model], value, placed.credit)

        state = environment.start(jax.tree.map(lambda field: field[0], arrivals))
        state, (chance, first_s, value, credit) = jax.lax.scan(decide, state, arrivals)
        ledger = environment.drain(state, params).ledger
        assert ledger.timing is not None
        return chance, ledger.reward > 0, first_s, ledger.timing.first_token_s, value, credit

    return jax.vmap(one)(share)


def _calibration_error(seen: Foreseen) -> np.ndarray:
    """(lists,) distance of predicted from realised shares, mean over bins weighed by their decisions."""
    errors = []
    for chance, met in zip(seen.chance, seen.met, strict=True):
        place = np.clip((chance * _BINS).astype(int), 0, _BINS - 1)
        number, hoped, came = (np.bincount(place, values, _BINS) for values in (np.ones_like(chance), chance, met))
        errors.append(np.abs(hoped - came).sum() / number.sum())
    return np.array(errors)


def _binned(predicted: np.ndarray, realised: np.ndarray, edges: np.ndarray) -> Interval:
    """Mean of what was realised, by what was predicted; nan where too little was."""
    means = np.full((len(predicted), len(edges) - 1), np.nan)
    for row, (x, y) in enumerate(zip(predicted, realised, strict=True)):
        known = np.isfinite(y) & (x >= edges[0]) & (x <= edges[-1])
        place = np.minimum(np.searchsorted(edges, x[known], side="right") - 1, len(edges) - 2)
        number = np.bincount(place, minlength=len(edges) - 1)
        total = np.bincount(place, y[known].astype(float), len(edges) - 1)
        means[row] = np.where(number >= _FEWEST, total / np.maximum(number, 1), np.nan)
    return mean_interval(means.T)


def _exactly(x: np.ndarray, seeds: int) -> Interval:
    return Interval(x, np.zeros_like(x), seeds)


def _middle(edges: np.ndarray) -> np.ndarray:
    return np.sqrt(edges[1:] * edges[:-1])


if __name__ == "__main__":
    main(run, __file__)
