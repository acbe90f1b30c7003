"""The learners' benchmark: what its figures mean, that its learners take turns, and that the gymnax loop learns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("gymnax")

pytestmark = pytest.mark.checkout


class Contexts:
    """Two contexts at random, of which each wants another action; the next one lies too far off to count."""

    num_actions = 2

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        context = jax.random.bernoulli(key).astype(jnp.int32)
        return jax.nn.one_hot(context, 2), context

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any) -> tuple[Any, ...]:
        reward = jnp.where(action == state, 1.0, -0.5)
        observation, following = self.reset(key, params)
        no = jnp.zeros((), bool)
        return observation, following, reward, no, no, {"gap_s": 100.0, "final_observation": observation}


def test_the_gymnax_loop_learns_what_it_should() -> None:
    from benchmarks.gymnax_dqn import Settings, proceed, start, weights_of

    settings = Settings(
        hidden=(16,),
        num_envs=8,
        buffer_size=512,
        batch_size=64,
        total_timesteps=8_000,
        learning_starts=64,
        epsilon_finish=0.2,
        epsilon_anneal_time=2_000,
        lr=1e-2,
    )
    env = Contexts()
    runner = start(env, None, settings, jax.random.key(0))
    for _ in range(2):
        runner, paid = proceed(env, None, settings, 500, runner)
    (kernel, bias), (last, last_bias) = jax.tree.map(np.asarray, weights_of(runner.params))
    q = np.maximum(np.eye(2) @ kernel + bias, 0) @ last + last_bias
    np.testing.assert_allclose(q, [[1.0, -0.5], [-0.5, 1.0]], atol=0.05)
    assert int(runner.steps) == 1000
    assert float(paid) == pytest.approx(1.0 - 0.1 * 1.5, abs=0.05)  # a tenth of all decisions is random and wrong


def test_ours_and_the_gymnax_loop_learn_the_same_problem() -> None:
    from benchmarks.learners import GYMNAX, LEARNERS, OURS, make_problem, make_task

    _, problem = make_problem()
    task = make_task(problem)
    for name in (OURS, GYMNAX):
        (first, _), *_ = LEARNERS[name](task, 4_096, 2, 0).proceed()
        assert first.shape == (sum(feature.size for feature in problem.features), 64)
        assert np.all(np.isfinite(first))


def test_when_a_quality_is_reached_and_when_it_is_kept() -> None:
    from benchmarks.learners import Curve, describe

    curve = Curve(3.0, [1.0, 2.0, 3.0, 4.0], [10, 20, 30, 40], [], [0.7, 0.9, 0.8, 0.95])
    assert (curve.reached_s(0.85), curve.kept_s(0.85)) == (2.0, 4.0)
    assert (curve.reached_s(0.6), curve.kept_s(0.6)) == (1.0, 1.0)
    assert (curve.reached_s(0.99), curve.kept_s(0.99)) == (None, None)
    slow = Curve(5.0, [2.0, 4.0, 6.0, 8.0], [10, 20, 30, 40], [], [0.7, 0.7, 0.7, 0.8])
    found = describe([curve, slow, curve], 0.85)
    assert found["decisions_per_s"] == 10
    assert found["seconds_to_target"] == {"median": 2.0, "each": [2.0, None, 2.0]}
    assert found["seconds_to_stay_above"]["median"] == 4.0
    assert found["performance_at_the_end"]["mean"] == pytest.approx(0.9)
    assert describe([curve, slow], 0.85)["seconds_to_target"]["median"] is None  # reached by no more than half


def test_learners_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is prepared twice before its clock runs; then whoever has the largest part left goes on."""
    from benchmarks import learners

    turns: list[str] = []

    def fake(name: str) -> Any:
        class Learner:
            def __init__(self, task: Any, decisions: int, snapshots: int, seed: int) -> None:
                self.per_snapshot = decisions // snapshots

            def proceed(self) -> Any:
                turns.append(name)
                return ()

        return Learner

    monkeypatch.setattr(learners, "LEARNERS", {"a": fake("a"), "b": fake("b")})
    size = learners.Size(decisions=(("a", 100), ("b", 1000)), snapshots=4)
    curves = learners.train_all(None, size, 0, Console(quiet=True))
    assert turns[:4] == ["a", "a", "b", "b"]
    assert turns[4:] == ["a", "b"] * 4
    assert curves["a"].decisions == [25, 50, 75, 100]
    assert len(curves["b"].seconds) == len(curves["b"].weights) == 4


def test_the_table_has_ratios_and_says_what_was_not_reached() -> None:
    from benchmarks.learners import GYMNAX, OURS, TUNED, Curve, _ratio, describe, rows, table_of

    good, late, never = (
        Curve(1.0, [s, 2 * s], [10, 20], [], performance)
        for s, performance in ((1.0, [0.9, 0.95]), (10.0, [0.5, 0.9]), (9.0, [0.2, 0.3]))
    )
    learners = {name: describe([c], 0.85) for name, c in ((OURS, good), (GYMNAX, late), (TUNED, never))}
    ratios = {name: _ratio(1.0, learners[name]) for name in (GYMNAX, TUNED)}
    result = {"learners": learners, "target": 0.85, "seeds": 1, "ratios": ratios}
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table_of(result))
    text = capture.get()
    assert "not reached" in text
    found = {row.theirs: row for row in rows(result)}
    assert found[f"20 s ({GYMNAX})"].ratio == 20.0
    assert found[f"not in 18 s ({TUNED})"].ratio == 18.0
    assert "> 18" in text
    assert _ratio(None, learners[TUNED]) is None
