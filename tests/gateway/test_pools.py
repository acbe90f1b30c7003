"""Pools of a configuration are found in the policy, with as many replicas as they have addresses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.gateway.config import GatewayConfig, Pool
from besteffort.gateway.core import Ask, Core, Record, RefusedError
from besteffort.gateway.snapshot import make_snapshot
from besteffort.observation import default_features
from besteffort.policy import Policy
from besteffort.pools import Pool as Served
from besteffort.situation import Cluster
from tests.gateway.policies import MODELS, Clock, config, greedy

SERVED = (
    Served("large", MODELS[2], replicas=1, max_batch=2, queue_capacity=1),
    Served("small", MODELS[0], replicas=3, max_batch=4, queue_capacity=4),
    Served("far-small", MODELS[0], replicas=2, max_batch=8, queue_capacity=0, network_delay_s=0.2),
)
ASK = Ask(task="piqa", characters=400)


def pooled() -> Policy:
    """As `greedy`, of pools that differ, the largest model first."""
    found = greedy().situation
    situation = dataclasses.replace(found, cluster=Cluster(), pools=SERVED)
    replicas, max_batch = situation.fleet.replicas, situation.fleet.max_batch
    features = default_features(len(situation.tasks), 3, replicas, max_batch, 50.0, ("own",))
    return Policy(situation, features, ((np.eye(3), np.zeros(3)),))


def asked(*pools: Pool, **others: Any) -> GatewayConfig:
    return GatewayConfig(pools=pools, policy="policy.safetensors", **others)


def urls(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"http://{name}-{i}/v1" for i in range(count))


def started(given: GatewayConfig, policy: Policy) -> Core:
    clock = Clock()
    return Core(make_snapshot(given, policy, clock=clock, environment={}), clock=clock)


def test_pools_of_the_situation_are_found_by_their_names() -> None:
    given = asked(
        Pool("far-small", urls("far", 2)),
        Pool("large", urls("large", 1), MODELS[2]),
        Pool("small", urls("small", 3), limit=5, served_model="opt"),
    )
    made = started(given, pooled())
    assert made.snapshot.policy.situation.pools == SERVED
    found = {place.pool.name: place for place in made.snapshot.places}
    assert {name: (place.index, place.model, place.limit) for name, place in found.items()} == {
        "large": (0, MODELS[2], 3),
        "small": (1, MODELS[0], 5),
        "far-small": (2, MODELS[0], 8),
    }
    assert found["small"].served_model == "opt"
    assert found["far-small"].served_model == MODELS[0]
    for i in range(3 + 3 * 5 + 2 * 8):
        made.claim(made.arrive(ASK, f"r{i}"))
    ticket = made.arrive(ASK, "one more")
    with pytest.raises(RefusedError, match="No server"):
        made.claim(ticket)
    sizes = made.snapshot.flight.batch_sizes
    for place in made.snapshot.places:
        assert sizes[place.row, place.index] == place.state.in_flight == place.limit


def test_an_answer_is_worth_what_its_pools_model_is() -> None:
    policy, clock = pooled(), Clock()
    records: list[Record] = []
    given = asked(Pool("far-small", urls("far", 2)), Pool("large", urls("large", 1)))
    made = Core(make_snapshot(given, policy, clock=clock, environment={}), clock=clock, log=records.append)
    for i in range(5):
        claim = made.claim(made.arrive(ASK, f"r{i}"))
        made.finished(claim, output_tokens=3)
        made.close(claim.ticket, "answered")
        made.claim(made.arrive(ASK, f"held{i}"))  # fills the better pool
    assert {record.pool for record in records} == {"large", "far-small"}
    table = policy.situation.profile.quality_table(("piqa",))[0]
    for record in records:
        assert record.quality == table[MODELS.index(record.model)]


def test_the_smallest_model_is_chosen_by_size_and_not_by_order() -> None:
    given = asked(Pool("large", urls("large", 1)), Pool("small", urls("small", 3)), when_late="smallest")
    made = started(given, pooled())
    ticket = made.arrive(dataclasses.replace(ASK, deadline_base_s=1e-4), "r")
    assert made.claim(ticket).place.pool.name == "small"


def test_replicas_are_as_many_as_there_are_addresses() -> None:
    made = started(asked(Pool("small", urls("small", 5)), Pool("far-small", urls("far", 1))), pooled())
    assert made.snapshot.policy.situation.fleet.replicas.tolist() == [1, 5, 1]
    # Of a cluster, too, whose models stay what they are called.
    made = started(config([urls("a", 3), urls("b", 1)]), greedy())
    fleet = made.snapshot.policy.situation.fleet
    assert fleet.names == MODELS
    assert fleet.replicas.tolist() == [3, 1, 2]
    assert fleet.layout.gpus == ((0, 1, 2), (0,), (0, 1))
    made = started(config([urls("a", 3), urls("b", 3)]), greedy())
    assert made.snapshot.policy.situation.cluster.replicas == 3


def test_replicas_beyond_those_of_stated_gpus_have_their_own() -> None:
    policy = pooled()
    stated = tuple(dataclasses.replace(pool, gpus=tuple(range(pool.replicas))) for pool in SERVED)
    situation = dataclasses.replace(policy.situation, pools=stated[:2])
    features = default_features(len(situation.tasks), 2, situation.fleet.replicas, 4, 50.0, ("own",))
    policy = Policy(situation, features, ((np.eye(2), np.zeros(2)),))
    made = started(asked(Pool("large", urls("large", 3)), Pool("small", urls("small", 2))), policy)
    assert made.snapshot.policy.situation.fleet.layout.gpus == ((0, 3, 4), (0, 1))


@pytest.mark.parametrize(
    ("policy", "pools", "sentence"),
    [
        ("pools", [Pool("medium", urls("m", 1))], "no pool of this name; its pools are large, small, far-small"),
        ("pools", [Pool("large", urls("m", 1), MODELS[0])], f"serves `{MODELS[2]}` in the policy, not `{MODELS[0]}`"),
        ("cluster", [Pool("gpt", urls("m", 1))], f"no model `gpt`; its models are {', '.join(MODELS)}"),
        (
            "cluster",
            [Pool("a", urls("a", 1), MODELS[0]), Pool("b", urls("b", 1), MODELS[0])],
            f"two of them serve `{MODELS[0]}`",
        ),
    ],
)
def test_pools_that_the_policy_does_not_know_are_refused(policy: str, pools: list[Pool], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        started(asked(*pools), pooled() if policy == "pools" else greedy())
    assert sentence in str(error.value)


def test_a_reload_moves_requests_to_pools_of_another_order() -> None:
    before = asked(Pool("small", urls("a", 2), MODELS[0]), Pool("medium", urls("b", 1), MODELS[1]))
    made = started(before, greedy())
    tickets = [made.arrive(ASK, f"r{i}") for i in range(12)]
    for ticket in tickets:
        made.claim(ticket)
    after = asked(Pool("small", urls("a", 2)[::-1]), Pool("large", urls("c", 1)))
    made.replace(make_snapshot(after, pooled(), clock=made.now, environment={}, earlier=made.snapshot))
    sizes = made.snapshot.flight.batch_sizes
    for place in made.snapshot.places:
        assert sizes[place.row, place.index] == place.state.in_flight
    assert sizes.sum() == sum(ticket.place.pool.name == "small" for ticket in tickets if ticket.place)
    for ticket in tickets:
        made.close(ticket, "answered")
    assert not made.snapshot.flight.batch_sizes.any()
