"""A server's Prometheus metrics: requests, durations, tokens, the queue, outcomes of answers, costs and drift.

Metrics hold numbers and outcomes, never text. Costs are in the currency of the prices that the server was given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

MILLION = 1e6


@dataclass(eq=False)
class Costs(Collector):
    """A counter of costs by part (prompt, completion, machine), computed when Prometheus reads it."""

    prompt: float = 0.0
    """The price of a million prompt tokens"""
    completion: float = 0.0
    """The price of a million completion tokens"""
    hourly: float = 0.0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    begun: float = field(default_factory=time.monotonic)

    def by_part(self) -> dict[str, float]:
        """Return the cost of each part since the server started."""
        return {
            "prompt": self.tokens["prompt"] * self.prompt / MILLION,
            "completion": self.tokens["completion"] * self.completion / MILLION,
            "machine": (time.monotonic() - self.begun) * self.hourly / 3600,
        }

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Yield the metric for prometheus_client."""
        made = CounterMetricFamily(
            "meditune_cost", "Cost of tokens and machine, at the prices of --price and --hourly", labels=["part"]
        )
        for part, spent in self.by_part().items():
            made.add_metric([part], spent)
        yield made


_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """One server's metrics, in their own registry. Labels hold routes, statuses and outcomes, never text."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.requests = Counter(
            "meditune_requests", "Requests by route and status", ["route", "method", "status"], registry=made
        )
        self.seconds = Histogram(
            "meditune_request_seconds",
            "Time from the request to the last byte of the response",
            ["route"],
            buckets=_SECONDS,
            registry=made,
        )
        self.first_token = Histogram(
            "meditune_first_token_seconds", "Time from engine start to first text", buckets=_SECONDS, registry=made
        )
        self.tokens = Counter("meditune_tokens", "Tokens read and generated", ["kind"], registry=made)
        self.running = Gauge("meditune_running", "Requests that are being answered", registry=made)
        self.waiting = Gauge("meditune_waiting", "Requests in the queue", registry=made)
        self.wait = Histogram(
            "meditune_wait_seconds", "Time that requests spent in the queue", buckets=_SECONDS, registry=made
        )
        self.triage_waiting = Gauge("meditune_triage_waiting", "Messages in the queue for triage", registry=made)
        self.triage = Histogram(
            "meditune_triage_seconds", "Duration of triage, including its queue", buckets=_SECONDS, registry=made
        )
        self.refused = Counter("meditune_refused", "Refused requests, by reason", ["reason"], registry=made)
        self.cancelled = Counter("meditune_cancelled", "Answers whose client disconnected", registry=made)
        self.retrieval = Histogram(
            "meditune_retrieval_score",
            "Cosine similarity of the question and the best passage",
            buckets=tuple(step / 20 for step in range(21)),
            registry=made,
        )
        self.outcomes = Counter(
            "meditune_answers",
            "Answers by outcome: answered, abstained, escalated, declined",
            ["outcome"],
            registry=made,
        )
        self.sentences = Counter(
            "meditune_sentences",
            "Sentences of answers, by whether a source supports them",
            ["supported"],
            registry=made,
        )
        self.feedback = Counter("meditune_feedback", "Ratings of answers", ["rating"], registry=made)
        self.model = Gauge(
            "meditune_model_info", "The served model", ["model", "version", "engine", "index"], registry=made
        )

        self.corrections = Counter(
            "meditune_corrections", "Feedback with a corrected answer, by who sent it", ["by"], registry=made
        )
        self.cached = Counter(
            "meditune_cached_tokens", "Prompt tokens that the engine took from its cache", registry=made
        )
        self.store_failures = Counter("meditune_store_failures", "Failed writes to the store", registry=made)
        self.engine_up = Gauge("meditune_engine_up", "1 while the model's engine is alive", registry=made)
        self.engine_restarts = Counter("meditune_engine_restarts", "Restarts of the engine", registry=made)
        self._drift(made)
        self.costs = Costs()
        made.register(self.costs)
        ProcessCollector(registry=made)

    def _drift(self, made: CollectorRegistry) -> None:
        self.evidence = Gauge(
            "meditune_drift_evidence", "Evidence of drift; 1 is the alert threshold", ["signal"], registry=made
        )
        self.alerts = Gauge("meditune_drift_alert", "Open alerts", ["signal", "severity"], registry=made)
        self.checked = Gauge("meditune_drift_checked", "Requests compared with the reference", registry=made)
        self.checked_at = Gauge(
            "meditune_drift_checked_timestamp_seconds",
            "Time of the last successful check; 0 if there was none",
            registry=made,
        )
        self.drift_failing = Gauge("meditune_drift_failing", "1 if drift can't be checked", registry=made)
        self.unsent = Gauge("meditune_alerts_unsent", "Alerts that couldn't be sent", registry=made)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """Add the tokens that a request read and generated."""
        for kind, count in (("prompt", prompt), ("completion", completion)):
            self.tokens.labels(kind).inc(count)
            self.costs.tokens[kind] += count

    def drifted(self, found: Mapping[str, Any]) -> None:
        """Set the drift metrics from the result of the last drift check."""
        self.drift_failing.set(bool(found["problem"]))
        self.unsent.set(len(found["unsent"]))
        if found["problem"]:
            return
        self.checked.set(found["requests"])
        self.checked_at.set(time.time())
        for name, row in found["signals"].items():
            self.evidence.labels(name).set(row["share"])
        self.alerts.clear()
        for alert in found["alerts"]:
            self.alerts.labels(alert["signal"], alert["severity"]).set(1)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))


_FIGURES = ("decision", "confidence", "reading_grade", "tokens", "timings", "style")


def outcome_of(answer: Mapping[str, Any]) -> str:
    """Return an answer's outcome: answered, abstained, escalated or declined."""
    return str(answer.get("outcome") or ("abstained" if answer.get("refused") else "answered"))


def facts_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an answer with the ids of its passages, which identify it if a passage is retracted."""
    sentences, sources = answer.get("sentences") or [], answer.get("sources") or []
    supported = sum(bool(each.get("supported")) for each in sentences)
    similarity = _best_similarity(answer)
    found = {name: answer[name] for name in _FIGURES if answer.get(name) is not None}
    return (
        found
        | ({} if similarity is None else {"retrieval": similarity})
        | {
            "sentences": len(sentences),
            "supported": supported,
            "sources": len(sources),
            "passages": [each["id"] for each in sources if each.get("id") and not each.get("restricted")],
        }
    )


def count_answer(metrics: Metrics, answer: Mapping[str, Any]) -> None:
    """Add an answer to the metrics."""
    for each in answer.get("sentences") or []:
        metrics.sentences.labels(str(bool(each.get("supported"))).lower()).inc()
    similarity = _best_similarity(answer)
    if similarity is not None:
        metrics.retrieval.observe(similarity)
    timings, tokens = answer.get("timings") or {}, answer.get("tokens") or {}
    if "first_token" in timings:
        metrics.first_token.observe(timings["first_token"] - timings.get("search", 0))
    metrics.cached.inc(tokens.get("cached", 0))


def _best_similarity(answer: Mapping[str, Any]) -> float | None:
    """Return the cosine similarity of the passage nearest to the question; None if no passage has one."""
    scores = [each["meaning"] for each in answer.get("sources") or [] if each.get("meaning") is not None]
    return max(scores) if scores else None
