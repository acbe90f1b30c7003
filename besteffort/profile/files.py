"""Reads and writes profile files. Only reading a file imports pydantic, so importing this module stays light."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path

from besteffort.documents import read_text
from besteffort.errors import InputError
from besteffort.files import write_text
from besteffort.profile.types import Profile, as_written

_BUILTIN = importlib.resources.files("besteffort.profile") / "builtin"
# A list of numbers that `json` has spread over lines; strings in JSON hold no line breaks, so only lists match.
_SPREAD_NUMBERS = re.compile(r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]")


def builtin_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package, in alphabetical order."""
    return tuple(sorted(item.name.removesuffix(".json") for item in _BUILTIN.iterdir() if item.name.endswith(".json")))


def load_profile(name_or_path: str | Path) -> Profile:
    """Loads the profile in a file, or the built-in profile of that name.

    Raises:
      InputError: if there is no such profile, or its file cannot be read, is cut short or does not fit the format.
    """
    where = str(name_or_path)
    try:
        if where in builtin_profiles():
            content = (_BUILTIN / f"{where}.json").read_bytes()
        else:
            content = read_text(where).encode()
    except InputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        names = ", ".join(builtin_profiles())
        raise InputError(f"{where}: no such file; give a profile's path or a built-in name: {names}.") from None
    from besteffort.validation import from_json

    return from_json(Profile, content, where)


def save_profile(profile: Profile, path: str | Path) -> None:
    """Writes the profile as JSON, atomically; replaces an existing file.

    Raises:
      InputError: if the file cannot be written.
    """
    text = json.dumps(as_written(profile), indent=2, ensure_ascii=False)
    text = _SPREAD_NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    write_text(path, text + "\n")
