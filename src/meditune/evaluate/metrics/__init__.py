"""All metrics of a model, computed from its stored predictions, with a module for each group of metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meditune.evaluate.metrics import (
    claims,
    conditions,
    decision,
    faithfulness,
    grades,
    perplexity,
    readability,
    suite_scores,
    text_overlap,
)
from meditune.evaluate.predictions import Predictions
from meditune.statistics import Metric, Statistics

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
    """A group of related metrics with a common heading in the report."""

    title: str
    metrics: Sequence[Metric]
    statistics: Callable[[Predictions], dict[str, Statistics]]
    """Returns the statistics of the metrics that can be computed from the predictions"""


FAMILIES = (
    Family("Decisions", decision.METRICS, decision.statistics),
    Family("Decisions, calibrated", decision.CALIBRATION_METRICS, decision.calibration_statistics),
    Family("Decisions, written", decision.WRITTEN_METRICS, decision.written_statistics),
    Family("Claims and their evidence", claims.METRICS, claims.statistics),
    Family("Likelihood of reference answers", perplexity.METRICS, perplexity.statistics),
    Family("Overlap with reference answers", text_overlap.METRICS, text_overlap.statistics),
    Family(
        "Similarity in meaning to reference answers",
        text_overlap.SIMILARITY_METRICS,
        text_overlap.similarity_statistics,
    ),
    Family("Repetition in written answers", text_overlap.REPETITION_METRICS, text_overlap.repetition_statistics),
    Family("Faithfulness", faithfulness.METRICS, faithfulness.statistics),
    Family("Closed book, and with retrieved passages", conditions.METRICS, conditions.statistics),
    Family("Patient-friendliness", readability.METRICS, readability.statistics),
    Family("Safety battery", grades.METRICS, grades.statistics),
    Family("Medical suites", suite_scores.METRICS, suite_scores.statistics),
    Family("Ratings", grades.RATED_METRICS, grades.rated_statistics),
    Family("Forgetting", perplexity.FORGETTING_METRICS, perplexity.forgetting_statistics),
    Family("Preferences (experimental)", perplexity.PREFERENCE_METRICS, perplexity.preference_statistics),
)
METRICS: dict[str, Metric] = {metric.name: metric for family in FAMILIES for metric in family.metrics}
"""All metrics by name, in the order of reports"""


def family_of(name: str) -> str:
    """Return the title of a metric's family; empty for an unknown metric."""
    return next((each.title for each in FAMILIES if name in {metric.name for metric in each.metrics}), "")


def summarise(predictions: Predictions) -> dict[str, float]:
    """Return the value of every metric that can be computed from the predictions."""
    return {name: statistics.value() for name, statistics in statistics_of(predictions).items()}


def statistics_of(predictions: Predictions) -> dict[str, Statistics]:
    """Return per-item statistics of every metric that can be computed, in the order of METRICS."""
    found: dict[str, Statistics] = {}
    for family in FAMILIES:
        found |= family.statistics(predictions)
    return {name: found[name] for name in METRICS if name in found}


def references_of(predictions: Predictions) -> dict[str, Statistics]:
    """Return per-item statistics of every detector metric on the graded reference answers."""
    return faithfulness.references(predictions) | conditions.references(predictions)


def summarise_references(predictions: Predictions) -> dict[str, float]:
    """Return the value of every detector metric on the reference answers."""
    return {name: statistics.value() for name, statistics in references_of(predictions).items()}
