"""Bytes of a model's weights and of its cache."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from besteffort.opt.config import OPTConfig


def weight_bytes(config: OPTConfig, dtype: Any) -> int:
    """Bytes of all weights."""
    return config.parameters * jnp.dtype(dtype).itemsize


def cache_bytes(config: OPTConfig, rows: int, length: int, dtype: Any) -> int:
    """Bytes of a key-value cache."""
    return config.cache_values * rows * length * jnp.dtype(dtype).itemsize
