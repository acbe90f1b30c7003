"""The router's view of the arrival rate and batch sizes: current or, where the situation says so, delayed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from besteffort.simulator.types import EnvParams, EnvShape

Array = jax.Array


class StaleView(NamedTuple):
    """Past values that a delayed view needs.

    Attributes:
      rates: (rate_memory + 1,) rate estimates, that of decision `d` in slot `d % (rate_memory + 1)`, 0 before the
        first; None unless `EnvShape.rate_memory`.
      sizes: (rows, pools) batch sizes as last read; None unless `EnvShape.stale_sizes`.
      age_s: () seconds since that read, inf before the first; None unless `EnvShape.stale_sizes`.
    """

    rates: Array | None
    sizes: Array | None
    age_s: Array | None


def empty(shape: EnvShape) -> StaleView:
    """The view before the first decision."""
    return StaleView(
        rates=jnp.zeros(shape.rate_memory + 1) if shape.rate_memory else None,
        sizes=jnp.zeros((shape.replicas, shape.pools), jnp.int32) if shape.stale_sizes else None,
        age_s=jnp.array(jnp.inf) if shape.stale_sizes else None,
    )


def delayed_observation(
    params: EnvParams, view: StaleView, index: Array, gap_s: Array, rate: Array, sizes: Array
) -> tuple[StaleView, Array, Array]:
    """Returns the new view, and the rate estimate and the batch sizes that a router sees at decision `index`.

    Args:
      params: numbers of the environment.
      view: the view at the last decision.
      index: () number of the decision.
      gap_s: () seconds since the last decision.
      rate: () the current estimate.
      sizes: (rows, pools) the current batch sizes.
    """
    if view.rates is not None:
        slots = view.rates.shape[0]
        rates = view.rates.at[index % slots].set(rate)
        # Slots of decisions before the first are not written yet and hold 0.
        rate = rates[(index - params.rate_lag) % slots]
        view = view._replace(rates=rates)
    if view.sizes is not None and view.age_s is not None:
        age_s = view.age_s + gap_s
        read = age_s >= params.batch_refresh_s
        sizes = jnp.where(read, sizes, view.sizes)
        view = view._replace(sizes=sizes, age_s=jnp.where(read, 0.0, age_s))
    return view, rate, sizes
