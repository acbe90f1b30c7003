"""What bounds the compiled simulator on one core: arithmetic, the caches, and the starts of its kernels.

XLA counts the operations and the bytes of a step; a byte that two kernels read counts twice, wherever it comes from.
The ceilings are measured beside it: a product of matrices for arithmetic, a pass over numbers as large as the states
for the caches. All of it is processor time, the fastest of several rounds.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.compiled import Rollouts, Scenario
from benchmarks.timing import Case, measure, one_core
from experiments.tables import LIMITS_HEADER, limits_rows

ENVIRONMENTS = 64
_SIDE, _PRODUCTS = 512, 20
_PASSES = 2_000
_ROUNDS = 9
_KERNELS = re.compile(r"^\s+(?:ROOT )?\S+ = .*?\s(fusion|copy|while|sort|scatter|gather|dot|call)\(", re.MULTILINE)


def limits(scenario: Scenario, router: str, decisions: int, warm_steps: int) -> dict[str, Any]:
    """A step of `ENVIRONMENTS` environments against the ceilings of a core, in a process that keeps to one.

    Args:
      scenario: what is served.
      router: its name, as of `benchmarks.compiled.routers`.
      decisions: of a timed rollout, over all environments.
      warm_steps: of every environment before.
    """
    context = multiprocessing.get_context("spawn")  # JAX has not started there, and will use what cores it has
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_limits, scenario, router, decisions, warm_steps).result()


@one_core()
def _limits(scenario: Scenario, router: str, decisions: int, warm_steps: int) -> dict[str, Any]:
    rollouts = Rollouts(decisions, warm_steps)
    many = rollouts.case(scenario, router, ENVIRONMENTS)
    one = Rollouts(max(decisions // ENVIRONMENTS, 1), warm_steps).case(scenario, router, 1)
    state_bytes = rollouts.state_bytes(scenario, router)
    cases = [many, one, _product(), _passes(state_bytes * ENVIRONMENTS)]
    speeds = measure(cases, _ROUNDS, Console(quiet=True), time.process_time)
    decisions_per_s, decisions_of_one_per_s, arithmetic, streamed = (
        speeds[case.row][case.column].fastest for case in cases
    )
    step_s = ENVIRONMENTS / decisions_per_s
    program = rollouts.step(scenario, router, ENVIRONMENTS)
    counted, text = program.cost_analysis() or {}, program.as_text() or ""
    operations, moved = counted["flops"], counted["bytes accessed"]
    return {
        "environments": ENVIRONMENTS,
        "state_bytes": state_bytes,
        "step_us": 1e6 * step_s,
        "step_of_one_us": 1e6 / decisions_of_one_per_s,
        "kernels_per_step": len(_KERNELS.findall(text.partition("ENTRY")[2])),
        "operations_per_decision": operations / ENVIRONMENTS,
        "bytes_per_decision": moved / ENVIRONMENTS,
        "peak_operations_per_s": arithmetic,
        "peak_bytes_per_s": streamed,
        "share_of_arithmetic": operations / step_s / arithmetic,
        "share_of_bandwidth": moved / step_s / streamed,
    }


def limits_table(found: dict[str, Any]) -> Table:
    """The shares, and what they are shares of."""
    table = Table(title=f"A step of {found['environments']} environments on one core, {found['step_us']:.0f} us")
    for heading in LIMITS_HEADER:
        table.add_column(heading, justify="right" if heading else "left")
    for row in limits_rows(found):
        table.add_row(*row)
    return table


def _product() -> Case:
    """A product of float32 matrices; its work are operations, two for each multiplication and addition."""
    matrix = jnp.eye(_SIDE) * 0.5
    program = jax.jit(lambda x: jax.lax.fori_loop(0, _PRODUCTS, lambda i, y: y @ x, x))
    return _case("product of matrices", 2 * _SIDE**3 * _PRODUCTS, program, matrix)


def _passes(size: int) -> Case:
    """Passes over `size` bytes, each in one kernel; its work are the bytes read and written."""
    numbers = jnp.ones(size // 4, jnp.float32)
    program = jax.jit(lambda x: jax.lax.fori_loop(0, _PASSES, lambda i, y: y * 0.5 + 1.0, x))
    return _case("passes", 2 * numbers.nbytes * _PASSES, program, numbers)


def _case(name: str, work: int, program: jax.stages.Wrapped, operand: jax.Array) -> Case:
    compiled = program.lower(operand).compile()
    return Case(name, "", work, lambda number: jax.block_until_ready(compiled(operand)))
