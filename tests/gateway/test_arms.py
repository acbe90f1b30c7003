"""Policies beside the one that decides: a shadow that is not followed, and a canary that decides a share."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.gateway.config import Canary, GatewayConfig, Shadow
from besteffort.gateway.core import Ask, Core, Record
from besteffort.gateway.metrics import Metrics
from besteffort.gateway.snapshot import Snapshot, make_snapshot
from besteffort.policy import Policy, save_policy
from tests.gateway.backends import answer, backend, run, running
from tests.gateway.policies import Clock, config, contrary, greedy
from tests.gateway.test_serve import write

ASK = Ask(task="piqa", characters=400)
SHADOW, CANARY = Shadow("other.safetensors"), Canary(0.25, "other.safetensors")


def snapshot(
    given: GatewayConfig, other: Policy | None = None, main: Policy | None = None, **others: object
) -> Snapshot:
    other = contrary() if other is None else other
    canary, shadow = (None if stated is None else other for stated in (given.canary, given.shadow))
    main = greedy() if main is None else main
    return make_snapshot(given, main, canary=canary, shadow=shadow, environment={}, **others)


def core(**stated: object) -> tuple[Core, Clock, list[Record]]:
    clock, records = Clock(), []
    made = Core(snapshot(config(**stated), clock=clock), clock=clock, log=records.append)
    return made, clock, records


def value(made: Metrics, name: str) -> float:
    """Of a series that is written so in `/metrics`; 0 if it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", made.text()[0].decode(), re.M)
    return float(found[1]) if found else 0.0


def test_a_shadow_changes_no_decision_and_no_live_figure() -> None:
    texts = []
    for stated in ({}, {"shadow": SHADOW}):
        made, clock, records = core(**stated)
        metrics, chosen = Metrics(made), []
        for i in range(40):
            clock.now += 0.01
            ticket = made.arrive(ASK, f"r{i}")
            claim = made.claim(ticket)
            metrics.decided(claim, 0.001 + ticket.shadow_s)
            chosen.append(claim.place.url)
            if i % 3:
                made.token(claim, 5)
                made.finished(claim)
                made.close(ticket, "answered")
                metrics.record(records[-1])
        apart = ("shadow", "_created", "decision_seconds_sum")  # the last is rounded otherwise
        lines = metrics.text()[0].decode().splitlines()
        texts.append((chosen, [line for line in lines if not any(word in line for word in apart)]))
    assert texts[0] == texts[1]


def test_a_shadow_decides_on_what_the_policy_saw() -> None:
    """A shadow that is the policy itself never disagrees, however full it is and whatever fails."""
    given = config(shadow=SHADOW)
    made = Core(snapshot(given, greedy()))
    tickets = [made.arrive(ASK, f"r{i}") for i in range(18)]
    for i, ticket in enumerate(tickets):
        claim = made.claim(ticket)
        assert ticket.shadow_pool == claim.place.pool.name
        if i % 4 == 3:
            made.failed(claim, "reset", blame=False)
            made.claim(ticket)
        if i % 4 == 2:
            made.token(claim, 3)
            made.finished(claim)
    assert len({ticket.shadow_pool for ticket in tickets}) == 2
    shadow = made.snapshot.shadow
    assert shadow is not None
    assert (shadow.flight.batch_sizes == made.snapshot.flight.batch_sizes).all()


def test_disagreement_is_counted_by_task_and_pools_and_is_in_the_log() -> None:
    made, _, records = core(shadow=SHADOW)
    metrics = Metrics(made)
    for i, task in enumerate(["piqa"] * 3 + ["arc_easy"]):
        ticket = made.arrive(dataclasses.replace(ASK, task=task), f"r{i}")
        metrics.decided(made.claim(ticket), 0.001)
        made.close(ticket, "cancelled")
    assert {(record.pool, record.shadow_pool, record.arm) for record in records} == {("pool-1", "pool-0", "policy")}
    for task, count in (("piqa", 3), ("arc_easy", 1)):
        assert value(metrics, f'besteffort_shadow_decisions_total{{task="{task}"}}') == count
        labels = f'pool="pool-1",shadow_pool="pool-0",task="{task}"'
        assert value(metrics, f"besteffort_shadow_disagreements_total{{{labels}}}") == count


def test_a_canary_decides_its_share_and_both_share_counts() -> None:
    made, _, records = core(canary=CANARY)
    arms: Counter[str] = Counter()
    for i in range(2000):
        ticket = made.arrive(ASK, f"r{i}")
        claim = made.claim(ticket)
        arms[ticket.arm.name] += 1
        assert claim.place.pool.name == {"policy": "pool-1", "canary": "pool-0"}[ticket.arm.name]
        for arm in made.snapshot.arms:
            assert arm.flight.batch_sizes.sum() == 1
            assert arm.flight.arrival_rate() > 0
        made.close(ticket, "cancelled")
    # Four standard deviations of a binomial.
    assert abs(arms["canary"] / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert Counter(record.arm for record in records) == arms
    metrics = Metrics(made)
    for record in records:
        metrics.record(record)
    labels = 'arm="canary",outcome="cancelled",task="piqa"'
    assert value(metrics, f"besteffort_arm_requests_total{{{labels}}}") == arms["canary"]


def test_a_request_stays_in_its_arm_as_the_share_grows() -> None:
    names = [f"r{i}" for i in range(500)]
    before: set[str] = set()
    for share in (0.0, 0.1, 0.5, 1.0):
        made = snapshot(config(canary=dataclasses.replace(CANARY, share=share)))
        inside = {name for name in names if made.arm_for(name).name == "canary"}
        assert before <= inside
        before = inside
    assert before == set(names)


def test_places_of_a_canary_with_pools_in_another_order_are_the_same() -> None:
    """What an arm calls a replica is its own affair."""
    policy = contrary()
    fleet = policy.situation.fleet
    turned = dataclasses.replace(policy.situation, cluster=type(policy.situation.cluster)(), pools=fleet.pools[::-1])
    given = config(
        [["http://a/v1", "http://b/v1"], ["http://c/v1"]],
        canary=dataclasses.replace(CANARY, share=1.0),
        pools=tuple(
            dataclasses.replace(pool, name=str(pool.model))
            for pool in config([["http://a/v1", "http://b/v1"], ["http://c/v1"]]).pools
        ),
    )
    made = Core(snapshot(given, dataclasses.replace(policy, situation=turned)))
    claims = [made.claim(made.arrive(ASK, f"r{i}")) for i in range(3)]
    assert [claim.place.url for claim in claims] == ["http://a/v1", "http://b/v1", "http://a/v1"]
    canary = made.snapshot.canary
    assert canary is not None
    assert canary.flight.batch_sizes.sum() == 3
    for place in canary.places:
        main = made.snapshot.places.same(place)
        assert main is not None
        assert main.url == place.url
        assert canary.flight.batch_sizes[place.row, place.index] == place.state.in_flight
        assert made.snapshot.flight.batch_sizes[main.row, main.index] == place.state.in_flight


def test_a_policy_without_a_task_is_refused() -> None:
    policy = contrary()
    tasks = policy.situation.tasks[1:]
    lacks = dataclasses.replace(policy, situation=dataclasses.replace(policy.situation, tasks=tasks))
    with pytest.raises(InputError, match=r"`canary`: its policy lacks the task `piqa`"):
        snapshot(config(canary=CANARY), lacks)
    for make in (Shadow, lambda: Canary(0.5), lambda: Shadow("a", "b")):
        with pytest.raises(InputError, match=r"give one of `policy`"):
            make()


def test_a_reload_moves_the_share(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _), backend(answer) as (other, _):
            save_policy(contrary(), tmp_path / "other.safetensors")
            pools = [
                {"name": f"pool-{i}", "model": greedy().models[i], "urls": [each], "assemble": False}
                for i, each in enumerate((url, other))
            ]
            async with running(tmp_path, [[url], [other]]) as found:
                policies = []
                for share in (0.0, 1.0, 0.5):
                    canary = {"policy": "other.safetensors", "share": share}
                    write(tmp_path, url, pools=pools, canary=canary, shadow={"policy": "other.safetensors"})
                    await found.gateway.tick()
                    found.records.clear()
                    for i in range(6):
                        assert (await found.post(headers={"x-request-id": f"r{i}"}))[0] == 200
                    decided = {(record.arm, record.model) for record in found.records}
                    here = {0.0: {("policy", greedy().models[1])}, 1.0: {("canary", greedy().models[0])}}
                    assert decided == here.get(share, here[0.0] | here[1.0])
                    policies.append(found.gateway.core.snapshot.arms[1].policy.weights[0][0])
                    assert found.gateway.core.snapshot.number == len(policies)
                # The file has not changed, so it was read once, and its arrays are the same.
                assert policies[0] is policies[1] is policies[2]
                save_policy(greedy(), tmp_path / "other.safetensors")
                await found.gateway.tick()
                assert found.gateway.core.snapshot.number == len(policies) + 1
                assert found.counts() == 0

    run(scenario())
