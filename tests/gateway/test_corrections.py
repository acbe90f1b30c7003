"""Observed against table times, with real servers that work in iterations."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from besteffort.gateway.board import Board, make_board
from besteffort.gateway.config import Listen
from besteffort.gateway.core import Ask, Core
from besteffort.gateway.events import AnswerStream
from besteffort.gateway.serve import Gateway
from besteffort.gateway.snapshot import make_snapshot
from besteffort.policy import Policy
from besteffort.situation import Deadline
from tests.gateway.backends import backend, run, running
from tests.gateway.batching import BatchingServer
from tests.gateway.policies import Clock, config, greedy

TOKENS, PROMPT = 8, 10
TAU_S = 2.0


@functools.cache
def policy(tau_s: float = TAU_S) -> Policy:
    """`greedy` for models that take 20 and 30 ms per token, whose times are compared."""
    base = greedy()
    situation = base.situation
    models = tuple(
        dataclasses.replace(model, decode=((1, each_s), (8, 1.1 * each_s)), prefill=((1, each_s), (200, 2 * each_s)))
        for model, each_s in zip(situation.profile.models, (0.02, 0.03, 0.06), strict=True)
    )
    tasks = tuple(
        dataclasses.replace(
            task, deadline=Deadline(0.9, 0.0), output_tokens=(TOKENS, TOKENS), prompt_tokens=(PROMPT, PROMPT)
        )
        for task in situation.tasks
    )
    return dataclasses.replace(
        base,
        situation=dataclasses.replace(
            situation,
            profile=dataclasses.replace(situation.profile, models=models),
            tasks=tasks,
            view=dataclasses.replace(situation.view, slowdown_tau_s=tau_s),
        ),
    )


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_estimates_follow_a_server_that_is_slower_than_its_tables(tmp_path: Path, factor: float) -> None:
    """The reference is what the server itself has measured, so a slow machine does not disturb."""

    async def scenario() -> None:
        server = BatchingServer(policy(), 0, factor, PROMPT)
        async with backend(server) as (url, _), running(tmp_path, [[url]], policy_of=policy()) as found:

            async def ask() -> None:
                for _ in range(4):
                    await found.stream(prompt=[1] * PROMPT, max_tokens=TOKENS)

            await asyncio.gather(ask(), ask())
            core = found.gateway.core
            flight = core.snapshot.flight
            flight.arrived("probe", task="piqa", prompt_tokens=PROMPT, max_tokens=TOKENS)
            seen = flight.estimates("probe").observed_slowdown[0]
            assert seen == pytest.approx(server.slowdown(), rel=0.15)
            assert seen > 0.5 * factor
            assert flight.estimates("probe").completion_s[0] == pytest.approx(
                seen * (policy().situation.profile.models[0].prefill[0][1] + (TOKENS - 1) * 0.02), rel=0.15
            )
            assert f'besteffort_observed_slowdown{{pool="pool-0"}} {seen}' in found.gateway.metrics.text()[0].decode()
            flight.cancelled("probe")

    run(scenario())


def test_workers_that_share_a_server_observe_what_it_really_takes(tmp_path: Path) -> None:
    """Each sees the tokens of its own requests come, and those of the other a little later."""

    async def scenario() -> None:
        server = BatchingServer(policy(), 0, 2.0, PROMPT)
        make_board(tmp_path / "board", 2, 64)
        async with backend(server) as (url, _), aiohttp.ClientSession() as session:
            given = config([[url]], listen=Listen(port=0, drain_s=0.0))
            gateways = [
                Gateway(
                    make_snapshot(given, policy(), environment={}),
                    tmp_path / "gateway.yaml",
                    board=Board(tmp_path / "board", number),
                )
                for number in range(2)
            ]
            addresses = [await gateway.start() for gateway in gateways]

            async def ask(address: str) -> None:
                body = {"model": "besteffort", "prompt": [1] * PROMPT, "max_tokens": TOKENS, "stream": True}
                for _ in range(4):
                    async with session.post(f"{address}/v1/completions", json=body) as response:
                        assert (await response.read()).endswith(b"[DONE]\n\n")

            await asyncio.gather(*(ask(address) for address in addresses * 2))
            true = server.slowdown()
            for gateway in gateways:
                flight = gateway.core.snapshot.flight
                gateway.core.sync()
                flight.arrived("probe", task="piqa", prompt_tokens=PROMPT)
                assert flight.observed_slowdown is not None
                assert flight.observed_slowdown[0] == pytest.approx(true, rel=0.2)
                await gateway.stop()

    run(scenario())


def test_requests_leave_a_pool_that_has_become_slow(tmp_path: Path) -> None:
    async def scenario() -> None:
        good, slows = BatchingServer(policy(), 0, 1.0, PROMPT), BatchingServer(policy(), 1, 1.0, PROMPT)
        async with (
            backend(good) as (url, _),
            backend(slows) as (other, _),
            running(tmp_path, [[url], [other]], policy_of=policy()) as found,
        ):

            async def models(count: int) -> list[str]:
                found.records.clear()
                for _ in range(count):
                    await found.stream(prompt=[1] * PROMPT, max_tokens=TOKENS)
                return [record.model for record in found.records]

            small, large = policy().models[:2]
            assert (await models(2))[0] == large
            slows.factor = 6.0
            after = await models(6)
            assert after[0] == large
            assert after[-1] == small

    run(scenario())


def test_a_reload_keeps_what_was_observed() -> None:
    """New books begin with the comparison of those before where they have the same pools and tables."""
    before = make_snapshot(config(), policy(), environment={})
    before.flight.arrived("r0", task="piqa", prompt_tokens=PROMPT)
    before.flight.cancelled("r0")
    observed = before.flight._observed
    assert observed is not None
    observed.comparison = observed.comparison._replace(excess_s=np.array([3.0, 0, 0]))
    gateway = Gateway(before, Path("gateway.yaml"))
    after = make_snapshot(config(), policy(), environment={}, earlier=before)
    gateway.core.replace(after)
    after.flight.arrived("probe", task="piqa", prompt_tokens=PROMPT)
    assert after.flight.observed_slowdown is not None
    assert after.flight.observed_slowdown[0] > 5.0


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_of_four_choices_makes_no_server_four_times_as_fast(streamed: bool) -> None:
    def observed(choices: int) -> float:
        base, clock = policy(), Clock()
        view = dataclasses.replace(base.situation.view, streamed=streamed)
        its = dataclasses.replace(base, situation=dataclasses.replace(base.situation, view=view))
        core = Core(make_snapshot(config([["http://a/v1"]]), its, environment={}, clock=clock), clock=clock)
        for number in range(20):
            stream = AnswerStream(keep_usage=False)
            ticket = core.arrive(Ask("piqa", prompt_tokens=PROMPT, streamed=streamed), f"r{number}")
            claim = core.claim(ticket)
            for _ in range(TOKENS):
                clock.now += 0.04  # twice as long as by the tables
                for index in range(choices):
                    said = {"choices": [{"index": index, "text": "a", "finish_reason": None}]}
                    event = stream.read(b"data: " + json.dumps(said).encode() + b"\n\n")
                    if streamed and event.tokens:
                        core.token(claim, event.tokens)
            core.finished(claim, output_tokens=choices * TOKENS, choices=choices)
            core.close(ticket, "answered")
        core.arrive(Ask("piqa", prompt_tokens=PROMPT), "probe")
        found = core.snapshot.flight.observed_slowdown
        assert found is not None
        return float(found[0])

    assert observed(4) == observed(1) > 1.5
