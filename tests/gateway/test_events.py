"""Streams cut anywhere are read as if they were not, and say what they mean."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.gateway.events import (
    MOST_BYTES,
    AnswerStream,
    EventReader,
    EventTooLargeError,
    Usage,
    data_of,
    usage_of,
)

BREAKS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXTS = st.lists(
    st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=8), max_size=3
)


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def choice(text: str = "", finish: str | None = None) -> dict[str, object]:
    return {"index": 0, "text": text, "finish_reason": finish}


@given(st.lists(st.tuples(TEXTS, BREAKS), max_size=5), st.lists(st.integers(0, 200), max_size=12), st.booleans())
def test_cuts_at_any_byte_change_nothing(events: list[tuple[list[str], bytes]], cuts: list[int], comment: bool) -> None:
    expected, raw = [], b": comment\n\n" if comment else b""
    for lines, end in events:
        if lines:
            raw += b"".join(b"data: " + line.encode() + end for line in lines) + end
            expected.append("\n".join(lines).encode())
    whole = EventReader()
    # The last carriage return may have a line feed to come.
    once = [*whole.feed(raw), *([whole.rest()] if whole.rest() else [])]
    reader = EventReader()
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    parts = [event for low, high in itertools.pairwise(places) for event in reader.feed(raw[low:high])]
    parts += [reader.rest()] if reader.rest() else []
    assert parts == once
    assert b"".join(parts) == raw
    assert [data for event in parts if (data := data_of(event)) is not None] == expected


def test_an_event_has_a_largest_size() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: " + b"x" * (MOST_BYTES - 10))) == []
    with pytest.raises(EventTooLargeError):
        list(reader.feed(b"x" * 20))


CONTENTS = st.text(max_size=6) | st.sampled_from(["a", '"', "\\", "\n", "é", "\u2028", "index", "x.", ""])


@given(
    st.lists(st.tuples(CONTENTS, st.integers(0, 1), st.sampled_from([None, None, None, "stop"])), max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["a", "cmpl-1", "index", "é"]),
)
def test_what_is_not_parsed_says_the_same(
    events: list[tuple[str, int, str | None]], chat: bool, ascii_only: bool, name: str
) -> None:
    """Against a reader that parses every event."""
    taken: list[tuple[int, str]] = []

    def take(read: dict[str, Any]) -> None:
        one = read["choices"][0]
        taken.append((one["index"], one["delta"]["content"] if chat else one["text"]))

    stream, expected = AnswerStream(keep_usage=False, take=take, take_text=lambda i, text: taken.append((i, text))), []
    plain = AnswerStream(keep_usage=False, take=lambda chunk: None)
    for text, index, finish in events:
        said = {"delta": {"content": text}} if chat else {"text": text}
        body = {"id": name, "choices": [{"index": index, **said, "finish_reason": finish}], "model": name}
        event = b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + b"\n\n"
        assert stream.read(event) == plain.read(event)
        expected.append((index, text))
        assert stream.finished == (
            {i: f for _, i, f in events[: len(expected)]} != {}
            and all({i: f for _, i, f in events[: len(expected)]}.values())
        )
    assert taken == expected
    assert stream.counted == plain.counted
    assert (stream.counted.output_tokens or 0) == sum(bool(text) for text, _, _ in events)


def test_events_of_one_form_are_parsed_once() -> None:
    parsed: list[object] = []
    texts: list[str] = []
    whole: list[object] = []
    stream = AnswerStream(keep_usage=False, take=parsed.append, take_text=lambda _, text: texts.append(text))
    plain = AnswerStream(keep_usage=False, take=whole.append)  # without texts nothing may be missing
    for text in ("one", " two", " three", "dré", " fünf"):
        event = b"data: " + json.dumps({"id": "x", "choices": [choice(text)]}, ensure_ascii=False).encode() + b"\n\n"
        assert stream.read(event) == plain.read(event) == (event, True, False)
    assert len(parsed) == 1
    assert texts == [" two", " three", "dré", " fünf"]
    assert len(whole) == 5
    assert stream.read(chunk(id="x", choices=[choice("", "stop")])).error is False
    assert len(parsed) == 2
    assert stream.finished
    # An event that only looks like the others is no text.
    broken = b"data: " + json.dumps({"id": "x", "choices": [choice("a\x01b")]}).encode().replace(b"\\u0001", b"\x01")
    assert stream.read(broken + b"\n\n").error


@pytest.mark.parametrize("piece", ['"text":":"', '"delta":{"content":":"}', '"text":","', '"text":"text"'])
def test_a_text_that_looks_like_what_stands_between_texts_is_read(piece: str) -> None:
    texts: list[tuple[int, str]] = []
    chunks: list[object] = []
    stream = AnswerStream(keep_usage=True, take=chunks.append, take_text=lambda *each: texts.append(each))
    for _ in range(3):
        event = f'data: {{"choices":[{{"index":0,{piece}}}]}}\n\n'.encode()
        assert stream.read(event) == (event, True, False)
    assert len(chunks) + len(texts) == 3


def test_a_text_that_has_to_be_parsed_does_not_end_that_others_are_not() -> None:
    parsed: list[object] = []
    stream = AnswerStream(keep_usage=False, take=parsed.append, take_text=lambda index, text: None)
    for text in ("one", "\n", "two", "\n", "\n", "three", "four"):
        stream.read(chunk(id="x", choices=[choice(text)]))
    assert len(parsed) == 4


def test_tokens_and_the_finish_are_seen() -> None:
    stream = AnswerStream(keep_usage=False)
    role = chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    assert stream.read(role) == (role, False, False)
    first = chunk(choices=[{"index": 0, "delta": {"content": "é"}, "finish_reason": None}])
    assert stream.read(first) == (first, True, False)
    assert not stream.finished
    last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    assert stream.read(last) == (last, False, False)
    assert stream.finished
    assert not stream.done
    assert stream.read(b"data: [DONE]\n\n").content
    assert stream.done
    assert stream.read(b": ping\n\n").content == b": ping\n\n"


@pytest.mark.parametrize("name", ["reasoning_content", "refusal", "tool_calls"])
def test_whatever_a_model_says_is_a_token(name: str) -> None:
    stream = AnswerStream(keep_usage=False)
    said = chunk(choices=[{"index": 0, "delta": {"content": None, name: ["a"]}, "finish_reason": None}])
    assert stream.read(said) == (said, 1, False)
    assert stream.begun
    unsaid = chunk(choices=[{"index": 0, "delta": {"content": None, name: None}, "finish_reason": None}])
    assert stream.read(unsaid) == (unsaid, 0, False)


def test_a_stream_of_two_choices_is_finished_when_both_are() -> None:
    stream = AnswerStream(keep_usage=False)
    for index, finish in ((0, None), (1, None), (1, "length")):
        stream.read(chunk(choices=[{"index": index, "text": "a", "finish_reason": finish}]))
    assert not stream.finished
    stream.read(chunk(choices=[{"index": 0, "text": "", "finish_reason": "stop"}]))
    assert stream.finished


@pytest.mark.parametrize("event", [b"data: {\n\n", b"data: []\n\n", chunk(error={"message": "no"})])
def test_what_is_no_chunk_is_an_error(event: bytes) -> None:
    assert AnswerStream(keep_usage=True).read(event).error


def test_usage_unasked_for_null_partial_or_next_to_the_finish() -> None:
    """CLIProxyAPI PR#3221, llmgateway PR#2861, kthena PR#202."""
    for keep in (False, True):
        stream = AnswerStream(keep_usage=keep)
        empty = chunk(choices=[choice("a")], usage=None)
        assert (b"usage" in stream.read(empty).content) == keep
        assert stream.usage is None
        finish = chunk(choices=[choice("", "stop")], usage={"prompt_tokens": 3, "completion_tokens": "?"})
        found = stream.read(finish)
        assert (b"usage" in found.content) == keep
        assert b'"finish_reason": "stop"' in found.content
        assert stream.usage == Usage(3, None)
        alone = chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})
        assert stream.read(alone).content == (alone if keep else b"")
        assert stream.usage == Usage(3, 5)


@pytest.mark.parametrize("answer", [None, [], {}, {"usage": None}, {"usage": 3}])
def test_no_usage_is_none(answer: object) -> None:
    assert usage_of(answer) is None


@pytest.mark.parametrize("tokens", [-1, 2**31, 1.5, True, None, "5"])
def test_usage_that_cannot_be_is_none(tokens: object) -> None:
    assert usage_of({"usage": {"prompt_tokens": tokens, "completion_tokens": tokens}}) == Usage(None, None)
