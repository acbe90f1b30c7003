"""Names of the default device and of the processor, and free memory, to check before large allocations."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from besteffort.errors import InputError

if TYPE_CHECKING:
    import jax

_CGROUP = Path("/sys/fs/cgroup")  # version 2


def device_name() -> str:
    """The accelerator's product name, or the processor's with the number of its cores. Starts JAX."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{cpu_name()}, {cores()} cores"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model name, with family and model numbers where the system lists them (for virtual machines)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name", platform.machine())
    if "cpu family" in known:
        name += f" (family {known['cpu family']}, model {known.get('model', '?')})"
    return name


def free_bytes(device: jax.Device | None = None) -> int | None:
    """Bytes that can still be allocated on a device (by default the first one); None if unknown."""
    import jax

    device = device or jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _host_free_bytes() if device.platform == "cpu" else None


def check_fits(what: str, needed: int, remedy: str, device: jax.Device | None = None) -> None:
    """Raises `InputError` with the numbers and the `remedy` if `needed` bytes are not free."""
    import jax

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
