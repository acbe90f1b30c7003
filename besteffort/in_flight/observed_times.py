"""How long iterations took, against the tables: what events tell, summed up for `besteffort.estimates.correction`."""

from __future__ import annotations

import math
import operator

import numpy as np

from besteffort.estimates import scalars
from besteffort.estimates.correction import Answers, Comparison, compared, fixed_s, observed_slowdown, steps_s
from besteffort.in_flight.entries import Entry, Instance
from besteffort.in_flight.fast_params import FastParams, mean_decode


class ObservedTimes:
    """Sums since the last arrival, and what came of those before.

    Attributes:
      comparison: the sums that are forgotten exponentially.
      slowdown: (pools,) the observed factor on the times of the tables.
    """

    def __init__(self, tau_s: float, batch_sizes: np.ndarray) -> None:
        """Nothing observed.

        Args:
          tau_s: the time constant.
          batch_sizes: (rows, pools) requests on each instance, which others keep up to date.
        """
        pools = batch_sizes.shape[1]
        self._tau_s = tau_s
        self._batch_sizes = batch_sizes
        self._number = np.arange(pools)
        self.comparison = Comparison(*np.zeros((2, pools)))
        self.slowdown = np.ones(pools)
        self._answers: dict[int, Answers] = {}  # that were not streamed, by instance
        self._observed_s, self._assumed_s = np.zeros((2, pools))

    def tokens(self, instance: Instance, known: Entry, count: int, now: float, fast: FastParams, *, seen: bool) -> None:
        """Compares with the tables what so many tokens of a request tell of the iterations of its instance.

        Args:
          instance: its instance.
          known: the request, before they are counted.
          count: how many tokens.
          now: when they came.
          fast: the tables.
          seen: whether it was seen when the request was admitted.
        """
        row, pool = divmod(known.instance, len(self._number))
        first, costs = not known.tokens, fast.costs[pool]
        ahead = known.iteration + count - instance.iterations
        if first and not seen:
            ahead = int(not now <= instance.ended_s)
        assumed_s = 0.0
        if ahead > 0:
            instance.compared = not math.isnan(instance.ended_s)
            if instance.compared:
                self._observed_s[pool] += now - instance.ended_s
            instance.iterations += ahead
            instance.ended_s, instance.decoded = now, 0
            instance.stretch = self._stretch(row, pool, fast) if fast.slows_down else 1.0
            # Of several that are told at once, all but one are as now.
            assumed_s = (ahead - 1) * costs.decode(max(instance.decoding, 1))
        known.iteration = instance.iterations
        if first:
            assumed_s += known.prefill_s
        else:
            assumed_s += costs.decode(instance.decoded + 1) - costs.decode(instance.decoded)
            assumed_s += costs.context_cost_s * (known.prompt_tokens + known.tokens)
            instance.decoded += 1
        if instance.compared:
            self._assumed_s[pool] += assumed_s * instance.stretch

    def came_whole(self, instance: Instance, known: Entry) -> None:
        """Such an answer tells of no iteration, only that its prompt was read in one of them."""
        if not instance.decoding:
            instance.ended_s = math.nan
        elif instance.compared:
            # The tokens of others tell how long all took.
            self._assumed_s[known.instance % len(self._number)] += known.prefill_s * instance.stretch

    def answer(self, known: Entry, output_tokens: int, added_s: float, now: float, fast: FastParams) -> None:
        """An answer that was not streamed has ended, and tells its length.

        Args:
          known: the request.
          output_tokens: how many tokens its answer has.
          added_s: prefills of those that were sent to its instance after it.
          now: when it ended.
          fast: the tables.
        """
        costs = fast.costs[known.instance % len(self._number)]
        fixed = fixed_s(known.prefill_s + added_s, output_tokens, known.found, mean_decode(costs), costs.slots, scalars)
        if math.isfinite(fixed):
            before = self._answers.get(known.instance, Answers(0.0, 0.0, 0.0))
            each = (now - known.sent_s, fixed, output_tokens - 1)
            self._answers[known.instance] = Answers(*map(operator.add, before, each))

    def arrival(self, gap_s: float, fast: FastParams) -> None:
        """Takes stock, at an arrival, of what ended since the last one, which was so many seconds ago."""
        for number, answers in sorted(self._answers.items()):
            row, pool = divmod(number, len(self._number))
            costs = fast.costs[pool]
            half_s = steps_s(answers.steps, int(self._batch_sizes[row, pool]), mean_decode(costs), costs.slots, scalars)
            self._observed_s[pool] += answers.observed_s
            self._assumed_s[pool] += answers.fixed_s + half_s
        excess_s = self._observed_s - self._assumed_s
        self.comparison = compared(self.comparison, gap_s, excess_s, self._assumed_s, self._tau_s)
        self.slowdown = observed_slowdown(self.comparison, self._tau_s)
        self.forget()

    def forget(self) -> None:
        """Nothing has ended since the last arrival."""
        self._answers.clear()
        self._observed_s, self._assumed_s = np.zeros((2, len(self._number)))

    def take_over(self, other: ObservedTimes) -> None:
        """What came of the sums before other books' last arrival holds here."""
        self.comparison, self.slowdown = other.comparison, other.slowdown

    def _stretch(self, row: int, pool: int, fast: FastParams) -> float:
        """Slow-down of an instance by the others on its GPU that hold requests, as far as can be seen."""
        others = (self._batch_sizes[row] > 0) & (self._number != pool)
        return float(np.prod(fast.params.slowdown[pool], where=others))
