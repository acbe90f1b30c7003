from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.objectives import score_rollouts
from besteffort.evaluation.rollouts import Rollout, _play_lanes, mean_rewards
from besteffort.evaluation.tuning import TUNED_RIVALS, heuristic_routers, maker, tune
from besteffort.files import read_json
from besteffort.learning.config import SearchConfig
from besteffort.routers.names import RIVALS
from besteffort.routers.registry import Settings, dimensions, settings_at
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import synthetic

CONFIG = EvaluationConfig(tuning_generations=4, tuning_population=6)

Tuned = list[dict[str, Settings]]


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workloads = [synthetic(situation, Poisson(rate)) for rate in (150.0, 700.0)]
    return sample_lists(workloads, situation.task_names, 400, [0])


@pytest.fixture(scope="module")
def tuned(situation: Situation, lists: list[Requests]) -> Tuned:
    """Settings for each list alone."""
    return tune(situation, [lists[:1], lists[1:]], CONFIG, warm_up_s=0.0)


def performance(
    situation: Situation, lists: Sequence[Requests], of_list: Sequence[dict[str, Settings]]
) -> dict[str, np.ndarray]:
    """(lists,) of every tuned router, with the settings of each list."""
    make = maker(situation)
    rollouts = [
        Rollout(name, row, make(name, **of_list[row][name])) for name in TUNED_RIVALS for row in range(len(lists))
    ]
    return dict(zip(TUNED_RIVALS, mean_rewards(situation, lists, rollouts).reshape(len(TUNED_RIVALS), -1), strict=True))


def test_tuning_improves_on_the_start_and_is_never_worse(
    situation: Situation, lists: list[Requests], tuned: Tuned
) -> None:
    shape, _ = build(situation, None, history=1)
    start = {name: settings_at(name, shape, np.zeros(dimensions(name, shape))) for name in TUNED_RIVALS}
    before, after = (performance(situation, lists, of_list) for of_list in ([start, start], tuned))
    for name in TUNED_RIVALS:
        assert (after[name] >= before[name] - 1e-6).all()
        assert (after[name] > before[name] + 1e-3).any()


def test_tuned_routers_do_not_beat_the_bound(situation: Situation, lists: list[Requests], tuned: Tuned) -> None:
    bounds = [clairvoyant_bound(situation, requests).performance for requests in lists]
    for values in performance(situation, lists, tuned).values():
        assert (values <= np.array(bounds) + 1e-6).all()


def test_groups_are_tuned_as_each_would_be_alone(situation: Situation, lists: list[Requests], tuned: Tuned) -> None:
    (alone,) = tune(situation, [lists[1:]], CONFIG, warm_up_s=0.0)
    # The gear plan draws, and the draws of a list depend on its place.
    for name in set(TUNED_RIVALS) - {"gear"}:
        assert alone[name] == tuned[1][name]
        assert alone[name] != tuned[0][name]


def test_what_is_kept_is_of_one_environment(
    situation: Situation, lists: list[Requests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "tuned.json"
    for version, known in (("one", 1), ("one", 1), ("another", 2), ("one", 2)):
        monkeypatch.setattr(ServingEnvironment, "version", version)
        tune(situation, [lists[1:]], CONFIG, warm_up_s=0.0, names=["deadline-reserve"], kept=kept)
        assert len(read_json(kept)) == known


def test_all_generations_share_their_compiled_programs(situation: Situation, lists: list[Requests]) -> None:
    _play_lanes.clear_cache()
    tune(situation, [[requests.part(slice(0, 300), 0.0) for requests in lists]], CONFIG, warm_up_s=0.0)
    # One for those that read the requests in flight, and one for the others.
    assert _play_lanes._cache_size() == 2


def test_every_router_that_does_not_learn_takes_part(situation: Situation, tuned: Tuned) -> None:
    static = {f"always {model}" for model in situation.profile.model_names}
    assert heuristic_routers(situation, tuned[0], 2).keys() == static | (set(RIVALS) - {"static"})


def test_routers_for_every_list(situation: Situation, tuned: Tuned) -> None:
    routers = heuristic_routers(situation, tuned[0], 6)
    assert all(len(each) == 6 for each in routers.values())
    for router in routers["deadline-reserve"]:
        assert float(router.reserve) == pytest.approx(tuned[0]["deadline-reserve"]["reserve"])


def test_routers_that_are_no_rivals_are_tuned_by_name(situation: Situation, lists: list[Requests]) -> None:
    shape, _ = build(situation, None, history=1)
    (found,) = tune(situation, [lists[1:]], CONFIG, warm_up_s=0.0, names=["value"])
    assert found.keys() == {"value"}
    assert found["value"] != settings_at("value", shape, np.zeros(dimensions("value", shape)))


def test_another_objective_is_what_settings_are_found_for(situation: Situation, lists: list[Requests]) -> None:
    worst = SearchConfig(objective="worst_task")
    make = maker(situation)
    (by_reward,), (by_worst,) = (
        tune(situation, [lists[1:]], CONFIG, warm_up_s=0.0, names=("deadline-reserve", "priced-ahead"), objective=each)
        for each in (None, worst)
    )
    gained = {}
    for name in by_reward:
        rollouts = [Rollout(name, 0, make(name, **found[name])) for found in (by_reward, by_worst)]
        reward = score_rollouts(situation, lists[1:], rollouts, SearchConfig())
        fairness = score_rollouts(situation, lists[1:], rollouts, worst)
        assert reward[0] >= reward[1]
        gained[name] = fairness[1] - fairness[0]
    assert min(gained.values()) >= 0
    assert max(gained.values()) > 0
