"""Fits that are finished are not done again; what does not fit counts as none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.profiling import fitted_profile
from besteffort.profiling.fit import Fitted, Term, fit
from besteffort.profiling.kept_fits import NOTHING_KEPT, KeptFits
from besteffort.profiling.problem import Assumption
from besteffort.profiling.server_log import RequestLog, read_log
from tests.profiling.test_fitted_profile import log_text

FITTED = Fitted(
    decode=((1, 0.1), (8, 0.25)),
    prefill=((1, 1e-3 / 3),),
    context_cost_s=1e-7,
    cache_tokens=None,
    cache_output_share=1.0,
    max_batch=16,
    delay_s=0.0,
    limit="batch",
    terms=(Term("cache", False, "text"),),
    first_s=np.array([0.1, 1 / 3]),
    last_s=np.array([0.2, 2 / 3]),
    largest_batch=7,
    batch_from="log",
    chunk_tokens=512,
    assumed=Assumption(max_batch=16, chunk_tokens=512),
    alike=(Assumption(max_batch=16, chunk_tokens=512), Assumption(max_batch=16)),
)


@pytest.fixture
def log(tmp_path: Path) -> RequestLog:
    path = tmp_path / "log.csv"
    path.write_text(log_text(), encoding="utf-8")
    return read_log(path)


def same(one: Fitted, other: Fitted) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Fitted))


def never() -> Fitted:
    raise AssertionError("done twice")


def test_what_is_kept_is_the_same_to_the_last_digit(tmp_path: Path, log: RequestLog) -> None:
    path = tmp_path / "server.fit.npz"
    assert KeptFits(path).fit(log, lambda: FITTED, part="all") is FITTED
    found = KeptFits(path).fit(log, never, part="all")
    assert same(found, FITTED)
    assert (found.terms, found.decode, found.cache_tokens) == (FITTED.terms, FITTED.decode, None)
    other = dataclasses.replace(FITTED, max_batch=3)
    kept = KeptFits(path)
    assert kept.fit(log, lambda: other, part="first half") is other
    later = dataclasses.replace(log, last_token_s=log.last_token_s + 1e-9)
    assert kept.fit(later, lambda: other, part="all") is other
    assert same(KeptFits(path).fit(log, never, part="all"), FITTED)
    kept.end()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"damage", b"PK\x03\x04"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, log: RequestLog, content: bytes) -> None:
    path = tmp_path / "server.fit.npz"
    path.write_bytes(content)
    assert KeptFits(path).fit(log, lambda: FITTED) is FITTED
    assert same(KeptFits(path).fit(log, never), FITTED)


def test_nothing_is_kept_where_there_is_no_file(log: RequestLog) -> None:
    assert NOTHING_KEPT.fit(log, lambda: FITTED) is FITTED
    with pytest.raises(AssertionError):
        NOTHING_KEPT.fit(log, never)
    NOTHING_KEPT.end()


def test_an_interrupted_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was fitted before the interrupt is not fitted again, and the profile is what it would have been."""
    log = tmp_path / "log.csv"
    log.write_text(log_text(40, model=True), encoding="utf-8")
    command = ["profile", "fit", str(log), "--quality", "chat=a:50,b:60", "--out"]
    done: list[int] = []

    def counted(*arguments: object, **options: object) -> Fitted:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return fit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fitted_profile, "fit", counted)
    assert main([*command, str(tmp_path / "server.json")]) == 130
    assert not (tmp_path / "server.json").exists()
    assert (tmp_path / "server.fit.npz").exists()
    done[:] = [1] * 4  # leaves one
    assert main([*command, str(tmp_path / "server.json")]) == 0
    assert not (tmp_path / "server.fit.npz").exists()
    monkeypatch.setattr(fitted_profile, "fit", fit)
    (tmp_path / "whole").mkdir()
    assert main([*command, str(tmp_path / "whole" / "server.json")]) == 0
    for name in ("server.json", "server.yaml", "server.fit.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
