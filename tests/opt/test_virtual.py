"""The engine in virtual time: with lengths that are told it is the reference; its clock goes by what it computed."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from tiny_opt import PROMPTS

from besteffort.errors import InputError
from besteffort.opt.engine import Answer, OverloadedError, Pace, Part
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.virtual import VirtualEngine
from besteffort.opt.weights import Model, random_model
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.requests import Requests

BUCKETS = Buckets((4,), (16,), (32,))
SOURCE = Source("measured", "a test")
DECODE_S = {"one": (0.0, 0.01, 0.013, 0.017, 0.019), "two": (0.0, 0.021, 0.022, 0.024, 0.04)}
PREFILL_S = {
    "one": (0.0, *(0.003 + 0.0007 * max(tokens - 4, 0) for tokens in range(1, 17))),
    "two": (0.0, *(0.0171 + 0.0003 * tokens for tokens in range(1, 17))),
}


@pytest.fixture(scope="module")
def models(model: Model) -> dict[str, Model]:
    return {"one": model, "two": dataclasses.replace(random_model(model.config, seed=9), name="two")}


def pace_of(name: str) -> Pace:
    """In the order in which the reference adds."""

    def pace(decoding: int, parts: Sequence[Part]) -> float:
        seconds = DECODE_S[name][decoding]
        for before, after in parts:
            seconds += PREFILL_S[name][after] - PREFILL_S[name][before]
        return seconds

    return pace


def engine_of(models: dict[str, Model], **options: object) -> VirtualEngine:
    return VirtualEngine(models, **{"max_batch": 4, "queue_capacity": 3, "context": 32, "buckets": BUCKETS} | options)


def serve(engine: VirtualEngine, requests: Requests, names: Sequence[str]) -> list[Answer | None]:
    answers: list[Answer | None] = []
    for index, name in enumerate(names):
        engine.advance(float(requests.arrival_s[index]))
        try:
            prompt = PROMPTS[requests.prompt_tokens[index] - 1]
            answers.append(engine.submit(name, prompt, int(requests.output_tokens[index]), stop_tokens=()))
        except OverloadedError:
            answers.append(None)
    engine.advance(np.inf)
    return answers


@pytest.mark.parametrize("chunk_tokens", [None, 5])
def test_it_is_the_reference_where_lengths_are_told(models: dict[str, Model], chunk_tokens: int | None) -> None:
    """To the last digit: two models with lines, several who come at one instant, or as an iteration ends."""
    rng = np.random.default_rng(1)
    n = 90
    arrival_s = np.sort(np.round(rng.uniform(0, 1.0, n), 3))
    arrival_s[10:14] = arrival_s[10]
    arrival_s[0], arrival_s[1:3] = 0.0, 0.003  # when the first iteration ends
    prompts, outputs = rng.integers(1, 10, n), rng.integers(1, 9, n)
    prompts[0] = 3
    requests = Requests(("a",), np.sort(arrival_s), np.zeros(n, int), prompts, outputs, np.full(n, 9.0))
    chosen = rng.integers(0, 2, n)
    tables = tuple(
        ModelProfile(
            name,
            tuple(enumerate(DECODE_S[name][1:], 1)),
            tuple(enumerate(PREFILL_S[name][1:], 1)),
            chunk_tokens=chunk_tokens,
        )
        for name in models
    )
    quality = (TaskQuality("a", "m", "s", (50.0, 100.0)),)
    profile = Profile(1, "tiny", "d", tables, quality, Provenance(SOURCE, SOURCE, SOURCE, SOURCE))
    situation = Situation(profile, Cluster(1, 4, 3), (Task("a"),))
    expected = simulate_by_reference(requests, situation, lambda index, seen: int(chosen[index]))
    engine = engine_of(models, paces={name: pace_of(name) for name in models}, chunk_tokens=chunk_tokens)
    answers = serve(engine, requests, [("one", "two")[model] for model in chosen])
    assert 3 < expected.rejected.sum() < n / 2
    assert [answer is None for answer in answers] == expected.rejected.tolist()
    for name in ("admission_s", "first_token_s", "completion_s"):
        found = [np.nan if answer is None else getattr(answer, name) for answer in answers]
        np.testing.assert_array_equal(found, getattr(expected, name))
    # And the tokens are those that each request gets alone.
    runtimes = {name: Runtime(model, 4, 32, BUCKETS) for name, model in models.items()}
    for answer in answers[::15]:
        if answer is not None:
            assert [answer.tokens] == generate(
                runtimes[answer.model], [answer.prompt], answer.max_new_tokens, stop_tokens=()
            )
    assert engine.batch_sizes == {"one": 0, "two": 0}


def test_the_clock_goes_by_what_was_computed(models: dict[str, Model]) -> None:
    """By a timer that ticks a second each time that it is looked at; half of that where the machine is half as fast."""
    ticks = itertools.count()
    engine = engine_of(models, timer=lambda: float(next(ticks)))
    first = engine.submit("one", PROMPTS[3], 3, stop_tokens=())
    engine.advance(0.5)
    assert (engine.now, first.tokens) == (0.5, [])
    second = engine.submit("two", PROMPTS[3], 1, stop_tokens=())
    engine.advance(10.0)
    assert (first.first_token_s, first.completion_s) == (1.0, 3.0)
    assert (second.admission_s, second.completion_s) == (0.5, 1.5)
    engine.gauge = {"one": 1.0, "two": 2.0}.__getitem__
    engine.advance(1e6)  # nobody is there: time is skipped
    third = engine.submit("two", PROMPTS[0], 2, stop_tokens=())
    engine.advance(np.inf)
    assert third.completion_s == 1e6 + 2 * 0.5
    assert engine.now == third.completion_s


def test_everything_is_heard_in_order_of_time(models: dict[str, Model]) -> None:
    engine = engine_of(models, paces={name: pace_of(name) for name in models})
    heard: list[tuple[float, str, int, bool]] = []
    for name in ("two", "one", "one"):
        engine.submit(name, PROMPTS[2], 4, stop_tokens=())
    cancelled = engine.submit("one", PROMPTS[2], 4, stop_tokens=())

    def hear(answer: Answer) -> None:
        heard.append((engine.now, answer.model, len(answer.tokens), answer.done))
        if answer is not cancelled and len(answer.tokens) == 2:
            cancelled.cancel()

    engine.advance(np.inf, hear)
    times = [time for time, *_ in heard]
    assert times == sorted(times)
    assert sum(done for *_, done in heard) == 3
    assert 0 < len(cancelled.tokens) < 4
    assert 12 <= len(heard) <= 12 + len(cancelled.tokens)
    assert engine.batch_sizes == {"one": 0, "two": 0}


def test_time_does_not_go_back(models: dict[str, Model]) -> None:
    engine = engine_of({"one": models["one"]}, paces={"one": pace_of("one")})
    asyncio.run(engine.warm_up())
    engine.advance(2.0)
    with pytest.raises(InputError, match="`until_s` is 1 and it is 2 s already"):
        engine.advance(1.0)
    engine.submit("one", PROMPTS[0], 1, stop_tokens=())
    with pytest.raises(InputError, match="The engine holds requests"):
        engine.restart()
    engine.advance(np.inf)
    engine.restart()
    assert engine.now == 0.0
    engine.close()
