"""README and docs: every Python example runs as it stands, is short, and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>[^>]+) -->\n)?```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<prints>.*?)^```$)?",
    re.M | re.S,
)
HEADING = re.compile(r"^#+ (.+)$", re.M)
LONGEST = 20
POLICY = Path("first-run", "policy.safetensors")
"""What the quickstart leaves, which some examples read."""


class Example(NamedTuple):
    code: str
    needs: tuple[str, ...]
    prints: str | None


def pages() -> list[Path]:
    """None where there is no checkout."""
    return [page for page in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))) if page.exists()]


def examples() -> dict[str, Example]:
    """By page and heading."""
    found = {}
    for page in pages():
        text = page.read_text("utf-8")
        for block in BLOCK.finditer(text):
            name = f"{page.stem}: {HEADING.findall(text[: block.start()])[-1]}"
            assert name not in found, f"{name}: put a heading before each example"
            needs = tuple(re.split(r",\s*", block["needs"])) if block["needs"] else ()
            found[name] = Example(block["code"], needs, block["prints"])
    return found


def write_policy(path: Path) -> None:
    """A policy of the default situation that nobody trained."""
    from besteffort import default_policy, load_situation, save_policy

    path.parent.mkdir(parents=True)
    save_policy(default_policy(load_situation("paper")), path)


@pytest.mark.parametrize("name", examples())
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = examples()[name]
    for package in example.needs:
        pytest.importorskip(package)
    lines = [line for line in example.code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= LONGEST
    monkeypatch.chdir(tmp_path)
    if POLICY.as_posix() in example.code:
        write_policy(POLICY)
    exec(compile(example.code, name, "exec", dont_inherit=True), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed
    if example.prints is not None:
        assert printed == example.prints


def test_every_block_is_an_example() -> None:
    texts = [page.read_text("utf-8") for page in pages()]
    assert len(examples()) == sum(len(re.findall(r"^\s*```py", text, re.M)) for text in texts) >= 12
    shown = [example.prints for example in examples().values() if example.prints is not None]
    assert len(shown) == sum(text.count("```\n\n```text\n") for text in texts) >= 3
