"""Figures for Prometheus, under `/metrics`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from besteffort.gateway.core import Claim, Core, Record
from besteffort.gateway.drift import Drift

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
_DECISIONS_S = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 1e-2, 1e-1)
COUNTS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names where prometheus-client keeps the figures of several processes."""

_STATES = {"closed": 0, "half-open": 1, "open": 2}


class _Answers(NamedTuple):
    """Figures that an answer counts to, as well as any request."""

    prompt: Counter
    output: Counter
    latency: Histogram
    first: Histogram
    in_time: Counter
    quality: Counter
    arm_in_time: Counter
    arm_quality: Counter


class _Figures(NamedTuple):
    """Figures that requests of a kind count to; `answers` None unless they were answered."""

    requests: Counter
    arm_requests: Counter
    answers: _Answers | None


class Metrics:
    """The figures of one gateway.

    Attributes:
      drift: how requests and servers compare with what the policy was made for.
    """

    def __init__(self, core: Core) -> None:
        self._figures = figures = CollectorRegistry()
        self._core = core
        self.drift = Drift(core)
        self._of: dict[tuple[str, str, str, str], _Figures] = {}
        self._requests = Counter(
            "besteffort_requests", "Requests that ended.", ("task", "model", "outcome"), registry=figures
        )
        self._in_time = Counter(
            "besteffort_requests_in_time", "Answers by their deadline.", ("task", "model"), registry=figures
        )
        self._quality = Counter(
            "besteffort_quality_in_time", "Quality of answers by their deadline, summed.", ("task",), registry=figures
        )
        self._prompt = Counter("besteffort_prompt_tokens", "Tokens of prompts.", ("model",), registry=figures)
        self._output = Counter("besteffort_generation_tokens", "Tokens of answers.", ("model",), registry=figures)
        self._first = Histogram(
            "besteffort_time_to_first_token_seconds",
            "From arrival to the first token, of streams.",
            ("model",),
            buckets=_SECONDS,
            registry=figures,
        )
        self._latency = Histogram(
            "besteffort_e2e_request_latency_seconds",
            "From arrival to the end of the answer.",
            ("model",),
            buckets=_SECONDS,
            registry=figures,
        )
        self._decisions = Histogram(
            "besteffort_decision_seconds", "That a decision takes.", buckets=_DECISIONS_S, registry=figures
        )
        self._reloads = Counter("besteffort_reloads", "Reloads.", ("result",), registry=figures)
        self._turned_away = Counter(
            "besteffort_requests_turned_away",
            "Requests refused as they came, since the gateway was full or draining.",
            ("reason",),
            registry=figures,
        )
        self._arm_requests = Counter(
            "besteffort_arm_requests",
            "Requests that ended, by the policy that decided them.",
            ("arm", "task", "outcome"),
            registry=figures,
        )
        self._arm_in_time = Counter(
            "besteffort_arm_requests_in_time",
            "Answers by their deadline, by the policy that decided.",
            ("arm", "task"),
            registry=figures,
        )
        self._arm_quality = Counter(
            "besteffort_arm_quality_in_time",
            "Quality of answers by their deadline, summed, by the policy that decided.",
            ("arm", "task"),
            registry=figures,
        )
        self._compared = Counter(
            "besteffort_shadow_decisions", "Decisions that the shadow made, too.", ("task",), registry=figures
        )
        self._disagreed = Counter(
            "besteffort_shadow_disagreements",
            "Decisions that the shadow would have made otherwise.",
            ("task", "pool", "shadow_pool"),
            registry=figures,
        )
        if (folder := os.environ.get(COUNTS_FOLDER)) is not None:
            # Those above write there; what is read is the sum over all workers, also of those that have ended.
            self._figures = figures = CollectorRegistry()
            MultiProcessCollector(figures, folder)
        figures.register(self)

    def record(self, record: Record) -> None:
        """Counts a request that has ended."""
        self.drift.record(record)
        key = (record.arm, record.task, record.model, record.outcome)
        figures = self._of.get(key)
        if figures is None:
            # Looking up a figure by its labels takes longer than counting.
            figures = self._of[key] = self._figures_of(record)
        figures.requests.inc()
        figures.arm_requests.inc()
        if figures.answers is None:
            return
        answers = figures.answers
        answers.prompt.inc(record.prompt_tokens)
        answers.output.inc(record.output_tokens)
        answers.latency.observe(record.latency_s)
        if record.ttft_s is not None:
            answers.first.observe(record.ttft_s)
        if record.in_time:
            answers.in_time.inc()
            answers.quality.inc(record.quality)
            answers.arm_in_time.inc()
            answers.arm_quality.inc(record.quality)

    def _figures_of(self, record: Record) -> _Figures:
        """The figures that records of a kind count to."""
        arm, task, model, outcome = record.arm, record.task, record.model, record.outcome
        answers = None
        if outcome == "answered":
            answers = _Answers(
                prompt=self._prompt.labels(model),
                output=self._output.labels(model),
                latency=self._latency.labels(model),
                first=self._first.labels(model),
                in_time=self._in_time.labels(task, model),
                quality=self._quality.labels(task),
                arm_in_time=self._arm_in_time.labels(arm, task),
                arm_quality=self._arm_quality.labels(arm, task),
            )
        return _Figures(
            self._requests.labels(task, model, outcome), self._arm_requests.labels(arm, task, outcome), answers
        )

    def decided(self, claim: Claim, seconds: float) -> None:
        """Counts a decision, which took so long, with what the shadow did."""
        ticket, pool = claim.ticket, claim.place.pool.name
        if ticket.attempts > 1 or not ticket.shadow_pool:
            self._decisions.observe(seconds)
            return
        self._decisions.observe(max(seconds - ticket.shadow_s, 0.0))
        self._compared.labels(ticket.ask.task).inc()
        if ticket.shadow_pool != pool:
            self._disagreed.labels(ticket.ask.task, pool, ticket.shadow_pool).inc()

    def turned_away(self, reason: str) -> None:
        """Counts a request that was refused as it came; it has no record."""
        self._turned_away.labels(reason).inc()

    def reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()

    def text(self) -> tuple[bytes, str]:
        """What a scrape gets, and its content type; of several workers their sum."""
        self._core.sync()
        return generate_latest(self._figures), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """What is read off the core at a scrape."""
        core = self._core
        snapshot = core.snapshot
        labels = ("pool", "model", "replica")
        running = GaugeMetricFamily("besteffort_requests_in_flight", "Requests sent and not ended.", labels=labels)
        limit = GaugeMetricFamily("besteffort_requests_limit", "Requests in flight at most.", labels=labels)
        state = GaugeMetricFamily(
            "besteffort_replica_state", "0 in use, 1 tried again, 2 left out after failures.", labels=labels
        )
        now = core.now()
        for place in snapshot.places:
            values = (place.pool.name, place.model, str(place.replica))
            running.add_metric(values, place.state.busy)
            limit.add_metric(values, place.limit)
            state.add_metric(values, _STATES[place.state.breaker.state(now)])
        yield from (running, limit, state)
        yield from self._comparisons()
        totals = core.totals()
        for name, about, value in (
            ("besteffort_open_requests", "Requests that have arrived and not ended.", totals.open_requests),
            ("besteffort_arrival_rate", "Requests per second, as the policy sees it.", core.arrival_rate()),
            ("besteffort_snapshot", "Times that configuration or policy were replaced.", snapshot.number),
        ):
            yield GaugeMetricFamily(name, about, value=value)
        yield CounterMetricFamily("besteffort_retries", "Times that requests were sent again.", value=totals.retries)
        yield CounterMetricFamily(
            "besteffort_leases_expired", "Requests of which nothing more was heard.", value=totals.expired
        )

    def _comparisons(self) -> Iterator[Metric]:
        """How what comes compares with what the policy was made for."""
        slowdown = GaugeMetricFamily(
            "besteffort_observed_slowdown", "Observed times over those of the policy's tables.", labels=("pool",)
        )
        snapshot = self._core.snapshot
        observed = snapshot.flight.observed_slowdown
        for places in snapshot.places.by_pool:
            if places and observed is not None:
                slowdown.add_metric((places[0].pool.name,), float(observed[places[0].index]))
        labels = ("measure", "of")
        value = GaugeMetricFamily("besteffort_drift", "How far it is from what the policy was made for.", labels=labels)
        limit = GaugeMetricFamily("besteffort_drift_limit", "Above which it is a drift.", labels=labels)
        active = GaugeMetricFamily("besteffort_drift_active", "1 while it is a drift.", labels=labels)
        for key, measure in self.drift.measures.items():
            value.add_metric(key, measure.value)
            limit.add_metric(key, measure.limit)
            active.add_metric(key, measure.active)
        yield from (slowdown, value, limit, active)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known once collected."""
        return iter(())
