"""Continuous batching: the iterations of the serving model, and nobody's tokens, slot or request lost."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps

import jax
import numpy as np
import pytest
from tiny_opt import PROMPTS, no_compilation

from besteffort.errors import InputError
from besteffort.opt.engine import Answer, Engine, OverloadedError, Part, StoppedError
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.sampling import GREEDY, Sampling
from besteffort.opt.weights import Model, random_model

BUCKETS = Buckets((2, 4), (16,), (32,))
RANDOM = Sampling(1.0, top_k=30)
KINDS = [(index, 1 + index % 7, RANDOM if index % 3 == 0 else GREEDY) for index in range(len(PROMPTS))]


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 600))

    return run


@pytest.fixture(scope="module")
def models(model: Model) -> dict[str, Model]:
    other = random_model(model.config, seed=9)
    return {"one": model, "two": Model("two", other.config, other.module, jax.tree.map(lambda x: 10 * x, other.params))}


@pytest.fixture(scope="module")
def alone(models: dict[str, Model]) -> dict[tuple[str, int], list[int]]:
    """What each request gets with nobody beside it."""
    found = {}
    for name, model in models.items():
        runtime = Runtime(model, 4, 32, BUCKETS)
        for index, count, sampling in KINDS:
            row, token = runtime.prefill(PROMPTS[index], sampling, jax.random.key(index))
            found[name, index] = [token, *(runtime.decode()[row] for _ in range(count - 1))]
            runtime.release(row)
    return found


def engine_of(models: dict[str, Model], queue_capacity: int = 100, **options: object) -> Engine:
    return Engine(models, max_batch=4, queue_capacity=queue_capacity, context=32, buckets=BUCKETS, **options)


def ask(engine: Engine, name: str, index: int) -> Answer:
    _, count, sampling = KINDS[index]
    return engine.submit(name, PROMPTS[index], count, sampling, jax.random.key(index), stop_tokens=())


@asynchronous
async def test_two_hundred_arrival_patterns(models: dict[str, Model], alone: dict[tuple[str, int], list[int]]) -> None:
    """Whoever runs beside it, leaves, is cancelled or waits: a request gets the tokens that it gets alone."""
    rng = np.random.default_rng(0)
    served = cancelled = waited = 0
    async with engine_of(models) as engine:
        await engine.warm_up()
        assert engine.compilations == 2 * 4
        with no_compilation():
            for _ in range(200):
                answers: list[tuple[str, int, Answer, bool]] = []
                for _ in range(rng.integers(1, 12)):
                    name, index = ("one", "two")[rng.integers(2)], int(rng.integers(len(KINDS)))
                    answer = ask(engine, name, index)
                    answers.append((name, index, answer, rng.random() < 0.15))
                    for _ in range(rng.choice([0, 0, 1, 3, 10])):
                        await asyncio.sleep(0.0003)
                    if answers[int(rng.integers(len(answers)))][-1]:
                        next(a for *_, a, unwanted in answers if unwanted).cancel()
                for name, index, answer, _ in answers:
                    tokens = await answer.complete()
                    full = alone[name, index]
                    assert tokens == full[: len(tokens)]
                    assert answer.done
                    if answer.cancelled:
                        cancelled += 1
                        continue
                    assert tokens == full
                    served += 1
                    waited += answer.admission_s - answer.arrival_s > 1e-3
                    assert answer.arrival_s <= answer.admission_s < answer.first_token_s <= answer.completion_s
                while any(engine.batch_sizes.values()):  # a cancelled one's slot is free when its iteration ends
                    await asyncio.sleep(0.0003)
                for instance in engine._instances.values():
                    assert instance.runtime.used == ()
    assert served > 800
    assert cancelled > 50
    assert waited > 50


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_chunks_change_no_token(
    models: dict[str, Model], alone: dict[tuple[str, int], list[int]], chunk_tokens: int
) -> None:
    """Whoever decodes beside it, is read before it or is cancelled while it is read; and no row is lost."""

    async def serve() -> None:
        rng = np.random.default_rng(chunk_tokens)
        async with engine_of({"one": models["one"]}, chunk_tokens=chunk_tokens) as engine:
            await engine.warm_up()
            with no_compilation():
                for _ in range(12):
                    order = rng.permutation(len(KINDS))
                    answers = [(int(index), ask(engine, "one", int(index))) for index in order]
                    for _ in range(rng.integers(0, 6)):
                        await asyncio.sleep(0.0003)
                    answers[int(rng.integers(len(answers)))][1].cancel()
                    for index, answer in answers:
                        tokens = await answer.complete()
                        assert tokens == alone["one", index][: len(tokens)]
                        assert answer.cancelled or len(tokens) == KINDS[index][1]
                    while any(engine.batch_sizes.values()):
                        await asyncio.sleep(0.0003)
                    assert engine._instances["one"].runtime.used == ()

    asyncio.run(asyncio.wait_for(serve(), 600))


@asynchronous
async def test_chunks_are_those_of_the_serving_model(models: dict[str, Model]) -> None:
    """By a clock that ticks at submissions, and at the starts and ends of iterations; prompts of 4, 3 and 9 tokens."""
    ticks = itertools.count()
    engine = engine_of({"one": models["one"]}, chunk_tokens=5, clock=lambda: float(next(ticks)))
    async with engine:
        counts = {3: 4, 2: 1, 8: 1}
        answers = [engine.submit("one", PROMPTS[i], n, stop_tokens=()) for i, n in counts.items()]
        for answer in answers:
            await answer.complete()
    # 4 + 1; a decode + 2 + 2; a decode + 4; a decode + 3.
    start = [3 + 2 * iteration for iteration in range(4)]
    assert [answer.admission_s for answer in answers] == [start[0], start[0], start[1]]
    assert [answer.first_token_s for answer in answers] == [start[0] + 1, start[1] + 1, start[3] + 1]
    assert [answer.completion_s for answer in answers] == [start[3] + 1, start[1] + 1, start[3] + 1]


def test_a_chunk_has_a_token(models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match="`chunk_tokens` is 0; give at least 1"):
        engine_of(models, chunk_tokens=0)


@asynchronous
async def test_iterations_are_those_of_the_serving_model(models: dict[str, Model]) -> None:
    """By a clock that ticks at submissions, and at the starts and ends of iterations."""
    ticks = itertools.count()
    async with engine_of({"one": models["one"]}, queue_capacity=2, clock=lambda: float(next(ticks))) as engine:
        counts = [3, 1, 2, 4, 2, 1]
        answers = [engine.submit("one", PROMPTS[i], n, stop_tokens=()) for i, n in enumerate(counts)]
        with pytest.raises(OverloadedError, match="`one` holds 6 requests"):
            engine.submit("one", [1], 1)
        assert engine.batch_sizes == {"one": 6}
        for answer in answers:
            await answer.complete()
        assert engine.batch_sizes == {"one": 0}
    assert [answer.arrival_s for answer in answers] == [0, 1, 2, 3, 4, 5]
    start = {iteration: 6 + 2 * iteration for iteration in range(5)}
    # The first four are admitted at once; the second leaves after one iteration and lets the fifth in; after the next
    # the third leaves, and the sixth is in.
    assert [answer.admission_s for answer in answers] == [start[i] for i in (0, 0, 0, 0, 1, 2)]
    assert [answer.first_token_s for answer in answers] == [start[i] + 1 for i in (0, 0, 0, 0, 1, 2)]
    assert [answer.completion_s for answer in answers] == [start[i] + 1 for i in (2, 0, 1, 3, 2, 2)]


@asynchronous
async def test_tokens_are_streamed_as_they_come(models: dict[str, Model]) -> None:
    async with engine_of({"one": models["one"]}) as engine:
        long, short = (engine.submit("one", [5, 6], n, stop_tokens=()) for n in (20, 3))
        seen = []
        async for token in long:
            seen.append(token)
            if len(seen) == 5:
                assert short.done
                assert not long.done
        assert seen == long.tokens
        assert [token async for token in long] == seen  # again, from the beginning
        assert long.tokens[:3] == short.tokens


@asynchronous
async def test_a_stop_token_ends_an_answer(models: dict[str, Model]) -> None:
    expected = generate(Runtime(models["one"], 4, 32, BUCKETS), PROMPTS[2:3], 12, stop_tokens=())[0]
    async with engine_of({"one": models["one"]}) as engine:
        answer = engine.submit("one", PROMPTS[2], 12, stop_tokens=expected[4:5])
        assert await answer.complete() == expected[: expected.index(expected[4]) + 1]


@asynchronous
async def test_cancelling_frees_the_slot(models: dict[str, Model]) -> None:
    async with engine_of({"one": models["one"]}, queue_capacity=1) as engine:
        running = [engine.submit("one", PROMPTS[i], 25, stop_tokens=()) for i in range(4)]
        await anext(aiter(running[0]))
        waiting = engine.submit("one", PROMPTS[4], 2, stop_tokens=())
        with pytest.raises(OverloadedError):
            engine.submit("one", [1], 1)
        waiting.cancel()
        assert engine.batch_sizes == {"one": 4}  # a waiting one leaves at once
        assert await waiting.complete() == []
        assert math.isnan(waiting.completion_s)
        last = engine.submit("one", PROMPTS[4], 2, stop_tokens=())
        running[1].cancel()
        running[1].cancel()
        await last.complete()
        assert not running[0].done  # so it was the cancelled one's slot
        assert len(await running[2].complete()) == 25
        running[2].cancel()  # too late to matter
        assert not running[2].cancelled


@asynchronous
async def test_stopping_tells_everybody(models: dict[str, Model]) -> None:
    engine = engine_of({"one": models["one"]})
    with pytest.raises(StoppedError, match="not running"):
        engine.submit("one", [1], 1)
    async with engine:
        answers = [engine.submit("one", PROMPTS[i], 25, stop_tokens=()) for i in range(6)]
        await anext(aiter(answers[0]))
    for answer in answers:
        with pytest.raises(StoppedError, match="The answer of `one` was not completed"):
            await answer.complete()
    assert engine.batch_sizes == {"one": 0}


@asynchronous
async def test_a_failing_device_tells_everybody(models: dict[str, Model]) -> None:
    """A cache that another program has taken, as donated buffers are."""
    engine = engine_of({"one": models["one"]})
    await engine.__aenter__()
    for leaf in jax.tree.leaves(engine._instances["one"].runtime._cache):
        leaf.delete()
    answer = engine.submit("one", [1], 3)
    with pytest.raises(StoppedError):
        await answer.complete()
    with pytest.raises(StoppedError, match="not running"):
        engine.submit("one", [1], 3)
    with pytest.raises(RuntimeError, match="deleted"):
        await engine.stop()


@asynchronous
async def test_one_sentence_for_each_mistake(models: dict[str, Model]) -> None:
    async with engine_of(models) as engine:
        for arguments, words in [
            (("three", [1], 1), "no model `three`; choose from one, two"),
            (("one", [], 1), "The prompt is empty"),
            (("one", [1] * 33, 1), "exceed the context of 32 tokens"),
            (("one", [1], 1, Sampling(1.0)), "needs a `key`"),
        ]:
            with pytest.raises(InputError) as caught:
                engine.submit(*arguments)
            assert words in str(caught.value)
        assert engine.batch_sizes == {"one": 0, "two": 0}
    with pytest.raises(InputError, match="The engine has no model"):
        engine_of({})
    with pytest.raises(InputError, match="`queue_capacity` is -1"):
        engine_of(models, queue_capacity=-1)


@asynchronous
async def test_a_paced_engine_takes_as_long_as_it_is_told(models: dict[str, Model]) -> None:
    told: list[tuple[int, list[Part]]] = []

    def pace(decoding: int, parts: Sequence[Part]) -> float:
        told.append((decoding, list(parts)))
        return 0.1 if parts else 0.02

    async with engine_of(models, paces={"one": pace}) as engine:
        await engine.warm_up()
        answer = engine.submit("one", PROMPTS[3], 6, stop_tokens=())
        other = engine.submit("two", PROMPTS[3], 6, stop_tokens=())
        await answer.complete()
        assert len(await other.complete()) == 6
    assert told == [(0, [(0, len(PROMPTS[3]))])] + [(1, [])] * 5
    assert answer.first_token_s - answer.admission_s >= 0.1
    # An iteration may make up for 5 ms by which the last one was late.
    assert answer.completion_s - answer.admission_s >= 0.1 + 5 * 0.02 - 0.005
