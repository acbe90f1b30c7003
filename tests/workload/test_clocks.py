"""Units: stated, of times since 1970, of times from some start, of durations; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.clocks import Clocks, in_seconds
from besteffort.workload.columns import Column
from besteffort.workload.fields import Unit

PER_SECOND: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ARRIVAL = np.array([0.0, 0.5, 1.25, 4.0])
LAST = ARRIVAL + np.array([0.4, 0.7, 0.2, 0.5])
OUTPUT = np.array([40.0, 60.0, 20.0, 50.0])
PATH = Path("log.csv")


def read(**columns: Column) -> Clocks:
    return in_seconds(PATH, columns)


@pytest.mark.parametrize("unit", PER_SECOND)
def test_times_since_1970_tell_their_unit(unit: Unit) -> None:
    clocks = read(arrival=Column("timestamp", (1.76e9 + ARRIVAL) * PER_SECOND[unit]))
    np.testing.assert_allclose(clocks.seconds["arrival"] - 1.76e9, ARRIVAL, atol=1e-6)
    assert clocks.said == WORDS[unit]


@pytest.mark.parametrize("unit", PER_SECOND)
def test_the_time_of_a_token_tells_the_unit(unit: Unit) -> None:
    factor = PER_SECOND[unit]
    clocks = read(
        arrival=Column("arrival", ARRIVAL * factor), last=Column("last", LAST * factor), output=Column("n", OUTPUT)
    )
    np.testing.assert_allclose(clocks.seconds["last"], LAST)
    assert clocks.said == WORDS[unit]


def test_days_of_uptime_in_milliseconds_are_no_times_since_1970() -> None:
    up = 5 * 86_400e3
    clocks = read(
        arrival=Column("start", up + 1e3 * ARRIVAL), last=Column("end", up + 1e3 * LAST), output=Column("n", OUTPUT)
    )
    np.testing.assert_allclose(clocks.seconds["last"] - clocks.seconds["arrival"], LAST - ARRIVAL, atol=1e-6)
    assert clocks.said == "milliseconds"


@pytest.mark.parametrize("unit", PER_SECOND)
def test_stated_units_count(unit: Unit) -> None:
    clocks = read(arrival=Column("x", ARRIVAL * PER_SECOND[unit], unit))
    np.testing.assert_allclose(clocks.seconds["arrival"], ARRIVAL)


@pytest.mark.parametrize("unit", PER_SECOND)
def test_durations(unit: Unit) -> None:
    factor = PER_SECOND[unit]
    clocks = read(
        arrival=Column("x", ARRIVAL, "s"),
        latency=Column("latency", (LAST - ARRIVAL) * factor),
        ttft=Column("ttft", 0.1 * (LAST - ARRIVAL) * factor),
        output=Column("n", OUTPUT),
    )
    np.testing.assert_allclose(clocks.seconds["latency"], LAST - ARRIVAL)
    np.testing.assert_allclose(clocks.seconds["ttft"], 0.1 * (LAST - ARRIVAL))


def test_small_numbers_alone_are_taken_for_seconds_and_that_is_said() -> None:
    clocks = read(arrival=Column("TIMESTAMP", np.arange(60.0)))
    np.testing.assert_array_equal(clocks.seconds["arrival"], np.arange(60.0))
    assert clocks.said == "seconds, assumed"


def test_columns_of_different_units_are_named() -> None:
    clocks = read(
        arrival=Column("sent", (1.76e9 + ARRIVAL) * 1e3), last=Column("end", 20_000 + LAST), output=Column("n", OUTPUT)
    )
    np.testing.assert_allclose(clocks.seconds["arrival"] - 1.76e9, ARRIVAL, atol=1e-6)
    assert clocks.said == "seconds (`end`), assumed, milliseconds (`sent`)"


def test_dates_and_times_since_1970_together() -> None:
    stamps = (1_760_000_000_000_000_000 + (ARRIVAL * 1e9)).astype(np.int64)
    clocks = read(
        arrival=Column("start", stamps, dated=True, zoned=True),
        last=Column("end_ms", (1.76e9 + LAST) * 1e3, "ms"),
    )
    np.testing.assert_allclose(clocks.seconds["last"] - clocks.seconds["arrival"], LAST - ARRIVAL, atol=1e-6)
    assert clocks.said == "dates, milliseconds"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            Column("arrival_s", (1.76e9 + ARRIVAL) * 1e3, "s"),
            "`arrival_s` is 1.76e[+]12 in the middle, which cannot be",
        ),
        (Column("t", np.array([1.76e9, 1.76e9, 1.76e12])), "mixes units or clocks"),
        (Column("t", np.array([7.0, 1.76e9, 1.76e9])), "`t` spans 56 years"),
        (Column("t_s", np.array([0.0, 1.0, 1.76e9]), "s"), "`t_s` spans 56 years"),
    ],
)
def test_what_cannot_be_is_refused(column: Column, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(arrival=column)


def test_zero_among_times_since_1970_is_none() -> None:
    clocks = read(
        arrival=Column("t", (1.76e9 + ARRIVAL) * 1e3), last=Column("e", np.array([0, *(1.76e9 + LAST[1:]) * 1e3]))
    )
    np.testing.assert_allclose(clocks.seconds["last"] - 1.76e9, [np.nan, *LAST[1:]], atol=1e-6)
    assert clocks.said == "milliseconds"
    zero = read(arrival=Column("t", ARRIVAL), last=Column("e", LAST))
    assert zero.seconds["arrival"][0] == 0


def test_gaps_stay_gaps() -> None:
    clocks = read(arrival=Column("t", np.array([1.76e12, np.nan, 1.76e12 + 500])))
    np.testing.assert_allclose(clocks.seconds["arrival"] - 1.76e9, [0.0, np.nan, 0.5], atol=1e-6)
    empty = read(arrival=Column("t", np.full(3, np.nan)))
    assert np.isnan(empty.seconds["arrival"]).all()


@pytest.mark.parametrize("unit", PER_SECOND)
def test_short_answers_to_long_prompts(unit: Unit) -> None:
    """A second for one token is time to read the prompt, no millisecond."""
    latency = np.array([0.7, 0.9, 1.4, 2.0])
    columns = {"arrival": Column("x", ARRIVAL, "s"), "output": Column("n", np.ones(4))}
    clocks = read(latency=Column("latency", latency * PER_SECOND[unit]), **columns)
    np.testing.assert_allclose(clocks.seconds["latency"], latency)


@pytest.mark.parametrize("unit", PER_SECOND)
def test_the_first_token_has_the_unit_of_the_further_ones(unit: Unit) -> None:
    factor = PER_SECOND[unit]
    ttft, tpot = np.array([0.35, 0.2, 0.5, 0.4]), np.full(4, 0.012)
    columns = {"arrival": Column("x", ARRIVAL, "s"), "output": Column("n", OUTPUT)}
    clocks = read(ttft=Column("ttft", ttft * factor), tpot=Column("tpot", tpot * factor), **columns)
    np.testing.assert_allclose(clocks.seconds["ttft"], ttft)
    # As small a number as the whole latency in seconds, but of its unit.
    ttft, latency = np.full(4, 0.015), np.full(4, 20.0)
    columns["output"] = Column("n", np.full(4, 1000.0))
    clocks = read(ttft=Column("ttft", ttft * factor), latency=Column("latency", latency * factor), **columns)
    np.testing.assert_allclose(clocks.seconds["ttft"], ttft)
    # What would be a few microseconds is of another unit.
    clocks = read(ttft=Column("ttft", ttft), latency=Column("latency_ms", latency * 1e3, "ms"), **columns)
    np.testing.assert_allclose(clocks.seconds["ttft"], ttft)
