"""All metrics of a model, computed from its stored predictions; each group of metrics has its own module.

`metrics.csv` describes every metric, in the order in which reports list the metrics. Its columns are the fields of
`statistics.Metric`; the column `flags` lists the boolean fields that are True.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from meditune.evaluate.metrics import decision, grades, perplexity, written_answers
from meditune.evaluate.predictions import CONDITIONS, Predictions
from meditune.statistics import Metric, Statistics

SOURCED = ("faithfulness", "unsupported_sentences", "unsupported_numbers")
"""Metrics that are graded against the passages in the prompt, and therefore not measured closed book"""


def _metric(row: dict[str, Any]) -> Metric:
    flags = dict.fromkeys(row.pop("flags").split(), True)
    return Metric(**row | flags | {"digits": int(row["digits"])})


def _described() -> dict[str, Metric]:
    with (Path(__file__).parent / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return {row["name"]: _metric(row) for row in csv.DictReader(stream)}


METRICS = _described()
"""All metrics by name, in the order in which reports list them"""


def summarize(predictions: Predictions) -> dict[str, float]:
    """Return the value of every metric that can be computed from the predictions."""
    return {name: statistics.value() for name, statistics in statistics_of(predictions).items()}


def statistics_of(predictions: Predictions) -> dict[str, Statistics]:
    """Return per-item statistics of every metric that can be computed, in the order of METRICS."""
    found: dict[str, Statistics] = {}
    for family in (decision, perplexity, written_answers, grades):
        found |= family.statistics(predictions)
    for condition in CONDITIONS:
        found |= {f"{condition}_{name}": each for name, each in asked(predictions.under(condition)).items()}
    return {name: found[name] for name in METRICS if name in found}


def asked(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics that exist for every condition: of decisions, likelihoods, answers and faithfulness."""
    found = decision.agreement(predictions.decision) if predictions.decision else {}
    if predictions.likelihood:
        found["perplexity"] = perplexity.perplexity(predictions.likelihood)
    if predictions.answer:
        found["rougeL"] = written_answers.longest(predictions.answer)
    graded = written_answers.by_sources(predictions.faithfulness)
    return found | {name: each for name, each in graded.items() if name in SOURCED}


def references_of(predictions: Predictions) -> dict[str, Statistics]:
    """Return per-item statistics of every detector metric on the graded reference answers."""
    found = written_answers.by_sources(predictions.reference_faithfulness)
    retrieved = written_answers.by_sources(predictions.retrieved_reference_faithfulness)
    return found | {f"retrieved_{name}": each for name, each in retrieved.items() if name in SOURCED}


def summarize_references(predictions: Predictions) -> dict[str, float]:
    """Return the value of every detector metric on the reference answers."""
    return {name: statistics.value() for name, statistics in references_of(predictions).items()}
