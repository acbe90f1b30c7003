"""How tests damage files: values that nobody should write, somewhere in them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from besteffort.errors import InputError

HOSTILE: tuple[Any, ...] = (
    *(
        None,
        "",
        " ",
        "nan",
        "inf",
        "-1",
        -1,
        "1e400",
        10**400,
        10**18,
        1.5e300,
        "0",
        0,
        0.5,
        True,
        "true",
        [],
        {},
        [[]],
    ),
    *(
        {"a": {"a": {}}},
        "2023",
        "2024-05-10",
        "2024-05-10 00:00:00",
        "2024-02-30T00:00:00Z",
        "9999-12-31 23:59:59+99:99",
    ),
    *(
        "x" * 300,
        "\u2028",
        "\x00",
        '"',
        ",",
        "\ud7ff",
        "{",
        "[1",
        "null",
        "1_000",
        "١٢",
        2**63,
        -(2**63),
        1e-320,
        "1e5",
    ),
)


def refused(error: InputError, path: Path) -> None:
    """Checks that an error is one sentence that begins with the file."""
    said = str(error)
    assert "\n" not in said
    assert said.startswith(str(path))
    assert said.endswith(".")
    assert len(said) < 1500


def change_somewhere(value: Any, chance: random.Random) -> None:
    """Replaces or removes one value inside plain JSON data, in place."""
    place = value
    for _ in range(chance.randrange(6)):
        inner = place.values() if isinstance(place, dict) else place if isinstance(place, list) else ()
        deeper = [each for each in inner if isinstance(each, dict | list) and each]
        if not deeper:
            break
        place = chance.choice(deeper)
    if isinstance(place, dict) and place:
        key = chance.choice(list(place))
        if chance.random() < 0.3:
            del place[key]
        else:
            place[key] = chance.choice(HOSTILE)
    elif isinstance(place, list) and place:
        place[chance.randrange(len(place))] = chance.choice(HOSTILE)
