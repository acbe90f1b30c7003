"""An engine that serves several OPT models on one device by continuous batching, with an asynchronous interface.

An instance follows the serving model (`ARCHITECTURE.md`, points 1 to 3): it works in iterations. When one starts, it
admits waiting requests in order of arrival while fewer than `max_batch` run, reads their prompts and decodes one token
for every request that ran before. At its end each request has one more token, and complete requests leave. With
`chunk_tokens` it works on so many tokens at most, one for each request that decodes, the rest of prompts (point 5). An
instance that holds `max_batch + queue_capacity` requests rejects. Each model computes in its own thread, so several may
have an iteration in progress on the device.

    async with Engine({"small": small, "large": large}, max_batch=8, queue_capacity=8, context=512) as engine:
        await engine.warm_up()
        answer = engine.submit("small", prompt, max_new_tokens=20)
        async for token in answer:
            ...
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import jax

from besteffort.errors import InputError
from besteffort.opt.runtime import NEEDS_KEY, Buckets, Runtime
from besteffort.opt.sampling import GREEDY, Sampling
from besteffort.opt.weights import Model

Part = tuple[int, int]
"""What an iteration reads of a prompt: the tokens of it that are read before the iteration and after it."""

Pace = Callable[[int, Sequence[Part]], float]
"""Seconds that an iteration takes at least, from the number of requests that decode and the parts that it reads."""

Found = tuple[dict[int, int], dict[int, int]]
"""What an iteration computes: the new places of rows that moved, and tokens by row."""


class OverloadedError(RuntimeError):
    """The instance is full; the request was rejected."""


class StoppedError(RuntimeError):
    """The engine stopped, or its device failed, before the answer was complete."""


_LATE_S = 0.005  # that a paced iteration may be late and the next one make up for


@dataclasses.dataclass(eq=False)
class Answer:
    """A request and its answer, which arrives token by token: iterate over it, or await `complete()`.

    Attributes:
      model: name of the model that answers.
      prompt: tokens of the prompt.
      max_new_tokens: longest answer, in tokens.
      sampling, key: sampling settings and key of its tokens.
      stop_tokens: the answer ends with the first of these.
      tokens: the tokens generated so far.
      arrival_s, admission_s, first_token_s, completion_s: times by the engine's clock; NaN for future events.
      cancelled: whether `cancel` was called before it was complete.
    """

    model: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    key: jax.Array | None
    stop_tokens: frozenset[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    arrival_s: float = math.nan
    admission_s: float = math.nan
    first_token_s: float = math.nan
    completion_s: float = math.nan
    cancelled: bool = False
    _changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event, repr=False)
    _failure: BaseException | None = dataclasses.field(default=None, repr=False)
    _withdraw: Callable[[Answer], None] | None = dataclasses.field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether the answer has all its tokens, was cancelled or failed."""
        return self.cancelled or self._failure is not None or not math.isnan(self.completion_s)

    async def __aiter__(self) -> AsyncIterator[int]:
        """Yields tokens as they are generated; ends early if the request is cancelled.

        Raises:
          StoppedError: if the engine stopped before the answer was complete.
        """
        given = 0
        while True:
            self._changed.clear()
            while given < len(self.tokens):
                given += 1
                yield self.tokens[given - 1]
            if self._failure is not None:
                raise StoppedError(f"The answer of `{self.model}` was not completed.") from self._failure
            if self.done:
                return
            if not self._changed.is_set():
                await self._changed.wait()

    async def complete(self) -> list[int]:
        """Waits for all tokens and returns them; raises as iterating does."""
        async for _ in self:
            pass
        return self.tokens

    def cancel(self) -> None:
        """Cancels the answer. If it waits, it leaves at once; if it runs, its slot is free when the iteration ends."""
        if not self.done and self._withdraw is not None:
            self.cancelled = True
            self._withdraw(self)
            self._changed.set()


class Engine:
    """Several models on one device. Use it as an asynchronous context manager; make all calls from its event loop.

    Attributes:
      models: names of the models, in the given order.
      max_batch: requests of a model that run at once.
      queue_capacity: requests of a model that may wait beyond these.
      chunk_tokens: tokens that an iteration works on at most; None: prompts are read whole.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        max_batch: int,
        queue_capacity: int,
        context: int | None = None,
        buckets: Buckets | None = None,
        chunk_tokens: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        paces: Mapping[str, Pace] | None = None,
    ) -> None:
        """Makes a cache for each model.

        Args:
          models: the models, by name.
          max_batch: requests of a model that run at once.
          queue_capacity: requests of a model that may wait beyond these.
          context: longest sequence in tokens, prompt and answer; by default each model's limit.
          buckets: see `Runtime`.
          chunk_tokens: tokens that an iteration works on at most; by default prompts are read whole.
          clock: returns the current time of answers, in seconds.
          paces: of models that are to be slower than they are, as on another device.

        Raises:
          InputError: if there is no model, a number is out of range, or the caches do not fit in memory.
        """
        if not models:
            raise InputError("The engine has no model; give at least one.")
        if queue_capacity < 0:
            raise InputError(f"`queue_capacity` is {queue_capacity}; give 0 or more.")
        self.models = tuple(models)
        self.max_batch = max_batch
        self.queue_capacity = queue_capacity
        self.chunk_tokens = chunk_tokens
        self._instances = {
            name: Instance(
                Runtime(model, max_batch, context, buckets, chunk_tokens),
                max_batch + queue_capacity,
                clock,
                (paces or {}).get(name),
            )
            for name, model in models.items()
        }
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(instance.serve(), name=f"serve {name}") for name, instance in self._instances.items()
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Finishes the iterations in progress and fails all incomplete answers."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def warm_up(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Compiles everything that serving needs; call it before the first request.

        Args:
          progress: called with the model's name, the number of programs compiled and the total.
        """
        for name, instance in self._instances.items():
            await instance.warm_up(None if progress is None else functools.partial(progress, name))

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(instance.runtime.compilations for instance in self._instances.values())

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Requests running or waiting, by model."""
        return {name: instance.batch_size for name, instance in self._instances.items()}

    @property
    def waiting(self) -> dict[str, int]:
        """Those of them that wait, by model."""
        return {name: instance.waiting for name, instance in self._instances.items()}

    @property
    def serving(self) -> bool:
        """Whether it runs, and all its models do."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def clock_s(self) -> float:
        """Seconds on the clock of answers."""
        return self._clock()

    def context(self, model: str) -> int:
        """Longest sequence of a model in tokens, prompt and answer."""
        return self._instances[model].runtime.context

    def submit(
        self,
        model: str,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        key: jax.Array | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> Answer:
        """Submits a request to a model. An idle instance starts at once; a busy one admits it when its iteration ends.

        Args:
          model: name of the model.
          prompt: tokens of the prompt.
          max_new_tokens: largest number of tokens to generate.
          sampling: sampling settings; greedy by default.
          key: key of random sampling.
          stop_tokens: the answer ends with and includes the first of these; by default the model's own.

        Raises:
          InputError: if there is no such model, or it cannot serve the request.
          OverloadedError: if the instance holds `max_batch + queue_capacity` requests.
          StoppedError: if the engine is not running.
        """
        if model not in self._instances:
            raise InputError(f"The engine has no model `{model}`; choose from {', '.join(self.models)}.")
        instance = self._instances[model]
        instance.runtime.check(prompt, max_new_tokens)
        if sampling.temperature > 0 and key is None:
            raise InputError(NEEDS_KEY)
        if not self.serving:
            raise StoppedError("The engine is not running; use it inside `async with`.")
        stop = instance.runtime.model.config.stop_tokens if stop_tokens is None else stop_tokens
        answer = Answer(
            model, tuple(prompt), max_new_tokens, sampling, key, frozenset(stop), _withdraw=instance.withdraw
        )
        instance.place(answer)
        self._placed(model)
        return answer

    def _placed(self, model: str) -> None:
        """Is called after a request was placed. In real time an idle model's task has seen it already."""


@dataclasses.dataclass(eq=False, slots=True)
class _Reading:
    """A prompt that is being read.

    Attributes:
      answer: its request.
      row: its row of the cache; None before the first part.
      read, upto: tokens that are read, and are to be by the end of the iteration in progress.
    """

    answer: Answer
    row: int | None = None
    read: int = 0
    upto: int = 0


class Instance:
    """One model of an engine. Its state belongs to the event loop; its own thread computes iterations.

    Attributes:
      runtime: the model and its cache; only the thread uses it while an iteration is in progress.
      capacity: largest number of requests that it holds.
      pace: how long iterations last, if not as long as they take.
      load: of the iteration in progress the number of requests that decode, and the parts of prompts that it reads.
    """

    def __init__(
        self,
        runtime: Runtime,
        capacity: int,
        clock: Callable[[], float] = time.perf_counter,
        pace: Pace | None = None,
    ) -> None:
        self.runtime = runtime
        self.capacity = capacity
        self._clock = clock
        self.pace = pace
        self.load: tuple[int, list[Part]] = (0, [])
        self._due_s = -math.inf  # when the last iteration was to end
        self._waiting: deque[Answer] = deque()
        self._running: dict[int, Answer] = {}  # by row of the cache
        self._reading: list[_Reading] = []  # admitted, without a token yet; between iterations one at most
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"serve {runtime.model.name}")

    @property
    def batch_size(self) -> int:
        """Requests running or waiting; a cancelled one counts until its slot is free."""
        return len(self._waiting) + len(self._running) + len(self._reading)

    @property
    def waiting(self) -> int:
        """Requests that no iteration has admitted."""
        return len(self._waiting)

    def place(self, answer: Answer) -> None:
        """Puts a request into the queue, or raises `OverloadedError`."""
        if self.batch_size >= self.capacity:
            raise OverloadedError(f"`{answer.model}` holds {self.capacity} requests; try again later.")
        answer.arrival_s = self._clock()
        self._waiting.append(answer)
        self._arrival.set()

    def withdraw(self, answer: Answer) -> None:
        """Removes a cancelled request from the queue; a running one is dropped when its iteration ends."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(answer)

    async def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compiles in the thread; calls `progress` in the event loop with the number of programs done and the total."""
        loop = asyncio.get_running_loop()

        def compile_all() -> None:
            for done, total in self.runtime.warm_up():
                if progress is not None:
                    loop.call_soon_threadsafe(progress, done, total)

        await loop.run_in_executor(self._thread, compile_all)

    async def serve(self) -> None:
        """Iterates while there are requests and waits while there are none, until cancelled."""
        failure: BaseException = StoppedError("the engine was stopped")
        try:
            while True:
                await self._arrival.wait()
                while self.batch_size:
                    await self.iterate()
                self._arrival.clear()
        except Exception as error:
            failure = error
            raise
        finally:
            self.close()
            self._abandon(failure)

    def close(self) -> None:
        """Ends the thread after its current iteration."""
        self._thread.shutdown()

    def adopt(self, answers: Sequence[Answer], held: int) -> None:
        """Runs these requests as if each already held `held` tokens; for timing only, as their tokens mean nothing."""
        self._running = dict(zip(self.runtime.occupy([held] * len(answers)), answers, strict=True))
        self._reading = []

    async def iterate(self) -> None:
        """One iteration: admits requests, computes in the thread, hands out tokens, and releases complete requests."""
        now = self._clock()
        self._admit(now)
        loop = asyncio.get_running_loop()
        if (pace_s := self._pace_s()) is not None:
            # From when the last one was to end, if this one follows at once, so that delays do not add up.
            self._due_s = (self._due_s if self._running else now) + pace_s
        computing = loop.run_in_executor(self._thread, self._compute, list(self._reading))
        try:
            moved, tokens = await asyncio.shield(computing)
        except asyncio.CancelledError:
            await asyncio.wait([computing])  # the thread must be idle before other code uses the device's cache
            raise
        if pace_s is not None:
            await asyncio.sleep(self._due_s - self._clock())
            self._due_s = max(self._due_s, self._clock() - _LATE_S)
        self.end((moved, tokens), self._clock())

    def begin(self, timer: Callable[[], float]) -> tuple[Found, float]:
        """The first part of an iteration, here and now: admits requests and computes; with it, the seconds it takes.

        These are what the model's pace says, if it has one, else what `timer` says that the computation took.
        """
        started = timer()
        self._admit(self._clock())
        pace_s = self._pace_s()
        found = self._compute(list(self._reading))
        took_s = timer() - started
        return found, took_s if pace_s is None else pace_s

    def end(self, found: Found, now: float) -> list[Answer]:
        """The last part of an iteration: hands out tokens and releases complete requests; returns who got a token."""
        moved, tokens = found
        self._running = {moved.get(row, row): answer for row, answer in self._running.items()}
        for each in self._reading:
            if each.read == len(each.answer.prompt) and each.row is not None:
                self._running[each.row] = each.answer
            elif each.answer.cancelled and each.row is not None:
                self.runtime.release(each.row)
        self._reading = [
            each for each in self._reading if each.read < len(each.answer.prompt) and not each.answer.cancelled
        ]
        served = []
        for row, token in tokens.items():
            answer = self._running[row]
            if not answer.cancelled:
                served.append(answer)
            if self._hand_over(answer, token, now):
                del self._running[row]
                self.runtime.release(row)
        return served

    def _pace_s(self) -> float | None:
        """Seconds that the iteration is to last whose requests were just admitted; None without a pace."""
        if self.pace is None:
            return None
        return self.pace(*self.load)

    def _admit(self, now: float) -> None:
        """Decides what the next iteration reads: first of the prompt that is read in part, then of those that wait."""
        budget = self.runtime.chunk_tokens
        room = math.inf if budget is None else budget - len(self._running)
        for each in self._reading:
            each.upto = int(max(each.read, min(len(each.answer.prompt), each.read + room)))
            room -= each.upto - each.read
        while self._waiting and room > 0 and len(self._running) + len(self._reading) < self.runtime.max_batch:
            answer = self._waiting.popleft()
            answer.admission_s = now
            self._reading.append(_Reading(answer, upto=int(min(len(answer.prompt), room))))
            room -= self._reading[-1].upto
        parts = [(each.read, each.upto) for each in self._reading if each.upto > each.read]
        self.load = len(self._running), parts

    def _compute(self, reading: list[_Reading]) -> Found:
        """Compacts rows, decodes, and reads prompts; returns moved rows and tokens by row."""
        moved = self.runtime.compact()
        tokens = self.runtime.decode()
        for each in reading:
            if each.upto == each.read:
                continue
            answer, count = each.answer, each.upto - each.read
            each.row, token = self.runtime.read(answer.prompt, each.read, count, each.row, answer.sampling, answer.key)
            each.read = each.upto
            if token is not None:
                tokens[each.row] = token
        return moved, tokens

    def _hand_over(self, answer: Answer, token: int, now: float) -> bool:
        """Gives a request its token; returns whether the request then leaves."""
        if answer.cancelled:
            return True
        answer.tokens.append(token)
        if len(answer.tokens) == 1:
            answer.first_token_s = now
        if len(answer.tokens) == answer.max_new_tokens or token in answer.stop_tokens:
            answer.completion_s = now
        answer._changed.set()
        return answer.done

    def _abandon(self, failure: BaseException) -> None:
        """Fails all remaining requests."""
        for answer in (*self._waiting, *(each.answer for each in self._reading), *self._running.values()):
            if not answer.done:
                answer._failure = failure
                answer._changed.set()
        self._waiting.clear()
        self._reading.clear()
        self._running.clear()
