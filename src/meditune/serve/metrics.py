"""What Prometheus reads of a server: requests, times, tokens, the queue, and how answers turned out."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return bytes(generate_latest(self.registry))
