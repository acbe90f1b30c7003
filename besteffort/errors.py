"""The one exception that bad input raises, and how values appear in its sentence."""

from __future__ import annotations

_LONGEST_VALUE = 60
_LONGEST_SENTENCE = 1_000
_END = 300  # characters of a long sentence's end that stay, since the remedy stands there


class InputError(ValueError):
    """Input that a person can mend: one sentence that names the file, the field and the remedy.

    The command line prints the message alone and exits with status 2; library callers see an ordinary `ValueError`.
    Whatever a file or an argument holds, the message is one line of printable characters: others, such as line breaks
    and what controls a terminal, are escaped, and a very long sentence loses its middle.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        if len(text) > _LONGEST_SENTENCE:
            text = f"{text[: _LONGEST_SENTENCE - _END]} ... {text[-_END:]}"
        super().__init__(text)


def printable(text: str) -> str:
    """Text in one line, every character that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def brief(value: object) -> str:
    """A value for a message: printable, and cut where it is long."""
    try:
        text = printable(str(value))
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {getattr(value, 'bit_length', int)()} bits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
