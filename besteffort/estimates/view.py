"""What a gateway can count: the requests in flight on the instances that may get the next one. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.situation import Situation


@dataclasses.dataclass(frozen=True)
class Terms:
    """Which terms of the serving model estimates reckon with; static, those that are off cost nothing.

    Attributes:
      capacity: requests that an instance of any pool holds at most, running and waiting.
      streamed: tokens are counted as they come; otherwise an answer shows nothing before its end.
      soft: deadlines are soft.
      context_cost: iterations take longer the more tokens are held.
      cache_limit: admission needs room in the key-value cache.
      chunks: prompts are read within a budget of tokens per iteration.
    """

    capacity: int
    streamed: bool = True
    soft: bool = False
    context_cost: bool = False
    cache_limit: bool = False
    chunks: bool = False

    @classmethod
    def of(cls, situation: Situation) -> Terms:
        """The terms that a situation has."""
        fleet = situation.fleet
        return cls(
            capacity=int(fleet.places.max()),
            streamed=situation.view.streamed,
            soft=situation.reward.soft_span > 0,
            context_cost=bool(fleet.context_cost_s.any()),
            cache_limit=bool(np.isfinite(fleet.cache_tokens).any()),
            chunks=bool(np.isfinite(fleet.chunk_tokens).any()),
        )

    @classmethod
    def together(cls, situations: Sequence[Situation]) -> Terms:
        """The terms that any of several situations has, for programs that simulate all of them.

        Raises:
          InputError: if answers are streamed in some of them only, or instances hold different numbers of requests.
        """
        every = [cls.of(situation) for situation in situations]
        if len({(terms.capacity, terms.streamed) for terms in every}) > 1:
            raise InputError("The situations differ in `view.streamed` or in what an instance holds; give equal ones.")
        switches = ("soft", "context_cost", "cache_limit", "chunks")
        return dataclasses.replace(every[0], **{name: any(getattr(one, name) for one in every) for name in switches})

    @property
    def infers_admissions(self) -> bool:
        """Whether no one outside can see which requests an iteration admitted."""
        return self.cache_limit or not self.streamed


@dataclasses.dataclass(frozen=True)
class InFlightView:
    """Requests in flight on one instance per model, that which the load balancer would pick; no request is in order.

    It holds what can be counted from outside and nothing else: no output length of a request that is not done.

    Attributes:
      present: (pools, seats) whether the seat holds a request.
      running: (pools, seats) whether the iteration in progress works on it, others wait; None where that is inferred.
        Where prompts are read in chunks, it says nothing of requests without a token: see
        `besteffort.estimates.estimates.settled`.
      eligible: (pools, seats) whether it was there when that iteration began; None where `running` is given.
      order: (pools, seats) rises in order of arrival; None where `running` is given.
      tokens: (pools, seats) tokens received, 0 before the first.
      task: (pools, seats) index of its task.
      prompt_tokens: (pools, seats) length of its prompt.
      cached_tokens: (pools, seats) how much of it was found in a prefix cache; None where requests state none, or
        `read_s` is given.
      age_s: (pools, seats) seconds since its arrival.
      elapsed_s: (pools,) seconds since the iteration in progress began, or the first of several that give no one a
        token; of no meaning where nothing runs, and where answers are not streamed.
      output_limit: (pools, seats) the client's limit on its output; None where clients state none.
      deadline_factor: (pools, seats) factor in force on its deadline; None where deadlines do not change.
      delay_s: (pools, seats) network delay of its answer; None where requests have no origin.
      tenant_weight: (pools, seats) factor on its rewards by its tenant; None where all count the same.
      read_s: (pools, seats) seconds of reading what was not found of its prompt, by the tables that are taken for
        granted; None where that is looked up.
      batch_sizes: (pools,) requests running and waiting on all replicas, as counted now: batch sizes of an observation
        may have been read earlier.
      seen_s: (pools, seats) seconds since it was as this view says; None where all is as of now.
      share: (pools, seats) chance that it is there still; None where that is certain.
      unseen: (pools,) requests that are expected to have been sent to the instance without being seen yet, a fraction;
        None where all is as of now.
      ready_s: (pools,) seconds until the instance is up, 0 if it is; None where nothing happens to replicas.
      takes: (pools,) whether any replica of the pool takes requests; None likewise.
      observed_slowdown: (pools,) see `besteffort.estimates.correction`; None where times are not compared.
      beside: where models slow each other down, all requests on the replica that each model's row stands for: a view
        whose fields have the shape (pools, pools, seats), and an `elapsed_s` that is not used; else None.
      terms: the terms to reckon with; static.
    """

    present: Any
    running: Any
    tokens: Any
    task: Any
    prompt_tokens: Any
    age_s: Any
    elapsed_s: Any
    eligible: Any = None
    order: Any = None
    output_limit: Any = None
    deadline_factor: Any = None
    delay_s: Any = None
    batch_sizes: Any = None
    seen_s: Any = None
    share: Any = None
    unseen: Any = None
    ready_s: Any = None
    takes: Any = None
    observed_slowdown: Any = None
    beside: Any = None
    cached_tokens: Any = None
    tenant_weight: Any = None
    read_s: Any = None
    terms: Terms = Terms(1)
