"""The gymnasium environments: gymnasium's own checks, and that both live through the same."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from besteffort.adapters.wrapped import WrappedEnv
from besteffort.errors import InputError
from besteffort.observation import encode

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from besteffort.adapters.gymnasium import ID, ServingEnv, ServingVectorEnv

HORIZON = 40  # of the shared problem


def actions_of(envs: int, steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (steps, envs))


def played(envs: Any, seed: int, steps: int = HORIZON + 10) -> list[Any]:
    """What `reset` and every `step` return."""
    return [envs.reset(seed=seed), *(envs.step(actions) for actions in actions_of(envs.num_envs, steps))]


def test_the_single_environment_passes_gymnasiums_check(problem: WrappedEnv) -> None:
    """Any warning of the check is an error here."""
    check_env(gymnasium.make(ID, problem=problem).unwrapped)
    environments = (ServingEnv(problem), ServingEnv(problem))
    check_environments_match(*environments, num_steps=HORIZON // 2, seed=3)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_vector_environment_is_a_vector_of_single_ones(problem: WrappedEnv, mode: AutoresetMode) -> None:
    """Against gymnasium's own vector of single environments: spaces, seeds, resets, rewards, infos."""
    ours = gymnasium.make_vec(
        ID, num_envs=2, vectorization_mode="vector_entry_point", problem=problem, autoreset_mode=mode
    )
    theirs = SyncVectorEnv([lambda: ServingEnv(problem)] * 2, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is mode
    for name in ("single_observation_space", "single_action_space", "observation_space", "action_space", "num_envs"):
        assert getattr(ours, name) == getattr(theirs, name)
    for one, other in zip(played(ours, seed=5), played(theirs, seed=5), strict=True):
        assert one[0] in ours.observation_space
        same(one, other)


def same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        same(tuple(one), tuple(other))
    elif one is None:
        assert other is None
    else:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_episodes_truncate_and_never_terminate(problem: WrappedEnv) -> None:
    envs = ServingVectorEnv(2, problem)
    steps = played(envs, seed=0, steps=2 * HORIZON + 3)[1:]
    ended = np.array([truncated for _, _, _, truncated, _ in steps])
    assert not np.any([terminated for _, _, terminated, _, _ in steps])
    # The step after the end begins anew: its action and its reward count for nothing.
    assert np.flatnonzero(ended[:, 0]).tolist() == [HORIZON - 1, 2 * HORIZON]
    np.testing.assert_array_equal(ended[:, 0], ended[:, 1])
    assert [int(infos["index"][0]) for *_, infos in steps[HORIZON - 1 : HORIZON + 2]] == [HORIZON, 0, 1]
    assert steps[HORIZON][1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_what_a_step_returns_is_the_callers(problem: WrappedEnv, mode: AutoresetMode) -> None:
    """As one who bootstraps at time limits may do: clears the flags in place. Episodes end as before."""
    envs = ServingVectorEnv(2, problem, autoreset_mode=mode)
    envs.reset(seed=0)
    seen = []
    for actions in actions_of(2, HORIZON + 2):
        _, _, _, truncated, infos = envs.step(actions)
        truncated[:] = False
        seen.append(int(infos["index"][0]))
    assert seen[-3:] == ([HORIZON, 0, 1] if mode is AutoresetMode.NEXT_STEP else [0, 1, 2])


def test_seeds_decide(problem: WrappedEnv) -> None:
    envs = ServingVectorEnv(2, problem)
    first, again, other = (played(envs, seed, steps=3)[-1] for seed in (1, 1, 2))
    same(first, again)
    assert not np.allclose(first[0], other[0])
    assert not np.allclose(first[0][0], first[0][1])
    listed, _ = envs.reset(seed=[7, 1])
    np.testing.assert_allclose(listed[1], envs.reset(seed=1)[0][0])


def test_random_numbers_continue_where_a_list_has_no_seed(problem: WrappedEnv) -> None:
    """As in gymnasium's own vector; where nothing has begun yet, they begin anywhere."""
    ours, theirs = ServingVectorEnv(3, problem), SyncVectorEnv([lambda: ServingEnv(problem)] * 3)
    for envs in (ours, theirs):
        envs.reset(seed=5)
    for seed in ([7, None, 8], None, [None, 9, None]):
        same(ours.reset(seed=seed), theirs.reset(seed=seed))
        for actions in actions_of(3, 3):
            same(ours.step(actions), theirs.step(actions))
    fresh, gaps_s = ServingVectorEnv(3, problem), []
    for envs, seed in ((ours, [7, 8, 9]), (fresh, [7, None, 9])):
        envs.reset(seed=seed)
        gaps_s.append(envs.step(np.zeros(3, int))[4]["gap_s"])
    assert (gaps_s[0] == gaps_s[1]).tolist() == [True, False, True]


def test_a_part_of_the_environments_cannot_be_reset(problem: WrappedEnv) -> None:
    """Gymnasium's own vectors do it for `reset_mask`; nobody is to believe that these do."""
    envs = ServingVectorEnv(2, problem)
    envs.reset(seed=0, options={})
    with pytest.raises(InputError, match="`options` has `reset_mask`, but all environments begin anew together"):
        envs.reset(options={"reset_mask": np.array([True, False])})


def test_an_observation_is_what_the_network_reads(problem: WrappedEnv) -> None:
    from besteffort.adapters.gymnasium import Lanes

    lanes = Lanes(problem, 2)
    lanes.begin([0, 1])
    for actions in actions_of(2, HORIZON):
        view = lanes.step(actions)
    assert lanes._lanes is not None
    seen = lanes._lanes.timestep.observation
    for lane in range(2):
        one = jax.tree.map(lambda value, lane=lane: np.asarray(value)[lane], seen)
        np.testing.assert_allclose(view.observation[lane], encode(one, problem.features, np), rtol=1e-5)


def test_an_unknown_credit_is_refused(problem: WrappedEnv) -> None:
    """Gymnasium hands it on from its own `make`, where no checker of types sees it."""
    mistaken = copy.copy(problem)
    object.__setattr__(mistaken, "credit", "marginall")
    with pytest.raises(InputError, match="`credit` is `marginall`; choose from step, marginal, own"):
        mistaken.__post_init__()


def test_features_must_be_shown(problem: WrappedEnv, seeing: WrappedEnv) -> None:
    with pytest.raises(InputError, match="`own` needs the requests in flight, which this environment does not show"):
        dataclasses.replace(problem, features=seeing.features)


def test_what_a_step_pays(problem: WrappedEnv) -> None:
    """Over an episode the credits and the rewards tell of the same requests; the environment's reward comes later."""
    paid: dict[str, np.ndarray] = {}
    earned: dict[str, np.ndarray] = {}
    for credit in ("marginal", "step", "own"):
        envs = ServingVectorEnv(2, dataclasses.replace(problem, credit=credit), outcomes_every=16)
        steps = played(envs, seed=0, steps=HORIZON)[1:]
        paid[credit] = np.array([step[1] for step in steps])
        earned[credit] = np.array([step[4]["earned"] for step in steps])
        read = [step[4]["outcome_index"].tolist() for step in steps if "outcome_index" in step[4]]
        assert read == ([[16, 16], [32, 32], [HORIZON, HORIZON]] if credit == "own" else [])
    for rewards in (paid["step"], paid["own"], *earned.values()):
        np.testing.assert_array_equal(rewards, paid["step"])
    assert paid["marginal"].sum() > paid["step"].sum() > 0
    assert (paid["marginal"][0] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_envs": 0}, "`num_envs` is 0"),
        ({"autoreset_mode": "Disabled"}, "`autoreset_mode` is Disabled; choose NextStep or SameStep"),
        ({"problem": "papers"}, "did you mean `paper`?"),
        ({"problem": "paper", "horizon": -1}, "`horizon` is -1"),
    ],
)
def test_wrong_arguments_are_one_sentence(problem: WrappedEnv, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        ServingVectorEnv(**{"problem": problem, **arguments})


def test_wrong_actions_and_steps_before_the_first_reset(problem: WrappedEnv) -> None:
    envs = ServingVectorEnv(2, problem)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(np.array([0, 1]))
    envs.reset(seed=0)
    for actions in (np.array([0, 3]), np.array([0, -1]), np.array([0])):
        with pytest.raises(InputError, match="indices from 0 to 2"):
            envs.step(actions)


def test_actions_are_whole_numbers(problem: WrappedEnv) -> None:
    """Nothing is cut to the integer below it."""
    envs = ServingVectorEnv(2, problem)
    envs.reset(seed=0)
    for actions in (np.array([0.0, 1.7]), np.array([0.0, 1.0]), np.array(["0", "1"]), np.array([[0, 1]])):
        with pytest.raises(InputError, match="give 2 whole numbers, indices from 0 to 2"):
            envs.step(actions)


def test_seeds_are_counted_and_kept_whole(problem: WrappedEnv) -> None:
    def gaps(seed: Any, envs: int = 2) -> np.ndarray:
        """(steps, envs) seconds between the first arrivals, which differ wherever random numbers do."""
        vector = ServingVectorEnv(envs, problem)
        vector.reset(seed=seed)
        return np.array([vector.step(np.zeros(envs, int))[4]["gap_s"] for _ in range(3)])

    several = [gaps(seed) for seed in (1, 3, 2**32 + 1, 2**33 + 1, 2**64 - 2)]
    for one, other in itertools.combinations(several, 2):
        assert (one != other).all()
    for alike in (np.int64(3), [3, 4], np.array([3, 4])):
        np.testing.assert_array_equal(gaps(alike), several[1])
    # Alone, environments are another program, which may round otherwise.
    np.testing.assert_allclose(gaps(2**32 + 2, 1)[:, 0], several[2][:, 1], rtol=1e-6)
    np.testing.assert_allclose(gaps(np.uint8(3), 1)[:, 0], several[1][:, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        ([1], "There are 1 seeds for 2 environments"),
        ([1, 2, 3], "There are 3 seeds for 2 environments"),
        ([], "There are 0 seeds for 2 environments"),
        ([1, 2.0], "The seed is 2.0; give a whole number"),
        ([None], "There are 1 seeds for 2 environments"),
        ([None, -1], r"The seed is \[None, -1\]; give a whole number from 0"),
        (1.5, "The seed is 1.5; give a whole number"),
        ("7", "The seed is 7; give a whole number"),
        (-1, "The seed is -1; give a whole number from 0"),
        ([0, -1], r"The seed is \[0, -1\]; give a whole number from 0"),
        (2**64 - 1, "give a whole number from 0 to 2"),
    ],
)
def test_other_seeds_are_refused(problem: WrappedEnv, seed: Any, words: str) -> None:
    envs = ServingVectorEnv(2, problem)
    # Past the type checks of the tests, which users do not have.
    with pytest.raises(InputError, match=words):
        envs.reset.__wrapped__(envs, seed=seed)


def test_bounds_hold_for_every_feature(seeing: WrappedEnv) -> None:
    envs = ServingVectorEnv(2, seeing)
    space = envs.single_observation_space
    assert isinstance(space, gymnasium.spaces.Box)
    assert np.isfinite([space.low, space.high]).all()
    seen = np.array([step[0] for step in played(envs, seed=0, steps=3 * HORIZON)])
    assert (seen >= space.low).all()
    assert (seen <= space.high).all()
    # Play comes near the bounds that follow from the reward.
    start = 4 + 3 + 1 + 1 + 3 + 1
    own, harm = seen[..., start : start + 3], seen[..., start + 3 : start + 6]
    assert own.min() < -0.39
    assert own.max() > 0.95
    assert harm.max() > 0.1
    low, high = space.low, space.high
    # A third of the requests count three times as much, 1.8 times the mean.
    np.testing.assert_allclose([low[start], high[start]], [1.8 * -0.4, 1.8 * 1.0], rtol=1e-4)
    np.testing.assert_allclose(high[start + 3], 1.8 * 7 * 1.4, rtol=1e-4)
    assert -1e-3 < low[start + 3] < 0
