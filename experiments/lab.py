"""What experiments share: how much of everything, trainings that are found again, judging, results with figures.

An experiment is a module of `experiments/` with a function `run(lab) -> Findings` and, as its last line,
`main(run, __file__)`, which gives it a command line. Nothing that is done is done twice: a training is kept under what
it depends on, so that experiments share it and an interrupted one goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
import tyro
from annotated_types import Ge, Le
from matplotlib.figure import Figure
from rich.console import Console

from besteffort.console import exit_statuses, show
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.evaluation import plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import LEARNED, EvaluationResult, EvaluationSet, judge
from besteffort.evaluation.report import Table
from besteffort.evaluation.statistics import Interval
from besteffort.files import jsonable, os_errors_as_input_errors, read_json, write_json, write_text
from besteffort.learning import checkpoint
from besteffort.learning.train import Progress
from besteffort.policy import Policy
from besteffort.ranges import Count, NonNegative
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import Settings
from besteffort.runs.compilation import set_up_compilation
from besteffort.runs.config import from_mapping
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import CHECKPOINT, TrainingProblem, make_training_problem, train_policies
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Situation, as_text
from besteffort.version import __version__
from besteffort.workload.requests import Requests

T = TypeVar("T")

_SECONDS = "seconds.json"
_LISTS = 1_000  # seeds of lists from one seed to the next

ClaimStatus = Literal["holds", "holds in part", "does not hold", "no claim"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
      name: `full`, or `fast` for an indication within minutes.
      seeds: policies per training, and lists per load.
      ensemble_size: networks of a policy.
      decisions: of each network of the default situation.
      variant_decisions: of each network of one of many variants.
      requests: length of a list to judge on.
      tuning_requests: length of a list to tune heuristics on.
      warm_up_s: seconds of a list that do not count.
      seed: another one gives other networks and other lists throughout; each takes a thousand seeds of lists.
    """

    name: Literal["full", "fast"]
    seeds: Annotated[int, Ge(2)]
    ensemble_size: Count
    decisions: Count
    variant_decisions: Count
    requests: Annotated[int, Ge(2)]
    tuning_requests: Annotated[int, Ge(2)]
    warm_up_s: NonNegative
    seed: Annotated[int, Ge(0), Le(10_000)] = 0


FULL = Scale("full", 5, 4, 2_097_152, 524_288, 30_000, 20_000, 6.0)
FAST = Scale("fast", 3, 1, 524_288, 196_608, 6_000, 3_200, 1.0)


_AMOUNTS = ("seeds", "ensemble_size", "decisions", "variant_decisions", "requests", "tuning_requests")

FINE_TUNING = {"epsilon_start": 0.1, "learning_rate": 1e-4}
"""Numbers of a training that starts from policies: it explores little and learns slowly, to keep what they have.

The baseline network, which no policy carries, starts anew; at five times this rate its first, wrong values undid much
of what the policies had learnt (seen on the lists of `experiments/soft_deadlines.py`, on which it is judged, too).
"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the page that sets the paper's figures next to ours.

    Attributes:
      claim: what is claimed.
      paper: the paper's figure; empty where it has none.
      ours: our figure, with its interval.
      static: the best static model's, on the same requests.
      heuristic: the best heuristic's, with its name.
      bound: what no router can exceed; empty where there is none.
      status: whether it holds here.
    """

    claim: str
    paper: str
    ours: str
    static: str = ""
    heuristic: str = ""
    bound: str = ""
    status: ClaimStatus = "no claim"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
      data: every figure, as plain JSON values.
      claims: lines for the page of claims.
      tables: to read.
      figures: by the end of their file's name; the one named "" has the experiment's own name.
    """

    data: Any
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Lab:
    """Where an experiment is done.

    Attributes:
      scale: how much of everything.
      work: directory that keeps trainings.
      data: directory with public traces, see docs/research.md; None where there is none.
      log: called with what is going on, line by line.
      missing: names of traces that were asked for and not at hand.
    """

    scale: Scale
    work: Path
    data: Path | None = None
    log: Callable[[str], None] = lambda line: None
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def evaluation(self) -> EvaluationConfig:
        """How to judge at this scale."""
        scale = self.scale
        return EvaluationConfig(
            seed=_LISTS * (1 + scale.seed),
            seeds=scale.seeds,
            requests=scale.requests,
            tuning_requests=scale.tuning_requests,
            warm_up_s=scale.warm_up_s,
        )

    def training(self, *, variant: bool = False, **changes: Any) -> TrainingConfig:
        """The default training at this scale; `changes` are fields of `TrainingConfig`."""
        given = changes.pop("config", {})
        decisions = self.scale.variant_decisions if variant else self.scale.decisions
        amount = {"ensemble_size": self.scale.ensemble_size, "decisions": decisions}
        config = dataclasses.replace(TrainingConfig().config, **(amount | given))
        seed = self.scale.seed * self.scale.seeds
        return TrainingConfig(seed=seed, seeds=self.scale.seeds, config=config, **changes)

    def selected(self, cases: Mapping[str, T], *, fast: Collection[str]) -> dict[str, T]:
        """Of the cases of an experiment those to do: all, or at the fast scale those that are named.

        Raises:
          ValueError: if a name is no case's.
        """
        if unknown := set(fast) - cases.keys():
            raise ValueError(f"There is no case {', '.join(sorted(unknown))}.")
        return {name: case for name, case in cases.items() if self.scale.name == "full" or name in fast}

    def train(
        self,
        situation: Situation,
        training: TrainingConfig,
        *,
        name: str,
        workload: Any = None,
        start: Sequence[Policy] = (),
        lengths: Requests | None = None,
        lists: tuple[Requests, ...] | None = None,
        selection: tuple[Requests, ...] | None = None,
    ) -> list[Policy]:
        """One policy per seed; trained once for all experiments, and continued where it was interrupted.

        Networks seed by seed, because those of many, side by side, are slower: they outgrow the processor's caches.

        Args:
          situation: what to train for.
          training: how.
          name: what to call it while it goes on.
          workload: train on this instead of the workload that `training` names.
          start: policies to start from instead of random networks, one for each seed. From a policy that is a rule,
            networks take over the rule.
          lengths: train for requests like these, see `make_training_problem`.
          lists: search on these instead of draws of the workload.
          selection: choose on these among what was learned, instead of draws of the workload.
        """
        starts: Sequence[Policy | None] = start or [None] * training.seeds
        problems = (
            _training_problem(situation, one, workload, policy, lengths, lists, selection)
            for one, policy in zip(_each(training), starts, strict=False)
        )
        return [
            policy for problem in problems for policy in self._train(problem, f"{name}, policy {problem.training.seed}")
        ]

    def _train(self, problem: TrainingProblem, name: str) -> list[Policy]:
        out = self._place(problem)
        with os_errors_as_input_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        done = out / _SECONDS

        def log_progress(latest: Progress) -> None:
            if latest.point == latest.points or latest.point % max(1, latest.points // 2) == 0:
                reward = float(latest.metrics["reward"].mean())
                self.log(f"training {name}: {latest.point}/{latest.points}, mean reward {reward:.3f}")

        with _alone(out / "lock"):
            resumed = checkpoint.exists(out / CHECKPOINT)
            started = time.perf_counter()
            policies = train_policies(problem, out, progress=log_progress)
            if not done.exists():
                write_json(done, None if resumed else round(time.perf_counter() - started, 1))
        return list(policies.values())

    def seconds(self, situation: Situation, training: TrainingConfig) -> float:
        """Median over the seeds of how long the training of a policy took when it was done; nan if not known of any.

        Compilation counts, where it was not kept from before. Trainings that were interrupted do not count.
        """
        places = [self._place(make_training_problem(situation, one)) / _SECONDS for one in _each(training)]
        known = [read_json(place) for place in places]
        return float(np.median([seconds for seconds in known if seconds is not None] or [np.nan]))

    def _place(self, problem: TrainingProblem) -> Path:
        return self.work / "trainings" / _digest(problem)

    @property
    def amount(self) -> str:
        """The scale in a word, for names of files; one whose numbers were changed has another, as have environments."""
        scale = self.scale
        usual = dataclasses.replace(FULL if scale.name == "full" else FAST, seed=scale.seed)
        changed = "" if scale == usual else f"-{hashlib.sha256(repr(scale).encode()).hexdigest()[:8]}"
        return f"{scale.name}-{scale.seed}{changed}{self.environment}"

    @property
    def environment(self) -> str:
        """The end of a file's name that keeps apart what was found in other versions of the environment."""
        return f"-environment-{ServingEnvironment.version}"

    def kept(self, what: str, name: str, made: EvaluationSet) -> Path:
        """The file that keeps what was found in a setting at this scale; another one where other lists are judged."""
        lists = [*made.tuning, *itertools.chain(*made.judged)]
        columns = [(f"{field} {i}", values) for i, each in enumerate(lists) for field, values in each.columns.items()]
        digest = array_digest(columns, start=f"{as_text(made.situation)} {made.warm_up_s}")[:12]
        plain = re.sub(r"[^a-z0-9.]+", "-", name.lower())
        return self.work / what / f"{self.amount}-{plain}-{digest}.json"

    def judge(
        self,
        evaluation_set: EvaluationSet,
        policies: Mapping[str, Sequence[Policy]] | Sequence[Policy],
        tuned: Mapping[str, Settings] | None = None,
    ) -> EvaluationResult:
        """Every router on the lists of a set; policy `i` plays the lists of seed `i`. `tuned` as for `judge`."""
        if not isinstance(policies, Mapping):
            policies = {LEARNED: policies}
        self.log(f"judging on {evaluation_set.title.lower()}, {len(evaluation_set.loads)} load(s)")
        routers = {name: [learned_router(policy) for policy in each] for name, each in policies.items()}
        return judge(evaluation_set, routers, self.evaluation, tuned)

    def trace(self, name: str) -> Path | None:
        """A public trace by its file name, if it is at hand."""
        path = None if self.data is None else self.data / name
        if path is None or not path.is_file():
            self.log(f"{name} is not at hand (`--data DIR` names its directory): left out")
            self.missing.append(name)
            return None
        return path


def main(run: Callable[[Lab], Findings], file: str) -> None:
    """The command line of an experiment.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    name = Path(file).stem
    description = (sys.modules["__main__"].__doc__ or "").strip()
    set_up_compilation()
    with exiting(name):
        arguments = tyro.cli(Arguments, prog=f"python -m experiments.{name}", description=description)
        findings = conduct(run, name, arguments)
    for table in findings.tables:
        show(table)


@contextlib.contextmanager
def exiting(name: str) -> Iterator[None]:
    """Ends the process, where the block ends early, as `besteffort.console.exit_statuses` says."""
    with exit_statuses(name) as ended:
        yield
    if ended.status:
        raise SystemExit(ended.status)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Command line of every experiment.

    Attributes:
      out: directory for the results.
      work: directory that keeps trainings; experiments share them.
      data: directory with the public traces, for experiments that use them.
      fast: fewer seeds, decisions and requests, for an indication within minutes.
      seeds: policies per training, instead of the scale's.
      ensemble_size: networks of a policy, instead of the scale's.
      decisions: of each network of the default situation, instead of the scale's.
      variant_decisions: of each network of one of many variants, instead of the scale's.
      requests: length of a list to judge on, instead of the scale's.
      tuning_requests: length of a list to tune on, instead of the scale's.
      warm_up_s: seconds of a list that do not count, instead of the scale's.
      seed: another one gives other networks and other lists throughout.
      svg: also write figures as SVG.
    """

    out: Path = Path("results")
    work: Path = Path("runs/lab")
    data: Path | None = None
    fast: bool = False
    seeds: int | None = None
    ensemble_size: int | None = None
    decisions: int | None = None
    variant_decisions: int | None = None
    requests: int | None = None
    tuning_requests: int | None = None
    warm_up_s: float | None = None
    seed: int | None = None
    svg: bool = False

    def scale(self) -> Scale:
        """The scale, checked.

        Raises:
          InputError: if a number is out of range.
        """
        base = dataclasses.asdict(FAST if self.fast else FULL)
        given = {key: getattr(self, key) for key in base if key != "name" and getattr(self, key) is not None}
        return from_mapping(Scale, {**base, **given}, "Command line")


def conduct(run: Callable[[Lab], Findings], name: str, arguments: Arguments) -> Findings:
    """Runs an experiment and writes `<name>.json`, `<name>.md` and its figures to `arguments.out`.

    Raises:
      InputError: if a number is out of range, an indication would replace a result of the full scale, a trace is
        damaged, or a file cannot be written.
    """
    if arguments.data is not None and not arguments.data.is_dir():
        raise InputError(f"{arguments.data}: there is no such directory; give `--data` the one with the traces.")
    scale = arguments.scale()
    check_replaced(arguments.out / f"{name}.json", scale)
    started = time.perf_counter()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    lab = Lab(scale, arguments.work, arguments.data, lambda line: console.print(f"{name}: {line}"))
    with os_errors_as_input_errors(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    findings = run(lab)
    for suffix, figure in findings.figures.items():
        plots.save_figure(figure, arguments.out / (f"{name}_{suffix}" if suffix else name), svg=arguments.svg)
    if findings.tables:
        write_text(arguments.out / f"{name}.md", "\n".join(table.markdown() for table in findings.tables))
    record = {
        "experiment": name,
        "version": __version__,
        "environment": ServingEnvironment.version,
        "scale": dataclasses.asdict(scale),
        "traces": arguments.data is not None and not lab.missing,
        "seconds": round(time.perf_counter() - started, 1),
        "claims": [dataclasses.asdict(claim) for claim in findings.claims],
        "data": findings.data,
    }
    write_json(arguments.out / f"{name}.json", jsonable(record))
    return findings


def check_replaced(path: Path, scale: Scale) -> None:
    """Checks that no indication replaces a result of the full scale.

    Raises:
      InputError: if one would.
    """
    try:
        known = is_indication(read_json(path)["scale"])
    except (InputError, KeyError, TypeError):
        return
    if not known and is_indication(dataclasses.asdict(scale)):
        how = "`--fast`" if scale.name == FAST.name else "one of fewer seeds, decisions or requests"
        raise InputError(
            f"{path}: this is a result of the full scale, which {how} would replace by an indication; name another "
            "directory, `--out DIR`."
        )


def is_indication(scale: Mapping[str, Any]) -> bool:
    """Whether a scale, as records state it, has less of anything than the full one."""
    return any(scale[name] < getattr(FULL, name) for name in _AMOUNTS)


def status_of(held: int, of: int) -> ClaimStatus:
    """How a claim about several cases stands that holds in some of them."""
    return "holds" if held == of else "holds in part" if held else "does not hold"


def status_of_ratio(ratio: Interval, *, reached: bool) -> ClaimStatus:
    """How a claim about a multiple stands: in part if it was not reached, but more than one is."""
    return "holds" if reached else "holds in part" if ratio.mean > 1 else "does not hold"


def _each(training: TrainingConfig) -> list[TrainingConfig]:
    """The trainings of single seeds; a search has all of them at once."""
    if training.method == "search":
        return [training]
    return [dataclasses.replace(training, seeds=1, seed=training.seed + index) for index in range(training.seeds)]


def _training_problem(
    situation: Situation,
    training: TrainingConfig,
    workload: Any,
    start: Policy | None,
    lengths: Requests | None,
    lists: tuple[Requests, ...] | None,
    selection: tuple[Requests, ...] | None,
) -> TrainingProblem:
    problem = make_training_problem(situation, training, lengths)
    if workload is not None:
        problem = dataclasses.replace(problem, workload=workload)
    if start is not None:
        begun = {"rule": start.rule} if start.is_rule else {"weights": start.weights, "rule": start.rule}
        problem = dataclasses.replace(problem, **begun)
    return dataclasses.replace(problem, lists=lists, selection=selection)


def fingerprint(situation: Situation) -> tuple[str, str]:
    """The digest of a situation's profile, and all the rest of it in words."""
    fields = {field.name: getattr(situation, field.name) for field in dataclasses.fields(situation)}
    # Left out where it is not stated, so that what was done before this field existed is found again.
    return fields.pop("profile").digest(), as_text(fields).replace(", output_quantiles=None", "")


def _digest(problem: TrainingProblem) -> str:
    """What a training depends on, in a word."""
    profile, rest = fingerprint(problem.situation)
    content = {
        "profile": profile,
        "situation": rest,
        "training": repr(problem.training),
        "workload": _digest_of(problem.workload),
        "weights": _digest_of(problem.weights),
        "rule": _digest_of(problem.rule),
        "lists": _digest_of([list(requests.columns.values()) for requests in problem.lists or ()]),
        "version": (__version__, ServingEnvironment.version, jax.__version__),
    }
    if problem.selection is not None:
        content["selection"] = _digest_of([list(requests.columns.values()) for requests in problem.selection])
    if problem.actual is not None:
        content["actual"] = fingerprint(problem.actual)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digest_of(tree: Any) -> str:
    return array_digest((f"{index}", leaf) for index, leaf in enumerate(jax.tree.leaves(tree)))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, where the file system has locks."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
