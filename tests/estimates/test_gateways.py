"""Several gateways: each knows its own requests as they are and those of the others late, alike in both simulators."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.gateways import gateway_of, unseen
from besteffort.situation import View
from tests.estimates.lists import apart, compiled, draw_rule, reference
from tests.estimates.test_agreement import KINDS, TOLERANCE, check_simulators, draw_lists
from tests.simulator.cases import Case

LISTS = 3
# Plain, with tokens that cost, with a limited cache and batch sizes that are read late besides, and not streamed.
EACH = [pytest.param(i, id=str(KINDS[i])) for i in (1, 7, 5, 11)]


def drawn(index: int, gateways: int, delay_s: float) -> list[Case]:
    return [through(case, gateways, delay_s) for case in draw_lists(index, LISTS)]


def through(case: Case, gateways: int, delay_s: float) -> Case:
    view = dataclasses.replace(case.situation.view, gateways=gateways, gateway_delay_s=delay_s)
    return dataclasses.replace(case, situation=dataclasses.replace(case.situation, view=view))


@pytest.mark.parametrize("index", EACH)
def test_both_simulators_show_a_gateway_the_same(index: int) -> None:
    """With rules, so that what is counted over all replicas counts; delays are exact in both grids of time."""
    cases = drawn(index, 3, 0.125)
    rules = [draw_rule(case, rates=1) for case in cases]
    seen = [reference(case, rule=rule) for case, rule in zip(cases, rules, strict=True)]
    check_simulators(seen, *compiled(cases, rules))
    for case, of_reference, rule in zip(cases, seen, rules, strict=True):
        assert of_reference.estimates is not None
        # Some of it is late.
        fresh = reference(through(case, 1, 0.0), rule=rule)
        if (fresh.models == of_reference.models).all():
            assert fresh.estimates is not None
            assert max(apart(fresh.estimates, of_reference.estimates).values()) > TOLERANCE


def test_requests_come_through_gateways_as_good_as_at_random() -> None:
    index = np.arange(40_000)
    for gateways in (1, 2, 3, 4, 7):
        mine = gateway_of(index, gateways)
        np.testing.assert_array_equal(mine, gateway_of(jnp.asarray(index), jnp.int32(gateways), jnp))
        share = np.bincount(mine, minlength=gateways) / len(index)
        # Of each gateway as many as there should be, and of those after one of its own, too: five standard errors.
        error = 5 * np.sqrt(1 / len(index))
        assert np.abs(share - 1 / gateways).max() < error
        assert abs((mine[1:] == mine[:-1]).mean() - 1 / gateways) < error


def test_what_others_sent_is_what_it_sent_times_the_others() -> None:
    recent = np.array([0.0, 8.0, 200.0])
    # Three others on four replicas, each of which got a quarter.
    expected = recent * 3 / 4
    found = unseen(recent, 4, 4)
    errors = np.sqrt((recent + 0.5) * (3 / 4) * (7 / 4))
    np.testing.assert_allclose(found, expected + 2 * errors)
    np.testing.assert_array_equal(unseen(recent, 1, 4), np.zeros(3))


def test_one_gateway_sees_no_one_late() -> None:
    assert not View(gateways=1, gateway_delay_s=0.1).others_are_late
    assert not View(gateways=2).others_are_late


@pytest.mark.parametrize("stated", [{"slowdown": (1.0, 1.5, 1.0)}, {"chunk_tokens": 512}])
def test_where_models_slow_each_other_down_or_read_in_chunks_it_is_refused(stated: dict[str, Any]) -> None:
    situation = load_situation("paper")
    models = situation.profile.models
    slow = (dataclasses.replace(models[0], **stated), *models[1:])
    profile = dataclasses.replace(situation.profile, models=slow)
    view = View(gateways=2, gateway_delay_s=0.1)
    with pytest.raises(InputError, match=r"slow each other down and prompts are read whole; set `view.gateways` to 1"):
        build(dataclasses.replace(situation, profile=profile, view=view), None, history=1)
