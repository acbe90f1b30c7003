"""What a situation is told apart by."""

from __future__ import annotations

import itertools

from besteffort.situation import View, as_text


def test_the_text_of_a_view_tells_every_other_one_apart() -> None:
    gateways, delays_s, taus_s = (1, 2, 15, 25), (0.0, 0.01, 0.05, 0.051), (0.0, 0.05, 2.0, 2.05)
    views = [
        View(slowdown_tau_s=tau_s, gateways=count, gateway_delay_s=delay_s)
        for count, delay_s, tau_s in itertools.product(gateways, delays_s, taus_s)
    ]
    assert len(set(map(as_text, views))) == len(views)


def test_what_came_later_and_is_off_is_not_in_the_text() -> None:
    assert as_text(View(rate_tau_s=3.0)).endswith(", rate_tau_s=3.0, rate_lag=0, batch_refresh_s=0.0, streamed=True)")
    assert as_text(View(gateways=15)).endswith(", streamed=True, gateways=15)")
