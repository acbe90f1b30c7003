"""The engine in virtual time: it computes for real, and its clock goes by what the computations took.

Every model has a device to itself. Its iterations follow one another as in real time and do all that they do there, but
they are computed one at a time, and the clock of the model goes on by what each took: processor time, unless told
otherwise. Idle time is skipped. So lists of any load can be played, several models do not disturb each other, however
few cores there are, and other work on the machine does not count as far as it only takes the processor away; that it
pushes data out of caches, or shares a core, still shows. Before every iteration the model decodes once for nothing,
which does not count, so that other models and the caller have not just pushed it out of the caches. Where a machine
does not keep its pace, `gauge` may say how much slower it is just then, and what computations took is divided by that
(`besteffort.profiling.measure.Sampler`).

    engine = VirtualEngine({"small": small, "large": large}, max_batch=8, queue_capacity=8)
    asyncio.run(engine.warm_up())
    for at, name, prompt in arrivals:                   # in order of time
        engine.advance(at, heard)                       # `heard` gets an answer with every token of it
        answer = engine.submit(name, prompt, max_new_tokens=20)
    engine.advance(math.inf, heard)

At one instant iterations end first, then the next ones start, in order of the models, then requests are submitted: as
the serving model has it (`ARCHITECTURE.md`, point 3). An iteration is computed when it starts, since only then it is
known how long it lasts, and its tokens are handed out when the clock is at its end.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

from besteffort.errors import InputError
from besteffort.opt.engine import Answer, Engine, Found, Instance, Pace, Part
from besteffort.opt.runtime import Buckets
from besteffort.opt.weights import Model

Hear = Callable[[Answer], None]
"""Gets an answer that has one more token, which may be its last, at the time by the engine's clock."""

Timed = Callable[[str, int, list[Part], float], None]
"""Gets a model, how many of its requests decode, the parts of prompts that it reads, and how long that takes."""


@dataclasses.dataclass(slots=True)
class _Device:
    """A model's own device.

    Attributes:
      name: of the model.
      instance: the model.
      found: what the iteration in progress gives.
      ends_s: when it ends; infinite where there is none.
    """

    name: str
    instance: Instance
    found: Found | None = None
    ends_s: float = math.inf


class VirtualEngine(Engine):
    """The engine in virtual time. It needs no event loop but for `warm_up`; make all calls from one thread.

    Attributes:
      now: the time, in seconds.
      gauge: says, asked before each iteration of a model, by which factor the machine is slower than usual.
      timed: told of each iteration.
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
        paces: Mapping[str, Pace] | None = None,
        timer: Callable[[], float] = time.process_time,
    ) -> None:
        """Makes a cache for each model; the clock is at 0.

        Args:
          models: as for `Engine`.
          max_batch: as for `Engine`.
          queue_capacity: as for `Engine`.
          context: as for `Engine`.
          buckets: as for `Engine`.
          chunk_tokens: as for `Engine`.
          paces: of models whose iterations last as long as these say, whatever they took.
          timer: what computations are timed by; the processor time of this process by default. Where another device
            computes, a clock.

        Raises:
          InputError: as `Engine`.
        """
        super().__init__(
            models,
            max_batch=max_batch,
            queue_capacity=queue_capacity,
            context=context,
            buckets=buckets,
            chunk_tokens=chunk_tokens,
            clock=lambda: self.now,
            paces=paces,
        )
        self.now = 0.0
        self.gauge: Callable[[str], float] = lambda model: 1.0
        self.timed: Timed = lambda model, decoding, prompts, seconds: None
        self._timer = timer
        self._devices = {name: _Device(name, instance) for name, instance in self._instances.items()}

    @property
    def instances(self) -> Mapping[str, Instance]:
        """The models, for timing; while they are timed the engine must be idle."""
        return self._instances

    @property
    def serving(self) -> bool:
        """It always does: it is told when time goes on."""
        return True

    def _placed(self, model: str) -> None:
        """An idle model starts at once; a busy one admits the request when its iteration ends."""
        device = self._devices[model]
        if device.found is None:
            self._begin(device)

    def advance(self, until_s: float, heard: Hear = lambda answer: None) -> None:
        """Lets time pass; with infinity, until all are idle.

        Args:
          until_s: the time to go on to; what ends at that instant has ended.
          heard: told of every token, in order of time; it may cancel answers, but submit none.

        Raises:
          InputError: if that time is past.
        """
        if until_s < self.now:
            raise InputError(f"`until_s` is {until_s:g} and it is {self.now:g} s already; time does not go back.")
        while (next_s := min(device.ends_s for device in self._devices.values())) <= until_s and next_s < math.inf:
            self.now = next_s
            due = [device for device in self._devices.values() if device.ends_s == next_s]
            for device in due:
                assert device.found is not None
                found, device.found, device.ends_s = device.found, None, math.inf
                for answer in device.instance.end(found, next_s):
                    if not answer.cancelled:  # by who heard another one
                        heard(answer)
            for device in due:
                if device.instance.batch_size:
                    self._begin(device)
        if until_s < math.inf:
            self.now = until_s

    def follow(self, paces: Mapping[str, Pace] | None) -> None:
        """From now on iterations last as long as these say; with None, as long as they take."""
        for name, instance in self._instances.items():
            instance.pace = None if paces is None else paces[name]

    def restart(self) -> None:
        """Sets the clock to 0.

        Raises:
          InputError: if there is anything to do.
        """
        if any(self.batch_sizes.values()):
            raise InputError("The engine holds requests; `advance` until all are answered, then restart its clock.")
        self.now = 0.0

    def close(self) -> None:
        """Ends the threads that compiled."""
        for instance in self._instances.values():
            instance.close()

    def _begin(self, device: _Device) -> None:
        slower = 1.0
        if device.instance.pace is None:
            slower = self.gauge(device.name)
            device.instance.runtime.touch()
        device.found, took_s = device.instance.begin(self._timer)
        self.timed(device.name, *device.instance.load, took_s / slower)
        device.ends_s = self.now + took_s / slower
