from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.profile import builtin_profiles, load_profile, save_profile

# What a user may get wrong in a file.
Edit = Callable[[dict], object]


@pytest.fixture
def content(tmp_path: Path) -> dict:
    save_profile(load_profile("opt-a100"), tmp_path / "copy.json")
    return json.loads((tmp_path / "copy.json").read_text())


def complaint(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_saved_profile_is_read_back_the_same(tmp_path: Path) -> None:
    for name in builtin_profiles():
        profile = load_profile(name)
        save_profile(profile, tmp_path / "profile.json")
        again = load_profile(str(tmp_path / "profile.json"))
        assert again == profile
        assert again.digest() == profile.digest()
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_points_lie_on_one_line_each(tmp_path: Path) -> None:
    save_profile(load_profile("opt-a100"), tmp_path / "profile.json")
    assert "        [1, 0." in (tmp_path / "profile.json").read_text()


def test_the_same_content_in_another_layout_has_the_same_digest(content: dict, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert load_profile(tmp_path / "other.json").digest() == load_profile("opt-a100").digest()


def test_chunks_are_kept_and_where_there_are_none_files_and_digests_are_what_they_were(tmp_path: Path) -> None:
    profile = load_profile("opt-a100")
    assert profile.digest().startswith("e0da8d15ed03e729")  # of the revision before chunks
    first, *others = profile.models
    chunked = dataclasses.replace(profile, models=(dataclasses.replace(first, chunk_tokens=512), *others))
    for name, each in (("whole", profile), ("chunked", chunked)):
        save_profile(each, tmp_path / f"{name}.json")
        assert load_profile(tmp_path / f"{name}.json") == each
    assert "chunk_tokens" not in (tmp_path / "whole.json").read_text()
    assert (tmp_path / "chunked.json").read_text().count("chunk_tokens") == 1


def test_fields_with_a_default_may_be_left_out(content: dict, tmp_path: Path) -> None:
    del content["cache_output_share"]
    for model in content["models"]:
        for field in ("slowdown", "context_cost_s", "cache_tokens"):
            del model[field]
    (tmp_path / "short.json").write_text(json.dumps(content))
    assert load_profile(tmp_path / "short.json") == load_profile("opt-a100")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.update(gpu="A100"), "`gpu` is not a known field; known are format, name"),
        (lambda c: c["models"][1].update(decod=[]), "`models[1].decod` is not a known field, did you mean `decode`?"),
        (
            lambda c: c["provenance"]["decode"].update(kinds="x"),
            "`provenance.decode.kinds` is not a known field, did you mean `kind`?",
        ),
        (lambda c: c.pop("device"), "`device` is missing; add it"),
        (lambda c: c["models"][0].pop("prefill"), "`models[0].prefill` is missing; add it"),
        (lambda c: c["provenance"].pop("quality"), "`provenance.quality` is missing; add it"),
        (lambda c: c.update(format=2), "`format` is 2, but should be 1"),
        (lambda c: c.update(name=3), "`name` is 3, but should be a valid string"),
        (lambda c: c.update(models={}), "`models` is {}, but should be a list"),
        (
            lambda c: c["models"][0]["decode"][3].__setitem__(1, "fast"),
            '`models[0].decode[3][1]` is "fast", but should be a valid number',
        ),
        (
            lambda c: c["models"][0]["decode"][3].__setitem__(0, 8.5),
            "`models[0].decode[3][0]` is 8.5, but should be a valid integer",
        ),
        (lambda c: c["models"][0]["decode"][3].append(1), "`models[0].decode[3]"),
        (
            lambda c: c["models"][0]["decode"][0].__setitem__(1, math.nan),
            "`models[0].decode[0][1]` is NaN, but should be",
        ),
        (lambda c: c["models"][0].update(cache_tokens="all"), '`models[0].cache_tokens` is "all", but should be'),
        (
            lambda c: c["provenance"]["decode"].update(kind="guessed"),
            '`provenance.decode.kind` is "guessed", but should be',
        ),
        (lambda c: c["models"][2]["decode"].reverse(), "Model `opt-6.7b`: `decode` must begin"),
        (lambda c: c["models"][2]["prefill"][4].__setitem__(1, -1.0), "Model `opt-6.7b`: `prefill` has -1 s"),
        (lambda c: c["models"][2]["prefill"][4].__setitem__(1, 1.0), "Model `opt-6.7b`: `prefill` falls from 1 s"),
        (lambda c: c["models"][0].update(slowdown=[1, 0.5, 1]), "Model `opt-125m`: `slowdown` has 0.5"),
        (lambda c: c["models"][0].update(slowdown=[1, 2]), "has 2 factors for 3 models"),
        (lambda c: c["models"].pop(), "has 3 values for 2 models"),
        (lambda c: c["models"][0].update(name="opt-6.7b"), "`models` lists `opt-6.7b` twice"),
        (lambda c: c["tasks"][0].update(name="lambada"), "`tasks` lists `lambada` twice"),
        (lambda c: c["tasks"][0].update(quality_percent=[1, 2, 101]), "Task `piqa`: `quality_percent` has 101"),
        (
            lambda c: c["tasks"][0].update(quality_percent=[0, 0, 0]),
            "Task `piqa`: `quality_percent` is 0 for every model",
        ),
    ],
)
def test_one_sentence_for_each_mistake(content: dict, tmp_path: Path, edit: Edit, words: str) -> None:
    edit(content)
    assert words in complaint(tmp_path / "edited.json", json.dumps(content))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short(tmp_path: Path, share: float) -> None:
    save_profile(load_profile("opt-a100"), tmp_path / "whole.json")
    text = (tmp_path / "whole.json").read_bytes()
    message = complaint(tmp_path / "cut.json", text[: int(share * len(text))])
    assert message.startswith("not valid JSON (")


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_json_that_is_no_object(tmp_path: Path, text: str) -> None:
    assert f"the file is {text}, but should be a mapping." == complaint(tmp_path / "other.json", text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert complaint(tmp_path / "binary.json", b"\x80\x81{").startswith("cannot read it as text (byte 1 is not UTF-8)")


def test_a_name_that_is_neither_file_nor_builtin(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no such file; .* built-in name: demo, laptop, opt-a100, opt-a100-all, [a-z0-9, -]+\.$"
    ):
        load_profile("opt-b200")
    with pytest.raises(InputError, match="this is a directory; name a file"):
        load_profile(tmp_path)


def test_writing_where_one_cannot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/profile\.json: cannot write it, no such file or directory; .*\.$"):
        save_profile(load_profile("opt-a100"), tmp_path / "nowhere" / "profile.json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    path.write_text("precious")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left on device"):
        save_profile(load_profile("opt-a100"), path)
    assert path.read_bytes() == b"precious"
    assert [item.name for item in tmp_path.iterdir()] == ["profile.json"]


def test_importing_is_light() -> None:
    heavy = "jax", "pydantic", "scipy", "matplotlib"
    program = f"import sys, besteffort.profile; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
