"""A dashboard for Grafana over the figures of `/metrics`, as JSON to import.

python -m besteffort.gateway.dashboard > dashboard.json
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

_COLUMNS, _HEIGHT = 2, 8
_GRID = 24  # columns of Grafana's
_RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """A figure.

    Attributes:
      title: what it shows.
      unit: in Grafana's words.
      queries: per legend a query of Prometheus.
      stacked: whether lines add up.
    """

    title: str
    unit: str
    queries: dict[str, str]
    stacked: bool = False


def _per_s(counter: str) -> str:
    return f"sum(rate({counter}{_RATE}))"


def _quantiles(histogram: str, by: str) -> dict[str, str]:
    return {
        f"{{{{{by}}}}} {share:.0%}": f"histogram_quantile({share}, sum by (le, {by}) (rate({histogram}_bucket{_RATE})))"
        for share in (0.5, 0.99)
    }


PANELS = (
    Panel(
        "Requests by model",
        "reqps",
        {"{{model}}": f"sum by (model) (rate(besteffort_requests_total{_RATE}))"},
        stacked=True,
    ),
    Panel(
        "In time, and quality in time, per request",
        "percentunit",
        {
            "in time": f"{_per_s('besteffort_requests_in_time_total')} / {_per_s('besteffort_requests_total')}",
            "quality": f"{_per_s('besteffort_quality_in_time_total')} / {_per_s('besteffort_requests_total')}",
        },
    ),
    Panel(
        "In flight, of what fits",
        "percentunit",
        {"{{pool}}": "sum by (pool) (besteffort_requests_in_flight) / sum by (pool) (besteffort_requests_limit)"},
    ),
    Panel(
        "Arrivals",
        "reqps",
        {
            "as the policy sees them": "max(besteffort_arrival_rate)",
            "that ended": _per_s("besteffort_requests_total"),
        },
    ),
    Panel(
        "Outcomes other than answers",
        "reqps",
        {
            "{{outcome}}": f'sum by (outcome) (rate(besteffort_requests_total{{outcome!="answered"}}{_RATE}))',
            "{{reason}}": f"sum by (reason) (rate(besteffort_requests_turned_away_total{_RATE}))",
        },
        stacked=True,
    ),
    Panel(
        "Replicas left out (2), tried again (1)",
        "none",
        {"{{pool}} {{replica}}": "max by (pool, replica) (besteffort_replica_state)"},
    ),
    Panel("Time to the first token", "s", _quantiles("besteffort_time_to_first_token_seconds", "model")),
    Panel("Latency", "s", _quantiles("besteffort_e2e_request_latency_seconds", "model")),
    Panel(
        "Tokens",
        "none",
        {
            "prompts": _per_s("besteffort_prompt_tokens_total"),
            "answers": _per_s("besteffort_generation_tokens_total"),
        },
    ),
    Panel(
        "Time of decisions",
        "s",
        {
            "99%": f"histogram_quantile(0.99, sum by (le) (rate(besteffort_decision_seconds_bucket{_RATE})))",
            "mean": f"{_per_s('besteffort_decision_seconds_sum')} / {_per_s('besteffort_decision_seconds_count')}",
        },
    ),
    Panel(
        "Quality in time per request, by arm",
        "percentunit",
        {
            "{{arm}}": f"sum by (arm) (rate(besteffort_arm_quality_in_time_total{_RATE})) "
            f"/ sum by (arm) (rate(besteffort_arm_requests_total{_RATE}))"
        },
    ),
    Panel(
        "Disagreement of the shadow",
        "percentunit",
        {
            "{{task}}": f"sum by (task) (rate(besteffort_shadow_disagreements_total{_RATE})) "
            f"/ sum by (task) (rate(besteffort_shadow_decisions_total{_RATE}))"
        },
    ),
    Panel(
        "Drift, over its limit",
        "none",
        {"{{measure}} {{of}}": "max by (measure, of) (besteffort_drift / besteffort_drift_limit)"},
    ),
    Panel("Observed over table times", "none", {"{{pool}}": "max by (pool) (besteffort_observed_slowdown)"}),
    Panel(
        "Sent again, leases that ended",
        "reqps",
        {
            "sent again": _per_s("besteffort_retries_total"),
            "leases": _per_s("besteffort_leases_expired_total"),
        },
    ),
    Panel(
        "Open requests, snapshot, reloads",
        "none",
        {
            "open requests": "sum(besteffort_open_requests)",
            "snapshot": "max(besteffort_snapshot)",
            "reloads {{result}}": f"sum by (result) (increase(besteffort_reloads_total{_RATE}))",
        },
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, with its source of data as a variable."""
    source = {"type": "prometheus", "uid": "${source}"}
    width = _GRID // _COLUMNS
    panels = [
        {
            "id": index + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": source,
            "gridPos": {
                "x": width * (index % _COLUMNS),
                "y": _HEIGHT * (index // _COLUMNS),
                "w": width,
                "h": _HEIGHT,
            },
            "fieldConfig": {
                "defaults": {
                    "unit": panel.unit,
                    "min": 0,
                    "custom": {
                        "stacking": {"mode": "normal" if panel.stacked else "none"},
                        "fillOpacity": 40 if panel.stacked else 0,
                    },
                },
                "overrides": [],
            },
            "targets": [
                {"refId": chr(65 + number), "datasource": source, "expr": query, "legendFormat": legend}
                for number, (legend, query) in enumerate(panel.queries.items())
            ],
        }
        for index, panel in enumerate(PANELS)
    ]
    return {
        "title": "besteffort",
        "uid": "besteffort",
        "tags": ["besteffort"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")
