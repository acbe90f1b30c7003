"""Digests of arrays, by which files and trainings recognise what they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def array_digest(named: Iterable[tuple[str, Any]], start: str = "") -> str:
    """SHA-256, in hexadecimal, of a text and of arrays: their names, dtypes, shapes and bytes, in this order."""
    digest = hashlib.sha256(start.encode())
    for name, values in named:
        array = np.asarray(values)
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
