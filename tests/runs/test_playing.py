from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.routers import LearnedRouter, PricedRouter, StaticRouter
from besteffort.runs.experiment import load_run
from besteffort.runs.playing import router_named

LIST = "arrival_s,task,prompt_tokens,output_tokens\n0,piqa,100,10\n0.1,arc_easy,100,20\n0.2,piqa,50,3\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "requests.csv"
    path.write_text(LIST, encoding="utf-8")
    return path


def test_both_backends_write_the_same(small: Path, listed: Path, tmp_path: Path) -> None:
    written = []
    for backend in ("jax", "reference"):
        out = tmp_path / backend
        arguments = ["simulate", str(listed), "--router", "opt-1.3b", "--config", str(small), "--backend", backend]
        assert main([*arguments, "--out", str(out)]) == 0
        written.append(list(csv.DictReader((out / "requests.csv").read_text(encoding="utf-8").splitlines())))
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert summary["slo_attainment"] == 1.0
    for ours, theirs in zip(*written, strict=True):
        assert ours["model"] == "opt-1.3b"
        assert ours["task"] == theirs["task"]
        assert float(ours["completion_s"]) == pytest.approx(float(theirs["completion_s"]), abs=1e-9)


def test_requests_that_a_failing_replica_loses_are_told(listed: Path, tmp_path: Path) -> None:
    config = tmp_path / "failing.yaml"
    config.write_text(
        "profile: opt-a100\ntasks: [{name: piqa}, {name: arc_easy}]\npools:\n- {name: near, model: opt-1.3b, "
        "events: [{time_s: 0.15, replica: 0, what: fail}]}\n",
        encoding="utf-8",
    )
    for backend in ("jax", "reference"):
        out = tmp_path / backend
        arguments = ["simulate", str(listed), "--router", "near", "--config", str(config), "--backend", backend]
        assert main([*arguments, "--out", str(out)]) == 0
        rows = list(csv.DictReader((out / "requests.csv").read_text(encoding="utf-8").splitlines()))
        assert [(row["replica"], row["lost"], row["met"]) for row in rows] == [
            ("0", "0", "1"),
            ("0", "1", "0"),
            ("-1", "0", "0"),
        ]
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert summary["lost"] == summary["rejected"] == pytest.approx(1 / 3)
        assert summary["latency_p99_s"] < 0.15
        assert summary["gpu_seconds_near"] == pytest.approx(0.15)  # of 0.2 s


ORIGINS = """\
profile: opt-a100
tasks: [{name: piqa}, {name: arc_easy}]
pools: [{name: one, model: opt-1.3b, network_delay_s: 0.01, delays: [{origin: far, network_delay_s: 5}]}]
origins: [{name: near}, {name: far}]
"""


def test_origins_are_written_per_request_and_in_sum(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "origins.yaml"
    config.write_text(ORIGINS, encoding="utf-8")
    head, *rows = LIST.splitlines()
    origins = ["far", "near", "near"]
    text = [f"{head},origin", *(f"{row},{origin}" for row, origin in zip(rows, origins, strict=True))]
    listed.write_text("\n".join([*text, ""]), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["simulate", str(listed), "--router", "one", "--config", str(config), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 requests, by origin" in shown
    written = list(csv.DictReader((out / "requests.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["origin"] for row in written] == origins
    found = json.loads((out / "summary.json").read_text(encoding="utf-8"))["origins"]
    assert {name: row["share_of_requests"] for name, row in found.items()} == {
        "near": pytest.approx(2 / 3),
        "far": pytest.approx(1 / 3),
    }
    assert {name: row["slo_attainment"] for name, row in found.items()} == {"near": 1.0, "far": 0.0}
    assert found["far"]["latency_p50_s"] == pytest.approx(float(written[0]["latency_s"]))


def test_tenants_are_written_per_request_and_in_sum(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tenants.yaml"
    tenants = "tenants: [{name: gold, weight: 3}, {name: lead}]\n"
    config.write_text(ORIGINS.replace("near", "far").replace(", {name: far}]", "]") + tenants, encoding="utf-8")
    head, *rows = LIST.splitlines()
    whose = ["lead", "gold", "gold"]
    text = [f"{head},tenant", *(f"{row},{name}" for row, name in zip(rows, whose, strict=True))]
    listed.write_text("\n".join([*text, ""]), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["simulate", str(listed), "--router", "one", "--config", str(config), "--out", str(out)]) == 0
    assert "3 requests, by tenant" in capsys.readouterr().out
    written = list(csv.DictReader((out / "requests.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["tenant"] for row in written] == whose
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert {name: row["share_of_requests"] for name, row in summary["tenants"].items()} == {
        "gold": pytest.approx(2 / 3),
        "lead": pytest.approx(1 / 3),
    }
    assert "origins" not in summary
    reward = np.array([float(row["reward"]) for row in written])
    assert summary["performance"] == pytest.approx(reward.mean())
    assert summary["weighted_performance"] == pytest.approx((reward[0] + 3 * (reward[1] + reward[2])) / 7)
    assert summary["worst_tenant"] == pytest.approx(
        min(row["performance_of_peak"] for row in summary["tenants"].values())
    )


def test_names_of_routers(small: Path, trained: Path) -> None:
    _, situation = load_run(small)
    assert isinstance(router_named("opt-6.7b", situation), StaticRouter)
    priced = router_named("priced", situation, ("price=0.1", "reserve=0.2", "width=0"))
    assert isinstance(priced, PricedRouter)
    assert float(priced.price) == pytest.approx(0.1)
    assert router_named("ladder", situation, ("thresholds=8,4",)).thresholds.tolist() == [8, 4]
    gear = router_named("gear", situation)
    assert (gear.shares.shape[1:], float(gear.head_room)) == ((len(situation.tasks), 3), 1.0)
    assert float(router_named("gear", situation, ("head_room=1.5",)).head_room) == 1.5
    assert isinstance(router_named(str(trained / "policy.safetensors"), situation), LearnedRouter)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("opt-125m", ("model=1",), "takes no settings, but `opt-125m` was given model"),
        ("priced", ("name=1",), "takes price, reserve, width, but was given name"),
        ("priced", ("price=0.1,0.2", "reserve=0", "width=0"), "has 2 numbers; `price` takes one"),
        ("pricd", (), "Unknown router `pricd`, did you mean `priced`?"),
        ("priced", ("price=0.1",), "takes price, reserve, width, but was given price"),
        ("priced", ("cheap",), "write it like `price=0.1`"),
        ("nowhere.safetensors", (), "there is no such policy file"),
    ],
)
def test_other_names_are_refused(small: Path, name: str, settings: tuple[str, ...], message: str) -> None:
    _, situation = load_run(small)
    with pytest.raises(InputError) as error:
        router_named(name, situation, settings)
    assert message in str(error.value)
