"""Configurations: YAML files read into typed, frozen dataclasses.

A file that does not fit its dataclass is refused with one sentence that names the file, the field, what it should be
and what it is, see `besteffort.validation`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from annotated_types import Len

from besteffort.documents import MOST_YAML_BYTES, check, parse_yaml, read_text
from besteffort.errors import InputError, brief
from besteffort.files import os_errors_as_input_errors, write_text
from besteffort.pools import Pool
from besteffort.profile import builtin_profiles, load_profile
from besteffort.runs.renamed import refuse_renamed, refuse_renamed_fields
from besteffort.situation import Cluster, Origin, Reward, Situation, Task, Tenant, View
from besteffort.validation import as_data, did_you_mean, from_json

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SituationConfig:
    """A situation as a file states it.

    Attributes:
      profile: name of a built-in profile, or path of a profile file. In a configuration's file the path counts from
        that file, elsewhere from the working directory.
      tasks: what is asked for.
      cluster: what serves, where all machines are alike.
      origins: where requests come from, for pools that state `delays`.
      tenants: whose requests they are, and how much they count.
      pools: what serves, where they are not; `hardware` of one is a profile, named like `profile`.
      reward: what counts.
      view: what the router sees.
    """

    profile: str
    tasks: Annotated[tuple[Task, ...], Len(1)]
    cluster: Cluster = Cluster()
    reward: Reward = Reward()
    view: View = View()
    pools: tuple[Pool, ...] = ()
    origins: tuple[Origin, ...] = ()
    tenants: tuple[Tenant, ...] = ()

    def build(self) -> Situation:
        """The situation, with its profile loaded.

        Raises:
          InputError: if a profile cannot be loaded or lacks a task, or pools do not fit, see `Situation`.
        """
        devices = {pool.hardware: load_profile(pool.hardware) for pool in self.pools if pool.hardware is not None}
        own = load_profile(self.profile)
        pools = tuple(
            pool if pool.hardware is None else dataclasses.replace(pool, hardware=devices[pool.hardware].name)
            for pool in self.pools
        )
        others = dict.fromkeys(device for device in devices.values() if device != own)
        return Situation(
            profile=own,
            cluster=self.cluster,
            tasks=self.tasks,
            reward=self.reward,
            view=self.view,
            pools=pools,
            hardware=tuple(others),
            origins=self.origins,
            tenants=self.tenants,
        )


RUN_SECTIONS = ("training", "evaluation")
"""Sections of a file that a situation does not need, see `besteffort.runs.experiment`."""


CHANGES = "`changes`"
"""What messages call changes to a configuration that do not come from elsewhere, such as `--set`."""


def load_situation(
    path_or_name: str | Path, *, changes: Mapping[str, Any] | None = None, changes_from: str = CHANGES
) -> Situation:
    """Situation from a YAML file, or from one of the configurations that come with the package (`paper`).

    The sections `training` and `evaluation` may stand in the file; they are not read.

    Args:
      path_or_name: path of a file, or the name of a configuration that comes with the package.
      changes: other values by dotted field, such as `tasks.piqa.weight`; see `places`.
      changes_from: what messages call these changes.

    Raises:
      InputError: if the file or its profile is missing, does not fit, or changes do not fit it.
    """
    path = find_config(path_or_name)
    data = read_yaml(path)
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in RUN_SECTIONS}
    config = apply_changes(placed(from_mapping(SituationConfig, data, str(path)), path), changes, changes_from)
    return build_situation(config, described(path, changes, changes_from))


def described(path: Path, changes: Mapping[str, Any] | None, changes_from: str) -> str:
    """What messages call the configuration in a file, changed or not."""
    return f"{path} with {changes_from}" if changes else str(path)


def build_situation(config: SituationConfig, where: str) -> Situation:
    """`config.build()`; `config` was read from `where`, which errors name.

    Raises:
      InputError: as `SituationConfig.build`.
    """
    try:
        return config.build()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def load_config(path_or_name: str | Path, cls: type[T]) -> T:
    """Reads a YAML file into the dataclass `cls`.

    Args:
      path_or_name: path of a file, or the name of a configuration that comes with the package.
      cls: a frozen dataclass; fields may be dataclasses, tuples and annotated numbers.

    Raises:
      InputError: if the file is missing, is not YAML, repeats a key, or does not fit `cls`.
    """
    path = find_config(path_or_name)
    return placed(from_mapping(cls, read_yaml(path), str(path)), path)


def placed(config: T, path: Path) -> T:
    """A configuration that was read from a file, the paths in it counted from the working directory instead."""
    return _with_paths(config, lambda file: _normal(path.parent / file))


def write_config(path: Path, config: Any, *, head: str = "") -> None:
    """Writes a configuration, every field, which `load_config` reads back from wherever the two files are moved to.

    Args:
      path: the file.
      config: the configuration, whose paths count from the working directory.
      head: comments in front.

    Raises:
      InputError: if the file cannot be written.
    """
    write_text(path, head + config_text(path, config))


def config_text(path: Path, config: Any) -> str:
    """What `write_config` writes to a file."""

    def beside(file: str) -> str:
        elsewhere = Path(file).is_absolute() and not Path(file).is_relative_to(path.parent.absolute())
        relative = os.path.relpath(file, path.parent)
        # Where the directory is behind a symbolic link, its `..` is another one.
        if os.path.realpath(path.parent / relative) != os.path.realpath(file):
            return str(Path(file).absolute())
        return file if elsewhere else relative

    return to_yaml(_with_paths(config, beside))


def located(config: T) -> T:
    """A configuration with absolute paths, so that others can be compared with it."""
    return _with_paths(config, os.path.realpath)


def _with_paths(config: T, change: Callable[[str], str]) -> T:
    """The configuration with other paths, of profiles and wherever else it states any."""
    config = _with_files(config, change)
    if not isinstance(config, SituationConfig):
        return config
    builtin = builtin_profiles()

    def changed(profile: str) -> str:
        return profile if profile in builtin else change(profile)

    pools = tuple(
        pool if pool.hardware is None else dataclasses.replace(pool, hardware=changed(pool.hardware))
        for pool in config.pools
    )
    return dataclasses.replace(config, profile=changed(config.profile), pools=pools)


def _with_files(value: Any, change: Callable[[str], str]) -> Any:
    """A part of a configuration with others in place of its fields of type `Path`."""
    if isinstance(value, Path):
        return Path(change(str(value)))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    changed = {name: _with_files(inner, change) for name, inner in fields.items()}
    news = {name: inner for name, inner in changed.items() if inner is not fields[name]}
    return dataclasses.replace(value, **news) if news else value


def _normal(path: Path) -> str:
    return str(path) if path.is_absolute() else os.path.normpath(path)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain data.

    Raises:
      InputError: if the file is missing or too large, is not YAML, or repeats a key; see `parse_yaml`.
    """
    return parse_yaml(read_text(path, MOST_YAML_BYTES), str(path))


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """Fills the dataclass `cls` from plain data (mappings, lists, numbers, strings), read from `where`.

    Raises:
      InputError: if the data do not fit.
    """
    check(data, where)
    refuse_renamed_fields(data, where)
    return from_json(cls, json.dumps(data, default=_plain), where)


def to_yaml(config: Any) -> str:
    """YAML text of a configuration, every field written out; files are written with `write_config`."""
    return yaml.safe_dump(as_data(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Values by dotted field, from the texts `field=value` of the option `--set`; values are YAML.

    Raises:
      InputError: if a text has no field or no value, a value is not YAML, or a field is given twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not (name and value):
            raise InputError(
                f"`--set {brief(text)}` lacks a field or its value; write it like `--set cluster.replicas=2`, and "
                "`null` for no value."
            )
        if name in changes:
            raise InputError(f"`--set` gives `{name}` twice; leave one of them out.")
        changes[name] = parse_yaml(value, f"`--set {brief(text)}`")
    return changes


def apply_changes(config: T, changes: Mapping[str, Any] | None, where: str) -> T:
    """A configuration with other values at some dotted fields, which are named as in `places`.

    Args:
      config: the configuration, a dataclass that `load_config` reads.
      changes: values by field.
      where: what messages call the changes.

    Raises:
      InputError: if there is no such field, or a value does not fit it.
    """
    if not changes:
        return config
    refuse_renamed(changes, where)
    try:
        data = with_changes(as_data(config), changes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return from_mapping(type(config), data, where)


def with_changes(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration's data with other values at some dotted fields.

    Raises:
      InputError: if there is no such field.
    """
    data = copy.deepcopy(data)
    for name, value in changes.items():
        for *parents, last in places(data, name):
            inner: Any = data
            for part in parents:
                inner = inner[part]
            # A copy for each place, so that a later change of one leaves the others alone.
            inner[last] = copy.deepcopy(value)
    return data


def places(data: Any, name: str) -> list[tuple[str | int, ...]]:
    """Paths of a dotted field in a configuration's data.

    Args:
      data: as from `besteffort.validation.as_data`.
      name: the field; of a list's entries, `*` means all, and a number or an entry's `name` means one.

    Raises:
      InputError: if there is no such field.
    """
    parts = name.split(".")
    found: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    for depth, part in enumerate(parts):
        where = f"`{name}`: `{'.'.join(parts[:depth])}`" if depth else f"`{name}`: a configuration"
        deeper: list[tuple[tuple[str | int, ...], Any]] = []
        for place, inner in found:
            if isinstance(inner, dict):
                # Missing numbers of the training have defaults; reading the configuration finds unknown names.
                if part not in inner and place != ("training", "hyper"):
                    known = tuple(inner)
                    raise InputError(
                        f"{where} has no field `{part}`{did_you_mean(part, known)}; known are {', '.join(known)}."
                    )
                deeper.append(((*place, part), inner.get(part)))
            elif isinstance(inner, list):
                entries = [
                    index
                    for index, entry in enumerate(inner)
                    if part in ("*", str(index)) or (isinstance(entry, dict) and part == entry.get("name"))
                ]
                if not entries:
                    raise InputError(
                        f"{where} has no entry `{part}`; give `*` for all, a name or a number below {len(inner)}."
                    )
                deeper += [((*place, index), inner[index]) for index in entries]
            else:
                raise InputError(f"{where} is {json.dumps(inner)} and has no fields; change it as a whole.")
        found = deeper
    return [place for place, _ in found]


def config_names(folder: str = "") -> tuple[str, ...]:
    """Names of the configurations that come with the package, or of the files in a folder next to them."""
    return tuple(sorted(path.stem for path in (_builtin_directory() / folder).glob("*.yaml")))


def find_config(path_or_name: str | Path, folder: str = "") -> Path:
    """Path of a configuration; a bare word is the name of one that comes with the package (in `folder`).

    Raises:
      InputError: if there is no configuration of that name.
    """
    path = Path(path_or_name)
    with os_errors_as_input_errors(path, "read"):
        if path.suffix or len(path.parts) != 1 or path.is_file():
            return path
    names = config_names(folder)
    if path.name not in names:
        raise InputError(
            f"{path}: no configuration of this name{did_you_mean(path.name, names)}; "
            f"give the path of a YAML file or one of {', '.join(names)}."
        )
    return _builtin_directory() / folder / f"{path}.yaml"


def _builtin_directory() -> Path:
    """`configs/` lies inside an installed package, and next to the package in a checkout."""
    package = Path(str(importlib.resources.files("besteffort")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _plain(value: Any) -> Any:
    """A number of NumPy's, a path or anything else that a caller may put among plain data."""
    return value.item() if hasattr(value, "item") else str(value)
