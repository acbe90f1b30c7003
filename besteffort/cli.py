"""The command line: parses, calls, prints. A user's mistake is one sentence on standard error and exit status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from annotated_types import Interval

from besteffort.commands.diagnose import diagnose
from besteffort.commands.engine import engine
from besteffort.commands.evaluate import evaluate
from besteffort.commands.list import list_names
from besteffort.commands.load import load
from besteffort.commands.options import Changes, Columns, PartOfLog
from besteffort.commands.policy import policy_export, policy_show
from besteffort.commands.profile import profile_fit, profile_measure, profile_quality
from besteffort.commands.quickstart import quickstart
from besteffort.commands.reproduce import reproduce, reproduce_command
from besteffort.commands.serve import serve
from besteffort.commands.simulate import simulate
from besteffort.commands.sweep import sweep
from besteffort.commands.train import train
from besteffort.console import Answer, Output, exit_statuses, streams_restored
from besteffort.errors import InputError, brief
from besteffort.files import os_errors_as_input_errors
from besteffort.runs.compilation import set_up_compilation
from besteffort.version import __version__


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and a line that shows how it is called.

    Attributes:
      call: what it does; tyro reads its options from the signature and its help from the docstring.
      example: a line that can be copied.
    """

    call: Callable[..., Answer | None]
    example: str


COMMANDS: dict[str, Command] = {
    "quickstart": Command(quickstart, "besteffort quickstart --trace my_log.csv --out first-run"),
    "train": Command(train, "besteffort train paper --set cluster.replicas=2 --out two-replicas"),
    "sweep": Command(sweep, "besteffort sweep learning_rate --set training.config.num_envs=64 --out rates"),
    "evaluate": Command(evaluate, "besteffort evaluate first-run/policy.safetensors --out judged"),
    "diagnose": Command(diagnose, "besteffort diagnose first-run/policy.safetensors --out diagnosis"),
    "simulate": Command(simulate, "besteffort simulate my_log.csv --router deadline --load 2 --out replay"),
    "serve": Command(serve, "besteffort serve gateway.yaml"),
    "engine": Command(engine, "besteffort engine laptop-1m laptop-5m"),
    "load": Command(load, "besteffort load http://127.0.0.1:8080/v1 my_log.csv --load 2 --out played"),
    "reproduce": Command(reproduce, "besteffort reproduce stable_load --fast --out reproduced"),
    "list": Command(list_names, "besteffort list configurations"),
    "policy show": Command(policy_show, "besteffort policy show first-run/policy.safetensors"),
    "policy export": Command(policy_export, "besteffort policy export first-run/policy.safetensors --onnx policy.onnx"),
    "profile measure": Command(profile_measure, "besteffort profile measure opt-125m opt-350m --out my_device.json"),
    "profile quality": Command(profile_quality, "besteffort profile quality opt-125m --task piqa --out qualities.json"),
    "profile fit": Command(profile_fit, "besteffort profile fit my_log.jsonl --quality piqa=71.7 --out server.json"),
}
"""All commands; those of two words make groups."""

GROUPS = {
    "policy": "What a policy file holds, shown or exported for other languages.",
    "profile": "What models cost and give: measured here, or read off a server log.",
}

_DESCRIPTION = "Best-effort LLM serving: learn in simulation which model answers which request."
_CLOSING = """\
`besteffort COMMAND --help` explains a command, and `besteffort --version` names
the version. README.md, docs/ and ARCHITECTURE.md in the repository say more.
"""
_SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _runs_left(), exit_statuses("besteffort") as ended:
        if given == ["--version"]:
            print(f"besteffort {__version__}")
        else:
            _answer(given)
        # Here, where a reader that has left still counts.
        sys.stdout.flush()
    return ended.status


def _answer(given: Sequence[str]) -> None:
    """Runs the command and prints its answer."""
    if "jax" not in sys.modules:
        set_up_compilation()
    with streams_restored():
        if given and given[0] in ("--tyro-print-completion", "--tyro-write-completion"):
            _print_completion(given)
        elif {"-h", "--help"} & set(given):
            _print_help(given)
        else:
            answer = _run(given)
            if answer is not None:
                answer.finish()


@contextlib.contextmanager
def _runs_left() -> Iterator[None]:
    """Lets other processes into the directories of the command's runs at its end."""
    try:
        yield
    finally:
        if "besteffort.files" in sys.modules:
            sys.modules["besteffort.files"].leave_runs()


def _run(given: Sequence[str]) -> Answer | None:
    """Parses the arguments and calls the command; exits where help or completions are asked for, or on other words."""
    calls: dict[str, Callable[..., Any]] = {}
    for name, command in COMMANDS.items():
        group, _, _ = name.rpartition(" ")
        if not group:
            calls[name] = command.call
        elif group not in calls:
            members = {n.removeprefix(f"{group} "): c.call for n, c in COMMANDS.items() if n.startswith(f"{group} ")}
            calls[group] = _group(GROUPS[group], members)
    if given[:1] == ["reproduce"]:
        calls["reproduce"] = reproduce_command()
    shared = (Changes, Columns, PartOfLog, Output)
    for documented in (*calls.values(), *(command.call for command in COMMANDS.values()), *shared):
        _join_lines(documented)
    told = io.StringIO()
    try:
        helps = {"-h", "--help"} & set(given)
        with contextlib.redirect_stderr(told), contextlib.nullcontext() if helps else _wide():
            todo: Callable[[], Answer | None] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(call) for name, call in calls.items()},
                prog="besteffort",
                description=_DESCRIPTION,
                args=given,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as leaving:
        if leaving.code == 2:
            raise InputError(_mistake(told.getvalue(), given)) from None
        sys.stderr.write(told.getvalue())
        raise
    return todo()


def _later(call: Callable[..., Any]) -> Callable[..., Any]:
    """What parses as `call` does, and returns a function that checks the numbers of the options and then calls it."""
    if getattr(call, "group", False):
        return call

    @functools.wraps(call)
    def parsed(*values: Any, **options: Any) -> Callable[[], Any]:
        def run() -> Any:
            _check_numbers(call, options)
            return call(*values, **options)

        return run

    return parsed


def _check_numbers(call: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Checks options against the intervals of their annotations.

    Raises:
      InputError: naming the option and its interval.
    """
    for name, hint in typing.get_type_hints(call, include_extras=True).items():
        for interval in (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Interval)):
            given = options.get(name)
            for number in given if isinstance(given, tuple) else () if given is None else (given,):
                if not interval.ge <= number <= interval.le:
                    option = f"--{name.replace('_', '-')}"
                    low, high = (
                        f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (interval.ge, interval.le)
                    )
                    raise InputError(f"`{option}` is {brief(number)}; give a number from {low} to {high}.")


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Lets tyro write its messages without breaking lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _mistake(box: str, given: Sequence[str]) -> str:
    """The sentence in place of tyro's box about words that do not parse."""
    from besteffort.validation import did_you_mean

    inside = [line.strip("│|+╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    # The heading stands in the first rule or above it, remarks below the next one.
    rules = [index for index, line in enumerate(inside) if line.endswith(("──", "--"))]
    lines = inside[rules[0] + 1 : rules[1] if len(rules) > 1 else None] if rules else inside
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    name = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in (*COMMANDS, *GROUPS)), "")
    command = f"besteffort {name}".strip()
    text = " ".join(line for line in lines if line)
    remedy = f"`{command} --help` says what there is"
    if found := re.match(r"Unrecognized (?:or misplaced )?options: (.*)", text):
        unknown = re.split(r", | \(applied to", found[1])[0]
        known = sorted(_options_of(COMMANDS[name].call)) if name in COMMANDS else [*COMMANDS]
        if name in GROUPS:
            known = [one.removeprefix(f"{name} ") for one in COMMANDS if one.startswith(f"{name} ")]
        what = "command" if name in ("", *GROUPS) else "option"
        return f"There is no {what} `{brief(unknown)}`{did_you_mean(unknown, known)}; {remedy}."
    if text.startswith("Expected one of"):
        return f"`{command}` lacks a command of its own; add it, {remedy}."
    if text.startswith("Missing from"):
        lacking = [line.split("  ")[0].strip() for line in lines if re.match(r"(--[\w-]+|[A-Z]{2,}|\{)", line)]
        return f"`{command}` lacks {' and '.join(map(brief, lacking)) or 'a command'}; add it, {remedy}."
    if found := re.match(r"Error parsing ([^:]+): .*?(?:from \[(.*?)\]|(?:base 10|to float): (.*))", text):
        kind = "a whole number" if "int" in text else "a number"
        return f"`{found[1]}` is {brief(found[2] or found[3])}, but should be {kind}; {remedy}."
    return f"{text.rstrip('.')}; {remedy}."


def _options_of(documented: Any) -> Iterator[str]:
    """The options of a command or of a group of options, as they are written."""
    for name, hint in typing.get_type_hints(documented, include_extras=True).items():
        about = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if about else hint
        if dataclasses.is_dataclass(inner):
            yield from _options_of(inner)
        elif name != "return" and tyro.conf.Positional not in about:
            stated = next(filter(None, (getattr(each, "name", None) for each in about)), name)
            yield f"--{stated.replace('_', '-')}"


def _join_lines(documented: Any) -> None:
    """Puts each argument's text in a docstring on one line, because tyro keeps its line breaks."""
    documented.__doc__ = re.sub(r"\n {4,}(?=\S)", " ", inspect.cleandoc(documented.__doc__ or ""))


def _group(description: str, commands: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """A command that does nothing but hold others."""
    options = [
        Annotated[Any, tyro.conf.subcommand(name=name, constructor=_later(call))] for name, call in commands.items()
    ]
    one_of: Any = Union.__getitem__((*options, Annotated[None, tyro.conf.Suppress]))  # tyro needs two or more

    def group(command: Any) -> Any:
        return command

    group.group = True  # type: ignore[attr-defined]
    group.__doc__ = description
    group.__annotations__["command"] = Annotated[one_of, tyro.conf.arg(name="")]
    return group


class _Captured(io.StringIO):
    """Takes what is printed but passes for standard output, so that tyro draws boxes and colours as it would there."""

    def __init__(self) -> None:
        super().__init__()
        self._behind = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._behind.encoding

    def isatty(self) -> bool:
        return self._behind.isatty()


def _print_help(given: Sequence[str]) -> None:
    """Prints tyro's help, its long lines wrapped between words, with an example at its end; then exits."""
    status: Any = 0
    with contextlib.redirect_stdout(_Captured()) as captured:
        try:
            _run(given)
        except SystemExit as leaving:
            status = leaving.code
    text = captured.getvalue()
    if text:
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
        print(_wrapped(text), *([] if words else [_CLOSING]), f"Example:\n  {_example(words)}", sep="\n", flush=True)
    sys.exit(status)


def _example(words: Sequence[str]) -> str:
    """The example of the command that begins with these words, of a group the one of its first command."""
    for begun in (" ".join(words[:2]), " ".join(words[:1])):
        for name, command in COMMANDS.items():
            if name == begun or name.startswith(f"{begun} "):
                return command.example
    return next(iter(COMMANDS.values())).example


def _wrapped(text: str) -> str:
    """Text whose lines outside boxes are no longer than the terminal is wide."""
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.rstrip().splitlines():
        if line.startswith("╭") or len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width:
            lines.append(line)
        else:
            # The box below lists the commands.
            short = re.sub(r"\{[\w,-]+\}$", "COMMAND", line)
            indent = "  " if short.startswith("usage:") else ""
            lines += textwrap.wrap(
                short, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
    return "\n".join([*lines, ""])


def _print_completion(given: Sequence[str]) -> None:
    """Prints or writes a shell's completion script, with tyro's options for this; then exits."""
    option, *words = given
    if not words or words[0] not in _SHELLS:
        raise InputError(
            f"`{option}` is followed by {words[0] if words else 'nothing'}; name one of {', '.join(_SHELLS)}."
        )
    if option == "--tyro-write-completion" and len(words) != 2:
        raise InputError(f"`{option} {words[0]}` needs one file to write to; name it.")
    with os_errors_as_input_errors(Path(words[-1])):
        _run(given)


if __name__ == "__main__":
    sys.exit(main())
