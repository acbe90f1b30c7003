"""How many tokens a prompt has, from its characters: a ratio that is learned from the `usage` of answers."""

from __future__ import annotations

_START = 4.0  # characters per token of English prose
_LEAST, _MOST = 0.25, 64.0
_WEIGHT = 0.02  # of the latest answer, once there are many
_LONGEST = 2**22


class CharactersPerToken:
    """A ratio of sums in which late answers count most. The first ones count in full."""

    def __init__(self) -> None:
        self._characters, self._tokens, self._answers = 0.0, 0.0, 0

    @property
    def ratio(self) -> float:
        return min(max(self._characters / self._tokens, _LEAST), _MOST) if self._tokens else _START

    def learn(self, characters: int, tokens: int) -> None:
        """The prompt of an answer had so many of both; numbers that cannot be are left out."""
        if not (characters > 0 and 0 < tokens <= _LONGEST):
            return
        self._answers += 1
        kept = 1.0 - max(_WEIGHT, 1.0 / self._answers)
        self._characters = kept * self._characters + (1.0 - kept) * characters
        self._tokens = kept * self._tokens + (1.0 - kept) * tokens

    def tokens(self, characters: int) -> int:
        """Expected tokens, at least 1."""
        return min(max(round(characters / self.ratio), 1), _LONGEST)
