"""Whether requests and servers are what the policy was made for: begins, ends, and what the policy does not say."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
import pytest

from besteffort.estimates.rule import UNTRAINED, Rule
from besteffort.gateway.config import DriftLimits
from besteffort.gateway.core import Ask, Core
from besteffort.gateway.drift import Drift, highest_rate
from besteffort.observation import default_features
from besteffort.policy import Policy
from tests.gateway.backends import answer, backend, run, running
from tests.gateway.policies import Clock, config, contrary, greedy, snapshot

LIMITS = DriftLimits(window_s=15.0, least=50)
TASKS = greedy().situation.tasks
EACH_S = 0.05


class World:
    """A gateway without servers: requests come as told and are answered at once or later."""

    def __init__(self, policy: Policy | None = None, limits: DriftLimits = LIMITS) -> None:
        self.clock = Clock()
        self.core = Core(snapshot(config(drift=limits), policy, clock=self.clock), clock=self.clock, log=self.record)
        self.drift = Drift(self.core)
        self.said: list[str] = []
        self.random = np.random.default_rng(0)

    def record(self, record: object) -> None:
        self.drift.record(record)

    def play(
        self,
        count: int,
        *,
        task: str | None = None,
        prompt: tuple[int, int] | None = None,
        output: tuple[int, int] | None = None,
        times: float = 1.0,
        gap_s: float = EACH_S,
    ) -> None:
        """Requests as the policy has them, but for what is stated; answers take `times` as long as predicted."""
        shares = greedy().situation.shares
        for i in range(count):
            name = task or str(self.random.choice([each.name for each in TASKS], p=shares))
            its = next(each for each in TASKS if each.name == name)
            low, high = prompt or its.prompt_tokens
            ask = Ask(task=name, prompt_tokens=int(self.random.integers(low, high + 1)))
            arrived_s = self.clock.now
            ticket = self.core.arrive(ask, f"r{i}")
            claim = self.core.claim(ticket)
            assert ticket.expected_s is not None
            self.clock.now = arrived_s + times * ticket.expected_s
            low, high = output or its.output_tokens
            self.core.token(claim, int(self.random.integers(low, high + 1)))
            self.core.finished(claim)
            self.core.close(ticket, "answered")
            self.clock.now = max(self.clock.now, arrived_s + gap_s)
            if not i % 20:
                self.said += self.drift.look()
        self.said += self.drift.look()

    def active(self) -> set[tuple[str, str]]:
        return {key for key, measure in self.drift.measures.items() if measure.active}


def test_requests_as_trained_for_are_no_drift() -> None:
    world = World()
    world.play(600)
    names = {measure for measure, _ in world.drift.measures}
    assert names == {
        *("task_mix", "prompt_tokens", "output_tokens", "mean_prompt_tokens", "mean_output_tokens"),
        *("completion_time", "in_flight"),
    }
    assert world.said == []
    assert world.active() == set()
    for (measure, _), found in world.drift.measures.items():
        assert np.isfinite(found.value)
        if measure in ("prompt_tokens", "output_tokens"):
            assert found.value == 0.0
        if measure == "completion_time":
            assert found.value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "measures"),
    [
        ({"task": TASKS[0].name}, {("task_mix", "")}),
        (
            {"prompt": (3 * TASKS[0].prompt_tokens[1], 3 * TASKS[0].prompt_tokens[1])},
            {(name, task.name) for name in ("prompt_tokens", "mean_prompt_tokens") for task in TASKS},
        ),
        (
            {"output": (1, 1)},
            {(name, task.name) for name in ("output_tokens", "mean_output_tokens") for task in TASKS},
        ),
        ({"times": 3.0}, {("completion_time", "pool-1")}),
        ({"times": 0.25}, {("completion_time", "pool-1")}),
    ],
)
def test_a_drift_begins_and_ends_once(change: dict[str, object], measures: set[tuple[str, str]]) -> None:
    world = World()
    world.play(300)
    world.play(700, **change)
    assert world.active() == measures
    begun = list(world.said)
    assert all(said.startswith("Drift begins: ") for said in begun)
    assert len(begun) == len(measures)
    world.play(1500)
    assert world.active() == set()
    assert len(world.said) == 2 * len(measures)
    assert all(said.startswith("Drift ends: ") for said in world.said[len(begun) :])


def test_few_requests_say_nothing() -> None:
    world = World()
    world.play(49, task=TASKS[0].name, prompt=(9, 9), times=5.0)
    assert world.active() == set()
    assert {measure for measure, _ in world.drift.measures} == {"in_flight"}


def test_a_drift_of_requests_that_come_no_more_ends() -> None:
    world = World()
    world.play(300, task=TASKS[0].name)
    assert ("task_mix", "") in world.active()
    world.clock.now += 2 * LIMITS.window_s
    assert world.drift.look() == ["Drift ends: task_mix, which rests on too few requests now."]
    assert world.drift.look() == []


@functools.cache
def with_rates(highest: float, loads: bool = False) -> Policy:
    """`greedy` by a rule, which has prices up to a rate, or with a training that states loads."""
    base = greedy()
    situation = dataclasses.replace(base.situation, view=dataclasses.replace(base.situation.view, features=("value",)))
    pools = len(base.models)
    rule = Rule(**UNTRAINED, rates=np.array([1.0, highest]), prices=np.zeros((2, pools)))
    training = {"workload": {"kind": "random_rates", "low": 0.05, "high": 2.0}} if loads else {}
    features = default_features(len(TASKS), pools, 1, 1, 1.0, ("value",))
    return dataclasses.replace(base, situation=situation, features=features, rule=rule, training=training)


def test_the_highest_rate_is_that_of_the_training_else_of_the_prices() -> None:
    assert highest_rate(greedy()) is None
    assert highest_rate(with_rates(40.0)) == 40.0
    assert highest_rate(with_rates(40.0, True)) == 2.0 * greedy().situation.unit_load


def test_a_rate_above_the_highest_is_a_drift() -> None:
    world = World(with_rates(30.0))
    assert world.drift.left_out == {}
    world.play(600)
    assert ("arrival_rate", "") not in world.active()
    assert world.drift.measures["arrival_rate", ""].value == 0.0
    world.play(1000, gap_s=0.02, output=(1, 1), times=0.01)
    assert ("arrival_rate", "") in world.active()
    assert World().drift.left_out == {"arrival_rate": "the policy does not carry the rates that it was trained for"}


def test_a_rate_counts_for_as_long_as_it_lasts_however_often_it_is_looked_at() -> None:
    world = World(with_rates(30.0))
    world.play(40, gap_s=0.5)
    for i in range(100):
        world.core.close(world.core.arrive(Ask(task=TASKS[0].name), f"burst{i}"), "cancelled")
    for _ in range(200):
        world.clock.now += 0.001
        world.drift.look()
    assert world.core.arrival_rate() > 30.0
    assert 0.0 < world.drift.measures["arrival_rate", ""].value < 0.02


def test_more_requests_on_a_replica_than_trained_for_are_a_drift_of_the_moment() -> None:
    given = config([["http://a/v1"]], drift=LIMITS)
    pools = tuple(dataclasses.replace(pool, limit=20) for pool in given.pools)
    made = Core(snapshot(dataclasses.replace(given, pools=pools)))
    drift = Drift(made)
    tickets = [made.arrive(Ask(task="piqa"), f"r{i}") for i in range(10)]
    for ticket in tickets:
        made.claim(ticket)
    assert drift.look() == ["Drift begins: in_flight of pool-0 is 1.25, limit 1."]
    for ticket in tickets:
        made.close(ticket, "cancelled")
    assert drift.look() == ["Drift ends: in_flight of pool-0 is 0, limit 1."]


def test_another_policy_is_compared_anew() -> None:
    world = World()
    world.play(400, task=TASKS[0].name)
    assert ("task_mix", "") in world.active()
    base = contrary()
    tasks = tuple(dataclasses.replace(task, share=float(not i)) for i, task in enumerate(TASKS))
    policy = dataclasses.replace(base, situation=dataclasses.replace(base.situation, tasks=tasks))
    world.core.replace(snapshot(config(drift=LIMITS), policy, clock=world.clock, earlier=world.core.snapshot))
    assert world.drift.look() == ["Drift ends: task_mix, which rests on too few requests now."]
    world.play(200, task=TASKS[0].name)
    assert ("task_mix", "") not in world.active()


def test_a_gateway_logs_and_exports_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        limits = DriftLimits(least=4)
        async with backend(answer) as (url, _), running(tmp_path, [[url]], drift=limits) as found:
            await asyncio.gather(*(found.post() for _ in range(6)))
            with caplog.at_level(logging.INFO):
                found.gateway._watch()
                found.gateway._watch()
            text = found.gateway.metrics.text()[0].decode()
            assert 'besteffort_drift_active{measure="task_mix",of=""} 1.0' in text
            assert 'besteffort_drift_limit{measure="task_mix",of=""} 0.2' in text
        said = [record.getMessage() for record in caplog.records]
        assert sum(line.startswith("Drift begins: task_mix is ") for line in said) == 1

    run(scenario())
