"""The learned router against every other router on a grid of stationary loads, network by network.

    python -m experiments.load_grid [--seeds N] [--out DIR]

Trains one network per seed (`configs/paper.yaml`), then plays list `i` of every load with network `i`, so that the
intervals cover training and arrivals alike; every other router plays the same lists (common random numbers). Heuristics
have one setting for the whole grid, tuned on other lists; `best heuristic, tuned per load` is the best of them with a
setting of its own at every load. Writes results/load_grid.json and the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort import __version__
from besteffort.evaluation import plots
from besteffort.evaluation.bounds import Bound
from besteffort.evaluation.metrics import performance, routing_mix, slo_attainment
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import Interval, mean_interval, paired_difference
from besteffort.evaluation.tuning import best_settings, heuristic_routers, score_candidates
from besteffort.learning.train import Progress
from besteffort.runs.directory import create_run_directory, write_json
from besteffort.runs.evaluation import LEARNED, grid_arena, mean_bound
from besteffort.runs.experiment import load_run
from besteffort.runs.training import learned_router, make_course, run_training
from besteffort.simulator.result import Result

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="networks, and lists per load")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "load_grid", help="run directory, resumed if there")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where the figures go")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    config, situation = load_run("paper")
    judging = dataclasses.replace(config.evaluation, seeds=arguments.seeds)
    directory = create_run_directory(arguments.out, resume=arguments.out.is_dir())
    policies, seconds = [], []
    for seed in range(arguments.seeds):
        training = dataclasses.replace(config.training, seed=seed, seeds=1)
        started = time.perf_counter()

        def hear(news: Progress, seed: int = seed) -> None:
            console.print(f"seed {seed}: {news.point}/{news.points}, reward {news.metrics['reward'][0]:.3f}")

        out = directory / f"seed-{seed}"
        resumed = out.is_dir()
        out.mkdir(exist_ok=True)
        policies += run_training(config, make_course(situation, training), out, progress=hear)
        if not resumed:
            seconds.append(time.perf_counter() - started)

    arena = grid_arena(situation, judging)
    console.print("tuning")
    groups = len(arena.loads)
    candidate_scores = score_candidates(situation, arena.tuning, warm_up_s=arena.warm_up_s)
    tuned = best_settings(situation, candidate_scores)
    own = best_settings(situation, candidate_scores, groups)
    lists = [requests for group in arena.judged for requests in group]
    routers: dict[str, Any] = {LEARNED: [learned_router(policy) for policy in policies] * groups}
    routers |= heuristic_routers(situation, tuned, len(lists))
    own_routers = heuristic_routers(situation, own, len(lists))
    routers |= {f"{name}, tuned per load": own_routers[name] for name in own}
    console.print("judging")
    played = play_routers(situation, lists, routers)
    bounds = [mean_bound(arena, [requests], judging.window_s) for requests in lists]

    def by_load(measure: Any, result: Result) -> np.ndarray:
        return measure(result, warm_up_s=arena.warm_up_s).reshape(groups, -1)

    scores = {name: by_load(performance, result) for name, result in played.items()}
    per_load = [scores.pop(f"{name}, tuned per load") for name in own]
    shown = [name for name in scores if name != LEARNED]
    attained = {name: by_load(slo_attainment, played[name]) for name in (LEARNED, *shown)}
    limit = np.array([float(bound.performance) for bound in bounds]).reshape(groups, -1)
    rows = []
    for i, load in enumerate(arena.loads):
        best = max(shown, key=lambda name, i=i: float(scores[name][i].mean()))
        difference = paired_difference(scores[LEARNED][i], scores[best][i])
        share = scores[LEARNED][i] / limit[i]
        rows.append(
            {
                "load": load,
                "learned": _plain(mean_interval(scores[LEARNED][i])),
                "worst_seed": float(scores[LEARNED][i].min()),
                "best_other": best,
                "best_other_performance": _plain(mean_interval(scores[best][i])),
                "difference": _plain(difference),
                "best_tuned_per_load": float(max(values[i].mean() for values in per_load)),
                "bound": float(limit[i].mean()),
                "share_of_bound": _plain(mean_interval(share)),
                "slo_attainment": float(attained[LEARNED][i].mean()),
                "others": {name: float(scores[name][i].mean()) for name in shown},
            }
        )
    write_json(
        arguments.results / "load_grid.json",
        {
            "version": __version__,
            "seeds": arguments.seeds,
            "requests_per_list": judging.requests,
            "seconds_per_training": [round(value, 1) for value in seconds],  # of those trained in this call
            "tuned": {name: settings[0] for name, settings in tuned.items()},
            "distinct_networks": len({policy.weights[0][0].tobytes() for policy in policies}),
            "loads": rows,
        },
    )
    bound = Bound(limit.mean(1), np.array([float(b.slo_attainment) for b in bounds]).reshape(groups, -1).mean(1), limit)
    figure = plots.plot_against_rate(
        np.array(arena.loads),
        {name: mean_interval(scores[name]) for name in (LEARNED, *shown)},
        {name: mean_interval(attained[name]) for name in (LEARNED, *shown)},
        bound=bound,
        requests_per_s=arena.capacity_per_s,
        focus=LEARNED,
    )
    plots.save_figure(figure, arguments.results / "load_grid")
    models = situation.profile.model_names
    mixes = {
        name: by_load_mix(played[name], len(models), groups, arena.warm_up_s)
        for name in (LEARNED, "priced", "deadline-reserve", "ladder")
    }
    figure = plots.plot_routing_mix(np.array(arena.loads), mixes, models, requests_per_s=arena.capacity_per_s)
    plots.save_figure(figure, arguments.results / "load_grid_mix")
    Console().print(_table(rows).terminal())
    (arguments.results / "load_grid.md").write_text(_table(rows).markdown(), encoding="utf-8")


def by_load_mix(result: Result, models: int, groups: int, warm_up_s: float) -> np.ndarray:
    """(loads, models + 1) shares of requests."""
    mix = routing_mix(result, models, warm_up_s=warm_up_s)
    return np.asarray(mix.reshape(groups, -1, models + 1).mean(1))


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": float(interval.mean), "half_width": float(interval.half_width)}


def _table(rows: list[dict[str, Any]]) -> Table:
    def interval(cell: dict[str, float], row: dict[str, Any]) -> Interval:
        return Interval(np.asarray(cell["mean"]), np.asarray(cell["half_width"]), 0, 0.95)

    return Table(
        title="Learned router against the best other router, by load",
        head="Load",
        columns=(
            Column("Learned (%)", digits=2, brief=True),
            Column("Worst seed (%)", digits=2, brief=True),
            Column("Best other (%)", digits=2, brief=True),
            Column("Difference (points)", "points", 2, brief=True),
            Column("Tuned per load (%)", digits=2, brief=True),
            Column("Bound (%)", digits=2, brief=True),
            Column("Share of bound (%)", digits=1, brief=True),
        ),
        rows=tuple(
            (
                f"{row['load']:g} ({row['best_other']})",
                (
                    interval(row["learned"], row),
                    row["worst_seed"],
                    interval(row["best_other_performance"], row),
                    interval(row["difference"], row),
                    row["best_tuned_per_load"],
                    row["bound"],
                    interval(row["share_of_bound"], row),
                ),
            )
            for row in rows
        ),
        note="In brackets the best other router, the best in hindsight at each load, static models included. "
        "Mean ± half the 95% interval over networks and lists; differences are paired.",
    )


if __name__ == "__main__":
    main()
