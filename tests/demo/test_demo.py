"""The demo: an engine at a known pace, a gateway before it, and answers that are counted."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from besteffort.cli import main
from besteffort.demo.fleet import SITUATION, paces, slowed
from besteffort.demo.play import Asked, ask, play_demo, table, targets
from besteffort.demo.serve import demo
from besteffort.errors import InputError
from besteffort.laptop import MODELS, model_directory
from besteffort.laptop.quality import exact_match
from besteffort.laptop.requests import CaseList
from besteffort.load.play import Target
from besteffort.opt.runtime import Runtime
from besteffort.opt.weights import load_model
from besteffort.profile import load_profile
from besteffort.runs.config import load_situation


def test_the_profile_is_the_measured_one_slowed_down() -> None:
    assert load_profile("demo") == slowed(load_profile("laptop"))
    assert not load_profile("demo").models[0].slowdown


def test_the_pace_is_that_of_the_tables() -> None:
    situation = load_situation(SITUATION)
    decode_s, prefill_s = situation.fleet.decode_table(), situation.fleet.prefill_table(12)
    found = paces(situation)
    assert tuple(found) == MODELS
    for index, pace in enumerate(found.values()):
        assert pace(0, [(0, 9)]) == prefill_s[index, 9]
        assert pace(16, []) == decode_s[index, 16]
        parts_s = prefill_s[index, 12] + prefill_s[index, 9] - prefill_s[index, 6]
        assert pace(3, [(0, 12), (6, 9)]) == pytest.approx(decode_s[index, 3] + parts_s)


def test_bursts_are_beyond_all_models_but_the_smallest() -> None:
    asked = ask()
    capacity = asked.situation.capacity()
    rate = asked.in_burst.sum() / 8
    assert capacity[1] < rate < capacity[0]
    assert (~asked.in_burst).sum() / 12 < capacity[2]
    assert ask(1).cases.cases != asked.cases.cases


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """Addresses of a demo's gateway and engine, in a thread of its own."""
    found: dict[str, Any] = {}
    ready = threading.Event()

    async def scenario() -> None:
        try:
            async with demo() as (_, address, engine):
                found.update(loop=asyncio.get_running_loop(), over=asyncio.Event(), address=address, engine=engine)
                ready.set()
                await found["over"].wait()
        finally:
            ready.set()

    thread = threading.Thread(target=asyncio.run, args=(scenario(),))
    thread.start()
    assert ready.wait(600)
    try:
        yield found["address"], found["engine"]
    finally:
        found["loop"].call_soon_threadsafe(found["over"].set)
        thread.join()


def few(count: int) -> Asked:
    asked = ask()
    cases = CaseList(asked.cases.requests.part(slice(count), 0.0), asked.cases.cases[:count])
    return dataclasses.replace(asked, cases=cases, in_burst=np.arange(count) >= count // 2)


def stream_and_leave(address: str, engine: str) -> None:
    """By OpenAI's client: tokens come one by one, and a client that leaves frees its slot in the engine."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        fields: dict[str, Any] = {"model": "besteffort:addition", "temperature": 0, "stream": True}
        texts = [chunk.choices[0].text for chunk in client.completions.create(prompt="012+034=", **fields)]
        assert texts[:4] == list("0046")
        chat = client.chat.completions.create(messages=[{"role": "user", "content": "012+034="}], **fields)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == "0046"
        with client.completions.create(prompt="012+034=", **fields) as stream:
            next(iter(stream))
    until_s = time.monotonic() + 20.0
    while True:
        with urllib.request.urlopen(f"{engine}/metrics") as response:
            lines = response.read().decode().splitlines()
        running = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running")]
        if any('finished_reason="abort"' in line for line in lines) and not any(running):
            return
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_answers_are_those_of_the_models_that_are_named() -> None:
    asked = few(100)  # of which 40 come in a burst
    with serving() as (address, engine):
        stream_and_leave(address, engine)
        played = play_demo(asked, Target(f"{address}/v1"), lambda sent, done: None)
    assert not played.failures
    model = played.result.model
    assert len(set(model.tolist())) > 1
    right = np.array([text == case.answer for text, case in zip(played.texts, asked.cases.cases, strict=True)])
    for index, name in enumerate(MODELS):
        mine = np.flatnonzero(model == index)
        if len(mine):
            runtime = Runtime(load_model(model_directory(name)), 4)
            assert (exact_match(runtime, [asked.cases.cases[i] for i in mine]) == right[mine]).all()
    (row,) = table(asked, {"besteffort": played}).as_data()["rows"]
    assert row["right"] == right.mean()
    assert row["right_and_in_time"] == (right & played.result.met).mean()
    assert row["in_bursts"] == (right & played.result.met)[50:].mean()


def test_where_to_ask_follows_from_the_gateways_address() -> None:
    found = targets("http://127.0.0.1:9000/v1")
    assert [target.url for target in found.values()] == [
        "http://127.0.0.1:9000/v1",
        *(f"http://127.0.0.1:9001/{model}/v1" for model in MODELS),
    ]
    assert targets("http://[::1]:9000/v1")["besteffort"].url == "http://[::1]:9000/v1"
    for wrong in ("http://127.0.0.1/v1", "localhost", "http://h:x/v1"):
        with pytest.raises(InputError, match="has no port"):
            targets(wrong)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve"], "needs a configuration"),
        (["serve", "gateway.yaml", "--demo"], "needs no configuration"),
        (["serve", "gateway.yaml", "--port", "1"], "`--port` is of the demo"),
        (["load"], "needs an address"),
        (["load", "http://h/v1", "log.csv"], "needs an address"),
        (["load", "--demo", "--out", "played"], "leave all but the address and `--seed` out"),
        (["load", "--demo", "--load", "2"], "leave all but the address and `--seed` out"),
        (["load", "--demo", "--set", "cluster.replicas=2"], "leave all but the address and `--seed` out"),
        (["load", "http://127.0.0.1:9/v1", "--demo"], "no server answers there"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
