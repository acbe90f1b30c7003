"""What a plug-in does not use of a gateway's file it says, in one line, and only that."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from besteffort.gateway.config import Rule
from besteffort.plugins.unused import make_core
from besteffort.policy import save_policy
from tests.gateway.policies import greedy

KEY = f"keys: [{{name: team, sha256: '{'0' * 64}'}}]"


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("lease_s: 5\nlisten: {requests: 7}\nrules: [{task: piqa}]", None),
        (
            f"request_log: requests.csv\nlisten: {{port: 80}}\nretries: {{most: 0}}\n{KEY}",
            "`keys`, `retries`, `request_log`, `listen` (but for `listen.requests`)",
        ),
        ("tiers: [{name: flex, deadline_factor: 4}]\nrules: [{task: piqa}]", "`tiers`"),
    ],
)
def test_it_says_what_counts_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stated: str, said: str | None
) -> None:
    save_policy(greedy(), tmp_path / "policy.safetensors")
    path = tmp_path / "gateway.yaml"
    pools = f"pools: [{{name: {greedy().models[0]}, urls: ['http://a/v1']}}]"
    path.write_text(f"policy: policy.safetensors\n{pools}\n{stated}\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        core = make_core(path, "Envoy", ("tiers",))
    assert core.snapshot.config.pools[0].name == greedy().models[0]
    expected = [] if said is None else [f"{path}: inside Envoy these count for nothing: {said}; see to them there."]
    assert [record.getMessage() for record in caplog.records] == expected


def test_no_key_that_the_file_names_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of servers, clients and Redis, nor Redis' client."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    save_policy(greedy(), tmp_path / "policy.safetensors")
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f"""
policy: policy.safetensors
pools: [{{name: {greedy().models[0]}, urls: ['http://a/v1'], api_key_env: NOT_SET_A}}]
keys: [{{name: team, env: NOT_SET_B}}]
listen: {{host: 0.0.0.0, requests: 7}}
rules: [{{task: piqa, key: team}}, {{task: lambada}}]
redis: {{url: 'redis://a', password_env: NOT_SET_C}}
""",
        encoding="utf-8",
    )
    config = make_core(path, "Envoy").snapshot.config
    assert config.listen.requests == 7
    assert config.rules == (Rule(task="lambada"),)
