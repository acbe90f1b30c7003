"""Training as one run: from a configuration to a directory with metrics, a checkpoint and policy files.

| file | what |
|---|---|
| `config.yaml` | the configuration, every field written out |
| `metrics.jsonl`, `metrics.csv`, `tensorboard/` | the metrics of each log point and seed, as they came |
| `checkpoint.npz` | to resume from |
| `policy-<seed>.safetensors` | the policy of each seed that did not diverge |
| `policy.safetensors` | that of the seed which did best on draws of the training load that nothing is judged on |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Key

from besteffort.device import check_fits
from besteffort.errors import InputError
from besteffort.estimates.rule import Rule
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.rollouts import Rollout, mean_rewards, sample_evenly
from besteffort.evaluation.search import draws, pieces, search
from besteffort.learning.config import DQNConfig
from besteffort.learning.network import QNetwork, to_weights, values_at
from besteffort.learning.train import Progress, compile_ahead, train
from besteffort.observation import VALUE, Feature, default_features, input_size, needs_in_flight
from besteffort.policy import Policy, load_policy, save_policy
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_config, located, write_config
from besteffort.runs.experiment import RunConfig, TrainingConfig, load_run
from besteffort.runs.trackers import MetricsLog, TrackerName, flat
from besteffort.runs.untrained import rule_for, rule_policy
from besteffort.simulator.build import make_env
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.validation import as_data
from besteffort.weights import Weights, merge, with_share
from besteffort.workload import config as workloads
from besteffort.workload import rescale
from besteffort.workload.requests import Requests
from besteffort.workload.resample import resample, with_lengths_of
from besteffort.workload.trace_workload import replay, replay_at_rates

CHECKPOINT = "checkpoint.npz"

_SELECTION_LISTS = 16
_SELECTION_SEED = 2**31  # beyond all that a configuration can name
_ADDED = (0.0, 0.25, 0.5, 1.0)  # shares of what networks learn to add to a rule
_ADDED_LISTS, _ADDED_REQUESTS = 8, 6_000
_LONGEST_MEMORY = 4096


@dataclasses.dataclass(frozen=True)
class TrainingProblem:
    """All that training needs.

    Attributes:
      situation: what is served, with the lengths of the trace where one is given.
      workload: a `besteffort.workload.types.Workload`.
      features: the network's input.
      training: the settings.
      weights: where to start from; None for random networks.
      rule: values models, for the feature `value`; None without it.
      lists: to search on, instead of draws of the workload.
      selection: lists of one length to choose on among what was learned, instead of draws of the workload.
      actual: what is simulated, where it is not `situation`, which is then what routers and learners take for granted:
        to train with wrong tables, for instance. In numbers only; None where it is the situation.
      panel: as of `besteffort.evaluation.rollouts.play_routers`.
    """

    situation: Situation
    workload: Any
    features: tuple[Feature, ...]
    training: TrainingConfig
    weights: Weights | None = None
    rule: Rule | None = None
    lists: tuple[Requests, ...] | None = None
    selection: tuple[Requests, ...] | None = None
    actual: Situation | None = None
    panel: tuple[Router, ...] = ()

    def environment(self, *, history: int, horizon: int = 0) -> tuple[ServingEnvironment, Any]:
        """The environment to learn in, and its parameters; arguments as of `besteffort.simulator.build.make_env`."""
        return make_env(
            self.actual or self.situation,
            self.workload,
            history=history,
            horizon=horizon,
            # What a network reads is what its own situation names.
            estimates=needs_in_flight(self.situation.view.features),
            rule=self.rule,
            assumed=None if self.actual is None else self.situation,
        )


class DivergedError(InputError):
    """All seeds of a training diverged, so that it leaves no policy."""


@dataclasses.dataclass(frozen=True)
class TrainedSeeds:
    """What came of the seeds of a training.

    Attributes:
      policies: by seed, of those that did not diverge; the best first, where they were compared.
      diverged: a sentence about those that did; empty where there are none.
    """

    policies: dict[int, Policy]
    diverged: str = ""


def make_training_problem(
    situation: Situation, training: TrainingConfig, lengths: Requests | None = None
) -> TrainingProblem:
    """Training for a situation; with `lengths`, for requests like these at the rates of the training load.

    At the wide rates of `RandomRates`, these requests come in their own order with their own bursts, which take the
    place of the configured ones, half the list at one mean rate; with any other arrivals, or changing deadlines, they
    are drawn one by one.

    Where it starts from a policy of networks, it takes over the policy's weights and features; from one that is a rule,
    the rule.

    Long answers have long deadlines, so more decisions are open at a time: for own-request credit `buffer_length` and
    `history` grow until they hold those of nine in ten requests at the load `training.workload.high` (1 where it has
    none), to 4,096 at most.

    Raises:
      InputError: if the workload does not fit the situation, or is a trace where `lengths` are given; if the policy to
        start from is damaged, or its models, tasks or features are not the situation's.
    """
    if lengths is not None:
        situation, workload, capacity = _like_requests(situation, training, lengths)
        if training.config.credit == "own":
            training = _remembering(training, capacity, float(np.quantile(lengths.deadline_s, 0.9)))
    elif isinstance(training.workload, workloads.Trace):
        situation, workload, capacity = _on_trace(situation, training.workload)
    else:
        workload = workloads.build(training.workload, situation)
        capacity = situation.unit_load
    rule: Rule | None = None
    if training.start is not None:
        policy = load_policy(training.start, situation)
        rule = policy.rule
        if training.method == "search":
            if rule is None:
                raise InputError(
                    f"{training.start}: the policy has no rule for a search to start from; give one that a search has "
                    "found, or leave it out."
                )
        elif not policy.is_rule:
            given, wanted = policy.ensemble_size, training.config.ensemble_size
            if given != wanted:
                raise InputError(
                    f"{training.start}: the policy holds {given} network(s), but `training.config.ensemble_size` is "
                    f"{wanted}; set it to the policy's number."
                )
            _check_memory(situation, training, policy.features)
            return TrainingProblem(situation, workload, policy.features, training, policy.weights, rule)
    fleet, of_tenants = situation.fleet, situation.tenant_weights
    features = default_features(
        tasks=len(situation.tasks),
        pools=len(fleet.pools),
        replicas=fleet.replicas,
        max_batch=fleet.max_batch,
        typical_rate=capacity,
        names=situation.view.features,
        typical_deadline_s=float(situation.shares @ situation.visible_deadlines),
        typical_prompt_tokens=float(situation.shares @ situation.mean_prompt_tokens),
        largest_weight=float(situation.weights.max() * (1.0 if of_tenants is None else of_tenants.max())),
        origins=len(situation.origins),
    )
    _check_memory(situation, training, features)
    if training.method == "dqn" and VALUE not in situation.view.features:
        rule = None
    elif rule is None and VALUE in situation.view.features:
        rule = rule_for(situation)
    return TrainingProblem(situation, workload, features, training, rule=rule)


def _check_memory(situation: Situation, training: TrainingConfig, features: tuple[Feature, ...]) -> None:
    """Checks that what a training holds for certain fits: the replay buffer, and the places of the environments.

    Raises:
      InputError: if it does not.
    """
    if training.method != "dqn":
        return
    config, fleet = training.config, situation.fleet
    places = fleet.layout.placed.size * int(fleet.places.max())
    # As the arrays of an environment come to; half of it again while they are computed anew.
    numbers = config.buffer_length * (input_size(features) + 5) + 2 * training.history + 10 * places
    networks = training.seeds * config.ensemble_size
    check_fits(
        f"Training {networks:,} networks in {config.num_envs:,} environments each",
        networks * config.num_envs * numbers * 6,
        "lower `training.seeds`, or `ensemble_size`, `num_envs` or `buffer_length` of `training.config`, "
        "`training.history`, the cluster or the pools",
    )


def load_training_problem(
    path_or_name: str | Path, *, profile: str | None = None, changes: Mapping[str, Any] | None = None
) -> TrainingProblem:
    """The training problem of a configuration, from a file or by name.

    Args:
      path_or_name: path of a file, or the name of a configuration that comes with the package.
      profile: profile to use instead of the configuration's.
      changes: other values by dotted field, such as `training.config.num_envs`.

    Raises:
      InputError: as `load_run` and `make_training_problem`.
    """
    run, situation = load_run(path_or_name, profile=profile, changes=changes)
    return make_training_problem(situation, run.training)


def _on_trace(situation: Situation, trace: workloads.Trace) -> tuple[Situation, Any, float]:
    """The situation with the lengths of a trace, the trace as a workload, and the capacity for these lengths."""
    requests, _ = workloads.load_trace(trace, situation)
    situation = with_lengths_of(situation, requests)
    return situation, replay(requests, trace.start), rescale.unit_load(requests, situation)


def _like_requests(situation: Situation, training: TrainingConfig, lengths: Requests) -> tuple[Situation, Any, float]:
    """The situation with the lengths of requests, these at the training's rates, and the capacity for them."""
    rates = training.workload
    if isinstance(rates, workloads.Trace):
        raise InputError("`training.workload` is a trace; give a synthetic one to train for the lengths of another.")
    if rates.mix is not None:
        raise InputError("`training.workload.mix` cannot be kept with the lengths of a trace; leave it out.")
    situation = with_lengths_of(situation, lengths)
    capacity = rescale.unit_load(lengths, situation)
    if isinstance(rates, workloads.RandomRates) and rates.deadlines is None:
        highest = rates.high / rates.burst_factor
        if highest < rates.low:
            raise InputError(
                "`training.workload.high` over its `burst_factor`, the largest load of a trace, which has its own "
                f"bursts, is {highest:g}, below `low`, {rates.low:g}; raise `high` or lower `low`."
            )
        workload: Any = replay_at_rates(lengths, rates.low * capacity, highest * capacity, len(lengths) / 2)
    else:
        factors = None if rates.deadlines is None else rates.deadlines.build()
        workload = resample(lengths, rates.process(capacity), factors)
    return situation, workload, capacity


def run_training(
    config: RunConfig,
    problem: TrainingProblem,
    out: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    track: Sequence[TrackerName] = (),
) -> TrainedSeeds:
    """Trains all seeds, writes everything of the module's table to `out`, and returns the policies, best first.

    A checkpoint in `out` is continued. The trackers `track` hear the metrics, too. Seeds that diverge leave no policy,
    and the others go on.

    Raises:
      DivergedError: if all seeds diverge.
      InputError: as `besteffort.learning.train.train`, if a file cannot be written, or a tracker does not start.
    """
    config = dataclasses.replace(config, tasks=problem.situation.tasks, training=problem.training)
    _keep_config(config, out)
    trained = _train_seeds(problem, out, progress, track)
    policies = trained.policies
    ranked = [*policies]
    if len(policies) > 1:
        lists = _selection(problem, _SELECTION_LISTS, problem.training.selection_requests)
        scores = dict(zip(policies, _performance(problem, lists, policies.values()), strict=True))
        ranked.sort(key=scores.__getitem__, reverse=True)
    save_policy(policies[ranked[0]], out / "policy.safetensors")
    return dataclasses.replace(trained, policies={seed: policies[seed] for seed in ranked})


def _selection(problem: TrainingProblem, lists: int, requests: int) -> Sequence[Requests]:
    """Lists that nothing is trained or judged on: the problem's own, or so many draws of its workload."""
    if problem.selection is not None:
        return problem.selection
    seeds = range(_SELECTION_SEED, _SELECTION_SEED + lists)
    return sample_evenly(problem.workload, problem.situation.task_names, requests, seeds)


def performance_on(
    situation: Situation,
    lists: Sequence[Requests],
    policies: Iterable[Policy],
    actual: Situation | None = None,
    panel: Sequence[Router] = (),
) -> list[float]:
    """Mean performance of each policy on the same lists of one length, played in the `actual` situation if given.

    `panel` is as of `besteffort.evaluation.rollouts.play_routers`.
    """
    routers = [learned_router(policy) for policy in policies]
    rollouts = [Rollout(_kind(router), row, router, actual) for router in routers for row in range(len(lists))]
    means = mean_rewards(situation, lists, rollouts, panel=panel).reshape(len(routers), -1).mean(axis=1)
    return [float(mean) for mean in means]


def _performance(problem: TrainingProblem, lists: Sequence[Requests], policies: Iterable[Policy]) -> list[float]:
    return performance_on(problem.situation, lists, policies, problem.actual, problem.panel)


def _kind(router: Router) -> str:
    """The same for routers that differ in numbers only; policies of different methods differ in more."""
    return repr((jax.tree.structure(router), [np.shape(leaf) for leaf in jax.tree.leaves(router)]))


def train_policies(
    problem: TrainingProblem,
    out: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    track: Sequence[TrackerName] = (),
) -> dict[int, Policy]:
    """Trains all seeds side by side, writes their metrics, checkpoint and policies to `out`; policies by seed.

    A checkpoint in `out` is continued.

    Raises:
      InputError: as `besteffort.learning.train.train`, if a file cannot be written, or a tracker does not start; if a
        seed diverges, when the policies of the others are written.
    """
    trained = _train_seeds(problem, out, progress, track)
    if trained.diverged:
        raise InputError(trained.diverged)
    return trained.policies


def _train_seeds(
    problem: TrainingProblem,
    out: Path,
    progress: Callable[[Progress], None] | None,
    track: Sequence[TrackerName],
) -> TrainedSeeds:
    """What `train_policies` does, where seeds may diverge.

    Raises:
      DivergedError: if all seeds diverge.
      InputError: as `train_policies`, but for seeds that diverge.
    """
    training = problem.training
    seeds = range(training.seed, training.seed + training.seeds)
    methods: dict[str, Callable[..., Sequence[Policy | int]]] = {"dqn": _dqn_policies, "search": search_policies}
    learn = methods[training.method]
    with MetricsLog(out, seeds, problem.situation.fleet.names, settings(problem), track) as log:

        def keep(latest: Progress) -> None:
            for index, seed in enumerate(seeds):
                if latest.finite(index):
                    log.add(seed, latest.of(index))
            if progress is not None:
                progress(latest)

        learned = dict(zip(seeds, learn(problem, seeds, out / CHECKPOINT, keep), strict=True))
    policies = {seed: policy for seed, policy in learned.items() if isinstance(policy, Policy)}
    for seed, policy in policies.items():
        save_policy(policy, out / f"policy-{seed}.safetensors")
    diverged = {seed: decisions for seed, decisions in learned.items() if isinstance(decisions, int)}
    if not diverged:
        return TrainedSeeds(policies)
    lost = ", ".join(f"seed {seed} has lost its finite weights by {by:,} decisions" for seed, by in diverged.items())
    remedy = "lower `training.hyper.learning_rate` or `training.hyper.discount`, or check that rewards are finite"
    kept = f"; {out} keeps the policies of the other seeds" if policies else ""
    said = f"Training diverged: {lost}; {remedy}{kept}."
    if not policies:
        raise DivergedError(said)
    return TrainedSeeds(policies, said)


def _keep_config(config: RunConfig, out: Path) -> None:
    """Writes the configuration, unless a training with another one has begun there.

    It need not have come to a checkpoint: points that it has recorded would stay among those of this one.
    """
    path = out / "config.yaml"
    if path.exists() and _trains(load_config(path, RunConfig)) != _trains(config):
        raise InputError(
            f"{path}: the training that began here has another configuration; give the same one to continue it, "
            "or another directory."
        )
    write_config(path, config)


def _trains(config: RunConfig) -> RunConfig:
    """What of a configuration a training depends on."""
    return located(dataclasses.replace(config, evaluation=EvaluationConfig()))


def _dqn_policies(
    problem: TrainingProblem, seeds: Sequence[int], checkpoint_path: Path, progress: Callable[[Progress], None]
) -> list[Policy | int]:
    """The policies of Double DQN, one for each seed; of one that diverged the decisions by which it had."""
    trained = train(
        *_of_training(problem, seeds),
        weights=problem.weights,
        checkpoint_path=checkpoint_path,
        progress=progress,
        tolerant=True,
    )
    return [
        dqn_policy(problem, weights, seed, trained.decisions) if diverged is None else diverged
        for seed, weights, diverged in zip(seeds, trained.weights, trained.diverged, strict=True)
    ]


def _of_training(problem: TrainingProblem, seeds: Sequence[int]) -> tuple[Any, ...]:
    """What `besteffort.learning.train.train` takes."""
    training = problem.training
    env, params = problem.environment(history=training.history)
    return env, params, problem.features, training.config, training.numbers(), run_keys(seeds)


def compile_training(problem: TrainingProblem) -> None:
    """Compiles what a training by Double DQN on this problem, with whatever rule, will run."""
    training = problem.training
    compile_ahead(*_of_training(problem, range(training.seed, training.seed + training.seeds)))


def dqn_policy(problem: TrainingProblem, weights: Weights, seed: int, decisions: int) -> Policy:
    """The policy of one seed of a training by Double DQN, whose networks made so many decisions.

    Of what they have learned to add to a rule, that share is kept that does best on lists that nothing is judged on.
    """
    training = problem.training
    about = {**training_metadata(training, seed, decisions), "hyper": dataclasses.asdict(training.numbers())}
    networks, start = training.config.ensemble_size, values_at(problem.features)
    policy = make_policy(problem, weights, about, ensemble_size=networks)
    if start is None:
        return policy
    # What networks add to a rule carries their errors, and the better the rule, the more these weigh.
    policies = [
        dataclasses.replace(
            policy, weights=with_share(policy.weights, share, start, networks), training={**about, "added": share}
        )
        for share in _ADDED
    ]
    lists = _selection(problem, _ADDED_LISTS, min(_ADDED_REQUESTS, training.selection_requests))
    return policies[int(np.argmax(_performance(problem, lists, policies)))]


def search_policies(
    problem: TrainingProblem, seeds: Sequence[int], checkpoint_path: Path, progress: Callable[[Progress], None]
) -> list[Policy]:
    """The policies of a search, one for each seed; `checkpoint_path` and `progress` as of `search`.

    Raises:
      InputError: as `besteffort.evaluation.search.search`.
    """
    training, situation = problem.training, problem.situation
    start = rule_for(situation) if problem.rule is None else problem.rule
    if problem.lists is None:
        lists = [draws(situation, problem.workload, training.search, seed) for seed in seeds]
    else:
        lists = [pieces(problem.lists, training.search)] * len(seeds)
    found = search(
        situation,
        lists,
        start,
        training.search,
        seeds,
        actual=problem.actual,
        panel=problem.panel,
        checkpoint_path=checkpoint_path,
        progress=progress,
    )
    return [
        rule_policy(situation, rule, training_metadata(training, seed, found.decisions))
        for seed, rule in zip(seeds, found.rules, strict=True)
    ]


def example_policy(problem: TrainingProblem) -> Policy:
    """A policy of networks that have learned nothing, of the form of those that Double DQN trains on a problem."""
    config = problem.training.config
    network = QNetwork(config.hidden_sizes, len(problem.situation.fleet.pools), values_at(problem.features))
    of_zeros = jnp.zeros(input_size(problem.features))
    shapes = jax.eval_shape(network.init, jax.random.key(0), of_zeros)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    weights = merge([to_weights(variables, values_at(problem.features))] * config.ensemble_size)
    return make_policy(problem, weights, {}, ensemble_size=config.ensemble_size)


def run_keys(seeds: Sequence[int]) -> Key[Array, " runs"]:
    """One key per seed, so that a seed trains alike alone and among others."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def settings(problem: TrainingProblem) -> dict[str, Any]:
    """The configuration of a problem by dotted field, for trackers."""
    situation = problem.situation
    names = ("tasks", "cluster", "pools", "origins", "tenants", "reward", "view")
    fields = {name: getattr(situation, name) for name in names}
    config = RunConfig(profile=situation.profile.name, **fields, training=problem.training)
    data = pydantic.TypeAdapter(RunConfig).dump_python(config, mode="json", exclude={"evaluation"})
    return flat(data | {"tasks": {task.pop("name"): task for task in data["tasks"]}})


def training_metadata(training: TrainingConfig, seed: int, decisions: int) -> dict[str, Any]:
    """What the policy file of one seed, trained for so many decisions, says of its training; plain JSON."""
    other = {"dqn": ("search",), "search": ("config", "hyper")}[training.method]
    stated = {name: value for name, value in as_data(training).items() if name not in other}
    return {**stated, "seed": seed, "seeds": 1, "decisions_made": decisions}


def make_policy(
    problem: TrainingProblem, weights: Weights, about: Mapping[str, Any], *, ensemble_size: int = 1
) -> Policy:
    """Weights that were trained on a problem as a policy.

    Args:
      problem: what they were trained on.
      weights: of one network, or of several merged into one.
      about: what the policy's file says of the training, plain JSON.
      ensemble_size: how many networks were merged.
    """
    return Policy(
        situation=problem.situation,
        features=problem.features,
        weights=tuple((np.asarray(kernel), np.asarray(bias)) for kernel, bias in weights),
        training=about,
        ensemble_size=ensemble_size,
        rule=problem.rule,
    )


def _remembering(training: TrainingConfig, capacity: float, deadline_s: float) -> TrainingConfig:
    """Settings whose memory reaches back `deadline_s` seconds at the highest rate of the training load."""
    load = getattr(training.workload, "high", 1.0)
    config: DQNConfig = training.config
    open_decisions = min(load * capacity * deadline_s, _LONGEST_MEMORY)
    ring = max(config.buffer_length, config.rollout_length * math.ceil(open_decisions / config.rollout_length))
    history = max(training.history, ring)
    return dataclasses.replace(training, history=history, config=dataclasses.replace(config, buffer_length=ring))
