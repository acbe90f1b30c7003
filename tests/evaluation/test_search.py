"""The search for a rule's numbers: repeatable, resumable, and never worse than where it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.estimates.rule import NUMBERS, Rule
from besteffort.evaluation import search as search_module
from besteffort.evaluation.rollouts import Rollout, mean_rewards
from besteffort.evaluation.search import Lists, Searched, draws, pieces, search
from besteffort.learning.config import ObjectiveName, SearchConfig
from besteffort.learning.train import Progress
from besteffort.routers import TUNED
from besteffort.routers.value import ValueRouter
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import rule_for
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Cluster, Reward, Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import synthetic

N = 60
CONFIG = SearchConfig(generations=4, population=4, lists=2, requests=N)


@pytest.fixture(scope="module")
def situation() -> Situation:
    """Prompts of one length, so that all lists share their compiled programs."""
    paper = load_situation("paper")
    tasks = tuple(dataclasses.replace(task, prompt_tokens=(128, 128)) for task in paper.tasks)
    return dataclasses.replace(paper, cluster=Cluster(replicas=1, max_batch=4, queue_capacity=4), tasks=tasks)


@pytest.fixture(scope="module")
def workload(situation: Situation) -> Any:
    return synthetic(situation, Poisson(1.5 * situation.unit_load))


@pytest.fixture(scope="module")
def lists(situation: Situation, workload: Any) -> Lists:
    """With one list for the final, of the same length: as many rollouts as in the search, in the same program."""
    drawn = sample_lists([workload], situation.task_names, N, [1, 2, 3])
    return Lists(drawn[:2], drawn[2:])


@pytest.fixture(scope="module")
def start(situation: Situation) -> Rule:
    """Poor numbers: a latency of one deadline costs more than a good answer is worth."""
    numbers = dict.fromkeys(NUMBERS, 0.05) | {"latency_price": 30.0, "occupancy_price": 3.0, "time_price": 0.5}
    numbers |= {"in_flight_width": 0.3, "harm_weight": 1.0, "harm_floor": 0.3, "occupancy_exponent": 0.4}
    return rule_for(situation, {**numbers, "head_room": 1.2, "giving_up": 0.5})


@pytest.fixture(scope="module")
def straight(situation: Situation, lists: Lists, start: Rule) -> Searched:
    return search(situation, [lists], start, CONFIG, [0])


def same(one: Searched, other: Searched) -> bool:
    """Bit for bit."""
    leaves = zip(jax.tree.leaves((one.rules, one.metrics)), jax.tree.leaves((other.rules, other.metrics)), strict=True)
    return one.decisions == other.decisions and all(np.array_equal(a, b) for a, b in leaves)


def test_the_same_seed_finds_the_same_and_another_does_not(
    situation: Situation, lists: Lists, start: Rule, straight: Searched
) -> None:
    assert same(search(situation, [lists], start, CONFIG, [0]), straight)
    assert not same(search(situation, [lists], start, CONFIG, [1]), straight)


def test_metrics_tell_of_every_generation(straight: Searched) -> None:
    assert straight.decisions == 4 * 4 * 2 * N
    np.testing.assert_array_equal(straight.metrics["decisions"][:, 0], np.arange(1, 5) * 4 * 2 * N)
    assert {values.shape for values in straight.metrics.values()} == {(4, 1)}
    best, mean, worst = (straight.metrics[name][:, 0] for name in ("reward", "mean", "worst"))
    assert (worst < mean).all()
    assert (mean < best).all()
    assert (np.diff(best) >= 0).all()


def test_what_is_found_is_in_range_and_keeps_the_prices(situation: Situation, start: Rule, straight: Searched) -> None:
    (rule,) = straight.rules
    np.testing.assert_array_equal(rule.rates, start.rates)
    np.testing.assert_array_equal(rule.prices, start.prices)
    shape, _ = build(situation, None, history=1)
    assert {number.name for number in TUNED["value"](shape)} == set(NUMBERS)
    for number in TUNED["value"](shape):
        assert number.low <= getattr(rule, number.name) <= number.high


def test_it_finds_no_less_than_where_it_starts(
    situation: Situation, lists: Lists, start: Rule, straight: Searched
) -> None:
    """On the list of the final, without the half of it that does not count."""
    (final,) = lists.final
    routers = [ValueRouter(jax.tree.map(jnp.asarray, rule)) for rule in (straight.rules[0], start)] * 4
    warm_up_s = 0.5 * float(final.arrival_s[-1] - final.arrival_s[0])
    rollouts = [Rollout("value", 0, router) for router in routers]
    found, began, *_ = mean_rewards(situation, lists.final, rollouts, warm_up_s=warm_up_s)
    assert found >= began
    assert straight.metrics["reward"][-1, 0] > straight.metrics["mean"][0, 0]


def test_the_start_wins_where_what_looked_better_fails_in_the_final(
    situation: Situation, start: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is on a cluster that drowns, the final on one that keeps up where prices are low."""
    monkeypatch.setattr(search_module, "_FINALISTS", 1)
    loads = [synthetic(situation, Poisson(load * situation.unit_load)) for load in (12.0, 0.5)]
    busy, quiet = sample_lists(loads, situation.task_names, N, [2])
    start = dataclasses.replace(start, latency_price=0.05, occupancy_price=0.05)
    found = search(situation, [Lists([busy, busy], [quiet] * 4)], start, CONFIG, [0])
    assert found.metrics["reward"][-1, 0] > found.metrics["reward"][0, 0]
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(found.rules[0], name), getattr(start, name), rtol=1e-6)


@pytest.mark.parametrize("point", [1, 2, 4])
def test_a_killed_search_ends_alike(
    situation: Situation, lists: Lists, start: Rule, straight: Searched, tmp_path: Path, point: int
) -> None:
    def stop(latest: Progress) -> None:
        points.append(latest.point)
        if latest.point == point:
            raise KeyboardInterrupt

    points: list[int] = []
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        search(situation, [lists], start, CONFIG, [0], checkpoint_path=file, progress=stop)
    assert points == [*range(1, point + 1)]
    points.clear()
    reported: list[Progress] = []
    resumed = search(situation, [lists], start, CONFIG, [0], checkpoint_path=file, progress=reported.append)
    # The report that was cut short comes again.
    assert [(latest.point, latest.points) for latest in reported] == [(i, 4) for i in range(point, 5)]
    assert same(resumed, straight)
    reported.clear()
    assert same(
        search(situation, [lists], start, CONFIG, [0], checkpoint_path=file, progress=reported.append), straight
    )
    assert reported == []


def with_other_answers(lists: Lists) -> Lists:
    """The same arrivals, whose answers are longer."""
    first, *others = lists.search
    return lists._replace(search=[dataclasses.replace(first, output_tokens=first.output_tokens + 1), *others])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": dataclasses.replace(CONFIG, generations=2)}, "with `generations` 4, but this one has 2"),
        ({"config": dataclasses.replace(CONFIG, population=6)}, "with `population` 4, but this one has 6"),
        ({"config": dataclasses.replace(CONFIG, objective="slo")}, "with `objective` reward, but this one has slo"),
        ({"seeds": [1]}, "with seeds 0, but this one has 1"),
        ({"situation": lambda situation: dataclasses.replace(situation, reward=Reward(0.5))}, "with situation "),
        ({"start": lambda start: dataclasses.replace(start, prices=2 * start.prices)}, "with starting numbers "),
        ({"start": lambda start: dataclasses.replace(start, width=0.5)}, "with starting numbers "),
        ({"lists": lambda lists: lists._replace(search=lists.search[::-1])}, "with lists "),
        ({"lists": with_other_answers}, "with lists "),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_checkpoint_of_another_search_is_refused(
    situation: Situation, lists: Lists, start: Rule, checkpoint: Path, change: dict[str, Any], words: str
) -> None:
    given = {"situation": situation, "lists": lists, "start": start, "config": CONFIG, "seeds": [0]}
    given |= {name: value(given[name]) if callable(value) else value for name, value in change.items()}
    with pytest.raises(InputError, match=f"the checkpoint is of a training {words}"):
        search(**given | {"lists": [given["lists"]]}, checkpoint_path=checkpoint)


def test_a_checkpoint_of_another_environment_is_refused(
    situation: Situation, lists: Lists, start: Rule, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores from both would be mixed."""
    monkeypatch.setattr(ServingEnvironment, "version", "another")
    with pytest.raises(InputError, match=r"with environment version \S+, but this one has version another"):
        search(situation, [lists], start, CONFIG, [0], checkpoint_path=checkpoint)


@pytest.fixture(scope="module")
def checkpoint(situation: Situation, lists: Lists, start: Rule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a search that is done."""
    file = tmp_path_factory.mktemp("search") / "checkpoint.npz"
    search(situation, [lists], start, CONFIG, [0], checkpoint_path=file)
    return file


def test_terms_are_left_out(situation: Situation, lists: Lists, start: Rule, straight: Searched) -> None:
    config = dataclasses.replace(CONFIG, without=("harm_weight", "latency_price"))
    (rule,) = search(situation, [lists], start, config, [3]).rules
    assert rule.harm_weight == rule.latency_price == 0
    assert min(straight.rules[0].harm_weight, straight.rules[0].latency_price, rule.harm_floor) > 0


@pytest.mark.parametrize("objective", get_args(ObjectiveName)[1:])
def test_every_objective_is_sought(situation: Situation, lists: Lists, start: Rule, objective: ObjectiveName) -> None:
    config = dataclasses.replace(CONFIG, objective=objective, generations=2)
    found = search(situation, [lists], start, config, [0])
    assert all(np.isfinite(values).all() for values in found.metrics.values())
    assert found.metrics["worst"][0, 0] < found.metrics["reward"][0, 0]


@pytest.mark.parametrize("rate_tau_s", [0.1, 2.0])
def test_seeds_have_lists_of_their_own(situation: Situation, lists: Lists, start: Rule, rate_tau_s: float) -> None:
    """Two seeds together score what each does alone."""
    situation = dataclasses.replace(situation, view=dataclasses.replace(situation.view, rate_tau_s=rate_tau_s))
    other = Lists(lists.search[::-1], lists.final)
    third = Lists([lists.final[0], lists.final[0]], lists.search[:1])
    config = dataclasses.replace(CONFIG, generations=2)
    together = search(situation, [other, third], start, config, [0, 5])
    for index, (seed, mine) in enumerate([(0, other), (5, third)]):
        alone = search(situation, [mine], start, config, [seed])
        assert alone.decisions == together.decisions
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(together.metrics[name][:, index], values[:, 0], rtol=1e-5)
    assert together.rules[0].width != together.rules[1].width


def test_draws_are_of_the_workload_and_never_the_same_twice(situation: Situation, workload: Any) -> None:
    config = SearchConfig(lists=3, requests=20)
    # The last one is the largest seed that a training may have.
    one, two, last = (draws(situation, workload, config, seed) for seed in (0, 1, 2**31 - 1))
    assert [len(requests) for requests in (*one.search, *one.final)] == [20] * 3 + [40] * 3
    begins = [tuple(requests.arrival_s[:20]) for part in (*one, *two, *last) for requests in part]
    assert len(set(begins)) == 18
    again = draws(situation, workload, config, 1)
    np.testing.assert_array_equal(again.search[2].arrival_s, two.search[2].arrival_s)


def listed(n: int) -> Requests:
    """A request each second from 5 s on, whose answer is as long as its number."""
    numbers = np.arange(n)
    prompt_tokens, deadline_s = np.full(n, 8), np.full(n, 1.0)
    return Requests(("piqa",), 5.0 + numbers, np.zeros(n, int), prompt_tokens, 1 + numbers, deadline_s)


@pytest.mark.parametrize(
    ("lengths", "config", "begins", "length"),
    [
        ([100], SearchConfig(lists=3, requests=20), [0, 40, 80], 20),
        ([100], SearchConfig(lists=4, requests=20), [0, 27, 53, 80], 20),
        ([100, 100], SearchConfig(lists=5, requests=20), [0, 80, 0, 80], 20),
        ([100, 80], SearchConfig(lists=4, requests=40), [0, 60, 0, 40], 40),
        ([100, 70], SearchConfig(lists=4, requests=40), [0, 0], 40),  # two pieces would overlap
        ([100, 30], SearchConfig(lists=2, requests=40), [0, 0], 30),
        ([50] * 3, SearchConfig(lists=1, requests=20), [0, 0, 0], 20),
        ([20], SearchConfig(lists=2, requests=99), [0], 20),
    ],
)
def test_pieces_are_evenly_spaced_and_of_one_length(
    lengths: list[int], config: SearchConfig, begins: list[int], length: int
) -> None:
    cut = pieces([listed(n) for n in lengths], config)
    assert [int(piece.output_tokens[0]) - 1 for piece in cut.search] == begins
    for piece in cut.search:
        np.testing.assert_array_equal(piece.arrival_s, np.arange(length))
        np.testing.assert_array_equal(np.diff(piece.output_tokens), 1)
    assert [len(whole) for whole in cut.final] == [min(lengths)] * len(lengths)
    assert all(whole.arrival_s[0] == 0 for whole in cut.final)


def test_lists_without_two_requests_are_refused() -> None:
    with pytest.raises(InputError):
        pieces([listed(1)], SearchConfig())
