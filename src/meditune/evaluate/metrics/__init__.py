"""Every figure of a model, computed from its stored predictions: a module for each family of metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meditune.evaluate.metrics import (
    calibration,
    contexts,
    decision,
    faithfulness,
    fluency,
    forgetting,
    overlap,
    preference,
    rated,
    readability,
    repetition,
    safety,
    similarity,
    written,
)
from meditune.evaluate.metrics.metric import Metric, Statistics
from meditune.evaluate.predictions import Predictions

__all__ = [
    "FAMILIES",
    "METRICS",
    "Family",
    "Metric",
    "Statistics",
    "family_of",
    "references_of",
    "statistics_of",
    "summarise",
    "summarise_references",
]


@dataclass(frozen=True)
class Family:
    """Metrics that say the same kind of thing, under one heading in a report."""

    title: str
    metrics: Sequence[Metric]
    statistics: Callable[[Predictions], dict[str, Statistics]]
    """Returns those of the metrics that the predictions allow."""


FAMILIES = (
    Family("Decisions", decision.METRICS, decision.statistics),
    Family("Decisions, calibrated", calibration.METRICS, calibration.statistics),
    Family("Decisions, asked for in words", written.METRICS, written.statistics),
    Family("Likelihood of reference answers", fluency.METRICS, fluency.statistics),
    Family("Overlap with reference answers", overlap.METRICS, overlap.statistics),
    Family("Similarity in meaning to reference answers", similarity.METRICS, similarity.statistics),
    Family("Repetition in written answers", repetition.METRICS, repetition.statistics),
    Family("Faithfulness", faithfulness.METRICS, faithfulness.statistics),
    Family("Closed book, and with retrieved passages", contexts.METRICS, contexts.statistics),
    Family("Patient-friendliness", readability.METRICS, readability.statistics),
    Family("Safety battery", safety.METRICS, safety.statistics),
    Family("Ratings", rated.METRICS, rated.statistics),
    Family("Forgetting", forgetting.METRICS, forgetting.statistics),
    Family("Preferences (experimental)", preference.METRICS, preference.statistics),
)
METRICS: dict[str, Metric] = {metric.name: metric for family in FAMILIES for metric in family.metrics}
"""In the order of reports."""


def family_of(name: str) -> str:
    """The title of the family of a metric; empty for one that isn't known here."""
    return next((each.title for each in FAMILIES if name in {metric.name for metric in each.metrics}), "")


def summarise(predictions: Predictions) -> dict[str, float]:
    """Every metric that the predictions allow."""
    return {name: statistics.value() for name, statistics in statistics_of(predictions).items()}


def statistics_of(predictions: Predictions) -> dict[str, Statistics]:
    """Per-item statistics of every metric that the predictions allow, in the order of METRICS."""
    found: dict[str, Statistics] = {}
    for family in FAMILIES:
        found |= family.statistics(predictions)
    return {name: found[name] for name in METRICS if name in found}


def references_of(predictions: Predictions) -> dict[str, Statistics]:
    """Per-item statistics of every detector metric on the reference answers, as far as these are graded."""
    return faithfulness.references(predictions) | contexts.references(predictions)


def summarise_references(predictions: Predictions) -> dict[str, float]:
    """Every detector metric on the reference answers."""
    return {name: statistics.value() for name, statistics in references_of(predictions).items()}
