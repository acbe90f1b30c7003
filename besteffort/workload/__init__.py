"""Workloads: who asks what, and when.

Every workload serves two ways. As a generator inside the compiled simulator: a pytree with `init` and `next`
(`besteffort.workload.types.Workload`). As a list: `besteffort.workload.requests.Requests`.

| module | what |
|---|---|
| `types` | `Arrival` and `Workload`, what a generator is |
| `requests` | the explicit list |
| `arrivals`, `mix`, `deadlines`, `synthetic` | synthetic generators: arrival times, task mixes, deadlines, together |
| `trace_workload`, `sample` | a list as a generator; a generator as a list |
| `readers` | one reader per file format |
| `traces` | `read_trace`: a file of any format as requests of a situation |
| `rescale` | rates, times and windows of lists |
| `config` | workloads as typed configuration |

Importing `requests`, `traces` or `rescale` does not import JAX; the names below do, when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from besteffort.lazy import lazy_names

if TYPE_CHECKING:
    from besteffort.workload.arrivals import GammaRenewal, MarkovModulated, Poisson
    from besteffort.workload.synthetic import synthetic

__all__ = ["GammaRenewal", "MarkovModulated", "Poisson", "synthetic"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "GammaRenewal": "besteffort.workload.arrivals",
        "MarkovModulated": "besteffort.workload.arrivals",
        "Poisson": "besteffort.workload.arrivals",
        "synthetic": "besteffort.workload.synthetic",
    },
)
