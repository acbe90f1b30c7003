"""Everything that has a name, with a sentence on each. Needs no JAX, and runs no code of experiments."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from besteffort.errors import InputError
from besteffort.profile import builtin_profiles, load_profile
from besteffort.routers.names import ROUTER_NAMES
from besteffort.runs.config import config_names, find_config

Entries = tuple[tuple[str, str], ...]
"""Names, each with a sentence."""

CHECKOUT = Path(__file__).resolve().parent.parent
"""The directory that holds the package; of a checkout, it holds `experiments` too."""


def configurations() -> Entries:
    """Configurations that come with the package, each with the first line of its file."""
    return tuple((name, _first_comment(find_config(name))) for name in config_names())


def sweeps() -> Entries:
    """Sweeps that come with the package, each with the first line of its file."""
    return tuple((name, _first_comment(find_config(name, "sweeps"))) for name in config_names("sweeps"))


def profiles() -> Entries:
    """Built-in profiles: device, models, and where the figures come from."""
    loaded = [load_profile(name) for name in builtin_profiles()]
    return tuple(
        (each.name, f"{each.device}: {', '.join(each.model_names)}; {each.provenance.summary}.") for each in loaded
    )


def routers() -> Entries:
    """Routers that do not learn, and the settings that they take."""
    return tuple(
        (name, f"{about.description} Takes {', '.join(about.settings) or 'no settings'}.")
        for name, about in ROUTER_NAMES.items()
    )


def has_experiments() -> bool:
    """Whether the package lies in a checkout."""
    return (CHECKOUT / "experiments" / "__main__.py").is_file()


def experiments() -> Entries:
    """Experiments of the checkout, each with the first sentence of its file.

    Raises:
      InputError: if this is no checkout.
    """
    if not has_experiments():
        raise InputError("Experiments are files of the repository, and this is no checkout of it; clone it first.")
    found = []
    for path in sorted((CHECKOUT / "experiments").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        # A module that others import has no command of its own.
        if f"python -m experiments.{path.stem}" in text:
            found.append((path.stem, " ".join(text.partition("\n\n")[0].split())))
    return tuple(found)


KINDS: Mapping[str, Callable[[], Entries]] = {
    "configurations": configurations,
    "profiles": profiles,
    "routers": routers,
    "experiments": experiments,
    "sweeps": sweeps,
}


def entries(kinds: Sequence[str] = ()) -> dict[str, Entries]:
    """Entries of the named kinds; by default of all, without experiments where there is no checkout.

    Raises:
      InputError: if experiments are named and this is no checkout.
    """
    there = [kind for kind in KINDS if kind != "experiments" or has_experiments()]
    return {kind: KINDS[kind]() for kind in (kinds or there)}


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
