"""Measures the peak rates of a device, and computes the lower bounds on latencies that follow from them.

A latency is at least the bytes to read divided by the read rate of the device, and at least the operations to compute
divided by its rate of matrix products. The same programs measure any device that JAX supports.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from besteffort.device import free_bytes
from besteffort.opt.config import OPTConfig

_READ_BYTES = 2**30
_SIDES = (1024, 2048, 4096, 8192, 16384)
_PATIENCE_S = 0.2


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Peak rates that a device attains.

    Attributes:
      bytes_per_s: bytes per second when reading much more memory than any cache holds.
      flops_per_s: operations per second when multiplying large square matrices.
    """

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, transferred: int | float, operations: int | float) -> float:
        """Least seconds to read `transferred` bytes and compute `operations`; both may happen at once."""
        return max(transferred / self.bytes_per_s, operations / self.flops_per_s)


def measure_ceilings(dtype: Any, repeats: int = 7) -> Ceilings:
    """Measures the default device by the best of several repeats, as in STREAM (McCalpin, 1995).

    Args:
      dtype: type of the matrices; the device accumulates with its default precision, float32 with full precision.
      repeats: repeats of each size.
    """
    return Ceilings(bytes_per_s=_read_rate(repeats), flops_per_s=_matrix_rate(jnp.dtype(dtype), repeats))


def _read_rate(repeats: int) -> float:
    """The better rate of a sum and a matrix-vector product, which compilers treat differently."""
    size = min(_READ_BYTES, (free_bytes() or 8 * _READ_BYTES) // 8)
    matrix = jax.block_until_ready(jnp.ones((max(size // 16384, 1), 4096), jnp.float32))
    vector = jnp.ones((4096,), jnp.float32)
    total = jax.jit(jnp.sum)
    product = jax.jit(lambda a, x: jnp.matmul(a, x, precision=jax.lax.Precision.HIGHEST))
    return matrix.nbytes / min(
        _best_s(lambda: total(matrix), repeats), _best_s(lambda: product(matrix, vector), repeats)
    )


def _matrix_rate(dtype: Any, repeats: int) -> float:
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    best = 0.0
    for side in _SIDES:
        a = jax.block_until_ready(jnp.ones((side, side), dtype))
        took_s = _best_s(partial(product, a, a), repeats)
        best = max(best, 2 * side**3 / took_s)
        if 8 * took_s > _PATIENCE_S:
            break
    return best


def _best_s(run: Callable[[], jax.Array], repeats: int) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def decode_floor_s(config: OPTConfig, batch: int, context: int | float, itemsize: int, ceilings: Ceilings) -> float:
    """Least seconds of a decode step of `batch` rows that hold `context` tokens each.

    Weights and cache are read once; operations are two per weight and token, plus attention.
    """
    weights = config.parameters - config.positions * config.hidden  # a position is looked up
    transferred = itemsize * (weights + batch * context * config.cache_values)
    operations = batch * (2 * weights + 4 * config.layers * config.hidden * context)
    return ceilings.floor_s(transferred, operations)


def prefill_floor_s(config: OPTConfig, tokens: int, itemsize: int, ceilings: Ceilings) -> float:
    """Least seconds of the prefill of a prompt: weights read once, the output layer applied to its last token."""
    head = config.vocab * config.embedding
    weights = config.parameters - config.positions * config.hidden
    attention = 2 * config.layers * config.hidden * tokens  # causal: half of the pairs
    operations = tokens * (2 * (weights - head) + attention) + 2 * head
    return ceilings.floor_s(itemsize * weights, operations)
