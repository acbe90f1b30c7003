"""Free memory of a device, to check before large allocations."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from besteffort.errors import InputError
from besteffort.opt.config import OPTConfig

_CGROUP = Path("/sys/fs/cgroup")  # version 2


def weight_bytes(config: OPTConfig, dtype: Any) -> int:
    """Bytes of all weights."""
    return config.parameters * jnp.dtype(dtype).itemsize


def cache_bytes(config: OPTConfig, rows: int, length: int, dtype: Any) -> int:
    """Bytes of a key-value cache."""
    return config.cache_values * rows * length * jnp.dtype(dtype).itemsize


def free_bytes(device: jax.Device | None = None) -> int | None:
    """Bytes that can still be allocated on a device (by default the first one); None if unknown."""
    device = device or jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _host_free_bytes() if device.platform == "cpu" else None


def check_fits(what: str, needed: int, remedy: str, device: jax.Device | None = None) -> None:
    """Raises `InputError` with the numbers and the `remedy` if `needed` bytes are not free."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise InputError(
            f"{what} needs {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free on "
            f"{(device or jax.devices()[0]).device_kind}; {remedy}."
        )


def _host_free_bytes() -> int | None:
    """Memory that this process may still allocate: that of the machine or of its control group, whichever is less."""
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        free.append(int(limit) - int(used))
    if not free:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(free, default=None)
