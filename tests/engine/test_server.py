"""The engine behind OpenAI's API, asked by its own client: right tokens, as they come, and slots that come free."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import openai
import pytest

from besteffort.gateway.config import Key, KeyRing
from besteffort.laptop.tasks import draw
from besteffort.laptop.tokenizer import decode, encode
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Runtime
from tests.engine.serving import BUCKETS, NAME, Serving, model, serving
from tests.gateway.backends import run

BRIEFLY_S, LONG_S = 0.05, 0.5
"""Seconds of an iteration; long ones tell what is early from what is late on a busy machine, too."""
PROMPTS = [case.prompt for name in ("addition", "brackets") for case in draw(name, 4, seed=3, held_out=True)]


class Slowly:
    """A pace that may change."""

    def __init__(self) -> None:
        self.iteration_s = BRIEFLY_S

    def __call__(self, decoding: int, prompts: object) -> float:
        return self.iteration_s


async def figures(found: Serving) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{found.address}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def streamed(found: Serving, **fields: Any) -> tuple[list[str], Any]:
    """Texts of the pieces, and the last chunk."""
    pieces, chunk = [], None
    stream = await found.client.completions.create(
        model=NAME, temperature=0, stream=True, stream_options={"include_usage": True}, **fields
    )
    async for chunk in stream:
        pieces += [choice.text for choice in chunk.choices]
    return pieces, chunk


def test_answers_are_those_of_the_engine() -> None:
    expected = [
        decode(tokens) for tokens in generate(Runtime(model(), 2, 18, BUCKETS), [encode(p) for p in PROMPTS], 7)
    ]
    assert len(set(expected)) > 3

    async def scenario() -> None:
        async with serving(others=("other",)) as found:
            create = found.client.completions.create
            whole = await asyncio.gather(
                *(create(model=NAME, prompt=prompt, temperature=0, max_tokens=7) for prompt in PROMPTS)
            )
            assert [answer.choices[0].text for answer in whole] == expected
            assert whole[0].model == NAME
            for prompt, text in zip(PROMPTS, expected, strict=True):
                pieces, last = await streamed(found, prompt=prompt, max_tokens=7)
                assert "".join(pieces) == text
                assert len(pieces) == last.usage.completion_tokens
                assert last.usage.prompt_tokens == len(encode(prompt))
                assert last.usage.completion_tokens in (len(text), len(text) + 1)
                chat = await found.client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=7
                )
                assert chat.choices[0].message.content == text
            tokens = await create(model=NAME, prompt=encode(PROMPTS[0]), temperature=0, max_tokens=7)
            assert tokens.choices[0].text == expected[0]
            short = await create(model=NAME, prompt=PROMPTS[0], temperature=0, max_tokens=2)
            assert (short.choices[0].text, short.choices[0].finish_reason) == (expected[0][:2], "length")
            latencies = f'vllm:e2e_request_latency_seconds_count{{model_name="{NAME}"}}'
            before = (await figures(found))[latencies]
            cut = await create(model=NAME, prompt=PROMPTS[0], temperature=0, max_tokens=7, stop=expected[0][2])
            assert (await figures(found))[latencies] == before + 1
            assert (cut.choices[0].text, cut.choices[0].finish_reason) == (
                expected[0][: expected[0].index(expected[0][2])],
                "stop",
            )
            drawn = [await create(model=NAME, prompt=PROMPTS[0], seed=seed, max_tokens=7) for seed in (1, 1, 2, 3, 4)]
            texts = [answer.choices[0].text for answer in drawn]
            assert texts[0] == texts[1]
            assert len(set(texts)) > 1
            # More than there are is all of them, however many more.
            every = await create(model=NAME, prompt=PROMPTS[0], seed=1, max_tokens=7, extra_body={"top_k": 2**62})
            assert every.choices[0].text == texts[0]
            # By path: the model need not be named, and no other can be.
            async with openai.AsyncOpenAI(base_url=f"{found.address}/other/v1", api_key="x", max_retries=0) as client:
                assert [each.id async for each in client.models.list()] == ["other"]
                other = await client.completions.create(model="other", prompt=PROMPTS[0], temperature=0, max_tokens=7)
                assert other.choices[0].text == expected[0]
                with pytest.raises(openai.NotFoundError):
                    await client.completions.create(model=NAME, prompt=PROMPTS[0])
            assert [each.id async for each in found.client.models.list()] == [NAME, "other"]
            assert (await found.client.models.retrieve("other")).id == "other"
            for wrong in ({"prompt": "hello"}, {"prompt": "1" * 30}, {"prompt": "1", "max_tokens": 40}, {"prompt": []}):
                with pytest.raises(openai.BadRequestError):
                    await create(model=NAME, **wrong)  # type: ignore[call-overload]
            with pytest.raises(openai.NotFoundError):
                await create(model="gpt-4", prompt="1")
            seen = await figures(found)
            assert seen[f'vllm:num_requests_running{{model_name="{NAME}"}}'] == 0
            assert seen[f'vllm:generation_tokens_total{{model_name="{NAME}"}}'] > 100
            assert not any(found.engine.batch_sizes.values())

    run(scenario())


def test_tokens_come_as_they_are_made_and_those_who_leave_free_their_slots() -> None:
    async def scenario() -> None:
        slowly = Slowly()
        async with serving(slowly, queue_capacity=1) as found:
            create = found.client.completions.create

            async def freed() -> None:
                """Long before an answer of 17 tokens would be whole."""
                asked_s = time.perf_counter()
                while found.engine.batch_sizes[NAME]:
                    assert time.perf_counter() - asked_s < 8 * LONG_S
                    await asyncio.sleep(0.01)

            slowly.iteration_s = LONG_S
            stream = await create(model=NAME, prompt="0", max_tokens=17, stream=True, extra_body={"ignore_eos": True})
            begun_s = time.perf_counter()
            for _ in range(2):
                assert (await anext(aiter(stream))).choices[0].finish_reason is None
            assert time.perf_counter() - begun_s > 0.9 * LONG_S
            assert found.engine.batch_sizes[NAME] == 1
            await stream.close()
            await freed()
            asked = asyncio.create_task(create(model=NAME, prompt="0", max_tokens=17, extra_body={"ignore_eos": True}))
            while not found.engine.batch_sizes[NAME]:
                await asyncio.sleep(0.01)
            asked.cancel()
            await freed()
            aborted = f'vllm:request_success_total{{finished_reason="abort",model_name="{NAME}"}}'
            assert (await figures(found))[aborted] == 2

            # Two run, one waits, the fourth is refused and told when to come again.
            held = [asyncio.create_task(create(model=NAME, prompt="012+034=", temperature=0)) for _ in range(3)]
            while (found.engine.batch_sizes[NAME], found.engine.waiting[NAME]) != (3, 1):
                await asyncio.sleep(0.01)
            seen = await figures(found)
            assert seen[f'vllm:num_requests_running{{model_name="{NAME}"}}'] == 2
            assert seen[f'vllm:num_requests_waiting{{model_name="{NAME}"}}'] == 1
            with pytest.raises(openai.RateLimitError) as refused:
                await create(model=NAME, prompt="012+034=")
            slowly.iteration_s = BRIEFLY_S
            assert int(refused.value.response.headers["retry-after-ms"]) > 0
            assert len({answer.choices[0].text for answer in await asyncio.gather(*held)}) == 1

            # An engine that stops ends what is in work with an error, and refuses what comes.
            slowly.iteration_s = LONG_S
            stream = await create(model=NAME, prompt="012+034=", stream=True)
            await anext(aiter(stream))
            await found.engine.stop()
            with pytest.raises(openai.APIError, match="stopped"):
                async for _ in stream:
                    pass
            with pytest.raises(openai.InternalServerError):
                await create(model=NAME, prompt="012+034=")
            async with aiohttp.ClientSession() as session, session.get(f"{found.address}/health") as response:
                assert response.status == 503

    run(scenario())


def test_a_key_is_needed_where_there_is_one() -> None:
    keys = KeyRing([Key("engine", env="KEY")], {"KEY": "key-of-sixteen-characters"})

    async def scenario() -> None:
        async with serving(keys=keys) as found:
            await found.client.completions.create(model=NAME, prompt="1+1=")
            with pytest.raises(openai.AuthenticationError):
                await found.client.with_options(api_key="another-long-key").completions.create(model=NAME, prompt="1")

    run(scenario())
