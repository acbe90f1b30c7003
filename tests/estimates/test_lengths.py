"""Laws of output lengths against sums over all lengths."""

from __future__ import annotations

import numpy as np
import pytest

from besteffort.estimates.lengths import QUANTILES, LengthLaws, length_law, output_law
from besteffort.situation import Task

TASKS = (
    Task("uniform", output_tokens=(3, 12)),
    Task("tilted", output_tokens=(1, 40), mean_output_tokens=6.0),
    Task("logged", output_tokens=(1, 40), output_quantiles=(2.0, 2.0, 5.0, 30.0)),
    Task("certain", output_tokens=(7, 7)),
)
LAWS = LengthLaws.of(TASKS)


@pytest.mark.parametrize("row", range(len(TASKS)), ids=[task.name for task in TASKS])
def test_tables_say_what_sums_over_all_lengths_say(row: int) -> None:
    values, shares = output_law(TASKS[row])
    for tokens in range(values.max()):
        longer = values > tokens
        chance = shares[longer].sum()
        assert LAWS.survival[row, tokens] == pytest.approx(chance, rel=1e-12)
        expected = ((values - tokens) * shares)[longer].sum() / chance
        assert LAWS.remainder[row, tokens] == pytest.approx(expected, rel=1e-9)
        for limit in range(tokens + 1, values.max() + 1):
            capped = ((np.minimum(values, limit) - tokens) * shares)[longer].sum() / chance
            beyond = LAWS.survival[row, limit] / LAWS.survival[row, tokens] * LAWS.remainder[row, limit]
            assert LAWS.remainder[row, tokens] - beyond == pytest.approx(capped, rel=1e-9)


def test_beyond_the_longest_known_length_one_more_token_is_expected() -> None:
    assert (LAWS.remainder[:, -1] == 1).all()
    assert LAWS.remainder[0, 12:].tolist() == [1.0] * 29
    assert (LAWS.survival > 0).all()
    assert LAWS.longest.tolist() == [12, 40, 40, 7]


def test_quantiles_stand_for_the_law() -> None:
    assert LAWS.length_quantiles.shape == (len(TASKS), QUANTILES)
    assert LAWS.length_quantiles[0].mean() == pytest.approx(7.5, abs=0.1)
    assert LAWS.length_quantiles[2].tolist() == [2.0] * 8 + [5.0] * 4 + [30.0] * 4
    assert LAWS.length_quantiles[3].tolist() == [7.0] * QUANTILES


def test_the_law_of_a_mean_has_that_mean() -> None:
    values, shares = length_law((1, 1000), 28.0)
    assert shares.sum() == pytest.approx(1)
    assert values @ shares == pytest.approx(28, rel=1e-6)
    assert np.diff(np.log(shares)) == pytest.approx(np.diff(np.log(shares))[0])


def test_laws_can_be_made_as_long_as_those_of_others() -> None:
    longer = LengthLaws.of(TASKS, 100)
    assert longer.survival.shape == (len(TASKS), 101)
    np.testing.assert_allclose(longer.survival[:, :41], LAWS.survival)
    np.testing.assert_allclose(longer.remainder[:, :40], LAWS.remainder[:, :40])
