"""Checkpoints: what is saved comes back, and what cannot be continued says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning import checkpoint


class State(NamedTuple):
    numbers: Any
    key: Any
    count: Any


IDENTITY = {"`num_envs`": "8", "seeds": "abc"}
METRICS = {"loss": np.array([[0.5, 0.25]])}


def state() -> State:
    numbers = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.array([True, False]), jnp.float32(np.nan))}
    return State(numbers, jax.random.split(jax.random.key(3), 2), jnp.int32(7))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, state(), METRICS, IDENTITY)
    return path


def test_there_and_back(file: Path) -> None:
    again, metrics = checkpoint.load(file, state(), IDENTITY)
    jax.tree.map(np.testing.assert_array_equal, again.numbers, state().numbers)
    assert again.count == 7
    np.testing.assert_array_equal(jax.random.key_data(again.key), jax.random.key_data(state().key))
    assert metrics.keys() == METRICS.keys()
    np.testing.assert_array_equal(metrics["loss"], METRICS["loss"])
    assert list(file.parent.iterdir()) == [file]


def test_another_training_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint.npz: .* with `num_envs` 8, but this one has 16"):
        checkpoint.load(file, state(), {**IDENTITY, "`num_envs`": "16"})
    with pytest.raises(InputError, match="with `more` None, but this one has 1"):
        checkpoint.load(file, state(), {**IDENTITY, "`more`": "1"})


def test_another_format_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(InputError, match="has format 1, this version reads 2"):
        checkpoint.load(file, state(), IDENTITY)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(file: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"checkpoint.npz: the checkpoint is damaged"):
        checkpoint.load(file, state(), IDENTITY)


def test_edited_bytes_are_refused(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    at = whole.find(np.float32(5.0).tobytes(), whole.find(b"state/numbers/a"))
    whole[at] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(file, state(), IDENTITY)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(path, state(), IDENTITY)


def test_other_shapes_are_refused(file: Path) -> None:
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(file, state()._replace(count=jnp.zeros(2, jnp.int32)), IDENTITY)


def test_a_full_disk_leaves_the_last_checkpoint(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"checkpoint.npz: cannot write it, no space left on device; free some space"):
        checkpoint.save(file, state(), METRICS, IDENTITY)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
