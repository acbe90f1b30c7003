"""Estimates at every decision of random lists, by the compiled simulator, the reference and live book-keeping."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.estimates.encoding import appraise
from besteffort.estimates.estimates import Estimates
from besteffort.estimates.params import ServingParams
from besteffort.estimates.rule import NUMBERS, Rule
from besteffort.estimates.view import InFlightView, Terms
from besteffort.in_flight import InFlight
from besteffort.observation import Observation
from besteffort.policy import Policy
from besteffort.runs.untrained import rule_policy
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Situation
from besteffort.workload.requests import Requests
from besteffort.workload.types import Arrival
from tests.simulator.cases import Case, Kind, draw_case, stacked_lists, stacked_params

LENGTH = 100


class Tape:
    """Keeps every event of a list, and passes it on to live book-keeping.

    Attributes:
      token_s: (n,) lists of the times at which a request's tokens came.
    """

    def __init__(self, n: int, flight: InFlight | None) -> None:
        self.token_s: list[list[float]] = [[] for _ in range(n)]
        self._flight = flight

    def arrived(self, request: int, **told: Any) -> None:
        if self._flight is not None:
            self._flight.arrived(request, **told)

    def sent(self, request: int, model: int, replica: int, *, at: float) -> None:
        if self._flight is not None:
            self._flight.sent(request, model, replica, at=at)

    def tokens(self, request: int, count: int, *, at: float) -> None:
        self.token_s[request].append(at)
        if self._flight is not None:
            self._flight.tokens(request, count, at=at)

    def done(self, request: int, *, output_tokens: int, at: float) -> None:
        self.token_s[request].append(at)
        if self._flight is not None:
            self._flight.done(request, output_tokens=output_tokens, at=at)

    def failed(self, request: int, *, at: float) -> None:
        if self._flight is not None:
            self._flight.failed(request, at=at)

    def started(self, pool: int, replica: int, **told: Any) -> None:
        if self._flight is not None:
            self._flight.started(pool, replica, **told)

    def drained(self, pool: int, replica: int, *, at: float) -> None:
        if self._flight is not None:
            self._flight.drained(pool, replica, at=at)

    def failed_replica(self, pool: int, replica: int, *, at: float) -> None:
        if self._flight is not None:
            self._flight.failed_replica(pool, replica, at=at)


class Seen(NamedTuple):
    """Of a list, decision by decision.

    Attributes:
      estimates: of the reference, fields of shape (n, models); None unless asked for.
      live: the same, from events alone; None unless asked for.
      views: what the reference showed.
      models: (n,) which model was chosen.
      tape: all events.
      result: what became of the requests.
    """

    estimates: Estimates | None
    live: Estimates | None
    views: list[InFlightView]
    models: np.ndarray
    tape: Tape
    result: Result


def draw_list(kind: Kind, seed: int, *, streamed: bool, limits: bool) -> Case:
    """A list of `LENGTH` requests, with or without limits on the output, streamed or not."""
    case = draw_case(kind, seed)
    requests = case.requests.part(slice(0, LENGTH), 0.0)
    if limits:
        rng = np.random.default_rng(seed)
        limit = requests.output_tokens + rng.integers(0, 8, LENGTH)
        requests = dataclasses.replace(requests, output_limit=limit)
    view = dataclasses.replace(case.situation.view, streamed=streamed)
    return dataclasses.replace(case, requests=requests, situation=dataclasses.replace(case.situation, view=view))


def draw_rule(case: Case, rates: int) -> Rule:
    """A random rule for the situation of a case, with prices at so many rates, around that of the list."""
    rng = np.random.default_rng(case.seed)
    requests, models = case.requests, len(case.situation.fleet.pools)
    mean_rate = len(requests) / (float(requests.arrival_s[-1]) + 1e-3)
    numbers = {name: rng.uniform(0.05, 0.9) for name in NUMBERS}
    prices = rng.uniform(0, 2, (rates, models))
    return Rule(**numbers, rates=mean_rate * np.geomspace(0.3, 3.0, rates), prices=prices)


def compiled(cases: Sequence[Case], rules: Sequence[Rule] = ()) -> tuple[Estimates, np.ndarray]:
    """Estimates with fields of shape (cases, n, models), and the (cases, n) models chosen; in float64.

    `rules` of the cases, with as many rates each, add the values.
    """
    with jax.enable_x64(True):
        shape, params = stacked_params(cases, estimates=True)
        if rules:
            rule = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rules)
            assumed = params.assumed and dataclasses.replace(params.assumed, rule=rule)
            params = dataclasses.replace(params, rule=rule, assumed=assumed)
        arrivals, routers, keys = stacked_lists(cases)
        out = _play(shape, params, routers, arrivals, keys)
        estimates, models = jax.tree.map(np.asarray, out)
    return estimates, models


@partial(jax.jit, static_argnums=0)
def _play(shape: EnvShape, params: EnvParams, routers: Any, arrivals: Arrival, keys: jax.Array) -> Any:
    environment = ServingEnvironment(shape)

    def one(params: EnvParams, router: Any, arrivals: Arrival, key: jax.Array) -> Any:
        def decide(state: Any, arrival: Arrival) -> Any:
            state, step = environment.arrive(state, arrival, params)
            seen = step.observation
            found = appraise(seen, params.believed, jnp)
            model = router.route(seen, params, jax.random.fold_in(key, step.index))
            state, _ = environment.place(state, model, params)
            return state, (found, model)

        return jax.lax.scan(decide, environment.start(jax.tree.map(lambda x: x[0], arrivals)), arrivals)[1]

    return jax.vmap(one)(params, routers, arrivals, keys)


def reference(case: Case, *, live: bool = False, estimates: bool = True, rule: Rule | None = None) -> Seen:
    """What the reference shows at every decision, with the estimates made from it, and those made from events.

    A `rule` adds the values.
    """
    asked = case.requests
    situation, router = case.situation, case.router
    believed = situation if case.assumed is None else case.assumed
    params = ServingParams.of(believed, int(asked.prompt_tokens.max()), rule=rule)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(case.seed)))(np.arange(len(asked)))
    noise = np.asarray(jax.vmap(router.draw)(keys), np.float64)
    flight = InFlight(believed if rule is None else rule_policy(believed, rule, {}))
    tape = Tape(len(asked), flight if live else None)
    found, told, views, models = [], [], [], []

    def route(index: int, observation: Observation) -> int:
        views.append(observation.in_flight)
        if estimates:
            found.append(appraise(observation, params))
        if live:
            told.append(flight.estimates(index, at=float(asked.arrival_s[index])))
        models.append(int(np.argmax(router.scores(observation, noise[index]))))
        return models[-1]

    terms = Terms.of(situation)
    result = simulate_by_reference(asked, situation, route, terms=terms, listener=tape, assumed=case.assumed)
    return Seen(_stack(found) if found else None, _stack(told) if told else None, views, np.array(models), tape, result)


def decided_live(requests: Requests, situation: Situation, policy: Policy) -> np.ndarray:
    """(n,) the models that a policy chooses from what live book-keeping tells it."""
    flight, models = InFlight(policy), []

    def route(index: int, _: Observation) -> int:
        models.append(policy.models.index(flight.decide(index, at=float(requests.arrival_s[index])).model))
        return models[-1]

    tape = Tape(len(requests), flight)
    simulate_by_reference(requests, situation, route, terms=Terms.of(situation), listener=tape)
    return np.array(models)


def _stack(each: Sequence[Estimates]) -> Estimates:
    return Estimates(*(None if field[0] is None else np.stack(field) for field in zip(*each, strict=True)))


def known(found: Estimates) -> dict[str, Any]:
    """The estimates by name, without the value where there is no rule."""
    return {name: field for name, field in found._asdict().items() if field is not None}


def apart(found: Estimates, wanted: Estimates) -> dict[str, float]:
    """Largest difference per estimate that is known, relative where it exceeds 1."""
    assert known(found).keys() == known(wanted).keys()
    return {
        name: float((np.abs(getattr(found, name) - y) / np.maximum(1.0, np.abs(y))).max())
        for name, y in known(wanted).items()
    }
