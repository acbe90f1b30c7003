"""Workloads: sources of requests.

Every workload has two forms: a generator inside the compiled simulator, which is a pytree with `init` and `next`
(`besteffort.workload.types.Workload`), and a list, `besteffort.workload.requests.Requests`.

| module | what |
|---|---|
| `types` | `Arrival` and `Workload`, the generator protocol |
| `requests` | the explicit list |
| `arrivals`, `mix`, `deadline_factors` | parts of a synthetic generator: times, task mixes, deadlines that change |
| `synthetic_workload` | the generator of them |
| `schedule` | the timetables of these parts |
| `trace_workload`, `sample` | a list as a generator; a generator as a list |
| `opening`, `sources`, `csv_rows`, `json_rows`, `text_lines` | files as rows, whatever they are written in |
| `fields`, `cells`, `columns`, `clocks` | what a row may say; columns of rows as arrays; their times in seconds |
| `readers`, `reading`, `records` | one reader per format; reads any; requests as a file states them |
| `renewal` | arrivals for formats that hold counts or rates instead |
| `traces` | `read_trace`: a file of any format as requests of a situation |
| `rescale`, `resample` | rates, times and windows of lists; requests of a list at other times |
| `config` | workloads as typed configuration |

Importing `requests`, `traces` or `rescale` does not import JAX; the names below import it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from besteffort.lazy import lazy_names

if TYPE_CHECKING:
    from besteffort.workload.arrivals import GammaRenewal, MarkovModulated, Poisson
    from besteffort.workload.synthetic_workload import synthetic

__all__ = ["GammaRenewal", "MarkovModulated", "Poisson", "synthetic"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "GammaRenewal": "besteffort.workload.arrivals",
        "MarkovModulated": "besteffort.workload.arrivals",
        "Poisson": "besteffort.workload.arrivals",
        "synthetic": "besteffort.workload.synthetic_workload",
    },
)
