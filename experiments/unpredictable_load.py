"""Claim 2, unpredictable load: how often performance is near its peak, compared with the best static model.

    python -m experiments.unpredictable_load [--fast] [--data DIR]

The paper: at least 96% of peak performance 4.1 times as often, and 98% 2.3 times as often, as static serving. Windows
of 0.5 to 30 s; those of 1 s are held against the claims. Three loads: bursts between load 0.5 and 4; the counts of
Azure Functions 2019, spread over the tasks and given Gamma arrivals inside each minute; and the requests for code of
the Azure LLM traces of 2023. Of the counts, heuristics are tuned on sample A and all routers are judged on sample B;
the policy is that of the default situation and has seen neither. Of the trace, policies are trained and heuristics are
tuned on the first half and judged on the second; these policies also see the smallest batch of each model, as
heuristics do, and look a second ahead, because its prompts are long.

How often static serving is near its peak hangs on how long it takes to recover from a burst, and so on the length of
the waiting lines: the default situation turns requests away once 32 wait at an instance. Servers such as vLLM let any
number wait. So the bursts are also judged with lines of 128, by the same policies, and the counts at twice the load.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import percent, points, times, with_name
from besteffort.evaluation.judging import LEARNED, EvaluationResult, EvaluationSet, burst_set, read_halves, trace_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, mean_interval, ratio_interval
from besteffort.runs.config import load_situation
from besteffort.runs.training import make_training_problem
from besteffort.situation import Situation
from besteffort.workload.readers import MafOptions
from besteffort.workload.requests import Requests
from besteffort.workload.traces import read_trace
from experiments.lab import Claim, ClaimStatus, Findings, Lab, main, status_of_ratio

WINDOWS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CLAIMED_S = 1.0
CLAIMS = {0.96: 4.1, 0.98: 2.3}
SAMPLES = tuple(f"maf2019_sample{name}_1350_functions_x_1440min.csv.gz" for name in "AB")
CODE = "AzureLLMInferenceTrace_code_2023.csv.gz"
MEAN_LOAD = 1.0
LONG_LINE = 128
LONGER = 4  # times the usual list, for windows of 30 s


def run(lab: Lab) -> Findings:
    """Judges the default situation's policies on both loads."""
    situation = load_situation("paper")
    policies = lab.train(situation, lab.training(), name="paper")
    judging = dataclasses.replace(lab.evaluation, requests=LONGER * lab.scale.requests)
    patient = dataclasses.replace(situation, cluster=dataclasses.replace(situation.cluster, queue_capacity=LONG_LINE))
    lines = burst_set(patient, judging)
    evaluation_sets = [
        burst_set(situation, judging),
        dataclasses.replace(lines, name="bursts_long_lines", title=f"{lines.title}, lines of {LONG_LINE}"),
    ]
    samples = maf_samples(lab)
    if samples is not None:
        longer = dataclasses.replace(judging, tuning_requests=LONGER * lab.scale.tuning_requests)
        evaluation_sets += [maf_set(samples, situation, load, longer) for load in (MEAN_LOAD, 2 * MEAN_LOAD)]
    evaluations = [lab.judge(evaluation_set, policies) for evaluation_set in evaluation_sets]
    code = code_evaluation(lab, situation)
    if code is not None:
        evaluations.append(code)
    claims = [claim for evaluation in evaluations for claim in _claims(evaluation)]
    panels = [_panel(evaluation, fraction) for evaluation in evaluations for fraction in CLAIMS]
    data = {
        evaluation.set.name: {
            "tuned": evaluation.tuned,
            "bound": mean_interval(_limit(evaluation)),
            "performance": {
                name: mean_interval(evaluation.measure(metrics.performance, 0, name)) for name in evaluation.routers
            },
            "share_of_windows": {
                f"{fraction:g}": {
                    name: [mean_interval(near_peak(evaluation, name, fraction, width)) for width in WINDOWS_S]
                    for name in evaluation.routers
                }
                for fraction in CLAIMS
            },
            "windows_s": WINDOWS_S,
        }
        for evaluation in evaluations
    }
    return Findings(
        data, claims, [_table(evaluation) for evaluation in evaluations], {"": plots.plot_panels(panels, focus=LEARNED)}
    )


def maf_samples(lab: Lab) -> tuple[Path, Path] | None:
    """Samples A and B of Azure Functions 2019, if both are at hand."""
    sample_a, sample_b = map(lab.trace, SAMPLES)
    return None if sample_a is None or sample_b is None else (sample_a, sample_b)


def maf_set(samples: tuple[Path, Path], situation: Situation, load: float, how: EvaluationConfig) -> EvaluationSet:
    """The most variable minutes of sample B at a mean load; heuristics are tuned on those of sample A."""
    sample_a, sample_b = samples
    capacity = situation.unit_load
    tuning = maf_lists(sample_a, situation, how.unjudged_seeds, load * capacity, how.tuning_requests)
    judged = maf_lists(sample_b, situation, how.judging_seeds, load * capacity, how.requests)
    title = f"Azure Functions 2019, sample B, mean load {load:g}"
    return EvaluationSet(f"maf_{load:g}", title, situation, (load,), (judged,), tuning, capacity, how.warm_up_s)


def code_evaluation(lab: Lab, situation: Situation) -> EvaluationResult | None:
    """Networks trained on the first half of the code trace, judged on its second half."""
    path = lab.trace(CODE)
    if path is None:
        return None
    judging = dataclasses.replace(lab.evaluation, trace_loads=(MEAN_LOAD,))
    features = (*situation.view.features, "smallest_batch")
    situation = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=features))
    (trace,) = read_halves([path], situation, judging.judging_seeds)
    training = lab.training(config={"decisions": 2 * lab.scale.variant_decisions}, hyper={"horizon_s": 1.0})
    problem = make_training_problem(situation, training, trace.first[0])
    policies = lab.train(problem.situation, training, name="Azure code", workload=problem.workload)
    evaluation_set = trace_set(trace, situation, judging)
    return lab.judge(dataclasses.replace(evaluation_set, title="Azure LLM 2023, code"), policies)


def maf_lists(path: Path, situation: Situation, seeds: range, rate: float, requests: int) -> tuple[Requests, ...]:
    """About so many requests at a mean `rate`, from those minutes of the day whose counts vary most.

    A minute stays a minute: counts are scaled, not times. One drawing per seed, cut to the length of the shortest.
    """
    minutes = max(2, round(requests / (60 * rate)))
    day = read_trace(path, situation)[0]
    counts = np.bincount((day.arrival_s // 60).astype(int))
    stretches = np.lib.stride_tricks.sliding_window_view(counts, minutes)
    start = int(np.argmax(stretches.std(axis=1) / stretches.mean(axis=1)))
    options = MafOptions(rate_scale=rate * 60 / stretches[start].mean(), minutes=(start, start + minutes))
    drawn = [read_trace(path, situation, seed=seed, maf=options)[0] for seed in seeds]
    shortest = min(map(len, drawn))
    return tuple(each.part(slice(0, shortest), float(each.arrival_s[0])) for each in drawn)


def near_peak(evaluation: EvaluationResult, router: str, fraction: float, width_s: float) -> np.ndarray:
    """(seeds,) share of the windows at or above `fraction` of peak performance."""
    peak = evaluation.set.situation.peak_rewards
    measure = partial(metrics.windows_at_peak, peak_reward=peak, width_s=width_s, fraction=fraction)
    return np.asarray(evaluation.measure(measure, 0, router))


def _limit(evaluation: EvaluationResult) -> np.ndarray:
    """(seeds,) the bound on the performance of each list."""
    return np.array([float(bound.performance) for bound in evaluation.list_bounds[0]])


def _claims(evaluation: EvaluationResult) -> list[Claim]:
    claims: list[Claim] = []
    limit = _limit(evaluation)
    for fraction, wanted in CLAIMS.items():
        shares = {name: near_peak(evaluation, name, fraction, CLAIMED_S) for name in evaluation.routers}
        static = max(evaluation.static, key=lambda name: float(shares[name].mean()))
        rival = max(evaluation.heuristics, key=lambda name: float(shares[name].mean()))
        ratio = ratio_interval(shares[LEARNED], shares[static])
        if np.isfinite(ratio.mean):
            often = times(ratio)
            status: ClaimStatus = status_of_ratio(ratio, reached=bool(ratio.low >= wanted))
        else:
            often, status = "no static model ever is", "no claim"
        claims.append(
            Claim(
                f"{evaluation.set.title}: {fraction:.0%} of peak performance, how often compared with static serving",
                f"{wanted:g}x",
                f"{often} ({percent(shares[LEARNED])} of windows of {CLAIMED_S:g} s)",
                static=f"{percent(shares[static])} ({static})",
                heuristic=f"{percent(shares[rival])} ({rival})",
                status=status,
            )
        )
    one = ranking(evaluation)
    ahead = one.ahead_of_heuristic
    claims.append(
        Claim(
            f"{evaluation.set.title}: performance, never below the best tuned heuristic beyond the interval",
            "",
            f"{percent(one.learned)} ({points(ahead, 2)} points)",
            static=with_name(one.static),
            heuristic=with_name(one.heuristic),
            bound=f"{percent(limit)} (clairvoyant)",
            status="holds" if ahead.high >= 0 else "does not hold",
        )
    )
    share = mean_interval(one.learned / limit)
    claims.append(
        Claim(
            f"{evaluation.set.title}: within 3% of the clairvoyant bound",
            "",
            f"{percent(share)} of it",
            static=percent(one.static[1] / limit),
            heuristic=percent(one.heuristic[1] / limit),
            bound="100%",
            status="holds" if float(share.mean) >= 0.97 else "does not hold",
        )
    )
    return claims


def _panel(evaluation: EvaluationResult, fraction: float) -> plots.Panel:
    static = max(evaluation.static, key=lambda name: float(near_peak(evaluation, name, fraction, CLAIMED_S).mean()))
    rivals = [name for name in evaluation.heuristics if name not in ("random", "shortest-queue")]

    def curve(name: str) -> Interval:
        return mean_interval(np.stack([near_peak(evaluation, name, fraction, width) for width in WINDOWS_S]))

    return plots.Panel(
        title=f"{evaluation.set.title}\nat {fraction:.0%} of peak",
        x=np.array(WINDOWS_S),
        curves={name: curve(name) for name in (LEARNED, static, *rivals)},
        x_label="Width of a window (s)",
        y_label="Share of windows",
        log=True,
    )


def _table(evaluation: EvaluationResult) -> Table:
    return Table(
        title=f"{evaluation.set.title}, mean load {evaluation.set.loads[0]:.2g}",
        head="Router",
        columns=(
            Column("Performance (%)", digits=2, brief=True),
            *(Column(f"Windows at {fraction:.0%} of peak (%)", brief=True) for fraction in CLAIMS),
        ),
        rows=tuple(
            (
                name,
                (
                    mean_interval(evaluation.measure(metrics.performance, 0, name)),
                    *(mean_interval(near_peak(evaluation, name, fraction, CLAIMED_S)) for fraction in CLAIMS),
                ),
            )
            for name in evaluation.routers
        ),
        focus=LEARNED,
        note=f"Windows of {CLAIMED_S:g} s. Mean ± half the 95% interval over policies and lists.",
    )


if __name__ == "__main__":
    main(run, __file__)
