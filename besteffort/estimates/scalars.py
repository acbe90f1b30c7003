"""The part of an array module that `besteffort.estimates.estimates.course_of` needs, for plain numbers.

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


def where(condition: bool, value: Any, other: Any) -> Any:
    """The value if the condition holds, else the other."""
    return value if condition else other
