"""The process of `small_instance` for a router that sees all that a gateway can see: all but lengths of answers.

A length shows when an answer ends. So the process draws it as late as that: after each token an answer ends with the
chance that it has among the lengths that are left. A request in an instance is `(tokens that it has, ticks left to the
deadline of the shortest answer, task)`, and as soon as nothing can change any more whether it is in time, for each
length that it may have, it is credited with that share of the lengths for which it is. The best policy here is the best
that a gateway can have; what `small_instance` computes sees the lengths of all answers in progress, too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.small_instance import Instance, ServerNumbers, servers_of

_DECIDED = -1_000
"""In place of the ticks to the deadline, once they matter no more; those to the shortest answer's may be below 0."""

_Request = tuple[int, int, int]
_State = tuple[int, tuple[_Request, ...], tuple[_Request, ...]]
_EMPTY: _State = (0, (), ())


class UnknownLine(NamedTuple):
    """All states of one instance, numbered from 0, which is empty; rewards are counted when they become certain.

    Attributes:
      size: (states,) batch size.
      tick: (states, states) chance of each state a tick later.
      tick_gain: (states,) what is earned by then, on average.
      put, put_gain: (states, tasks) the state with one more request, and what is earned by that.
    """

    size: np.ndarray
    tick: np.ndarray
    tick_gain: np.ndarray
    put: np.ndarray
    put_gain: np.ndarray


def lines_of(instance: Instance) -> list[UnknownLine]:
    """Per model the states of its instance, for the situation of `instance`."""
    situation = instance.situation
    worth = situation.profile.quality_table(situation.task_names) * situation.weights[:, None]
    lengths = tuple(instance.lengths.tolist())
    return [
        _Server(numbers, lengths, worth[:, m]).line()
        for m, numbers in enumerate(servers_of(situation, instance.tick_s))
    ]


def best_reward(instance: Instance, chance: np.ndarray | None = None, *, tolerance: float = 1e-6) -> float:
    """Mean reward per request of the best policy, or of one by batch sizes, by relative value iteration.

    Args:
      instance: the process with known lengths.
      chance: (tasks, models, *batch size of each model) probability that a request goes to a model; None: the best.
      tolerance: how far the reward may be from the truth, by the bounds that the spread of a tick's gain gives.
    """
    lines = lines_of(instance)
    dims = tuple(len(line.size) for line in lines)
    tasks = len(instance.situation.tasks)
    policy = None
    if chance is not None:
        policy = np.moveaxis(
            np.moveaxis(chance, (0, 1), (-2, -1))[np.ix_(*(line.size for line in lines))], (-2, -1), (0, 1)
        )
    gain = sum(_along(line.tick_gain, axis, len(dims)) for axis, line in enumerate(lines))
    share, probability = instance.situation.shares, instance.probability
    value = np.zeros(dims)
    while True:
        later = value
        for axis, line in enumerate(lines):
            later = np.moveaxis(np.tensordot(line.tick, later, axes=(1, axis)), 0, axis)
        later = later + gain
        arrived = np.zeros(dims)
        for task in range(tasks):
            served = np.stack(
                [
                    np.take(later, line.put[:, task], axis=axis) + _along(line.put_gain[:, task], axis, len(dims))
                    for axis, line in enumerate(lines)
                ]
            )
            arrived += share[task] * (served.max(axis=0) if policy is None else (policy[task] * served).sum(axis=0))
        update = (1 - probability) * later + probability * arrived
        low, high = float((update - value).min()), float((update - value).max())
        if high - low < 2 * tolerance * probability:
            return (low + high) / 2 / probability
        value = update - update[(0,) * len(dims)]


def _along(values: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """(states,) values as an array with so many axes."""
    return values.reshape([-1 if each == axis else 1 for each in range(axes)])


@dataclasses.dataclass(frozen=True)
class _Server:
    """One instance; `lengths` are equally likely, `worth` by task is what an answer in time earns."""

    numbers: ServerNumbers
    lengths: tuple[int, ...]
    worth: np.ndarray

    def line(self) -> UnknownLine:
        """All its states."""
        numbers, states = {_EMPTY: 0}, [_EMPTY]
        ticks: list[dict[int, float]] = []
        puts: list[list[int]] = []
        earned: list[float] = []
        of_puts: list[list[float]] = []

        def number(state: _State) -> int:
            if state not in numbers:
                numbers[state] = len(states)
                states.append(state)
            return numbers[state]

        for state in states:  # grows meanwhile
            row: dict[int, float] = {}
            gain = 0.0
            for chance, to, more in self._tick(state):
                row[number(to)] = row.get(number(to), 0.0) + chance
                gain += chance * more
            ticks.append(row)
            earned.append(gain)
            followers = [self._put(state, task) for task in range(len(self.worth))]
            puts.append([number(to) for to, _ in followers])
            of_puts.append([more for _, more in followers])
        tick = np.zeros((len(states), len(states)))
        for index, row in enumerate(ticks):
            tick[index, list(row)] = list(row.values())
        size = np.array([len(running) + len(waiting) for _, running, waiting in states])
        return UnknownLine(size, tick, np.array(earned), np.array(puts), np.array(of_puts))

    def _tick(self, state: _State) -> Iterator[tuple[float, _State, float]]:
        """The states a tick later with their chances, and what is then known to be earned."""
        left, running, waiting = state
        if not running:
            yield 1.0, state, 0.0
            return
        running, waiting = tuple(map(_older, running)), tuple(map(_older, waiting))
        if left > 1:
            yield 1.0, *self._settled((left - 1, running, waiting))
            return
        more = [(tokens + 1, ticks, task) for tokens, ticks, task in running]
        for ends in itertools.product((True, False), repeat=len(more)):
            chances = [
                self._ends(tokens) if end else 1 - self._ends(tokens)
                for (tokens, _, _), end in zip(more, ends, strict=True)
            ]
            chance = float(np.prod(chances))
            if chance == 0:
                continue
            gain = sum(
                float(self.worth[task])
                for (tokens, ticks, task), end in zip(more, ends, strict=True)
                if end and ticks != _DECIDED and ticks + self._extra(task, tokens) >= 0
            )
            staying = tuple(one for one, end in zip(more, ends, strict=True) if not end)
            to, known = self._settled(self.numbers.begun(staying, waiting))
            yield chance, to, gain + known

    def _ends(self, tokens: int) -> float:
        """Chance that an answer ends with this token, if it has not before."""
        return float(np.mean([n == tokens for n in self.lengths if n >= tokens]))

    def _extra(self, task: int, length: int) -> int:
        """Ticks by which the deadline of an answer exceeds that of the shortest."""
        return self.numbers.deadlines[task, length] - self.numbers.deadlines[task, self.lengths[0]]

    def _put(self, state: _State, task: int) -> tuple[_State, float]:
        """The state with one more request, unless it is rejected, and what is then known to be earned."""
        left, running, waiting = state
        if len(running) + len(waiting) == self.numbers.room:
            return state, 0.0
        waiting = (*waiting, (0, self.numbers.deadlines[task, self.lengths[0]], task))
        return self._settled((left, running, waiting) if running else self.numbers.begun((), waiting))

    def _settled(self, state: _State) -> tuple[_State, float]:
        """The state without what does not matter, and what is known to be earned now."""
        left, running, waiting = state
        line = running + waiting
        possible = [tuple(n for n in self.lengths if n > tokens) for tokens, _, _ in line]
        spans: dict[tuple[int, int], list[int]] = {}
        for drawn in itertools.product(*possible):
            rest = [n - tokens for n, (tokens, _, _) in zip(drawn, line, strict=True)]
            for crowded in (False, True):
                for index, done in enumerate(self.numbers.completions(left, len(running), rest, crowded=crowded)):
                    spans.setdefault((index, drawn[index]), []).append(done)
        kept, gain = [], 0.0
        for index, (tokens, ticks, task) in enumerate(line):
            if ticks == _DECIDED:
                kept.append((tokens, _DECIDED, 0))
                continue
            verdicts = []
            for n in possible[index]:
                deadline, times = ticks + self._extra(task, n), spans[index, n]
                verdicts.append(True if max(times) <= deadline else False if min(times) > deadline else None)
            if None in verdicts:
                kept.append((tokens, ticks, task))
            else:
                kept.append((tokens, _DECIDED, 0))
                gain += float(self.worth[task]) * sum(map(bool, verdicts)) / len(verdicts)
        return (left, tuple(sorted(kept[: len(running)])), tuple(kept[len(running) :])), gain


def _older(request: _Request) -> _Request:
    tokens, ticks, task = request
    return request if ticks == _DECIDED else (tokens, ticks - 1, task)
