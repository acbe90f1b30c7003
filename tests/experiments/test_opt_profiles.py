from __future__ import annotations

import sys
from pathlib import Path

import pytest

from besteffort.profile import builtin_profiles, load_profile

pytestmark = pytest.mark.checkout


def test_built_in_profiles_are_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import opt_profiles

    kept = opt_profiles.BUILTIN
    monkeypatch.setattr(opt_profiles, "BUILTIN", tmp_path)
    monkeypatch.setattr(sys, "argv", ["opt_profiles"])
    opt_profiles.main()
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(f"{name}.json" for name in builtin_profiles() if name not in ("demo", "laptop"))
    for name in written:
        assert (tmp_path / name).read_bytes() == (kept / name).read_bytes(), name


def test_a_profile_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.opt_profiles import main

    out = tmp_path / "large.json"
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", "--models", "opt-13b", "opt-30b", "--out", str(out)])
    main()
    assert load_profile(out).name == "large"
    assert load_profile(out).model_names == ("opt-13b", "opt-30b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "l4", "--models", "opt-13b", "--out", "x.json"], "opt_profiles: opt-13b: weights and key-value"),
        (["--device", "l4"], "together for a profile of your own, or none of them."),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from experiments.opt_profiles import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())
