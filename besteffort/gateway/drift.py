"""Whether requests and servers are still what the policy was made for.

| measure | of | value | limit |
|---|---|---|---|
| `task_mix` | | share of the requests that would have to change their task for the mix of the policy | `mix` |
| `arrival_rate` | | share of the time at more than the highest rate of the policy | `outside` |
| `prompt_tokens`, `output_tokens` | task | share of the lengths outside the range of the policy | `outside` |
| `mean_prompt_tokens`, `mean_output_tokens` | task | mean over that of the policy, or the inverse, above 1 | `means` |
| `completion_time` | pool | observed over predicted seconds, or the inverse if that is above 1 | `times` |
| `in_flight` | pool | most requests in flight on a replica over the most that the policy has seen there | 1 |

All are averages that forget exponentially, and count once they rest on `least` requests; `in_flight` is of the moment.
What a policy does not carry has no measure, see `left_out`. A drift ends below nine tenths of its limit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from besteffort.gateway.core import Core, Record
from besteffort.gateway.snapshot import Snapshot
from besteffort.policy import Policy

_ENDS = 0.9  # of the limit
_MOST = 1e9
_LEAST_S = 10.0  # that the rate was watched


@dataclasses.dataclass(slots=True)
class Measure:
    """One comparison.

    Attributes:
      value: see the table above.
      limit: above which it is drift.
      active: whether it is.
    """

    value: float
    limit: float
    active: bool = False


Key = tuple[str, str]
"""Name of a measure, and the task or pool that it is of; empty where it is of all."""


class Drift:
    """Compares what comes with what the policy was made for.

    Attributes:
      measures: those that rest on enough requests.
      left_out: measures that the policy cannot be asked for, and why.
    """

    def __init__(self, core: Core) -> None:
        self.measures: dict[Key, Measure] = {}
        self.left_out: dict[str, str] = {}
        self._core = core
        self._means: dict[Key, _Mean] = {}
        self._tasks: dict[str, _Expected] = {}
        self._looked_s: float | None = None
        self._follow(core.snapshot)

    def record(self, record: Record) -> None:
        """A request has ended."""
        if record.outcome == "invalid" or record.task not in self._tasks:
            return
        now = self._core.now()
        task = self._tasks[record.task]
        for name in self._tasks:
            self._add(("share", name), float(name == record.task), now)
        lengths = {"prompt_tokens": record.prompt_tokens}
        if record.outcome == "answered" and record.output_tokens:
            lengths["output_tokens"] = record.output_tokens
        for name, tokens in lengths.items():
            low, high = task.ranges[name]
            self._add((name, record.task), float(not low <= tokens <= high), now)
            self._add((f"mean_{name}", record.task), tokens / task.means[name], now)
        if record.outcome == "answered" and record.attempts == 1 and record.expected_s:
            self._add(("expected", record.pool), record.expected_s, now)
            self._add(("observed", record.pool), record.latency_s, now)

    def look(self) -> list[str]:
        """Brings the measures up to date, and says in sentences what has begun and ended."""
        core = self._core
        now = core.now()
        if core.snapshot is not self._snapshot:
            self._follow(core.snapshot)
        if self._looked_s is not None and self._highest_rate is not None:
            above = float(core.arrival_rate() > self._highest_rate)
            self._add(("arrival_rate", ""), above, now, weight=max(now - self._looked_s, 0.0))
        self._looked_s = now
        found = self._values(now)
        said = [
            f"Drift ends: {_name(key)}, which rests on too few requests now."
            for key, measure in self.measures.items()
            if measure.active and key not in found
        ]
        measures = {}
        for key, (value, limit) in found.items():
            was = key in self.measures and self.measures[key].active
            active = value > (_ENDS * limit if was else limit)
            measures[key] = Measure(value, limit, active)
            if active != was:
                said.append(f"Drift {'begins' if active else 'ends'}: {_name(key)} is {value:.3g}, limit {limit:.3g}.")
        self.measures = measures
        return said

    def _values(self, now: float) -> dict[Key, tuple[float, float]]:
        """Per measure that rests on enough its value and limit."""
        limits = self._limits

        def enough(key: Key, mean: _Mean) -> bool:
            # Half of it will do for what was shown already, so that nothing comes and goes.
            return mean.rests_on(now, limits.window_s) >= limits.least * (0.5 if key in self.measures else 1.0)

        found: dict[Key, tuple[float, float]] = {}
        shares = {name: self._means[key] for name in self._tasks if (key := ("share", name)) in self._means}
        if shares and all(enough(("task_mix", ""), mean) for mean in shares.values()):
            apart = sum(abs(mean.value - self._tasks[name].share) for name, mean in shares.items())
            found["task_mix", ""] = (0.5 * apart, limits.mix)
        for key, mean in self._means.items():
            if key[0] in ("prompt_tokens", "output_tokens") and enough(key, mean):
                found[key] = (mean.value, limits.outside)
            elif key[0].startswith("mean_") and enough(key, mean):
                found[key] = (_apart(mean.value), limits.means)
            elif key[0] == "observed" and enough(("completion_time", key[1]), mean):
                ratio = mean.value / self._means["expected", key[1]].value
                found["completion_time", key[1]] = (_apart(ratio), limits.times)
        rate = self._means.get(("arrival_rate", ""))
        if rate is not None and rate.weight >= min(_LEAST_S, 0.1 * limits.window_s):
            found["arrival_rate", ""] = (rate.value, limits.outside)
        for places in self._snapshot.places.by_pool:
            if places:
                most = max(place.state.busy for place in places)
                found["in_flight", places[0].pool.name] = (most / self._most[places[0].index], 1.0)
        return found

    def _add(self, key: Key, value: float, now: float, weight: float = 1.0) -> None:
        mean = self._means.get(key)
        if mean is None:
            mean = self._means[key] = _Mean(now)
        mean.add(value, now, weight, self._limits.window_s)

    def _follow(self, snapshot: Snapshot) -> None:
        """Compares with another policy from now on."""
        situation = snapshot.policy.situation
        self._snapshot = snapshot
        self._limits = snapshot.config.drift
        tasks = {
            task.name: _Expected(
                share,
                {"prompt_tokens": task.prompt_tokens, "output_tokens": task.output_tokens},
                {"prompt_tokens": prompt, "output_tokens": output},
            )
            for task, share, prompt, output in zip(
                situation.tasks,
                situation.shares.tolist(),
                situation.mean_prompt_tokens.tolist(),
                situation.mean_output_tokens.tolist(),
                strict=True,
            )
        }
        if tasks != self._tasks:
            # Shares and ratios of the policy before say nothing of this one.
            self._means.clear()
        self._tasks = tasks
        self._most = [pool.places for pool in situation.fleet.pools]
        self._highest_rate = highest_rate(snapshot.policy)
        self.left_out = {}
        if self._highest_rate is None:
            self.left_out["arrival_rate"] = "the policy does not carry the rates that it was trained for"


@dataclasses.dataclass(frozen=True, slots=True)
class _Expected:
    """What the policy was made for, of a task."""

    share: float
    ranges: Mapping[str, tuple[int, int]]
    means: Mapping[str, float]


class _Mean:
    """A mean that forgets exponentially."""

    __slots__ = ("_at", "value", "weight")

    def __init__(self, now: float) -> None:
        self.value = self.weight = 0.0
        self._at = now

    def rests_on(self, now: float, window_s: float) -> float:
        """What is left of the weight."""
        return self.weight * math.exp(-max(now - self._at, 0.0) / window_s)

    def add(self, value: float, now: float, weight: float, window_s: float) -> None:
        since_s = now - self._at
        if since_s > 0:
            self.weight *= math.exp(-since_s / window_s)
            self._at = now
        self.weight += weight
        if self.weight > 0:
            self.value += (value - self.value) * weight / self.weight


def highest_rate(policy: Policy) -> float | None:
    """Requests per second up to which a policy was made; None if it does not say.

    A training on spread rates states loads; otherwise a rule has prices up to a rate.
    """
    workload = policy.training.get("workload")
    if isinstance(workload, Mapping) and workload.get("kind") == "random_rates":
        high = workload.get("high")
        if isinstance(high, int | float) and math.isfinite(high):
            return float(high) * policy.situation.unit_load
    if policy.rule is not None:
        return float(policy.rule.rates[-1])
    return None


def _apart(ratio: float) -> float:
    """How many times one is the other; 1 where both are equal."""
    return min(max(ratio, 1.0 / ratio), _MOST) if ratio > 0 else _MOST


def _name(key: Key) -> str:
    measure, of = key
    return f"{measure} of {of}" if of else measure
