"""Sends a list of requests to the engine in real time; returns the same results as the simulator.

Requests arrive at the times of the list (open loop), whether or not earlier ones are answered. Latencies count from the
time in the list, so delays of the host count, too. Answers have exactly the output tokens that the list asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from besteffort.errors import InputError
from besteffort.estimates.reward import reward as reward_of
from besteffort.observation import FEATURES, Observation, next_rate
from besteffort.opt.engine import Answer, Engine, OverloadedError
from besteffort.policy import Policy
from besteffort.simulator.result import Result
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

Choose = Callable[[int, Observation], int]
"""A router as a function on the host: from a request's index in the list and the observation to a model's index."""

_LEAD_S = 0.05
_FURTHER = ("deadline_s", "smallest_batch")  # features that the engine reports besides those that all policies take


@dataclasses.dataclass(frozen=True)
class Played:
    """The results of a list.

    Attributes:
      result: per-request results, as from `besteffort.simulate`.
      answers: tokens of each answer; empty if the request was rejected.
      lateness_s: (n,) seconds from the time in the list until the request reached the engine.
      routing_s: (n,) duration of the routing decision, seconds.
    """

    result: Result
    answers: tuple[tuple[int, ...], ...]
    lateness_s: Float[np.ndarray, " n"]
    routing_s: Float[np.ndarray, " n"]


def choose_by_policy(policy: Policy, situation: Situation) -> Choose:
    """Decides by a policy file.

    Raises:
      InputError: if it does not fit the situation, or needs a feature that the engine does not report.
    """
    further = [feature.name for feature in policy.features if feature.name in _FURTHER]
    reported = (*FEATURES[:3], *_FURTHER)
    unreported = [f"`{feature.name}`" for feature in policy.features if feature.name not in reported]
    if unreported:
        raise InputError(
            f"The policy reads {', '.join(unreported)}, which the engine does not report; train one without."
        )
    policy.check_fits(situation)

    def choose(index: int, seen: Observation) -> int:
        known = {"deadline_s": seen.deadline_s, "smallest_batch": seen.instance_batch_sizes.min(axis=0).tolist()}
        values = policy.values(
            task=policy.tasks[seen.task],
            batch_sizes=seen.batch_sizes.tolist(),
            arrival_rate=seen.arrival_rate,
            **{name: known[name] for name in further},
        )
        return int(values.argmax())

    return choose


async def drive(
    engine: Engine, requests: Requests, prompts: Sequence[Sequence[int]], situation: Situation, choose: Choose
) -> Played:
    """Sends a list to a running engine, and waits until the last answer is complete.

    Args:
      engine: an idle engine after `warm_up`, with the situation's models in their order.
      requests: the list; `prompt_tokens` are the lengths of `prompts`.
      prompts: tokens of each prompt.
      situation: one replica; `max_batch`, `queue_capacity` and `chunk_tokens` are the engine's.
      choose: the router.

    Raises:
      InputError: if the engine, the prompts and the situation do not match.
    """
    _check(engine, requests, prompts, situation)
    loop, clock = asyncio.get_running_loop(), time.perf_counter
    n = len(requests)
    answers: list[Answer | None] = [None] * n
    model = np.zeros(n, np.int64)
    lateness_s, routing_s = np.zeros(n), np.zeros(n)
    rate, previous_s = 0.0, math.nan
    names, outputs = engine.models, requests.output_tokens.tolist()
    deadlines_s = situation.visible_deadlines[requests.task] * requests.deadline_factors
    placed = loop.create_future()
    start_s = clock() + _LEAD_S

    def place(index: int) -> None:
        nonlocal rate, previous_s
        now = clock()
        lateness_s[index] = now - start_s - requests.arrival_s[index]
        rate = float(next_rate(rate, now - previous_s, situation.view.rate_tau_s)) if index else 0.0
        previous_s = now
        sizes = np.array(list(engine.batch_sizes.values()))
        model[index] = choose(index, _observation(int(requests.task[index]), sizes, rate, deadlines_s[index]))
        routing_s[index] = clock() - now
        with contextlib.suppress(OverloadedError):
            answers[index] = engine.submit(names[model[index]], prompts[index], outputs[index], stop_tokens=())

    def place_next(index: int) -> None:
        if placed.done():
            return
        try:
            place(index)
            if index == n - 1:
                placed.set_result(None)
        except Exception as error:
            placed.set_exception(error)

    def feed() -> None:
        """Runs in a thread: a timer of the event loop would be up to a millisecond late."""
        for index, arrival_s in enumerate(requests.arrival_s.tolist()):
            if over.wait(max(0.0, start_s + arrival_s - clock())):
                return
            loop.call_soon_threadsafe(place_next, index)

    over = threading.Event()
    feeder = threading.Thread(target=feed, name="arrivals")
    feeder.start()
    try:
        await placed
    finally:
        over.set()
        feeder.join()
    for answer in answers:
        if answer is not None:
            await answer.complete()
    return Played(
        result_of(requests, situation, model, answers, start_s),
        tuple(() if answer is None else tuple(answer.tokens) for answer in answers),
        lateness_s,
        routing_s,
    )


def _observation(task: int, sizes: np.ndarray, rate: float, deadline_s: float) -> Observation:
    return Observation(
        task=task,
        batch_sizes=sizes,
        arrival_rate=rate,
        instance_batch_sizes=sizes[None],
        deadline_s=deadline_s,
        since_change_s=math.nan,  # the engine does not report it
    )


def result_of(
    requests: Requests, situation: Situation, model: np.ndarray, answers: Sequence[Answer | None], start_s: float = 0.0
) -> Result:
    """What came of a list, as a simulation says it.

    Args:
      requests: the list.
      situation: says what answers are worth.
      model: (n,) index of the model that each request went to.
      answers: of each request; None if it was rejected.
      start_s: when the list's time 0 was, by the clock of the answers.
    """

    def times_s(name: str) -> np.ndarray:
        return np.array([math.nan if answer is None else getattr(answer, name) - start_s for answer in answers])

    rejected = np.array([answer is None for answer in answers])
    completion_s = times_s("completion_s")
    latency_s = np.where(rejected, np.inf, completion_s - requests.arrival_s + situation.cluster.network_delay_s)
    quality = situation.profile.quality_table(situation.task_names)
    weight = situation.weights
    return Result.of(
        requests.columns,
        model=model,
        replica=np.where(rejected, -1, 0),
        admission_s=times_s("admission_s"),
        first_token_s=times_s("first_token_s"),
        completion_s=completion_s,
        latency_s=latency_s,
        reward=reward_of(
            quality[requests.task, model],
            weight[requests.task],
            latency_s,
            requests.deadline_s,
            situation.reward.soft_span,
            situation.reward.miss_penalty,
        ),
    )


def _check(engine: Engine, requests: Requests, prompts: Sequence[Sequence[int]], situation: Situation) -> None:
    cluster = situation.cluster
    if engine.models != situation.profile.model_names:
        raise InputError(
            f"The engine serves {', '.join(engine.models)}, the profile is of "
            f"{', '.join(situation.profile.model_names)}; give both the same models in the same order."
        )
    if (cluster.replicas, cluster.max_batch, cluster.queue_capacity) != (1, engine.max_batch, engine.queue_capacity):
        raise InputError(
            f"The engine is one replica with `max_batch` {engine.max_batch} and `queue_capacity` "
            f"{engine.queue_capacity}; the situation's cluster must say the same."
        )
    if any(model.chunk_tokens != engine.chunk_tokens for model in situation.profile.models):
        raise InputError(
            f"The engine's `chunk_tokens` is {engine.chunk_tokens or 'not set'}; every model of the situation's "
            "profile must say the same."
        )
    if situation.view.rate_lag or situation.view.batch_refresh_s:
        raise InputError("The engine reports its state without delay; leave `rate_lag` and `batch_refresh_s` at 0.")
    if [len(prompt) for prompt in prompts] != requests.prompt_tokens.tolist():
        raise InputError("The prompts do not have the lengths that `prompt_tokens` says; give each request its own.")
    if requests.tasks != situation.task_names:
        raise InputError("The list and the situation name different tasks; give the same ones in the same order.")
