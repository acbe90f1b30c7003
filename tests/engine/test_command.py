"""The engine as a process: it does not outlive its models."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from typing import Any

import pytest

from besteffort.engine.command import load_models, serve
from besteffort.gateway import process
from besteffort.gateway.config import Listen
from besteffort.opt.runtime import Runtime
from tests.engine.serving import NAME


def test_a_model_that_fails_ends_the_process_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    def ask(address: str) -> None:
        body = json.dumps({"prompt": "1+1=", "max_tokens": 2}).encode()
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            assert connection.getresponse().status == 503

    def ready(address: str) -> None:
        monkeypatch.setattr(Runtime, "prefill", broken)
        threading.Thread(target=ask, args=(address,)).start()

    monkeypatch.setattr(process, "run", asyncio.run)  # types are checked here, which transports of uvloop have not
    with pytest.raises(RuntimeError, match="the device is gone"):
        serve(load_models((NAME,)), Listen(port=0), max_batch=1, queue_capacity=1, context=18, ready=ready)
