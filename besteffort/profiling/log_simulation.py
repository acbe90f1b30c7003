"""Simulates a server log with many candidates for the server's terms at a time.

The requests of a log name their replica, are served in order and never rejected, so the state need not hold waiting
requests: instances have seats for running requests only, and the cost of a list does not depend on its queue lengths.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.profile.types import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.profiling.server_log import RequestLog
from besteffort.simulator import closed_form, ledger
from besteffort.simulator.build import build
from besteffort.simulator.request import Request
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Cluster, Situation, Task

Array = jax.Array


class Candidates(NamedTuple):
    """Candidate terms; the leading axis counts candidates.

    Attributes:
      decode: (candidates, max_batch + 1) seconds of a decode iteration by batch size; entry 0 is 0.
      prefill_s: (candidates, n) seconds of each request's prefill.
      context_cost_s: (candidates,) seconds per token held.
      cache_tokens: (candidates,) tokens that fit the cache; not used without a cache limit.
      claims: (candidates, n) tokens that each request claims of the cache; not used without a cache limit.
    """

    decode: Any
    prefill_s: Any
    context_cost_s: Any
    cache_tokens: Any
    claims: Any


class Player:
    """Simulates the requests of a log in float32, with times relative to their arrivals."""

    def __init__(self, log: RequestLog, max_batch: int, *, cache_limit: bool) -> None:
        """`max_batch` is the largest batch; `cache_limit` is whether `Candidates.cache_tokens` applies."""
        self._shape = EnvShape(
            replicas=len(log.replicas),
            pools=1,
            tasks=1,
            max_batch=max_batch,
            queue_capacity=0,
            history=len(log),
            context_cost=True,
            cache_limit=cache_limit,
            record=True,
        )
        _, self._params = build(_SITUATION, None, history=1)
        self._arrivals = _Arrivals(
            gap_s=jnp.asarray(np.diff(log.arrival_s, prepend=log.arrival_s[0]), jnp.float32),
            replica=jnp.asarray(log.replica),
            prompt_tokens=jnp.asarray(log.prompt_tokens),
            output_tokens=jnp.asarray(log.output_tokens),
        )

    def play(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """(candidates, n) seconds from each arrival to the first and to the last token."""
        arrays = Candidates(*(jnp.asarray(values, jnp.float32) for values in candidates))
        first_s, last_s = _play(self._shape, self._params, self._arrivals, arrays)
        return np.asarray(first_s, np.float64), np.asarray(last_s, np.float64)


class _Arrivals(NamedTuple):
    gap_s: Array
    replica: Array
    prompt_tokens: Array
    output_tokens: Array


@partial(jax.jit, static_argnums=0)
def _play(shape: EnvShape, params: EnvParams, arrivals: _Arrivals, candidates: Candidates) -> tuple[Array, Array]:
    return jax.vmap(lambda candidate: _serve(shape, params, arrivals, candidate))(candidates)


def _serve(shape: EnvShape, params: EnvParams, arrivals: _Arrivals, candidate: Candidates) -> tuple[Array, Array]:
    params = dataclasses.replace(
        params,
        decode=candidate.decode[None],
        context_cost_s=candidate.context_cost_s[None],
        cache_tokens=candidate.cache_tokens[None],
    )

    def arrive(state: tuple, request: tuple) -> tuple[tuple, None]:
        instances, written = state
        index, one, prefill_s, claim = request
        instances, written, _ = closed_form.advance(shape, params, instances, written, index - 1, one.gap_s)
        new = Request(
            index=index,
            task=jnp.int32(0),
            output_tokens=one.output_tokens,
            prefill_s=prefill_s,
            arrival_s=jnp.zeros_like(one.gap_s),
            deadline_s=jnp.ones_like(one.gap_s),
            prompt_tokens=one.prompt_tokens,
            cache_tokens=claim if shape.cache_limit else None,
        )
        instances, written, _ = closed_form.submit(
            shape, params, instances, written, one.replica, new, jnp.ones((), bool)
        )
        return (instances, written), None

    state = closed_form.empty(shape), ledger.empty(shape.history, shape.record)
    requests = (jnp.arange(shape.history, dtype=jnp.int32), arrivals, candidate.prefill_s, candidate.claims)
    (instances, written), _ = jax.lax.scan(arrive, state, requests)
    newest = jnp.int32(shape.history - 1)
    instances, written, _ = closed_form.advance(
        shape, params, instances, written, newest, jnp.full((), jnp.inf, candidate.decode.dtype)
    )
    timing = closed_form.flush(shape, params, instances, written, newest).timing
    assert timing is not None
    return timing.first_token_s, timing.service_s


_NOTHING = Source("modelled", "a placeholder")
_SITUATION = Situation(
    Profile(
        format=1,
        name="placeholder",
        device="none",
        models=(ModelProfile("model", ((1, 1.0),), ((1, 1.0),)),),
        tasks=(TaskQuality("task", "none", "none", (100.0,)),),
        provenance=Provenance(_NOTHING, _NOTHING, _NOTHING, _NOTHING),
    ),
    Cluster(replicas=1, max_batch=1, queue_capacity=0),
    (Task("task", prompt_tokens=(1, 1), output_tokens=(1, 1)),),
)
"""Fills the fields of `EnvParams` that a log does not set; rewards and routers are not used here."""
