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
    return {name: answer[name] for name in _FIGURES if answer.get(name) is not None} | {
        "sentences": len(sentences),
        "supported": supported,
        "sources": len(sources),
        "passages": [each["id"] for each in sources if each.get("id") and not each.get("restricted")],
    }


def count_answer(metrics: Metrics, answer: Mapping[str, Any]) -> None:
    """Add an answer to the figures."""
    for each in answer.get("sentences") or []:
        metrics.sentences.labels(str(bool(each.get("supported"))).lower()).inc()
    scores = [each["meaning"] for each in answer.get("sources") or [] if each.get("meaning") is not None]
    if scores:
        metrics.retrieval.observe(max(scores))
