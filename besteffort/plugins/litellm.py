"""A routing plug-in for LiteLLM: one group of models, and for each request the model that `besteffort` decides for.

    from besteffort.plugins.litellm import BestEffort

    best = BestEffort("gateway.yaml", {"openai/small": "small", "openai/large": "large"})
    router = litellm.Router(model_list=[...], plugins=[best])
    litellm.callbacks.append(best)

`gateway.yaml` is what `besteffort serve` reads; of its pools the policy, tasks, limits and leases count here, not the
addresses. LiteLLM sends, retries, and picks a deployment among those of the model that was decided for. A request is
claimed as it is decided, and freed by LiteLLM's callbacks; of a call that is cancelled LiteLLM calls none, so that its
claim ends with its lease. Its task is `besteffort_task` in the call's metadata.

In LiteLLM's proxy, the instance stands in a module of yours, named in `router_settings.plugins` and in
`litellm_settings.callbacks`. The proxy loads such a module twice; state is per file of configuration, so both are one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litellm.exceptions import BadRequestError, ServiceUnavailableError
from litellm.integrations.custom_logger import CustomLogger

from besteffort.errors import InputError, brief
from besteffort.gateway.core import Ask, Claim, Core, RefusedError, Ticket
from besteffort.gateway.errors import busy_s
from besteffort.gateway.intake import message_characters
from besteffort.plugins.unused import make_core
from besteffort.runs.config import find_config

# LiteLLM hands plug-ins a copy of the metadata, and keeps in them what they signal.
_SIGNALS, _OURS = "routing_plugin_signals", "besteffort"
_CANDIDATES = "_routing_plugin_candidate_models"  # where it keeps, next to them, what a plug-in has left to choose from
_TASK = "besteffort_task"
_FAILED_S = 2.0  # that LiteLLM has to try a failed request again

_NOT_READ = ("rules", "models", "tiers")  # of a request, no path, key, model or tier is read
_COOLDOWN_S = 5.0  # as long as LiteLLM leaves a deployment out, unless told otherwise


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    """What the instances of one file of configuration share: one of them decides, another one hears what came of it.

    Attributes:
      core: decides and counts.
      calls: requests by name, those that have ended by their lease included.
      ends: what ends those that failed, unless LiteLLM tries them again.
    """

    core: Core
    calls: dict[str, Ticket] = dataclasses.field(default_factory=dict)
    ends: dict[str, asyncio.TimerHandle] = dataclasses.field(default_factory=dict)


_STATES: dict[Path, _State] = {}


class BestEffort(CustomLogger):
    """Decides for a group of models in a `litellm.Router`.

    Attributes:
      core: decides and counts; all instances in a process with the same file of configuration share it.
      models: LiteLLM's models, as `litellm_params.model` of deployments, with the pool of each.
    """

    def __init__(self, config: str | Path, models: Mapping[str, str]) -> None:
        """Reads the configuration and its policy.

        Args:
          config: file, or name, of a gateway's configuration.
          models: by LiteLLM's model the pool of the configuration that it is; every pool has one.

        Raises:
          InputError: if the configuration does not fit, or a pool is missing, unknown or named twice.
        """
        super().__init__()
        path = find_config(config)
        state = _STATES.get(path.resolve()) or _State(make_core(path, "LiteLLM", _NOT_READ))
        pools = [pool.name for pool in state.core.snapshot.config.pools]
        if sorted(models.values()) != sorted(pools):
            raise InputError(
                f"{path}: `models` names the pools {', '.join(map(brief, models.values()))}; name each of "
                f"{', '.join(pools)} once."
            )
        _STATES[path.resolve()] = state
        self.core, self._calls, self._ends = state.core, state.calls, state.ends
        self.models = dict(models)
        self._names = {pool: name for name, pool in models.items()}

    async def run(self, context: Any) -> Any:
        """Decides for a request; called by LiteLLM before it picks a deployment, and again before each retry.

        Groups that have not all of `models` are left alone.

        Raises:
          litellm.exceptions.BadRequestError: if there is no such task.
          litellm.exceptions.ServiceUnavailableError: if the request is refused.
        """
        if not set(self.models) <= set(context.candidate_models):
            return context
        ticket = self._known(_id_of(context.metadata))
        if ticket is None:
            try:
                ticket = self._arrive(context)
            except RefusedError as refused:
                raise _unavailable(refused) from refused
        claim = self._claim(ticket)
        context.candidate_models = [self._names[claim.place.pool.name]]
        context.signals[_OURS] = {
            "request": ticket.name,
            "pool": claim.place.pool.name,
            "task": ticket.ask.task,
        }
        return context

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """An answer is whole."""
        ticket = self._calls.get(_id_in(kwargs.get("litellm_params")))
        if ticket is None or ticket.claim is None:
            return
        usage = getattr(response_obj, "usage", None)
        tokens = [getattr(usage, name, None) for name in ("completion_tokens", "prompt_tokens")]
        choices = max(len(getattr(response_obj, "choices", None) or ()), 1)
        self.core.finished(ticket.claim, output_tokens=tokens[0], prompt_tokens=tokens[1], choices=choices)
        self._end(ticket.name, "answered")

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A deployment failed a request, which LiteLLM may try again."""
        ticket = self._calls.get(_id_in(kwargs.get("litellm_params")))
        if ticket is None or ticket.claim is None:
            return
        self._fail(ticket.claim, kwargs.get("exception"))
        self._end_later(ticket)

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[dict[str, Any]]:
        """LiteLLM has left out deployments, such as those that failed of late: decides among what is left.

        Else it would raise now, and where it is used as a library tell nobody.

        Raises:
          litellm.exceptions.ServiceUnavailableError: if the request is refused.
        """
        metadata = _metadata_in(request_kwargs)
        ticket = self._calls.get(_id_of(metadata))
        if ticket is None or ticket.claim is None:
            return healthy_deployments
        left = {deployment["litellm_params"]["model"] for deployment in healthy_deployments}
        claim = ticket.claim
        while self._names[claim.place.pool.name] not in left:
            self.core.busy(claim, _COOLDOWN_S)
            claim = self._claim(ticket)
        pool = claim.place.pool.name
        metadata[_SIGNALS][_OURS]["pool"] = pool
        if _CANDIDATES in metadata:
            metadata[_CANDIDATES] = [self._names[pool]]
        return healthy_deployments

    def _claim(self, ticket: Ticket) -> Claim:
        """Decides.

        Raises:
          litellm.exceptions.ServiceUnavailableError: if the request is refused, which ends it.
        """
        try:
            return self.core.claim(ticket)
        except RefusedError as refused:
            self._end(ticket.name, "refused", refused.code)
            raise _unavailable(refused) from refused

    def _end_later(self, ticket: Ticket) -> None:
        """Ends a request that failed, unless LiteLLM tries it again soon."""
        later = asyncio.get_running_loop().call_later(_FAILED_S, self._end, ticket.name, "failed", ticket.why)
        self._ends[ticket.name] = later

    def _known(self, name: str) -> Ticket | None:
        """The request, where LiteLLM tries it again."""
        ticket = self._calls.get(name)
        if ticket is None or not ticket.open:
            return None
        if (timer := self._ends.pop(ticket.name, None)) is not None:
            timer.cancel()
        if ticket.claim is not None:
            self._fail(ticket.claim, None)
        return ticket

    def _arrive(self, context: Any) -> Ticket:
        snapshot = self.core.snapshot
        task = context.metadata.get(_TASK)
        if task is not None and task not in snapshot.tasks:
            wrong = f"`{_TASK}` is {brief(task)}; the tasks are {', '.join(snapshot.tasks)}."
            raise BadRequestError(wrong, model="besteffort", llm_provider="besteffort")
        ask = Ask(
            task=snapshot.default_task if task is None else task,
            task_source="default" if task is None else "metadata",
            characters=message_characters(context.raw_messages),
        )
        self._forget_ended()
        ticket = self.core.arrive(ask, f"litellm-{secrets.token_hex(8)}")
        self._calls[ticket.name] = ticket
        return ticket

    def _fail(self, claim: Claim, error: Any) -> None:
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            headers = getattr(getattr(error, "response", None), "headers", None)
            if (seconds := busy_s(status, headers or {})) is not None:
                self.core.busy(claim, seconds)
                return
        self.core.failed(claim, f"status_{status}" if status else "error", blame=status not in (400, 413, 422))

    def _end(self, name: str, outcome: Any, error: str = "") -> None:
        self._ends.pop(name, None)
        ticket = self._calls.pop(name, None)
        if ticket is not None:
            self.core.close(ticket, outcome, error)

    def _forget_ended(self) -> None:
        """Leases end requests without a word."""
        self.core.sweep()
        if len(self._calls) > 2 * self.core.open_requests + 16:
            for name in [name for name, ticket in self._calls.items() if not ticket.open]:
                del self._calls[name]


def _unavailable(refused: RefusedError) -> ServiceUnavailableError:
    return ServiceUnavailableError(str(refused), llm_provider="besteffort", model="besteffort")


def _metadata_in(parameters: Mapping[str, Any] | None) -> Any:
    """Where LiteLLM's parameters say which request they are of; none if it is not ours."""
    found = ((parameters or {}).get(place) for place in ("metadata", "litellm_metadata"))
    return next(filter(_id_of, found), None)


def _id_in(parameters: Mapping[str, Any] | None) -> str:
    """Name of the request that LiteLLM's parameters are of, none if it is not ours."""
    return _id_of(_metadata_in(parameters))


def _id_of(metadata: Any) -> str:
    signals = metadata.get(_SIGNALS) if isinstance(metadata, Mapping) else None
    ours = signals.get(_OURS) if isinstance(signals, Mapping) else None
    return str(ours.get("request", "")) if isinstance(ours, Mapping) else ""
