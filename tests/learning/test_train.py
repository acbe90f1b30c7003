"""Training as a whole: seeds, sweeps, schedules, checkpoints, divergence, fine-tuning."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ARGUMENTS, CONFIG, HYPER, LONG, Probe, ProbeState, Table, probe, q_values

import besteffort
from besteffort.errors import InputError
from besteffort.learning import DQNConfig, DQNHyperparams, Progress, Trained, per_run, train
from besteffort.learning.train import initial_state
from besteffort.observation import Feature
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import TimeStep
from besteffort.weights import merge
from besteffort.workload.arrivals import Poisson
from besteffort.workload.synthetic_workload import synthetic

PROBE = probe(**ARGUMENTS)
SHORT = dataclasses.replace(CONFIG, decisions=1, log_interval=12)
"""One log point, before rounding errors have grown: of networks trained together and apart."""


def keys(runs: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), runs)


def flat(trained: Trained, run: int = 0) -> np.ndarray:
    return np.concatenate([array.ravel() for layer in trained.weights[run] for array in layer])


@pytest.fixture(scope="module")
def alone() -> Trained:
    """The first seed on its own."""
    return train(*PROBE, SHORT, HYPER, keys(1))


@pytest.fixture(scope="module")
def straight() -> tuple[Trained, list[Progress]]:
    """Two seeds trained without interruption, and what was told at the log points."""
    points: list[Progress] = []
    return train(*PROBE, CONFIG, HYPER, keys(2), progress=points.append), points


def test_eight_seeds_give_eight_networks_each_as_trained_alone(alone: Trained) -> None:
    trained = train(*PROBE, SHORT, HYPER, keys(8))
    assert len(trained.weights) == 8
    for one, other in itertools.combinations(range(8), 2):
        assert (flat(trained, one) != flat(trained, other)).mean() > 0.9
    singles = [alone, *(train(*PROBE, SHORT, HYPER, keys(8)[run : run + 1]) for run in (1, 2))]
    for run, single in enumerate(singles):
        np.testing.assert_allclose(flat(trained, run), flat(single), rtol=1e-3, atol=1e-5)
        for name in ("reward", "actions", "loss"):
            np.testing.assert_allclose(trained.metrics[name][:, run], single.metrics[name][:, 0], rtol=1e-3, atol=1e-5)


def test_numbers_may_differ_between_runs() -> None:
    sweep = dataclasses.replace(HYPER, learning_rate=np.array([1e-2, 1e-3]))
    together = train(*PROBE, SHORT, sweep, jax.numpy.concatenate([keys(1), keys(1)]))
    alone = train(*PROBE, SHORT, dataclasses.replace(HYPER, learning_rate=1e-3), keys(1))
    assert not np.allclose(flat(together, 0), flat(together, 1))
    np.testing.assert_allclose(flat(together, 1), flat(alone), rtol=1e-3, atol=1e-5)


def test_an_ensemble_is_its_networks_trained_apart() -> None:
    """Also from given weights, and with numbers of its own beside another run."""
    ensembles = dataclasses.replace(SHORT, ensemble_size=2)
    sweep = dataclasses.replace(HYPER, learning_rate=np.array([1e-2, 1e-3]))
    together = train(*PROBE, ensembles, sweep, keys(2))
    slow = dataclasses.replace(HYPER, learning_rate=1e-3)
    apart = train(*PROBE, SHORT, slow, jax.random.split(keys(2)[1], 2))
    assert together.metrics["reward"].shape == (1, 2)
    np.testing.assert_allclose(together.metrics["reward"][:, 1], apart.metrics["reward"].mean(1), rtol=1e-5)
    for (kernel, bias), (own_kernel, own_bias) in zip(together.weights[1], merge(apart.weights), strict=True):
        np.testing.assert_allclose(kernel, own_kernel, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(bias, own_bias, rtol=1e-3, atol=1e-5)
    again = train(*PROBE, ensembles, HYPER, keys(2), weights=together.weights[1])
    assert [kernel.shape for kernel, _ in again.weights[0]] == [kernel.shape for kernel, _ in together.weights[1]]


def test_metrics_and_progress_tell_the_same(straight: tuple[Trained, list[Progress]]) -> None:
    trained, points = straight
    assert [latest.point for latest in points] == list(range(1, CONFIG.log_points + 1))
    assert {latest.points for latest in points} == {CONFIG.log_points}
    for name, values in trained.metrics.items():
        np.testing.assert_array_equal(values, [latest.metrics[name] for latest in points])
        assert values.shape[:2] == (CONFIG.log_points, 2)
    assert trained.decisions == trained.metrics["decisions"][-1, 0] >= CONFIG.decisions
    np.testing.assert_allclose(trained.metrics["actions"].sum(-1), 1, rtol=1e-5)
    epsilon = trained.metrics["epsilon"][:, 0]
    assert (np.diff(epsilon) <= 0).all()
    assert epsilon[-1] == pytest.approx(HYPER.epsilon_end)
    # The best policy earns 1 and 1/2 in turns; a share epsilon_end of decisions is random.
    assert trained.metrics["reward"][-1] == pytest.approx(0.75 - HYPER.epsilon_end * 0.875, abs=0.1)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    straight: tuple[Trained, list[Progress]], tmp_path: Path
) -> None:
    uninterrupted, _ = straight
    file = tmp_path / "checkpoint.npz"

    def stop(latest: Progress) -> None:
        if latest.point == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*PROBE, CONFIG, HYPER, keys(2), checkpoint_path=file, checkpoint_every=2, progress=stop)
    resumed_at: list[int] = []
    resumed = train(
        *PROBE, CONFIG, HYPER, keys(2), checkpoint_path=file, progress=lambda latest: resumed_at.append(latest.point)
    )
    assert resumed_at[0] == 3
    for run in range(2):
        np.testing.assert_array_equal(flat(resumed, run), flat(uninterrupted, run))
    for name, values in uninterrupted.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)
    done = train(
        *PROBE, CONFIG, HYPER, keys(2), checkpoint_path=file, progress=lambda latest: pytest.fail("trained on")
    )
    np.testing.assert_array_equal(flat(done), flat(uninterrupted))


def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """SIGKILL of a training process, some time after its first checkpoint."""
    file = tmp_path / "checkpoint.npz"
    script = (
        "import sys, jax\n"
        "from pathlib import Path\n"
        "from probes import ARGUMENTS, LONG, HYPER, probe\n"
        "from besteffort.learning import train\n"
        "keys = jax.random.split(jax.random.key(0), 1)\n"
        "train(*probe(**ARGUMENTS), LONG, HYPER, keys, checkpoint_path=Path(sys.argv[1]), checkpoint_every=1)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(besteffort.__file__).parent.parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(file)], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    )
    try:
        while not file.exists():
            assert process.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.005)
        time.sleep(0.03)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it was killed"
    resumed_at: list[int] = []
    resumed = train(
        *PROBE, LONG, HYPER, keys(1), checkpoint_path=file, progress=lambda latest: resumed_at.append(latest.point)
    )
    assert 1 < resumed_at[0] <= LONG.log_points
    np.testing.assert_array_equal(flat(resumed), flat(train(*PROBE, LONG, HYPER, keys(1))))


def test_fine_tuning_starts_from_the_given_weights(straight: tuple[Trained, list[Progress]]) -> None:
    trained, _ = straight
    still = dataclasses.replace(HYPER, learning_rate=0.0, learning_rate_end=0.0)
    tuned = train(*PROBE, SHORT, still, keys(2, seed=1), weights=trained.weights[0])
    for run in range(2):
        np.testing.assert_allclose(flat(tuned, run), flat(trained), rtol=1e-5, atol=1e-6)

    # What is exported is the average of the target networks, which learn nothing here, whatever the others learn.
    kept = train(*PROBE, SHORT, dataclasses.replace(HYPER, tau=0.0), keys(2, seed=1), weights=trained.weights[0])
    np.testing.assert_allclose(flat(kept), flat(trained), rtol=1e-5, atol=1e-6)
    assert (kept.metrics["loss"] > 0).all()

    env, table, features = PROBE
    doubled = dataclasses.replace(table, reward=2 * table.reward)
    tuned = train(env, doubled, features, CONFIG, HYPER, keys(2), weights=trained.weights[0])
    np.testing.assert_allclose(q_values(tuned.weights[0], 2), 2 * q_values(trained.weights[0], 2), atol=2e-2)


def test_decisions_are_learned_from_once_they_are_old_enough() -> None:
    for min_age, learns in ((63, False), (55, True)):
        config = dataclasses.replace(CONFIG, decisions=1, log_interval=7, min_age=min_age)
        trained = train(*PROBE, config, HYPER, keys(1))
        assert bool(trained.metrics["loss"][0, 0] > 0) == learns


def test_weights_of_another_network_are_refused(alone: Trained) -> None:
    with pytest.raises(InputError, match="starting weights"):
        train(*PROBE, dataclasses.replace(CONFIG, hidden_sizes=(16, 16)), HYPER, keys(1), weights=alone.weights[0])


def test_divergence_stops_with_one_sentence_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    env, table, features = PROBE
    file = tmp_path / "checkpoint.npz"
    hyper = dataclasses.replace(HYPER, learning_rate=np.array([1e-3, 1e30]), learning_rate_end=np.array([1e-3, 1e30]))
    with pytest.raises(InputError, match=r"Training diverged: run 1 .* by [\d,]+ decisions; lower `learning_rate`"):
        train(env, table, features, CONFIG, hyper, keys(2), checkpoint_path=file, checkpoint_every=1)
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": 1.5}, "`discount` is 1.5; give numbers from 0 to 1"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"epsilon_end": np.array([0.1, -0.1])}, "`epsilon_end`"),
        ({"target_interval": 7}, "`target_interval` is 7 decisions, but an update comes every 8"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(*PROBE, CONFIG, dataclasses.replace(HYPER, **changes), keys(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer_length": 65}, "`buffer_length` is 65; give a multiple of `rollout_length`, which is 8"),
        (
            {"buffer_length": 16, "min_age": 16},
            "`buffer_length` is 16; give more than `min_age` and `n_step`, which are 16 and 1",
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_history_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(InputError, match="remembers 8 decisions; give it a `history` above `rollout_length`"):
        train(*probe([[1.0, 1.0]], history=8), CONFIG, HYPER, keys(1))


def test_too_many_decisions_to_count_are_refused() -> None:
    with pytest.raises(InputError, match="stay below"):
        train(*PROBE, DQNConfig(decisions=2**32, ensemble_size=1), DQNHyperparams(), keys(1))


@pytest.mark.parametrize("stated", [{"slowdown": (1.0, 1.0, 2.0)}, {"chunk_tokens": 64}])
def test_marginal_credit_is_refused_where_there_is_none(stated: dict[str, Any]) -> None:
    """And own-request credit is not: it trains, on prompts that are read in chunks, too."""
    situation = load_situation("paper")
    first, *others = situation.profile.models
    slow = dataclasses.replace(situation.profile, models=(dataclasses.replace(first, **stated), *others))
    shape, params = build(
        dataclasses.replace(situation, profile=slow), synthetic(situation, Poisson(100.0)), history=256
    )
    features = (Feature("batch_sizes", 3, "linear", 16.0),)
    with pytest.raises(InputError, match=r"`credit` is `marginal`.* set `training.config.credit` to `own`"):
        train(ServingEnvironment(shape), params, features, DQNConfig(), DQNHyperparams(), keys(1))
    if shape.chunks:
        trained = train(
            ServingEnvironment(shape), params, features, dataclasses.replace(SHORT, credit="own"), HYPER, keys(1)
        )
        assert np.isfinite(flat(trained)).all()


class WeaklyTyped(Probe):
    """A probe in whose first state some numbers have a weak type, as constants of Python give it."""

    def reset(self, key: jax.Array, params: Table) -> tuple[ProbeState, TimeStep]:
        state, timestep = super().reset(key, params)
        return state._replace(rewards=jnp.full(self.shape.history, 0.0)), timestep


def test_a_training_starts_with_the_types_that_were_compiled_ahead() -> None:
    """With weak ones, which the shapes of a lowered program do not tell, everything would be compiled twice."""
    env, params, features = PROBE
    each = jax.tree.map(lambda number: jnp.full(1, number), HYPER)
    weak = WeaklyTyped(env.shape)
    state, _ = weak.reset(jax.random.key(0), params)
    assert jax.typeof(state.rewards).weak_type
    first = initial_state(weak, features, SHORT, params, each, keys(1), None)
    assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(first))


def test_numbers_of_the_environment_may_differ_between_runs() -> None:
    env, table, features = PROBE
    tables = [dataclasses.replace(table, reward=scale * table.reward) for scale in (1.0, 3.0)]
    params = per_run(tables)
    assert list(params.own) == [".reward"]
    together = train(env, params, features, SHORT, HYPER, keys(2))
    assert per_run([table, table]) is table
    assert not np.allclose(flat(together, 0), flat(together, 1))
    for run, alone in enumerate(tables):
        single = train(env, alone, features, SHORT, HYPER, keys(2)[run : run + 1])
        np.testing.assert_allclose(flat(together, run), flat(single), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(together.metrics["reward"][:, run], single.metrics["reward"][:, 0], rtol=1e-5)


def test_runs_beside_one_that_diverges_do_not_notice(tmp_path: Path) -> None:
    hyper = dataclasses.replace(HYPER, learning_rate=np.array([1e-3, 1e30]), learning_rate_end=np.array([1e-3, 1e30]))
    file = tmp_path / "checkpoint.npz"
    both = train(*PROBE, CONFIG, hyper, keys(2), checkpoint_path=file, tolerant=True)
    sound = dataclasses.replace(HYPER, learning_rate=np.array([1e-3, 2e-3]), learning_rate_end=np.array([1e-3, 2e-3]))
    np.testing.assert_array_equal(flat(both, 0), flat(train(*PROBE, CONFIG, sound, keys(2)), 0))
    assert both.diverged == (None, CONFIG.decisions_per_log_point)
    assert not np.isfinite(flat(both, 1)).all()
    again = train(*PROBE, CONFIG, hyper, keys(2), checkpoint_path=file, tolerant=True)
    assert again.diverged == both.diverged

    hyper = dataclasses.replace(hyper, learning_rate=1e30)
    points: list[int] = []
    none = train(*PROBE, CONFIG, hyper, keys(2), tolerant=True, progress=lambda latest: points.append(latest.point))
    assert points == [1]
    assert none.decisions == CONFIG.decisions_per_log_point
    assert None not in none.diverged
