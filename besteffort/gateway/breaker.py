"""When a replica gets no requests: a circuit breaker that real requests try again, one at a time.

    closed --`failures` in a row--> open --`open_s`--> one request tries it --success--> closed
                                     ^-- twice as long, at most `longest_s` --failure--|

A sign of life, such as a token of any answer, ends the row: a replica that is slow under load is not a dead one. What
says nothing of the replica, such as a client that leaves, gives the try back.
"""

from __future__ import annotations

from typing import Literal

from besteffort.gateway.config import Breaker

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """The breaker of one replica. Times are seconds of one clock."""

    def __init__(self, settings: Breaker) -> None:
        self.settings = settings
        self._failures = 0
        self._open_s = 0.0  # how long it is open this time; 0 while it is closed
        self._opened = 0.0
        self._trying = False
        self._busy_until = -float("inf")

    def state(self, now: float) -> State:
        if not self._open_s:
            return "closed"
        return "half-open" if self._trying or now - self._opened >= self._open_s else "open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if now < self._busy_until:
            return False
        return not self._open_s or (not self._trying and now - self._opened >= self._open_s)

    def opens_in_s(self, now: float) -> float:
        """Seconds until a request may be sent, as far as time alone decides."""
        waits_s = max(self._busy_until - now, 0.0)
        if self._open_s:
            waits_s = max(waits_s, self._opened + self._open_s - now, 0.0)
        return min(waits_s, self.settings.longest_s)

    def sent(self, now: float) -> bool:
        """A request is sent; returns whether it is the one that tries the replica."""
        if self._open_s:
            self._trying = True
        return self._trying

    def alive(self) -> None:
        """A token came, of whatever request."""
        self._failures = 0

    def succeeded(self, trial: bool) -> None:
        """An answer ended well, or began."""
        self._failures = 0
        if trial:
            self._open_s, self._trying = 0.0, False

    def failed(self, trial: bool, now: float) -> None:
        """The replica failed. Requests that were sent before it opened say nothing new."""
        if trial:
            self._open_s = min(2 * self._open_s, max(self.settings.longest_s, self.settings.open_s))
            self._opened, self._trying = now, False
        elif not self._open_s:
            self._failures += 1
            if self._failures >= self.settings.failures:
                self._open_s, self._opened, self._failures = self.settings.open_s, now, 0

    def ended(self, trial: bool) -> None:
        """A request ended in a way that says nothing of the replica."""
        if trial:
            self._trying = False

    def busy(self, trial: bool, seconds: float, now: float) -> None:
        """The replica lives, but asked to be left alone for so long, which counts up to `longest_s`."""
        self.succeeded(trial)
        self._busy_until = now + min(max(seconds, 0.0), self.settings.longest_s)
