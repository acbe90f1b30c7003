"""The API reference has all that `import besteffort` offers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "api.md"


def test_every_public_name_is_in_the_reference() -> None:
    import besteffort

    shown = set(re.findall(r"^::: besteffort\.(\w+)$", PAGE.read_text("utf-8"), re.M))
    assert shown == set(besteffort.__all__) - {"__version__"}
