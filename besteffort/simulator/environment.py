"""The serving environment: one step per routing decision.

| | |
|---|---|
| observation | `besteffort.observation.Observation`: task, batch sizes, estimated arrival rate, and more |
| action | () integer, the pool that answers the request |
| reward | sum over the requests resolved since the last decision; `outcomes` returns the reward of each decision |
| termination | never |
| truncation | after `EnvShape.horizon` decisions, if that is positive; `drain` then finishes what is in flight |

All functions are pure and take a single environment; `jax.vmap` them over keys, states, actions, and over any leaf of
`EnvParams`. The load balancer sends a request to the replica of the chosen pool with the smallest batch size (ties:
lowest index).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from besteffort.estimates.correction import Comparison, compared, fixed_s, observed_slowdown
from besteffort.keys import straight
from besteffort.observation import Observation, next_rate
from besteffort.pools import least_loaded
from besteffort.simulator import closed_form, iterative, stale_view
from besteffort.simulator import ledger as ledgers
from besteffort.simulator import life as lives
from besteffort.simulator.ledger import Ledger
from besteffort.simulator.life import LifeState
from besteffort.simulator.request import (
    Request,
    compares_answers,
    compares_iterations,
    mean_decode_s,
    needs_prompts,
    read_s,
    refused,
    slots,
    takers,
    tenant_weight_of,
)
from besteffort.simulator.stale_view import StaleView
from besteffort.simulator.types import EnvParams, EnvShape, Outcomes, TimeStep
from besteffort.situation import deadline_s
from besteffort.workload.types import Arrival

Array = jax.Array


class EnvState(NamedTuple):
    """State between two decisions; scalars unless said otherwise.

    Attributes:
      instances: every instance's requests, see `closed_form` and `iterative`.
      ledger: outcomes by decision.
      workload: the workload's own state.
      pending: the request that waits for a decision.
      sizes: (rows, pools) batch sizes as the pending request finds them.
      index: number of the pending decision.
      clock_s: seconds since the start; only outcomes depend on it. Rounded to float32, it lags by 0.2% after four
        million decisions and by 3% after sixteen, so that in very long episodes outcomes resolve late.
      rate: estimated arrival rate, requests per second.
      comparison: how observed times compare with the tables; None unless `EnvShape.compare_times`.
      stale_view: past rates and batch sizes that a delayed router view needs.
      since_accept_s: seconds since a request was last accepted; since the start, before the first.
      at_once: reward of the last decision if its request was rejected or answered in no time, else 0.
      life: where the lives of replicas stand; None unless `EnvShape.life`.
    """

    instances: Any
    ledger: Ledger
    workload: Any
    pending: Arrival
    sizes: Array
    index: Array  # type: ignore[assignment]
    clock_s: Array
    rate: Array
    comparison: Comparison | None
    stale_view: StaleView
    since_accept_s: Array
    at_once: Array
    life: LifeState | None = None


class Placement(NamedTuple):
    """Pool and replica of a decision's request; scalars.

    Attributes:
      pool: index of the chosen pool.
      replica: index of the replica that serves the request; -1 if it was rejected.
      credit: see `TimeStep`.
    """

    pool: Array
    replica: Array
    credit: Array | None


@dataclasses.dataclass(frozen=True)
class ServingEnvironment:
    """The exact serving model of `ARCHITECTURE.md`: pure functions of one environment, to be mapped by `jax.vmap`.

    Attributes:
      shape: counts and switches of the compiled program.
      version: changes whenever behaviour does.
    """

    shape: EnvShape
    version = "4"

    @property
    def endless(self) -> bool:
        """Whether episodes never end."""
        return not self.shape.horizon

    def reset(self, key: Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        """Empty cluster, first request pending.

        Args:
          key: draws the first arrival.
          params: the numbers.

        Returns:
          The state, and the first time step, whose `reward` is 0.
        """
        init_key, next_key = jax.random.split(straight(key))
        arrival, workload = params.workload.next(next_key, params.workload.init(init_key))
        arrival = _counted_alike(arrival, params)
        state, step = self.arrive(self.start(arrival)._replace(workload=workload), arrival, params)
        credit = None if self.shape.stepwise else jnp.zeros_like(step.reward)
        return state, dataclasses.replace(step, credit=credit)

    def step(self, key: Array, state: EnvState, action: Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        """Places the pending request in pool `action` and advances time to the next arrival.

        Episodes do not restart by themselves: after `EnvShape.horizon` decisions steps are `truncated`.

        Args:
          key: draws the next arrival.
          state: as from `reset` or `step`.
          action: () integer, index of a pool, from 0 to `EnvShape.pools` - 1.
          params: the numbers.

        Returns:
          The state, and the time step in which the next request is pending.
        """
        state, placement = self.place(state, action, params)
        arrival, workload = params.workload.next(straight(key), state.workload)
        arrival = _counted_alike(arrival, params)
        state, step = self.arrive(state._replace(workload=workload), arrival, params)
        return state, dataclasses.replace(step, credit=placement.credit)

    def outcomes(self, state: EnvState, params: EnvParams) -> Outcomes:
        """Own-request rewards of the last `EnvShape.history` decisions.

        A decision resolves when its request can earn nothing more: `1 + soft_span` deadlines after its arrival, whether
        it was answered, late or rejected. That time does not depend on the outcome, so a learner that uses resolved
        decisions sees hits and misses in their true shares.

        Costs about as much as ten steps, so learners call it once per rollout.
        """
        ledger = self.flush(state, params).ledger
        resolved = ledger.due_s <= state.clock_s
        return Outcomes(jnp.where(resolved, ledger.reward, 0.0), resolved)

    def flush(self, state: EnvState, params: EnvParams) -> EnvState:
        """Brings the ledger up to date; steps update it lazily."""
        ledger = self._dynamics.flush(self.shape, params, state.instances, state.ledger, state.index)
        return state._replace(ledger=ledger)

    def drain(self, state: EnvState, params: EnvParams) -> EnvState:
        """Finishes all requests in flight, without new arrivals; then `outcomes` has the rewards of all placed."""
        end_s = jnp.full_like(state.clock_s, jnp.inf)
        state, _, _ = self._advance(state, end_s, params)
        return self.flush(state._replace(clock_s=end_s), params)

    def start(self, like: Arrival) -> EnvState:
        """An empty cluster before the first arrival, whose workload has no state."""
        shape = self.shape
        zero = jnp.zeros(())
        return EnvState(
            instances=self._dynamics.empty(shape, like),
            ledger=ledgers.empty(shape.history, shape.record),
            workload=None,
            pending=like,
            sizes=jnp.zeros((shape.replicas, shape.pools), jnp.int32),
            index=jnp.int32(-1),
            clock_s=zero,
            rate=zero,
            comparison=Comparison(jnp.zeros(shape.pools), jnp.zeros(shape.pools)) if shape.compare_times else None,
            stale_view=stale_view.empty(shape),
            since_accept_s=zero,
            at_once=zero,
            life=lives.empty(shape) if shape.life else None,
        )

    def _advance(self, state: EnvState, gap_s: Array, params: EnvParams) -> tuple[EnvState, Array, Array]:
        """What happens on the instances within `gap_s`, and the last two results of `closed_form.advance`."""
        shape, dynamics, instances, life = self.shape, self._dynamics, state.instances, state.life
        if params.life is not None and life is not None and params.pools is not None:
            life = lives.begun(params.life, life, state.index < 0)
            leave_s = dynamics.leave_s(instances)
            life, fails_s = lives.live(shape, params.life, params.pools.placed, life, leave_s, gap_s)
            instances = dynamics.lose(shape, params, instances, fails_s)
        instances, ledger, reward, sizes = dynamics.advance(shape, params, instances, state.ledger, state.index, gap_s)
        return state._replace(instances=instances, ledger=ledger, life=life), reward, sizes

    def arrive(self, state: EnvState, arrival: Arrival, params: EnvParams) -> tuple[EnvState, TimeStep]:
        """Advances time by `arrival.gap_s`; the arrival becomes the pending request."""
        shape, dynamics = self.shape, self._dynamics
        index = state.index + 1
        state, reward, sizes = self._advance(state, arrival.gap_s, params)
        instances, ledger, life = state.instances, state.ledger, state.life
        rate = jnp.where(index == 0, 0.0, next_rate(state.rate, arrival.gap_s, params.rate_tau_s, jnp))
        known_sizes = sizes
        if shape.late_others:
            known_sizes = closed_form.seen_sizes(shape, params, instances, index)
        view, seen_rate, seen_sizes = stale_view.delayed_observation(
            params, state.stale_view, index, arrival.gap_s, rate, known_sizes
        )
        comparison, slowdown = state.comparison, None
        if comparison is not None:
            instances, excess_s, assumed_s = dynamics.compare(shape, params, instances, sizes)
            tau_s = params.slowdown_tau_s
            comparison = compared(comparison, arrival.gap_s, excess_s, assumed_s, tau_s, jnp)
            slowdown = observed_slowdown(comparison, tau_s, jnp)
        reward = reward + state.at_once
        clock_s = state.clock_s + arrival.gap_s
        due_s = clock_s + (1.0 + params.soft_span) * arrival.deadline_s
        weight = tenant_weight_of(params, arrival)
        loss = refused(shape, params, arrival.task, arrival.deadline_s, weight)
        ledger = ledgers.open_slot(ledger, index, loss, due_s)
        state = EnvState(
            instances=instances,
            ledger=ledger,
            workload=state.workload,
            pending=arrival,
            sizes=sizes,
            index=index,
            clock_s=clock_s,
            rate=rate,
            comparison=comparison,
            stale_view=view,
            since_accept_s=state.since_accept_s + arrival.gap_s,
            at_once=jnp.zeros_like(state.at_once),
            life=life,
        )
        visible_s = deadline_s(
            params.deadline_base_s[arrival.task],
            params.deadline_per_token_s[arrival.task],
            params.mean_output_tokens[arrival.task],
        )
        if arrival.deadline_factor is not None:
            visible_s = visible_s * arrival.deadline_factor
        observation = Observation(
            task=arrival.task,
            batch_sizes=seen_sizes.sum(0),
            arrival_rate=seen_rate,
            instance_batch_sizes=seen_sizes,
            deadline_s=visible_s,
            takes=takers(params, life),
            origin=arrival.origin,
            tenant_weight=weight,
            ready_s=None if life is None or params.pools is None else lives.shown(life, sizes, params.pools.placed)[1],
            since_change_s=jnp.minimum(state.since_accept_s, dynamics.last_departure_s(instances)),
        )
        if shape.estimates is not None:
            observation = observation._replace(
                prompt_tokens=arrival.prompt_tokens,
                cached_tokens=arrival.cached_tokens,
                output_limit=arrival.output_limit,
                deadline_factor=arrival.deadline_factor,
                in_flight=dataclasses.replace(
                    dynamics.in_flight(shape, params, instances, known_sizes, index, life),
                    batch_sizes=known_sizes.sum(0),
                    observed_slowdown=slowdown,
                ),
            )
        truncated = (index >= shape.horizon) if shape.horizon else jnp.zeros((), bool)
        return state, TimeStep(
            observation, reward, jnp.zeros((), bool), truncated, index, gap_s=jnp.asarray(arrival.gap_s)
        )

    def place(self, state: EnvState, action: Array, params: EnvParams) -> tuple[EnvState, Placement]:
        """Balances the pending request over the replicas of pool `action`; rejects it if none takes it."""
        shape, arrival = self.shape, state.pending
        pool = jnp.asarray(action, jnp.int32)
        column = jax.lax.dynamic_index_in_dim(state.sizes, pool, axis=1, keepdims=False)
        there, among = takers(params, None), takers(params, state.life)
        row = least_loaded(column, None if among is None else among[:, pool], jnp).astype(jnp.int32)
        accept = column[row] < (
            shape.max_batch + shape.queue_capacity if params.pools is None else params.pools.places[pool]
        )
        ready_s = cache_tokens = None
        if state.life is not None and among is not None:
            accept &= among[row, pool]
            ready_s = state.life.ready_s[row * shape.pools + pool]
        if shape.cache_limit:
            cache_tokens = arrival.prompt_tokens + jnp.ceil(params.cache_output_share * arrival.output_tokens)
            accept &= cache_tokens <= params.cache_tokens[pool]
        believed, number, weight = params.believed, column[row] + 1, tenant_weight_of(params, arrival)
        prefill_s = read_s(params, pool, arrival.prompt_tokens, arrival.cached_tokens)
        excess_s = fixed = None
        if compares_iterations(shape):
            excess_s = prefill_s - read_s(believed, pool, arrival.prompt_tokens, arrival.cached_tokens)
        if compares_answers(shape):
            fixed = fixed_s(
                read_s(believed, pool, arrival.prompt_tokens, arrival.cached_tokens),
                arrival.output_tokens,
                number,
                lambda many: mean_decode_s(shape, believed, pool, many),
                slots(shape, believed, pool),
                jnp,
            )
        request = Request(
            index=state.index,
            task=arrival.task,
            output_tokens=arrival.output_tokens,
            prefill_s=prefill_s,
            arrival_s=jnp.zeros_like(arrival.gap_s),
            deadline_s=arrival.deadline_s,
            prompt_tokens=arrival.prompt_tokens if needs_prompts(shape) else None,
            cache_tokens=cache_tokens,
            prefill_excess_s=excess_s,
            fixed_s=fixed,
            output_limit=arrival.output_limit if shape.estimates else None,
            deadline_factor=arrival.deadline_factor if shape.estimates else None,
            delay_s=None if arrival.origin is None else params.origin_delay_s[arrival.origin, pool],
            cached_tokens=arrival.cached_tokens if shape.chunks or shape.estimates else None,
            ready_s=ready_s,
            tenant_weight=weight,
        )
        instances, ledger, credit, at_once = self._dynamics.submit(
            shape, params, state.instances, state.ledger, row * shape.pools + pool, request, accept
        )
        loss = jnp.where(accept, 0.0, refused(shape, params, arrival.task, arrival.deadline_s, weight))
        state = state._replace(
            instances=instances,
            ledger=ledger,
            since_accept_s=jnp.where(accept, 0.0, state.since_accept_s),
            at_once=at_once + loss,
        )
        credit = None if credit is None else credit + loss
        # Rows of a pool's replicas ascend.
        replica = row if there is None else jnp.cumsum(there[:, pool], dtype=jnp.int32)[row] - 1
        return state, Placement(pool, jnp.where(accept, replica, -1), credit)

    @property
    def _dynamics(self) -> Any:
        return iterative if self.shape.stepwise else closed_form


def _counted_alike(arrival: Arrival, params: EnvParams) -> Arrival:
    """A request without its tenant, where all tenants count the same."""
    return arrival._replace(tenant=None) if params.tenant_weight is None else arrival
