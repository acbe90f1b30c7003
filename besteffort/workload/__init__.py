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

Importing `requests`, `traces` or `rescale` does not import JAX.
"""
