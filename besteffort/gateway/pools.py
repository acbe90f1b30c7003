"""How the pools of a configuration are the models and replicas of a policy. Nothing else knows both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from besteffort.errors import InputError, brief
from besteffort.gateway.breaker import CircuitBreaker
from besteffort.gateway.config import GatewayConfig, Pool, secret_of
from besteffort.policy import Policy


@dataclasses.dataclass(slots=True)
class ReplicaState:
    """What changes of a replica; it outlives a change of the configuration.

    Attributes:
      breaker: whether it gets requests.
      in_flight: requests that were sent to it and have not ended.
    """

    breaker: CircuitBreaker
    in_flight: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A replica that requests may be sent to.

    Attributes:
      pool: its pool.
      model: name of the model.
      model_index: of the model in the policy.
      replica: index in the pool.
      url: address, without a slash at its end.
      served_model: what it calls the model.
      api_key: key of the server.
      limit: requests in flight.
      state: what changes.
    """

    pool: Pool
    model: str
    model_index: int
    replica: int
    url: str
    served_model: str
    api_key: str | None = dataclasses.field(repr=False)
    limit: int
    state: ReplicaState

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.url


class Places:
    """All replicas of a configuration, by model of the policy and index."""

    def __init__(self, by_model: Sequence[Sequence[Place]]) -> None:
        self.by_model = tuple(tuple(places) for places in by_model)

    def __iter__(self) -> Iterator[Place]:
        for places in self.by_model:
            yield from places

    @property
    def replicas(self) -> int:
        """Of the model that has most."""
        return max(len(places) for places in self.by_model)

    def moved(self, earlier: Places) -> dict[tuple[str, int], tuple[str, int]]:
        """Of a model and index in earlier places those of the same replica here."""
        here = {place.key: (place.model, place.replica) for place in self}
        return {(place.model, place.replica): here[place.key] for place in earlier if place.key in here}


def place_pools(
    config: GatewayConfig, policy: Policy, environment: Mapping[str, str] | None = None, earlier: Places | None = None
) -> tuple[Places, Policy]:
    """Finds the model of every pool.

    Args:
      config: the configuration.
      policy: the policy.
      environment: variables that hold keys; those of the process unless given.
      earlier: places whose states go on.

    Returns:
      the places, and the policy for as many replicas as there are.

    Raises:
      InputError: if the policy does not know a pool's model, or a key is missing.
    """
    kept = {} if earlier is None else {place.key: place.state for place in earlier}
    cluster = policy.situation.cluster
    by_model: list[list[Place]] = [[] for _ in policy.models]
    for pool in config.pools:
        if pool.model not in policy.models:
            raise InputError(
                f"Pool `{pool.name}`: the policy has no model `{brief(pool.model)}`; its models are "
                f"{', '.join(policy.models)}."
            )
        index = policy.models.index(pool.model)
        key = None if pool.api_key_env is None else secret_of(f"Pool `{pool.name}`", pool.api_key_env, environment)
        for replica, url in enumerate(address.rstrip("/") for address in pool.urls):
            state = kept.get((pool.model, url)) or ReplicaState(CircuitBreaker(config.breaker))
            by_model[index].append(
                Place(
                    pool,
                    pool.model,
                    index,
                    replica,
                    url,
                    pool.served_model or pool.model,
                    key,
                    pool.limit or cluster.max_batch + cluster.queue_capacity,
                    state,
                )
            )
    places = Places(by_model)
    if places.replicas != cluster.replicas:
        cluster = dataclasses.replace(cluster, replicas=places.replicas)
        policy = dataclasses.replace(policy, situation=dataclasses.replace(policy.situation, cluster=cluster))
    return places, policy
