"""What a search looks for, on results whose figures are worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from besteffort.evaluation.objectives import OBJECTIVES, scores
from besteffort.learning.config import ObjectiveName, SearchConfig
from besteffort.simulator.result import Result
from besteffort.situation import Reward, Situation

TIE = 1e-3
MakeResult = Callable[..., Result]


@pytest.fixture(scope="session")
def situation(make_situation: Callable[..., Situation]) -> Situation:
    """At its peak a request of the first task earns 2, others 1; of the third task there are none in most lists."""
    decode = [[(1, 0.1)], [(1, 0.2)]]
    qualities = [[40.0, 80.0], [20.0, 80.0], [80.0, 80.0]]
    return make_situation(decode, [0.1, 0.2], qualities, tasks=[{"weight": 2.0}, {}, {}])


def score(result: Result, situation: Situation, config: SearchConfig, warm_up_s: float = 0.0) -> float:
    """Of a single lane."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    lane = {name: None if values is None else values[None] for name, values in fields.items()}
    return float(scores(Result(**lane), situation, config, warm_up_s=warm_up_s)[0])


def test_every_objective_but_the_reward_has_a_function() -> None:
    assert {"reward", *OBJECTIVES} == set(get_args(ObjectiveName))


def test_reward_is_the_mean(make_result: MakeResult, situation: Situation) -> None:
    result = make_result([[0.0, 1.0, 9.0], [0.0, 5.0, 9.0]], reward=[[2.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
    np.testing.assert_allclose(scores(result, situation, SearchConfig()), [1.0, 0.0])
    np.testing.assert_allclose(scores(result, situation, SearchConfig(), warm_up_s=5.0), [0.0, 0.0])


def test_near_peak_is_a_share_of_windows(make_result: MakeResult, situation: Situation) -> None:
    config = SearchConfig(objective="near_peak", window_s=1.0, peak_share=0.9)
    # 4 of 4, 3 of 4, and 0.9 of 1, which just will do.
    result = make_result([0.0, 0.5, 1.2, 1.4, 5.0], task=[0, 0, 0, 0, 1], reward=[2.0, 2.0, 2.0, 1.0, 0.9])
    mean = 7.9 / 5
    assert score(result, situation, config) == pytest.approx(2 / 3 + TIE * mean)
    wide = SearchConfig(objective="near_peak", window_s=10.0, peak_share=0.87)
    assert score(result, situation, wide) == pytest.approx(1.0 + TIE * mean)
    strict = SearchConfig(objective="near_peak", window_s=1.0, peak_share=0.91)
    assert score(result, situation, strict) == pytest.approx(1 / 3 + TIE * mean)


def test_the_worst_task_is_judged_by_its_own_peak(make_result: MakeResult, situation: Situation) -> None:
    config = SearchConfig(objective="worst_task")
    result = make_result([0.0, 1.0, 2.0, 3.0], task=[0, 0, 1, 1], reward=[2.0, 0.0, 0.4, 0.8])
    assert score(result, situation, config) == pytest.approx(0.5 + TIE * 0.8)  # 1 of 2, against 0.6 of 1
    assert score(result, situation, config, warm_up_s=1.0) == pytest.approx(0.0 + TIE * 0.4)
    third = make_result([0.0, 1.0, 2.0], task=[0, 1, 2], reward=[2.0, 1.0, -0.3])
    assert score(third, situation, config) == pytest.approx(-0.3 + TIE * 0.9)


@pytest.mark.parametrize(
    ("alpha", "fair", "with_nothing"),
    [
        (0.0, 0.75, (0.01 + 1.0) / 2),
        (1.0, math.log(0.5) / 2, math.log(0.01) / 2),
        (2.0, -1.5, (-100 - 1) / 2),
    ],
)
def test_alpha_fairness(
    make_result: MakeResult, situation: Situation, alpha: float, fair: float, with_nothing: float
) -> None:
    config = SearchConfig(objective="alpha_fair", alpha=alpha)
    arrived: Any = {"arrival_s": [0.0, 1.0, 2.0], "task": [0, 0, 1]}
    half = make_result(**arrived, reward=[2.0, 0.0, 1.0])
    assert score(half, situation, config) == pytest.approx(fair + TIE)
    # Utilities of 0 and less have a bound in common; the mean reward still tells them apart.
    nothing = make_result(**arrived, reward=[0.0, 0.0, 1.0])
    less = make_result(**arrived, reward=[-2.0, 0.0, 1.0])
    assert score(nothing, situation, config) == pytest.approx(with_nothing + TIE / 3)
    assert score(less, situation, config) == pytest.approx(with_nothing - TIE / 3)


def test_an_slo_comes_first(make_result: MakeResult, situation: Situation) -> None:
    latency_s, reward = np.array([0.5] * 75 + [2.0] * 25), np.repeat([1.2, 0.0], [75, 25])
    result = make_result(np.arange(100.0), latency_s=latency_s, reward=reward)
    error = math.sqrt(0.75 * 0.25 / 100)
    for attainment in (0.5, 0.75 - 1.01 * error):
        config = SearchConfig(objective="slo", attainment=attainment)
        assert score(result, situation, config) == pytest.approx((1 + TIE) * 0.9)
    for attainment in (0.75 - 0.99 * error, 0.9):
        config = SearchConfig(objective="slo", attainment=attainment)
        lacking = attainment + error - 0.75
        assert score(result, situation, config) == pytest.approx(-2 - lacking + TIE * 0.9)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 4.0])
def test_what_attains_an_slo_is_better_than_what_does_not(
    make_result: MakeResult, make_situation: Callable[..., Situation], penalty: float
) -> None:
    situation = make_situation([[(1, 0.1)]], [0.1], [[80.0]], reward=Reward(miss_penalty=penalty))
    config = SearchConfig(objective="slo", attainment=0.2)
    rows = [np.repeat([0.5, 2.0], [met, 100 - met]) for met in (30, 10)]
    latency_s = np.stack(rows)
    result = make_result(
        np.arange(200.0).reshape(2, 100), latency_s=latency_s, reward=np.where(latency_s < 1, 1.0, -penalty)
    )
    attains, lacks = scores(result, situation, config)
    assert attains > lacks


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_mean_reward_decides_between_equals(
    make_result: MakeResult, situation: Situation, objective: ObjectiveName
) -> None:
    """Both miss the peak in all windows and the SLO, and their worst tasks earn nothing."""
    config = SearchConfig(objective=objective, alpha=0.0)
    reward = [[0.0, 0.0, 0.0, 0.5], [-0.1, -0.1, -0.1, 0.4]]
    lanes = {"latency_s": 2.0, "reward": reward}
    if objective == "worst_task":
        lanes["reward"] = [[0.0, 0.0, 0.2, 0.5], [0.0, 0.0, 0.1, 0.5]]
    if objective == "alpha_fair":
        lanes["reward"] = [[-0.1, -0.1, 0.5, 0.5], [-0.3, -0.1, 0.5, 0.5]]
    result = make_result([[0.0, 2.0, 4.0, 6.0]] * 2, task=[[0, 0, 1, 1]] * 2, **lanes)
    better, worse = scores(result, situation, config)
    mean = np.mean(lanes["reward"], axis=1)
    assert better - worse == pytest.approx(TIE * (mean[0] - mean[1]))
    assert better > worse


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_lanes_are_judged_apart_and_without_the_warm_up(
    make_result: MakeResult, situation: Situation, objective: ObjectiveName
) -> None:
    rng = np.random.default_rng(0)
    arrival_s = np.sort(rng.uniform(0, 20, (3, 60)), axis=1)
    fields = {
        "task": rng.integers(0, 3, (3, 60)),
        "reward": rng.uniform(-0.5, 2.0, (3, 60)),
        "latency_s": rng.uniform(0, 1.1, (3, 60)),
    }
    config = SearchConfig(objective=objective)
    together = scores(make_result(arrival_s, **fields), situation, config, warm_up_s=3.0)
    assert together.shape == (3,)
    for lane in range(3):
        alone = make_result(arrival_s[lane], **{name: values[lane] for name, values in fields.items()})
        assert together[lane] == pytest.approx(score(alone, situation, config, warm_up_s=3.0))
    early = arrival_s < arrival_s[:, :1] + 3.0
    fields["reward"] = np.where(early, 9.0, fields["reward"])
    changed = make_result(arrival_s, **fields)
    np.testing.assert_array_equal(scores(changed, situation, config, warm_up_s=3.0), together)
