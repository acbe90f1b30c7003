"""Damaged policy files and checkpoints are refused in one sentence, or serve: no traceback, no gigabyte.

A policy file is signed again after the damage, as another program might write it. `python -m tests.fuzz` damages them
for minutes, led by what they reach.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from besteffort import policy as policies
from besteffort.errors import InputError
from besteffort.in_flight import InFlight
from besteffort.learning import checkpoint
from besteffort.policy import load_policy, save_policy
from besteffort.runs.config import load_situation
from besteffort.runs.papers import paper_policy
from besteffort.runs.untrained import default_policy
from tests.damage import change_somewhere, refused

IDENTITY = {"situation": "0123", "seeds": "0, 1"}
STATE = {"online": jnp.arange(12.0).reshape(3, 4), "step": jnp.int32(7)}
METRICS = {"decisions": np.array([[1, 1], [2, 2]]), "reward": np.array([[0.5, 0.25], [0.75, 0.5]])}


@pytest.fixture(scope="module", autouse=True)
def _no_gigabyte() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


def policy_files(path: Path) -> list[bytes]:
    """A policy by a rule and the paper's, as files."""
    situation = load_situation("paper")
    written = []
    for policy in (default_policy(situation), paper_policy()):
        save_policy(policy, path)
        written.append(path.read_bytes())
    return written


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What policy files hold."""
    return policy_files(tmp_path_factory.mktemp("policies") / "policy.safetensors")


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """A file that was cut, or has other bytes somewhere."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + chance.choice((1, 8, 100))]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.choice((1, 8, 100)))
        else:
            changed[at : at + 1] = chance.randbytes(1)
    return bytes(changed)


def signed_again(content: bytes, chance: random.Random) -> bytes:
    """A policy file with other metadata or weights, signed for what it holds."""
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["besteffort"])
    tensors = safetensors.numpy.load(content)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(tensors))
        kind = chance.randrange(8)
        if kind == 0:
            tensors[name] = chance.choice(
                (tensors[name].astype(np.float64), tensors[name][:-1], tensors[name] * np.float32("nan"), np.zeros(0))
            )
        elif kind == 1 and len(tensors) > 1:
            tensors[f"layers.{chance.randrange(9)}.{chance.choice(('kernel', 'bias', 'other'))}"] = tensors.pop(name)
        else:
            change_somewhere(metadata, chance)
    about = {name: value for name, value in metadata.items() if name != "sha256"}
    try:
        metadata["sha256"] = policies._digest(about, tensors)
    except ValueError:  # what no program can sign
        return content[: chance.randrange(len(content))]
    return safetensors.numpy.save(tensors, {"besteffort": json.dumps(metadata)})


def damaged_policy(content: bytes, chance: random.Random) -> bytes:
    """A policy file with other bytes somewhere, or signed for other metadata or weights where it is one."""
    if chance.random() < 0.3:
        return damaged_bytes(content, chance)
    try:
        return signed_again(content, chance)
    except Exception:  # damaged before, so that no program could sign it
        return damaged_bytes(content, chance)


def check_policy(content: bytes, path: Path) -> bool:
    """Whether a file is read as a policy, and then decides; what is not must be refused as it should be."""
    path.write_bytes(content)
    try:
        policy = load_policy(path)
    except InputError as error:
        refused(error, path)
        return False
    books = InFlight(policy)
    for step in range(3):
        books.arrived(step, task=policy.tasks[0], prompt_tokens=16, at=float(step))
        decision = books.decide(step)
        assert decision.model in policy.models
        books.sent(step, decision.model, decision.replica, at=float(step))
    return True


def checkpoint_file(path: Path) -> bytes:
    """A checkpoint as it should be."""
    path.unlink(missing_ok=True)
    checkpoint.save(path, STATE, METRICS, IDENTITY)
    checkpoint.end(path)
    return path.read_bytes()


def altered(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint whose arrays or header are other than they should be."""
    with np.load(io.BytesIO(content)) as file:
        arrays: dict[str, Any] = dict(file)
    name = chance.choice(list(arrays))
    if name == "header":
        header = json.loads(str(arrays["header"]))
        change_somewhere(header, chance)
        arrays["header"] = np.array(json.dumps(header))
    else:
        value = arrays.pop(name)
        other = (value.astype(complex), value[..., None], value.astype("S8"), value.ravel()[:1], np.array([]), None)
        value = chance.choice(other)
        if value is not None:
            arrays[chance.choice((name, name, "metrics/other"))] = value
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


def damaged_checkpoint(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint with other bytes somewhere, or with other arrays or another header where it is one."""
    if chance.random() < 0.5:
        return damaged_bytes(content, chance)
    try:
        return altered(content, chance)
    except Exception:  # damaged before, so that it cannot be opened
        return damaged_bytes(content, chance)


def check_checkpoint(content: bytes, path: Path) -> bool:
    """Whether a file is read as a checkpoint; what is not must be refused as it should be."""
    path.write_bytes(content)
    try:
        state, metrics = checkpoint.load(path, STATE, IDENTITY)
    except InputError as error:
        refused(error, path)
        return False
    assert state["online"].shape == (3, 4)
    assert state["step"].dtype == jnp.int32
    assert len({len(values) for values in metrics.values()}) <= 1
    return True


@pytest.mark.filterwarnings("error")
@given(seed=st.integers(0, 2**62))
def test_damaged_policies(seed: int, contents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    content = damaged_policy(chance.choice(contents), chance)
    check_policy(content, tmp_path_factory.getbasetemp() / "damaged.safetensors")


@given(seed=st.integers(0, 2**62))
def test_damaged_checkpoints(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    check_checkpoint(damaged_checkpoint(checkpoint_file(path), random.Random(seed)), path)
