"""What is written about an evaluation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from besteffort.bounds.prices import Bound
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import LEARNED, EvaluationResult, EvaluationSet
from besteffort.evaluation.results import figures_of, full_tables, write_outcome
from besteffort.pools import OriginDelay, Pool
from besteffort.situation import Cluster, Origin, Tenant
from besteffort.workload.requests import Requests


@pytest.fixture
def evaluation(make_situation, make_result):
    situation = make_situation([((1, 1.0),)] * 2, [1.0, 2.0], [(30.0, 60.0)])
    pools = (
        Pool("here", "model0", network_delay_s=0.02, delays=(OriginDelay("near", 0.001),)),
        Pool("there", "model1"),
    )
    origins = (Origin("near", 3.0), Origin("far"))
    situation = dataclasses.replace(situation, cluster=Cluster(), pools=pools, origins=origins)
    arrival_s = np.arange(4.0)
    one = np.ones(4)
    requests = Requests(situation.task_names, arrival_s, 0 * one, one, one, one)
    sets = EvaluationSet("some", "Some load", situation, (1.0, 2.0), ((requests,) * 2,) * 2, (requests,), 3.0, 0.0)
    origin = [0, 1, 1, 0]
    in_time = make_result([arrival_s] * 2, origin=origin)
    late = make_result([arrival_s] * 2, origin=origin, latency_s=np.where(origin, 2.0, 0.5))
    bound = Bound(np.array(1.0), np.array(1.0))
    return EvaluationResult(
        sets,
        {LEARNED: "learned", "always model0": "static"},
        {},
        ({LEARNED: in_time, "always model0": late},) * 2,
        ([bound], [bound]),
    )


def without_origins(evaluation):
    results = tuple(
        {name: dataclasses.replace(result, origin=None) for name, result in each.items()} for each in evaluation.results
    )
    return dataclasses.replace(evaluation, results=results)


def test_figures_of_origins_stand_with_each_router(evaluation):
    config = EvaluationConfig()
    rows = figures_of(evaluation, full_tables(evaluation, config))["loads"][1]["rows"]
    assert rows[LEARNED]["origins"]["far"]["slo_attainment"] == {"mean": 1.0, "half_width": 0.0}
    assert rows["always model0"]["origins"]["near"]["performance"]["mean"] == 1.0
    assert rows["always model0"]["origins"]["far"]["performance"]["mean"] == 0.0
    assert rows["always model0"]["origins"]["far"]["latency_p50_s"]["mean"] == 2.0
    assert "origins" not in rows["upper bound"]
    without = without_origins(evaluation)
    plain = figures_of(without, full_tables(without, config))["loads"][1]["rows"]
    assert not any("origins" in row for row in plain.values())
    assert all({k: v for k, v in rows[name].items() if k != "origins"} == row for name, row in plain.items())


def test_figures_of_tenants_stand_with_each_router_and_in_the_report(evaluation, tmp_path):
    results = tuple(
        {name: dataclasses.replace(result, tenant=1 - np.asarray(result.origin)) for name, result in each.items()}
        for each in evaluation.results
    )
    situation = dataclasses.replace(evaluation.set.situation, tenants=(Tenant("gold", 3.0, 0.25), Tenant("lead")))
    sets = dataclasses.replace(evaluation.set, situation=situation)
    evaluation = dataclasses.replace(evaluation, results=results, set=sets)
    rows = figures_of(evaluation, full_tables(evaluation, EvaluationConfig()))["loads"][1]["rows"]
    assert rows["always model0"]["tenants"]["gold"]["performance"]["mean"] == 0.0
    assert rows["always model0"]["tenants"]["lead"]["performance"]["mean"] == 1.0
    assert rows["always model0"]["worst_tenant"]["mean"] == 0.0
    assert rows["always model0"]["weighted_performance"]["mean"] == pytest.approx(0.25)
    assert rows["always model0"]["origins"]["far"]["performance"]["mean"] == 0.0
    assert "tenants" not in rows["upper bound"]
    assert rows["upper bound"]["weighted_performance"] is None
    write_outcome(tmp_path, "Title", [evaluation], EvaluationConfig(), (), {})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "### Some load, mean load 2, by tenant" in text
    assert "| Tenants | gold 20%, weight 3, lead 80%, weight 1 |" in text


def test_the_report_has_a_table_by_origin_for_each_load(evaluation, tmp_path):
    write_outcome(tmp_path, "Title", [evaluation], EvaluationConfig(), (), {})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for load in (1, 2):
        assert f"### Some load, mean load {load}, by origin" in text
    assert "| Origins | near 75%, far 25% |" in text
    assert "32 wait; network delay 20 ms, 1 ms from near |" in text
    assert "32 wait; network delay 0 ms |" in text
    assert "| always model0, far | 50.0 ± 0.0 | 0.00 ± 0.00 | 0.0 ± 0.0 | 2,000 ± 0 | 2,000 ± 0 |" in text
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))[0]["loads"][0]["rows"]
    write_outcome(tmp_path, "Title", [without_origins(evaluation)], EvaluationConfig(), (), {})
    assert "by origin" not in (tmp_path / "report.md").read_text(encoding="utf-8")
