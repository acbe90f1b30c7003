"""README and docs: every command parses, and every file and link is there. Nothing is run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<lines>.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`((?:besteffort|python -m (?:experiments|benchmarks)\b)[^`]*)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
_PLACEHOLDER = re.compile(r"\b(?:NAME|FILE|DIR|IN|OUT|CONFIG|POLICY|LOG)\b")


def pages() -> list[Path]:
    """None where there is no checkout."""
    return [page for page in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))) if page.exists()]


def commands() -> Iterator[str]:
    """Each command once: lines of blocks, and commands in running text that have arguments."""
    found = []
    for page in pages():
        text = page.read_text("utf-8")
        for block in BLOCK.finditer(text):
            lines = [] if block["language"] else block["lines"].replace("\\\n", " ").splitlines()
            found += [part.partition("  #")[0].strip() for line in lines for part in line.split("&&")]
        found += [inline for inline in INLINE.findall(BLOCK.sub("", text)) if "--" in inline or "python" in inline]
    for command in dict.fromkeys(found):
        if command.startswith(("besteffort ", "python -m experiments", "python -m benchmarks")):
            yield command


def chosen(start: str) -> list[str]:
    return [command for command in commands() if command.startswith(start)]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command line hands to its commands, which do nothing."""
    import experiments.__main__ as reproduction
    from besteffort import cli

    calls: list[dict[str, Any]] = []

    def idle(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(*arguments: Any, **options: Any) -> None:
            calls.append(inspect.signature(command).bind(*arguments, **options).arguments)

        return call

    for name, entry in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, dataclasses.replace(entry, call=idle(entry.call)))
    monkeypatch.setattr(reproduction, "run_command", idle(reproduction.run_command))
    return calls


COMPLETION = "besteffort --tyro-write-completion "


@pytest.mark.parametrize("command", chosen(COMPLETION))
def test_completion_script_is_written(command: str, tmp_path: Path) -> None:
    from besteffort import cli

    _, option, shell, _ = shlex.split(command)
    with pytest.raises(SystemExit) as exit_:
        cli.main([option, shell, str(tmp_path / "script")])
    assert not exit_.value.code
    assert "besteffort" in (tmp_path / "script").read_text("utf-8")


@pytest.mark.parametrize(
    "command",
    [command for command in chosen("besteffort ") if not command.startswith(COMPLETION) and "--help" not in command],
)
def test_command_parses(
    command: str, parsed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from besteffort import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)[1:]) == 0
    assert len(parsed) == 1


@pytest.mark.parametrize("command", chosen("python "))
def test_module_has_the_options(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    if _PLACEHOLDER.search(module):
        return
    path = CHECKOUT.joinpath(*module.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text("utf-8")
    if "experiments.lab import" in source and "argparse" not in source:
        source += (CHECKOUT / "experiments" / "lab.py").read_text("utf-8")
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert f'"{option}"' in source or re.search(rf"\b{option[2:].replace('-', '_')}: ", source), option


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for path, anchor in LINK.findall(text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_has_what_pages_link_to() -> None:
    script = (CHECKOUT / ".ci" / "docs").read_text("utf-8")
    laid_out = script.partition("git ls-files")[2].partition("':!:")[0].replace("\\", "").split()
    for page in pages():
        for path, _ in LINK.findall(page.read_text("utf-8")):
            target = (page.parent / path).resolve() if path else page
            assert any(target.is_relative_to(CHECKOUT / each) for each in laid_out), f"{page.name}: {path}"


INSTALL = re.compile(r"pip install ([^`\n&]*)")


def extras() -> set[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    return set(project["optional-dependencies"])


def test_what_is_installed_is_a_path_with_extras_that_exist() -> None:
    """Another project has the name `besteffort`, so pip must not be told to look for it."""
    light = CHECKOUT / "packaging" / "gateway"
    texts = [*pages(), CHECKOUT / "CONTRIBUTING.md", light / "README.md"]
    texts += [path for folder in ("besteffort", "examples") for path in (CHECKOUT / folder).rglob("*.py")]
    stated = [line for path in texts for line in INSTALL.findall(path.read_text("utf-8"))]
    assert len(stated) >= 12
    for line in stated:
        assert not re.search(r"(?:^|\s|['\"])besteffort(?:-gateway)?(?:$|[\s'\"\[.,;])", line), line
        for names in re.findall(r"['\"]\.\[([\w,]+)\]", line):
            assert set(names.split(",")) <= extras(), line


def test_extras_are_explained() -> None:
    table = (CHECKOUT / "docs" / "index.md").read_text("utf-8").partition("| Extra |")[2]
    named = {name for row in re.findall(r"^\| (`[^|]*) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == extras() - {"bench", "dev", "docs", "fuzz", "test"}


def test_files_that_experiments_need_are_named_with_their_source() -> None:
    from experiments.unpredictable_load import SAMPLES

    sources = "".join(path.read_text("utf-8") for path in (CHECKOUT / "experiments").glob("*.py"))
    needed = {*SAMPLES, *re.findall(r"(?<![\w}])[\w.-]+\.(?:csv|jsonl)\.gz", sources)}
    assert len(needed) >= 7
    page = (CHECKOUT / "docs" / "research.md").read_text("utf-8")
    assert not {name for name in needed if f"`{name}`" not in page}


def test_there_are_commands() -> None:
    assert len(chosen("besteffort ")) >= 15
    assert len(chosen("python ")) >= 15
