"""Findings from made-up outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from besteffort.diagnosis.findings import compare, list_findings
from besteffort.diagnosis.perturbations import Outcome, Perturbation

NOISE = np.array([-0.002, 0.0, 0.002])


def outcome(family, name, performance, in_time=None, avoidable_misses=0.0, spread=1.0):
    """Mean figures of `learned`, `priced` and `ladder`, over three lists that differ by the same noise for all."""
    routers = ("learned", "priced", "ladder")
    in_time = in_time or (1.0, 1.0, 1.0)
    return Outcome(
        Perturbation(family, name, 1.0, (), ()),
        {"learned": "learned", "priced": "heuristic", "ladder": "heuristic"},
        {
            router: mean + (spread if router == "learned" else 1.0) * NOISE
            for router, mean in zip(routers, performance, strict=True)
        },
        {router: mean + 0.0 * NOISE for router, mean in zip(routers, in_time, strict=True)},
        {"learned": avoidable_misses + NOISE},
    )


FINE = outcome("as known", "everything as known", (0.95, 0.94, 0.93))


def test_the_best_other_router_is_the_rival() -> None:
    one = compare(outcome("load", "load 2", (0.9, 0.8, 0.85)), "learned")
    assert one.rule == "ladder"
    assert float(one.ahead.mean) == pytest.approx(0.05)
    several = outcome("load", "load 2", (0.9, 0.8, 0.85))
    several.performance["learned b"] = several.performance["learned"] + 1
    several.kinds["learned b"] = "learned"
    assert compare(several, "learned").rule == "ladder"


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    small = outcome("load", "load 2", (0.936, 0.94, 0.93))  # less than anybody is told of
    unsure = outcome("load", "load 4", (0.9, 0.94, 0.93), spread=50.0)
    assert list_findings([FINE, small, unsure], "learned") == []


def test_the_worst_comes_first_and_speaks_for_its_family() -> None:
    findings = list_findings(
        [
            FINE,
            outcome("load", "load 2", (0.93, 0.94, 0.93)),
            outcome("load", "load 9", (0.60, 0.70, 0.75)),
            outcome("load", "load 4", (0.90, 0.94, 0.93)),
            outcome("task mix", "piqa only", (0.90, 0.92, 0.91)),
        ],
        "learned",
    )
    assert [(finding.kind, finding.family) for finding in findings] == [("collapse", "load"), ("worse", "task mix")]
    assert findings[0].perturbations == ("load 9", "load 4", "load 2")
    assert findings[0].loss == pytest.approx(0.15)
    assert findings[0].sentence == (
        "With load 9 it collapses: it earns 60.0%, `ladder` 75.0% on the same requests, 15.0 ± 0.0 points more. "
        "Likewise, if less so, with load 4 and load 2."
    )
    assert findings[1].sentence == (
        "With piqa only it routes worse than a simple rule: it earns 90.0%, `priced` 92.0% on the same requests, "
        "2.0 ± 0.0 points more."
    )


def test_misses_on_too_large_models_are_told_where_they_did_not_pay() -> None:
    late = {"in_time": (0.9, 0.99, 0.97), "avoidable_misses": 0.08}
    (finding,) = list_findings([outcome("batch sizes", "old batch sizes", (0.927, 0.93, 0.91), **late)], "learned")
    assert finding.kind == "underestimates load"
    assert finding.sentence == (
        "With old batch sizes it underestimates the load and routes to too large models: 10.0% of its answers are "
        "late or refused, of `priced` 1.0%; for 8.0% of all requests a smaller model was predicted to be in time with "
        "a fifth of the deadline to spare."
    )
    # A risk that paid, misses that no smaller model would have avoided, and misses that others have as well.
    assert not list_findings([outcome("batch sizes", "a", (0.94, 0.93, 0.91), **late)], "learned")
    assert not list_findings([outcome("batch sizes", "b", (0.927, 0.93, 0.91), (0.9, 0.99, 0.97))], "learned")
    assert not list_findings([outcome("batch sizes", "c", (0.927, 0.93, 0.91), (0.9, 0.91, 0.9), 0.08)], "learned")


def test_one_trial_may_show_two_faults() -> None:
    both = outcome("batch sizes", "old batch sizes", (0.5, 0.9, 0.8), (0.6, 0.99, 0.9), 0.3)
    assert {finding.kind for finding in list_findings([both], "learned")} == {"collapse", "underestimates load"}
