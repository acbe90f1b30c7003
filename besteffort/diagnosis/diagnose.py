"""Diagnosing a policy: what it is worth where tables are wrong, views are late, and requests are not as in training.

All routers play the same lists. The rules among them are tuned where everything is as known, on lists that nothing is
judged on: for most perturbations on the workload of the diagnosis, for those at other loads on loads of the training
range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from besteffort.diagnosis.findings import COLLAPSE, WORSE, Comparison, Finding, compare, enumerate_words, list_findings
from besteffort.diagnosis.perturbations import (
    Outcome,
    Perturbation,
    as_known,
    judge_perturbations,
    standard_perturbations,
)
from besteffort.errors import InputError
from besteffort.evaluation import plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import (
    LEARNED,
    EvaluationSet,
    TraceHalves,
    burst_set,
    check_outlast,
    draw_lists,
    list_bounds,
    mean_bound,
    trace_set,
)
from besteffort.evaluation.report import Column, Picture, Report, Table, write_report
from besteffort.evaluation.results import TUNED
from besteffort.evaluation.statistics import best_mean, mean_interval, paired_difference
from besteffort.evaluation.tuning import heuristic_routers, tune
from besteffort.files import write_json
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import Settings
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.version import __version__
from besteffort.workload import rescale
from besteffort.workload.config import Markov, MixConfig, Poisson
from besteffort.workload.requests import Requests

REQUESTS = 9_000
"""Length of the lists to judge and to tune on, where the configuration does not ask for less."""

_LONG_LISTS, _LONGEST = 3, 80_000  # lists at loads that need more requests, and their largest length
_COUNTED_S = 1.5  # least seconds of a list at a set load after the warm-up
_TYPICAL = 2  # loads of the training range, the highest ones that are tried, that rules are tuned on
_COMMON_SHARES, _LAGS = (0.1, 0.3), (1, 10, 100)  # fewer than the perturbations' defaults, to save time
_LEFT_OUT = ("random", "deadline", "deadline-ahead")  # the last two are others without their reserve
_BOUNDED = ("as known", "load", "arrivals", "task mix")  # families whose bound is shown; it would take long for all


class DiagnosisSuite(NamedTuple):
    """Where a policy is diagnosed.

    Attributes:
      evaluation_set: its lists of one load are those of the perturbations in which requests stay as they are.
      shifts: perturbations with other requests.
      range_tuning: lists at loads of the training range, for rules that are judged at other loads; where there are
        none, the evaluation set's serve.
      notes: what could not be tried.
    """

    evaluation_set: EvaluationSet
    shifts: tuple[Perturbation, ...]
    range_tuning: tuple[Requests, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The findings about a policy.

    Attributes:
      findings: what is wrong, worst first.
      table: every perturbation.
      checked: what was tried, in a sentence.
      report: file of the report.
    """

    findings: tuple[Finding, ...]
    table: Table
    checked: str
    report: Path

    @property
    def lines(self) -> list[str]:
        """The findings, numbered, or that there are none."""
        if not self.findings:
            return [f"Nothing found. {self.checked}"]
        return [f"{number}. {finding.sentence}" for number, finding in enumerate(self.findings, start=1)]


def trained_loads(policy: Policy) -> tuple[float, float] | None:
    """Lowest and highest load of the workload that a policy was trained on, outside bursts; None if it does not say.

    Times without a request teach nothing, so a load of 0 is none.
    """
    workload = policy.training.get("workload", {})
    stated = [workload.get(name) for name in ("low", "high", "load")]
    loads = [load for load in (*stated, *workload.get("loads", ())) if load]
    return (min(loads), max(loads)) if loads else None


def synthetic_suite(situation: Situation, config: EvaluationConfig, loads: tuple[float, float]) -> DiagnosisSuite:
    """The bursty load of the configuration, and around it other loads, arrivals and task mixes.

    Args:
      situation: what is served, on what.
      config: how to judge.
      loads: lowest and highest load of the training.

    Raises:
      InputError: if a list would end within the warm-up.
    """
    evaluation_set = burst_set(situation, config)
    capacity, names = evaluation_set.capacity_per_s, situation.task_names
    draw = partial(draw_lists, situation)

    def perturbation(family: str, name: str, size: float, lists: tuple[Requests, ...]) -> Perturbation:
        return Perturbation(family, name, size, lists, (situation,) * len(lists))

    needed = {load: math.ceil(load * capacity * (config.warm_up_s + _COUNTED_S)) for load in _loads_to_try(*loads)}
    short = [load for load in needed if needed[load] <= min(config.requests, config.tuning_requests)]
    long = [load for load in needed if load not in short and needed[load] <= _LONGEST]
    seeds = [*config.judging_seeds, *config.unjudged_seeds]
    drawn = draw([Poisson(load=load) for load in short], max(config.requests, config.tuning_requests), seeds)
    at_loads = [tuple(_cut(requests, config.requests) for requests in each[: config.seeds]) for each in drawn]
    typical = [each[config.seeds :] for load, each in zip(short, drawn, strict=True) if loads[0] <= load <= loads[1]]
    tuning = [_cut(requests, config.tuning_requests) for each in typical[-_TYPICAL:] for requests in each]
    if long:
        longest = max(needed[load] for load in long)
        at_loads += draw([Poisson(load=load) for load in long], longest, config.judging_seeds[:_LONG_LISTS])
    shifts = [
        perturbation("load", _load_name(load, *loads), load, each)
        for load, each in zip([*short, *long], at_loads, strict=True)
    ]
    # All of one kind, which is drawn by one compiled program.
    bursts = {
        "rare bursts to load 8": Markov(loads=(0.5, 8.0), dwell_s=(6.0, 1.0)),
        "bursts of 0.25 s to load 4": Markov(loads=(0.5, 4.0), dwell_s=(0.25, 0.25)),
        "load 4 on and off": Markov(loads=(0.0, 4.0), dwell_s=(1.0, 1.0)),
    }
    lists = draw(list(bursts.values()), config.requests, config.judging_seeds)
    shifts += [perturbation("arrivals", name, 1.0, each) for name, each in zip(bursts, lists, strict=True)]
    if len(names) > 1:
        alone = [dataclasses.replace(config.burst, mix=MixConfig((tuple(row),))) for row in np.eye(len(names)).tolist()]
        lists = draw(alone, config.requests, config.judging_seeds)
        shifts += [perturbation("task mix", f"{name} only", 1.0, each) for name, each in zip(names, lists, strict=True)]
    for shift in shifts:
        check_outlast(shift.lists, config.warm_up_s, f"perturbation `{shift.name}`")
    return DiagnosisSuite(evaluation_set, tuple(shifts), tuple(tuning), _left_out(set(needed) - {*short, *long}))


def trace_suite(
    trace: TraceHalves, situation: Situation, config: EvaluationConfig, loads: tuple[float, float], load: float
) -> DiagnosisSuite:
    """The second half of a trace at a mean `load`, at other loads, and with one task alone; `loads` as above.

    A half of which nothing was drawn is one list; stretches of it, one for each seed, take its place.
    """
    first, second = trace.first[0], _several(trace.second, config)
    trace = trace._replace(
        first=(_cut(first, config.tuning_requests),), second=tuple(_cut(half, config.requests) for half in second)
    )
    evaluation_set = trace_set(trace, situation, dataclasses.replace(config, trace_loads=(load,)))
    situation, lists = evaluation_set.situation, evaluation_set.judged[0]

    def perturbation(family: str, name: str, size: float, lists: Sequence[Requests]) -> Perturbation:
        return Perturbation(family, name, size, tuple(lists), (situation,) * len(lists))

    wanted = _loads_to_try(*loads)
    possible = [
        x for x in wanted if len(lists[0]) >= x * evaluation_set.capacity_per_s * (config.warm_up_s + _COUNTED_S)
    ]
    shifts = [
        perturbation("load", _load_name(x, *loads), x, [rescale.to_load(half, situation, x) for half in trace.second])
        for x in possible
    ]
    if len(situation.tasks) > 1:
        shifts += [
            perturbation("task mix", f"{name} only", 1.0, [_of_task(requests, index, situation) for requests in lists])
            for index, name in enumerate(situation.task_names)
        ]
    typical = [x for x in possible if loads[0] <= x <= loads[1]][-_TYPICAL:]
    tuning = tuple(rescale.to_load(trace.first[0], situation, x) for x in typical)
    return DiagnosisSuite(evaluation_set, tuple(shifts), tuning, _left_out(set(wanted) - set(possible)))


def diagnose(
    policy: Policy,
    situation: Situation,
    config: EvaluationConfig,
    out: Path,
    *,
    trace: TraceHalves | None = None,
    load: float = 1.0,
) -> Diagnosis:
    """Diagnoses a policy and writes `report.md`, its figure and `results.json` to `out`.

    Args:
      policy: the policy.
      situation: what is served, on what, as all routers assume.
      config: how to judge; lists are no longer than `REQUESTS`.
      out: directory.
      trace: judge on it, in place of the configuration's bursty load.
      load: mean load of the trace, in multiples of the largest model's capacity.

    Raises:
      InputError: if lists end within the warm-up, the load is not positive, replicas have events, or a file cannot be
        written.
    """
    if situation.fleet.alive:
        raise InputError(
            "`events` and `autoscaler` of pools cannot be diagnosed, since who was lost when is not kept; leave them "
            "out, or use `besteffort evaluate`."
        )
    config = dataclasses.replace(
        config,
        requests=min(config.requests, REQUESTS),
        tuning_requests=min(config.tuning_requests, REQUESTS),
        tuning_seeds=1,
    )
    loads = trained_loads(policy) or (config.loads[0], config.loads[-1])
    if trace is None:
        suite = synthetic_suite(situation, config, loads)
    else:
        suite = trace_suite(trace, situation, config, loads, load)
    outcomes, tuned = try_out({LEARNED: [learned_router(policy)]}, suite, config, kept=out / TUNED)
    compared = [compare(outcome, LEARNED) for outcome in outcomes]
    findings = tuple(list_findings(outcomes, LEARNED))
    bounds = bounds_of(suite.evaluation_set, outcomes)
    table = perturbations_table(compared, bounds)
    done = Diagnosis(findings, table, _checked(outcomes, suite.notes), out / "report.md")
    write_json(out / "results.json", _figures(done, outcomes, bounds, tuned))
    _write_report(done, compared, bounds, suite, tuned, out, trace, loads)
    return done


def try_out(
    learned: dict[str, Sequence[Router]],
    suite: DiagnosisSuite,
    config: EvaluationConfig,
    *,
    kept: Path | None = None,
) -> tuple[list[Outcome], tuple[dict[str, Settings], dict[str, Settings]]]:
    """Tunes the rules and judges all routers in all perturbations of a suite.

    Args:
      learned: learned routers by name, one for all lists or one for each.
      suite: where.
      config: how much tuning there is; its seed is that of the perturbed tables.
      kept: file that keeps what is tuned, see `tune`.

    Returns:
      What became of each perturbation, the one with everything as known first, and the settings of the rules: those for
      most perturbations, and those for perturbations at other loads.
    """
    evaluation_set, lists = suite.evaluation_set, suite.evaluation_set.judged[0]
    perturbed = standard_perturbations(
        evaluation_set.situation, lists, common_shares=_COMMON_SHARES, lags=_LAGS, seed=config.seed
    )
    perturbations = [as_known(evaluation_set.situation, lists), *perturbed, *suite.shifts]
    groups = [group for group in (evaluation_set.tuning, suite.range_tuning) if group]
    found = tune(evaluation_set.situation, groups, config, warm_up_s=evaluation_set.warm_up_s, kept=kept)
    tuned = found[0], found[-1]
    rules = [
        {
            name: each
            for name, each in heuristic_routers(evaluation_set.situation, settings, 1).items()
            if name not in _LEFT_OUT
        }
        for settings in tuned
    ]
    routers_of = [{**learned, **rules[perturbation.family == "load"]} for perturbation in perturbations]
    outcomes = judge_perturbations(
        evaluation_set.situation,
        perturbations,
        routers_of,
        inspect=tuple(learned),
        warm_up_s=evaluation_set.warm_up_s,
        seed=config.seed,
    )
    return outcomes, tuned


def _loads_to_try(low: float, high: float) -> list[float]:
    """Below the training range, in it and beyond it."""
    inside = np.geomspace(low, high, 5)[1:-1] if low < high else [low]
    return [float(f"{load:.2g}") for load in (low / 2, *inside, 1.5 * high)]


def _load_name(load: float, low: float, high: float) -> str:
    return f"load {load:g}" + (", below training" if load < low else ", beyond training" if load > high else "")


def _left_out(loads: set[float]) -> tuple[str, ...]:
    if not loads:
        return ()
    listed = enumerate_words([f"{load:g}" for load in sorted(loads)])
    return (f"Load {listed} was left out: lists that outlast the warm-up there would be too long.",)


def _cut(requests: Requests, length: int) -> Requests:
    return requests.part(slice(None, length), 0.0)


def _several(lists: Sequence[Requests], config: EvaluationConfig) -> Sequence[Requests]:
    """The lists; of one alone, which has no interval, stretches of one length, evenly spaced."""
    if len(lists) > 1:
        return lists
    (one,) = lists
    length = min(config.requests, len(one) // config.seeds)
    begins = np.linspace(0, len(one) - length, config.seeds).round().astype(int).tolist()
    if length < 2 or any(one.arrival_s[begin] == one.arrival_s[begin + length - 1] for begin in begins):
        return lists
    return [one.part(slice(begin, begin + length), float(one.arrival_s[begin])) for begin in begins]


def _of_task(requests: Requests, index: int, situation: Situation) -> Requests:
    """The same requests, all of one task, with its deadlines."""
    task = np.full(len(requests), index)
    deadline_s = situation.deadlines(task, requests.output_tokens) * requests.deadline_factors
    return dataclasses.replace(requests, task=task, deadline_s=deadline_s)


def bounds_of(evaluation_set: EvaluationSet, outcomes: Sequence[Outcome]) -> list[float | None]:
    """Upper bound of each perturbation, for those families where it is shown."""
    return [
        float(mean_bound(list_bounds(evaluation_set, perturbation.lists)).performance)
        if perturbation.family in _BOUNDED
        else None
        for perturbation in (outcome.perturbation for outcome in outcomes)
    ]


def _checked(outcomes: Sequence[Outcome], notes: Sequence[str]) -> str:
    families: dict[str, list[str]] = {}
    for outcome in outcomes[1:]:
        families.setdefault(outcome.perturbation.family, []).append(outcome.perturbation.name)
    parts = [
        f"{family} ({names[0]} to {names[-1]})" if len(names) > 1 else f"{family} ({names[0]})"
        for family, names in families.items()
    ]
    tried = f"Checked in {len(outcomes)} perturbations: everything as known, {enumerate_words(parts)}."
    alone = sum(len(outcome.perturbation.lists) == 1 for outcome in outcomes)
    unsure = f"In {alone} of them there is one list, without an interval, so that nothing can be found; see the table."
    return " ".join([tried, *notes, *([unsure] if alone else [])])


def perturbations_table(compared: Sequence[Comparison], bounds: Sequence[float | None]) -> Table:
    """Every perturbation: the policy and the best other router."""
    columns = (
        Column("Learned (%)", brief=True),
        Column("Best rule", brief=True),
        Column("Rule (%)", brief=True),
        Column("Ahead (points)", "points", 1, brief=True),
        Column("Too large (%)"),
        Column("In time (%)"),
        Column("Rule in time (%)"),
        Column("Bound (%)"),
    )
    rows = []
    for one, bound in zip(compared, bounds, strict=True):
        performance, in_time = one.outcome.performance, one.outcome.slo_attainment
        cells = (
            float(performance[one.policy].mean()),
            one.rule,
            float(performance[one.rule].mean()),
            one.ahead,
            float(one.avoidable_misses.mean),
            float(in_time[one.policy].mean()),
            float(in_time[one.rule].mean()),
            bound,
        )
        rows.append((one.outcome.perturbation.name, cells))
    return Table(
        title="The policy where things are not as known",
        head="With",
        columns=columns,
        rows=tuple(rows),
        note=(
            "Performance of the policy and of the best other router of each perturbation, in hindsight; the "
            "paired difference "
            "with its 95% interval over the lists; requests that the policy missed although a smaller model was "
            "predicted to be in time."
        ),
    )


def _rules_table(outcomes: Sequence[Outcome]) -> Table:
    names = tuple(outcomes[0].performance)
    return Table(
        title="Performance (%) of all routers",
        head="With",
        columns=tuple(Column(name) for name in names),
        rows=tuple(
            (outcome.perturbation.name, tuple(mean_interval(outcome.performance[name]) for name in names))
            for outcome in outcomes
        ),
    )


def _write_report(
    done: Diagnosis,
    compared: Sequence[Comparison],
    bounds: Sequence[float | None],
    suite: DiagnosisSuite,
    tuned: Sequence[dict[str, Settings]],
    out: Path,
    trace: TraceHalves | None,
    loads: tuple[float, float],
) -> None:
    outcomes = [one.outcome for one in compared]
    evaluation_set = suite.evaluation_set
    plots.save_figure(perturbations_figure(compared, bounds, evaluation_set.situation), out / "diagnosis")
    summary = "\n".join(done.lines) + (f"\n\n{done.checked}" if done.findings else "")
    report = Report(
        title="Diagnosis",
        summary=f"{summary}\n\n{_LIMITS}",
        situation=evaluation_set.situation,
        settings={
            "Workload": evaluation_set.title + ("" if trace is None else f", mean load {evaluation_set.loads[0]:g}"),
            **({} if trace is None else {f"Trace {trace.name}": str(trace.info)}),
            "Training range": f"load {loads[0]:g} to {loads[1]:g}",
            "Lists": f"{len(evaluation_set.judged[0])} of {len(evaluation_set.judged[0][0]):,} requests per "
            "perturbation, "
            f"the first {evaluation_set.warm_up_s:.3g} s do not count",
            "Rules tuned on the workload": _settings_line(tuned[0]),
            "Rules tuned on loads of the training range": _settings_line(tuned[1]),
            "Version": f"besteffort {__version__}",
        },
        tables=(done.table, _rules_table(outcomes)),
        pictures=(
            Picture(out / "diagnosis.png", "The policy, the best rule and the best static model, by perturbation."),
        ),
    )
    write_report(report, done.report)


_LIMITS = (
    "The policy is held against the best other router of each perturbation, in hindsight. It is said to route "
    "worse from "
    f"{100 * WORSE:g} points on and to collapse from {100 * COLLAPSE:g}, where the 95% interval "
    "leaves no doubt; of so many perturbations one or two may go beyond their interval by chance."
)


def _settings_line(tuned: dict[str, Settings]) -> str:
    return "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in chosen.items())}" for name, chosen in tuned.items()
    )


def perturbations_figure(compared: Sequence[Comparison], bounds: Sequence[float | None], situation: Situation) -> Any:
    """The same as a picture, perturbation by perturbation."""
    weight = situation.weights
    settings = []
    for one, bound in zip(compared, bounds, strict=True):
        perturbation = one.outcome.perturbation
        peak = float(np.mean([weight[requests.task].mean() for requests in perturbation.lists]))
        relative = {name: values / peak for name, values in one.outcome.performance.items()}
        kinds = one.outcome.kinds
        best, static = (
            best_mean(relative, [n for n in relative if kinds[n] == kind]) for kind in ("heuristic", "static")
        )
        settings.append(
            plots.Setting(
                group=perturbation.family.capitalize(),
                name=perturbation.name,
                static=float(relative[static].mean()),
                heuristic=float(relative[best].mean()),
                learned=mean_interval(relative[LEARNED]),
                ahead=paired_difference(relative[LEARNED], relative[best]),
                bound=math.nan if bound is None else bound / peak,
            )
        )
    return plots.plot_settings(settings, title="The policy where things are not as known")


def _figures(
    done: Diagnosis,
    outcomes: Sequence[Outcome],
    bounds: Sequence[float | None],
    tuned: Sequence[dict[str, Settings]],
) -> dict[str, Any]:
    """Everything as plain JSON values."""
    return {
        "findings": [dataclasses.asdict(finding) for finding in done.findings],
        "checked": done.checked,
        "tuned": {"workload": tuned[0], "training range": tuned[1]},
        "perturbations": [
            {
                "family": outcome.perturbation.family,
                "name": outcome.perturbation.name,
                "size": outcome.perturbation.size,
                "bound": bound,
                **{
                    measure: {name: values.tolist() for name, values in getattr(outcome, measure).items()}
                    for measure in ("performance", "slo_attainment", "avoidable_misses")
                },
            }
            for outcome, bound in zip(outcomes, bounds, strict=True)
        ],
    }
