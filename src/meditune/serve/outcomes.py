"""What is counted of an assistant's answer: figures and outcomes, no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meditune.serve.metrics import Metrics

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
