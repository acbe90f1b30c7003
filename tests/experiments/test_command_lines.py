"""A user's mistake on an experiment's command line is a sentence, not a traceback."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize(
    ("name", "option", "file"),
    [
        ("fit_vllm", "--log", ""),
        ("roofline_calibration", "--data", "splitwise_perf_model_a100_h100.csv.gz"),
    ],
)
def test_a_file_that_is_not_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    option: str,
    file: str,
) -> None:
    place = tmp_path / "missing"
    monkeypatch.setattr("sys.argv", [name, option, str(place)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.{name}").main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: {place / file}: ")
    assert said.count("\n") == 1


def test_a_server_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments import fit_servers

    monkeypatch.setattr("sys.argv", ["fit_servers", "--only", "batch of 23"])
    with pytest.raises(SystemExit) as ended:
        fit_servers.main()
    assert ended.value.code == 2
    assert "invalid choice: 'batch of 23'" in capsys.readouterr().err
