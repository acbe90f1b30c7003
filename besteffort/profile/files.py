"""Reading and writing profile files. Pydantic is imported when a file is read, so that importing this stays light."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from besteffort.errors import InputError
from besteffort.files import write_text
from besteffort.profile.types import Profile

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BUILTIN = importlib.resources.files("besteffort.profile") / "builtin"
# A list of numbers that `json` has spread over lines; strings in JSON hold no line breaks, so only lists match.
_SPREAD_NUMBERS = re.compile(r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]")


def builtin_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package, in alphabetical order."""
    return tuple(sorted(item.name.removesuffix(".json") for item in _BUILTIN.iterdir() if item.name.endswith(".json")))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile in a file, or the built-in one of that name.

    Raises:
      InputError: if there is no such profile, or its file cannot be read, is cut short or does not fit the format.
    """
    where = str(name_or_path)
    try:
        if where in builtin_profiles():
            content = (_BUILTIN / f"{where}.json").read_bytes()
        else:
            content = Path(where).read_bytes()
    except FileNotFoundError:
        names = ", ".join(builtin_profiles())
        raise InputError(f"{where}: no such file; give a profile's path or a built-in name: {names}.") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); give the path of a profile file.") from None
    return _parse(content, where)


def save_profile(profile: Profile, path: str | Path) -> None:
    """Writes the profile as JSON; a file already there is replaced, and only by a complete one.

    Raises:
      InputError: if the file cannot be written.
    """
    text = json.dumps(dataclasses.asdict(profile), indent=2, ensure_ascii=False)
    text = _SPREAD_NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    write_text(path, text + "\n")


def _parse(content: bytes, where: str) -> Profile:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Profile).validate_json(content)
    except ValidationError as error:
        raise InputError(f"{where}: {_sentence(error.errors(include_url=False)[0])}") from None


def _sentence(error: ErrorDetails) -> str:
    """One sentence for pydantic's first complaint: the field's path and the remedy."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    match error["type"]:
        case "json_invalid":
            return f"not valid JSON ({error['ctx']['error']}); complete or repair the file."
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing":
            return f"the field `{field}` is missing; add it."
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown field `{field}`; remove it or correct its spelling."
        case _ if not field:
            return "the file must hold one JSON object with the fields of a profile."
        case _:
            complaint = error["msg"][0].lower() + error["msg"][1:]
            return f"`{field}`: {complaint}, not {json.dumps(error['input'], default=str)[:60]}; correct it."
