"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CLIENTS_FAULT = (400, 413, 415, 422)
"""Statuses of servers that a request is to blame for."""

LACKS_PATH = (404, 405, 501)
"""Statuses of servers that live, but have no such path."""


_BUSY_S = 0.5  # that a server is left alone which says that it is busy, and not for how long


def busy_s(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds for which a server that answers so wants to be left alone; None if it does not say that it is busy."""
    stated_s = _retry_after_s(headers)
    if status != 429 and (status != 503 or stated_s is None):
        return None
    return _BUSY_S if stated_s is None else stated_s


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = unit * float(headers[name])
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


class ApiError(Exception):
    """An error that a client gets.

    Attributes:
      status: of HTTP.
      kind: `type` of the error.
      message: a sentence.
      code, param: as OpenAI's API has them.
      retry_after_s: when the client may try again; None where it need not know.
      retry: what `x-should-retry` says; None leaves it to the client.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.code, self.param = status, kind, message, code, param
        self.retry_after_s, self.retry = retry_after_s, retry

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        found = {}
        if self.retry_after_s is not None:
            found["retry-after-ms"] = str(max(round(1e3 * self.retry_after_s), 1))
            found["retry-after"] = str(max(-int(-self.retry_after_s // 1), 1))
        if self.retry is not None:
            found["x-should-retry"] = "true" if self.retry else "false"
        return found

    def event(self) -> bytes:
        """The error as an event of a stream that has begun; the blank line ends what half an event there may be."""
        return b"\n\ndata: " + json.dumps(self.body()).encode() + b"\n\n"
