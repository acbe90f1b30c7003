"""Checkpoints in every format, and what may be wrong with them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file
from tiny_opt import REFERENCES, TINY

from besteffort.errors import InputError
from besteffort.opt import hub
from besteffort.opt.weights import Model, load_model, random_model, to_checkpoint

FIRST = REFERENCES[0]
WEIGHTS = "model.safetensors"
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(FIRST, tmp_path / "opt"))


def same(left: Model, right: Model) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), left.params, right.params)))


def rewritten(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_a_sharded_checkpoint_is_one() -> None:
    sharded = next(path for path in REFERENCES if (path / f"{WEIGHTS}.index.json").exists())
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load_model(sharded).config.layers >= 1  # its logits are compared in test_model.py


def test_to_checkpoint_is_what_was_loaded(directory: Path) -> None:
    model = load_model(directory)
    save_file(to_checkpoint(model), directory / WEIGHTS)
    assert same(load_model(directory), model)
    assert set(load_file(FIRST / WEIGHTS)) == set(to_checkpoint(model))


def test_names_as_the_bare_model_saves_them(directory: Path) -> None:
    def bare(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewritten(directory, bare)
    assert same(load_model(directory), load_model(FIRST))


def test_a_tied_output_layer_may_be_there_twice(directory: Path) -> None:
    embedding = "model.decoder.embed_tokens.weight"
    rewritten(directory, lambda t: t.update({"lm_head.weight": t[embedding].copy()}))
    assert same(load_model(directory), load_model(FIRST))
    rewritten(directory, lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    with pytest.raises(InputError, match=r"`lm_head\.weight` is not the token embedding"):
        load_model(directory)


def test_a_tied_output_layer_may_be_there_instead(directory: Path) -> None:
    """As transformers saves it where it takes the embedding for the copy; the name does not matter to the format."""
    embedding = "model.decoder.embed_tokens.weight"
    rewritten(directory, lambda t: t.update({"lm_head.weight": t.pop(embedding)}))
    assert embedding not in load_file(directory / WEIGHTS)
    assert same(load_model(directory), load_model(FIRST))
    rewritten(directory, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][1:]}))
    with pytest.raises(InputError, match=r"embed_tokens.weight` has the shape"):
        load_model(directory)


def test_flax_msgpack(directory: Path) -> None:
    """In the names and the layout in which transformers' Flax models were saved."""
    flat = {}
    for name, value in load_file(directory / WEIGHTS).items():
        stem, leaf = name.rsplit(".", 1)
        kind = "embedding" if "embed_" in stem else "scale" if "norm" in stem else "kernel"
        flat[f"{stem}.{kind if leaf == 'weight' else leaf}"] = value.T if kind == "kernel" else value
    (directory / WEIGHTS).unlink()
    (directory / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten_dict(flat, sep=".")))
    assert same(load_model(directory), load_model(FIRST))


@pytest.mark.skipif(not HAS_TORCH, reason="reads PyTorch's format")
def test_pytorch(directory: Path) -> None:
    import torch

    torch.save(
        {k: torch.from_numpy(v) for k, v in load_file(directory / WEIGHTS).items()}, directory / "pytorch_model.bin"
    )
    (directory / WEIGHTS).unlink()
    assert same(load_model(directory), load_model(FIRST))


def test_pytorchs_format_without_pytorch(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    with pytest.raises(InputError, match="needs PyTorch; install `torch`, or save the model as safetensors"):
        load_model(directory)


def test_pytorchs_file_in_the_cache_is_of_no_use_without_pytorch(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    there = ["config.json"]

    def cached(name: str, file: str) -> Path | None:
        return directory / file if (directory / file).exists() else None

    def downloaded(name: str, file: str) -> Path | None:
        return Path(shutil.copy(FIRST / file, directory)) if file in there else None

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(hub, "_cached", cached)
    monkeypatch.setattr(hub, "_download", downloaded)
    with pytest.raises(InputError, match="needs PyTorch; install `torch`"):
        load_model("someone/tiny")
    there.append(WEIGHTS)
    assert same(load_model("someone/tiny"), load_model(FIRST))


def test_bfloat16_rounds_what_is_loaded() -> None:
    wide, narrow = load_model(FIRST), load_model(FIRST, "bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), wide.params, narrow.params)


def test_random_weights_have_the_true_shapes_and_differ() -> None:
    first, second = random_model(TINY), random_model(TINY, seed=1)
    assert sum(leaf.size for leaf in jax.tree.leaves(first.params)) == TINY.parameters
    assert not same(first, second)
    assert same(first, random_model(TINY))
    shapes = jax.eval_shape(
        lambda: first.module.init(
            jax.random.key(0), jnp.zeros(3, int), jnp.zeros(3, int), lambda q, k, v, m: (q, m), (None,) * TINY.layers
        )
    )
    assert jax.tree.map(lambda x: x.shape, first.params) == jax.tree.map(lambda x: x.shape, shapes)


def without(tensors: dict[str, np.ndarray], *names: str) -> None:
    for name in names:
        del tensors[f"model.decoder.{name}"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without(t, "layers.0.fc1.bias"), "lacks the tensor `model.decoder.layers.0.fc1.bias`; fetch all"),
        (
            lambda t: without(t, "layers.0.fc1.bias", "layers.0.fc2.bias"),
            "lacks the tensor `model.decoder.layers.0.fc1.bias` and 1 more",
        ),
        (lambda t: t.update({"model.decoder.extra": np.ones(1)}), "has the tensor `model.decoder.extra` that a model"),
        (
            lambda t: t.update({"model.decoder.layers.0.fc1.bias": np.ones(3)}),
            "`model.decoder.layers.0.fc1.bias` has the shape 3, but by `config.json` it is ",
        ),
    ],
)
def test_tensors_that_are_not_the_configurations(
    directory: Path, change: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    rewritten(directory, change)
    assert words in complaint(directory)


def complaint(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert message.startswith(str(directory))
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short(directory: Path, share: float) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert "the weights cannot be read (" in complaint(directory)


def test_a_msgpack_file_cut_short(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "flax_model.msgpack").write_bytes(msgpack_serialize({"model": {"a": np.ones(100)}})[:50])
    assert "the weights cannot be read (" in complaint(directory)


def test_missing_files(tmp_path: Path) -> None:
    sharded = next(path for path in REFERENCES if (path / f"{WEIGHTS}.index.json").exists())
    directory = Path(shutil.copytree(sharded, tmp_path / "sharded"))
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    assert complaint(directory) == f"{shard}: this shard of the checkpoint is missing; fetch it too."
    for wrong in ("{", "{}", "[]", '{"weight_map": {"a": 1}}', "[" * 100_000):
        (directory / f"{WEIGHTS}.index.json").write_text(wrong)
        assert "must be JSON with a `weight_map`" in complaint(directory)
    (directory / f"{WEIGHTS}.index.json").unlink()
    shutil.rmtree(directory)
    directory.mkdir()
    assert "config.json: there is no such file; check the path" in complaint(directory)
    shutil.copy(FIRST / "config.json", directory)
    assert "there are no weights here; it must hold model.safetensors or " in complaint(directory)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(directory: Path) -> None:
    with pytest.raises(
        InputError, match=r"opt-66b in float32 needs 263 GB of memory, and .* GB are free on cpu; choose"
    ):
        random_model("opt-66b")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"hidden_size": 2**18, "ffn_dim": 2**20}))
    (directory / WEIGHTS).unlink()
    assert re_numbers(complaint(directory))


def re_numbers(message: str) -> bool:
    return "GB of memory, and" in message and "choose bfloat16 or a smaller model" in message


def test_other_number_formats() -> None:
    with pytest.raises(InputError, match="number format is float16; choose float32 or bfloat16"):
        random_model(TINY, "float16")
