from __future__ import annotations

import numpy as np
import pytest

from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.evaluation.rollouts import play_routers, sample_lists
from besteffort.evaluation.tuning import best_settings, heuristic_routers, score_candidates
from besteffort.routers.names import ROUTER_NAMES
from besteffort.routers.registry import TUNABLE, candidates, make_router
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.synthetic_workload import synthetic
from tests.bounds.windows import fluid_bound_windows


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workloads = [synthetic(situation, Poisson(rate)) for rate in (150.0, 700.0)]
    return sample_lists(workloads, situation.task_names, 400, [0])


@pytest.fixture(scope="module")
def scores(situation: Situation, lists: list[Requests]) -> dict[str, np.ndarray]:
    return score_candidates(situation, lists)


@pytest.fixture(scope="module")
def tuned(situation: Situation, scores: dict[str, np.ndarray]):
    return best_settings(situation, scores, groups=2)


def test_no_candidate_beats_the_bounds(situation: Situation, lists: list[Requests], scores) -> None:
    clairvoyant = [clairvoyant_bound(situation, requests).performance for requests in lists]
    windows = [fluid_bound_windows(situation, requests, window_s=0.5).performance for requests in lists]
    for values in scores.values():
        assert (values <= np.minimum(clairvoyant, windows) + 1e-6).all()


def test_settings_are_candidates(situation: Situation, tuned) -> None:
    shape, _ = build(situation, None, history=1)
    assert tuned.keys() == TUNABLE.keys()
    for name, settings in tuned.items():
        assert len(settings) == 2
        assert all(setting in candidates(name, shape) for setting in settings)


def test_nothing_beats_the_chosen_reserve(situation: Situation, lists: list[Requests], tuned) -> None:
    shape, _ = build(situation, None, history=1)
    options = candidates("deadline-reserve", shape)
    routers = {str(option["reserve"]): [make_router("deadline-reserve", shape, **option)] * 2 for option in options}
    scores = {name: result.reward.mean(1) for name, result in play_routers(situation, lists, routers).items()}
    for group in range(2):
        chosen = str(tuned["deadline-reserve"][group]["reserve"])
        assert scores[chosen][group] == pytest.approx(max(score[group] for score in scores.values()), abs=1e-6)


def test_every_router_that_does_not_learn_takes_part(situation: Situation, tuned) -> None:
    static = {f"always {model}" for model in situation.profile.model_names}
    assert heuristic_routers(situation, tuned, 2).keys() == static | (ROUTER_NAMES.keys() - {"static"})


def test_routers_for_every_list(situation: Situation, tuned) -> None:
    routers = heuristic_routers(situation, tuned, 6)
    assert all(len(each) == 6 for each in routers.values())
    reserves = [float(router.reserve) for router in routers["deadline-reserve"]]
    first, second = (setting["reserve"] for setting in tuned["deadline-reserve"])
    assert reserves == pytest.approx([first] * 3 + [second] * 3)
