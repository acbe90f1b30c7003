"""What a request to the engine asks for, and its answer, as OpenAI's API has them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from besteffort.errors import InputError, brief
from besteffort.gateway.errors import ApiError
from besteffort.opt.sampling import Sampling

_MOST_STOPS = 4
_LONGEST_STOP = 256  # characters
_UNSUPPORTED = (
    *("echo", "suffix", "logprobs", "top_logprobs", "tools", "functions", "logit_bias", "frequency_penalty"),
    *("presence_penalty", "min_p", "stop_token_ids"),
)
_ONLY_1 = ("n", "best_of", "repetition_penalty")
_LARGEST_SEED = 2**63
_LARGEST = 1e308  # that numbers in JSON may be; beyond it whole ones are none that a float holds


@dataclasses.dataclass(frozen=True)
class Order:
    """A request.

    Attributes:
      model: what it asks for, if it says.
      chat: whether it is a chat.
      prompt: a text, or tokens. Of a chat, what the last message says: these models know no roles.
      max_tokens: longest answer; None for as many as there is room for in a chat, and 16 elsewhere.
      sampling: how tokens are chosen.
      seed: of random sampling.
      stop: strings before which the text ends.
      ends: whether the model's end token ends it.
      streamed: whether it comes token by token.
      wants_usage: whether a stream says its lengths.
    """

    model: str | None
    chat: bool
    prompt: str | tuple[int, ...]
    max_tokens: int | None
    sampling: Sampling
    seed: int | None
    stop: tuple[str, ...]
    ends: bool
    streamed: bool
    wants_usage: bool


def read_order(raw: bytes, *, chat: bool) -> Order:
    """Understands a request.

    Raises:
      ApiError: if it is none, or asks for what the engine does not do.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not JSON in UTF-8; send an object with `prompt` or `messages`.") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object; send one with `prompt` or `messages`.")
    for name in _UNSUPPORTED:
        if body.get(name):
            raise ApiError(400, f"`{name}` is not supported; leave it out.", param=name)
    for name in _ONLY_1:
        if body.get(name) not in (None, 1):
            raise ApiError(400, f"`{name}` is {brief(body[name])}; only 1 is supported.", param=name)
    if isinstance(form := body.get("response_format"), dict) and form.get("type") != "text":
        raise ApiError(400, "Only texts are answered; leave `response_format` out.", param="response_format")
    model, options = body.get("model"), body.get("stream_options")
    if not (model is None or isinstance(model, str)):
        raise ApiError(400, "`model` is to be a name; `/v1/models` lists them.", param="model")
    return Order(
        model=model,
        chat=chat,
        prompt=_last_message(body.get("messages")) if chat else _prompt(body.get("prompt")),
        max_tokens=_whole(body, "max_completion_tokens", 1) or _whole(body, "max_tokens", 1),
        sampling=_sampling(body),
        seed=_whole(body, "seed", -_LARGEST_SEED),
        stop=_stop(body.get("stop")),
        ends=not body.get("ignore_eos"),
        streamed=bool(body.get("stream")),
        wants_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _prompt(prompt: Any) -> str | tuple[int, ...]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise ApiError(400, "`prompt` is to be one text, or a list of tokens.", param="prompt")


def _last_message(messages: Any) -> str:
    if not (isinstance(messages, list) and messages and isinstance(messages[-1], dict)):
        raise ApiError(400, "`messages` is to be a list of objects, with at least one.", param="messages")
    content = messages[-1].get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise ApiError(400, "The last of `messages` has no text as its `content`.", param="messages")
    return content


def _sampling(body: dict[str, Any]) -> Sampling:
    try:
        return Sampling(
            temperature=_number(body, "temperature", 1.0),
            top_k=max(_whole(body, "top_k", -1) or 0, 0),
            top_p=_number(body, "top_p", 1.0),
        )
    except InputError as error:
        raise ApiError(400, str(error)) from error


def _stop(stop: Any) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not (
        isinstance(strings, list) and len(strings) <= _MOST_STOPS and all(isinstance(each, str) for each in strings)
    ):
        raise ApiError(400, f"`stop` is to be a text, or a list of up to {_MOST_STOPS}.", param="stop")
    if any(not 1 <= len(each) <= _LONGEST_STOP for each in strings):
        raise ApiError(400, f"`stop` is to have texts of 1 to {_LONGEST_STOP} characters.", param="stop")
    return tuple(strings)


def _number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise ApiError(400, f"`{name}` is {brief(value)}; give a number.", param=name)
    return float(value)


def _whole(body: dict[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value < _LARGEST_SEED:
        raise ApiError(400, f"`{name}` is {brief(value)}; give a whole number of at least {least}.", param=name)
    return value


@dataclasses.dataclass(frozen=True)
class Shape:
    """How an answer is written down.

    Attributes:
      name: its id.
      model: the model that gives it.
      created: seconds since 1970.
      chat: whether it is one of a chat.
    """

    name: str
    model: str
    created: int
    chat: bool

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """A whole answer."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion" if self.chat else "text_completion", [choice]) | {"usage": usage}

    def event(self, text: str, finish: str | None, *, first: bool = False) -> bytes:
        """A piece of an answer."""
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return _event(self._object(self._kind, [choice]))

    def usage_event(self, usage: dict[str, int]) -> bytes:
        """The lengths, after all pieces."""
        return _event(self._object(self._kind, []) | {"usage": usage})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage_of(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """Lengths, as answers say them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


def _event(found: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(found, ensure_ascii=False).encode() + b"\n\n"
