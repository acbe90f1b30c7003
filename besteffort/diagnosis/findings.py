"""What is wrong with a policy, in words: findings from the outcomes of perturbations.

A policy is held against the best other router of each perturbation, the best in hindsight, on the same requests. Small
differences, and those that the interval leaves open, are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np

from besteffort.diagnosis.perturbations import Outcome
from besteffort.evaluation.statistics import Interval, best_mean, mean_interval, paired_difference

Kind = Literal["collapse", "worse", "underestimates load"]

WORSE = 0.005
"""Least performance by which a policy is behind another router that makes a finding."""

COLLAPSE = 0.05
"""Performance by which it is behind where it is said to collapse."""

AVOIDABLE_MISSES = 0.02
"""Least share of requests missed on too large models, and beyond another router's misses, that makes a finding."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a policy.

    Attributes:
      kind: `collapse` or `worse`, by how far it is behind; or `underestimates load`.
      family: what was varied, see `besteffort.diagnosis.perturbations.Perturbation`.
      sentence: what was found, with the figures of the worst perturbation.
      loss: performance by which it is behind in the worst perturbation; findings are ordered by it.
      perturbations: names of the perturbations of the family where it was found, the worst first.
    """

    kind: Kind
    family: str
    sentence: str
    loss: float
    perturbations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A policy and the best other router under a perturbation.

    Attributes:
      outcome: the perturbation's outcome.
      policy: name of the policy.
      rule: name of the other router with the highest performance.
    """

    outcome: Outcome
    policy: str
    rule: str

    @property
    def ahead(self) -> Interval:
        """Performance of the policy less that of the rule."""
        return paired_difference(self.outcome.performance[self.policy], self.outcome.performance[self.rule])

    @property
    def in_time(self) -> Interval:
        """Requests that the policy answers in time beyond those that the rule does, as a share of all."""
        return paired_difference(self.outcome.slo_attainment[self.policy], self.outcome.slo_attainment[self.rule])

    @property
    def avoidable_misses(self) -> Interval:
        """Share of the requests that the policy missed on too large models."""
        return mean_interval(self.outcome.avoidable_misses[self.policy])


def compare(outcome: Outcome, policy: str) -> Comparison:
    """The policy and the best router that did not learn."""
    others = [name for name in outcome.performance if outcome.kinds[name] != "learned"]
    return Comparison(outcome, policy, best_mean(outcome.performance, others))


def list_findings(outcomes: Sequence[Outcome], policy: str) -> list[Finding]:
    """What is wrong, worst first; of several perturbations of a family the worst speaks for the others."""
    findings = []
    by_family = sorted(outcomes, key=lambda outcome: outcome.perturbation.family)
    for family, group in groupby(by_family, key=lambda outcome: outcome.perturbation.family):
        compared = [compare(outcome, policy) for outcome in group]
        behind = [one for one in compared if one.ahead.high < 0 and one.ahead.mean <= -WORSE]
        if behind:
            findings.append(_behind(family, sorted(behind, key=lambda one: float(one.ahead.mean))))
        bold = [
            one
            for one in compared
            if one.avoidable_misses.low > 0
            and one.avoidable_misses.mean >= AVOIDABLE_MISSES
            and one.in_time.high < 0
            and one.in_time.mean <= -AVOIDABLE_MISSES
            and one.ahead.mean < 0  # what was risked did not pay
        ]
        if bold:
            findings.append(_bold(family, sorted(bold, key=lambda one: float(one.ahead.mean))))
    return sorted(findings, key=lambda finding: -finding.loss)


def _behind(family: str, compared: Sequence[Comparison]) -> Finding:
    worst = compared[0]
    performance = worst.outcome.performance
    collapse = float(worst.ahead.mean) <= -COLLAPSE
    verb = "collapses" if collapse else "routes worse than a simple rule"
    return Finding(
        kind="collapse" if collapse else "worse",
        family=family,
        sentence=(
            f"With {worst.outcome.perturbation.name} it {verb}: it earns {_percent(performance[worst.policy])}, "
            f"`{worst.rule}` {_percent(performance[worst.rule])} on the same requests, "
            f"{_points(worst.ahead)} points more.{_likewise(compared)}"
        ),
        loss=-float(worst.ahead.mean),
        perturbations=tuple(one.outcome.perturbation.name for one in compared),
    )


def _bold(family: str, compared: Sequence[Comparison]) -> Finding:
    worst = compared[0]
    attainment = worst.outcome.slo_attainment
    return Finding(
        kind="underestimates load",
        family=family,
        sentence=(
            f"With {worst.outcome.perturbation.name} it underestimates the load and routes to too large models: "
            f"{_percent(1 - attainment[worst.policy])} of its answers are late or refused, of `{worst.rule}` "
            f"{_percent(1 - attainment[worst.rule])}; for {float(worst.avoidable_misses.mean):.1%} of all requests a "
            f"smaller model was predicted to be in time with a fifth of the deadline to spare.{_likewise(compared)}"
        ),
        loss=-float(worst.ahead.mean),
        perturbations=tuple(one.outcome.perturbation.name for one in compared),
    )


def _likewise(compared: Sequence[Comparison]) -> str:
    others = [one.outcome.perturbation.name for one in compared[1:]]
    return f" Likewise, if less so, with {enumerate_words(others)}." if others else ""


def enumerate_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _percent(values: np.ndarray) -> str:
    return f"{float(values.mean()):.1%}"


def _points(ahead: Interval) -> str:
    return f"{-100 * float(ahead.mean):.1f} ± {100 * float(ahead.half_width):.1f}"
