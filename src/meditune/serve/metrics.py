"""What Prometheus reads of a server: requests, times, tokens, the queue, how answers turned out, drift.

What answers cost: tokens by their price, and the machine by the hour, in whatever currency these are given.

What is counted of an assistant's answer: figures and outcomes, no text.
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
    """A counter with a part for the tokens read, those written, and the machine; read when Prometheus asks."""

    prompt: float = 0.0
    """Of a million tokens"""
    completion: float = 0.0
    hourly: float = 0.0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    begun: float = field(default_factory=time.monotonic)

    def by_part(self) -> dict[str, float]:
        """What was spent since the server's start."""
        return {
            "prompt": self.tokens["prompt"] * self.prompt / MILLION,
            "completion": self.tokens["completion"] * self.completion / MILLION,
            "machine": (time.monotonic() - self.begun) * self.hourly / 3600,
        }

    def collect(self) -> Iterable[CounterMetricFamily]:
        """As prometheus_client wants it."""
        made = CounterMetricFamily(
            "meditune_cost", "Cost of tokens and machine, by --price and --hourly", labels=["part"]
        )
        for part, spent in self.by_part().items():
            made.add_metric([part], spent)
        yield made


_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """One server's figures, in a registry of their own. Labels hold routes, statuses and outcomes, never text."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.requests = Counter(
            "meditune_requests", "Requests by route and status", ["route", "method", "status"], registry=made
        )
        self.seconds = Histogram(
            "meditune_request_seconds", "From request to last byte", ["route"], buckets=_SECONDS, registry=made
        )
        self.first_token = Histogram(
            "meditune_first_token_seconds", "From place in the engine to first text", buckets=_SECONDS, registry=made
        )
        self.tokens = Counter("meditune_tokens", "Tokens read and written", ["kind"], registry=made)
        self.running = Gauge("meditune_running", "Requests that are being answered", registry=made)
        self.waiting = Gauge("meditune_waiting", "Requests that wait for their turn", registry=made)
        self.wait = Histogram("meditune_wait_seconds", "How long requests waited", buckets=_SECONDS, registry=made)
        self.triage_waiting = Gauge("meditune_triage_waiting", "Messages that wait for triage", registry=made)
        self.triage = Histogram(
            "meditune_triage_seconds", "How long triage took, with its queue", buckets=_SECONDS, registry=made
        )
        self.refused = Counter("meditune_refused", "Requests refused, by reason", ["reason"], registry=made)
        self.cancelled = Counter("meditune_cancelled", "Answers whose client left", registry=made)
        self.retrieval = Histogram(
            "meditune_retrieval_score",
            "Likeness of the best passage found (cosine)",
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
            "meditune_sentences", "Sentences of answers, by whether sources bear them out", ["supported"], registry=made
        )
        self.feedback = Counter("meditune_feedback", "What people said of answers", ["rating"], registry=made)
        self.model = Gauge(
            "meditune_model_info", "What is served", ["model", "version", "engine", "index"], registry=made
        )

        self.corrections = Counter(
            "meditune_corrections", "Feedback that says what the answer should be, by who", ["by"], registry=made
        )
        self.cached = Counter(
            "meditune_cached_tokens", "Tokens of prompts that the engine had read before", registry=made
        )
        self.store_failures = Counter("meditune_store_failures", "Answers that couldn't be kept", registry=made)
        self.engine_up = Gauge("meditune_engine_up", "1 while the model's engine is alive", registry=made)
        self.engine_restarts = Counter("meditune_engine_restarts", "Engines that were opened again", registry=made)
        self._drift(made)
        self.costs = Costs()
        made.register(self.costs)
        ProcessCollector(registry=made)

    def _drift(self, made: CollectorRegistry) -> None:
        self.evidence = Gauge(
            "meditune_drift_evidence", "Evidence for a change, 1 at the threshold", ["signal"], registry=made
        )
        self.alerts = Gauge("meditune_drift_alert", "Open alerts", ["signal", "severity"], registry=made)
        self.checked = Gauge("meditune_drift_checked", "Requests held against the reference", registry=made)
        self.checked_at = Gauge(
            "meditune_drift_checked_timestamp_seconds", "When the last check ended well; 0: never", registry=made
        )
        self.drift_failing = Gauge("meditune_drift_failing", "1 where drift can't be checked", registry=made)
        self.unsent = Gauge("meditune_alerts_unsent", "Alerts that couldn't be sent", registry=made)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """Add what a request read and wrote."""
        for kind, count in (("prompt", prompt), ("completion", completion)):
            self.tokens.labels(kind).inc(count)
            self.costs.tokens[kind] += count

    def drifted(self, found: Mapping[str, Any]) -> None:
        """Show what the last drift check found (`operate.drift.watching`)."""
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
        """In Prometheus's text format."""
        return bytes(generate_latest(self.registry))


_FIGURES = ("decision", "confidence", "reading_grade", "tokens", "timings", "style")


def outcome_of(answer: Mapping[str, Any]) -> str:
    """answered, abstained, escalated or declined."""
    return str(answer.get("outcome") or ("abstained" if answer.get("refused") else "answered"))


def facts_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an answer, and the ids of its passages, by which it is found if one turns out to be retracted."""
    sentences, sources = answer.get("sentences") or [], answer.get("sources") or []
    supported = sum(bool(each.get("supported")) for each in sentences)
    likeness = _likeness(answer)
    found = {name: answer[name] for name in _FIGURES if answer.get(name) is not None}
    return (
        found
        | ({} if likeness is None else {"retrieval": likeness})
        | {
            "sentences": len(sentences),
            "supported": supported,
            "sources": len(sources),
            "passages": [each["id"] for each in sources if each.get("id") and not each.get("restricted")],
        }
    )


def count_answer(metrics: Metrics, answer: Mapping[str, Any]) -> None:
    """Add an answer to the figures."""
    for each in answer.get("sentences") or []:
        metrics.sentences.labels(str(bool(each.get("supported"))).lower()).inc()
    likeness = _likeness(answer)
    if likeness is not None:
        metrics.retrieval.observe(likeness)
    timings, tokens = answer.get("timings") or {}, answer.get("tokens") or {}
    if "first_token" in timings:
        metrics.first_token.observe(timings["first_token"] - timings.get("search", 0))
    metrics.cached.inc(tokens.get("cached", 0))


def _likeness(answer: Mapping[str, Any]) -> float | None:
    """Of the passage that is nearest to the question in meaning."""
    scores = [each["meaning"] for each in answer.get("sources") or [] if each.get("meaning") is not None]
    return max(scores) if scores else None
