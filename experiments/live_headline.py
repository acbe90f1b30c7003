"""The headline, live: right answers in time from the real engine behind the gateway's core, next to the prediction.

    python -m experiments.live_headline [--fast]

Three small trained models answer tasks whose answers are known, so quality is counted, not assumed: the share of
requests whose answer was right to the last token and came in time. The core of `besteffort serve` decides for each, and
the engine computes every token, in virtual time (`besteffort.opt.virtual`): bursts, and steady loads from half of what
the largest model sustains to four times that. Contenders are each model alone, the best of five rules that are tuned on
other lists, and the policies: untrained, found by a search, and networks that add to what was found. Each of the
repetitions has lists of its own, which all contenders play in random order; differences are paired. The simulator
predicts the same lists from the tables that were measured beforehand and the models' shares of right answers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import percent, points
from besteffort.evaluation.metrics import after_warm_up, performance
from besteffort.evaluation.plots import Panel
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import Interval, mean_interval, paired_difference
from besteffort.evaluation.tuning import maker, tune
from besteffort.laptop.requests import CaseList
from besteffort.opt.virtual import VirtualEngine
from besteffort.profiling.measure import Sampler
from besteffort.runs.untrained import default_policy
from besteffort.situation import Situation
from besteffort.workload.config import Poisson, Steps, Synthetic
from experiments import live
from experiments.lab import Claim, Findings, Lab, fingerprint, main, status_of
from experiments.live import Contender

BURSTS = "bursts"
SETTINGS: Mapping[str, Synthetic] = {
    BURSTS: Steps(loads=(0.5, 4.0), starts_s=(0.0, 0.12), period_s=0.18, random_start=True),
    **{f"load {load:g}": Poisson(load=load) for load in (0.5, 1.0, 2.0, 4.0)},
}
RULES = ("ladder", "deadline-reserve", "priced", "deadline-reserve-ahead", "priced-ahead")
"""Those of the rules that are tuned which did best elsewhere, see `experiments/rivals.py`."""
OURS = "search"
LEARNED = ("untrained", "search", "dqn")
AIM = 0.02
_WARM_UP_S = 0.5  # for the estimate of the rate
_SECONDS = 2.0  # that a list lasts
_TUNING_REQUESTS = 1500  # lists to tune on are of one length
_SEED = 50_000  # of lists that are played; those that rules are tuned on have the one before

Shares = dict[str, dict[str, list[float]]]
"""By setting and contender a share of each repetition."""


def run(lab: Lab) -> Findings:
    """Plays and simulates all lists with all contenders."""
    repetitions = lab.scale.seeds
    engine, sampler, situation = live.prepare(lab, every=6)
    name, rule = _best_rule(lab, situation)
    contenders = live.static_contenders(situation)
    contenders |= {name: rule, "untrained": Contender(default_policy(situation)), **live.trained(lab, situation)}
    settings = lab.selected(dict(SETTINGS), fast=[BURSTS, "load 2"])
    names = ("right and in time", "predicted", "in time", "predicted in time", "rejected")
    found: dict[str, Shares] = {what: {each: {} for each in settings} for what in names}
    left, paces, cells = 0, [], list(itertools.product(settings, contenders))
    rng = np.random.default_rng(lab.scale.seed)
    before = live.raw_pace(sampler, 3)
    for repetition in range(repetitions):
        seed = _SEED + lab.scale.seed * repetitions + repetition
        lists = _lists(situation, list(settings), seed)
        lab.log(f"playing, {repetition + 1} of {repetitions}")
        for index in rng.permutation(len(cells)).tolist():
            setting, contender = cells[index]
            kept = live.keep(
                lab,
                f"{setting} {contender}",
                contenders[contender],
                lists[setting],
                functools.partial(_play, engine, sampler, contenders[contender], lists[setting], situation),
                situation=fingerprint(situation),
                warm_up_s=_WARM_UP_S,
            )
            left += kept["left"]
            paces.append(kept["pace"])
            for what, share in zip(names, kept["shares"], strict=True):
                found[what][setting].setdefault(contender, []).append(share)
    after = live.raw_pace(sampler, 3)
    for by_setting in found.values():
        by_setting["all"] = {
            each: np.mean([by_setting[setting][each] for setting in settings], axis=0).tolist() for each in contenders
        }
    return _findings(found, tuple(contenders), name, left, {"paces": paces, "before": before, "after": after})


def _lists(situation: Situation, settings: Sequence[str], seed: int) -> dict[str, CaseList]:
    """Of each setting a list that lasts about `_SECONDS`."""
    found = {}
    for name in settings:
        workload = SETTINGS[name]
        requests = math.ceil(_SECONDS * float(workload.process(situation.unit_load).mean_rate()))
        found[name] = live.listed(workload, situation, requests, seed)
    return found


def _play(
    engine: VirtualEngine, sampler: Sampler, contender: Contender, listed: CaseList, situation: Situation
) -> dict[str, Any]:
    """Shares of a list, live and predicted, in the order of the names in `run`."""
    played = live.play(engine, contender, listed, situation)
    counted = after_warm_up(played.result.arrival_s, _WARM_UP_S)
    met, rejected = played.result.met[counted].mean(), played.result.rejected[counted].mean()
    right = live.right_and_in_time(played.result, played.right, counted)
    model = live.simulated(contender, listed, situation)
    expected = live.expected_right(situation, model, counted)
    shares = [right, expected, float(met), float(model.met[counted].mean()), float(rejected)]
    return {"shares": shares, "left": played.left, "pace": live.pace(sampler)}


def _best_rule(lab: Lab, situation: Situation) -> tuple[str, Contender]:
    """The rule that does best, over all settings, on the lists that rules are tuned on."""
    place = lab.work / "live" / f"{lab.scale.name}-{lab.scale.seed}-rules.json"
    lists = [
        live.listed(workload, situation, _TUNING_REQUESTS, _SEED - 1 - lab.scale.seed).requests
        for workload in SETTINGS.values()
    ]
    how = EvaluationConfig(tuning_generations=4, tuning_population=8)
    lab.log("tuning rules")
    (tuned,) = tune(situation, [lists], how, warm_up_s=_WARM_UP_S, names=RULES, kept=place)
    make = maker(situation)
    rules = {name: [make(name, **tuned[name])] * len(lists) for name in RULES}
    score = {
        name: float(performance(result, warm_up_s=_WARM_UP_S).mean())
        for name, result in play_routers(situation, lists, rules).items()
    }
    best = max(score, key=score.__getitem__)
    lab.log(f"the best rule is {best}, {score[best]:.1%}")
    return best, Contender(default_policy(situation), rule=rules[best][0])


def _findings(
    found: dict[str, Shares], contenders: tuple[str, ...], rule: str, left: int, machine: dict[str, Any]
) -> Findings:
    live_shares, predicted = found["right and in time"], found["predicted"]
    static = [name for name in contenders if name.startswith("always ")]
    ahead = {
        setting: {
            other: paired_difference(np.array(each[OURS]), np.array(each[other]))
            for other in contenders
            if other != OURS
        }
        for setting, each in live_shares.items()
    }
    apart = {
        setting: {
            name: paired_difference(np.array(each[name]), np.array(predicted[setting][name])) for name in contenders
        }
        for setting, each in live_shares.items()
    }
    over = {name: mean_interval(np.array(values)) for name, values in live_shares["all"].items()}
    best = max(static, key=lambda name: float(over[name].mean))
    whole = {name: np.array(values) for name, values in live_shares["all"].items()}
    beyond_rule = {name: paired_difference(whole[name], whole[rule]) for name in LEARNED}
    clear = sum(float(ahead["all"][name].low) > 0 for name in static)
    near = [abs(float(apart["all"][name].mean)) <= AIM for name in contenders]
    worst = max(contenders, key=lambda name: abs(float(apart["all"][name].mean)))
    data = {
        "shares": found,
        "ahead": {setting: {name: each.jsonable() for name, each in row.items()} for setting, row in ahead.items()},
        "live_less_predicted": {
            setting: {name: each.jsonable() for name, each in row.items()} for setting, row in apart.items()
        },
        "rule": rule,
        "left_in_the_core": left,
        "machine": machine,
    }
    claims = [
        Claim(
            "Live: right answers in time, ahead of each model alone",
            "",
            f"{percent(over[OURS])} (searched), ahead by {points(ahead['all'][best])} points of the best one",
            static=f"{percent(over[best])} ({best})",
            status=status_of(clear, len(static)),
        ),
        Claim(
            "Live: right answers in time, not behind the best tuned rule",
            "",
            f"{points(ahead['all'][rule])} points (searched); "
            + ", ".join(f"{name} {points(beyond_rule[name])}" for name in LEARNED if name != OURS),
            heuristic=f"{percent(over[rule])} ({rule})",
            status=status_of(int(float(ahead["all"][rule].high) >= 0), 1),
        ),
        Claim(
            "Live: what the simulator predicted, within 2 points",
            "",
            f"{sum(near)} of {len(near)} contenders; furthest {worst}, {points(apart['all'][worst])} points",
            status=status_of(sum(near), len(near)),
        ),
    ]
    columns = []
    for setting in live_shares:
        columns += [Column(f"{setting} (%)", brief=setting in ("all", BURSTS)), Column(f"{setting}, predicted (%)")]
    rows = []
    for name in contenders:
        cells: list[Any] = []
        for setting in live_shares:
            cells += [mean_interval(np.array(shares[setting][name])) for shares in (live_shares, predicted)]
        rows.append((name, tuple(cells)))
    table = Table(
        title="Right answers in time: the engine behind the gateway's core, and what the simulator predicted",
        head="Router",
        columns=tuple(columns),
        rows=tuple(rows),
        focus=OURS,
        note=f"Mean ± half the 95% interval over lists. The first {_WARM_UP_S:g} s of a list do not count.",
    )
    differences = Table(
        title=f"`{OURS}` ahead of the others, and the engine ahead of the prediction",
        head="Router",
        columns=(
            *(Column(f"{setting} (points)", "points", brief=setting in ("all", BURSTS)) for setting in live_shares),
            Column("engine less prediction, all (points)", "points", brief=True),
        ),
        rows=tuple(
            (name, (*((None if name == OURS else ahead[setting][name]) for setting in live_shares), apart["all"][name]))
            for name in contenders
        ),
        note="Mean ± half the 95% interval of paired differences.",
    )
    return Findings(data, claims, [table, differences], {"": plots.plot_panels(_panels(found, contenders), focus=OURS)})


def _panels(found: dict[str, Shares], contenders: tuple[str, ...]) -> list[Panel]:
    """Live and predicted shares side by side, against the load."""
    settings = [setting for setting in found["predicted"] if setting.startswith("load ")]
    x = np.array([float(setting.removeprefix("load ")) for setting in settings])
    panels = []
    for title, what in (("Engine behind the gateway's core", "right and in time"), ("Predicted", "predicted")):
        curves = {}
        for name in contenders:
            each = [mean_interval(np.array(found[what][setting][name])) for setting in settings]
            curves[name] = Interval(
                np.array([one.mean for one in each]), np.array([one.half_width for one in each]), each[0].seeds
            )
        panels.append(Panel(title, x, curves, "Load", "Right and in time", log=True, bars=True))
    return panels


if __name__ == "__main__":
    main(run, __file__)
