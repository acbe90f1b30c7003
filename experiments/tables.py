"""Tables in README.md and docs/, and results/claims.md: written from the files in results/ and, where they name things,
from the code.

    python -m experiments.tables [--check]

A page names a table and marks its end; what stands between the two marks is replaced:

    <!-- table: bursts -->
    <!-- end -->

With `--check` nothing is written, and the exit status is 1 if a page differs from the results.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.evaluation.judging import LEARNED
from besteffort.evaluation.report import Column, Kind, format_cell
from besteffort.evaluation.statistics import Interval
from besteffort.files import write_text
from besteffort.routers.names import ROUTER_NAMES
from experiments.__main__ import EXPERIMENTS, claims_page, claims_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

_PLACE = re.compile(r"(?P<start><!-- table: (?P<name>\w+) -->\n)(?P<rows>.*?)(?P<end><!-- end -->)", re.S)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """The text of a page with every table as the results have it.

    Raises:
      KeyError: if the page names a table that is not in `TABLES`.
    """
    return _PLACE.sub(lambda place: f"{place['start']}\n{TABLES[place['name']]()}\n{place['end']}", text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in GitHub's Markdown; the first `words` columns hold words, the others figures."""
    lines = [header, [*["---"] * words, *["---:"] * (len(header) - words)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def headline() -> str:
    """A handful of claims for the front page, losses included."""
    chosen: tuple[tuple[str, str | Callable[[], dict[str, str]], str], ...] = (
        ("methods", _under_bursts, "a searched rule: performance under bursts"),
        ("methods", _in_sixteen_settings, "in sixteen, one thing varied at a time"),
        ("methods", "`dqn`", "networks that add to it"),
        ("where_it_pays", "Where it pays", "networks on the paper's inputs, in the sixteen"),
        ("stable_load", _sustained, "99% in time up to a load of"),
        (
            "hardware_utility",
            "Performance per GPU",
            "performance per GPU: 4 over 8 that serve the largest model and collapse",
        ),
        ("robustness", "When it breaks: late views", "batch sizes or rates seen late"),
    )
    rows = []
    for experiment, source, words in chosen:
        cells = _of_claim(experiment, source) if isinstance(source, str) else source()
        rows.append([words, *cells.values(), f"`{experiment}`"])
    return markdown(["What", "Learned", "Best static", "Best heuristic", "Bound", "NAME"], rows, words=6)


def claims() -> str:
    """All claims of all experiments."""
    keys = ("paper", "ours", "static", "heuristic", "bound")
    rows = []
    for experiment in EXPERIMENTS:
        for claim in read(experiment)["claims"]:
            status = "-" if claim["status"] == "no claim" else claim["status"]
            rows.append([claim["claim"], *(claim[key] or "-" for key in keys), status])
    header = ["Claim", "Paper", "Learned", "Best static", "Best heuristic", "Bound", "Verdict"]
    return markdown(header, rows, words=len(header))


def stable_load() -> str:
    """The learned router and the best other router, load by load; the paired differences are not in the JSON file."""
    return written("stable_load.md", "Learned router against the best other router, by load")


def near_peak() -> str:
    """Windows near the peak, searched for."""
    return written("near_peak.md", "Windows of 1 s near the peak: a rule searched for them, rivals tuned for them")


def where_it_pays() -> str:
    """Sixteen settings."""
    rows = []
    for setting, found in read("where_it_pays")["data"].items():
        name, heuristic = found["best_heuristic"]
        static_name, static = found["best_static"]
        rows.append(
            [
                setting.removesuffix(": "),
                percent(found["learned"], 2),
                f"{percent(heuristic, 2)} ({name})",
                points(found["ahead_of_heuristic"], 2),
                f"{percent(static, 2)} ({static_name})",
                percent(found["bound"], 2),
            ]
        )
    header = ["Setting", "Learned (%)", "Best heuristic (%)", "Ahead of it (points)", "Best static (%)", "Bound (%)"]
    return markdown(header, rows)


def rivals() -> str:
    """Rivals in both forms and a rule that knows the harm, setting by setting."""
    return written(
        "rivals.md", "Rivals on the paper's inputs, rivals that see what is ahead, and a rule that knows the harm"
    )


def methods() -> str:
    """What learns on what a gateway knows, setting by setting."""
    return written("methods.md", "Learned on what a gateway knows, against the best rival in hindsight")


def mixed_hardware() -> str:
    """Policies on a fleet of pools."""
    return written("mixed_hardware.md", "A fleet of six pools on three kinds of GPUs at two sites")


def any_profile() -> str:
    """The rule against the best rivals of random situations."""
    return written("any_profile.md", "Random situations: points ahead of the best rival in hindsight")


def estimate_ablations() -> str:
    """What a rule loses without one of its parts."""
    return written("estimate_ablations.md", "Searched rules with a part left out: difference to the whole rule")


def estimates() -> str:
    """Estimates against what happened."""
    return written("estimate_quality.md", "Estimates at the decision, and what happened")


def estimate_costs() -> str:
    """Microseconds of estimates, live and compiled."""
    micros = read("estimates")["microseconds"]
    rows = [[f"{what}, {how}", f"{cost:.1f}"] for what, row in micros.items() for how, cost in row.items()]
    return markdown(["What", "Microseconds per decision"], rows)


def gateway_costs() -> str:
    """Processor time of a request, by gateway."""
    costs = read("gateway")["milliseconds"]
    shapes = [(shape, clients) for shape, cells in costs["ours"].items() for clients in cells]
    rows = [
        [
            arm,
            *(f"{cells[shape][clients]['median']:.2f}" if shape in cells else "-" for shape, clients in shapes),
        ]
        for arm, cells in costs.items()
    ]
    named = [f"{shape}, {clients} client{'s' * (clients != '1')}" for shape, clients in shapes]
    return markdown(["Process", *named], rows)


def gateway_waits() -> str:
    """How long streams take, by gateway."""
    latencies = read("gateway")["latency_milliseconds"]
    named = [f"{what}, {percentile.upper()}" for what, cells in latencies["ours"].items() for percentile in cells]
    rows = [
        [arm, *(f"{ms:.2f}" for cells in found.values() for ms in cells.values())] for arm, found in latencies.items()
    ]
    return markdown(["Process", *named], rows)


def gateway_sizing() -> str:
    """Requests per second that a core is worth."""
    costs = read("gateway")["milliseconds"]
    rows = []
    for what, arm, shape in (
        ("plain, `assemble: false`", "ours, passed whole", "plain"),
        ("plain, 20 tokens", "ours", "plain"),
        ("stream of 20 tokens", "ours", "stream of 20 tokens"),
    ):
        cells = costs[arm][shape]
        rows.append([what, *(f"{1e3 / cells[clients]['median']:,.0f}" for clients in cells)])
    return markdown(["Requests", *(f"Clients: {clients}" for clients in costs["ours"]["plain"])], rows)


def old_grids() -> str:
    """What the search gains over the candidate grids that it took the place of."""
    settings: dict[str, dict[str, str]] = {}
    for row in read("old_grids")["rows"]:
        cell = f"{row['difference_points']:+.2f} ± {row['half_width']:.2f}"
        settings.setdefault(row["setting"], {})[row["router"]] = cell
    names = list(next(iter(settings.values())))
    return markdown(
        ["Setting", *names], [[setting, *(row[name] for name in names)] for setting, row in settings.items()]
    )


def bursts() -> str:
    """All routers of the quickstart."""
    rows = [
        [
            _focused(name, name),
            _focused(name, percent(row["performance"], 2)),
            points(_negative(row["performance_difference"]), 2),
            percent(row["slo_attainment"]),
        ]
        for name, row in sorted(_rows("quickstart")[0][1].items(), key=_performance, reverse=True)
    ]
    return markdown(["Router", "Performance (%)", "Learned is ahead by (points)", "SLO attainment (%)"], rows)


def traces() -> str:
    """All routers of the quickstart with two traces."""
    names, loads = zip(*_rows("quickstart_traces")[1:], strict=True)  # the first are the bursts
    header = ["Router", *names]
    rows = [
        [_focused(router, cell) for cell in (router, *(percent(load[router]["performance"]) for load in loads))]
        for router in loads[0]
    ]
    return markdown(header, rows)


def fit_vllm() -> str:
    """Errors of a profile fitted to half of a log of vLLM."""
    found = read("fit_vllm")
    rows = [[name, *_errors(found["held_out"][name]["relative_error"])] for name in _TIMES]
    published = next(text for name, text in found["published_by_others"].items() if name.startswith("LLMServingSim"))
    rows.append(["LLMServingSim, end to end, as published", *re.findall(r"P\d+ ([-+][\d.]+%)", published)])
    for other in found["others"]:
        rows += [[f"{other['log']}, {name}", *_errors(other["held_out"][name]["relative_error"])] for name in _TIMES]
    return markdown(["", *(f"P{p}" for p in found["percentiles"])], rows)


def fit_servers() -> str:
    """Errors of fits to halves of logs of servers with a known truth."""
    found = read("fit_servers")
    rows = []
    for log in found["logs"]:
        chunk = "" if log["chunk_tokens"] is None else f"{log['chunk_tokens']:,}"
        batch = str(log["max_batch"]) if log["limit_found"] == "batch" else log["limit_found"]
        errors = (", ".join(_errors(log["relative_error"][name])) for name in _TIMES)
        rows.append([log["server"], log["load"], *errors, batch, chunk])
    header = ["Server", "Load", "End to end", "First token", "Limit found", "Chunk found"]
    return markdown(header, rows, words=2)


def _errors(errors: Sequence[float]) -> list[str]:
    return [f"{100 * error:+.1f}%" for error in errors]


def roofline_check() -> str:
    """Times of the roofline behind the built-in profiles against measured ones."""
    rows = [
        [one["what"], *(f"{1e3 * one[key]:.3g}" for key in ("measured_s", "modelled_s")), f"{100 * one['error']:+.0f}%"]
        for one in read("roofline_check")["checks"]
    ]
    return markdown(["Time per token, or to the first", "Measured (ms)", "Modelled (ms)", "Error"], rows)


def learners() -> str:
    """Training to a fixed performance."""
    found = read("learners")
    rows = []
    for name, one in found["learners"].items():
        median, ratio = one["seconds_to_target"]["median"], found["ratios"].get(name)
        rows.append(
            [
                _LEARNERS[name],
                f"{one['decisions_per_s']:,.0f}",
                f"not in {one['seconds']:.0f} s" if median is None else f"{median:.1f} s",
                "" if ratio is None else f"{'more than ' if ratio['at_least'] else ''}{ratio['times']:.2g}",
                percent(one["performance_at_the_end"]["mean"]) + "%",
            ]
        )
    if search := found.get("search"):
        whole_s, earned = search["seconds"]["median"], percent(search["performance"]["mean"])
        rows.append(["search of a rule, no network: all of it", "-", f"{whole_s:.1f} s", "", f"{earned}%"])
    header = ["", "Decisions/s", "Time to 95%", "Ours is faster by", "At the end of its training"]
    return markdown(header, rows)


def sweep() -> str:
    """One program and single runs."""
    found = read("sweep")
    rows = [
        [way, *(f"{found['seconds'][way][clock]:,.0f} s" for clock in ("processors", "wall"))]
        for way in ("one program", "single runs")
    ]
    rows.append(["ratio", *(f"{found['ratios'][clock]:.1f}" for clock in ("processors", "wall"))])
    return markdown([f"{found['trials']} trials", "Processor time", "Time on the wall"], rows)


def decisions() -> str:
    """Time of a decision."""
    found = read("decisions")["microseconds"]
    ways = list(next(iter(found.values())))
    rows = [[network, *(f"{found[network][way]['median']:.2g} µs" for way in ways)] for network in found]
    return markdown(["Network", *ways], [[_NETWORKS.get(name, name), *cells] for name, *cells in rows])


def opt_speed() -> str:
    """OPT in Flax and in PyTorch."""
    rows = []
    for name, case in read("opt_speed")["cases"].items():
        ours, theirs = (f"{case['median_ms'][side]:.3g} ms" for side in ("flax", "pytorch"))
        share = percent(case["share_of_floor_at_that_time"], 0)
        rows.append([name, ours, theirs, f"{case['pytorch_over_flax']:.1f}", f"{share}%"])
    return markdown(["", "Ours", "PyTorch", "Median ratio", "Share of the rate measured just before"], rows)


def exactness() -> str:
    """How the compiled simulator differs from the reference."""
    found = read("exactness")
    rows = []
    for words, data in (("random lists", found["random_lists"]), ("default situation", found["default_situation"])):
        double = data["float64"]
        single = data["float32"]
        parts = [single["all"]] if "all" in single else list(single.values())
        other = sum(part["share_of_lists_with_another_outcome"] * part["lists"] for part in parts)
        mean = max(abs(part["performance_difference_points"]["mean"]) for part in parts)
        rows.append(
            [
                words,
                f"{double['lists']:,}",
                f"{double['requests_with_another_model_replica_or_rejection']:,}",
                f"{double['largest_time_error_in_horizons']:.2g}",
                f"{other:.0f}",
                f"{mean:.1g}",
            ]
        )
    header = [
        "",
        "Lists",
        "float64: requests with another model, replica or rejection",
        "float64: largest error of a time, in horizons",
        "float32: lists with another outcome",
        "float32: mean difference in performance (points)",
    ]
    return markdown(header, rows)


def simulator_speed() -> str:
    """Decisions per second."""
    found = read("simulator_speed")["per_second"]
    sizes = {"64": "64 envs", "128": "128", "256": "256", "1,024": "1,024", "4,096": "4,096"}
    others = {"reference": "reference", "SimPy": "SimPy", "SimPy x2": "SimPy, two processes", "sched-sim": "sched-sim"}
    sizes, others = (
        {key: words for key, words in each.items() if any(key in cases for cases in found.values())}
        for each in (sizes, others)
    )
    rows = [
        [name, *(f"{cases[key]['median']:,}" if key in cases else "-" for key in (*sizes, *others))]
        for name, cases in found.items()
        if "64" in cases
    ]
    return markdown(["Situation, router", *sizes.values(), *others.values()], rows)


def simulator_limits() -> str:
    """A step of the simulator against the ceilings of a core."""
    return markdown(LIMITS_HEADER, limits_rows(read("simulator_speed")["limits"]))


LIMITS_HEADER = ("", "A decision takes", "A core has, or a step", "Share of it")


def limits_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What `benchmarks.limits` found, below `LIMITS_HEADER`."""
    starts = found["step_of_one_us"]
    return [
        (
            "arithmetic",
            f"{found['operations_per_decision']:,.0f} operations",
            f"{found['peak_operations_per_s'] / 1e9:.0f} G/s",
            f"{found['share_of_arithmetic']:.0%}",
        ),
        (
            "passes over memory",
            f"{found['bytes_per_decision'] / 1e3:.0f} KB",
            f"{found['peak_bytes_per_s'] / 1e9:.0f} GB/s",
            f"{found['share_of_bandwidth']:.0%}",
        ),
        (
            f"starts of {found['kernels_per_step']} kernels",
            "-",
            f"{starts:.0f} of {found['step_us']:.0f} µs",
            f"{starts / found['step_us']:.0%}",
        ),
    ]


def laptop_tier() -> str:
    """Right answers of the laptop tier."""
    found = read("laptop_tier")["quality"]
    header = [name.replace("_", " ") for name in next(iter(found.values()))]
    return markdown(["Model", *header], [[model, *map(percent, row.values())] for model, row in found.items()])


def laptop_bursts() -> str:
    """All routers of the quickstart with the profile `laptop`."""
    rows = [
        [
            _focused(name, name),
            _focused(name, percent(row["performance"])),
            points(_negative(row["performance_difference"])),
            percent(row["slo_attainment"]),
        ]
        for name, row in sorted(_rows("quickstart_laptop")[0][1].items(), key=_performance, reverse=True)
    ]
    return markdown(["Router", "Performance (%)", "Learned is ahead by (points)", "SLO attainment (%)"], rows)


def measured_bursts() -> str:
    """The laptop tier under bursts, as it was served and as it was simulated."""
    rows = []
    for name, found in read("measured_vs_simulated")["settings"].items():
        which, router = name.split(", ")
        if which == "bursts":
            measured = ", ".join(percent(one["performance"]) for one in found["measured"])
            right = ", ".join(map(percent, found["right_and_in_time"]))
            cells = (router, measured, percent(found["simulated"]["performance"]), right)
            rows.append([_focused(router, cell) for cell in cells])
    return markdown(["Router", "Measured, twice (%)", "Simulated (%)", "Right and in time (%)"], rows)


def virtual_vs_simulated() -> str:
    """The engine in virtual time against the simulator."""
    shown = ("end to end P50", "end to end P95", "first token P50", "first token P95", "in time")
    rows = []
    for name, row in read("virtual_vs_simulated")["data"]["rows"].items():
        wrong, again = row["simulated_wrong"], row["repetition"]
        rows.append([name, *(f"{100 * wrong[key]:+.1f} ({100 * again[key]:.1f})" for key in shown)])
    return markdown(["List, router", *(f"{key}, {'points' if key == 'in time' else '%'}" for key in shown)], rows)


def live_headline() -> str:
    """Right answers in time, live and predicted."""
    found = read("live_headline")["data"]
    live, predicted = (found["shares"][key] for key in ("right and in time", "predicted"))
    settings = [name for name in live if name != "all"]
    rows = []
    for name in sorted(live["all"], key=lambda router: -float(np.mean(live["all"][router]))):
        cells = [f"{percent(float(np.mean(each[name])))}" for each in (live["all"], predicted["all"])]
        ahead = found["ahead"]["all"].get(name)
        cells.append("" if ahead is None else points(ahead))
        cells += [f"{percent(float(np.mean(live[key][name])))}" for key in settings]
        rows.append([f"{name} (the best rule)" if name == found["rule"] else name, *cells])
    return markdown(["Router", "All", "Predicted", "`search` is ahead by (points)", *settings], rows)


def live_http() -> str:
    """Right answers in time over HTTP, each list twice, and predicted."""
    found = read("live_http")["rows"]
    rows = [
        [
            name,
            *(", ".join(percent(share) for share in row[key]) for key in ("right_and_in_time", "in_time")),
            percent(row["predicted"]),
            percent(row["predicted_in_time"]),
        ]
        for name, row in found.items()
    ]
    return markdown(["Asked", "Right and in time, twice", "In time, twice", "Predicted", "In time, predicted"], rows)


def closed_loop() -> str:
    """What a gateway does before and after it mends its profile."""
    rows = [
        [
            believed,
            *(percent(row[key]) for key in ("right_and_in_time", "in_bursts", "in_time")),
            " / ".join(f"{share:.0%}" for share in row["by_model"]),
        ]
        for believed, row in read("closed_loop")["played"].items()
    ]
    return markdown(["The gateway believes", "Right and in time", "In bursts", "In time", "By model"], rows)


def cluster() -> str:
    """A sweep on one worker and on two, and what more would take."""
    found = read("cluster")
    rows = []
    for name, each in found["seconds"].items():
        model = found["models"][name]
        more = [f"{one['speed_up']:.1f}" for one in model["workers"].values()]
        walls = [f"{each[workers]['wall']:.0f} s" for workers in each]
        rows.append(
            [{"ray": "Ray cluster", "local": "local processes"}[name], *walls, f"{model['speed_up_of_two']:.2f}", *more]
        )
    more_workers = [f"of {workers}, worked out" for workers in next(iter(found["models"].values()))["workers"]]
    return markdown(["Where", "1 worker", "2 workers", "Speed-up of 2", *more_workers], rows)


def heuristics() -> str:
    """What the rules do, and the numbers that tuning finds for them."""
    rows = [
        [f"`{name}`", about.description, ", ".join(about.settings) or "-"]
        for name, about in ROUTER_NAMES.items()
        if about.rival and name != "static"
    ]
    return markdown(["Router", "What it does", "Tuned"], rows, words=3)


def versions() -> str:
    """By version of the package the files of results that it wrote, and the hours that its experiments took."""
    made: dict[str, list[str]] = {}
    hours: dict[str, float] = {}
    for path in sorted(RESULTS.rglob("*.json")):
        name = path.relative_to(RESULTS).with_suffix("").as_posix()
        record = read(name)
        about = record if isinstance(record, dict) else {}
        version = about.get("version") or about.get("versions", {}).get("besteffort", "not stated")
        made.setdefault(version, []).append(name)
        if name in EXPERIMENTS:
            hours[version] = hours.get(version, 0.0) + record["seconds"] / 3600
    rows = []
    for version, names in sorted(made.items()):
        experiments, others = (
            ", ".join(f"`{name}`" for name in names if (name in EXPERIMENTS) == reproduced) or "-"
            for reproduced in (True, False)
        )
        rows.append([version, experiments, f"{hours[version]:.1f}" if version in hours else "-", others])
    return markdown(["Version", "Experiments of `reproduce`", "Their hours", "Other files"], rows, words=4)


TABLES: Mapping[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        headline,
        claims,
        stable_load,
        near_peak,
        where_it_pays,
        rivals,
        methods,
        mixed_hardware,
        any_profile,
        estimate_ablations,
        estimates,
        estimate_costs,
        gateway_costs,
        gateway_waits,
        gateway_sizing,
        old_grids,
        bursts,
        traces,
        fit_vllm,
        fit_servers,
        roofline_check,
        learners,
        sweep,
        decisions,
        opt_speed,
        exactness,
        simulator_speed,
        simulator_limits,
        laptop_tier,
        laptop_bursts,
        measured_bursts,
        virtual_vs_simulated,
        live_headline,
        live_http,
        closed_loop,
        cluster,
        heuristics,
        versions,
    )
}

_LEARNERS = {
    "ours": "ours",
    "gymnax loop": "DQN loop as in purejaxrl, on the gymnax adapter",
    "Stable-Baselines3, tuned": "Stable-Baselines3 DQN, tuned, on the vectorised adapter",
    "Stable-Baselines3, as it comes": "Stable-Baselines3 DQN as it comes, one environment",
}
_TIMES = ("end to end", "first token")
_NETWORKS = {"trained": "trained, an ensemble of four"}


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def written(page: str, title: str) -> str:
    """A table of a page that an experiment writes next to its JSON file."""
    _, _, rest = (RESULTS / page).read_text("utf-8").partition(f"### {title}\n\n")
    return rest.partition("\n\n")[0] + "\n"


def percent(value: Any, digits: int = 1) -> str:
    """A share, with its interval where it has one."""
    return _cell(value, "percent", digits)


def points(value: Any, digits: int = 1) -> str:
    """A difference of shares, with its interval where it has one; nothing for None."""
    return "" if value is None else _cell(value, "points", digits)


def _cell(value: Any, kind: Kind, digits: int) -> str:
    """A figure as a file of results has it: a number, a mean with its interval, or a pair of both."""
    if isinstance(value, dict):
        value = value["mean"], value["half_width"]
    if isinstance(value, Sequence):
        mean, half_width = (math.nan if one is None else one for one in value)
        value = Interval(np.asarray(mean), np.asarray(math.inf if math.isnan(half_width) else half_width), 0)
    return format_cell(value, Column("", kind, digits))


def _sustained() -> dict[str, str]:
    """Up to which load routers are available, in the units of loads, which the claim gives as a multiple."""
    sustained = read("stable_load")["data"]["sustained_load"]
    static = [name for name in sustained if name.startswith("always ")]
    heuristics = [name for name in sustained if name not in (LEARNED, *static)]

    def best(names: list[str]) -> str:
        name = max(names, key=lambda name: float(sustained[name]["mean"]))
        return f"{sustained[name]['mean']:.1f} ± {sustained[name]['half_width']:.1f} ({name})"

    learned = f"{sustained[LEARNED]['mean']:.1f} ± {sustained[LEARNED]['half_width']:.1f}"
    return {"ours": learned, "static": best(static), "heuristic": best(heuristics), "bound": "-"}


def _of_claim(experiment: str, begins: str) -> dict[str, str]:
    claim = next(one for one in read(experiment)["claims"] if one["claim"].startswith(begins))
    return {key: claim[key] or "-" for key in ("ours", "static", "heuristic", "bound")}


def _under_bursts() -> dict[str, str]:
    """What a searched rule gains under bursts, and what the best in hindsight of the others does."""
    found = read("methods")["data"]
    row = found["compared"]["bursts"]
    bound = float(np.mean(found["settings"]["bursts"]["bound"]))
    return {
        "ours": f"{percent(row['search'])}% ({points(row['search, ahead'], 2)} points)",
        "static": f"{percent(row['static'])}%",
        "heuristic": f"{percent(row['rival'])}%",
        "bound": f"{percent(bound)}%",
    }


def searched_in_sixteen_settings() -> dict[str, dict[str, Any]]:
    """What `methods` found in the settings of `where_it_pays`, whose default is its bursts."""
    compared = read("methods")["data"]["compared"]
    return {name: compared.get(name, compared["bursts"]) for name in read("where_it_pays")["data"]}


def _in_sixteen_settings() -> dict[str, str]:
    found = list(searched_in_sixteen_settings().values())
    ahead = [row["search, ahead"] for row in found]
    of_static = [row["search, ahead of static"] for row in found]
    sure = sum(one["mean"] > one["half_width"] for one in ahead)
    behind = sum(one["mean"] < -one["half_width"] for one in ahead)
    least, most = (extreme(ahead, key=lambda one: float(one["mean"])) for extreme in (min, max))
    return {
        "ours": (
            f"ahead of the best heuristic beyond the interval in {sure} of {len(found)}, behind in {behind}; from "
            f"{points(least, 2)} to {points(most, 2)} points"
        ),
        "static": f"ahead in {sum(one['mean'] > one['half_width'] for one in of_static)} of {len(found)}",
        "heuristic": "-",
        "bound": "-",
    }


def _negative(value: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if value is None else {**value, "mean": -value["mean"]}


def _focused(router: str, cell: str) -> str:
    return f"**{cell}**" if router == LEARNED else cell


def _rows(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Per set and load of a quickstart its name and the figures of every router."""
    return [
        (f"{judged['evaluation_set'].replace('_', ' ')} {load['load']:.2g}", load["rows"])
        for judged in read(name)
        for load in judged["loads"]
    ]


def _performance(row: tuple[str, dict[str, Any]]) -> float:
    value = row[1]["performance"]
    return float(value["mean"] if isinstance(value, dict) else value)


def differences() -> Iterator[str]:
    """Lines in which pages differ from the results."""
    for page, wanted in _wanted().items():
        lines = page.read_text("utf-8").splitlines()
        name = str(page.relative_to(ROOT))
        yield from difflib.unified_diff(lines, wanted.splitlines(), name, "results", n=0, lineterm="")


def _wanted() -> dict[Path, str]:
    """Per page the text that the results give it."""
    found = {page: filled(page.read_text("utf-8")) for page in pages()}
    # An experiment that runs alone leaves the page of all claims as it is.
    return found | {RESULTS / "claims.md": claims_page(claims_table(EXPERIMENTS, RESULTS), RESULTS)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    if parser.parse_args().check:
        found = list(differences())
        print("\n".join(found) or "All tables are as in results/.")
        return int(bool(found))
    for page, wanted in _wanted().items():
        if wanted != page.read_text("utf-8"):
            write_text(page, wanted)
            print(page.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
