"""Ranges of numbers in configurations and options, for `besteffort.validation` and the command line to check.

All are finite: what lies beyond is a slip of the pen, and would take memory or time without end, or overflow.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Interval, Le

Positive = Annotated[float, Gt(0), Ge(1e-9), Le(1e9)]
NonNegative = Annotated[float, Interval(ge=0, le=1e9)]
Load = Annotated[float, Gt(0), Ge(1e-6), Le(1e6)]
"""A rate in multiples of a capacity."""

Count = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Number = Annotated[int, Interval(ge=0, le=2**31 - 1)]
Few = Annotated[int, Interval(ge=1, le=2**16)]
"""A count of things that each take memory: replicas, places, environments, networks."""

Tokens = Annotated[int, Interval(ge=1, le=2**22)]
"""Length of a prompt or an output."""

Length = Annotated[int, Interval(ge=2, le=10**7)]
"""Requests of a list."""

Seed = Annotated[int, Interval(ge=0, le=2**31 - 1)]
