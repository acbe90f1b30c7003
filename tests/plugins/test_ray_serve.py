"""The example for Ray Serve: it runs as it stands, the models of the policy's choice answer, and nothing is kept."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Any]]:
    """Its address and a handle."""
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT)}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        from examples.ray_serve import application

        yield f"http://127.0.0.1:{port}/", serve.run(application)
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(address: str, **body: str) -> dict[str, str]:
    request = urllib.request.Request(address, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


def test_models_answer_and_nothing_is_left(served: tuple[str, Any]) -> None:
    from examples.ray_serve import POOLS

    address, handle = served
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(address, task="piqa", prompt=f"To open jar {n},"), range(40)))
    assert {answer["model"] for answer in answers} <= set(POOLS)
    assert all(answer["text"].startswith(answer["model"]) for answer in answers)
    assert handle.in_flight.remote().result(timeout_s=30) == 0


def test_a_wrong_request_leaves_nothing(served: tuple[str, Any]) -> None:
    address, handle = served
    with pytest.raises(urllib.error.HTTPError):
        ask(address, task="nonsense", prompt="To open a jar,")
    assert handle.in_flight.remote().result(timeout_s=30) == 0
