"""Texts as tokens and back: the characters of the laptop tier, or a model's tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from besteffort.errors import InputError
from besteffort.laptop import tokenizer as characters
from besteffort.opt.hub import load_tokenizer

_INCOMPLETE = "\ufffd"  # what decoders put for bytes that are no character yet


@runtime_checkable
class Texts(Protocol):
    """How a model's texts are tokens."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt.

        Raises:
          InputError: if it has what the model does not know.
        """
        ...

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, without special ones."""
        ...


class LaptopTexts:
    """Of the laptop tier."""

    encode = staticmethod(characters.encode)
    decode = staticmethod(characters.decode)


class HubTexts:
    """By the tokenizer that comes with a model.

    Raises:
      InputError: if there is none, or transformers is not installed.
    """

    def __init__(self, where: str | Path) -> None:
        self._tokenizer: Any = load_tokenizer(where)

    def encode(self, text: str) -> list[int]:
        """See `Texts`."""
        try:
            text.encode()
        except UnicodeEncodeError:  # as JSON's escapes may spell it; tokenizers fail on it
            raise InputError("The prompt has one half of a pair of surrogates; send whole characters.") from None
        return list(self._tokenizer.encode(text))

    def decode(self, tokens: list[int]) -> str:
        """See `Texts`."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Tail:
    """The text of an answer that comes token by token, in pieces that never change afterwards."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._tokens: list[int] = []
        self._read = 0  # tokens whose text is given
        self._shown = 0  # tokens before these, which tell how the next ones are spaced

    def add(self, token: int, *, last: bool = False) -> str:
        """What a token adds to the text; nothing while it is a part of a character."""
        self._tokens.append(token)
        before = self._texts.decode(self._tokens[self._shown : self._read])
        now = self._texts.decode(self._tokens[self._shown :])
        if now.endswith(_INCOMPLETE) and not last:
            return ""
        self._shown, self._read = self._read, len(self._tokens)
        return now[len(before) :]


class Stop:
    """Ends a text before the string that is whole first, and holds back what may be the beginning of one.

    Of several that end at the same character it is the longest. So the pieces of a text do not matter.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._held = ""

    def add(self, piece: str, *, last: bool = False) -> tuple[str, bool]:
        """What may be shown after a further piece, and whether the text ends there."""
        text = self._held + piece
        found = [(at + len(string), at) for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            return text[: min(found)[1]], True
        keep = 0 if last else max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of a text with which a string begins."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
