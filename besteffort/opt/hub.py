"""Finds the files of a model and its tokenizer, in a directory or on the Hugging Face Hub.

The hub and tokenizers need the extra `opt`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from besteffort.errors import InputError

_EXTRA = "install them with `pip install '.[opt]'` in a checkout of besteffort"


def short_name(name: str | Path) -> str:
    """What a model is called: the last part of its name on the hub, or of the path of its directory, such as `.`."""
    path = Path(name)
    return (path.resolve() if path.name in ("", "..") else path).name


def fetch_config(name: str | Path) -> Path:
    """A model's `config.json`, in a directory or downloaded from the hub.

    Raises:
      InputError: if there is no such model, or the hub cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name) / "config.json"
    found = _download(str(name), "config.json")
    if found is None:
        raise InputError(f"{name}: the hub has no `config.json` for it; choose an OPT model.")
    return found


def fetch_weights(name: str | Path, formats: Sequence[str], last: Sequence[str] = ()) -> Path:
    """Directory with a model's weights in the first of `formats` that exists; only that one is downloaded.

    What is in the cache comes before what is to be downloaded.

    Args:
      name: a directory, or a name on the hub.
      formats: file names of checkpoints in order of preference; `<file name>.index.json` lists the shards of a large
        one.
      last: formats that are taken only where neither the cache nor the hub has one of `formats`.

    Raises:
      InputError: if the cache has no checkpoint, and the hub has none or cannot be reached; or if an index is none.
    """
    if Path(name).is_dir():
        return Path(name)
    looks = _cached, _download
    for look, file in (*itertools.product(looks, formats), *itertools.product(looks, last)):
        whole = look(str(name), file)
        if whole is not None:
            return whole.parent
        index = look(str(name), f"{file}.index.json")
        if index is not None:
            for shard in read_index(index):
                _download(str(name), shard)
            return index.parent
    known = ", ".join((*formats, *last))
    raise InputError(f"{name}: the hub has its weights in no known format ({known}); choose another model.")


def read_index(path: Path) -> list[str]:
    """Names of the shards that an index lists, in order.

    Raises:
      InputError: if the file is no index.
    """
    try:
        files = set(json.loads(path.read_bytes())["weight_map"].values())
        if not all(isinstance(file, str) for file in files):
            raise TypeError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(f"{path}: it must be JSON with a `weight_map` of tensors to files; fetch it again.") from None
    return sorted(files)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model: `encode(text)`, `decode(tokens)`; OPT's puts a `</s>` before every text.

    Args:
      name: a directory with the tokenizer's files, or a name on the hub.

    Raises:
      InputError: if transformers is not installed, or there is no tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        raise InputError(f"{name}: a tokenizer needs transformers and tokenizers; {_EXTRA}.") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # tokenizers raises bare ones, and what files of another form raise differs
        raise InputError(f"{name}: there is no tokenizer that can be read ({_reason(error)}); add its files.") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one without the files
        raise InputError(f"{name}: there is no tokenizer; add its files, such as `tokenizer.json`.")
    return tokenizer


def _cached(name: str, file: str) -> Path | None:
    """A model's file from the hub's local cache, without network access."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _download(name: str, file: str) -> Path | None:
    """A model's file on the hub, from the local cache if possible; None if the model has no such file."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such directory, and the hub needs transformers and tokenizers; {_EXTRA}."
        ) from None
    try:
        with quiet_hub():
            return Path(hf_hub_download(name, file))
    except (HFValidationError, OSError, EntryNotFoundError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise InputError(
            f"{name}: no such directory, and the hub does not provide it ({_reason(error)}); "
            "check the name and the network."
        ) from None


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Makes the hub's library log errors only, not every retry."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    """The first sentence of a message."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
