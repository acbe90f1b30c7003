"""A serving situation so small that its best router can be computed: every state, and what follows from it.

The serving model is the project's own, on one replica with hard deadlines; all durations and deadlines are whole ticks.
At each tick nothing or, with a fixed probability, one request arrives, so that gaps are geometric. The router that is
computed sees everything but the output length of the request that it routes: more than any router of the project does.

An instance of a model is in a state `(ticks until its iteration ends, running, waiting)`, a request in it
`(tokens left, ticks left to the deadline, task)`. As soon as nothing can change any more whether it is in time, it is
credited or given up, and only its tokens are kept; that leaves finitely many states. The state of the situation is one
for each model, at a tick before anybody arrives; those that nothing leads to are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.tables import Tables
from besteffort.observation import Observation
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

_DECIDED = -1
"""In place of the ticks to the deadline, once they matter no more."""

_Request = tuple[int, int, int]
_State = tuple[int, tuple[_Request, ...], tuple[_Request, ...]]
_EMPTY: _State = (0, (), ())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TickArrivals:
    """An arrival process: at each tick, `tick_s` seconds after the last one, a request arrives with `probability`."""

    tick_s: Any
    probability: Any

    def init(self, key: Any) -> tuple[()]:
        del key
        return ()

    def next(self, key: Any, state: tuple[()]) -> tuple[Any, tuple[()]]:
        skipped = jnp.floor(jnp.log1p(-jax.random.uniform(key)) / jnp.log1p(-jnp.asarray(self.probability, float)))
        return (1.0 + skipped) * self.tick_s, state

    def mean_rate(self) -> Any:
        return self.probability / self.tick_s


class Line(NamedTuple):
    """All states of one instance, numbered from 0, which is empty; rewards are counted when they become certain.

    Attributes:
      size: (states,) batch size.
      tick, tick_gain: (states,) the state a tick later, and what is earned by it.
      put, put_gain: (states, tasks, lengths) the state with one more request, and what is earned by that.
    """

    size: np.ndarray
    tick: np.ndarray
    tick_gain: np.ndarray
    put: np.ndarray
    put_gain: np.ndarray


@dataclasses.dataclass(frozen=True)
class Instance:
    """The whole situation as a Markov decision process.

    Attributes:
      situation: what is served, on what.
      tick_s: seconds per tick.
      probability: of an arrival at a tick.
      lengths: output lengths, equally likely.
      sizes: (states, models) batch sizes.
      quiet, quiet_gain: (states,) the state at the next tick if nobody arrives, and what is earned until then.
      served, served_gain: (tasks, models, lengths, states) the same if a request does and goes to a model.
    """

    situation: Situation
    tick_s: float
    probability: float
    lengths: np.ndarray
    sizes: np.ndarray
    quiet: np.ndarray
    quiet_gain: np.ndarray
    served: np.ndarray
    served_gain: np.ndarray


class Solution(NamedTuple):
    """A policy and what it earns.

    Attributes:
      reward: mean reward per request in the long run.
      policy: (tasks, models, states) probability that a request goes to a model.
      values: (tasks, models, states) what a choice earns if the policy goes on after it, beyond what all earn.
    """

    reward: float
    policy: np.ndarray
    values: np.ndarray


def make_instance(situation: Situation, tick_s: float, probability: float) -> Instance:
    """The process of a situation whose tasks share one prompt length and their output lengths.

    Raises:
      InputError: if the situation has what is not modelled here, or a duration is no whole number of ticks.
    """
    check(situation)
    tasks = situation.tasks
    lengths = np.arange(tasks[0].output_tokens[0], tasks[0].output_tokens[1] + 1)
    worth = situation.profile.quality_table(situation.task_names) * situation.weights[:, None]
    lines = [_Server(*numbers).line(worth[:, m]) for m, numbers in enumerate(servers_of(situation, tick_s))]
    shape = (len(tasks), len(lines), len(lengths))
    moves: list[tuple[int, ...]] = [(), *np.ndindex(shape)]  # nobody arrives, or a request that goes to a model
    states = fresh = np.zeros(1, dtype=np.int64)
    while len(fresh):  # what is reached in one tick more
        reached = np.unique(np.concatenate([_moved(lines, fresh, move)[0] for move in moves]))
        fresh = np.setdiff1d(reached, states, assume_unique=True)
        states = np.union1d(states, fresh)
    to, gains = zip(*(_moved(lines, states, move) for move in moves), strict=True)
    numbers = [np.searchsorted(states, each) for each in to]
    return Instance(
        situation=situation,
        tick_s=tick_s,
        probability=probability,
        lengths=lengths,
        sizes=np.stack([line.size[of] for line, of in zip(lines, _split(lines, states), strict=True)], axis=1),
        quiet=numbers[0],
        quiet_gain=gains[0],
        served=np.stack(numbers[1:]).reshape(*shape, -1),
        served_gain=np.stack(gains[1:]).reshape(*shape, -1),
    )


class ServerNumbers(NamedTuple):
    """Numbers of an instance, durations in ticks.

    Attributes:
      prefill: of one request.
      decode: by batch size, from 0.
      max_batch: requests that run at once.
      room: requests that it holds.
      deadlines: by task and output length.
    """

    prefill: int
    decode: tuple[int, ...]
    max_batch: int
    room: int
    deadlines: dict[tuple[int, int], int]

    def begun(self, running: tuple[_Request, ...], waiting: tuple[_Request, ...]) -> _State:
        """An iteration begins."""
        admitted = waiting[: self.max_batch - len(running)]
        left = self.decode[len(running)] + self.prefill * len(admitted)
        return left, running + admitted, waiting[len(admitted) :]

    def completions(self, left: int, running: int, tokens: Sequence[int], *, crowded: bool) -> list[int]:
        """Ticks until each request leaves: if nobody comes, or at most, whoever comes.

        Args:
          left: ticks until the iteration ends.
          running: how many of the requests run; they come first.
          tokens: that each request has still to get.
          crowded: others come all the time.
        """
        line, inside, admitted, time = list(tokens), list(range(running)), running, 0
        done = [0] * len(line)
        while inside:
            time += left
            for i in inside:
                line[i] -= 1
                done[i] = time
            inside = [i for i in inside if line[i]]
            free = self.max_batch - len(inside)
            more = list(range(admitted, min(admitted + free, len(line))))
            admitted += len(more)
            decode, prefills = (self.decode[-1], free) if crowded else (self.decode[len(inside)], len(more))
            left = decode + self.prefill * prefills
            inside += more
        return done


def servers_of(situation: Situation, tick_s: float) -> list[ServerNumbers]:
    """Per model the numbers of its instance.

    Raises:
      InputError: if a duration is no whole number of ticks.
    """
    tasks, cluster = situation.tasks, situation.cluster
    tables = Tables.of(situation.fleet, tasks[0].prompt_tokens[0])
    low, high = tasks[0].output_tokens
    deadlines = {
        (task, n): _ticks(float(situation.deadlines(np.array([task]), np.array([n]))[0]), tick_s)
        for task in range(len(tasks))
        for n in range(low, high + 1)
    }
    return [
        ServerNumbers(
            prefill=_ticks(float(tables.prefill[m, -1]), tick_s),
            decode=(0, *(_ticks(float(seconds), tick_s) for seconds in tables.decode[m, 1:])),
            max_batch=cluster.max_batch,
            room=cluster.max_batch + cluster.queue_capacity,
            deadlines=deadlines,
        )
        for m in range(tables.pools)
    ]


def solve(instance: Instance, policy: np.ndarray | None = None, *, tolerance: float = 1e-6) -> Solution:
    """The best policy or, if `policy` (tasks, models, states) is given, what that earns, by relative value iteration.

    The reward is within `tolerance` of the truth, by the bounds that the spread of a tick's gain gives.
    """
    share, probability = instance.situation.shares, instance.probability
    value = np.zeros(len(instance.quiet))
    while True:
        values = (instance.served_gain + value[instance.served]).mean(axis=2)  # its length is not known
        arrived = share @ (values.max(axis=1) if policy is None else (policy * values).sum(axis=1))
        update = (1 - probability) * (instance.quiet_gain + value[instance.quiet]) + probability * arrived
        low, high = float((update - value).min()), float((update - value).max())
        if high - low < 2 * tolerance * probability:
            if policy is None:
                policy = (values.argmax(axis=1)[:, None] == np.arange(values.shape[1])[:, None]).astype(float)
            return Solution((low + high) / 2 / probability, policy, values)
        value = update - update[0]


def visits(instance: Instance, policy: np.ndarray, *, tolerance: float = 1e-6) -> np.ndarray:
    """(states,) long-run share of ticks that find the situation in each state under a policy."""
    present: np.ndarray = np.zeros(len(instance.quiet))
    present[0] = 1.0  # the empty state, which all states lead to
    tasks, models, lengths, states = instance.served.shape
    while True:
        parts = [(instance.quiet, np.full(states, 1 - instance.probability))]
        for task, model, length in np.ndindex(tasks, models, lengths):
            share = instance.probability * instance.situation.shares[task] / lengths
            parts.append((instance.served[task, model, length], share * policy[task, model]))
        flows = [np.bincount(to, weights=part * present, minlength=states) for to, part in parts]
        following = (np.sum(flows, axis=0) + present) / 2  # without a period
        if np.abs(following - present).sum() < tolerance:
            return following
        present = following


def best_by_sizes(instance: Instance, *, rounds: int = 20, step: float = 20.0) -> Solution:
    """A good policy among those that see the task and the batch sizes alone.

    Mirror ascent from even chances: in every round the logarithm of a probability grows by `step` times what the
    choice is worth, the mean over all states that look alike, each with the weight that it has under the policy.
    Nothing says that this is the best of its kind, but it can be had.
    """
    view, alike = np.unique(instance.sizes, axis=0, return_inverse=True)
    tasks, models = instance.served.shape[:2]
    score = np.zeros((tasks, models, len(view)))
    best: Solution | None = None
    for _ in range(rounds):
        chance = np.exp(score - score.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        found = solve(instance, chance[:, :, alike])
        best = found if best is None or found.reward > best.reward else best
        weight = visits(instance, found.policy)
        met = np.maximum(np.bincount(alike, weights=weight), np.finfo(float).tiny)
        for task, model in np.ndindex(tasks, models):
            score[task, model] += step * np.bincount(alike, weights=weight * found.values[task, model]) / met
    assert best is not None
    return best


def follow(instance: Instance, policy: np.ndarray, requests: Requests) -> Callable[[int, Observation], int]:
    """The likeliest choices of a policy as a router of the reference simulator, for one list.

    It keeps the state by itself, from gaps and from the lengths of those that it has routed, and holds its batch sizes
    against those that it is shown.

    Raises:
      RuntimeError: if they differ: the process is not the simulator's.
    """
    ticks = np.round(requests.arrival_s / instance.tick_s).astype(np.int64)
    length = requests.output_tokens - instance.lengths[0]
    choice = policy.argmax(axis=1)
    now, state = 0, 0

    def route(index: int, observation: Observation) -> int:
        nonlocal now, state
        while now < ticks[index]:
            state, now = int(instance.quiet[state]), now + 1
        if not np.array_equal(instance.sizes[state], observation.batch_sizes):
            raise RuntimeError(
                f"Request {index} meets batch sizes {observation.batch_sizes}, the process has {instance.sizes[state]}."
            )
        model = int(choice[observation.task, state])
        state, now = int(instance.served[observation.task, model, length[index], state]), now + 1
        return model

    return route


class _Server(ServerNumbers):
    """One instance whose requests have known lengths."""

    def line(self, worth: np.ndarray) -> Line:
        """All its states; `worth` (tasks,) is what an answer in time earns."""
        numbers = {_EMPTY: 0}
        states = [_EMPTY]
        rows: list[list[int]] = []
        earned: list[list[float]] = []
        for state in states:  # grows meanwhile
            followers = [self._tick(state), *(self._put(state, *kind) for kind in self.deadlines)]
            for to, _ in followers:
                if to not in numbers:
                    numbers[to] = len(states)
                    states.append(to)
            rows.append([numbers[to] for to, _ in followers])
            earned.append([float(worth[tasks].sum()) for _, tasks in followers])
        size = np.array([len(running) + len(waiting) for _, running, waiting in states])
        after, gain = np.array(rows), np.array(earned)
        kinds = (len(states), len(worth), -1)
        return Line(size, after[:, 0], gain[:, 0], after[:, 1:].reshape(kinds), gain[:, 1:].reshape(kinds))

    def _tick(self, state: _State) -> tuple[_State, list[int]]:
        """The state a tick later, and the tasks of those that are known to be in time now."""
        left, running, waiting = state
        if not running:
            return state, []
        running, waiting = tuple(map(_older, running)), tuple(map(_older, waiting))
        if left > 1:
            return self._settled((left - 1, running, waiting))
        running = tuple((tokens - 1, ticks, task) for tokens, ticks, task in running)
        in_time = [task for tokens, ticks, task in running if tokens == 0 and ticks != _DECIDED]
        state, more = self._settled(self.begun(tuple(one for one in running if one[0]), waiting))
        return state, in_time + more

    def _put(self, state: _State, task: int, tokens: int) -> tuple[_State, list[int]]:
        """The state with one more request, unless it is rejected, and the tasks of those known to be in time now."""
        left, running, waiting = state
        if len(running) + len(waiting) == self.room:
            return state, []
        waiting = (*waiting, (tokens, self.deadlines[task, tokens], task))
        return self._settled((left, running, waiting) if running else self.begun((), waiting))

    def _settled(self, state: _State) -> tuple[_State, list[int]]:
        """The state without what does not matter, and the tasks of those that are known to be in time now."""
        left, running, waiting = state
        requests, in_time = [], []
        rest = [tokens for tokens, _, _ in running + waiting]
        spans = zip(
            *(self.completions(left, len(running), rest, crowded=crowded) for crowded in (False, True)), strict=True
        )
        for (tokens, ticks, task), (soonest, latest) in zip(running + waiting, spans, strict=True):
            if ticks != _DECIDED and soonest <= ticks < latest:
                requests.append((tokens, ticks, task))
                continue
            requests.append((tokens, _DECIDED, 0))
            if ticks != _DECIDED and latest <= ticks:
                in_time.append(task)
        return (left, tuple(sorted(requests[: len(running)])), tuple(requests[len(running) :])), in_time


def _older(request: _Request) -> _Request:
    tokens, ticks, task = request
    return request if ticks == _DECIDED else (tokens, ticks - 1, task)


def _split(lines: Sequence[Line], states: np.ndarray) -> list[np.ndarray]:
    """Per model the state of its instance."""
    return list(np.unravel_index(states, [len(line.size) for line in lines]))


def _moved(lines: Sequence[Line], states: np.ndarray, move: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(states,) states at the next tick and what is earned until then, if nobody comes or a (task, model, length)."""
    of, gain = _split(lines, states), np.zeros(len(states))
    if move:
        task, model, length = move
        gain = lines[model].put_gain[of[model], task, length]
        of[model] = lines[model].put[of[model], task, length]
    for line, one in zip(lines, of, strict=True):
        gain = gain + line.tick_gain[one]
    after = [line.tick[one] for line, one in zip(lines, of, strict=True)]
    return np.ravel_multi_index(after, [len(line.size) for line in lines]), gain


def _ticks(seconds: float, tick_s: float) -> int:
    ticks = round(seconds / tick_s)
    if ticks < 1 or abs(ticks * tick_s - seconds) > 1e-9:
        raise InputError(f"{seconds:g} s is no whole number of ticks of {tick_s:g} s; give durations that are.")
    return ticks


def check(situation: Situation) -> None:
    """Raises `InputError` if the situation has what is not modelled here."""
    profile, cluster, tasks = situation.profile, situation.cluster, situation.tasks
    wrong = {
        "replicas": cluster.replicas != 1,
        "a network delay": cluster.network_delay_s != 0,
        "slow-downs": bool((profile.slowdown != 1).any()),
        "context cost": bool((profile.context_cost_s != 0).any()),
        "a cache limit": bool(np.isfinite(profile.cache_tokens).any()),
        "soft deadlines": situation.reward.soft_span != 0,
        "a penalty": situation.reward.miss_penalty != 0,
        "prompts of several lengths": len({n for task in tasks for n in task.prompt_tokens}) > 1,
        "tasks that differ in their output lengths": len({task.output_tokens for task in tasks}) > 1,
    }
    for what, present in wrong.items():
        if present:
            raise InputError(f"The situation has {what}, for which the optimum is not computed here; leave that out.")
