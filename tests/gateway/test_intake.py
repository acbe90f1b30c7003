"""Task, deadline, limit and prompt are read as documented, and what is for the gateway alone stays here."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.gateway.config import Key, Rule, Tier
from besteffort.gateway.errors import ApiError
from besteffort.gateway.intake import CHAT, COMPLETIONS, Intake, read_request
from besteffort.gateway.snapshot import Snapshot
from besteffort.situation import Origin, Tenant
from tests.gateway.policies import config, greedy, snapshot

SNAPSHOT = snapshot(
    config(
        models=("gpt-4o",),
        tiers=(Tier("flex", 4.0),),
        keys=(Key("team", sha256="0" * 64),),
        rules=(Rule("lambada", key="team"), Rule("winogrande", path=CHAT)),
    )
)


def read(body: Any = None, headers: dict[str, str] | None = None, path: str = COMPLETIONS, client: str = "") -> Intake:
    body = {"model": "besteffort", "prompt": "What?"} if body is None else body
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(raw, headers or {}, path, client, SNAPSHOT)


def prompt(**fields: Any) -> dict[str, Any]:
    return {"model": "besteffort", "prompt": "What?", **fields}


def test_the_task_is_the_first_that_is_stated() -> None:
    header = {"x-besteffort-task": "piqa"}
    said = prompt(model="besteffort:arc_easy", metadata={"besteffort_task": "winogrande"})
    assert (read(said, header).ask.task, read(said, header).ask.task_source) == ("piqa", "header")
    assert (read(said).ask.task, read(said).ask.task_source) == ("winogrande", "metadata")
    said = prompt(model="besteffort:arc_easy")
    assert (read(said, client="team").ask.task, read(said).ask.task_source) == ("arc_easy", "model")
    assert (read(client="team").ask.task, read(client="team").ask.task_source) == ("lambada", "rule")
    chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
    assert read(chat, path=CHAT).ask.task == "winogrande"
    assert (read().ask.task, read().ask.task_source) == ("piqa", "default")


def test_a_list_of_one_text_goes_on_as_the_text() -> None:
    assert read(prompt(prompt=["What?"])).body["prompt"] == "What?"
    for others in (["What?", "Who?"], [1, 2], [[1, 2]]):
        assert read(prompt(prompt=others)).body["prompt"] == others


def test_the_origin_is_one_that_the_policy_knows() -> None:
    policy = greedy()
    situation = dataclasses.replace(policy.situation, origins=(Origin("near"), Origin("far")))
    knows = snapshot(policy=dataclasses.replace(policy, situation=situation))

    def origin(headers: dict[str, str], known: Snapshot = knows, **fields: Any) -> str | None:
        return read_request(json.dumps(prompt(**fields)).encode(), headers, COMPLETIONS, "", known).ask.origin

    assert origin({"x-besteffort-origin": " far "}, metadata={"besteffort_origin": "near"}) == "far"
    assert origin({}, metadata={"besteffort_origin": "near"}) == "near"
    assert origin({}) is None
    # A policy without origins has no use for them.
    assert origin({"x-besteffort-origin": "mars"}, SNAPSHOT) is None
    with pytest.raises(ApiError, match="there is no origin `mars`; choose from near, far") as refused:
        origin({"x-besteffort-origin": "mars"})
    assert (refused.value.status, refused.value.code) == (400, "unknown_origin")
    with pytest.raises(ApiError, match=r"`metadata.besteffort_origin`: there is no origin `7`"):
        origin({}, metadata={"besteffort_origin": 7})


def test_the_tenant_is_one_that_the_policy_knows_and_that_of_the_key() -> None:
    policy = greedy()
    situation = dataclasses.replace(policy.situation, tenants=(Tenant("gold", 2.0), Tenant("lead")))
    knows = snapshot(policy=dataclasses.replace(policy, situation=situation))

    def tenant(headers: dict[str, str], client: str = "", known: Snapshot = knows, **fields: Any) -> str | None:
        return read_request(json.dumps(prompt(**fields)).encode(), headers, COMPLETIONS, client, known).ask.tenant

    header = {"x-besteffort-tenant": " lead "}
    assert tenant(header, metadata={"besteffort_tenant": "gold"}) == "lead"
    assert tenant({}, metadata={"besteffort_tenant": "gold"}) == "gold"
    assert tenant({}) is None
    assert tenant({"x-besteffort-tenant": "tin"}, known=SNAPSHOT) is None
    with pytest.raises(
        ApiError, match="`x-besteffort-tenant`: there is no tenant `tin`; choose from gold, lead"
    ) as one:
        tenant({"x-besteffort-tenant": "tin"})
    assert (one.value.status, one.value.code) == (400, "unknown_tenant")
    # A key by another name says nothing of it; one by a tenant's name is that tenant's.
    assert tenant(header, "proxy") == "lead"
    assert tenant({}, "gold") == "gold"
    assert tenant(header, "lead") == "lead"
    with pytest.raises(ApiError, match="The key is the tenant `gold`'s, not `lead`'s; leave the tenant out") as two:
        tenant(header, "gold")
    assert (two.value.status, two.value.code) == (403, "wrong_tenant")
    assert tenant(header, "gold", SNAPSHOT) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (None, 0.0, None)),
        ({"x-besteffort-deadline-ms": "250"}, (0.25, 0.0, None)),
        ({"x-llm-d-slo-ttft-ms": "200", "x-llm-d-slo-tpot-ms": "20.5"}, (0.2, 0.0205, None)),
        ({"x-llm-d-slo-ttft-ms": "200", "x-llm-d-slo-tpot-ms": "0"}, (0.2, 0.0, None)),
        ({"x-llm-d-slo-ttft-ms": "200", "x-llm-d-slo-tpot-ms": "0.5"}, (0.2, 0.0005, None)),
        ({"x-llm-d-slo-tpot-ms": "20"}, (None, 0.0, None)),
        ({"x-besteffort-deadline-ms": "250", "x-llm-d-slo-ttft-ms": "200"}, (0.25, 0.0, None)),
        ({"x-stainless-read-timeout": "600"}, (None, 0.0, 600.0)),
        ({"x-stainless-read-timeout": "1.5", "grpc-timeout": "900m"}, (None, 0.0, 0.9)),
        ({"grpc-timeout": "2S"}, (None, 0.0, 2.0)),
        ({"prefer": "respond-async, wait=10"}, (None, 0.0, 10.0)),
        ({"prefer": "wait=ten", "grpc-timeout": "soon", "x-stainless-read-timeout": "inf"}, (None, 0.0, None)),
    ],
)
def test_deadlines_and_patience(headers: dict[str, str], expected: tuple[float | None, float, float | None]) -> None:
    ask = read(headers=headers).ask
    assert (ask.deadline_base_s, ask.deadline_per_token_s, ask.patience_s) == pytest.approx(expected)


@pytest.mark.parametrize("stated", ["", "0", "-5", "nan", "inf", "1e9", "99999999999", "soon"])
def test_deadlines_that_cannot_be_are_refused(stated: str) -> None:
    with pytest.raises(ApiError, match="milliseconds"):
        read(headers={"x-besteffort-deadline-ms": stated})


def test_limit_tier_and_tokens() -> None:
    assert read(prompt(max_tokens=7)).ask.max_tokens == 7
    assert read(prompt(max_tokens=7, max_completion_tokens=5)).ask.max_tokens == 5
    assert read(prompt(service_tier="flex")).ask.deadline_factor == 4.0
    assert read(prompt(service_tier="auto")).ask.deadline_factor == 1.0
    assert read(prompt(prompt=["ab", "cde"])).ask.characters == 5
    assert read(prompt(prompt=[1, 2, 3])).ask.prompt_tokens == 3
    assert read(prompt(prompt=[[1, 2], [3]])).ask.prompt_tokens == 3
    parts = [{"type": "text", "text": "abcd"}, {"type": "image_url", "image_url": {"url": "x"}}]
    chat = {"model": "besteffort", "messages": [{"role": "user", "content": parts}, {"role": "tool"}]}
    assert read(chat, path=CHAT).ask.characters > 4


def test_what_is_for_the_gateway_alone_stays_here() -> None:
    body = read(prompt(metadata={"besteffort_task": "piqa", "mine": "a"}, temperature=0.5)).body
    assert body["metadata"] == {"mine": "a"}
    assert body["temperature"] == 0.5
    assert "metadata" not in read(prompt(metadata={"besteffort_task": "piqa"})).body
    assert "stream_options" not in read().body


def test_usage_is_always_asked_for_in_streams() -> None:
    found = read(prompt(stream=True, stream_options={"continuous_usage_stats": False}))
    assert found.body["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}
    assert not found.wants_usage
    assert read(prompt(stream=True, stream_options={"include_usage": True})).wants_usage


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"model": NaN}',
        b'{"model": "besteffort", "prompt": "a", "temperature": 1e999}',
        {},
        prompt(model=3),
        prompt(model="gpt-5"),
        prompt(model="besteffort:chess"),
        prompt(metadata="a"),
        prompt(metadata={"besteffort_task": ["piqa"]}),
        prompt(stream="yes"),
        prompt(stream_options=3),
        prompt(max_tokens=0),
        prompt(max_tokens=True),
        prompt(max_tokens=1.5),
        prompt(max_tokens=2**40),
        prompt(prompt=None),
        prompt(prompt=[]),
        prompt(prompt=[1, "a"]),
        prompt(prompt=[True]),
    ],
)
def test_what_is_no_request_is_an_error_of_the_clients(body: Any) -> None:
    with pytest.raises(ApiError) as error:
        read(body)
    assert 400 <= error.value.status < 500
    assert error.value.body()["error"]["message"]


ODD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 2**70, 0.5, "", "a", "\ud800", [], [[]], [0], ["a"], [["a"], [1]], {}, {"a": 1}),
        *([{}], [{"content": ["a", 1, {"text": 3}]}], [{"content": {}}]),
        *({"besteffort_task": "piqa"}, {"include_usage": 0}),
    ]
)
FIELDS = ("prompt", "messages", "metadata", "stream", "stream_options", "max_tokens", "service_tier")


@given(st.dictionaries(st.sampled_from(FIELDS), ODD), st.sampled_from([COMPLETIONS, CHAT]))
def test_any_body_is_read_or_refused(body: dict[str, Any], path: str) -> None:
    try:
        found = read({"model": "besteffort", **body}, path=path)
    except ApiError:
        return
    assert found.ask.characters >= 0
    json.dumps(found.body)


def test_known_names_are_listed() -> None:
    assert isinstance(SNAPSHOT, Snapshot)
    assert SNAPSHOT.model_names[:2] == ("besteffort", "besteffort:piqa")
    assert SNAPSHOT.model_names[-1] == "gpt-4o"
