"""The evolution strategy on functions whose maximum is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.evolution import Evolution, Found, Generation, maximise

Objective = Callable[[np.ndarray], np.ndarray]


def sphere(candidates: np.ndarray) -> np.ndarray:
    """0 at 1, 1, ..."""
    return -((candidates - 1) ** 2).sum(axis=1)


def found(objective: Objective, dimensions: int, generations: int, population: int = 16, seed: int = 0) -> Found:
    start, spread = np.zeros(dimensions), np.ones(dimensions)
    return maximise(objective, start, spread, generations=generations, population=population, seed=seed)


@pytest.mark.parametrize(("dimensions", "generations", "within"), [(1, 8, 0.01), (3, 20, 0.01), (10, 60, 0.03)])
def test_finds_the_top_of_a_sphere(dimensions: int, generations: int, within: float) -> None:
    for seed in range(3):
        np.testing.assert_allclose(found(sphere, dimensions, generations, seed=seed).values, 1.0, atol=within)


def test_few_generations_come_near() -> None:
    left = [-found(sphere, 3, generations=8, seed=seed).score for seed in range(20)]
    assert np.mean(left) < 0.02


def test_follows_a_narrow_valley() -> None:
    def valley(candidates: np.ndarray) -> np.ndarray:
        x, y = candidates.T
        return -((1 - x) ** 2) - 100 * (y - x) ** 2

    np.testing.assert_allclose(found(valley, 2, generations=50).values, 1.0, atol=0.01)


def test_noise_leaves_it_near_the_top() -> None:
    random = np.random.default_rng(0)
    search = Evolution(np.zeros(3), np.ones(3), 24)
    for _ in range(15):
        search.tell(sphere(search.ask()) + random.normal(scale=0.5, size=24))
    assert -sphere(search.ask()[:1])[0] < 0.1


def test_a_maximum_at_the_edge_of_what_counts() -> None:
    # As with settings that stop at the end of their range, nothing changes beyond it.
    result = found(lambda candidates: sphere(np.clip(candidates, -0.5, 0.5)), 2, generations=12)
    np.testing.assert_allclose(np.clip(result.values, -0.5, 0.5), 0.5, atol=1e-3)


def test_spreads_are_units() -> None:
    unit = np.array([1e-3, 1e3])
    search = Evolution(np.array([1.0, 2.0]), unit, 8)
    plain = Evolution(np.zeros(2), np.ones(2), 8)
    for _ in range(5):
        np.testing.assert_allclose((search.ask() - search.start) / unit, plain.ask(), atol=1e-9)
        scores = sphere(plain.ask())
        search.tell(scores)
        plain.tell(scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_the_worst(bad: float) -> None:
    def objective(candidates: np.ndarray) -> np.ndarray:
        return np.where(candidates[:, 0] > 0.4, sphere(candidates), bad)

    result = found(objective, 2, generations=30)
    np.testing.assert_allclose(result.values, 1.0, atol=0.02)
    low = found(lambda candidates: np.where(candidates[:, 0] > 0.4, bad, sphere(candidates)), 2, generations=30)
    assert 0.3 < low.values[0] <= 0.4


def test_without_any_score_it_stays_at_the_start() -> None:
    result = found(lambda candidates: np.full(len(candidates), np.nan), 2, generations=5)
    assert result.score == -np.inf
    assert result.values.tolist() == [0.0, 0.0]


def test_is_never_worse_than_its_start() -> None:
    peak = [1.0]
    # All that lies elsewhere is worse, and all of it alike.
    result = found(lambda candidates: np.where((candidates == 0).all(axis=1), peak, 0.0), 3, generations=3)
    assert result == Found(pytest.approx(np.zeros(3)), 1.0)


def test_one_generation_is_enough_to_have_a_result() -> None:
    assert found(sphere, 3, generations=1).score >= -3.0


def test_the_same_seed_finds_the_same() -> None:
    first, second, other = (found(sphere, 3, generations=4, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.values, second.values)
    assert (first.values != other.values).any()


def test_asking_again_gives_the_same_candidates() -> None:
    search = Evolution(np.zeros(2), np.ones(2), 6)
    np.testing.assert_array_equal(search.ask(), search.ask())
    assert search.ask()[0].tolist() == [0.0, 0.0]


def test_goes_on_from_saved_fields_as_it_would_have() -> None:
    straight = Evolution(np.zeros(3), np.full(3, 0.5), 8, seed=3)
    for _ in range(4):
        straight.tell(sphere(straight.ask()))
    fields = {field.name: getattr(straight, field.name) for field in dataclasses.fields(straight)}
    saved = json.loads(json.dumps(fields, default=lambda array: array.tolist()))
    generations = tuple(Generation(*map(np.array, each)) for each in saved.pop("generations"))
    start, spread = np.array(saved["start"]), np.array(saved["spread"])
    restored = Evolution(start, spread, saved["population"], saved["seed"], generations)
    for _ in range(4):
        np.testing.assert_array_equal(restored.ask(), straight.ask())
        straight.tell(sphere(straight.ask()))
        restored.tell(sphere(restored.ask()))
    np.testing.assert_array_equal(restored.best.values, straight.best.values)


def test_progress_is_the_search_after_each_generation() -> None:
    best = []
    result = maximise(
        sphere,
        np.zeros(2),
        np.ones(2),
        generations=6,
        population=8,
        progress=lambda search: best.append((len(search.generations), search.best.score)),
    )
    numbers, scores = zip(*best, strict=True)
    assert numbers == tuple(range(1, 7))
    assert list(scores) == sorted(scores)
    assert scores[-1] == result.score


@pytest.mark.parametrize(
    ("start", "spread", "population", "message"),
    [
        ([], [], 8, "one dimension or more"),
        ([0.0, 1.0], [1.0], 8, r"start of shape \(2,\) and a spread of shape \(1,\)"),
        ([0.0], [0.0], 8, "spreads above 0"),
        ([np.nan], [1.0], 8, "finite numbers"),
        ([0.0], [1.0], 3, "population of 3; give at least 4"),
    ],
)
def test_what_cannot_be_searched_is_refused(start, spread, population, message) -> None:
    with pytest.raises(InputError, match=message):
        Evolution(np.array(start), np.array(spread), population)


def test_wrong_numbers_of_scores_and_generations_are_refused() -> None:
    with pytest.raises(InputError, match="one for each of 8 candidates"):
        Evolution(np.zeros(1), np.ones(1), 8).tell(np.zeros(7))
    with pytest.raises(InputError, match="0 generations; give at least 1"):
        found(sphere, 1, generations=0)
