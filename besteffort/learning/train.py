"""Training: many runs at once, each with its own key and numbers, in compiled segments between log points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from besteffort import interrupts
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.keys import straight
from besteffort.learning import checkpoint, double_dqn, replay_buffer, rollout, schedules
from besteffort.learning.checkpoint import Metrics
from besteffort.learning.config import DQNConfig, DQNHyperparams, check
from besteffort.learning.double_dqn import Learner
from besteffort.learning.network import (
    Baseline,
    Networks,
    QNetwork,
    Variables,
    exogenous,
    from_weights,
    to_weights,
    values_at,
)
from besteffort.learning.replay_buffer import Batch, ReplayBuffer, Rows
from besteffort.learning.rollout import Actors
from besteffort.observation import Feature, input_size
from besteffort.simulator.types import Environment, never_ends
from besteffort.weights import Weights, merge, split

T = TypeVar("T")


class PerRun(NamedTuple):
    """Parameters of an environment that partly differ between runs; `per_run` makes them.

    Attributes:
      common: the parameters, a pytree.
      own: (runs, ...) leaves that differ, by their paths as `jax.tree_util.keystr` names them.
    """

    common: Any
    own: dict[str, Array]


def per_run(params: Sequence[Any]) -> Any:
    """Combines the parameters of several runs, pytrees of one structure, into a `PerRun`; equal ones stay as they are.

    Raises:
      ValueError: if structures or shapes differ.
    """
    if len(set(map(jax.tree.structure, params))) > 1:
        raise ValueError("the parameters have different structures")
    own: dict[str, Array] = {}
    for (place, _), *leaves in zip(jax.tree.leaves_with_path(params[0]), *map(jax.tree.leaves, params), strict=True):
        values = np.stack(leaves)
        if (values != values[0]).any():
            kind = float if np.issubdtype(values.dtype, np.floating) else None
            own[jax.tree_util.keystr(place)] = jnp.asarray(values, dtype=kind)
    return PerRun(params[0], own) if own else params[0]


class Run(NamedTuple):
    """State of a single run between two rollouts, except `steps`.

    `average` holds the variables of the exported policy: those of the Q-network, averaged over the training. Greedy
    policies chatter: a small change of Q-values changes the action in many states at once, and with it the data that
    the next change comes from. The average is better than any single network.
    """

    learner: Learner
    average: Any
    buffer: ReplayBuffer
    actors: Actors
    key: Array


class TrainState(NamedTuple):
    """State of a training between two rollouts.

    Attributes:
      runs: `Run` with leading axis (runs,).
      steps: () decisions per environment so far, the same in all runs.
    """

    runs: Run
    steps: Array


class Progress(NamedTuple):
    """Progress that the host gets at a log point.

    Attributes:
      point: number of this log point, from 1.
      points: log points of the whole training.
      metrics: see `Trained`; of this log point only, so without that axis.
    """

    point: int
    points: int
    metrics: Metrics

    def of(self, run: int) -> dict[str, Any]:
        """The metrics of one run, plain numbers and lists."""
        return {name: values[run].tolist() for name, values in self.metrics.items()}

    def finite(self, run: int) -> bool:
        """Whether the metrics of one run are finite; those of a run that has diverged are not."""
        return all(np.isfinite(values[run]).all() for values in self.metrics.values())


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of training.

    Attributes:
      weights: weights of each run's network or ensemble, see `besteffort.weights.Weights`.
      decisions: decisions made by each network.
      metrics: (log points, runs) each, means over an ensemble: `decisions` so far; and over the decisions since the
        previous log point: `reward` (mean per decision, see `rollout.Tally`), `actions` (log points, runs, models;
        share of decisions for each model), `loss`, `q` (mean Q-value of sampled decisions), `epsilon`, `lost` (share of
        decisions that left the buffer before their reward was known); and `norm`, of the weights.
    """

    weights: tuple[Weights, ...]
    decisions: int
    metrics: Metrics

    @property
    def diverged(self) -> tuple[int | None, ...]:
        """Per run the number of decisions by which its weights were no longer finite; None if they stayed finite."""
        return tuple(
            None if healthy.all() else int(decisions[healthy.argmin()])
            for healthy, decisions in zip(_healthy(self.metrics).T, self.metrics["decisions"].T, strict=True)
        )


def train(
    env: Environment,
    env_params: Any,
    features: tuple[Feature, ...],
    config: DQNConfig,
    hyper: DQNHyperparams,
    keys: Key[Array, " runs"],
    *,
    weights: Weights | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_every: int = 8,
    progress: Callable[[Progress], None] | None = None,
    tolerant: bool = False,
) -> Trained:
    """Trains one network per key by Double DQN, or an ensemble of them, all in one compiled program.

    Args:
      env: the environment; hashable, because it is compiled in. It may continue for ever or truncate.
      env_params: its parameters, the same for all runs unless they are a `PerRun`.
      features: features of an observation that the network reads.
      config: static settings.
      hyper: numbers, each a scalar or (runs,), so that a sweep trains side by side.
      keys: one per run; runs with the same key and numbers are the same.
      weights: initial weights in place of random ones, for fine-tuning; as many networks as an ensemble has.
      checkpoint_path: file to write checkpoints to, and to continue from if it exists. A run that is killed and started
        again ends with the same weights, bit for bit.
      checkpoint_every: log points between two checkpoints; the last log point always writes one.
      progress: called at every log point.
      tolerant: do not raise when runs diverge, see `Trained.diverged`. The other runs are not affected, and training
        ends early only if none is left. Metrics of a diverged run are not finite from then on.

    Raises:
      InputError: if settings are out of range or do not fit each other, the weights or the environment; if the
        checkpoint is damaged, belongs to other settings or cannot be written; or if a run diverges, unless `tolerant`.
    """
    check(config, hyper, env.shape.history)
    runs = keys.shape[0]
    hyper = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (runs,)), hyper)
    identity = _identity(env, env_params, features, config, hyper, keys, weights)
    start = None
    if weights is not None:
        network = _networks(env, features, config).q
        each = [from_weights(part, input_size(features), network) for part in split(weights, config.ensemble_size)]
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves * runs), *each)
    env_params, hyper, keys = _of_networks(config, env_params, hyper, keys)
    state = initial_state(env, features, config, env_params, hyper, keys, start)
    metrics: Metrics = {}
    if checkpoint_path is not None and checkpoint.exists(checkpoint_path):
        state, metrics = checkpoint.load(checkpoint_path, state, identity)
    for point in range(len(metrics.get("decisions", ())) + 1, config.log_points + 1):
        if tolerant and metrics and not _healthy(metrics)[-1].any():
            break
        state, measured = segment(env, features, config, env_params, hyper, state)
        latest = {"decisions": np.full(runs, point * config.decisions_per_log_point)}
        # The mean of an ensemble is finite only if all its networks are.
        latest |= {
            name: np.asarray(values).reshape(runs, config.ensemble_size, *values.shape[1:]).mean(1)
            for name, values in measured.items()
        }
        if not tolerant:
            _stop_if_diverged(latest)
        metrics = checkpoint.extended(metrics, latest)
        # In this order a kill in between repeats a report; in the other order the report would be lost.
        if progress is not None:
            progress(Progress(point, config.log_points, latest))
        last = point == config.log_points or interrupts.requested()
        if checkpoint_path is not None and (point % checkpoint_every == 0 or last):
            checkpoint.save(checkpoint_path, state, metrics, identity)
        interrupts.check()
    if checkpoint_path is not None:
        checkpoint.end(checkpoint_path)
    networks = [to_weights(variables, values_at(features)) for variables in _unstack(state.runs.average, len(keys))]
    return Trained(
        weights=tuple(
            merge(networks[first : first + config.ensemble_size]) for first in range(0, len(keys), config.ensemble_size)
        ),
        decisions=int(metrics["decisions"][-1, 0]),
        metrics=metrics,
    )


def compile_ahead(
    env: Environment,
    env_params: Any,
    features: tuple[Feature, ...],
    config: DQNConfig,
    hyper: DQNHyperparams,
    keys: Key[Array, " runs"],
) -> None:
    """Compiles what `train` with these arguments runs, or others that differ in numbers only."""
    env_params, hyper, keys = _of_networks(config, env_params, hyper, keys)
    first = initial_state.lower(env, features, config, env_params, hyper, keys, None)
    segment.lower(env, features, config, env_params, hyper, first.out_info).compile()
    first.compile()


def _of_networks(
    config: DQNConfig, env_params: Any, hyper: DQNHyperparams, keys: Key[Array, " runs"]
) -> tuple[Any, DQNHyperparams, Key[Array, " networks"]]:
    """Parameters, numbers and keys of runs as those of their networks."""
    runs = keys.shape[0]
    hyper = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (runs,)), hyper)
    if config.ensemble_size > 1:
        repeat = partial(jnp.repeat, repeats=config.ensemble_size, axis=0)
        keys = jax.vmap(partial(jax.random.split, num=config.ensemble_size))(keys).reshape(-1)
        hyper = jax.tree.map(repeat, hyper)
        if isinstance(env_params, PerRun):
            env_params = env_params._replace(own=jax.tree.map(repeat, env_params.own))
    return env_params, hyper, keys


@partial(jax.jit, static_argnames=("env", "features", "config"))
def initial_state(
    env: Environment,
    features: tuple[Feature, ...],
    config: DQNConfig,
    env_params: Any,
    hyper: DQNHyperparams,
    keys: Key[Array, " runs"],
    start: Any | None,
) -> TrainState:
    """State before the first decision, with random networks or with the variables `start`, of leading axis (runs,).

    Raises:
      InputError: if `credit` is `marginal` and the environment returns no marginal credit.
    """
    networks = _networks(env, features, config)

    def one(env_params: Any, hyper: DQNHyperparams, key: Key[Array, ""], start: Any | None) -> Run:
        network_key, baseline_key, env_key, key = jax.random.split(key, 4)
        network_key, baseline_key, env_key = map(straight, (network_key, baseline_key, env_key))
        actors = rollout.reset(env, env_params, config.num_envs, env_key)
        if config.credit == "marginal" and actors.timestep.credit is None:
            raise InputError(
                "Training: `credit` is `marginal`, which this environment does not know, because models slow each "
                "other down or read prompts in chunks; set `training.config.credit` to `own`."
            )
        x = rollout.read(actors.timestep.observation, features, env_params)
        q = networks.q.init(network_key, x) if start is None else start
        online = Variables(q, networks.baseline.init(baseline_key, x))
        action = jnp.zeros((1, config.num_envs), jnp.int32)
        real, truth, there = action.astype(x.dtype), action.astype(bool), actors.timestep.observation.open
        like = Rows(
            features=x[None],
            action=action,
            discount=real,
            explored=truth,
            baseline=real,
            valid=truth,
            open=None if there is None else there[None],
        )
        return Run(
            double_dqn.start(online, hyper),
            jax.tree.map(jnp.copy, q),
            replay_buffer.empty(config.buffer_length, like, x.dtype),
            actors,
            key,
        )

    runs = _each_run(one, env_params)(hyper, keys, start)
    # Without weak types, which `compile_ahead` is not told of: with them, the first segment would be compiled again.
    runs = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), runs)
    return TrainState(runs, jnp.int32(0))


@partial(jax.jit, static_argnames=("env", "features", "config"), donate_argnames="state")
def segment(
    env: Environment,
    features: tuple[Feature, ...],
    config: DQNConfig,
    env_params: Any,
    hyper: DQNHyperparams,
    state: TrainState,
) -> tuple[TrainState, dict[str, Array]]:
    """Runs all rollouts up to the next log point, of all runs; metrics are means over them, with leading axis (runs,).

    The number of steps stays outside `vmap`: it is the same in all runs and so remains a plain offset into the buffer.
    """

    def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        one = partial(chunk, env, features, config, state.steps)
        runs, ended, restart_keys, metrics = _each_run(one, env_params)(hyper, state.runs)

        if not never_ends(env):
            restart = partial(_restart, env, env_params, ended, restart_keys)
            # Outside `vmap`, where a condition skips the branch that is not taken.
            actors = jax.lax.cond(ended.any(), restart, lambda actors: actors, runs.actors)
            runs = runs._replace(actors=actors)
        return TrainState(runs, state.steps + config.rollout_length), metrics

    state, metrics = jax.lax.scan(body, state, length=config.log_interval)
    means = {name: values.mean(axis=0) for name, values in metrics.items()}
    return state, means | {"norm": jax.vmap(optax.tree.norm)(state.runs.learner.online)}


def _restart(env: Environment, env_params: Any, ended: Array, keys: Array, actors: Actors) -> Actors:
    """`rollout.restart` of all runs."""
    return _each_run(partial(rollout.restart, env), env_params)(actors, ended, keys)


def chunk(
    env: Environment,
    features: tuple[Feature, ...],
    config: DQNConfig,
    steps: Int[Array, ""],
    env_params: Any,
    hyper: DQNHyperparams,
    run: Run,
) -> tuple[Run, Bool[Array, " envs"], Key[Array, ""], dict[str, Array]]:
    """One rollout of one run and its updates: decisions of all environments, their known outcomes, gradient steps.

    Returns:
      The new run, which environments' episodes ended, a key to restart those with, and metrics.
    """
    key, play_key, sample_key, restart_key = jax.random.split(run.key, 4)
    networks = _networks(env, features, config)
    decisions = steps * config.num_envs
    epsilon = schedules.linear(
        hyper.epsilon_start,
        hyper.epsilon_end,
        hyper.epsilon_decay,
        decisions + config.num_envs * jnp.arange(config.rollout_length),
    )
    probability = schedules.spread(epsilon, hyper.epsilon_spread, config.num_envs)
    actors, rows, credit, ended, tally = rollout.collect(
        env,
        env_params,
        features,
        networks,
        config,
        run.learner.online,
        run.actors,
        hyper.horizon_s,
        probability,
        play_key,
    )
    lost = replay_buffer.lost(run.buffer, steps, config.rollout_length)
    if config.credit == "marginal":
        buffer = replay_buffer.append(run.buffer, steps, rows, credit)
    else:
        outcomes = jax.vmap(env.outcomes, in_axes=(0, None))(actors.env_state, env_params)
        buffer = replay_buffer.append(run.buffer, steps, rows)
        buffer = replay_buffer.join(buffer, steps + config.rollout_length, outcomes, actors.timestep.index)
    learner, loss, q = improve(run.learner, buffer, steps, networks, config, hyper, sample_key)
    average = double_dqn.averaged(
        run.average, learner.target.q, steps // config.rollout_length + 1, hyper.average_power
    )
    metrics = {"reward": tally.reward, "actions": tally.actions, "epsilon": epsilon.mean(), "lost": lost}
    return Run(learner, average, buffer, actors, key), ended, restart_key, metrics | {"loss": loss, "q": q}


def improve(
    learner: Learner,
    buffer: ReplayBuffer,
    steps: Int[Array, ""],
    networks: Networks,
    config: DQNConfig,
    hyper: DQNHyperparams,
    key: Key[Array, ""],
) -> tuple[Learner, Float[Array, ""], Float[Array, ""]]:
    """The round of updates after the rollout that began at `steps`; also returns the mean loss and Q-value."""
    at = schedules.decisions_at(config.updates_per_rollout, config.decisions_per_rollout, steps * config.num_envs)
    rate = schedules.linear(hyper.learning_rate, hyper.learning_rate_end, hyper.learning_rate_decay, at[:-1])
    sync = schedules.crossed(hyper.target_interval, at[:-1], at[1:])
    shape = (config.updates_per_rollout, config.batch_size)
    batches = replay_buffer.sample(
        buffer, steps + config.rollout_length, key, shape, hyper.discount, config.n_step, config.min_age
    )

    def update(learner: Learner, inputs: tuple[Batch, Array, Array]) -> tuple[Learner, tuple[Array, Array]]:
        return double_dqn.step(learner, *inputs, networks, config, hyper)

    learner, (loss, q) = jax.lax.scan(update, learner, (batches, rate, sync))
    return learner, loss.mean(), q.mean()


def _each_run(function: Callable[..., T], env_params: Any) -> Callable[..., T]:
    """`function(env_params, ...)`, vmapped over its other arguments and over the leaves that differ between runs."""
    common, own = env_params if isinstance(env_params, PerRun) else (env_params, {})

    def one(own: dict[str, Array], *arguments: Any) -> T:
        mine = jax.tree.map_with_path(lambda place, leaf: own.get(jax.tree_util.keystr(place), leaf), common)
        return function(mine, *arguments)

    return partial(jax.vmap(one), own)


def _networks(env: Environment, features: tuple[Feature, ...], config: DQNConfig) -> Networks:
    q = QNetwork(config.hidden_sizes, env.shape.pools, values_at(features))
    return Networks(q, Baseline(exogenous(features)))


def _unstack(tree: Any, runs: int) -> list[Any]:
    """The trees of single runs."""
    return [jax.tree.map(itemgetter(run), tree) for run in range(runs)]


def _healthy(metrics: Metrics) -> Bool[np.ndarray, "*points runs"]:
    return np.isfinite(metrics["loss"]) & np.isfinite(metrics["norm"])


def _stop_if_diverged(latest: Metrics) -> None:
    for run, healthy in enumerate(_healthy(latest)):
        if not healthy:
            raise InputError(
                f"Training diverged: run {run} has lost its finite weights by {latest['decisions'][run]:,} decisions; "
                "lower `learning_rate` or `discount`, or check that rewards are finite."
            )


def _identity(
    env: Environment,
    env_params: Any,
    features: tuple[Feature, ...],
    config: DQNConfig,
    hyper: DQNHyperparams,
    keys: Key[Array, " runs"],
    weights: Weights | None,
) -> dict[str, str]:
    """The settings that a checkpoint must share with a training to be continued, as text."""
    return {
        **{f"`{field.name}`": str(getattr(config, field.name)) for field in dataclasses.fields(config)},
        **{
            f"`{field.name}`": str(np.asarray(getattr(hyper, field.name)).tolist())
            for field in dataclasses.fields(hyper)
        },
        "environment": f"{_describe(env)} version {env.version}",
        "environment parameters": _digest(env_params),
        "features": ", ".join(map(str, features)),
        "seeds": _digest(jax.random.key_data(keys)),
        "starting weights": "none" if weights is None else _digest(weights),
        "float type": str(jnp.zeros(()).dtype),
    }


def _describe(value: Any) -> str:
    """`repr` without memory addresses: functions by their names, dataclasses by their fields."""
    if dataclasses.is_dataclass(value):
        fields = (f"{field.name}={_describe(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{type(value).__qualname__}({', '.join(fields)})"
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else repr(value)


def _digest(tree: Any) -> str:
    """Short digest of a pytree of numbers: shapes, dtypes and bytes."""
    leaves = ((f"{index}", leaf) for index, leaf in enumerate(jax.tree.leaves(tree)))
    # Without the last fields of `EnvParams` where they are off, so that what was begun before they were is continued.
    return array_digest(leaves, start=str(jax.tree.structure(tree)).replace(4 * ", None" + "])", "])"))[:12]
