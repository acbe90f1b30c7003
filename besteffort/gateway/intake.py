"""What a request asks for: its task, deadline, limit and prompt, from its body and headers; and what is sent on.

The task comes from the first of: the header `x-besteffort-task`; `metadata.besteffort_task`; the model
`besteffort:TASK`; a rule of the configuration; its default task. The deadline from the header
`x-besteffort-deadline-ms`; `x-llm-d-slo-ttft-ms` with `x-llm-d-slo-tpot-ms`, of the first token and of each further
one; or the task. A client that says how long it waits (`x-stainless-read-timeout`, `grpc-timeout`, `prefer: wait=`)
has no later deadline than that. The origin from the header `x-besteffort-origin` or `metadata.besteffort_origin`, where
the policy knows origins. The tenant likewise, from `x-besteffort-tenant` or `metadata.besteffort_tenant`; but a key
whose name is a tenant's is that tenant's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from besteffort.errors import brief
from besteffort.gateway.core import Ask
from besteffort.gateway.errors import ApiError
from besteffort.gateway.snapshot import PREFIX, Snapshot

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

LONGEST_S = 86_400.0
"""The longest deadline that a client may state, and the longest time that it waits."""

_MOST_TOKENS = 2**22
_MESSAGE_CHARACTERS = 12  # that a chat template adds to a message, about
_IMAGE_TOKENS_AS_CHARACTERS = 2_000
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclasses.dataclass(frozen=True, slots=True)
class Intake:
    """A request that was understood.

    Attributes:
      ask: for the core.
      body: what is sent on but for the model's name, with usage asked for.
      streamed: whether the client wants a stream.
      wants_usage: whether the client asked for usage in it.
    """

    ask: Ask
    body: dict[str, Any]
    streamed: bool
    wants_usage: bool


def read_request(raw: bytes, headers: Mapping[str, str], path: str, client: str, snapshot: Snapshot) -> Intake:
    """Understands a request.

    Args:
      raw: its body.
      headers: with names in lower case, or a mapping that ignores case.
      path: `COMPLETIONS` or `CHAT`.
      client: name of its key.
      snapshot: what tasks and models there are.

    Raises:
      ApiError: if it is no such request.
    """
    body = _parse(raw)
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "`model` is missing; name one that `/v1/models` lists.", param="model")
    if model not in snapshot.model_names:
        if model.startswith(f"{PREFIX}:"):
            _check_task(model.partition(":")[2], snapshot, "model")
        raise ApiError(
            404,
            f"There is no model `{brief(model)}`; `/v1/models` lists what there is.",
            code="model_not_found",
            param="model",
        )
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ApiError(400, "`metadata` is to be an object.", param="metadata")
    task, source = _task(model, metadata or {}, headers, path, client, snapshot)
    streamed = body.get("stream")
    if streamed not in (None, False, True):
        raise ApiError(400, "`stream` is to be true or false.", param="stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ApiError(400, "`stream_options` is to be an object.", param="stream_options")
    characters, tokens = _prompt(body, path)
    base_s, per_token_s = _deadline(headers)
    ask = Ask(
        task=task,
        task_source=source,
        characters=characters,
        prompt_tokens=tokens,
        max_tokens=_limit(body),
        deadline_base_s=base_s,
        deadline_per_token_s=per_token_s,
        deadline_factor=_tier(body, snapshot),
        patience_s=_patience(headers),
        streamed=bool(streamed),
        client=client,
        path=path,
        origin=_party("origin", snapshot.origins, metadata or {}, headers),
        tenant=_tenant(metadata or {}, headers, client, snapshot),
    )
    return Intake(ask, _onward(body, metadata, options), bool(streamed), bool((options or {}).get("include_usage")))


def _refuse(text: str) -> float:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)  # JSON has no other numbers to send on


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = _DECODER.decode(raw.decode(json.detect_encoding(raw), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not JSON in UTF-8; send an object with `model`.") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object; send one with `model`.")
    return body


def _task(
    model: str,
    metadata: Mapping[str, Any],
    headers: Mapping[str, str],
    path: str,
    client: str,
    snapshot: Snapshot,
) -> tuple[str, str]:
    stated = headers.get("x-besteffort-task")
    if stated is not None:
        return _check_task(stated.strip(), snapshot, "x-besteffort-task"), "header"
    stated = metadata.get("besteffort_task")
    if stated is not None:
        return _check_task(stated, snapshot, "metadata.besteffort_task"), "metadata"
    if model.startswith(f"{PREFIX}:"):
        return _check_task(model.partition(":")[2], snapshot, "model"), "model"
    for rule in snapshot.config.rules:
        if rule.key in (None, client) and rule.path in (None, path):
            return rule.task, "rule"
    return snapshot.default_task, "default"


def _check_task(task: Any, snapshot: Snapshot, param: str) -> str:
    if isinstance(task, str) and task in snapshot.tasks:
        return task
    raise ApiError(
        400,
        f"`{param}`: there is no task `{brief(task)}`; choose from {', '.join(snapshot.tasks)}.",
        code="unknown_task",
        param=param,
    )


def _tenant(metadata: Mapping[str, Any], headers: Mapping[str, str], client: str, snapshot: Snapshot) -> str | None:
    """Whose a request is; None if neither it nor its key says, or the policy knows no tenants."""
    stated = _party("tenant", snapshot.tenants, metadata, headers)
    if client not in snapshot.tenants:
        return stated
    if stated not in (None, client):
        raise ApiError(
            403,
            f"The key is the tenant `{client}`'s, not `{stated}`'s; leave the tenant out, or use that one's key.",
            code="wrong_tenant",
        )
    return client


def _party(kind: str, known: tuple[str, ...], metadata: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """The origin or tenant that a request states; None if it states none, or the policy knows none."""
    if not known:
        return None
    header, field = f"x-besteffort-{kind}", f"besteffort_{kind}"
    for param, stated in ((header, headers.get(header)), (f"metadata.{field}", metadata.get(field))):
        if stated is None:
            continue
        if isinstance(stated, str) and stated.strip() in known:
            return stated.strip()
        raise ApiError(
            400,
            f"`{param}`: there is no {kind} `{brief(stated)}`; choose from {', '.join(known)}.",
            code=f"unknown_{kind}",
            param=param,
        )
    return None


def _limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= _MOST_TOKENS:
            raise ApiError(400, f"`{name}` is {brief(value)}; give a whole number of at least 1.", param=name)
        return value
    return None


def _prompt(body: Mapping[str, Any], path: str) -> tuple[int, int | None]:
    """Characters of the prompt, and its tokens if the client sends these."""
    if path == COMPLETIONS:
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            return len(prompt), None
        if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
            return sum(map(len, prompt)), None
        if isinstance(prompt, list) and prompt:
            rows = prompt if all(isinstance(part, list) for part in prompt) else [prompt]
            if all(type(token) is int for row in rows for token in row):
                return 0, max(sum(map(len, rows)), 1)
        raise ApiError(400, "`prompt` is to be a text, a list of texts, or a list of tokens.", param="prompt")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise ApiError(400, "`messages` is to be a list of objects, with at least one.", param="messages")
    return message_characters(messages), None


def message_characters(messages: Iterable[Mapping[str, Any]]) -> int:
    """Characters of a chat, with those that a template adds."""
    return sum(_characters(each.get("content")) + _MESSAGE_CHARACTERS for each in messages)


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return sum(len(text) if isinstance(text, str) else _IMAGE_TOKENS_AS_CHARACTERS for text in texts)
    return 0


def _deadline(headers: Mapping[str, str]) -> tuple[float | None, float]:
    """Seconds, and seconds per output token, of the client's own deadline."""
    stated = headers.get("x-besteffort-deadline-ms")
    if stated is not None:
        return _milliseconds("x-besteffort-deadline-ms", stated), 0.0
    first = headers.get("x-llm-d-slo-ttft-ms")
    if first is None:
        return None, 0.0
    each = headers.get("x-llm-d-slo-tpot-ms")
    per_token_s = 0.0 if each is None else _milliseconds("x-llm-d-slo-tpot-ms", each, least=0)
    return _milliseconds("x-llm-d-slo-ttft-ms", first), per_token_s


def _milliseconds(name: str, text: str, least: int = 1) -> float:
    found = _number(text)
    if found is None or not least <= found <= 1e3 * LONGEST_S:
        raise ApiError(400, f"`{name}` is {brief(text)}; give a number of milliseconds, at least {least}.", param=name)
    return found / 1e3


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*[0-9]{1,12}(\.[0-9]{1,9})?\s*", text) else None


def _patience(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the client is gone; what cannot be read is not one."""
    found = []
    if (text := headers.get("x-stainless-read-timeout")) and (seconds := _number(text)) is not None:
        found.append(seconds)
    if (text := headers.get("grpc-timeout")) and (match := re.fullmatch(r"([0-9]{1,8})([HMSmun])", text.strip())):
        found.append(int(match[1]) * _GRPC_UNITS[match[2]])
    text = headers.get("prefer")
    if text and (match := re.search(r"(?:^|[,;\s])wait\s*=\s*([0-9]{1,8})(?![0-9.])", text)):
        found.append(float(match[1]))
    found = [seconds for seconds in found if seconds >= 1e-3]
    return min(*found, LONGEST_S) if found else None


def _tier(body: Mapping[str, Any], snapshot: Snapshot) -> float:
    stated = body.get("service_tier")
    return next((tier.deadline_factor for tier in snapshot.config.tiers if tier.name == stated), 1.0)


def _onward(body: dict[str, Any], metadata: dict[str, Any] | None, options: dict[str, Any] | None) -> dict[str, Any]:
    """The body without what is for the gateway alone, and with usage asked for."""
    onward = dict(body)
    if metadata is not None:
        left = {name: value for name, value in metadata.items() if not name.startswith(f"{PREFIX}_")}
        if left:
            onward["metadata"] = left
        else:
            del onward["metadata"]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        onward["prompt"] = prompt[0]  # LangChain sends a list always, which transformers serve does not take
    if body.get("stream"):
        onward["stream_options"] = {**(options or {}), "include_usage": True}
    return onward
