"""How observed times compare with the tables, so that estimates hold where models are not as fast as believed.

A gap between tokens is an iteration. It is compared with the decode of the batch of that moment and the prefills of
those whose first token came, never with what was foreseen when a request arrived: that misses those who came later.
With the tables of the world the two are equal. Per model, over all of its replicas, seconds are summed up and forgotten
with a time constant, at every arrival with what ended since the last one:

    excess  = excess  x exp(-gap / tau) + observed seconds - seconds by the tables
    assumed = assumed x exp(-gap / tau)                    + seconds by the tables
    observed slow-down = 1 + excess / (assumed + PRIOR x tau)

Without new iterations the sums fade: after `tau x log(1 + assumed / (PRIOR x tau))` seconds half of the slow-down is
left (9 s with a time constant of 2 s and four busy replicas), and from then on it returns to 1 with the time constant.
So a model that is avoided is tried again.

An answer that is not streamed tells its length and its duration at its end. These are compared with what the tables
give for the batch sizes that were seen, see `fixed_s` and `steps_s`: near to, not exactly, what was. Those that found
the batch full are not compared, since how long they waited is not seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PRIOR = 0.05
"""Instance-seconds as in the tables that are taken to have been seen always, in time constants."""

LOWEST, HIGHEST = 0.1, 10.0
"""Range of the slow-down; beyond, something else is wrong than tables."""


class Comparison(NamedTuple):
    """Sums over the iterations of each model that have ended, forgotten exponentially; fields of shape (pools,).

    Attributes:
      excess_s: observed seconds, less those by the tables.
      assumed_s: seconds by the tables.
    """

    excess_s: Any
    assumed_s: Any


class Answers(NamedTuple):
    """Answers of an instance that were not streamed and have ended since the last arrival; sums over them.

    Attributes:
      observed_s: seconds from when they were sent to their end.
      fixed_s: sum of `fixed_s`, and of the prefills of those that were sent to the instance after them.
      steps: tokens after the first.
    """

    observed_s: Any
    fixed_s: Any
    steps: Any


def compared(comparison: Comparison, gap_s: Any, excess_s: Any, assumed_s: Any, tau_s: Any, xp: Any = np) -> Comparison:
    """The sums at an arrival.

    Args:
      comparison: those at the last arrival.
      gap_s: () seconds since then.
      excess_s: (pools,) observed seconds less those by the tables, of the iterations that ended since then.
      assumed_s: (pools,) seconds by the tables of these.
      tau_s: () time constant, above 0.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    kept = xp.exp(-gap_s / tau_s)
    return Comparison(comparison.excess_s * kept + excess_s, comparison.assumed_s * kept + assumed_s)


def observed_slowdown(comparison: Comparison, tau_s: Any, xp: Any = np) -> Any:
    """(pools,) factor on the times of the tables, from 0.1 to 10; 1 where nothing was compared."""
    return xp.clip(1.0 + comparison.excess_s / (comparison.assumed_s + PRIOR * tau_s), LOWEST, HIGHEST)


def fixed_s(prefill_s: Any, output_tokens: Any, number: Any, decode: Any, slots: Any, xp: Any = np) -> Any:
    """Seconds by the tables of an answer that is not streamed, without what depends on the batch size at its end.

    Half a decode until the iteration in progress ends, its prefill, and half of its further tokens at the batch size
    that it found, itself included. Infinite where it had to wait for a place: such answers are not compared.

    Args:
      prefill_s: seconds of its prefill.
      output_tokens: its length.
      number: requests on its instance when it was sent, itself included.
      decode: seconds of a decode of a whole number of requests, as a function; see `step_of`.
      slots: requests that run at once.
      xp: the array module, `numpy`, `jax.numpy` or `besteffort.estimates.scalars`.
    """
    within = xp.minimum(number, slots)
    seconds = prefill_s + 0.5 * decode(within - 1) + 0.5 * (output_tokens - 1) * decode(within)
    return xp.where(number > slots, np.inf, seconds)


def steps_s(steps: Any, number: Any, decode: Any, slots: Any, xp: Any = np) -> Any:
    """The other half of their further tokens, at the batch size that was seen after their end.

    Args:
      steps: tokens after the first.
      number: requests on the instance at the first arrival after their end, that one not included.
      decode: as of `fixed_s`.
      slots: as of `fixed_s`.
      xp: as of `fixed_s`.
    """
    return 0.5 * steps * decode(xp.minimum(number + 1, slots))
