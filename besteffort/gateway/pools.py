"""Which pools of a policy those of a configuration are. Nothing else knows both."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from besteffort.errors import InputError, brief
from besteffort.gateway import config
from besteffort.gateway.breaker import CircuitBreaker
from besteffort.policy import Policy
from besteffort.situation import Cluster, Situation


@dataclasses.dataclass(slots=True, eq=False)
class ReplicaState:
    """What changes of a replica; it outlives a change of the configuration.

    Attributes:
      breaker: whether it gets requests.
      of_path: whether it gets those of a path that it was found to lack, such as `/v1/completions`.
      in_flight: requests that were sent to it and have not ended.
      elsewhere: those of other gateways.
    """

    breaker: CircuitBreaker
    in_flight: int = 0
    elsewhere: int = 0
    of_path: dict[str, CircuitBreaker] = dataclasses.field(default_factory=dict)

    def allows(self, path: str, now: float) -> bool:
        """Whether a request of a path may be sent now."""
        return self.breaker.allows(now) and (path not in self.of_path or self.of_path[path].allows(now))

    def opens_in_s(self, path: str, now: float) -> float:
        """Seconds until one may be sent, as far as time alone decides."""
        waits_s = self.breaker.opens_in_s(now)
        return max(waits_s, self.of_path[path].opens_in_s(now)) if path in self.of_path else waits_s

    @property
    def busy(self) -> int:
        """All requests that it has."""
        return self.in_flight + self.elsewhere


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A replica that requests may be sent to.

    Attributes:
      pool: its pool, as the configuration states it.
      known_as: name of the pool in the policy.
      index: of the pool in the policy.
      row: of the replica in the policy's books, see `Layout` of `besteffort.pools`.
      replica: number in the pool.
      model: name of the model.
      url: address, without a slash at its end.
      served_model: what it calls the model.
      api_key: key of the server.
      limit: requests in flight.
      state: what changes.
    """

    pool: config.Pool
    known_as: str
    index: int
    row: int
    replica: int
    model: str
    url: str
    served_model: str
    api_key: str | None = dataclasses.field(repr=False)
    limit: int
    state: ReplicaState

    @property
    def key(self) -> tuple[str, str]:
        """What it is recognised by after a reload."""
        return self.model, self.url


class Places:
    """All replicas of a configuration, by pool of the policy and number."""

    def __init__(self, by_pool: Sequence[Sequence[Place]]) -> None:
        self.by_pool = tuple(tuple(places) for places in by_pool)
        self._all = tuple(itertools.chain.from_iterable(self.by_pool))
        self._by_key = {place.key: place for place in self}

    def __iter__(self) -> Iterator[Place]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def same(self, place: Place) -> Place | None:
        """The replica of other places here, if it is here; one that was left out in between is another one."""
        here = self._by_key.get(place.key)
        return here if here is not None and here.state is place.state else None

    def moved(self, earlier: Places) -> dict[tuple[str, int], tuple[str, int]]:
        """Of a pool and number in earlier places those of the same replica here."""
        here = {place.key: (place.known_as, place.replica) for place in self}
        return {(place.known_as, place.replica): here[place.key] for place in earlier if place.key in here}


def place_pools(
    given: config.GatewayConfig,
    policy: Policy,
    environment: Mapping[str, str] | None = None,
    earlier: Places | None = None,
) -> tuple[Places, Policy]:
    """Finds every pool of a configuration among those of a policy.

    Args:
      given: the configuration.
      policy: the policy.
      environment: variables that hold keys; those of the process unless given.
      earlier: places whose states go on.

    Returns:
      the places, and the policy for as many replicas as there are.

    Raises:
      InputError: if the policy does not know a pool, or a key is missing.
    """
    kept = {} if earlier is None else {place.key: place.state for place in earlier}
    pools: dict[int, config.Pool] = {}
    for pool in given.pools:
        index = _index(pool, policy.situation)
        if index in pools:
            raise InputError(
                f"`pools`: two of them serve `{policy.models[index]}`; give one pool all its `urls`, or name a "
                "situation that states `pools`."
            )
        pools[index] = pool
    policy = _with_replicas(policy, {index: len(pool.urls) for index, pool in pools.items()})
    fleet = policy.situation.fleet
    by_pool: list[list[Place]] = [[] for _ in fleet.pools]
    for index, pool in pools.items():
        model = fleet.pools[index].model
        key = None
        if pool.api_key_env is not None:
            key = config.secret_of(f"Pool `{pool.name}`", pool.api_key_env, environment)
        for replica, url in enumerate(address.rstrip("/") for address in pool.urls):
            by_pool[index].append(
                Place(
                    pool=pool,
                    known_as=fleet.names[index],
                    index=index,
                    row=fleet.layout.rows[index][replica],
                    replica=replica,
                    model=model,
                    url=url,
                    served_model=pool.served_model or model,
                    api_key=key,
                    limit=pool.limit or fleet.pools[index].places,
                    state=kept.get((model, url)) or ReplicaState(CircuitBreaker(given.breaker)),
                )
            )
    return Places(by_pool), policy


def _index(pool: config.Pool, situation: Situation) -> int:
    """Number of a pool in the policy."""
    names, where = situation.fleet.names, f"Pool `{pool.name}`"
    if not situation.pools:
        model = pool.model or pool.name
        if model not in names:
            raise InputError(f"{where}: the policy has no model `{brief(model)}`; its models are {', '.join(names)}.")
        return names.index(model)
    if pool.name not in names:
        raise InputError(f"{where}: the policy has no pool of this name; its pools are {', '.join(names)}.")
    index = names.index(pool.name)
    model = situation.pools[index].model
    if pool.model not in (None, model):
        raise InputError(
            f"{where} serves `{model}` in the policy, not `{brief(pool.model)}`; leave `model` out, or mend it."
        )
    return index


def _with_replicas(policy: Policy, counts: Mapping[int, int]) -> Policy:
    """The policy where pools have so many replicas; the others stay as they are."""
    situation = policy.situation
    pools = situation.fleet.pools
    if all(pools[index].replicas == count for index, count in counts.items()):
        return policy
    if not situation.pools and len(set(counts.values())) == 1:
        cluster = dataclasses.replace(situation.cluster, replicas=min(counts.values()))
        return dataclasses.replace(policy, situation=dataclasses.replace(situation, cluster=cluster))
    spare = itertools.count(1 + max((max(pool.gpus) for pool in pools if pool.gpus), default=-1))
    resized = []
    for index, pool in enumerate(pools):
        count = counts.get(index, pool.replicas)
        gpus = pool.gpus
        if gpus is not None:
            # Replica i of every pool is on GPU i where all machines are alike; else those beyond have their own.
            further = itertools.count(len(gpus)) if not situation.pools else spare
            gpus = (*gpus[:count], *itertools.islice(further, max(count - len(gpus), 0)))
        resized.append(dataclasses.replace(pool, replicas=count, gpus=gpus))
    situation = dataclasses.replace(situation, cluster=Cluster(), pools=tuple(resized))
    return dataclasses.replace(policy, situation=situation)
