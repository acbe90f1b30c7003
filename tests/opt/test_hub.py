"""What comes from the Hugging Face Hub, read from its cache: no test reaches for the network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_opt import REFERENCES

from besteffort.opt.hub import short_name
from besteffort.profiling.measure import MeasurementPlan
from besteffort.profiling.quality import QualityPlan

pytest.importorskip("huggingface_hub", reason="needs the extra `opt`")

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with one model in it, as the hub's library leaves it."""
    model = tmp_path / "hub" / "models--someone--tiny"
    snapshot = model / "snapshots" / COMMIT
    sharded = next(path for path in REFERENCES if (path / "model.safetensors.index.json").exists())
    shutil.copytree(sharded, snapshot)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return tmp_path


def run(program: str, cache: Path) -> str:
    environment = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_by_name_and_names_that_are_none(cache: Path) -> None:
    program = """
from besteffort.errors import InputError
from besteffort.opt.hub import load_tokenizer
from besteffort.opt.weights import load_model
print(load_model("someone/tiny").config.positions)
for load, name in ((load_model, "someone/other"), (load_model, "not a name"), (load_tokenizer, "someone/other")):
    try:
        load(name)
    except InputError as error:
        print(error)
"""
    positions, *sentences = run(program, cache).splitlines()
    assert positions == "48"
    assert [line.split(": ")[0] for line in sentences] == ["someone/other", "not a name", "someone/other"]
    assert "no such directory, and the hub does not provide it (" in sentences[0]
    assert sentences[1].endswith("check the name and the network.")


def test_what_a_model_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "small" / "step-9"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    names = ("facebook/opt-125m", "opt-125m", f"{inner}/", ".", "..", "../../large")
    assert [short_name(name) for name in names] == ["opt-125m", "opt-125m", "step-9", "step-9", "small", "large"]
    for plan in (MeasurementPlan((".",)), QualityPlan((".",), ("piqa",))):
        assert plan.names == ("step-9",)


def test_an_index_in_the_cache_that_is_none(cache: Path) -> None:
    snapshot = cache / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors.index.json").write_text("{")
    program = """
from besteffort.errors import InputError
from besteffort.opt.weights import load_model
try:
    load_model("someone/tiny")
except InputError as error:
    print(error)
"""
    assert "it must be JSON with a `weight_map` of tensors to files; fetch it again." in run(program, cache)


def test_a_tokenizer_from_a_directory(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `opt`")
    pytest.importorskip("transformers", reason="needs the extra `opt`")
    from besteffort.opt.hub import load_tokenizer

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "best": 1, "effort": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("best effort") == [1, 2]
    assert tokenizer.decode([2, 1]).split() == ["effort", "best"]


@pytest.mark.parametrize(
    "written",
    ["{", "{}", "[]", json.dumps({"added_tokens": [], "model": {"type": "Unheard"}})],
    ids=["cut short", "empty", "a list", "of a later version"],
)
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, written: str) -> None:
    pytest.importorskip("transformers", reason="needs the extra `opt`")
    from besteffort.errors import InputError
    from besteffort.opt.hub import load_tokenizer

    (tmp_path / "tokenizer.json").write_text(written)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match=r"there is no tokenizer that can be read \(.+\); add its files\."):
        load_tokenizer(tmp_path)
