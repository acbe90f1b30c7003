"""Estimates where tenants count differently: compiled, by the reference, and live from events, they are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.estimates.estimates import Estimates
from besteffort.in_flight import InFlight
from besteffort.situation import Cluster, Deadline, Situation, Task, Tenant
from tests.estimates.lists import apart, compiled, draw_rule, reference
from tests.estimates.test_agreement import KINDS, check_agreement, check_simulators, draw_lists
from tests.estimates.test_pools import KINDS as POOL_KINDS
from tests.estimates.test_pools import draw_pool_list
from tests.simulator.cases import Case, make_profile, with_tenants

LISTS = 2


def check(cases: Sequence[Case]) -> None:
    """All three agree, with the values of rules, and not on what they would say without tenants."""
    rules = [draw_rule(case, rates=1) for case in cases]
    seen = [reference(case, live=True, rule=rule) for case, rule in zip(cases, rules, strict=True)]
    check_agreement(seen, *compiled(cases, rules))
    differ = 0
    for case, one, rule in zip(cases, seen, rules, strict=True):
        alike = dataclasses.replace(case.situation, tenants=())
        requests = dataclasses.replace(case.requests, tenant=None, tenants=())
        plain = reference(dataclasses.replace(case, situation=alike, requests=requests), rule=rule)
        assert one.estimates is not None
        assert plain.estimates is not None
        np.testing.assert_array_equal(one.models, plain.models)
        differences = apart(one.estimates, plain.estimates)
        assert differences["own"] > 0.01
        differ += differences["harm"] > 1e-6
        assert all(differences[name] == 0 for name in ("work", "load", "first_token_s", "completion_s"))
    assert differ


# Streamed with nothing else, and not streamed with a limited cache.
@pytest.mark.parametrize("index", [pytest.param(i, id=str(KINDS[i])) for i in (1, 12)])
def test_all_three_agree_at_every_decision(index: int) -> None:
    check([with_tenants(case) for case in draw_lists(index, LISTS)])


@pytest.mark.optimised
def test_pools_that_slow_each_other_down_agree_too() -> None:
    check([with_tenants(draw_pool_list(POOL_KINDS[4], 20 + k)) for k in range(LISTS)])


def test_what_a_gateway_sees_late_agrees_too() -> None:
    """Live book-keeping is of one gateway, so this compares the compiled simulator with the reference."""
    cases = [with_tenants(draw_pool_list(POOL_KINDS[0], k, gateways=3, gateway_delay_s=0.25)) for k in range(LISTS)]
    check_simulators([reference(case) for case in cases], *compiled(cases))


SITUATION = Situation(
    make_profile(np.full((1, 4), 0.5), np.full((1, 8), 1.0)),
    Cluster(1, 4, 4),
    (Task("task0", prompt_tokens=(1, 8), output_tokens=(4, 4), deadline=Deadline(4.2, 0.0)),),
    tenants=(Tenant("gold", 3.0), Tenant("lead", 1.0)),
)


def estimated(in_flight: str | None, newcomer: str | None, situation: Situation = SITUATION) -> Estimates:
    """Of a request that comes when another one has its first token."""
    flight = InFlight(situation)
    flight.arrived("there", task="task0", prompt_tokens=1, tenant=in_flight, at=0.0)
    flight.sent("there", 0, at=0.0)
    flight.tokens("there", at=1.5)
    flight.arrived("new", task="task0", prompt_tokens=1, tenant=newcomer, at=1.5)
    return flight.estimates("new", at=1.5)


def test_own_counts_the_newcomers_weight_and_harm_that_of_who_is_harmed() -> None:
    plain = estimated(None, None, dataclasses.replace(SITUATION, tenants=()))
    assert plain.own[0] > 0.1
    assert plain.harm[0] > 0.1
    weight = {"gold": 1.5, "lead": 0.5, None: 1.0}
    for there, its in weight.items():
        for new, own in weight.items():
            found = estimated(there, new)
            np.testing.assert_allclose(found.own, own * plain.own, rtol=1e-12)
            np.testing.assert_allclose(found.harm, its * plain.harm, rtol=1e-12)
            np.testing.assert_array_equal(found.completion_s, plain.completion_s)


def test_books_keep_tenants_when_requests_return_or_policies_change() -> None:
    flight = InFlight(SITUATION)
    flight.arrived("there", task="task0", prompt_tokens=1, tenant="gold", at=0.0)
    flight.sent("there", 0, at=0.0)
    flight.returned("there", at=0.5)
    assert flight.observation("there", at=0.5).tenant_weight == 1.5
    flight.sent("there", 0, at=0.5)
    # Of other books, in which the names stand in another order and one is missing.
    turned = dataclasses.replace(SITUATION, tenants=(Tenant("tin", 1.0), Tenant("gold", 5.0)))
    later = InFlight(turned)
    later.take_over(flight, {("model0", 0): ("model0", 0)})
    later.arrived("new", task="task0", prompt_tokens=1, at=1.0)
    view = later.observation("new", at=1.0).in_flight
    assert view.tenant_weight[0][view.present[0]].tolist() == [pytest.approx(5 / 3)]
    assert later.observation("new", at=1.0).tenant_weight == 1.0
    with pytest.raises(InputError, match="unknown tenant `lead`; choose from tin, gold"):
        later.arrived("other", task="task0", prompt_tokens=1, tenant="lead")
    nobody = InFlight(dataclasses.replace(SITUATION, tenants=()))
    with pytest.raises(InputError, match="unknown tenant `lead`; choose from none"):
        nobody.arrived("other", task="task0", prompt_tokens=1, tenant="lead")
