"""The shape of an OPT model: the published sizes, and `config.json` files of Hugging Face. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from besteffort.documents import check, parse_json, read_text
from besteffort.errors import InputError
from besteffort.profile.roofline import OPT as ARCHITECTURES
from besteffort.validation import did_you_mean

# Settings of transformers' `OPTConfig` that change the architecture, with their only supported value.
_FIXED = {
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """An OPT model (Zhang et al., arXiv 2205.01068); hashable.

    Attributes:
      vocab: number of tokens, and rows of the embedding, which is also the output layer.
      hidden: width of the residual stream.
      layers, heads: transformer blocks, and attention heads of each.
      ffn: width of the feed-forward layer.
      embedding: width of the token embedding; if it is not `hidden`, projections lead in and out (350M).
      positions: longest sequence in tokens; the learned table begins with two more rows, which are not used.
      norm_first: layer norm before attention and feed-forward layer; otherwise after them (350M).
      final_norm: whether there is a layer norm after the last block.
      stop_tokens: a generated sequence ends with any of these.

    Raises:
      InputError: on a size below 1, or a width that the heads do not divide.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    embedding: int
    positions: int = 2048
    norm_first: bool = True
    final_norm: bool = True
    stop_tokens: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        for name in ("vocab", "hidden", "layers", "heads", "ffn", "embedding", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` of an OPT model is {getattr(self, name)}; it must be at least 1.")
        if self.hidden % self.heads:
            raise InputError(f"An OPT model {self.hidden} wide cannot have {self.heads} heads; they must divide it.")

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def projected(self) -> bool:
        """Whether projections lead from the embedding to the residual stream and back."""
        return self.embedding != self.hidden

    @property
    def parameters(self) -> int:
        """Number of weights, including those of the positions."""
        block = 4 * self.hidden * (self.hidden + 1) + 2 * self.hidden * self.ffn + self.ffn + 5 * self.hidden
        ends = 2 * self.hidden * self.embedding * self.projected + 2 * self.hidden * self.final_norm
        return self.vocab * self.embedding + (self.positions + 2) * self.hidden + self.layers * block + ends

    @property
    def cache_values(self) -> int:
        """Values that the key-value cache holds per token."""
        return 2 * self.layers * self.hidden

    @classmethod
    def from_transformers(cls, fields: Mapping[str, Any], where: str = "config.json") -> OPTConfig:
        """The model that a `config.json`, or `to_dict()` of transformers' `OPTConfig`, describes.

        Missing fields have that class's defaults.

        Raises:
          InputError: naming `where`, if a field is of the wrong type or describes no supported OPT model.
        """
        if fields.get("model_type", "opt") != "opt":
            raise InputError(f"{where}: `model_type` is {fields['model_type']!r}; only OPT models can be run.")
        for name, value in _FIXED.items():
            if fields.get(name, value) != value:
                raise InputError(f"{where}: `{name}` is {fields[name]!r}; only {value!r} is supported.")

        def number(name: str, default: int) -> int:
            value = fields.get(name)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{where}: `{name}` is {value!r}; it must be an integer.")
            return value

        def flag(name: str, default: bool) -> bool:
            value = fields.get(name, default)
            if not isinstance(value, bool):
                raise InputError(f"{where}: `{name}` is {value!r}; it must be true or false.")
            return value

        hidden = number("hidden_size", 768)
        norm_first = flag("do_layer_norm_before", True)
        stop = fields.get("eos_token_id", 2)
        stop = () if stop is None else stop if isinstance(stop, list | tuple) else (stop,)
        if not all(isinstance(token, int) for token in stop):
            raise InputError(f"{where}: `eos_token_id` is {fields['eos_token_id']!r}; it must be a token or several.")
        try:
            return cls(
                vocab=number("vocab_size", 50272),
                hidden=hidden,
                layers=number("num_hidden_layers", 12),
                heads=number("num_attention_heads", 12),
                ffn=number("ffn_dim", 3072),
                embedding=number("word_embed_proj_dim", hidden),
                positions=number("max_position_embeddings", 2048),
                norm_first=norm_first,
                final_norm=norm_first and not flag("_remove_final_layer_norm", False),
                stop_tokens=tuple(stop),
            )
        except InputError as error:
            raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None


def read_config(path: str | Path) -> OPTConfig:
    """The model that a `config.json` describes.

    Raises:
      InputError: if the file cannot be read, is no JSON object, or describes no supported OPT model.
    """
    fields = parse_json(read_text(path), str(path))
    check(fields, str(path))
    if not isinstance(fields, dict):
        raise InputError(f"{path}: the file must hold one JSON object, as transformers writes it.")
    return OPTConfig.from_transformers(fields, str(path))


def _published(name: str) -> OPTConfig:
    shape = ARCHITECTURES[name]
    small = name == "opt-350m"
    return OPTConfig(
        vocab=shape.vocab,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        ffn=shape.ffn,
        embedding=512 if small else shape.hidden,
        norm_first=not small,
        final_norm=not small,
    )


PUBLISHED = {name: _published(name) for name in ARCHITECTURES}
"""The published sizes, by name: `opt-125m` to `opt-66b`."""


def published(name: str) -> OPTConfig:
    """The published size of that name; a prefix such as `facebook/` is ignored.

    Raises:
      InputError: if there is none.
    """
    short = name.rsplit("/", 1)[-1].lower()
    if short not in PUBLISHED:
        raise InputError(
            f"`{name}` is no published OPT size{did_you_mean(short, tuple(PUBLISHED))}; choose from "
            f"{', '.join(PUBLISHED)}."
        )
    return PUBLISHED[short]
