"""The laptop tier behind the gateway's core, in virtual time: what experiments with the real engine share.

The core is the one of `besteffort serve`, the engine computes every token, and both go by the engine's clock: see
`besteffort.opt.virtual`. There is no HTTP in between, and a decision takes no time.
"""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from besteffort.device import device_name
from besteffort.digests import array_digest
from besteffort.files import jsonable, read_json, read_jsonl, write_json, write_jsonl
from besteffort.gateway.config import GatewayConfig, Listen, Pool
from besteffort.gateway.core import Ask, Claim, Core, RefusedError
from besteffort.gateway.snapshot import make_snapshot
from besteffort.in_flight import Decision, InFlight
from besteffort.laptop import MODELS, compute_in_one_thread, model_directory
from besteffort.laptop.quality import right_tokens
from besteffort.laptop.requests import CaseList, with_cases
from besteffort.laptop.tasks import ANSWER_TOKENS, CONTEXT
from besteffort.opt.driver import result_of
from besteffort.opt.engine import Answer, Pace, Part
from besteffort.opt.runtime import Buckets
from besteffort.opt.virtual import VirtualEngine
from besteffort.opt.weights import load_model
from besteffort.policy import Policy
from besteffort.profile import ModelProfile, Source
from besteffort.profile.types import Points
from besteffort.profiling.measure import Measurement, Sampler, staircase
from besteffort.pytrees import node_types
from besteffort.routers.baselines import StaticRouter
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.untrained import default_policy
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.simulator.types import EnvParams, Router, reads_in_flight
from besteffort.situation import Situation
from besteffort.validation import from_json
from besteffort.workload import rescale
from besteffort.workload.config import Poisson, RandomRates, Synthetic
from besteffort.workload.config import build as build_workload
from besteffort.workload.sample import sample_workload
from experiments.lab import Lab, fingerprint

SLOWDOWN_TAU_S = 5.0
"""Machines that are slower than they were when they were measured are noticed."""

WORKLOAD = RandomRates(low=0.05, high=6.0)
"""What policies are trained on."""

_WARM_UP, _ROUNDS = 5, 80  # iterations of each kind that a figure is the mean of
_IN_SERVICE, _TIMED, _TIMED_SEED = (0.6, 0.95), 300, 10_000  # shares of what a model can do, requests of a list
_AS_IF = 10.0  # iterations of its own that a table's size counts as
_DECISIONS, _ENSEMBLE = 131_072, 2
_MOST = 100_000  # requests in work


@dataclasses.dataclass(frozen=True)
class Contender:
    """What decides, live and in the simulator.

    Attributes:
      policy: what the gateway's books are made of, and what decides unless there is a rule.
      only: the one model that the gateway has; None: all.
      rule: a router of the simulator that decides in place of the policy.
    """

    policy: Policy
    only: int | None = None
    rule: Router | None = None

    @property
    def router(self) -> Router:
        """The same in the simulator."""
        if self.only is not None:
            return StaticRouter(np.int32(self.only))
        return learned_router(self.policy) if self.rule is None else self.rule


@dataclasses.dataclass(frozen=True)
class Live:
    """What came of a list.

    Attributes:
      result: as of a simulation.
      right: (n,) whether the answer is the right one, be it in time or not.
      left: requests, claims and places that the core still counted at the end: 0, unless it lost one.
    """

    result: Result
    right: np.ndarray
    left: int


def make_engine(paces: Mapping[str, Pace] | None = None, *, warm: bool = True) -> VirtualEngine:
    """The laptop tier; each model with the places that the configuration `laptop` says.

    Args:
      paces: how long iterations last, if not as long as they take.
      warm: compile all programs now, not when they are needed.
    """
    cluster = load_situation("laptop").cluster
    engine = VirtualEngine(
        {name: load_model(model_directory(name)) for name in MODELS},
        max_batch=cluster.max_batch,
        queue_capacity=cluster.queue_capacity,
        context=CONTEXT,
        paces=paces,
    )
    if warm:
        asyncio.run(engine.warm_up())
    return engine


def prepare(lab: Lab, *, every: int) -> tuple[VirtualEngine, Sampler, Situation]:
    """The engine, what tells the machine's pace, and what the engine is in the simulator.

    The engine is measured once for all experiments: its clock is that of the machine at the pace that it had then, and
    policies that were trained for its tables are found again.

    Args:
      lab: keeps the figures.
      every: see `Sampler`.
    """
    compute_in_one_thread()
    lab.log("loading and compiling the engine")
    engine = make_engine()
    sampler = Sampler(engine, every=every)
    place = lab.work / "live" / "figures.jsonl"
    if not place.exists():
        lab.log("measuring the engine")
        sampler.measure(_WARM_UP)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(place, [dataclasses.asdict(figure) for figure in sampler.measure(_ROUNDS)])
    figures = [from_json(Measurement, json.dumps(line), str(place)) for line in read_jsonl(place)]
    alone = situation_with(sampler.take(figures))
    engine.gauge = sampler.gauge
    kept = lab.work / "live" / "in_service.json"
    if not kept.exists():
        lab.log("timing iterations in service")
        write_json(kept, [dataclasses.asdict(model) for model in in_service(engine, alone)])
    tables = [from_json(ModelProfile, json.dumps(model), str(kept)) for model in read_json(kept)]
    return engine, sampler, situation_with(tables)


def in_service(engine: VirtualEngine, situation: Situation) -> tuple[ModelProfile, ...]:
    """Tables of iterations as they come in service, where several prompts are read at once, and others decode.

    Each model alone plays lists of its own at most of what it can do. The sizes of its tables are corrected by the
    factors that make sums of them fit best (least squares of relative errors), drawn towards 1 where few iterations
    have them.

    Args:
      engine: idle, with its gauge.
      situation: what was measured.
    """
    rows: dict[str, list[tuple[int, list[Part], float]]] = {name: [] for name in MODELS}
    engine.timed = lambda model, decoding, parts, seconds: rows[model].append((decoding, parts, seconds))
    capacity = situation.capacity()
    for (index, contender), share in itertools.product(enumerate(static_contenders(situation).values()), _IN_SERVICE):
        load = share * float(capacity[index] / capacity[-1])
        play(engine, contender, listed(Poisson(load=load), situation, _TIMED, _TIMED_SEED), situation, exact=True)
    engine.timed = lambda model, decoding, parts, seconds: None
    instances = engine.instances
    return tuple(
        _corrected(model, instances[model.name].runtime.buckets, rows[model.name]) for model in situation.profile.models
    )


def _corrected(model: ModelProfile, buckets: Buckets, rows: Sequence[tuple[int, list[Part], float]]) -> ModelProfile:
    """A model whose tables fit iterations best: decoding, parts of prompts and seconds of each."""
    known_s = [[dict(table)[size] for size in sizes] for table, sizes in _tables(model, buckets)]
    first = len(buckets.batch)
    terms = np.zeros((len(rows), first + len(buckets.prompt)))
    for row, (decoding, parts, _) in zip(terms, rows, strict=True):
        if decoding:
            row[bisect.bisect_left(buckets.batch, decoding)] += 1
        for before, after in parts:
            row[first + bisect.bisect_left(buckets.prompt, after - before)] += 1
    relative = terms * np.concatenate(known_s) / np.array([took_s for _, _, took_s in rows])[:, None]
    few = np.sqrt(_AS_IF) * np.eye(terms.shape[1])
    wanted = np.concatenate([np.ones(len(rows)), np.diag(few)])
    factors = np.linalg.lstsq(np.concatenate([relative, few]), wanted, rcond=None)[0]
    decode, prefill = (
        staircase(dict(zip(sizes, (np.array(each_s) * factor).tolist(), strict=True)))
        for (_, sizes), each_s, factor in zip(_tables(model, buckets), known_s, np.split(factors, [first]), strict=True)
    )
    return dataclasses.replace(model, decode=decode, prefill=prefill)


def _tables(model: ModelProfile, buckets: Buckets) -> tuple[tuple[Points, tuple[int, ...]], ...]:
    return (model.decode, buckets.batch), (model.prefill, buckets.prompt)


def keep(lab: Lab, what: str, contender: Contender, listed: CaseList, play: Callable[[], Any], **about: Any) -> Any:
    """What a play gave, as JSON has it: from before, where it was of the same contender, list and `about`.

    Args:
      lab: keeps it.
      what: names the file, together with all the rest.
      contender: what decides.
      listed: the list.
      play: called where there is none.
      about: what else it depends on.
    """
    policy = contender.policy
    arrays = [*jax.tree.leaves((policy.rule, policy.weights, contender.rule)), *listed.requests.columns.values()]
    start = f"{fingerprint(policy.situation)} {contender.only} {sorted(about.items())}"
    digest = array_digest(((f"{index}", array) for index, array in enumerate(arrays)), start)[:16]
    place = lab.work / "live" / f"{re.sub('[^a-z0-9.]+', '-', what.lower())}-{digest}.json"
    if not place.exists():
        write_json(place, jsonable(play()))
    return read_json(place)


def pace(sampler: Sampler) -> dict[str, list[float]]:
    """Over all models, by how much slower than usual the machine was since this was asked last: mean and extremes."""
    found = {}
    for name, factors in sampler.factors.items():
        if factors:
            found[name] = [float(np.mean(factors)), float(np.min(factors)), float(np.max(factors))]
        factors.clear()
    return found


def raw_pace(sampler: Sampler, rounds: int) -> float:
    """How much slower iterations of all kinds are just now than when the engine was measured, on average."""
    now = sampler.measure(rounds)
    usual = {figure.point: figure.seconds for figure in sampler.usual}
    return float(np.mean([figure.seconds / usual[figure.point] for figure in now if figure.point.kind != "host"]))


def listed(workload: Synthetic, situation: Situation, requests: int, seed: int) -> CaseList:
    """A list of requests with known answers; at a constant load it has exactly that load."""
    times = sample_workload(build_workload(workload, situation), situation.task_names, requests, seed)
    found = with_cases(times, situation, seed=seed)
    if not isinstance(workload, Poisson):
        return found
    return dataclasses.replace(found, requests=rescale.to_load(found.requests, situation, workload.load))


def situation_with(tables: Sequence[ModelProfile]) -> Situation:
    """Configuration `laptop` with these tables; models have a device each."""
    situation = load_situation("laptop")
    source = Source("measured", "processor time of the engine in virtual time", device=device_name())
    provenance = dataclasses.replace(situation.profile.provenance, decode=source, prefill=source, slowdown=source)
    alone = tuple(dataclasses.replace(model, slowdown=()) for model in tables)
    profile = dataclasses.replace(situation.profile, name="laptop-virtual", models=alone, provenance=provenance)
    view = dataclasses.replace(situation.view, slowdown_tau_s=SLOWDOWN_TAU_S)
    return dataclasses.replace(situation, profile=profile, view=view)


def searched(lab: Lab, situation: Situation) -> Contender:
    """The policy that a search finds."""
    search = TrainingConfig(method="search", seed=lab.scale.seed, workload=WORKLOAD)
    (found,) = lab.train(situation, search, name="search")
    return Contender(found)


def trained(lab: Lab, situation: Situation) -> dict[str, Contender]:
    """The policy that a search finds, and one whose networks add to it, as `besteffort quickstart` trains them."""
    found = searched(lab, situation)
    config = dataclasses.replace(TrainingConfig().config, decisions=_DECISIONS, ensemble_size=_ENSEMBLE)
    networks = TrainingConfig(seed=lab.scale.seed, workload=WORKLOAD, config=config)
    seen = dataclasses.replace(situation.view, features=load_situation("quickstart").view.features)
    (added,) = lab.train(dataclasses.replace(situation, view=seen), networks, name="dqn", start=[found.policy])
    return {"search": found, "dqn": Contender(added)}


def static_contenders(situation: Situation) -> dict[str, Contender]:
    """A gateway for each model that has no other."""
    return {f"always {name}": Contender(default_policy(situation), index) for index, name in enumerate(MODELS)}


def simulated(contender: Contender, listed: CaseList, situation: Situation) -> Result:
    """What the simulator says of a list in a situation, while the contender takes its own for granted."""
    return simulate(listed.requests, situation, contender.router, assumed=contender.policy.situation)


def play(
    engine: VirtualEngine,
    contender: Contender,
    listed: CaseList,
    situation: Situation,
    *,
    exact: bool = False,
) -> Live:
    """Plays a list through a core to the engine.

    Args:
      engine: idle.
      contender: what decides.
      listed: the list.
      situation: says what answers are worth.
      exact: answers have as many tokens as the list says, whatever the models say; else they end where the models end
        them.
    """
    engine.restart()
    core = core_of(contender, engine)
    requests = listed.requests
    claims: dict[Answer, Claim] = {}

    def heard(answer: Answer) -> None:
        claim = claims[answer]
        core.token(claim)
        if answer.done:
            core.finished(claim, output_tokens=len(answer.tokens))
            core.close(claim.ticket, "answered")

    answers: list[Answer | None] = []
    model = np.zeros(len(requests), np.int64)
    rows = zip(requests.arrival_s, requests.task, requests.output_tokens, listed.prompts, strict=True)
    for index, (arrival_s, task, output_tokens, prompt) in enumerate(rows):
        engine.advance(float(arrival_s), heard)
        ask = Ask(requests.tasks[task], prompt_tokens=len(prompt), streamed=True)
        ticket = core.arrive(ask, str(index))
        try:
            claim = core.claim(ticket)
        except RefusedError:
            core.close(ticket, "refused")
            answers.append(None)
            continue
        model[index] = MODELS.index(claim.place.model)
        longest, stop = (int(output_tokens), ()) if exact else (ANSWER_TOKENS, None)
        answer = engine.submit(claim.place.model, prompt, longest, stop_tokens=stop)
        claims[answer] = claim
        answers.append(answer)
    engine.advance(math.inf, heard)
    # Answers may be shorter or longer than the right ones, and so may their deadlines.
    listed_tokens = requests.output_tokens.tolist()
    outputs = [
        tokens if answer is None else len(answer.tokens) for answer, tokens in zip(answers, listed_tokens, strict=True)
    ]
    deadline_s = situation.deadlines(requests.task, np.array(outputs)) * requests.deadline_factors
    played = dataclasses.replace(requests, output_tokens=np.array(outputs), deadline_s=deadline_s)
    right = [
        answer is not None and answer.tokens == right_tokens(case)
        for answer, case in zip(answers, listed.cases, strict=True)
    ]
    left = core.open_requests + sum(place.state.in_flight for place in core.snapshot.places)
    left += int(core.snapshot.flight.batch_sizes.sum()) + sum(engine.batch_sizes.values())
    return Live(result_of(played, situation, model, answers), np.array(right), left)


def core_of(contender: Contender, engine: VirtualEngine) -> Core:
    """A core as `besteffort serve` has it, on the engine's clock."""
    names = MODELS if contender.only is None else (MODELS[contender.only],)
    pools = tuple(Pool(name, (f"http://{name}/v1",)) for name in names)
    config = GatewayConfig(pools=pools, situation="laptop", listen=Listen(requests=_MOST))

    def clock() -> float:
        return engine.now

    snapshot = make_snapshot(config, contender.policy, clock=clock)
    if contender.rule is not None:
        books = _RuleBooks(snapshot.policy, contender.rule, clock)
        snapshot = dataclasses.replace(snapshot, main=dataclasses.replace(snapshot.main, flight=books))
    return Core(snapshot, clock=clock, calendar=clock)


class _RuleBooks(InFlight):
    """Books that ask a router of the simulator, which is rejected where there is no room, as there."""

    def __init__(self, policy: Policy, rule: Router, clock: Callable[[], float]) -> None:
        super().__init__(policy, clock=clock)
        _, params = build(
            policy.situation,
            None,
            history=1,
            longest_prompt=CONTEXT,
            estimates=reads_in_flight(rule) or None,
        )
        self._asked, self._rule_params, self._decisions = rule, params, 0

    def decide(self, request: Hashable, *, at: float | None = None) -> Decision:
        seen = self.observation(request, at=at)._replace(takes=None, ready_s=None)
        if not reads_in_flight(self._asked):
            seen = seen._replace(in_flight=None)
        pool = int(_route(node_types(self._asked), self._asked, seen, self._rule_params, self._decisions))
        self._decisions += 1
        takes = self._where.pools
        if takes is not None and not takes[pool]:
            raise RefusedError("no_capacity", "The rule's model is full.", 0.0)
        return Decision(self.situation.fleet.names[pool], 0)


def _route_by(kinds: tuple[Any, ...], rule: Router, seen: Any, params: EnvParams, number: Any) -> Any:
    return rule.route(seen, params.believed, jax.random.fold_in(jax.random.key(0), number))


_route = jax.jit(_route_by, static_argnums=0)


def right_and_in_time(result: Result, right: np.ndarray, counted: np.ndarray) -> float:
    """Share of requests whose answer was right and came in time, of those that count."""
    return float(np.mean((right & result.met)[counted]))


def expected_right(situation: Situation, result: Result, counted: np.ndarray) -> float:
    """The same as a simulation predicts it: the shares of right answers of the profile, for those in time."""
    percent: Mapping[str, Any] = {task.name: task.quality_percent for task in situation.profile.tasks}
    table = np.array([percent[name] for name in situation.task_names]) / 100
    return float(np.mean((table[result.task, result.model] * result.met)[counted]))
