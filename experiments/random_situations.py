"""Random situations, wide enough that what is right in all of them has not been fitted to any.

The same draw always gives the same situation. Situations of one group have the same numbers of models, tasks, replicas
and places, so that one compiled program simulates them together.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task, View
from besteffort.workload.config import Gamma, Markov, Poisson, Steps, Synthetic

_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_PROMPTS = (1, 64, 256, 1024, 4096, 8192)
_MODELLED = Source("modelled", "drawn at random by experiments/random_situations.py")


class Draw(NamedTuple):
    """A random situation.

    Attributes:
      name: tells it from others, with the numbers that matter most.
      situation: as routers take it to be.
      actual: what is simulated: the same with other latency tables, where those were drawn to be wrong.
      workload: the load, to learn on and to be judged on.
      overload: the mean load is more than all models together sustain.
    """

    name: str
    situation: Situation
    actual: Situation
    workload: Synthetic
    overload: bool


def draw_group(seed: int, group: int, size: int) -> list[Draw]:
    """Situations with 2 to 12 models on 1 to 16 replicas that share the numbers of everything."""
    rng = np.random.default_rng([seed, group])
    models = int(rng.choice([2, 3, 3, 4, 4, 6, 8, 12]))
    replicas = int(rng.choice([1, 2, 4, 8, 16]))
    tasks = int(rng.integers(1, 5))
    cluster = Cluster(replicas, int(rng.choice([8, 16, 32, 64])), int(rng.choice([0, 16, 64])))
    return [
        _draw(np.random.default_rng([seed, group, 1 + i]), f"{group}.{i}", cluster, models, tasks) for i in range(size)
    ]


def _draw(rng: np.random.Generator, number: str, cluster: Cluster, models: int, tasks: int) -> Draw:
    costs = _spread(rng, models, _log_uniform(rng, 1.5, 20.0))
    profile = _profile(rng, costs, tasks)
    cluster = dataclasses.replace(cluster, network_delay_s=float(rng.choice([0.0, 0.0, 0.02])))
    listed = tuple(_task(rng, profile, name) for name in profile.task_names)
    soft = float(rng.choice([0.0, 0.0, 0.5, 1.0]))
    penalty = float(rng.choice([0.0, 0.0, 0.5]))
    late = rng.random() < 0.25
    view = View(rate_tau_s=_log_uniform(rng, 0.5, 4.0), batch_refresh_s=float(rng.uniform(0.05, 1.0)) if late else 0.0)
    situation = Situation(profile, cluster, listed, Reward(soft, penalty), view)
    load = _log_uniform(rng, 0.05, 3.0)
    wrong = rng.random() < 0.25
    factors = rng.uniform(0.6, 1.4, models) if wrong else np.ones(models)
    actual = dataclasses.replace(situation, profile=slower(profile, factors))
    capacity = situation.capacity()
    workload = _workload(rng, load * capacity[0] / capacity[-1])
    name = (
        f"{number}: {models} models, {cluster.replicas} x {cluster.max_batch}, cost x {costs[-1]:.1f}, "
        f"load {load:.2f}, {workload.kind}"
        + (", soft" if soft else "")
        + (", penalty" if penalty else "")
        + (", late" if late else "")
    )
    name += ", tables wrong" if wrong else ""
    return Draw(name, situation, actual, workload, bool(load * capacity[0] > actual.capacity().sum()))


def _profile(rng: np.random.Generator, costs: np.ndarray, tasks: int) -> Profile:
    step_s = _log_uniform(rng, 0.002, 0.03)
    per_request = step_s * _log_uniform(rng, 0.002, 0.03)
    per_token = step_s * _log_uniform(rng, 0.0005, 0.01)
    listed = tuple(
        ModelProfile(
            name=f"model-{i}",
            decode=tuple((b, float(cost * (step_s + per_request * b))) for b in _BATCHES),
            prefill=tuple((p, float(cost * (step_s / 2 + per_token * p))) for p in _PROMPTS),
        )
        for i, cost in enumerate(costs)
    )
    qualities = []
    for k in range(tasks):
        gap = _log_uniform(rng, 0.01, 0.6)
        # Concave: the first models gain more than the last.
        steps = np.linspace(0.0, 1.0, len(costs)) ** rng.uniform(0.4, 1.2)
        jitter = np.sort(np.clip(steps + rng.normal(0.0, 0.05, len(costs)), 0.0, 1.0))
        percent = 100 * (1 - gap * (1 - jitter))
        qualities.append(TaskQuality(f"task-{k}", "made up", "drawn at random", tuple(map(float, percent))))
    provenance = Provenance(_MODELLED, _MODELLED, _MODELLED, _MODELLED)
    return Profile(1, "random", "none", listed, tuple(qualities), provenance)


def _task(rng: np.random.Generator, profile: Profile, name: str) -> Task:
    """A task whose deadline is 1.3 to 12 times what its mean answer takes on the smallest model that is idle."""
    prompt, output = _log_uniform(rng, 32, 4000), _log_uniform(rng, 3, 500)
    prompts = _around(rng, prompt, 8000)
    outputs = _around(rng, output, 1000)
    mean_prompt, mean_output = sum(prompts) // 2, sum(outputs) / 2
    prefill_s = float(profile.prefill_table(mean_prompt)[0, -1])
    step_s = float(profile.decode_table(1)[0, 1])
    slack = _log_uniform(rng, 1.3, 12.0)
    per_token_s = slack * step_s * float(rng.uniform(0.0, 1.0))
    base_s = slack * (prefill_s + step_s * mean_output) - per_token_s * mean_output
    return Task(
        name,
        share=float(rng.uniform(0.2, 1.0)),
        prompt_tokens=prompts,
        output_tokens=outputs,
        deadline=Deadline(base_s, per_token_s),
        weight=float(rng.choice([1.0, 1.0, 2.0])),
    )


def _workload(rng: np.random.Generator, load: float) -> Synthetic:
    """A workload of a mean load of about `load`."""
    kind = rng.integers(4)
    if kind == 0:
        return Poisson(load=load)
    if kind == 1:
        return Gamma(load=load, cv=float(rng.uniform(1.5, 4.0)))
    low, high = float(rng.uniform(0.2, 0.9)), float(rng.uniform(1.2, 4.0))
    if kind == 2:
        # The dwell times are such that the mean is the load.
        share = (1.0 - low) / (high - low)
        cycle_s = _log_uniform(rng, 2.0, 20.0)
        return Markov(loads=(low * load, high * load), dwell_s=((1 - share) * cycle_s, share * cycle_s))
    share = (1.0 - low) / (high - low)
    cycle_s = _log_uniform(rng, 4.0, 40.0)
    return Steps(loads=(low * load, high * load), starts_s=(0.0, (1 - share) * cycle_s), period_s=cycle_s)


def slower(profile: Profile, factors: np.ndarray) -> Profile:
    """The profile with all times of each model multiplied by a factor of its own."""

    def scaled(model: ModelProfile, factor: float) -> ModelProfile:
        decode, prefill = (
            tuple((x, seconds * factor) for x, seconds in points) for points in (model.decode, model.prefill)
        )
        return dataclasses.replace(model, decode=decode, prefill=prefill)

    models = tuple(scaled(model, float(factor)) for model, factor in zip(profile.models, factors, strict=True))
    return dataclasses.replace(profile, models=models)


def _spread(rng: np.random.Generator, count: int, ratio: float) -> np.ndarray:
    """(count,) costs from 1 to `ratio`, roughly geometric."""
    inner = np.sort(np.clip(np.linspace(0, 1, count) + rng.normal(0, 0.15, count) / count, 0.02, 0.98))
    inner[0], inner[-1] = 0.0, 1.0
    return np.asarray(ratio**inner)


def _around(rng: np.random.Generator, mean: float, most: int) -> tuple[int, int]:
    """A range of lengths around a mean, from nearly constant to nearly from 1 to twice the mean."""
    half = rng.uniform(0.05, 0.95)
    low, high = max(1, round(mean * (1 - half))), min(most, max(1, round(mean * (1 + half))))
    return low, high


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
