"""Arrival processes for the compiled simulator.

Every process is a pytree of numbers (rates in requests per second, times in seconds), so that `jax.vmap` runs a sweep
over them in one program, and has

- `init(key) -> state`, the state at time 0, drawn from the stationary distribution where the process has one;
- `next(key, state) -> (gap_s, state)`, the time to the next arrival;
- `mean_rate()`, the long-run mean rate.

Starting in the stationary distribution makes the expected number of arrivals in any time `t` exactly
`mean_rate() x t`: a renewal process that starts with a full gap would have `(cv^2 - 1) / 2` too many.

Rates that change in time are exact, also between arrivals: with `H(t)` the integral of the rate since the last arrival,
the next arrival is where `H` reaches a draw of the unit exponential. `H` is piecewise linear and is followed from one
change to the next; most calls see no change and cost one random number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.workload.schedule import Clock, Numbers, Schedule, begin, schedule

Gap = Float[Array, ""]


@runtime_checkable
class Arrivals(Protocol):
    """A source of arrival times, see the module's docstring."""

    def init(self, key: PRNGKeyArray) -> Any: ...

    def next(self, key: PRNGKeyArray, state: Any) -> tuple[Gap, Any]: ...

    def mean_rate(self) -> Any: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Poisson:
    """Independent arrivals at a constant `rate`."""

    rate: Any

    def init(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def next(self, key: PRNGKeyArray, state: tuple[()]) -> tuple[Gap, tuple[()]]:
        return jax.random.exponential(key) / self.rate, state

    def mean_rate(self) -> Any:
        return self.rate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GammaRenewal:
    """Independent gaps, Gamma distributed with mean `1 / rate` and coefficient of variation `cv > 0`.

    `cv = 1` is Poisson; arrivals are more regular below 1 and burstier above. The state is whether the first gap is
    still to come.
    """

    rate: Any
    cv: Any

    def init(self, key: PRNGKeyArray) -> Array:
        del key
        return jnp.asarray(True)

    def next(self, key: PRNGKeyArray, state: Array) -> tuple[Gap, Array]:
        # With shape k = 1 / cv^2: if G ~ Gamma(k + 1) and U is uniform, then G U^(1/k) ~ Gamma(k), a full gap, and
        # G U is the time from a random moment to the next arrival (G is the length-biased gap): the first gap.
        gamma_key, uniform_key = jax.random.split(key)
        squared_cv = jnp.square(jnp.asarray(self.cv, float))
        biased = jax.random.gamma(gamma_key, 1 / squared_cv + 1) * squared_cv / self.rate
        gap = biased * jax.random.uniform(uniform_key) ** jnp.where(state, 1, squared_cv)
        return gap, jnp.asarray(False)

    def mean_rate(self) -> Any:
        return self.rate


class Stretch(NamedTuple):
    """A period of constant rate: the state of a process whose rate changes.

    Attributes:
      rate: () requests per second.
      clock: time left until the rate changes; its segment is the index of the rate's step, or the modulating state.
    """

    rate: Array
    clock: Clock


Progress = tuple[PRNGKeyArray, Array, Array, Stretch]
"""Key, remaining integral of the rate, time so far, current stretch."""


def _follow(
    key: PRNGKeyArray, work: Gap, stretch: Stretch, change: Callable[[PRNGKeyArray, Stretch], Stretch]
) -> tuple[Gap, Stretch]:
    """Time until the integral of the rate reaches `work`; `change` returns the stretch that follows a given one."""

    def unfinished(carry: Progress) -> Array:
        _, work, _, stretch = carry
        # Not `>`: a draw of exactly 0 must leave a stretch of rate 0, too.
        return work >= stretch.rate * stretch.clock.remaining_s()

    def cross(carry: Progress) -> Progress:
        key, work, gap, stretch = carry
        key, change_key = jax.random.split(key)
        left = stretch.clock.remaining_s()
        return key, work - stretch.rate * left, gap + left, change(change_key, stretch)

    _, work, gap, stretch = jax.lax.while_loop(unfinished, cross, (key, work, jnp.zeros_like(work), stretch))
    last = work / stretch.rate
    return gap + last, stretch._replace(clock=stretch.clock.spend(last))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """Poisson arrivals whose rate changes at fixed times.

    Attributes:
      rates: (segments,) rate in each segment; not all zero, and the last one positive unless the schedule is cyclic.
      schedule: when each segment begins and ends.
    """

    rates: Any
    schedule: Schedule

    def _stretch(self, clock: Clock) -> Stretch:
        return Stretch(jnp.asarray(self.rates, float)[clock.segment], clock)

    def init(self, key: PRNGKeyArray) -> Stretch:
        return self._stretch(self.schedule.start(key))

    def next(self, key: PRNGKeyArray, state: Stretch) -> tuple[Gap, Stretch]:
        def change(key: PRNGKeyArray, stretch: Stretch) -> Stretch:
            del key
            return self._stretch(self.schedule.following(stretch.clock))

        work_key, change_key = jax.random.split(key)
        return _follow(change_key, jax.random.exponential(work_key), state, change)

    def mean_rate(self) -> Any:
        """Mean over a cycle; the last rate if the schedule is not cyclic."""
        rates = jnp.asarray(self.rates, float)
        if not self.schedule.cyclic:
            return rates[-1]
        lengths = jnp.asarray(self.schedule.lengths_s, float)
        return jnp.sum(rates * lengths) / jnp.sum(lengths)


def steps(rates: Numbers, starts_s: Numbers, period_s: float | None = None, random_start: bool = False) -> Steps:
    """`Steps` from rates and the times at which they begin, see `besteffort.workload.schedule.schedule`.

    Raises:
      InputError: on rates that do not match the starts, are negative, or would never bring another arrival.
    """
    values = np.asarray(rates, np.float64)
    timetable = schedule(starts_s, period_s, random_start)
    if values.shape != timetable.lengths_s.shape:
        raise InputError(
            f"There are {values.size} rates but {timetable.lengths_s.size} starts; give one start for each rate."
        )
    if not (np.isfinite(values).all() and values.min() >= 0) or (values[-1] if period_s is None else values.max()) <= 0:
        raise InputError(f"The rates {values.tolist()} must not be negative, and the one that lasts must be positive.")
    return Steps(values, timetable)


def square_wave(low: Any, high: Any, period_s: Any, duty: Any = 0.5, random_start: bool = False) -> Steps:
    """Poisson arrivals whose rate is `high` for the first `duty` share of every period and `low` for the rest.

    The arguments may be traced: `vmap` over this function for a sweep. Mean rate: `duty x high + (1 - duty) x low`.
    """
    lengths = jnp.stack([jnp.asarray(duty * period_s, float), jnp.asarray((1 - duty) * period_s, float)])
    rates = jnp.stack([jnp.asarray(high, float), jnp.asarray(low, float)])
    return Steps(rates, Schedule(lengths, cyclic=True, random_start=random_start))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MarkovModulated:
    """Poisson arrivals whose rate follows a Markov chain in continuous time (MMPP).

    The chain leaves each state after an exponential time for one of the others, all equally likely. Its share of time
    in a state is thus proportional to the mean dwell time.

    Attributes:
      rates: (states,) rate in each of the two or more states, not all zero.
      dwell_s: (states,) mean time that the chain stays in each, positive.
    """

    rates: Any
    dwell_s: Any

    def _enter(self, state: Array, uniform: Array) -> Stretch:
        dwell = jnp.asarray(self.dwell_s, float)[state] * -jnp.log1p(-uniform)
        return Stretch(jnp.asarray(self.rates, float)[state], begin(state, dwell))

    def init(self, key: PRNGKeyArray) -> Stretch:
        uniforms = jax.random.uniform(key, (2,))
        ends = jnp.cumsum(jnp.asarray(self.dwell_s, float))
        return self._enter(jnp.sum(uniforms[0] * ends[-1] >= ends[:-1]), uniforms[1])

    def next(self, key: PRNGKeyArray, state: Stretch) -> tuple[Gap, Stretch]:
        def change(key: PRNGKeyArray, stretch: Stretch) -> Stretch:
            states = jnp.shape(self.rates)[0]
            uniforms = jax.random.uniform(key, (2,))
            ahead = 1 + (uniforms[0] * (states - 1)).astype(jnp.int32)
            return self._enter((stretch.clock.segment + ahead) % states, uniforms[1])

        work_key, change_key = jax.random.split(key)
        return _follow(change_key, jax.random.exponential(work_key), state, change)

    def mean_rate(self) -> Any:
        """Mean of the rates, weighted by dwell times."""
        dwell = jnp.asarray(self.dwell_s, float)
        return jnp.sum(jnp.asarray(self.rates, float) * dwell) / jnp.sum(dwell)


def markov_modulated(rates: Numbers, dwell_s: Numbers) -> MarkovModulated:
    """`MarkovModulated`, checked.

    Raises:
      InputError: if rates and dwell times differ in number, or one of them is out of range.
    """
    values, dwell = np.asarray(rates, np.float64), np.asarray(dwell_s, np.float64)
    if values.shape != dwell.shape or values.ndim != 1 or len(values) < 2:
        raise InputError(
            f"There are {values.size} rates and {dwell.size} dwell times; give one of each for two or more states."
        )
    if not np.isfinite([values, dwell]).all() or values.min() < 0 or values.max() <= 0 or dwell.min() <= 0:
        raise InputError("Rates must not be negative, one of them must be positive, and so must all dwell times.")
    return MarkovModulated(values, dwell)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomRates:
    """The training load: Poisson arrivals at rates spread log-uniformly, which change in steps and bursts.

    A calm stretch ends either in a burst (`burst_factor` times its rate, after which it resumes) or in a new rate,
    log-uniform on `[low, high]`. Lengths are exponential and count requests, not seconds: a learner that makes equally
    many decisions in every environment then sees every rate equally often. With lengths in seconds, most decisions
    would be at high rates, where a second has many requests.

    The initial state has the distribution that requests see in the long run.

    Attributes:
      low, high: smallest and largest calm rate, `0 < low <= high`.
      dwell_requests: mean length of a calm stretch, in requests.
      burst_probability: share of calm stretches that end in a burst, below 1.
      burst_factor: rate of a burst, relative to the calm rate before it.
      burst_requests: mean length of a burst, in requests.
    """

    low: Any
    high: Any
    dwell_requests: Any
    burst_probability: Any = 0.0
    burst_factor: Any = 1.0
    burst_requests: Any = 1.0

    def _calm_rate(self, uniform: Array) -> Array:
        low = jnp.asarray(self.low, float)
        return low * jnp.exp(uniform * jnp.log(self.high / low))

    def _enter(self, rate: Array, burst: Array, uniform: Array) -> Stretch:
        requests = jnp.where(burst, self.burst_requests, self.dwell_requests) * -jnp.log1p(-uniform)
        return Stretch(jnp.asarray(rate, float), begin(burst, requests / rate))

    def _burst_requests_per_calm(self) -> Array:
        return jnp.asarray(self.burst_probability, float) * self.burst_requests / self.dwell_requests

    def init(self, key: PRNGKeyArray) -> Stretch:
        uniforms = jax.random.uniform(key, (3,))
        ratio = self._burst_requests_per_calm()
        burst = uniforms[0] < ratio / (1 + ratio)
        rate = self._calm_rate(uniforms[1]) * jnp.where(burst, self.burst_factor, 1)
        return self._enter(rate, burst, uniforms[2])

    def next(self, key: PRNGKeyArray, state: Stretch) -> tuple[Gap, Stretch]:
        def change(key: PRNGKeyArray, stretch: Stretch) -> Stretch:
            uniforms = jax.random.uniform(key, (3,))
            was_burst = stretch.clock.segment == 1
            burst = ~was_burst & (uniforms[0] < self.burst_probability)
            calm = jnp.where(was_burst, stretch.rate / self.burst_factor, self._calm_rate(uniforms[1]))
            return self._enter(jnp.where(burst, stretch.rate * self.burst_factor, calm), burst, uniforms[2])

        work_key, change_key = jax.random.split(key)
        return _follow(change_key, jax.random.exponential(work_key), state, change)

    def mean_rate(self) -> Any:
        """Requests over seconds, bursts included; `E[1 / rate] = (1 / low - 1 / high) / ln(high / low)`."""
        low = jnp.asarray(self.low, float)
        spread = jnp.log(self.high / low)
        gap = jnp.where(spread > 0, (1 / low - 1 / self.high) / jnp.where(spread > 0, spread, 1), 1 / low)
        ratio = self._burst_requests_per_calm()
        return (1 + ratio) / (gap * (1 + ratio / self.burst_factor))


def random_rates(
    low: float,
    high: float,
    dwell_requests: float,
    burst_probability: float = 0.0,
    burst_factor: float = 1.0,
    burst_requests: float = 1.0,
) -> RandomRates:
    """`RandomRates`, checked.

    Raises:
      InputError: if a number is out of its range.
    """
    if not 0 < low <= high < float("inf"):
        raise InputError(
            f"Rates are spread from {low:g} to {high:g}; let the first be positive and the second not below it."
        )
    if not (0 <= burst_probability < 1 and min(dwell_requests, burst_requests, burst_factor) > 0):
        raise InputError(
            "`burst_probability` must lie in [0, 1); `dwell_requests`, `burst_requests` and `burst_factor` "
            "must be positive."
        )
    return RandomRates(low, high, dwell_requests, burst_probability, burst_factor, burst_requests)
