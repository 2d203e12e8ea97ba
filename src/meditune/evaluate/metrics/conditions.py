"""Metrics of the same questions without context in the prompt, or with retrieved passages instead of it."""

from __future__ import annotations

from meditune.evaluate.metrics import decision, faithfulness, perplexity, text_overlap
from meditune.evaluate.predictions import CONDITIONS, Condition, Predictions
from meditune.statistics import Metric, Statistics

CONDITION_TITLES: dict[Condition, tuple[str, str]] = {
    "closed": ("closed book", "without any context in the prompt"),
    "retrieved": ("retrieved", "with retrieved passages instead of the given context"),
}
SOURCED = ("faithfulness", "unsupported_sentences", "unsupported_numbers")
"""Graded by the passages that were in the prompt, so not measured closed book"""
GIVEN = {
    metric.name: metric
    for metric in (*decision.METRICS, *perplexity.METRICS, *text_overlap.METRICS, *faithfulness.METRICS)
}
"""Name -> metric of the given context, from which the metrics under other conditions are derived"""


def _metrics(condition: Condition) -> list[Metric]:
    suffix, meaning = CONDITION_TITLES[condition]
    meanings = {
        "accuracy": f"The same for decisions {meaning}, in percent.",
        "macro_f1": f"The same for decisions {meaning}, in percent.",
        "perplexity": f"Perplexity of the reference answers, {meaning}.",
        "rougeL": f"The same for answers {meaning}.",
    }
    if condition == "retrieved":
        graded = "The same for answers with retrieved passages, graded against those in the prompt."
        meanings |= dict.fromkeys(SOURCED, graded)
    return [GIVEN[name].variant(condition, suffix, text) for name, text in meanings.items()]


METRICS = tuple(metric for condition in CONDITIONS for metric in _metrics(condition))


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    found: dict[str, Statistics] = {}
    for condition in CONDITIONS:
        found |= {f"{condition}_{name}": each for name, each in asked(predictions.under(condition)).items()}
    return {metric.name: found[metric.name] for metric in METRICS if metric.name in found}


def references(predictions: Predictions) -> dict[str, Statistics]:
    """Return the detector metrics of the reference answers, graded against the passages in the prompt."""
    graded = faithfulness.references(predictions.under("retrieved"))
    return {f"retrieved_{name}": each for name, each in graded.items() if name in SOURCED}


def asked(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics that exist for every condition: decisions, likelihoods, answers and their faithfulness."""
    found = decision.agreement(predictions.decision) if predictions.decision else {}
    if predictions.likelihood:
        found["perplexity"] = perplexity.perplexity(predictions.likelihood)
    if predictions.answer:
        found["rougeL"] = text_overlap.longest(predictions.answer)
    graded = faithfulness.by_sources(predictions.faithfulness)
    return found | {name: each for name, each in graded.items() if name in SOURCED}
