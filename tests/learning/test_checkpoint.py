"""Checkpoints: what is saved comes back, and what cannot be continued says why."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(InputError, match=f"has format {checkpoint.FORMAT - 1}, this version reads {checkpoint.FORMAT}"):
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


def test_the_checkpoint_before_serves_where_the_last_is_damaged(file: Path) -> None:
    first = file.read_bytes()
    checkpoint.save(file, state()._replace(count=jnp.int32(8)), METRICS, IDENTITY)
    assert checkpoint.previous(file).read_bytes() == first
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"checkpoint.npz: the checkpoint is damaged, so the one before it serves"):
        again, _ = checkpoint.load(file, state(), IDENTITY)
    assert again.count == 7
    assert file.read_bytes() == first
    assert not checkpoint.previous(file).exists()


def test_the_checkpoint_before_serves_where_the_last_is_missing(file: Path) -> None:
    checkpoint.save(file, state()._replace(count=jnp.int32(8)), METRICS, IDENTITY)
    file.unlink()
    assert checkpoint.exists(file)
    assert checkpoint.load(file, state(), IDENTITY)[0].count == 7


def test_where_both_are_damaged_the_last_is_named(file: Path) -> None:
    checkpoint.save(file, state(), METRICS, IDENTITY)
    for path in (file, checkpoint.previous(file)):
        path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"/checkpoint.npz: the checkpoint is damaged"):
        checkpoint.load(file, state(), IDENTITY)
    assert file.read_bytes() == b"PK"


def test_the_end_leaves_one(file: Path) -> None:
    checkpoint.save(file, state(), METRICS, IDENTITY)
    checkpoint.end(file)
    checkpoint.end(file)
    assert list(file.parent.iterdir()) == [file]


def crafted(parts: dict[str, bytes], compressed: bool = False) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, value in parts.items():
            archive.writestr(name, value)
    return content.getvalue()


def npy(header: str) -> bytes:
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        crafted({"header.npy": npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1000000000000,)}")}),
        crafted({"header.npy": npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}")}),
        crafted({"header.npy": npy("[" * 5000)}),
        crafted({"header.npy": npy("()")}),
        crafted({"header.npy": b""}),
        crafted({"header.npy": b"\0" * 10**6}, compressed=True),
        crafted({}),
    ],
)
def test_crafted_files_are_refused_at_no_cost(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "crafted.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or no checkpoint; delete it to start afresh"):
        checkpoint.load(path, state(), IDENTITY)


@pytest.mark.parametrize("header", ["[]", "{}", '{"format": "1", "identity": {}}', '{"format": 1, "identity": 3}', "{"])
def test_crafted_headers_are_refused(file: Path, header: str) -> None:
    with np.load(file) as read:
        arrays = dict(read.items())
    np.savez(file, **{**arrays, "header": np.array(header)})
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(file, state(), IDENTITY)


def test_encrypted_parts_are_refused(file: Path) -> None:
    """Bit 0 of the flags, in the directory of the archive and before each part."""
    whole = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = whole.find(mark)
        while at >= 0:
            whole[at + offset] |= 1
            at = whole.find(mark, at + 1)
    file.write_bytes(whole)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(file, state(), IDENTITY)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=6), st.floats(0.2, 1.5))
def test_any_damage_is_one_sentence(file: Path, edits: list[tuple[float, bytes]], share: float) -> None:
    """Bytes that are overwritten anywhere, and an end that is cut off."""
    whole = file.read_bytes()
    damaged = bytearray(whole)
    for place, content in edits:
        at = int(place * len(damaged))
        damaged[at : at + len(content)] = content
    path = file.with_name("damaged.npz")
    path.write_bytes(damaged[: int(share * len(damaged))])
    try:
        again, _ = checkpoint.load(path, state(), IDENTITY)
    except InputError as error:
        assert str(error).startswith(f"{path}: the checkpoint ")  # noqa: PT017
    else:
        np.testing.assert_array_equal(again.numbers["a"], state().numbers["a"])
