"""Workloads: who asks what, and when.

Every workload serves two ways. As a generator inside the compiled simulator: a pytree with `init` and `next`
(`besteffort.simulator.types.Workload`). As a list: `besteffort.workload.requests.Requests`.

| module | what |
|---|---|
| `requests` | the explicit list |
| `arrivals`, `mix`, `deadlines`, `synthetic` | synthetic generators: arrival times, task mixes, deadlines, together |
| `replay`, `sample` | a list as a generator; a generator as a list |
| `traces` | `read_trace` and one reader per file format |
| `rescale` | rates, times, windows and files of lists |
| `config` | workloads as typed configuration |

Importing `requests`, `traces` or `rescale` does not import JAX.
"""
