"""The dashboard names figures and labels that `/metrics` has, and leaves none out."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from besteffort.gateway.config import Canary, Shadow
from besteffort.gateway.core import Ask, Core, Record
from besteffort.gateway.dashboard import PANELS, dashboard
from besteffort.gateway.metrics import Metrics
from tests.gateway.policies import config, contrary
from tests.gateway.test_arms import snapshot
from tests.gateway.test_corrections import policy


def samples() -> dict[str, set[str]]:
    """Per name in `/metrics` its labels, of a gateway that has done all that it can."""
    records: list[Record] = []
    given = config(shadow=Shadow("a"), canary=Canary(0.0, "b"))
    made = Core(snapshot(given, contrary(), main=policy()), log=records.append)
    metrics = Metrics(made)
    ticket = made.arrive(Ask(task="piqa"), "r0")
    claim = made.claim(ticket)
    metrics.decided(claim, 0.001)
    made.token(claim, 2)
    made.finished(claim)
    made.close(ticket, "answered")
    metrics.record(records[0])
    metrics.reloaded("done")
    metrics.turned_away("draining")
    metrics.drift.look()
    families = text_string_to_metric_families(metrics.text()[0].decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_figure_is_there_with_its_labels_and_none_is_left_out() -> None:
    known, named = samples(), set()
    for panel in PANELS:
        for legend, query in panel.queries.items():
            names = set(re.findall(r"besteffort_\w+", query))
            assert names
            assert names <= known.keys(), names - known.keys()
            named |= names
            labels = set.union(*(known[name] for name in names))
            wanted = {word for text in re.findall(r"by \(([^)]*)\)", query) for word in text.split(", ")}
            wanted |= set(re.findall(r"\{\{(\w+)\}\}", legend)) | set(re.findall(r"\{(\w+)!?=", query))
            assert wanted <= labels, (query, wanted - labels)
            assert query.count("(") == query.count(")")
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in known if not name.endswith("_created")} - shown == {
        *("besteffort_arm_requests_in_time_total", "besteffort_drift_active")
    }


def test_the_module_prints_it() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "besteffort.gateway.dashboard"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(printed)
    assert found == dashboard()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]]
    assert len(set(places)) == len(places) == len(PANELS)
