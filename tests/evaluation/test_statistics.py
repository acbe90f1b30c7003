from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from besteffort.evaluation.statistics import best_mean, explained_share, mean_interval, paired_difference


def test_known_interval():
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)  # t(0.975, 2) from a printed table
    assert interval.seeds == 3
    assert interval.low == pytest.approx(2.0 - interval.half_width)
    assert interval.high == pytest.approx(2.0 + interval.half_width)


def test_agrees_with_scipys_one_sample_test_along_any_axis():
    samples = np.random.default_rng(0).normal(size=(7, 2, 3))
    interval = mean_interval(samples, axis=0, confidence=0.9)
    expected = stats.ttest_1samp(samples, 0.0, axis=0).confidence_interval(0.9)
    np.testing.assert_allclose(interval.low, expected.low)
    np.testing.assert_allclose(interval.high, expected.high)
    np.testing.assert_allclose(interval[1, 2].mean, samples[:, 1, 2].mean())


def test_coverage_is_the_one_promised():
    samples = np.random.default_rng(1).normal(loc=3.0, size=(20_000, 5))
    interval = mean_interval(samples)
    covered = np.mean((interval.low <= 3.0) & (interval.high >= 3.0))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 20_000)


def test_one_seed_says_nothing_about_its_spread():
    interval = mean_interval(np.array([[0.5], [0.25]]))
    np.testing.assert_array_equal(interval.mean, [0.5, 0.25])
    assert np.isinf(interval.half_width).all()


def test_a_missing_figure_stays_missing():
    interval = mean_interval(np.array([[0.5, np.nan], [1.0, 3.0]]))
    assert np.isnan(interval.mean[0])
    assert np.isnan(interval.half_width[0])
    assert interval.mean[1] == 2.0


def test_pairing_removes_what_the_seeds_have_in_common():
    rng = np.random.default_rng(2)
    common = rng.normal(scale=10.0, size=8)
    ours, theirs = common + 0.5 + 0.01 * rng.normal(size=8), common
    paired = paired_difference(ours, theirs)
    assert abs(paired.mean - 0.5) < paired.half_width + 0.01
    assert paired.half_width < 0.02
    assert mean_interval(ours).half_width > 1.0


def test_the_share_that_groups_explain_is_freed_of_chance() -> None:
    # Sums of squares: 20 in all, 4 within; chance alone puts 4 / 2 between two groups.
    assert explained_share("aabb", np.array([1.0, 3.0, 5.0, 7.0])) == pytest.approx((20 - 4 - 2) / 20)
    # 76 in all, 12 within three groups of different sizes.
    groups, samples = [0, 1, 1, 1, 2, 2, 0], np.array([1.0, 5.0, 6.0, 7.0, 12.0, 8.0, 3.0])
    assert explained_share(groups, samples) == pytest.approx((76 - 12 - 2 * 12 / 4) / 76)
    assert explained_share("abab", np.array([1.0, 1.0, 3.0, 3.0])) == 0.0
    for nothing in ("aaaa", "abcd"):
        assert np.isnan(explained_share(nothing, np.array([1.0, 2.0, 3.0, 4.0])))
    assert np.isnan(explained_share("aabb", np.ones(4)))


def test_the_best_mean_is_among_those_asked_for_and_the_first_of_equals() -> None:
    values = {"one": np.array([1.0, 3.0]), "two": np.array([2.0, 2.0]), "more": np.array([0.0, 9.0])}
    assert best_mean(values) == "more"
    assert best_mean(values, ("one", "two")) == "one"
    assert best_mean(values, ("two", "one")) == "two"
