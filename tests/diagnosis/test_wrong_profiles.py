from __future__ import annotations

import numpy as np
import pytest

from besteffort.diagnosis.wrong_profiles import perturb_latency, perturb_quality
from besteffort.errors import InputError
from besteffort.profile import load_profile

PROFILE = load_profile("opt-a100")


def percent(profile):
    return np.array([task.quality_percent for task in profile.tasks])


def test_qualities_are_wrong_by_the_share_in_either_direction() -> None:
    wrong = perturb_quality(PROFILE, 0.1, seed=3)
    ratio = percent(wrong) / percent(PROFILE)
    np.testing.assert_allclose(np.abs(ratio - 1), 0.1)
    assert set(np.sign(ratio - 1).ravel()) == {-1.0, 1.0}
    assert (percent(perturb_quality(PROFILE, 0.1, seed=4)) != percent(wrong)).any()
    np.testing.assert_array_equal(percent(perturb_quality(PROFILE, 0.1, seed=3)), percent(wrong))
    assert wrong.models == PROFILE.models


def test_no_quality_exceeds_all_that_there_is() -> None:
    highest = percent(PROFILE).max()
    wrong = percent(perturb_quality(PROFILE, 0.9, seed=0))
    assert highest * 1.9 > 100
    assert wrong.max() == 100
    assert wrong.min() > 0


@pytest.mark.parametrize(("how", "factors"), [("slower", {1.2}), ("faster", {0.8}), ("mixed", {0.8, 1.2})])
def test_every_model_has_one_factor(how, factors) -> None:
    found = set()
    for seed in range(4):
        wrong = perturb_latency(PROFILE, 0.2, how, seed)
        for new, old in ((wrong.decode_table(40), PROFILE.decode_table(40)), (wrong.prefill_table(9), None)):
            old = PROFILE.prefill_table(9) if old is None else old
            ratio = new[:, 1:] / old[:, 1:]
            np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones_like(ratio))
        found |= set(np.round(wrong.decode_table(1)[:, 1] / PROFILE.decode_table(1)[:, 1], 12).tolist())
    assert found == factors
    assert wrong.tasks == PROFILE.tasks


def test_what_was_changed_is_said() -> None:
    for wrong, parts in (
        (perturb_quality(PROFILE, 0.3, 7), {"quality"}),
        (perturb_latency(PROFILE, 0.3), {"decode", "prefill"}),
    ):
        assert wrong.digest() != PROFILE.digest()
        for name in ("decode", "prefill", "slowdown", "quality"):
            source, was = getattr(wrong.provenance, name), getattr(PROFILE.provenance, name)
            if name in parts:
                assert source.kind == "modelled"
                assert "30%" in source.method
                assert source.source == was.source
            else:
                assert source == was


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range_are_refused(share) -> None:
    for change in (lambda: perturb_quality(PROFILE, share, 0), lambda: perturb_latency(PROFILE, share)):
        with pytest.raises(InputError, match="give a share from 0 to below 1"):
            change()
