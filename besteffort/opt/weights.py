"""Weights of OPT models: from checkpoints in the formats of the Hugging Face Hub, or random ones of the true shapes.

Formats, in order of preference: safetensors, Flax msgpack, PyTorch (only where torch is installed); each in one file or
in several with an index. Tensors are read, converted and put on the device one at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.device import check_fits
from besteffort.errors import InputError
from besteffort.opt.config import OPTConfig, published, read_config
from besteffort.opt.hub import fetch_config, fetch_weights, read_index
from besteffort.opt.memory import weight_bytes
from besteffort.opt.model import OPT, Params

_TORCH = "pytorch_model.bin"

FORMATS = ("model.safetensors", "flax_model.msgpack", _TORCH)
"""File names of checkpoints; a sharded one has an index next to its shards, named `<file name>.index.json`."""

_EMBEDDING = "model.decoder.embed_tokens.weight"

# The output layer, which some checkpoints store in addition to the embedding, or in its place.
_TIED = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint, in PyTorch's names and layout.

    Attributes:
      shape: shape of the tensor.
      read: returns it as a NumPy array.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that can run.

    Attributes:
      name: directory or hub name that it was loaded from.
      config: shape of the model.
      module: the Flax module.
      params: its weights, on the device.
    """

    name: str
    config: OPTConfig
    module: OPT
    params: Params

    @property
    def dtype(self) -> Any:
        return self.module.dtype


def load_model(name: str | Path, dtype: Any = jnp.float32) -> Model:
    """Loads a model from a directory in the format of transformers, or from the Hugging Face Hub by name.

    Args:
      name: directory with a `config.json` and weights, or a name on the hub such as `facebook/opt-125m`.
      dtype: `float32` or `bfloat16`, independent of the type in the file.

    Raises:
      InputError: if there is no such model, its files are cut short, its tensors do not match its configuration, or it
        does not fit in memory (checked before any weight is read).
    """
    _check_dtype(dtype)
    config = read_config(fetch_config(name))
    _check_memory(str(name), config, dtype)
    # Other programs may have left PyTorch's file in the cache; without PyTorch it is of no use where there is another.
    last = () if _has_torch() else (_TORCH,)
    directory = fetch_weights(name, [each for each in FORMATS if each not in last], last)
    tensors = read_tensors(directory)
    if _TIED in tensors and _EMBEDDING not in tensors:
        # The two are one; transformers drops either of them.
        tensors[_EMBEDDING] = tensors.pop(_TIED)
    plan = _plan(config)
    _check(tensors, plan, directory)
    params = {path: _assemble([tensors[source] for source in sources], dtype) for path, (sources, _) in plan.items()}
    if _TIED in tensors:
        _check_tied(tensors, directory)
    return Model(str(name), config, OPT(config, jnp.dtype(dtype)), _nested(params))


def random_model(size: str | OPTConfig, dtype: Any = jnp.float32, seed: int = 0) -> Model:
    """A model with random weights, as fast as a trained one of its shape: for timing and tests.

    Args:
      size: name of a published size, or a shape.
      dtype: `float32` or `bfloat16`.
      seed: seed of the weights.

    Raises:
      InputError: if there is no such size, or it does not fit in memory.
    """
    name, config = (size, published(size)) if isinstance(size, str) else ("random", size)
    _check_dtype(dtype)
    _check_memory(name, config, dtype)
    key = jax.random.key(seed)
    params = {}
    for number, (path, (_, shape)) in enumerate(_plan(config).items()):
        if path[-1] in ("scale", "bias"):
            params[path] = jnp.full(shape, float(path[-1] == "scale"), dtype)
        else:
            params[path] = _normal(jax.random.fold_in(key, number), shape, jnp.dtype(dtype))
    return Model(name, config, OPT(config, jnp.dtype(dtype)), _nested(params))


def to_checkpoint(model: Model) -> dict[str, np.ndarray]:
    """The weights in the names and layout of transformers' `OPTForCausalLM`, which `load_model` reads."""
    from flax.traverse_util import flatten_dict

    params = flatten_dict(model.params["params"])
    tensors: dict[str, np.ndarray] = {}
    for path, (sources, _) in _plan(model.config).items():
        parts = np.split(np.asarray(params[path]), len(sources))
        tensors |= dict(zip(sources, parts, strict=True))
    return tensors


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of the checkpoint in a directory, by their names in transformers' `OPTForCausalLM`.

    Raises:
      InputError: if there is no checkpoint, or it cannot be read.
    """
    readers = dict(zip(FORMATS, (_safetensors, _msgpack, _torch), strict=True))
    for name, reader in readers.items():
        if (directory / name).is_file():
            return _read_file(reader, directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors |= _read_file(reader, shard)
            return tensors
    raise InputError(f"{directory}: there are no weights here; it must hold {' or '.join(FORMATS)}, or their index.")


def _shards(index: Path) -> list[Path]:
    """The files that an index lists, in order."""
    files = read_index(index)
    for file in files:
        if not (index.parent / file).is_file():
            raise InputError(f"{index.parent / file}: this shard of the checkpoint is missing; fetch it too.")
    return [index.parent / file for file in files]


def _read_file(reader: Callable[[Path], dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """Reads a file; turns names of `OPTModel` into those of `OPTForCausalLM`, and errors into one sentence."""
    from safetensors import SafetensorError

    try:
        tensors = reader(path)
    except InputError:
        raise
    except (SafetensorError, ValueError, EOFError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{path}: the weights cannot be read ({reason}); fetch the file again.") from error
    return {f"model.{name}" if name.startswith("decoder.") else name: tensor for name, tensor in tensors.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="numpy")
    return {
        name: Tensor(tuple(file.get_slice(name).get_shape()), functools.partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118 (no mapping)
    }


def _msgpack(path: Path) -> dict[str, Tensor]:
    """Reads the format of transformers' Flax models, which has other names and transposed matrices."""
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    tensors = {}
    for name, value in flatten_dict(msgpack_restore(path.read_bytes()), sep=".").items():
        stem, leaf = name.rsplit(".", 1)
        value = value.T if leaf == "kernel" else value
        renamed = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
        tensors[renamed] = Tensor(value.shape, functools.partial(np.asarray, value))
    return tensors


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _torch(path: Path) -> dict[str, Tensor]:
    if not _has_torch():
        raise InputError(
            f"{path}: reading PyTorch's format needs PyTorch; install `torch`, or save the model as safetensors."
        )
    import pickle

    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error

    def read(name: str) -> np.ndarray:
        return tensors[name].to(torch.float32).numpy()

    return {name: Tensor(tuple(tensor.shape), functools.partial(read, name)) for name, tensor in tensors.items()}


_Path = tuple[str, ...]


def _plan(config: OPTConfig) -> dict[_Path, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Per weight of `OPT` the tensors that are concatenated into it, and its shape."""
    hidden, ffn = config.hidden, config.ffn
    plan: dict[_Path, tuple[tuple[str, ...], tuple[int, ...]]] = {
        ("tokens",): ((_EMBEDDING,), (config.vocab, config.embedding)),
        ("positions",): (("model.decoder.embed_positions.weight",), (config.positions + 2, hidden)),
    }

    def linear(path: _Path, stems: tuple[str, ...], shape: tuple[int, int], bias: bool = True) -> None:
        plan[*path, "kernel"] = tuple(f"{stem}.weight" for stem in stems), shape
        if bias:
            plan[*path, "bias"] = tuple(f"{stem}.bias" for stem in stems), shape[:1]

    def norm(path: _Path, stem: str) -> None:
        plan[*path, "scale"] = (f"{stem}.weight",), (hidden,)
        plan[*path, "bias"] = (f"{stem}.bias",), (hidden,)

    if config.projected:
        linear(("project_in",), ("model.decoder.project_in",), (hidden, config.embedding), bias=False)
        linear(("project_out",), ("model.decoder.project_out",), (config.embedding, hidden), bias=False)
    for number in range(config.layers):
        block, stem = f"blocks_{number}", f"model.decoder.layers.{number}"
        linear((block, "qkv"), tuple(f"{stem}.self_attn.{name}_proj" for name in "qkv"), (3 * hidden, hidden))
        linear((block, "out"), (f"{stem}.self_attn.out_proj",), (hidden, hidden))
        linear((block, "up"), (f"{stem}.fc1",), (ffn, hidden))
        linear((block, "down"), (f"{stem}.fc2",), (hidden, ffn))
        norm((block, "attention_norm"), f"{stem}.self_attn_layer_norm")
        norm((block, "mlp_norm"), f"{stem}.final_layer_norm")
    if config.final_norm:
        norm(("final_norm",), "model.decoder.final_layer_norm")
    return plan


def _check(tensors: Mapping[str, Tensor], plan: Mapping[_Path, Any], where: Path) -> None:
    """Raises `InputError` if tensors are missing, unknown or of another shape than in the configuration."""
    expected = {}
    for sources, shape in plan.values():
        for source in sources:
            expected[source] = (shape[0] // len(sources), *shape[1:])
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InputError(
            f"{where}: the checkpoint lacks {_listed(missing)}; fetch all of it and the `config.json` of its model."
        )
    extra = [name for name in tensors if name not in expected and name != _TIED]
    if extra:
        raise InputError(
            f"{where}: the checkpoint has {_listed(extra)} that a model of its `config.json` has not; use the "
            "configuration that goes with the weights."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(
                f"{where}: the tensor `{name}` has the shape {_shape(tensors[name].shape)}, but by `config.json` it is "
                f"{_shape(shape)}; use the configuration that goes with the weights."
            )


def _check_tied(tensors: Mapping[str, Tensor], where: Path) -> None:
    if not np.array_equal(tensors[_TIED].read(), tensors[_EMBEDDING].read()):
        raise InputError(f"{where}: `{_TIED}` is not the token embedding; only models that share them can be run.")


def _assemble(parts: list[Tensor], dtype: Any) -> jax.Array:
    """One weight on the device; a copy, so that no file stays open."""
    arrays = [part.read() for part in parts]
    return jnp.array(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), dtype)


def _nested(params: Mapping[_Path, jax.Array]) -> Params:
    from flax.traverse_util import unflatten_dict

    return {"params": unflatten_dict(dict(params))}


def _check_dtype(dtype: Any) -> None:
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise InputError(f"The number format is {jnp.dtype(dtype).name}; choose float32 or bfloat16.")


def _check_memory(name: str, config: OPTConfig, dtype: Any) -> None:
    remedy = "choose a smaller model" if dtype == jnp.bfloat16 else "choose bfloat16 or a smaller model"
    check_fits(f"{name} in {jnp.dtype(dtype).name}", weight_bytes(config, dtype), remedy)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the tensor `{names[0]}`{more}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if math.prod(shape) and shape else str(shape)
