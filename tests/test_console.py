"""Progress and warnings where there is no terminal."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest

from besteffort import console
from besteffort.console import Answer, Output, streams_restored, training_bars


class Clock:
    """Seconds that pass when a test says so; read in place of `time.monotonic`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.now_s = 1000.0
        self._capsys = capsys

    def told_after(self, seconds: float) -> str:
        """The line of the thread that looks at this clock; empty if there is none."""
        self.now_s += seconds
        for _ in range(1000 if seconds >= 60 else 5):
            time.sleep(0.01)
            if told := self._capsys.readouterr().err:
                return told
        return ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clock:
    clock = Clock(capsys)
    monkeypatch.setattr(console, "_LOOK_S", 0.005)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now_s)
    return clock


def test_work_that_says_nothing_is_still_told_of_once_a_minute(clock: Clock) -> None:
    with Answer("evaluate", Output()).status("Judging all routers") as say:
        assert clock.told_after(59) == ""
        assert clock.told_after(61) == "Judging all routers\n"
        assert clock.told_after(59) == ""
        say("bounds")
        assert clock.told_after(61) == "bounds\n"
    assert clock.told_after(59) == ""


def test_what_is_done_between_trainings_is_told(clock: Clock) -> None:
    with training_bars(Output()) as bars:
        bars.doing("Judging all routers (bursts)")
        assert clock.told_after(59) == ""
        assert clock.told_after(61) == "Judging all routers (bursts)\n"
    quiet = Output(quiet=True)
    with streams_restored(), training_bars(quiet) as bars, Answer("evaluate", quiet).status("Judging"):
        bars.doing("Judging all routers (bursts)")
        clock.now_s += 61
        assert clock.told_after(0) == ""


def test_a_warning_of_ours_is_a_sentence() -> None:
    text = UserWarning("checkpoint.npz: it is damaged.")
    before: Any = warnings.formatwarning
    with streams_restored():
        assert warnings.formatwarning(text, UserWarning, console.__file__, 7) == f"besteffort: {text}\n"
        for filename, category in ((console.__file__, RuntimeWarning), ("elsewhere.py", UserWarning)):
            assert f"{filename}:7: {category.__name__}" in warnings.formatwarning(text, category, filename, 7)
    assert warnings.formatwarning is before
