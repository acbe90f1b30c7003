"""Wrong beliefs: models that are not as fast as their tables say, and gateways that see each other's requests late.

    python -m experiments.wrong_beliefs [--fast]

Under the default bursts, with two policies that a gateway would have: the rule as it comes (`untrained`), and rules
found by three searches where everything is as believed, which take the lists in turns (`search`). All of them assume
the same tables.

- Models are slower or faster than these say: all by 30%, single ones by 40%. The policy as it is, without and with the
  comparison of observed times (`view.slowdown_tau_s`), against the same policy given the true tables.
- Requests come through four gateways at random, and each sees those of the others 0.1 or 0.2 s late, against the same
  policy where it sees all as they are. There, rules are found by two searches where others are 0.1 s late.

Rivals have the same wrong tables and late views, in both forms; those that see also with the comparison. Where requests
are seen 0.2 s late they are tuned again. All tuning is on other lists than the five that are judged. Parts that are
done are not done again after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from besteffort.evaluation import metrics
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import EvaluationSet, burst_set
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import Rollout, play_rollouts
from besteffort.evaluation.statistics import Interval, best_mean, mean_interval, paired_difference
from besteffort.evaluation.tuning import heuristic_routers, tune
from besteffort.files import write_text
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import Settings
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.untrained import default_policy, rule_for
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from experiments import rivals
from experiments.lab import Claim, Findings, Lab, main, status_of
from experiments.random_situations import slower

Performance = dict[str, dict[str, np.ndarray]]
"""By world and router, on each list."""

POLICIES = ("untrained", "search")
TAU_S = 2.0
GATEWAYS = 4
DELAYS_S = (0.1, 0.2)
FACTORS: Mapping[str, tuple[float, ...]] = {
    "all models 30% slower": (1.3, 1.3, 1.3),
    "smallest model 40% slower": (1.4, 1.0, 1.0),
    "middle model 40% slower": (1.0, 1.4, 1.0),
    "largest model 40% slower": (1.0, 1.0, 1.4),
    "smallest model 40% faster": (0.6, 1.0, 1.0),
    "middle model 40% faster": (1.0, 0.6, 1.0),
    "largest model 40% faster": (1.0, 1.0, 0.6),
}
AS_KNOWN = "everything as known"
BLIND, COMPARING, TOLD = "blind", "comparing", "told"
_NOT_BEHIND = -0.002
_LATE = "late"
_SEARCHES, _LATE_SEARCHES = 3, 2  # policies, which take the lists in turns
_REQUESTS, _TUNING_REQUESTS = 10_000, 6_000  # late views cost time
_LEFT_OUT = ("marginal", "random", "deadline", "deadline-ahead")  # the last two are others without their reserve


def run(lab: Lab) -> Findings:
    """Judges policies and rivals in all worlds."""
    how = rivals.judging(lab)
    setting = rivals.settings(lab, how)["bursts"]
    judged = burst_set(setting.situation, dataclasses.replace(how, requests=min(how.requests, _REQUESTS)))
    policies = _policies(lab, judged.situation, setting.workload, _SEARCHES)

    def tables() -> Performance:
        lab.log("judging where tables are wrong")
        return _on_wrong_tables(judged, policies, rivals.judged(lab, "bursts", setting.make(), how)["tuned"])

    def late(delay_s: float) -> Performance:
        seen = through_gateways(judged.situation, delay_s)
        tuned = _tuned(lab, judged, seen, how) if delay_s == DELAYS_S[-1] else None
        found = _policies(lab, through_gateways(judged.situation, DELAYS_S[0]), setting.workload, _LATE_SEARCHES)
        named = {"untrained": policies["untrained"], "search": found["search"], "search as known": policies["search"]}
        lab.log(f"judging, {_late_name(delay_s)}")
        return _where_late(judged, seen, named, tuned)

    performance = dict(_kept(lab, "tables", tables))
    for delay_s in DELAYS_S:
        found = _kept(lab, f"late-{delay_s:g}", partial(late, delay_s))
        performance[_late_name(delay_s)] = found[_LATE]
    return _findings(performance)


def _policies(lab: Lab, situation: Situation, workload: Any, searches: int) -> dict[str, list[Policy]]:
    """The rule as it comes, and those that searches find in a situation."""
    seeds = min(searches, lab.scale.seeds)
    training = TrainingConfig(method="search", seed=lab.scale.seed * lab.scale.seeds, seeds=seeds, workload=workload)
    return {"untrained": [default_policy(situation)], "search": lab.train(situation, training, name="bursts")}


def _kept(lab: Lab, part: str, make: Callable[[], Performance]) -> dict[str, dict[str, np.ndarray]]:
    """Performance on each list, by world and router, found again where it was done before."""
    place = lab.work / "wrong_beliefs" / f"{lab.amount}-{part}.json"
    if not place.exists():
        plain = {world: {name: values.tolist() for name, values in each.items()} for world, each in make().items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(plain))
    known = json.loads(place.read_text(encoding="utf-8"))
    return {world: {name: np.array(values) for name, values in each.items()} for world, each in known.items()}


def comparing(situation: Situation) -> Situation:
    """The situation with times compared to the tables."""
    return dataclasses.replace(situation, view=dataclasses.replace(situation.view, slowdown_tau_s=TAU_S))


def through_gateways(situation: Situation, delay_s: float) -> Situation:
    """The situation with several gateways."""
    view = dataclasses.replace(situation.view, gateways=GATEWAYS, gateway_delay_s=delay_s)
    return dataclasses.replace(situation, view=view)


def _late_name(delay_s: float) -> str:
    return f"{GATEWAYS} gateways, others {delay_s:g} s late"


def _tuned(lab: Lab, judged: EvaluationSet, seen: Situation, how: EvaluationConfig) -> dict[str, Settings]:
    """Settings of the rivals where others are seen late, found again where that was done before."""
    place = lab.work / "wrong_beliefs" / f"{lab.amount}-{seen.view.gateway_delay_s:g}.json"
    if not place.exists():
        lab.log("tuning rivals")
        lists = [requests.part(slice(_TUNING_REQUESTS), 0.0) for requests in judged.tuning[:1]]
        (settings,) = tune(seen, [lists], how, warm_up_s=judged.warm_up_s)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(settings))
    known: dict[str, Settings] = json.loads(place.read_text(encoding="utf-8"))
    return known


def _given(policy: Policy, actual: Situation) -> Router:
    """The router of a policy that is told the truth: the same numbers, with prices of the true tables."""
    assert policy.rule is not None
    true = rule_for(actual)
    rule = dataclasses.replace(policy.rule, rates=true.rates, prices=true.prices)
    return learned_router(dataclasses.replace(policy, rule=rule))


def _rules(situation: Situation, tuned: dict[str, Settings]) -> dict[str, list[Router]]:
    """The rivals that are worth playing."""
    every = heuristic_routers(situation, tuned, 1)
    return {name: each for name, each in every.items() if name not in _LEFT_OUT and not name.startswith("always ")}


def _on_wrong_tables(
    judged: EvaluationSet, policies: Mapping[str, Sequence[Policy]], tuned: dict[str, Settings]
) -> Performance:
    """Policies and rivals in every world, blind, comparing, and the policies told the truth."""
    believed = judged.situation
    trials = []
    own = {name: [learned_router(policy) for policy in each] for name, each in policies.items()}
    worlds = {AS_KNOWN: believed} | {
        name: dataclasses.replace(believed, profile=slower(believed.profile, np.array(factors)))
        for name, factors in FACTORS.items()
    }
    for world, actual in worlds.items():
        for how, seen in ((BLIND, actual), (COMPARING, comparing(actual))):
            trials += [Trial(world, f"{name}, {how}", "policy", each, seen, believed) for name, each in own.items()]
            trials += [
                Trial(world, f"{name}, {how}", name, each, seen, believed)
                for name, each in _rules(believed, tuned).items()
                # Only those that read the requests in flight see the comparison.
                if how == BLIND or name in rivals.SEEING
            ]
        for name, policy in policies.items():
            given = [_given(one, actual) for one in policy]
            trials.append(Trial(world, f"{name}, {TOLD}", "policy", given, actual, actual))
    return _play(judged, trials)


def _where_late(
    judged: EvaluationSet,
    seen: Situation,
    policies: Mapping[str, Sequence[Policy]],
    tuned: dict[str, Settings] | None,
) -> Performance:
    """Policies, and rivals where they are tuned, in a situation with several gateways."""
    trials = [
        Trial(_LATE, name, "policy", [learned_router(policy) for policy in each], seen, seen)
        for name, each in policies.items()
    ]
    if tuned is not None:
        trials += [Trial(_LATE, name, name, each, seen, seen) for name, each in _rules(seen, tuned).items()]
    return _play(judged, trials)


class Trial(NamedTuple):
    """Routers of one kind, which take the lists in turns, in one world."""

    world: str
    name: str
    kind: str
    routers: Sequence[Router]
    actual: Situation
    assumed: Situation


def _play(judged: EvaluationSet, trials: Sequence[Trial]) -> Performance:
    """Performance on each list, by world and router."""
    lists = judged.judged[0]
    rollouts, trial_of = [], []
    for one in trials:
        for row in range(len(lists)):
            router = one.routers[row % len(one.routers)]
            rollouts.append(Rollout(one.kind, row, router, one.actual, one.assumed))
            trial_of.append(one)
    found: dict[str, dict[str, np.ndarray]] = {}
    for indices, result in play_rollouts(judged.situation, lists, rollouts):
        values = metrics.performance(result, warm_up_s=judged.warm_up_s)
        for index, value in zip(indices.tolist(), values, strict=True):
            trial = trial_of[index]
            of_world = found.setdefault(trial.world, {})
            of_world.setdefault(trial.name, np.full(len(lists), np.nan))[rollouts[index].row] = value
    return found


def _findings(performance: Performance) -> Findings:
    rows: dict[str, dict[str, Any]] = {}
    for world, each in performance.items():
        late = world.startswith(f"{GATEWAYS} gateways")
        others = [name for name in each if name.partition(",")[0] not in (*POLICIES, "search as known")]
        blind = [name for name in others if not name.endswith(COMPARING)]
        best = best_mean(each, blind) if blind else ""
        row: dict[str, Any] = {"best": best.partition(",")[0], "rival": mean_interval(each[best])} if best else {}
        for name in POLICIES:
            now = each[name if late else f"{name}, {COMPARING}"]
            ideal = performance[AS_KNOWN][f"{name}, {BLIND}"] if late else each[f"{name}, {TOLD}"]
            row |= {
                name: mean_interval(now),
                f"{name}, to itself": paired_difference(now, ideal),
            }
            if best:
                row[f"{name}, ahead"] = paired_difference(now, each[best])
            if not late:
                row[f"{name}, gained"] = paired_difference(now, each[f"{name}, {BLIND}"])
                row[f"{name}, ahead of all"] = paired_difference(now, each[best_mean(each, others)])
        rows[world] = row
    singles = [world for world in FACTORS if not world.startswith("all ")]
    claims = [
        *(_lost(rows, name, "all models 30% slower", 0.01, "given the true tables") for name in POLICIES),
        *(_ahead(rows, name, singles, "single models 40% slower or faster than believed") for name in POLICIES),
        *(_lost(rows, name, _late_name(0.1), 0.005, "where it sees all requests as they are") for name in POLICIES),
        *(_ahead(rows, name, [_late_name(0.2)], _late_name(0.2)) for name in POLICIES),
    ]
    columns = {
        "": "{} (%)",
        ", gained": "gained by comparing (points)",
        ", to itself": "to itself knowing better (points)",
        ", ahead": "ahead of the best rule (points)",
        ", ahead of all": "ahead if rules compare, too (points)",
    }
    table = Table(
        title="Where models are not as fast as believed, and where other gateways are seen late",
        head="With",
        columns=(
            Column("Best rule (%)", digits=2),
            Column("Best rule", "text"),
            *(
                Column(text.format(name) if not key else f"{name}, {text}", "points" if key else "percent", 2)
                for name in POLICIES
                for key, text in columns.items()
            ),
        ),
        rows=tuple(
            (
                world,
                (
                    row.get("rival"),
                    row.get("best", "-"),
                    *(row.get(f"{name}{key}") for name in POLICIES for key in columns),
                ),
            )
            for world, row in rows.items()
        ),
        note=(
            "Mean ± half the 95% interval, paired over lists. Policies compare observed times with their tables. To "
            "know better is to be given the true tables, or to see all requests as they are. The best rule is the best "
            "in hindsight with the same tables and views. Where others are late, `search` was found with 0.1 s."
        ),
    )
    data = {
        "performance": {
            world: {name: values.tolist() for name, values in each.items()} for world, each in performance.items()
        },
        "compared": rows,
    }
    return Findings(data, claims, [table])


def _lost(rows: Mapping[str, dict[str, Any]], name: str, world: str, most: float, than: str) -> Claim:
    lost: Interval = rows[world][f"{name}, to itself"]
    text = f"{points(float(lost.mean), 2)} points against the same policy {than}"
    kept = "holds" if -lost.low <= most else "holds in part" if -lost.mean <= most else "does not hold"
    return Claim(f"{name}, {world}: at most {100 * most:g} point(s) lost", "", text, status=kept)  # type: ignore[arg-type]


def _ahead(rows: Mapping[str, dict[str, Any]], name: str, worlds: Sequence[str], what: str) -> Claim:
    ahead: dict[str, Interval] = {world: rows[world][f"{name}, ahead"] for world in worlds}
    held = sum(bool(one.low >= _NOT_BEHIND) for one in ahead.values())
    worst = min(ahead, key=lambda world: float(ahead[world].mean))
    text = (
        f"not behind the best rule with the same tables and views in {held} of {len(worlds)}; at worst "
        f"{points(float(ahead[worst].mean), 2)} points ({worst})"
    )
    return Claim(f"{name}, {what}: not behind the best rule", "", text, status=status_of(held, len(worlds)))


if __name__ == "__main__":
    main(run, __file__)
