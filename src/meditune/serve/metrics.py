"""A server's Prometheus metrics: requests, durations, tokens, the queue, outcomes of answers, costs and drift.

Metrics contain numbers and outcomes, never text. Costs are in the currency of the prices passed to the server.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

MILLION = 1e6


@dataclass(eq=False)
class Costs(Collector):
    """A counter of the costs of prompt tokens, completion tokens and the machine, computed when Prometheus reads it."""

    prompt: float = 0.0
    """The price of a million prompt tokens"""
    completion: float = 0.0
    """The price of a million completion tokens"""
    hourly: float = 0.0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    started: float = field(default_factory=time.monotonic)

    def by_part(self) -> dict[str, float]:
        """Return the cost of each part since the server started."""
        return {
            "prompt": self.tokens["prompt"] * self.prompt / MILLION,
            "completion": self.tokens["completion"] * self.completion / MILLION,
            "machine": (time.monotonic() - self.started) * self.hourly / 3600,
        }

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Yield the metric for prometheus_client."""
        metric = CounterMetricFamily("meditune_cost", "Cost by part (prompt, completion or machine)", labels=["part"])
        for part, spent in self.by_part().items():
            metric.add_metric([part], spent)
        yield metric


_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """One server's metrics, in their own Prometheus registry. Labels are routes, statuses and outcomes, never text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=self.registry)
        self.requests = counter("meditune_requests", "Requests by route and status", ["route", "method", "status"])
        self.seconds = seconds(
            "meditune_request_seconds", "Time from the request to the last byte of the response", ["route"]
        )
        self.first_token = seconds("meditune_first_token_seconds", "Time from start of generation to first text")
        self.tokens = counter("meditune_tokens", "Tokens read and generated", ["kind"])
        self.running = gauge("meditune_running", "Requests that are being answered")
        self.waiting = gauge("meditune_waiting", "Requests in the engine's queue")
        self.wait = seconds("meditune_wait_seconds", "Time that requests spent in the engine's queue")
        self.triage_waiting = gauge("meditune_triage_waiting", "Messages in the queue for triage")
        self.triage = seconds("meditune_triage_seconds", "Duration of triage, including the wait in its queue")
        self.refused = counter("meditune_refused", "Refused requests, by reason", ["reason"])
        self.cancelled = counter("meditune_cancelled", "Requests whose client disconnected early")
        self.retrieval = Histogram(
            "meditune_retrieval_score",
            "Cosine similarity between the question and the nearest passage",
            buckets=tuple(step / 20 for step in range(21)),
            registry=self.registry,
        )
        self.outcomes = counter(
            "meditune_answers", "Answers by outcome: answered, abstained, escalated, declined", ["outcome"]
        )
        self.sentences = counter(
            "meditune_sentences", "Sentences of answers, by whether a source supports them", ["supported"]
        )
        self.sentences_checked = counter(
            "meditune_sentences_checked", "Sentences compared with sources, by judge or detector", ["by"]
        )
        self.feedback = counter("meditune_feedback", "Ratings of answers", ["rating"])
        self.model = gauge("meditune_model_info", "The served model", ["model", "version", "engine", "index"])
        self.corrections = counter(
            "meditune_corrections", "Corrections in feedback, by sender (user or expert)", ["by"]
        )
        self.cached = counter("meditune_cached_tokens", "Prompt tokens that the engine took from its cache")
        self.store_failures = counter("meditune_store_failures", "Failed writes to the store")
        self.engine_up = gauge("meditune_engine_up", "1 while the model's engine is alive")
        self.engine_restarts = counter("meditune_engine_restarts", "Restarts of the engine")
        self.evidence = gauge("meditune_drift_evidence", "Evidence of drift; 1 is the alert threshold", ["signal"])
        self.alerts = gauge("meditune_drift_alert", "1 for each open drift alert", ["signal", "severity"])
        self.checked = gauge("meditune_drift_checked", "Requests compared with the drift reference")
        self.checked_at = gauge(
            "meditune_drift_checked_timestamp_seconds", "Time of the last successful drift check; 0 if there was none"
        )
        self.drift_failing = gauge("meditune_drift_failing", "1 if drift can't be checked")
        self.unsent = gauge("meditune_alerts_unsent", "Alerts that couldn't be sent")
        self.costs = Costs()
        self.registry.register(self.costs)
        ProcessCollector(registry=self.registry)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """Add the tokens that a request read and generated."""
        for kind, count in (("prompt", prompt), ("completion", completion)):
            self.tokens.labels(kind).inc(count)
            self.costs.tokens[kind] += count

    def drifted(self, result: Mapping[str, Any]) -> None:
        """Set the drift metrics from the result of the last drift check."""
        self.drift_failing.set(bool(result["problem"]))
        self.unsent.set(len(result["unsent"]))
        if result["problem"]:
            return
        self.checked.set(result["requests"])
        self.checked_at.set(time.time())
        for name, row in result["signals"].items():
            self.evidence.labels(name).set(row["share"])
        self.alerts.clear()
        for alert in result["alerts"]:
            self.alerts.labels(alert["signal"], alert["severity"]).set(1)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))


_FIGURES = ("decision", "confidence", "reading_grade", "tokens", "timings", "style")


def facts_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer's metrics and its passages' ids, so that the answer is found if a passage is retracted."""
    sentences, sources = answer["sentences"], answer["sources"]
    found = {name: answer.get(name) for name in _FIGURES} | {"retrieval": _best_similarity(answer)}
    return {name: value for name, value in found.items() if value is not None} | {
        "sentences": len(sentences),
        "supported": sum(each["supported"] for each in sentences),
        "sources": len(sources),
        "passages": [each["id"] for each in sources if not each["restricted"]],
    }


def count_answer(metrics: Metrics, answer: Mapping[str, Any]) -> None:
    """Add an answer to the metrics."""
    for each in answer["sentences"]:
        metrics.sentences.labels(str(each["supported"]).lower()).inc()
        if each["checked_by"]:
            metrics.sentences_checked.labels(each["checked_by"]).inc()
    similarity = _best_similarity(answer)
    if similarity is not None:
        metrics.retrieval.observe(similarity)
    timings = answer["timings"]
    if "first_token" in timings:
        metrics.first_token.observe(timings["first_token"] - timings.get("search", 0))
    metrics.cached.inc(answer["tokens"].get("cached", 0))


def _best_similarity(answer: Mapping[str, Any]) -> float | None:
    """Return the cosine similarity of the passage nearest to the question; None if no passage has one."""
    scores = [each["meaning"] for each in answer["sources"] if each.get("meaning") is not None]
    return max(scores) if scores else None
