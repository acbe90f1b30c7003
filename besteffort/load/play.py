"""Plays a list of requests to a server in real time: each is sent at its time, whatever has come back by then.

Prompts are given, or words, about as many as the list has tokens, and `max_tokens` is the length of the answer that it
has. What counts then is what the server did: its times, and the lengths in its `usage`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import aiohttp
import numpy as np

from besteffort import interrupts
from besteffort.errors import InputError, brief
from besteffort.estimates.reward import reward
from besteffort.gateway.events import AnswerStream, EventReader, EventTooLargeError, usage_of
from besteffort.gateway.intake import LONGEST_S
from besteffort.gateway.process import raise_descriptor_limit
from besteffort.simulator.result import Result
from besteffort.situation import Situation
from besteffort.workload.requests import PARTIES, Requests

_LOOK_S = 0.5  # between two looks for an interrupt
_CONNECT_S = 5.0
_WORD = " hello"  # a token of most vocabularies


@dataclasses.dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
      url: address of the server, up to and including `/v1`.
      model: what to ask for.
      api_key: key of the server, if it wants one.
      streamed: whether answers are streamed.
      timeout_s: seconds after which an answer counts as failed.
    """

    url: str
    model: str = "besteffort"
    api_key: str | None = dataclasses.field(default=None, repr=False)
    streamed: bool = True
    timeout_s: float = 120.0


@dataclasses.dataclass(frozen=True)
class Played:
    """What came back.

    Attributes:
      result: per request, as of a simulation. Failed ones count as rejected; their pool is -1 unless the server said.
      texts: what was answered; of failed requests, what came of it.
      failures: how many requests failed, by reason.
      late_s: seconds by which a request was sent later than the list says, at most.
    """

    result: Result
    texts: tuple[str, ...]
    failures: collections.Counter[str]
    late_s: float


@dataclasses.dataclass
class _Answer:
    sent_s: float
    first_s: float = math.nan
    end_s: float = math.nan
    output_tokens: int = 0
    prompt_tokens: int = 0
    pool: str = ""
    text: str = ""
    failure: str = ""


def play(
    requests: Requests,
    situation: Situation,
    target: Target,
    progress: Callable[[int, int], None] = lambda sent, answered: None,
    *,
    prompts: Sequence[str] | None = None,
) -> Played:
    """Plays a list.

    Args:
      requests: the list, of the situation's tasks.
      situation: says what answers are worth; its pools, or the models of its cluster, are found by the names
        that the server gives.
      target: the server.
      progress: gets the numbers of requests that were sent and answered.
      prompts: what is asked; words without meaning unless given.

    Raises:
      InputError: if the server cannot be reached.
      KeyboardInterrupt: if an interrupt has come.
    """
    raise_descriptor_limit()
    answers, late_s = asyncio.run(_play(requests, prompts, situation, target, progress))
    texts = tuple(answer.text for answer in answers)
    return Played(_result(requests, situation, answers), texts, _failures(answers), late_s)


async def _play(
    requests: Requests,
    prompts: Sequence[str] | None,
    situation: Situation,
    target: Target,
    progress: Callable[[int, int], None],
) -> tuple[list[_Answer], float]:
    headers = {} if target.api_key is None else {"authorization": f"Bearer {target.api_key}"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=target.timeout_s, sock_connect=_CONNECT_S),
    ) as session:
        await _reach(session, target)
        loop = asyncio.get_running_loop()
        start, late_s = loop.time(), 0.0
        looked_s = start
        tasks: list[asyncio.Task[_Answer]] = []
        try:
            for index, arrival_s in enumerate(requests.arrival_s.tolist()):
                while (wait_s := start + arrival_s - loop.time()) > 0:
                    await asyncio.sleep(min(wait_s, _LOOK_S))
                    if loop.time() - looked_s >= _LOOK_S:  # all tasks are counted, too many for every request
                        looked_s = loop.time()
                        _look(tasks, progress)
                late_s = max(late_s, -wait_s)
                # The words of a long list at once take gigabytes.
                prompt = _WORD * int(requests.prompt_tokens[index]) if prompts is None else prompts[index]
                ask = _ask(session, target, requests, prompt, situation, index, start)
                tasks.append(asyncio.create_task(ask))
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=_LOOK_S)
                _look(tasks, progress)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks], late_s


def _look(tasks: list[asyncio.Task[_Answer]], progress: Callable[[int, int], None]) -> None:
    interrupts.check()
    progress(len(tasks), sum(task.done() for task in tasks))


async def _reach(session: aiohttp.ClientSession, target: Target) -> None:
    """Asks for the models.

    Raises:
      InputError: if that fails, or the model is not among them.
    """
    try:
        async with session.get(f"{target.url}/models") as response:
            status, raw = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise InputError(f"{target.url}: no server answers there; start one, or name another address.") from error
    if status == 401:
        raise InputError(f"{target.url}: the server wants a key; name the variable that holds it by `--api-key-env`.")
    if status != 200:
        raise InputError(f"{target.url}/models: the server answers with status {status}; give its address up to `/v1`.")
    try:
        names = [str(entry["id"]) for entry in json.loads(raw)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{target.url}/models: this is no list of models; give the address up to `/v1`.") from error
    if target.model not in names:
        raise InputError(f"{target.url} has no model `{brief(target.model)}`; choose from {brief(', '.join(names))}.")


async def _ask(
    session: aiohttp.ClientSession,
    target: Target,
    requests: Requests,
    prompt: str,
    situation: Situation,
    index: int,
    start: float,
) -> _Answer:
    loop = asyncio.get_running_loop()
    task = situation.tasks[int(requests.task[index])]
    factor = 1.0 if requests.deadline_factor is None else float(requests.deadline_factor[index])
    body: dict[str, Any] = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": int(requests.output_tokens[index]),
        "temperature": 0.0,
        "stream": target.streamed,
    }
    if target.streamed:
        body["stream_options"] = {"include_usage": True}
    headers = {
        "x-besteffort-task": task.name,
        "x-llm-d-slo-ttft-ms": f"{1e3 * min(factor * task.deadline.base_s, LONGEST_S):.6f}",
        "x-llm-d-slo-tpot-ms": f"{1e3 * min(factor * task.deadline.per_token_s, LONGEST_S):.6f}",
    }
    for party in PARTIES:
        which = getattr(requests, party)
        if which is not None:
            headers[f"x-besteffort-{party}"] = getattr(requests, f"{party}s")[which[index]]
    answer = _Answer(loop.time() - start)
    try:
        async with session.post(f"{target.url}/completions", json=body, headers=headers) as response:
            said = "x-besteffort-pool" if situation.pools else "x-besteffort-model"
            answer.pool = unquote(response.headers.get(said, ""))
            if response.status != 200:
                answer.failure = f"status {response.status}"
            elif target.streamed:
                await _read_stream(response, answer, loop.time, start)
            else:
                _read_whole(await response.read(), answer)
    except TimeoutError:
        answer.failure = "time-out"
    except (aiohttp.ClientError, OSError):
        answer.failure = "connection"
    except EventTooLargeError:
        answer.failure = "event too large"
    answer.end_s = loop.time() - start
    return answer


async def _read_stream(
    response: aiohttp.ClientResponse, answer: _Answer, clock: Callable[[], float], start: float
) -> None:
    texts: list[str] = []
    stream = AnswerStream(
        keep_usage=True,
        take=lambda chunk: texts.append(_text(chunk)),
        take_text=lambda index, text: texts.append(text),
    )
    reader = EventReader()
    async for chunk in response.content.iter_any():
        for event in reader.feed(chunk):
            found = stream.read(event)
            if found.error:
                answer.failure = "error event"
                return
            if found.tokens:
                answer.output_tokens += 1
                if math.isnan(answer.first_s):
                    answer.first_s = clock() - start
    answer.text = "".join(texts)
    if not (stream.finished or stream.done):
        answer.failure = "cut short"
    if stream.usage is not None:
        answer.output_tokens = stream.usage.output_tokens or answer.output_tokens
        answer.prompt_tokens = stream.usage.prompt_tokens or 0


def _read_whole(raw: bytes, answer: _Answer) -> None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        answer.failure = "no JSON"
        return
    answer.text, usage = _text(found), usage_of(found)
    if usage is not None:
        answer.output_tokens, answer.prompt_tokens = usage.output_tokens or 0, usage.prompt_tokens or 0


def _text(found: dict[str, Any]) -> str:
    """Text of an answer, or of a piece of one."""
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    text = first.get("text") if isinstance(first, dict) else None
    return text if isinstance(text, str) else ""


def _result(requests: Requests, situation: Situation, answers: list[_Answer]) -> Result:
    """As of a simulation; what a server does not say is as the list has it."""
    names = situation.fleet.names
    failed = np.array([bool(answer.failure) for answer in answers])
    pool = np.array([names.index(a.pool) if a.pool in names else -1 for a in answers], np.int32)
    output = np.array([a.output_tokens or listed for a, listed in zip(answers, requests.output_tokens, strict=True)])
    prompt = np.array([a.prompt_tokens or listed for a, listed in zip(answers, requests.prompt_tokens, strict=True)])
    factor = 1.0 if requests.deadline_factor is None else requests.deadline_factor
    deadline_s = situation.deadlines(requests.task, output) * factor
    sent_s = np.array([answer.sent_s for answer in answers])
    end_s = np.where(failed, np.nan, [answer.end_s for answer in answers])
    first_s = np.array([answer.first_s for answer in answers])
    first_s = np.where(failed, np.nan, np.where(np.isnan(first_s), end_s, first_s))
    latency_s = np.where(failed, np.inf, end_s - sent_s)
    quality = situation.quality[requests.task, np.maximum(pool, 0)]
    columns = requests.columns | {
        "arrival_s": sent_s,
        "prompt_tokens": prompt.astype(np.int32),
        "output_tokens": output.astype(np.int32),
        "deadline_s": deadline_s,
    }
    return Result.of(
        columns,
        model=pool,
        replica=np.where(failed, -1, 0).astype(np.int32),
        admission_s=np.where(failed, np.nan, sent_s),
        first_token_s=first_s,
        completion_s=end_s,
        latency_s=latency_s,
        reward=reward(
            np.where(pool < 0, 0.0, quality),
            situation.weights[requests.task],
            latency_s,
            deadline_s,
            situation.reward.soft_span,
            situation.reward.miss_penalty,
        ),
    )


def _failures(answers: list[_Answer]) -> collections.Counter[str]:
    return collections.Counter(answer.failure for answer in answers if answer.failure)
