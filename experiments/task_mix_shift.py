"""Claim 4, task-mix shift: trained and tuned on equal shares, judged on others.

    python -m experiments.task_mix_shift [--fast]

The paper: robust when the task mix shifts. Judged under the same bursty arrivals on each single task, on mixes of 90/10
and 95/5, and on a mix that flips from the first half of the tasks to the second in the middle of a run. Heuristics keep
the setting that they have for equal shares, like the network.
"""

from __future__ import annotations

import dataclasses

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, points
from besteffort.evaluation.judging import burst_set, synthetic_set
from besteffort.evaluation.ranking import as_setting, ranking, settings_table
from besteffort.evaluation.statistics import mean_interval
from besteffort.runs.config import load_situation
from besteffort.workload.config import MixConfig
from experiments.lab import Claim, Findings, Lab, main, status_of


def run(lab: Lab) -> Findings:
    """Judges the default situation's policies on every mix."""
    situation = load_situation("paper")
    policies = lab.train(situation, lab.training(), name="paper")
    judging = lab.evaluation
    even = burst_set(situation, judging)
    half_s = float(even.judged[0][0].arrival_s[-1]) / 2
    settings, data, tuned = [], {}, None
    for group, name, mix in mixes(situation.task_names, half_s):
        burst = dataclasses.replace(judging.burst, mix=mix)
        evaluation_set = synthetic_set("mix", f"bursts of {name}", situation, judging, even.loads, [burst])
        evaluation = lab.judge(evaluation_set, policies, tuned)
        tuned = evaluation.tuned  # of the first, which has equal shares
        one = ranking(evaluation)
        settings.append(as_setting(group, name, evaluation))
        data[name] = {
            "learned": mean_interval(one.learned),
            "best_heuristic": [one.heuristic[0], mean_interval(one.heuristic[1])],
            "best_static": [one.static[0], mean_interval(one.static[1])],
            "ahead_of_heuristic": one.ahead_of_heuristic,
            "ahead_of_static": one.ahead_of_static,
            "bound": float(evaluation.bounds[0].performance),
        }
    shifted = settings[1:]
    worst = min(shifted, key=lambda setting: float(setting.ahead.mean))
    share = min(float(setting.learned.mean) / setting.bound for setting in shifted)
    behind = [setting.name for setting in shifted if setting.ahead.high < 0]
    claim = Claim(
        "Robust when the task mix shifts: single tasks, 90/10, 95/5, a flip during the run",
        "robust",
        f"at least {percent(share)} of the bound; behind the best heuristic beyond the interval on {len(behind)} of "
        f"{len(shifted)} mixes, at worst {points(float(worst.ahead.mean), 2)} points ({worst.name})",
        static=f"ahead by {100 * min(float(s.learned.mean) - s.static for s in shifted):.1f} points or more",
        status=status_of(len(shifted) - len(behind), len(shifted)),
    )
    title = "Trained on equal shares of the tasks, judged on other mixes"
    return Findings(
        data, [claim], [settings_table(title, "Mix", settings)], {"": plots.plot_settings(settings, title=title)}
    )


def mixes(tasks: tuple[str, ...], half_s: float) -> list[tuple[str, str, MixConfig]]:
    """Group, name and mix of every setting; the first one is what was trained on."""
    count = len(tasks)

    def shares(main: int, share: float) -> tuple[float, ...]:
        return tuple(share if task == main else (1 - share) / (count - 1) for task in range(count))

    early = tuple(float(task < count // 2) for task in range(count))
    late = tuple(1 - share for share in early)
    return [
        ("as trained", "equal shares", MixConfig((shares(0, 1 / count),))),
        *(("one task", f"only {name}", MixConfig((shares(task, 1.0),))) for task, name in enumerate(tasks)),
        *(("mostly one task", f"90/10 {name}", MixConfig((shares(task, 0.9),))) for task, name in enumerate(tasks)),
        *(("mostly one task", f"95/5 {name}", MixConfig((shares(task, 0.95),))) for task, name in enumerate(tasks)),
        ("during the run", "flips in the middle", MixConfig((early, late), (0.0, half_s))),
    ]


if __name__ == "__main__":
    main(run, __file__)
