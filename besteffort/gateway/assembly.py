"""A streamed answer put together, for clients that want it whole.

So the gateway sees the tokens of every answer, and a server that hangs, whatever its clients ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What streams say in another form than whole answers, or not at all.
_NOT_STREAMED = (
    *("audio", "best_of", "echo", "functions", "logprobs", "modalities", "prompt_logprobs", "return_token_ids"),
    *("tools", "top_logprobs"),
)


def can_assemble(body: Mapping[str, Any]) -> bool:
    """Whether the answer to a request is text and no more."""
    values = (body.get(name) for name in _NOT_STREAMED)
    # A number of 0 asks for something: `logprobs` of the tokens themselves, and no others.
    return not any(value or type(value) is int for value in values)


class Assembly:
    """The chunks of an answer, put together as they come."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        if not self._head:
            self._head = {name: value for name, value in chunk.items() if name not in ("choices", "object", "usage")}
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._join(choice)

    def add_text(self, index: int, text: str) -> None:
        """The next text of a choice that has begun."""
        if self._chat:
            _add_texts(self._choices[index]["message"], {"content": text})
        else:
            self._choices[index]["text"] += text

    def whole(self) -> dict[str, Any]:
        """The answer."""
        answer = {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._choices[index] for index in sorted(self._choices)],
        }
        return answer if self._usage is None else {**answer, "usage": self._usage}

    def _join(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        if index not in self._choices:
            text = {"message": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
            self._choices[index] = {"index": index, **text, "finish_reason": None}
        known = self._choices[index]
        for name, value in choice.items():
            if name == "delta" and self._chat:
                _add_texts(known["message"], value if isinstance(value, dict) else {})
            elif name == "text":
                known["text"] = known.get("text", "") + (value if isinstance(value, str) else "")
            elif name != "index" and (value is not None or name not in known):
                known[name] = value


def _add_texts(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if isinstance(value, str) and name != "role":
            message[name] = (message.get(name) or "") + value
        elif value is not None or name not in message:
            message[name] = value
