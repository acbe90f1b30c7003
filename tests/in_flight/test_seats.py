"""Requests as arrays: seats that are added are free ones, and those that are taken stay as they are."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.estimates.estimates import Stakes
from besteffort.in_flight.entries import Entry
from besteffort.in_flight.seats import Seats


def test_seats_are_added_to_all_arrays() -> None:
    seats = Seats.empty(2, 3)
    entry = Entry(1, 10, 5, 0.5, 0.25, cached_tokens=4, instance=1, seat=2, delay_s=0.1)
    stakes = Stakes(7, 12, 0.2, 0.01, 0.8, 0.3)
    seats.take(entry, stakes, order=9, eligible=True, tenant_weight=2.0)
    before = dataclasses.astuple(seats)
    seats.widen()
    for each, old, free in zip(dataclasses.astuple(seats), before, dataclasses.astuple(Seats.empty(2, 3)), strict=True):
        assert each.shape == (2, 6)
        assert each.dtype == old.dtype
        np.testing.assert_array_equal(each[:, :3], old)
        np.testing.assert_array_equal(each[:, 3:], free)


def test_what_is_seen_of_a_seat_is_its_request() -> None:
    seats = Seats.empty(1, 2)
    limited = Entry(0, 10, 5, 1.0, 0.0, instance=0, seat=0)
    free = Entry(0, 10, None, 1.0, 0.0, instance=0, seat=1)
    for order, entry in enumerate((limited, free)):
        seats.take(entry, Stakes(100, None, 0.2, 0.01, 0.8, 0.3), order=order, eligible=False, tenant_weight=1.0)
    row = np.array([0])
    assert seats.stakes(row, 50, limits=True).limit.tolist() == [[105, 150]]
    assert seats.stakes(row, 50, limits=False).limit is None
    seats.leave(limited)
    assert seats.present.tolist() == [[False, True]]
    assert seats.stakes(row, 50, limits=True).quality.tolist() == [[0.0, 0.8]]
    assert seats.stakes(row, 50, limits=True).penalty.tolist() == [[0.0, 0.3]]
