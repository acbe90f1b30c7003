"""A configuration that does not fit is refused in one sentence, before anything starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from besteffort.errors import InputError
from besteffort.gateway.config import Key, KeyRing, is_loopback, load_gateway, secret_of
from besteffort.gateway.snapshot import make_policy, make_snapshot
from besteffort.policy import save_policy
from tests.gateway.policies import MODELS, config, greedy

POOL = {"name": "small", "model": MODELS[0], "urls": ["http://127.0.0.1:8101/v1"]}
WHOLE: dict[str, Any] = {"policy": "policy.safetensors", "pools": [POOL]}
SECRET = "sk-0123456789abcdef"


def read(folder: Path, data: object) -> Any:
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_gateway(path)[0]


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert found.pools[0].urls == ("http://127.0.0.1:8101/v1",)
    assert (found.listen.host, found.listen.port) == ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pools": []}, "`pools`"),
        ({"pools": [{**POOL, "urls": []}]}, "`pools[0].urls`"),
        ({"pools": [{**POOL, "urls": ["127.0.0.1:8101"]}]}, "no address"),
        ({"pools": [{**POOL, "urls": ["file:///etc/passwd"]}]}, "no address"),
        ({"pools": [{**POOL, "urls": ["http://h:99999/v1"]}]}, "no address"),
        ({"pools": [{**POOL, "urls": ["http://user:password@h/v1"]}]}, "has a key in an address"),
        ({"pools": [{**POOL, "urls": ["http://h/v1?key=secret"]}]}, "what follows the path"),
        ({"pools": [{**POOL, "urls": ["http://h/v1", "http://h/v1/"]}]}, "one address twice"),
        ({"pools": [{**POOL, "name": "a b"}]}, "`name` is to have"),
        ({"pools": [POOL, {**POOL, "model": MODELS[1]}]}, "`pools` has `small` twice"),
        ({"pools": [POOL, {**POOL, "name": "other", "model": MODELS[1]}]}, "stands in two of them"),
        ({"pools": [{**POOL, "limit": 0}]}, "`pools[0].limit`"),
        ({"pools": [{**POOL, "api_key": SECRET}]}, "`pools[0].api_key` is not a known field"),
        ({"policy": None}, "one of `policy`"),
        ({"situation": "paper"}, "one of `policy`"),
        ({"listen": {"host": "0.0.0.0"}}, "there are no `keys`"),
        ({"listen": {"host": "::"}}, "there are no `keys`"),
        ({"listen": {"host": "example.org"}}, "there are no `keys`"),
        ({"listen": {"port": 70_000}}, "`listen.port`"),
        ({"keys": [{"name": "a"}]}, "one of `env` and `sha256`"),
        ({"keys": [{"name": "a", "sha256": "abc"}]}, "64 hexadecimal digits"),
        ({"rules": [{"task": "piqa", "key": "nobody"}]}, "no key `nobody`"),
        ({"when_late": "cry"}, "`when_late`"),
        ({"breaker": {"open_s": float("nan")}}, "`breaker.open_s`"),
        ({"retires": {}}, "did you mean `retries`"),
        ({"shadow": {}}, "`shadow`: give one of `policy`"),
        ({"canary": {"share": 0.1}}, "`canary`: give one of `policy`"),
        ({"canary": {"policy": "a"}}, "`canary.share`"),
        ({"canary": {"policy": "a", "share": 1.5}}, "`canary.share`"),
        ({"drift": {"least": 0}}, "`drift.least`"),
        ({"drift": {"means": 0.5}}, "`drift.means`"),
        ({"redis": {}}, "`redis.url`"),
        ({"redis": {"url": "10.0.0.5:6379"}}, "write redis://HOST:PORT"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, {**WHOLE, **changes})
    assert sentence in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "password" not in str(error.value)


def test_keys_are_needed_where_others_reach_the_gateway(tmp_path: Path) -> None:
    keys = [{"name": "a", "env": "A"}]
    assert read(tmp_path, {**WHOLE, "listen": {"host": "0.0.0.0"}, "keys": keys}).keys[0].env == "A"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""))


def test_keys_are_found_by_hash_and_never_shown() -> None:
    hashed = hashlib.sha256(SECRET.encode()).hexdigest()
    ring = KeyRing([Key("hashed", sha256=hashed), Key("named", env="A")], {"A": "another-long-secret"})
    assert ring.name_of(SECRET) == "hashed"
    assert ring.name_of("another-long-secret") == "named"
    assert ring.name_of("") is None
    assert ring.name_of(hashed) is None
    assert ring.name_of("\udce9") is None
    assert SECRET not in repr(vars(ring))
    assert not KeyRing([])


@pytest.mark.parametrize("secret", [None, "", "  ", "short", "with a line\nbreak-and-more", "not-ascii-é-0123456789"])
def test_keys_that_cannot_be_are_refused_without_being_shown(secret: str | None) -> None:
    with pytest.raises(InputError) as error:
        KeyRing([Key("team", env="TEAM")], {} if secret is None else {"TEAM": secret})
    assert "Key `team`" in str(error.value)
    assert not (secret or "").strip() or secret not in str(error.value)


def test_a_servers_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", SECRET)
    assert secret_of("Pool `a`", "SERVER") == SECRET
    monkeypatch.delenv("SERVER")
    with pytest.raises(InputError, match="Pool `a`: the environment variable `SERVER` is not set"):
        secret_of("Pool `a`", "SERVER")


def test_what_the_policy_does_not_know_is_refused() -> None:
    given = config([["http://a/v1"]])
    with pytest.raises(InputError, match="no task `chess`"):
        make_snapshot(config([["http://a/v1"]], default_task="chess"), greedy())
    (pool,) = given.pools
    other = type(pool)(pool.name, pool.urls, "gpt")
    with pytest.raises(InputError, match="no model `gpt`"):
        make_snapshot(type(given)((other,), policy="p"), greedy())


def test_a_policy_file_is_found_from_the_configurations_folder(tmp_path: Path) -> None:
    save_policy(greedy(), tmp_path / "policy.safetensors")
    assert make_policy(read(tmp_path, WHOLE), tmp_path).models == MODELS
    with pytest.raises(InputError, match="no such policy file"):
        make_policy(read(tmp_path, {**WHOLE, "policy": "other.safetensors"}), tmp_path)
