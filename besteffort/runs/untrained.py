"""A policy that needs no training: a rule whose numbers were found once, on a wide set of random situations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from besteffort.bounds.gears import price_plan
from besteffort.estimates.rule import UNTRAINED, Rule
from besteffort.observation import VALUE, default_features
from besteffort.policy import Policy
from besteffort.situation import Situation


def default_policy(situation: Situation) -> Policy:
    """A policy for any situation, without training: `besteffort.estimates.rule` with numbers that fit most.

    Its prices follow from the situation, its numbers are those of `UNTRAINED`.
    """
    return rule_policy(situation, rule_for(situation), {"method": "none"})


def rule_for(situation: Situation, numbers: Mapping[str, float] = UNTRAINED) -> Rule:
    """The rule with these numbers and the prices of a situation."""
    plan = price_plan(situation)
    return Rule(**numbers, rates=np.array(plan["rates"]), prices=np.array(plan["prices"]))


def rule_policy(situation: Situation, rule: Rule, about: Mapping[str, Any]) -> Policy:
    """A policy that decides by a rule: its network passes values on.

    Args:
      situation: what it is for.
      rule: values the models.
      about: what the policy's file says of the training, plain JSON.
    """
    pools = len(situation.fleet.pools)
    view = dataclasses.replace(situation.view, features=(VALUE,))
    return Policy(
        situation=dataclasses.replace(situation, view=view),
        features=default_features(len(situation.tasks), pools, 1, 1, 1.0, names=(VALUE,)),
        weights=((np.eye(pools, dtype=np.float32), np.zeros(pools, np.float32)),),
        training=about,
        rule=rule,
    )
