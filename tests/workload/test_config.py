from __future__ import annotations

import json

import numpy as np
import pydantic
import pytest

from besteffort.errors import InputError
from besteffort.runs.experiment import TrainingConfig
from besteffort.validation import from_json
from besteffort.workload.config import WorkloadConfig, build, load_trace
from besteffort.workload.rescale import capacity as list_capacity
from besteffort.workload.rescale import mean_rate
from besteffort.workload.sample import sample_workload
from besteffort.workload.trace_workload import ReplayWorkload

ADAPTER = pydantic.TypeAdapter(WorkloadConfig)


@pytest.mark.parametrize(
    ("config", "load"),
    [
        ({"kind": "poisson", "load": 0.5}, 0.5),
        ({"kind": "steps", "loads": [1, 3], "starts_s": [0, 2], "period_s": 8}, 2.5),
        ({"kind": "markov", "loads": [1, 4], "dwell_s": [2, 1]}, 2.0),
        ({"kind": "gamma", "load": 2, "cv": 4}, 2.0),
        ({"kind": "square", "low": 1, "high": 5, "period_s": 2, "duty": 0.25}, 2.0),
        ({"kind": "random_rates", "low": 1, "high": 4, "burst_probability": 0}, np.log(4) / 0.75),
    ],
)
def test_loads_are_multiples_of_the_largest_models_capacity(situation, config, load):
    workload = build(ADAPTER.validate_python(config), situation)
    assert float(workload.arrivals.mean_rate()) == pytest.approx(load * situation.capacity()[-1], rel=1e-5)
    assert len(sample_workload(workload, situation.task_names, 20, seed=0)) == 20


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"kind": "steps", "loads": [1, 2], "starts_s": [0]},
            "Workload `steps`: `loads` has 2 value(s) and `starts_s` 1; give one start for each load.",
        ),
        (
            {"kind": "steps", "loads": [1, 0], "starts_s": [0, 2]},
            "Workload `steps`: `loads` is [1.0, 0.0]; let the last one, which lasts, be positive.",
        ),
        (
            {"kind": "steps", "loads": [0, 0], "starts_s": [0, 2], "period_s": 4},
            "Workload `steps`: `loads` is [0.0, 0.0]; let one of them be positive.",
        ),
        (
            {"kind": "markov", "loads": [1, 2, 3], "dwell_s": [1, 1]},
            "Workload `markov`: `loads` has 3 values and `dwell_s` 2; give one dwell time for each load.",
        ),
        (
            {"kind": "markov", "loads": [0, 0], "dwell_s": [1, 1]},
            "Workload `markov`: `loads` is [0.0, 0.0]; let one of them be positive.",
        ),
        (
            {"kind": "random_rates", "low": 30},
            "Workload `random_rates`: `low` is 30 and `high` 24; let `high` not be below it.",
        ),
    ],
)
def test_mistakes_name_loads_and_the_file(config, sentence):
    """Not rates, which nobody has stated."""
    with pytest.raises(InputError) as error:
        from_json(TrainingConfig, json.dumps({"workload": config}), "mine.yaml")
    assert str(error.value) == f"mine.yaml: {sentence}"


def test_mix(situation):
    mix = {"shares": [[1, 0], [0, 1]], "starts_s": [0, 0.05]}
    workload = build(ADAPTER.validate_python({"kind": "poisson", "load": 1, "mix": mix}), situation)
    requests = sample_workload(workload, situation.task_names, 200, seed=0)
    np.testing.assert_array_equal(requests.task, requests.arrival_s >= 0.05)


def test_deadlines_that_change(situation):
    config = {"kind": "poisson", "load": 1, "deadlines": {"factors": [1, 0.5], "starts_s": [0, 0.05]}}
    requests = sample_workload(build(ADAPTER.validate_python(config), situation), situation.task_names, 100, seed=0)
    np.testing.assert_array_equal(requests.deadline_factor, np.where(requests.arrival_s < 0.05, 1.0, 0.5))


def test_trace(situation, write):
    rows = "".join(f"{i},piqa,{10 + i},{1 + i}\n" for i in range(10))
    path = write("own.csv", "arrival_s,task,prompt_tokens,output_tokens\n" + rows)
    config = ADAPTER.validate_python(
        {"kind": "trace", "path": str(path), "window_s": [2, 8], "load": 2, "start": "first"}
    )
    requests, info = load_trace(config, situation)
    assert (info.requests, len(requests)) == (10, 6)
    np.testing.assert_array_equal(requests.prompt_tokens, np.arange(12, 18))
    assert mean_rate(requests) == pytest.approx(2 * list_capacity(requests, situation)[-1])
    workload = build(config, situation)
    assert isinstance(workload, ReplayWorkload)
    again = sample_workload(workload, situation.task_names, 6, seed=0)
    np.testing.assert_allclose(again.arrival_s, requests.arrival_s, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "poison", "load": 1},
        {"load": 1},
        {"kind": "poisson", "load": 0},
        {"kind": "gamma", "load": 1, "cv": -1},
        {"kind": "markov", "loads": [1], "dwell_s": [1]},
        {"kind": "square", "low": 1, "high": 2, "period_s": 2, "duty": 1.5},
        {"kind": "random_rates", "burst_probability": 1},
        {"kind": "poisson", "load": 1, "deadlines": {"factors": [0]}},
        {"kind": "trace", "path": "a.csv", "format": "parquet"},
    ],
)
def test_values_out_of_range_are_refused(config):
    with pytest.raises(pydantic.ValidationError):
        ADAPTER.validate_python(config)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "poisson", "load": 1, "mix": {"shares": [[1, 1, 1]]}},
        {"kind": "poisson", "load": 1, "deadlines": {"factors": [1, 2]}},
        {"kind": "trace", "path": "nowhere.csv"},
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(situation, config):
    with pytest.raises(InputError):
        build(ADAPTER.validate_python(config), situation)
