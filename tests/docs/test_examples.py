"""The newcomer's page: every example runs as it stands, and is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "own.md"
BLOCK = re.compile(
    r"^## (?P<title>.+?)$(?:(?!^## ).)*?(?:<!-- needs: (?P<needs>[^>]+) -->\n)?```python\n(?P<code>.*?)^```$",
    re.M | re.S,
)
LONGEST = 20


def examples() -> dict[str, re.Match[str]]:
    """By heading; empty where there is no checkout."""
    return {found["title"]: found for found in BLOCK.finditer(PAGE.read_text("utf-8"))} if PAGE.exists() else {}


@pytest.mark.parametrize("title", examples())
def test_example(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examples()[title]
    for package in (found["needs"] or "").split(","):
        if package.strip():
            pytest.importorskip(package.strip())
    lines = [line for line in found["code"].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= LONGEST
    monkeypatch.chdir(tmp_path)
    exec(compile(found["code"], f"{PAGE.name}: {title}", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out or list(tmp_path.iterdir())


def test_every_block_is_an_example() -> None:
    text = PAGE.read_text("utf-8")
    assert len(examples()) == text.count("```python") >= 9
