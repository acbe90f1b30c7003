"""Several gateways: which one a request comes through, and what each makes of what it cannot see yet; NumPy and JAX."""

from __future__ import annotations

from typing import Any

import numpy as np

_ERRORS = 2.0
"""Standard errors by which a gateway takes more requests to have been sent than it expects."""


def gateway_of(index: Any, gateways: Any, xp: Any = np) -> Any:
    """Number of the gateway that a request comes through: as good as random, always the same.

    Args:
      index: (...) numbers of decisions; arrays, for NumPy not of shape ().
      gateways: () how many there are.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    # The finaliser of MurmurHash3 (Appleby, public domain).
    bits = index.astype(xp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * xp.uint32(factor)
    return ((bits ^ (bits >> 16)) % xp.uint32(gateways)).astype(xp.int32)


def unseen(recent: Any, gateways: Any, replicas: Any, xp: Any = np) -> Any:
    """(pools,) requests that others have sent to an instance of each pool within the delay, as a gateway assumes.

    They are expected to have done as it did, and balancers to spread that over the replicas: `s x recent`, with
    `s = (gateways - 1) / replicas`. What it did and what they did came by chance, so the error has the variance
    `s x recent x (1 + s)`, here with half a request more, since none is no proof. Two standard errors are added, for
    too few cost misses, and too many a little quality.

    Args:
      recent: (pools,) requests that it has sent itself within the delay and that are still there, on all replicas.
      gateways: () how many there are.
      replicas: of each pool; a number, or (pools,) of them.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    others = xp.ones_like(recent) * (gateways - 1) / replicas
    return recent * others + _ERRORS * xp.sqrt((recent + 0.5) * others * (1 + others))
