"""What the external processor makes of answers, without an Envoy."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("grpc")
messages = pytest.importorskip("envoy.service.ext_proc.v3.external_processor_pb2")

from besteffort.gateway.core import Core, Record  # noqa: E402
from besteffort.plugins.envoy import _Exchange  # noqa: E402
from tests.gateway.policies import Clock, config, snapshot  # noqa: E402


def told(**headers: str) -> Any:
    made = messages.HttpHeaders()
    for name, value in headers.items():
        made.headers.headers.add(key=name.replace("__", ":").replace("_", "-"), raw_value=value.encode())
    return made


def exchange(core: Core, **answer: str) -> Any:
    """What the processor says to a request whose answer begins so."""
    made = _Exchange(core)
    made.answer(messages.ProcessingRequest(request_headers=told(__path="/v1/completions")))
    body = messages.HttpBody(body=b'{"model": "besteffort", "prompt": "What?"}', end_of_stream=True)
    said = made.answer(messages.ProcessingRequest(request_body=body))
    made.answer(messages.ProcessingRequest(response_headers=told(**answer)))
    made.end()
    return said


@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [
        ({"__status": "500"}, "open", "status_500"),
        ({"__status": "503"}, "open", "status_503"),
        ({"__status": "503", "retry_after": "1"}, "closed", "busy"),
        ({"__status": "429"}, "closed", "busy"),
        ({"__status": "401"}, "closed", "invalid"),
        ({"__status": "403"}, "closed", "invalid"),
        ({"__status": "422"}, "closed", "invalid"),
    ],
)
def test_a_pool_is_left_out_for_its_own_failures_only(answer: dict[str, str], state: str, error: str) -> None:
    clock = Clock()
    records: list[Record] = []
    core = Core(snapshot(config([["http://a/v1"]]), clock=clock), clock=clock, log=records.append)
    for _ in range(core.snapshot.config.breaker.failures):
        clock.now += 1.5  # longer than a busy pool is left alone
        assert exchange(core, **answer).HasField("request_body")
    (place,) = core.snapshot.places
    assert place.state.in_flight == 0
    assert {record.error for record in records} == {error}
    assert place.state.breaker.state(core.now()) == state
