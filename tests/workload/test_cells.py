"""Cells as numbers, dates and words."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.workload.cells import NO_DATE, CellError, dates, number, numbers, says_failed
from besteffort.workload.fields import Unit, unit_in_name


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)))
def test_numbers_are_read_as_python_reads_them(values: list[float]) -> None:
    expected = [float(value) for value in values]
    np.testing.assert_array_equal(numbers(values), expected)
    np.testing.assert_array_equal(numbers([repr(value) for value in values]), expected)
    mixed: list[Any] = [value if i % 2 else f" {value!r} " for i, value in enumerate(values)]
    np.testing.assert_array_equal(numbers([*mixed, None, ""]), [*expected, np.nan, np.nan])


@pytest.mark.parametrize(
    "cell", ["x", "Nan", "inf", "1_000", "1,5", "0x10", True, [], {}, "1e400", 10**400, float("nan")]
)
def test_other_things_are_no_numbers(cell: Any) -> None:
    assert number(cell) is None
    with pytest.raises(CellError, match="not a number") as caught:
        numbers([1, "", cell, "y"])
    assert caught.value.row == 2


@given(
    st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2199, 12, 30)),
    st.sampled_from([None, 0, 60, -330, 765]),
    st.sampled_from("T "),
)
def test_dates_are_read_as_python_reads_them(moment: datetime.datetime, minutes: int | None, between: str) -> None:
    zone = None if minutes is None else datetime.timezone(datetime.timedelta(minutes=minutes))
    written = moment.replace(tzinfo=zone)
    (found, none), zoned = dates([written.isoformat(between), None], None)
    apart = written.replace(tzinfo=zone or datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert int(found) == round(apart / datetime.timedelta(microseconds=1)) * 1000
    assert (int(none), zoned) == (NO_DATE, zone is not None)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01 00:00:01.000000001", 1_000_000_001),
        ("1970-01-01 00:00:01,5", 1_500_000_000),
        ("1970/01/01 00:01", 60_000_000_000),
        ("1970-01-01T00:00:01.Z", 1_000_000_000),
        ("1970-01-01 00:00:01 UTC", 1_000_000_000),
        ("1970-01-01 01:00:01+0100", 1_000_000_000),
        ("1970-01-01 01:00:01+01", 1_000_000_000),
    ],
)
def test_dates_as_logs_have_them(text: str, nanoseconds: int) -> None:
    assert dates([text], None)[0].tolist() == [nanoseconds]


@pytest.mark.parametrize(
    "cell", ["", " ", "-", "null", "None", "nan", "NaN", "NaT", "<NA>", "0001-01-01T00:00:00Z", "1970-01-01 00:00:00.0"]
)
def test_dates_that_say_that_there_is_none(cell: str) -> None:
    assert dates([cell, "2023-11-16 00:00:00+00:00"], None)[0].tolist() == [NO_DATE, 1_700_092_800_000_000_000]


@pytest.mark.parametrize(
    "text",
    ["2023", "2023-11", "2023-11-16", "1969-12-31 23:59:59", "2300-01-01 00:00:00", "2023-02-30 00:00:00", "now"],
)
def test_other_things_are_no_dates(text: str) -> None:
    with pytest.raises(CellError, match="not a date") as caught:
        dates(["2023-11-16 00:00:00", text], None)
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("cell", "failed"),
    [
        *((cell, False) for cell in (None, "", "nan", "-", False, 0, "0.0", "ok", "Success", {"code": None}, "False")),
        *((cell, False) for cell in ("200", "200.0", 200.0, "200 OK", 204)),
        *((cell, True) for cell in ("timeout", "failure", True, 1, 500, "404", {"code": 500}, "cancelled")),
        *((cell, True) for cell in ("500.0", "504 Gateway Timeout", "2000")),
    ],
)
def test_what_says_that_a_request_failed(cell: Any, failed: bool) -> None:
    assert says_failed(cell) == failed


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *(
            ("arrival_s", "s"),
            ("arrival_ms", "ms"),
            ("latencyMs", "ms"),
            ("startTimeUnixNano", "ns"),
            ("TTFT (ms)", "ms"),
        ),
        *(("e2e_latency_seconds", "s"), ("arrival_time_us", "us"), ("timestamp", None), ("s", None), ("tokens", None)),
        *(("requests", None), ("arrival_time", None), ("last_token_ts", None)),
    ],
)
def test_units_in_names(name: str, unit: Unit | None) -> None:
    assert unit_in_name(name) == unit
