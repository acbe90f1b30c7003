"""The compiled simulator as cases to time: whole rollouts, and the parts of a step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks.timing import Case
from besteffort.keys import straight
from besteffort.routers.registry import make_router
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import EnvState, ServingEnvironment
from besteffort.simulator.types import EnvParams, EnvShape, Router, TimeStep
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.synthetic_workload import SyntheticWorkload, synthetic

HISTORY = 64  # decisions whose outcome an environment remembers, as a learner that reads them once per chunk
WARMED = 64  # environments that are warmed up; larger counts start from copies of them

Carry = tuple[EnvState, jax.Array, jax.Array]
"""States, chosen models, sums of rewards: all with leading axis (environments,)."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A situation under a load, in multiples of the capacity of its largest model."""

    name: str
    situation: Situation
    load: float

    @property
    def workload(self) -> SyntheticWorkload:
        return synthetic(self.situation, Poisson(jnp.asarray(self.load * self.situation.capacity()[-1], float)))


def scenarios(loads: Sequence[float]) -> list[Scenario]:
    """The default situation at each of the loads, and with outputs of 128 tokens at load 0.9."""
    paper = load_situation("paper")
    tasks = tuple(dataclasses.replace(task, output_tokens=(128, 128)) for task in paper.tasks)
    long = dataclasses.replace(paper, tasks=tasks)
    return [*(Scenario(f"load {load:g}", paper, load) for load in loads), Scenario("load 0.9, 128 tokens", long, 0.9)]


def routers(shape: EnvShape) -> dict[str, Router]:
    """One that uses all models, one that sends every request to the same, one that predicts latencies."""
    return {
        "random": make_router("random", shape),
        "static largest": make_router("static", shape, model=shape.pools - 1),
        "deadline": make_router("deadline", shape),
    }


class Rollouts:
    """Rollouts of any scenario, router and count of environments; those that differ in numbers alone share a program.

    Args:
      decisions: of a rollout, over all environments.
      warm_steps: of every environment before the first timed rollout.
    """

    def __init__(self, decisions: int, warm_steps: int) -> None:
        self._decisions = decisions
        self._warm_steps = warm_steps
        self._programs: dict[Any, tuple[jax.stages.Compiled, float]] = {}
        self._warmed: dict[tuple[str, str], Carry] = {}

    def case(
        self, scenario: Scenario, router_name: str, environments: int, *, rewards: bool = True, devices: int = 1
    ) -> Case:
        """A rollout of `environments` that are spread evenly over `devices`.

        Without `rewards` they are not read, and XLA leaves them out.
        """
        shape, numbers = _shape_and_numbers(scenario, router_name)
        name = (scenario.name, router_name)
        if name not in self._warmed:
            warm, _ = self._program(shape, numbers, WARMED, self._warm_steps, rewards=True, devices=1)
            keys = jax.random.split(jax.random.key(1), 1)
            self._warmed[name] = warm(_start(shape, WARMED, *numbers), keys, jax.tree.leaves(numbers))
        copies = math.ceil(environments / WARMED)
        held = jax.tree.map(lambda x: jnp.copy(jnp.concatenate([x] * copies)[:environments]), self._warmed[name])
        steps = self._decisions // environments
        rollout, compile_s = self._program(shape, numbers, environments, steps, rewards, devices)

        def run(number: int) -> Carry:
            nonlocal held
            keys = jax.random.split(jax.random.key(2 + number), devices)
            held = jax.block_until_ready(rollout(held, keys, jax.tree.leaves(numbers)))
            return held

        run(-1)  # keys differ between environments, so that copies part ways
        row = f"{scenario.name}, {router_name}"
        row += "" if rewards else "; rewards not read"
        row += "" if devices == 1 else f"; {devices} devices, one per core"
        return Case(row, f"{environments:,}", steps * environments, run, compile_s)

    def step(self, scenario: Scenario, router_name: str, environments: int) -> jax.stages.Compiled:
        """The program of a single step of `environments`."""
        shape, numbers = _shape_and_numbers(scenario, router_name)
        return self._program(shape, numbers, environments, 1, rewards=True, devices=1)[0]

    def state_bytes(self, scenario: Scenario, router_name: str) -> int:
        """Bytes of the state of one environment, of a scenario and router that there is a case of."""
        state = self._warmed[scenario.name, router_name][0]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // WARMED

    def _program(
        self,
        shape: EnvShape,
        numbers: tuple[EnvParams, Router],
        environments: int,
        steps: int,
        rewards: bool,
        devices: int,
    ) -> tuple[jax.stages.Compiled, float]:
        """The compiled rollout, and the seconds that its compilation took."""
        leaves, structure = jax.tree.flatten(numbers)
        name = (shape, structure, environments, steps, rewards, devices)
        if name not in self._programs:

            def play(carry: Carry, keys: jax.Array, leaves: list[jax.Array]) -> Carry:
                return _play(shape, steps, rewards, carry, keys[0], *jax.tree.unflatten(structure, leaves))

            if devices > 1:
                mesh = Mesh(np.array(jax.devices()[:devices]), "cores")
                specs = (P("cores"), P("cores"), P())
                play = jax.shard_map(play, mesh=mesh, in_specs=specs, out_specs=P("cores"), check_vma=False)
            carry = jax.eval_shape(lambda: _start(shape, environments, *numbers))
            keys = jax.random.split(jax.random.key(0), devices)
            lowered = jax.jit(play, donate_argnums=0).lower(carry, keys, leaves)
            start = time.perf_counter()
            compiled = lowered.compile()
            self._programs[name] = compiled, time.perf_counter() - start
        return self._programs[name]


def _shape_and_numbers(scenario: Scenario, router_name: str) -> tuple[EnvShape, tuple[EnvParams, Router]]:
    shape, params = build(scenario.situation, scenario.workload, history=HISTORY)
    return shape, (params, routers(shape)[router_name])


def _route(router: Router, timestep: TimeStep, keys: jax.Array, params: EnvParams) -> jax.Array:
    return jax.vmap(router.route, in_axes=(0, None, 0))(timestep.observation, params, keys)


def _start(shape: EnvShape, environments: int, params: EnvParams, router: Router) -> Carry:
    env_keys, route_keys = jax.random.split(jax.random.key(0), (2, environments))
    state, timestep = jax.jit(jax.vmap(ServingEnvironment(shape).reset, in_axes=(0, None)))(env_keys, params)
    return state, _route(router, timestep, route_keys, params), jnp.zeros(environments)


def _play(
    shape: EnvShape, steps: int, rewards: bool, carry: Carry, key: jax.Array, params: EnvParams, router: Router
) -> Carry:
    env = ServingEnvironment(shape)

    def step(carry: Carry, key: jax.Array) -> tuple[Carry, None]:
        state, models, total = carry
        env_keys, route_keys = jax.random.split(key, (2, models.shape[0]))
        state, timestep = jax.vmap(env.step, in_axes=(0, 0, 0, None))(env_keys, state, models, params)
        total = total + timestep.reward if rewards else total
        return (state, _route(router, timestep, route_keys, params), total), None

    return jax.lax.scan(step, carry, jax.random.split(straight(key), steps))[0]


def part_cases(scenario: Scenario, environments: int, decisions: int) -> list[Case]:
    """Parts of a step under the random router, each in a program of its own.

    They need not add up to the whole: compiled together, parts share passes over memory.
    """
    shape, params = build(scenario.situation, scenario.workload, history=HISTORY)
    env, router = ServingEnvironment(shape), make_router("random", shape)
    state, models, total = _start(shape, environments, params, router)
    observation = jax.vmap(lambda state: env.arrive(state, state.pending, params)[1].observation)(state)

    def split(carry: jax.Array, key: jax.Array) -> jax.Array:
        return carry ^ jax.random.key_data(jax.random.split(key, environments))[:, 0]

    def draw(carry: Any, key: jax.Array) -> Any:
        pending, workload = carry
        drawn, workload = jax.vmap(params.workload.next)(jax.random.split(key, environments), workload)
        return jax.tree.map(jnp.add, pending, drawn), workload

    def route(carry: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, environments)
        return carry + jax.vmap(router.route, in_axes=(0, None, 0))(observation, params, keys)

    def place(state: EnvState, key: jax.Array) -> EnvState:
        del key
        state = state._replace(index=state.index + 1)
        return jax.vmap(env.place, in_axes=(0, 0, None))(state, state.index % shape.pools, params)[0]

    def arrive(rewards: bool, carry: tuple[EnvState, jax.Array], key: jax.Array) -> tuple[EnvState, jax.Array]:
        del key
        state, total = carry
        state, timestep = jax.vmap(env.arrive, in_axes=(0, 0, None))(state, state.pending, params)
        return state, total + timestep.reward if rewards else total

    parts: dict[str, tuple[Callable[[Any, jax.Array], Any], Any]] = {
        "a key for every environment": (split, jnp.zeros(environments, jnp.uint32)),
        "keys, and the next request": (draw, (state.pending, state.workload)),
        "keys, and a random model": (route, models),
        "place": (place, state),
        "let time pass": (lambda carry, key: arrive(False, carry, key), (state, total)),
        "let time pass, reading rewards": (lambda carry, key: arrive(True, carry, key), (state, total)),
    }
    return [
        _part_case(name, part, carry, environments, decisions // environments) for name, (part, carry) in parts.items()
    ]


def _part_case(name: str, part: Callable[[Any, jax.Array], Any], carry: Any, environments: int, steps: int) -> Case:
    held = jax.tree.map(jnp.copy, carry)

    @partial(jax.jit, donate_argnums=0)
    def program(carry: Any, key: jax.Array) -> Any:
        return jax.lax.scan(lambda c, k: (part(c, k), None), carry, jax.random.split(straight(key), steps))[0]

    def run(number: int) -> None:
        nonlocal held
        held = jax.block_until_ready(program(held, jax.random.key(1 + number)))

    run(-1)
    return Case(name, f"{environments:,}", steps * environments, run)
