"""What more workers would do, by the model of the cluster benchmark, and that its programs are single trials."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.checkout


def test_times_of_more_workers_follow_from_those_of_one_and_two() -> None:
    from benchmarks.cluster import predicted

    fixed, each = 7.0, 20.0
    found = predicted(8, {1: fixed + 8 * each, 2: fixed + 4 * each})
    assert found["fixed_s"] == pytest.approx(fixed)
    assert found["per_program_s"] == pytest.approx(each)
    assert found["speed_up_of_two"] == pytest.approx(167 / 87)
    sixty_four = found["workers"]["64"]
    assert sixty_four["programs"] == 512
    assert sixty_four["seconds"] == pytest.approx(167.0)
    assert sixty_four["speed_up"] == pytest.approx((7 + 512 * 20) / 167)
    assert sixty_four["speed_up"] < 64


def test_each_trial_is_a_program_of_its_own() -> None:
    from benchmarks.cluster import make

    plan = make(4, 16_384)
    assert plan.programs == ((0,), (1,), (2,), (3,))
    assert [trial.config.training.seed for trial in plan.trials] == [0, 1, 2, 3]
