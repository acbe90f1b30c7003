"""What the engine does not do is said in one sentence, and nothing that is sent breaks it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.engine.orders import read_order
from besteffort.gateway.errors import ApiError

CHAT = {"messages": [{"role": "user", "content": "1+1="}]}


def read(chat: bool = False, **fields: Any) -> Any:
    return read_order(json.dumps({**(CHAT if chat else {"prompt": "1+1="}), **fields}).encode(), chat=chat)


def test_what_is_not_said_is_as_openai_has_it() -> None:
    order = read()
    assert (order.max_tokens, order.sampling.temperature, order.stop, order.streamed) == (None, 1.0, (), False)
    assert read(chat=True).prompt == "1+1="
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}]
    assert read(chat=True, messages=[{"role": "user", "content": parts}]).prompt == "1+1="
    assert read(prompt=[[2, 5]]).prompt == (2, 5)
    assert read(max_tokens=3, max_completion_tokens=4).max_tokens == 4
    assert read(stop="=").stop == ("=",)
    assert read(frequency_penalty=0, presence_penalty=0.0, repetition_penalty=1.0, min_p=0) == order


@pytest.mark.parametrize(
    ("chat", "fields", "param"),
    [
        (False, {"prompt": None}, "prompt"),
        (False, {"prompt": ["a", "b"]}, "prompt"),
        (False, {"prompt": []}, "prompt"),
        (False, {"prompt": [True]}, "prompt"),
        (False, {"echo": True}, "echo"),
        (False, {"logprobs": 5}, "logprobs"),
        (False, {"n": 2}, "n"),
        (False, {"frequency_penalty": 0.5}, "frequency_penalty"),
        (False, {"repetition_penalty": 1.1}, "repetition_penalty"),
        (False, {"max_tokens": 0}, "max_tokens"),
        (False, {"max_tokens": 1.5}, "max_tokens"),
        (False, {"temperature": "hot"}, "temperature"),
        (False, {"temperature": 10**400}, "temperature"),
        (False, {"stop": ["a"] * 5}, "stop"),
        (False, {"stop": [""]}, "stop"),
        (False, {"seed": "x"}, "seed"),
        (False, {"model": 3}, "model"),
        (True, {"messages": []}, "messages"),
        (True, {"messages": [{"role": "user"}]}, "messages"),
        (True, {"messages": [{"content": [{"type": "image_url"}]}]}, "messages"),
        (True, {"tools": [{}]}, "tools"),
        (True, {"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_mistakes_name_the_field(chat: bool, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        read(chat, **fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert error.value.message.endswith(".")


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0}, {"temperature": float("nan")}])
def test_sampling_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ApiError):
        read(**fields)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "n",
        "tools",
    ]
)


@given(st.dictionaries(FIELDS, VALUES, max_size=5), st.booleans())
def test_nothing_breaks_it(body: dict[str, Any], chat: bool) -> None:
    with contextlib.suppress(ApiError):
        read_order(json.dumps(body).encode(), chat=chat)
