"""The plug-in in LiteLLM's own router, in front of servers on loopback."""

from __future__ import annotations

import asyncio
import collections
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

litellm = pytest.importorskip("litellm")

from besteffort.errors import InputError  # noqa: E402
from besteffort.plugins.litellm import BestEffort  # noqa: E402
from besteffort.policy import save_policy  # noqa: E402
from tests.docs.test_examples import examples  # noqa: E402
from tests.gateway.backends import Backend, Call, answer_chat, backend, free_port, once  # noqa: E402
from tests.gateway.policies import greedy  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM has warnings of its own

MODELS = {f"openai/served-{size}": size for size in ("small", "middle", "large")}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., None]]:
    """Runs scenarios in one event loop: LiteLLM tells callbacks in that of its first call."""
    with asyncio.Runner() as runner:

        def within(scenario: Any, seconds: float = 60.0) -> None:
            runner.run(asyncio.wait_for(scenario, seconds))

        yield within


def write_config(folder: Path, lease_s: float = 10.0, total_s: float = 300.0) -> Path:
    save_policy(greedy(), folder / "policy.safetensors")
    pools = "".join(
        f"\n- {{name: {size}, model: {model}, urls: ['http://unused-{size}/v1'], timeouts: {{total_s: {total_s}}}}}"
        for size, model in zip(MODELS.values(), greedy().models, strict=True)
    )
    path = folder / "gateway.yaml"
    path.write_text(f"policy: policy.safetensors\nlease_s: {lease_s}\npools:{pools}\n", encoding="utf-8")
    return path


class Group:
    """LiteLLM's router with three deployments of one group, and the servers behind them, smallest first."""

    def __init__(self, best: BestEffort, router: Any, servers: list[Backend]) -> None:
        self.best, self.router, self.servers = best, router, servers

    async def ask(self, **fields: Any) -> Any:
        messages = [{"role": "user", "content": "What?"}]
        return await self.router.acompletion(model="group", messages=messages, **fields)

    @property
    def got(self) -> list[int]:
        return [len(server.calls) for server in self.servers]

    async def settle(self) -> None:
        """Waits until nothing is in flight: LiteLLM's callbacks come after the answer."""
        for _ in range(200):
            if not any(place.state.in_flight for place in self.best.core.snapshot.places):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("claims are held still")


@asynccontextmanager
async def group(
    folder: Path, behaviours: list[Any], retries: int = 0, cooldowns: bool = False, **config: Any
) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(backend(behaviour)) for behaviour in behaviours]
        best = BestEffort(write_config(folder, **config), MODELS)
        models = [
            {
                "model_name": "group",
                "litellm_params": {"model": model, "api_base": url, "api_key": "none", "max_retries": 0},
            }
            for model, (url, _) in zip(MODELS, found, strict=True)
        ]
        router = litellm.Router(model_list=models, plugins=[best], num_retries=retries, disable_cooldowns=not cooldowns)
        litellm.callbacks = [best]
        try:
            yield Group(best, router, [server for _, server in found])
        finally:
            litellm.logging_callback_manager._reset_all_callbacks()


def test_load_is_claimed_as_it_is_decided(tmp_path: Path, run: Callable[..., None]) -> None:
    """Requests that come at once see each other, so the largest model does not get them all."""
    held = asyncio.Event()
    hold = once(held, answer_chat)

    async def scenario() -> None:
        async with group(tmp_path, [hold] * 3) as made:
            asked = [asyncio.create_task(made.ask(metadata={"besteffort_task": "arc_easy"})) for _ in range(20)]
            while sum(made.got) < 20:
                await asyncio.sleep(0.02)
            places = [place.state.in_flight for place in made.best.core.snapshot.places]
            assert places == made.got
            assert sum(count > 0 for count in places) >= 2
            # The policy sends to one model for as long as most is to be expected of it: never beyond what it holds.
            assert max(places) <= 8
            held.set()
            answers = await asyncio.gather(*asked)
            assert {answer.choices[0].message.content for answer in answers} == {"42"}
            await made.settle()
            assert made.best.core.open_requests == 0

    run(scenario())


def test_streams_and_refusals(tmp_path: Path, run: Callable[..., None]) -> None:
    held = asyncio.Event()
    hold = once(held, answer_chat)

    async def scenario() -> None:
        async with group(tmp_path, [hold] * 3) as made:
            places = sum(place.limit for place in made.best.core.snapshot.places)
            asked = [asyncio.create_task(made.ask(stream=True)) for _ in range(places)]
            while sum(made.got) < places:
                await asyncio.sleep(0.02)
            with pytest.raises(litellm.ServiceUnavailableError, match="No server can take the request now"):
                await made.ask()
            held.set()
            for stream in await asyncio.gather(*asked):
                text = "".join([part.choices[0].delta.content or "" async for part in stream])
                assert text == "42"
            await made.settle()
            assert made.best.core.open_requests == 0

    run(scenario())


def test_a_failed_request_is_decided_anew_for_another_model(tmp_path: Path, run: Callable[..., None]) -> None:
    async def fail(call: Call) -> None:
        await call.respond(500, {"error": {"message": "broken"}})

    async def scenario() -> None:
        async with group(tmp_path, [answer_chat, answer_chat, fail], retries=2) as made:
            records: list[Any] = []
            made.best.core._log = records.append
            answer = await made.ask()
            assert answer.choices[0].message.content == "42"
            await made.settle()
            assert made.got[2] <= 1
            (record,) = records
            assert record.outcome == "answered"
            assert record.attempts == sum(made.got)

    run(scenario())


def test_a_deployment_that_litellm_leaves_out_costs_no_request(tmp_path: Path, run: Callable[..., None]) -> None:
    async def fail(call: Call) -> None:
        await call.respond(429, {"error": {"message": "slow down"}})

    async def scenario() -> None:
        async with group(tmp_path, [answer_chat, answer_chat, fail], cooldowns=True) as made:
            records: list[Any] = []
            made.best.core._log = records.append
            with pytest.raises(litellm.RateLimitError):
                await made.ask()
            await asyncio.sleep(1.0)  # as long as a server is left alone that does not say for how long, and more
            # What it leaves out for a while counts as busy for as long.
            assert [(await made.ask()).choices[0].message.content for _ in range(3)] == ["42"] * 3
            await made.settle()
            assert made.got[2] == 1
            await asyncio.sleep(2.5)  # in which LiteLLM might try again the one that failed
            assert [record.outcome for record in records] == ["answered"] * 3 + ["failed"]
            assert [record.attempts for record in records] == [2, 1, 1, 1]
            assert {record.error for record in records} == {"", "busy"}

    run(scenario())


def test_without_any_deployment_that_litellm_leaves_a_request_is_refused(
    tmp_path: Path, run: Callable[..., None]
) -> None:
    async def fail(call: Call) -> None:
        await call.respond(429, {"error": {"message": "slow down"}})

    async def scenario() -> None:
        async with group(tmp_path, [fail] * 3, cooldowns=True) as made:
            for _ in range(3):
                with pytest.raises(litellm.RateLimitError):
                    await made.ask()
            await asyncio.sleep(1.0)
            with pytest.raises(litellm.ServiceUnavailableError, match="No server can take the request now"):
                await made.ask()
            await made.settle()
            assert made.got == [1, 1, 1]

    run(scenario())


def test_a_task_that_is_none_is_the_callers_mistake(tmp_path: Path, run: Callable[..., None]) -> None:
    async def scenario() -> None:
        async with group(tmp_path, [answer_chat] * 3, retries=2) as made:
            with pytest.raises(litellm.BadRequestError, match="the tasks are piqa"):
                await made.ask(metadata={"besteffort_task": "nonsense"})
            assert made.got == [0, 0, 0]
            assert made.best.core.open_requests == 0

    run(scenario())


def test_a_cancelled_call_ends_with_its_lease(tmp_path: Path, run: Callable[..., None]) -> None:
    async def never(call: Call) -> None:
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with group(tmp_path, [never] * 3, lease_s=0.5, total_s=0.5) as made:
            task = asyncio.create_task(made.ask())
            while not sum(made.got):
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            core = made.best.core
            # Its lease is its time-outs and then `lease_s`, or LiteLLM tells of the end before.
            for _ in range(100):
                core.sweep()
                if not core.open_requests:
                    break
                await asyncio.sleep(0.1)
            assert core.open_requests == 0
            assert collections.Counter(place.state.in_flight for place in core.snapshot.places) == {0: 3}

    run(scenario())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name each of small, middle, large once"):
        BestEffort(write_config(tmp_path), {"openai/served-small": "small"})


def test_instances_of_one_file_share_their_counts(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert BestEffort(path, MODELS).core is BestEffort(str(path), MODELS).core


def test_one_instance_decides_and_another_hears_of_the_end(tmp_path: Path, run: Callable[..., None]) -> None:
    """As in the proxy, which loads the module once for its router and once for its callbacks."""

    async def scenario() -> None:
        async with group(tmp_path, [answer_chat] * 3) as made:
            litellm.callbacks = [BestEffort(tmp_path / "gateway.yaml", MODELS)]
            assert (await made.ask()).choices[0].message.content == "42"
            await made.settle()
            assert made.best.core.open_requests == 0

    run(scenario())


@pytest.mark.checkout
def test_the_page_has_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(examples()["plugins: LiteLLM"].code, {"__name__": "__main__"})
    litellm.logging_callback_manager._reset_all_callbacks()
    assert capsys.readouterr().out.strip() in ("from opt-125m", "from opt-6.7b")


def test_in_the_proxy(tmp_path: Path, run: Callable[..., None]) -> None:
    """Behind LiteLLM's proxy, as a process of its own: answers come, from more than one model under load."""
    pytest.importorskip("fastapi")
    held = asyncio.Event()
    hold = once(held, answer_chat)

    async def scenario() -> None:
        write_config(tmp_path)
        models = f"{{{', '.join(f'{name!r}: {pool!r}' for name, pool in MODELS.items())}}}"
        (tmp_path / "mine.py").write_text(
            f"from besteffort.plugins.litellm import BestEffort\nbest = BestEffort('gateway.yaml', {models})\n",
            encoding="utf-8",
        )
        async with AsyncExitStack() as stack:
            found = [await stack.enter_async_context(backend(hold)) for _ in MODELS]
            rows = "".join(
                f"\n- {{model_name: group, litellm_params: {{model: {model}, api_base: '{url}', api_key: none}}}}"
                for model, (url, _) in zip(MODELS, found, strict=True)
            )
            (tmp_path / "proxy.yaml").write_text(
                f"model_list:{rows}\nrouter_settings: {{plugins: [mine.best], num_retries: 0}}\n"
                "litellm_settings: {callbacks: [mine.best]}\n",
                encoding="utf-8",
            )
            port, key = free_port(), f"sk-{secrets.token_hex(24)}"
            command = [sys.executable, "-m", "litellm.proxy.proxy_cli", "--config", "proxy.yaml"]
            with (tmp_path / "proxy.log").open("wb") as log:
                proxy = await asyncio.create_subprocess_exec(
                    *command,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                    cwd=tmp_path,
                    env={**os.environ, "LITELLM_MASTER_KEY": key},
                    stdout=log,
                    stderr=log,
                )
            try:
                headers = {"authorization": f"Bearer {key}"}
                async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:
                    await _up(session, proxy)
                    body = {"model": "group", "messages": [{"role": "user", "content": "What?"}]}
                    asked = [asyncio.create_task(_answer(session, body)) for _ in range(12)]
                    while sum(len(server.calls) for _, server in found) < 12:
                        await asyncio.sleep(0.05)
                    assert sum(bool(server.calls) for _, server in found) >= 2
                    held.set()
                    assert set(await asyncio.gather(*asked)) == {"42"}
            finally:
                if proxy.returncode is None:
                    proxy.terminate()
                await proxy.wait()

    run(scenario(), 120.0)


async def _up(session: aiohttp.ClientSession, proxy: asyncio.subprocess.Process) -> None:
    while proxy.returncode is None:
        try:
            async with session.get("/health/liveliness") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.2)
    raise AssertionError("the proxy ended")


async def _answer(session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])
