"""The backend that options name, and what is said of options that do not fit it."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

from besteffort.errors import InputError
from besteffort.runs.backends import EarlyStopping, Local, Ray, backend_of


def test_options_name_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_of("local") == Local()
    assert backend_of("local", workers=3) == Local(3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    early = EarlyStopping(factor=2)
    assert backend_of("ray", address="auto", cpus=2, gpus=0.5, early=early) == Ray("auto", 2, 0.5, early)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"name": "local", "workers": 0}, "`--workers` is 0; give at least 1"),
        ({"name": "local", "address": "auto"}, "are for a cluster; add `--backend ray`"),
        ({"name": "local", "cpus": 2}, "are for a cluster"),
        ({"name": "local", "gpus": 0.5}, "are for a cluster"),
        ({"name": "local", "early": EarlyStopping()}, "are for a cluster"),
        ({"name": "ray", "workers": 2}, "`--workers` is for local processes; leave it out"),
        ({"name": "ray", "cpus": 0}, "`--cpus` is 0; give at least 1"),
        ({"name": "ray", "gpus": -1.0}, "`--gpus` is -1; give at least 0"),
        ({"name": "ray", "gpus": math.nan}, "`--gpus` is nan; give at least 0"),
        ({"name": "ray"}, "Ray is not installed; `pip install"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    given: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=sentence):
        backend_of(**given)
