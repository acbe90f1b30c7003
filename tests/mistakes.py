"""Bad input, made from good input: every field of every file by every kind of mistake; see `test_mistakes.py`.

    python -m tests.mistakes

prints how many there are of each kind, and each sentence that they get with `--sentences`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import yaml

from besteffort import policy as policies
from besteffort.errors import InputError
from besteffort.learning import checkpoint
from besteffort.policy import load_policy, save_policy
from besteffort.profile import load_profile
from besteffort.runs.experiment import load_run
from besteffort.runs.trackers import MetricsLog
from besteffort.runs.untrained import default_policy
from besteffort.sweep.plan import load_sweep, make_plan
from besteffort.sweep.program import read_programs
from besteffort.validation import as_data

CONFIG = """
profile: opt-a100
cluster: {replicas: 2, max_batch: 8, queue_capacity: 8}
tasks:
- {name: piqa, mean_prompt_tokens: 100, mean_output_tokens: 20, output_quantiles: [15, 25]}
- {name: arc_easy}
training:
  workload: {kind: random_rates, deadlines: {factors: [1.0, 2.0], starts_s: [0.0, 5.0], period_s: 10.0}}
  config: {hidden_sizes: [8]}
  hyper: {tau: 0.5, learning_rate: 0.001, horizon_s: 0.25, target_interval: 256}
evaluation:
  burst: {kind: markov, loads: [0.5, 4.0], dwell_s: [4.0, 2.0]}
"""
POOLS = """
profile: opt-a100
tasks: [{name: piqa}]
origins: [{name: near}]
tenants: [{name: gold, weight: 2.0, share: 1.0}]
pools:
- name: large
  model: opt-1.3b
  replicas: 2
  gpus: [0, 1]
  delays: [{origin: near, network_delay_s: 0.01}]
  start_s: 30.0
  events: [{time_s: 10.0, replica: 0, what: fail}, {time_s: 11.0, replica: 0, what: start}]
- name: scaled
  model: opt-125m
  replicas: 3
  autoscaler: {interval_s: 15.0, min_replicas: 2, max_replicas: 3, schedule: [{time_s: 60.0, replicas: 3}]}
"""
SWEEP = """
base: {base}
axes:
  training.hyper.learning_rate: {{log_uniform: [0.0001, 0.01]}}
  cluster.replicas: [2, 3]
samples: 2
seed: 1
judge: {{lists: bursts, situation: own}}
"""


class Mistake(NamedTuple):
    """Bad input.

    Attributes:
      kind: what is wrong.
      file: what the sentence has to name, besides the field.
      field: dotted name of the field; of the last part that is a word, the sentence has to name one.
      read: meets the mistake.
    """

    kind: str
    file: str
    field: str
    read: Callable[[], object]


def leaves(data: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Path and value of everything in plain data but the whole, containers included."""
    if place:
        yield place, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*place, key))


def bad_values(value: Any) -> Iterator[tuple[str, Any]]:
    """By kind of mistake what no field that holds `value` may hold."""
    match value:
        case bool():
            yield "another type", "yes"
            yield "another type", 1
        case int() | float():
            yield "another type", "many"
            yield "another type", [1]
            yield "not finite", float("nan")
            yield "not finite", float("inf")
            yield "far out of range", -(10**30)
            yield "far out of range", 10**30 if isinstance(value, int) else 1e308
            yield "numbers of YAML 1.1", "1_0"
            yield "numbers of YAML 1.1", "1:30"
        case str():
            yield "another type", 3
            yield "another type", ["a"]
            yield "escapes for a terminal", "\x1b[2J\nx" * 40
        case list():
            yield "another type", "x"
            yield "another type", {"a": 1}
        case dict():
            yield "another type", "x"
            yield "another type", [1]
            yield "unknown field", {**value, "colour": 1}


def with_value(data: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of plain data with another value at a place."""
    data = copy.deepcopy(data)
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return data


def dotted(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place))


# Words that may be anything, since nothing but a reader takes them; they are shown escaped.
_FREE_TEXT = {"device", "metric", "source", "method", "dtype", "date", "version", "libraries", "name"}


def in_files(
    data: Any, suffix: str, directory: Path, read: Callable[[Path], object], dump: Callable[[Any], str]
) -> Iterator[Mistake]:
    """Mistakes in every field of a file that holds `data`."""

    def made(number: int, kind: str, field: str, content: Any, text: str | None = None) -> Mistake:
        path = directory / f"{number}{suffix}"

        def meet() -> object:
            path.write_bytes((dump(content) if text is None else text).encode("utf-8", "surrogatepass"))
            try:
                return read(path)
            finally:
                path.unlink()

        return Mistake(kind, path.name, field, meet)

    number = 0
    for place, value in leaves(data):
        words = {part for part in place if isinstance(part, str)}
        if "libraries" in words or (place and place[0] == "training" and suffix == ".safetensors"):
            continue
        for kind, bad in bad_values(value):
            if kind == "escapes for a terminal" and words & (_FREE_TEXT - {"name"}):
                continue
            if suffix != ".yaml" and kind == "numbers of YAML 1.1":
                continue
            number += 1
            yield made(number, kind, dotted(place), with_value(data, place, bad))
    for kind, text in documents(dump(data), suffix).items():
        number += 1
        yield made(number, kind, "", None, text)


def documents(good: str, suffix: str) -> dict[str, str]:
    """Texts that are no such document at all."""
    found = {
        "cut short": good[: len(good) // 2].rstrip("]}") + ("" if suffix == ".json" else "\n  [{"),
        "empty": "",
        "bytes that are no text": "\ud800",
        "another document": "[1, 2]",
        "a repeated key": '{"a": 1, "a": 2}',
        "nesting": "[" * 800 + "]" * 800,
        "digits": '{"a": ' + "9" * 5000 + "}",
        "too large": " " * (17 * 2**20),
    }
    if suffix == ".yaml":
        aliases = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]" for i in range(9)]
        found |= {"aliases": "\n".join(aliases), "a cycle": "a: &a [*a]", "a tag": "a: !!python/name:os.system"}
    return found


def configurations(directory: Path) -> Iterator[Mistake]:
    path = directory / "good.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    data = as_data(load_run(path)[0])
    yield from in_files(data, ".yaml", directory, load_run, lambda data: yaml.safe_dump(data, allow_unicode=True))
    for place, value in leaves(data):  # the same by an option
        if isinstance(value, int | float) and not isinstance(value, bool):
            change = {dotted(place): float("nan")}
            yield Mistake(
                "changes", "`--set`", dotted(place), lambda c=change: load_run(path, changes=c, changes_from="`--set`")
            )


def pools(directory: Path) -> Iterator[Mistake]:
    path = directory / "good.yaml"
    path.write_text(POOLS, encoding="utf-8")
    data = {name: as_data(load_run(path)[0])[name] for name in yaml.safe_load(POOLS)}
    yield from in_files(data, ".yaml", directory, load_run, lambda data: yaml.safe_dump(data, allow_unicode=True))


def profiles(directory: Path) -> Iterator[Mistake]:
    profile = load_profile("opt-a100")
    two = profile.select(profile.model_names[:2])
    two = dataclasses.replace(two, tasks=two.tasks[:1])
    short = tuple(
        dataclasses.replace(m, decode=m.decode[:2], prefill=m.prefill[:2], cache_tokens=9, weights_gb=2.5)
        for m in two.models
    )
    data = as_data(dataclasses.replace(two, models=short, memory_gb=24.0, load_gb_per_s=1.5))
    yield from in_files(data, ".json", directory, load_profile, json.dumps)


def signed_policies(directory: Path) -> Iterator[Mistake]:
    """Policies whose metadata say something wrong and are signed all the same."""
    path = directory / "good.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    _, situation = load_run(path)
    save_policy(default_policy(situation), directory / "good.safetensors")
    with safetensors.safe_open(directory / "good.safetensors", framework="numpy") as file:
        metadata = json.loads(file.metadata()["besteffort"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["sha256"]
    number = 0
    for place, value in leaves(metadata):
        skipped = {"training", "version", "libraries", "provenance", "models", "profile"} & {*map(str, place[:-1])}
        if skipped or place == ("version",) or any(isinstance(part, int) and part > 0 for part in place):
            continue
        for kind, bad in [*bad_values(value), ("another type", None)]:
            optional = {"output_quantiles", "mean_prompt_tokens", "mean_output_tokens", "cache_tokens"}
            if (bad is None and place[-1] in optional) or kind in ("escapes for a terminal", "numbers of YAML 1.1"):
                continue
            if kind == "not finite" or (place == ("training",) and isinstance(bad, dict)):
                continue
            number += 1
            changed = with_value(metadata, place, bad)
            file_name = f"signed{number}.safetensors"

            def meet(changed: Any = changed, name: str = file_name) -> object:
                digest = policies._digest(changed, tensors)
                text = json.dumps({**changed, "sha256": digest})
                (directory / name).write_bytes(safetensors.numpy.save(tensors, {"besteffort": text}))
                try:
                    return load_policy(directory / name)
                finally:
                    (directory / name).unlink()

            yield Mistake(f"a signed policy with {kind}", file_name, dotted(place), meet)
    whole = (directory / "good.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for kind, content in {
        "cut short": whole[:-5],
        "empty": b"",
        "another document": b"{}",
        "a huge header": (90 * 2**20).to_bytes(8, "little") + whole[8:],
        "bytes that are no text": whole[:8] + b"\xff" * length + whole[8 + length :],
    }.items():

        def meet_bytes(content: bytes = content) -> object:
            path = directory / "raw.safetensors"
            path.write_bytes(content)
            try:
                return load_policy(path)
            finally:
                path.unlink()

        yield Mistake(kind, "raw.safetensors", "", meet_bytes)


def sweeps(directory: Path) -> Iterator[Mistake]:
    base = directory / "base.yaml"
    base.write_text(CONFIG, encoding="utf-8")
    data = yaml.safe_load(SWEEP.format(base=base))

    def read(path: Path) -> object:
        return make_plan(load_sweep(path), where=str(path))

    for mistake in in_files(data, ".yaml", directory, read, lambda data: yaml.safe_dump(data, allow_unicode=True)):
        # A list of values makes an axis, too.
        if mistake.field != "axes.training.hyper.learning_rate" or mistake.kind != "another type":
            yield mistake


def run_directories(directory: Path) -> Iterator[Mistake]:
    """Files of run directories that a disk or a person has damaged."""
    for number, line in enumerate(
        ("{}", "[]", "x", '{"seed": 1}', '{"seed": "1", "decisions": 2}', '{"seed": 1, "decisions": 2, "loss": null}')
    ):

        def metrics(line: str = line, number: int = number) -> object:
            out = directory / f"run{number}"
            out.mkdir(exist_ok=True)
            (out / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
            return MetricsLog(out, [1], ("a",), {})

        yield Mistake("damaged metrics", "metrics.jsonl", "line 1", metrics)
    for text in ("", "[]", "3", '{"000": 3}', '{"000": [1]}', '{"000": ["0000"', "\x00"):

        def programs(text: str = text) -> object:
            (directory / "programs.json").write_text(text, encoding="utf-8")
            return read_programs(directory)

        yield Mistake("damaged files of a sweep", "programs.json", "", programs)
    for content in (b"", b"PK", b"\x93NUMPY", b"PK\x05\x06" + b"\0" * 18, bytes(1000)):

        def checkpoints(content: bytes = content) -> object:
            (directory / "checkpoint.npz").write_bytes(content)
            return checkpoint.load(directory / "checkpoint.npz", np.zeros(1), {})

        yield Mistake("damaged checkpoints", "checkpoint.npz", "", checkpoints)


def paths(directory: Path) -> Iterator[Mistake]:
    """Paths that are no files that can be read, for every reader of a file."""
    readers: dict[str, Callable[[Path], object]] = {
        ".yaml": load_run,
        ".json": load_profile,
        ".safetensors": load_policy,
    }
    for suffix, read in readers.items():
        for kind, path in {
            "no such file": directory / f"none{suffix}",
            "a directory": directory,
            "a name that is too long": directory / ("x" * 300 + suffix),
            "below a file": directory / "good.yaml" / f"deeper{suffix}",
            "a device without an end": Path("/dev/zero"),
        }.items():
            yield Mistake(kind, path.name[:50], "", lambda read=read, path=path: read(path))


GROUPS: dict[str, Callable[[Path], Iterator[Mistake]]] = {
    "configurations": configurations,
    "pools": pools,
    "profiles": profiles,
    "policies": signed_policies,
    "sweeps": sweeps,
    "run directories": run_directories,
    "paths": paths,
}


def complaint(mistake: Mistake) -> tuple[str, str]:
    """The sentence that a mistake gets, and what is wrong with it; empty if nothing is."""
    try:
        mistake.read()
    except InputError as error:
        said = str(error)
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"
    else:
        return "", "accepted without a word"
    if not said.isprintable() or not said.endswith("."):
        return said, "no sentence"
    if mistake.file not in said:
        return said, "does not name the file"
    words = [part for part in mistake.field.split(".") if part and not part.isdigit()]
    if words and not any(word.rstrip("s") in said for word in words[-2:]):
        return said, "does not name the field"
    if ";" not in said and "should be" not in said and "should have" not in said:
        return said, "names no remedy"
    return said, ""


def main() -> None:
    """Meets every mistake, and writes the counts."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for group, make in GROUPS.items():
            for mistake in make(Path(directory)):
                said, wrong = complaint(mistake)
                counts[mistake.kind] += 1
                if wrong or "--sentences" in sys.argv:
                    told = f"{wrong} | {said}" if wrong else said
                    sys.stdout.write(f"{group}, {mistake.kind}, `{mistake.field}`: {told}\n")
    for kind, count in counts.most_common():
        sys.stdout.write(f"{count:5} {kind}\n")
    sys.stdout.write(f"{counts.total():5} in all\n")


if __name__ == "__main__":
    main()
