"""Server-sent events, read from bytes that are cut anywhere, and what a stream of an answer has in it.

Only whole events go on, byte by byte as they came, so that an error can follow any of them. `AnswerStream` knows what
the events of OpenAI's API mean: tokens, usage, the finish, errors, the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MOST_BYTES = 2**20
"""Size of the largest event."""

_MOST_FRAMES = 4  # that are looked for in a stream, whose events may be each of another form


class EventTooLargeError(Exception):
    """An event has more than `MOST_BYTES`."""


class EventReader:
    """Splits a stream into events. A blank line ends one; lines end with LF, CR LF or CR."""

    def __init__(self) -> None:
        self._held = b""
        self._looked = 0  # where the first line begins that was not looked at
        self._searched = 0  # before which no two line feeds are

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Whole events, each with the blank line at its end.

        Raises:
          EventTooLargeError: if one does not end.
        """
        self._held += chunk
        while (end := self._end()) is not None:
            event, self._held = self._held[:end], self._held[end:]
            self._looked = self._searched = 0
            yield event
        if len(self._held) > MOST_BYTES:
            raise EventTooLargeError

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._held

    def _end(self) -> int | None:
        """Where the first event ends: after the first empty line."""
        held = self._held
        if b"\r" not in held and not held.startswith(b"\n"):
            found = held.find(b"\n\n", self._searched)
            self._searched = max(len(held) - 1, 0)
            return None if found < 0 else found + 2
        while (end := _line_end(held, self._looked)) is not None:
            if end == len(held) and held.endswith(b"\r"):
                return None  # an LF may follow
            start, self._looked = self._looked, end
            if held[start:end] in (b"\n", b"\r\n", b"\r"):
                return end
        return None


def _line_end(held: bytes, start: int) -> int | None:
    """Where the line that begins at `start` ends, its line break included."""
    feed, back = held.find(b"\n", start), held.find(b"\r", start)
    if back < 0 or 0 <= feed < back:
        return feed + 1 if feed >= 0 else None
    return back + 2 if feed == back + 1 else back + 1


def data_of(event: bytes) -> bytes | None:
    """The data of an event: its lines `data:`, joined; None if there are none, as in a comment."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    found = []
    for line in event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None


class Usage(NamedTuple):
    """Tokens as a server counted them; None where it says nothing that can be.

    Attributes:
      prompt_tokens: of the prompt.
      output_tokens: of all choices.
      choices: that these are of.
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    choices: int = 1


def usage_of(answer: Any) -> Usage | None:
    """The usage in an answer or a chunk of one; None if it has none, or null."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, output = (
        value if type(value) is int and 0 <= value < 2**31 else None
        for value in (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    )
    choices = answer.get("choices")
    return Usage(prompt, output, max(len(choices), 1) if isinstance(choices, list) else 1)


class Event(NamedTuple):
    """An event as the gateway sees it.

    Attributes:
      content: what goes to the client, nothing where it shall not.
      tokens: by how many the longest choice has grown.
      error: whether the server says that it failed.
    """

    content: bytes
    tokens: int = 0
    error: bool = False


class _Frame(NamedTuple):
    """What the events of a stream have around the text of their only choice, which has not ended."""

    before: bytes
    after: bytes
    choice: int


class AnswerStream:
    """Reads the events of a streamed answer.

    Most of them differ in nothing but their text, so that they need not be parsed once one was: they begin and end
    with the same bytes, and have nothing in between that could end the text or needs decoding.

    Attributes:
      usage: as the server said last; `counted` has what it did not say, too.
      begun: whether a part of the answer came.
      finished: whether every choice that began has a `finish_reason`.
      done: whether `[DONE]` came.
    """

    def __init__(
        self,
        *,
        keep_usage: bool,
        take: Callable[[dict[str, Any]], None] | None = None,
        take_text: Callable[[int, str], None] | None = None,
    ) -> None:
        """Nothing read.

        Args:
          keep_usage: whether usage goes on.
          take: gets every chunk; with `take_text`, those alone that are not a choice's next text and no more.
          take_text: gets index and text of these.
        """
        self.usage: Usage | None = None
        self.begun = self.done = False
        self._take, self._take_text = take, take_text
        self._frame: _Frame | None = None
        # Who takes chunks and no texts gets all of them, so none may go unparsed.
        self._frames = 0 if take is None or take_text is not None else _MOST_FRAMES  # that were looked for
        self._keep_usage = keep_usage
        self._open: dict[int, bool] = {}  # per choice whether it lacks its end
        self._lengths: dict[int, int] = {}  # per choice the tokens that came
        self._longest = 0

    @property
    def finished(self) -> bool:
        return bool(self._open) and not any(self._open.values())

    @property
    def counted(self) -> Usage:
        """As the server said; where it did not say how many tokens it gave, those that came."""
        said = self.usage or Usage()
        came = sum(self._lengths.values())
        return Usage(said.prompt_tokens, said.output_tokens or came or None, max(len(self._open), 1))

    def read(self, event: bytes) -> Event:
        """Takes notice of an event, and says what goes on."""
        frame = self._frame
        if frame is not None and event.startswith(frame.before) and event.endswith(frame.after):
            text = _plain_text(event[len(frame.before) : len(event) - len(frame.after)])
            if text is not None:
                self._open[frame.choice] = True
                if self._take_text is not None:
                    self._take_text(frame.choice, text)
                return Event(event, self._count(frame.choice))
        data = data_of(event)
        if data is None:
            return Event(event)
        if data.strip() == b"[DONE]":
            self.done = True
            return Event(event)
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return Event(b"", error=True)
        if not isinstance(chunk, dict) or chunk.get("error") is not None:
            return Event(b"", error=True)
        if self._take is not None:
            self._take(chunk)
        choices = chunk.get("choices")
        tokens, has_content = 0, False
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                stated = choice.get("index")
                index = stated if isinstance(stated, int) else 0
                if _has_content(choice):
                    has_content = True
                    tokens += self._count(index)
                self._open[index] = choice.get("finish_reason") is None
        self.begun |= has_content
        if has_content and self._frames < _MOST_FRAMES:
            self._frames += 1
            self._frame = _frame_of(event, chunk) or self._frame
        found = usage_of(chunk)
        if found is not None:
            self.usage = found
        if "usage" in chunk and not self._keep_usage:
            if not choices:
                return Event(b"")
            del chunk["usage"]
            return Event(b"data: " + json.dumps(chunk).encode() + b"\n\n", tokens)
        return Event(event, tokens)

    def _count(self, choice: int) -> int:
        """A token of a choice has come; 1 if that is now longer than all were before, else 0.

        Choices are decoded side by side, so an answer is as far as its longest one.
        """
        length = self._lengths[choice] = self._lengths.get(choice, 0) + 1
        if length <= self._longest:
            return 0
        self._longest = length
        return 1


def _plain_text(raw: bytes) -> str | None:
    """A part of an event as the text that it is between quotation marks in JSON; None if only a parser can tell."""
    if not raw or b'"' in raw or b"\\" in raw:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    # Characters that are not printable may not stand in a text in JSON, or end the event's line.
    return text if text.isprintable() else None


def _frame_of(event: bytes, chunk: dict[str, Any]) -> _Frame | None:
    """What an event has around its text, if it is a text and no more."""
    choices = chunk["choices"]
    if "usage" in chunk or len(choices) != 1 or choices[0].get("finish_reason") is not None:
        return None
    choice = choices[0]
    where, name = (choice, "text") if "text" in choice else (choice.get("delta"), "content")
    text, index = where.get(name), choice.get("index", 0)
    others = len(where) - 1 if name == "content" else sum(bool(choice.get(each)) for each in ("logprobs", "delta"))
    if not isinstance(text, str) or others or choice.get("logprobs") or type(index) is not int:
        return None
    quoted = b'"' + text.encode("utf-8", "replace") + b'"'
    if event.count(quoted) != 1 or _plain_text(quoted[1:-1]) is None:
        return None
    before, after = event.split(quoted)
    frame = _Frame(before + b'"', b'"' + after, index)
    # That it is the text and not another value shows when another one is put there.
    other = text + "."
    data = data_of(frame.before + other.encode() + frame.after)
    where[name] = other
    try:
        same = data is not None and json.loads(data) == chunk
    except ValueError:  # it stood between two texts
        same = False
    where[name] = text
    return frame if same else None


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
