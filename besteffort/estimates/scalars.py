"""The part of an array module that functions of estimates need which are called with plain numbers.

A few dozen operations on three numbers take NumPy longer than Python.
"""

from __future__ import annotations

import math
from typing import Any

minimum = min
maximum = max
floor = math.floor
ceil = math.ceil
isinf = math.isinf
tanh = math.tanh
exp = math.exp


def where(condition: bool, value: Any, other: Any) -> Any:
    """The value if the condition holds, else the other."""
    return value if condition else other


def clip(value: Any, low: Any, high: Any) -> Any:
    """The value, no lower and no higher than these."""
    return low if value < low else min(value, high)


def logaddexp(first: float, second: float) -> float:
    """Logarithm of the sum of two exponentials."""
    high, low = (first, second) if first > second else (second, first)
    return high + math.log1p(math.exp(low - high))
