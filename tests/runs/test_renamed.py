"""A former name of a field is one sentence that gives the present one."""

from __future__ import annotations

from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.runs.experiment import TrainingConfig, load_run
from besteffort.runs.renamed import RENAMED
from besteffort.sweep.plan import load_sweep


@pytest.mark.parametrize("old", RENAMED)
def test_in_configurations_and_sweeps(old: str, tmp_path: Path) -> None:
    new = RENAMED[old]
    assert hasattr(TrainingConfig().config, new.rpartition(".")[2])
    sentence = rf"file\.yaml: `{old}` is now called `{new}`; rename it\.$"
    path = tmp_path / "file.yaml"
    path.write_text(
        f"profile: opt-a100\ntasks: [{{name: piqa}}]\ntraining: {{config: {{{old.rpartition('.')[2]}: 4}}}}\n"
    )
    with pytest.raises(InputError, match=sentence):
        load_run(path)
    path.write_text(f"base: paper\naxes: {{{old}: [4, 8]}}\n")
    with pytest.raises(InputError, match=sentence):
        load_sweep(path)
    path.write_text(f"base: paper\naxes: {{training.seed: [0, 1]}}\nchanges: {{{old}: 4}}\n")
    with pytest.raises(InputError, match=sentence):
        load_sweep(path)
