"""The soak (`python -m tests.soak`) notices what is lost."""

from __future__ import annotations

import json

import pytest

from besteffort.gateway.errors import ApiError
from tests.gateway.backends import DONE, WHOLE, completion, event
from tests.soak import judge

ERROR = ApiError(502, "The server broke off its answer.", code="reset")
WHOLE_CHAT = {"choices": [{"message": {"content": "42"}}], "usage": {"completion_tokens": 2}}


@pytest.mark.parametrize(
    ("status", "raw", "streamed", "found"),
    [
        (200, WHOLE, True, "whole"),
        (200, json.dumps(completion()).encode(), False, "whole"),
        (200, json.dumps(WHOLE_CHAT).encode(), False, "whole"),
        (502, json.dumps(ERROR.body()).encode(), True, "error"),
        (200, event("4") + ERROR.event(), True, "error"),
        (200, event("4"), True, "an answer cut short without an error"),
        (200, event("4") + DONE, True, "an answer cut short without an error"),
        (200, event("42"), True, "an answer cut short without an error"),
        (200, event("4") + ERROR.event()[:-2], True, "half an error"),
        (200, json.dumps(completion("4")).encode(), False, "another answer"),
        (502, b'{"detail": "no"}', False, "status 502 without an error"),
    ],
)
def test_answers_are_whole_or_errors_or_lost(status: int, raw: bytes, streamed: bool, found: str) -> None:
    assert judge(status, raw, streamed) == found
