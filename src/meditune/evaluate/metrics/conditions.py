"""Metrics of the same questions without context in the prompt, or with retrieved passages instead of it."""

from __future__ import annotations

from meditune.evaluate.metrics import faithfulness, text_overlap
from meditune.evaluate.metrics.decision import agreement
from meditune.evaluate.metrics.perplexity import perplexity
from meditune.evaluate.predictions import CONDITIONS, Condition, Predictions
from meditune.statistics import Metric, Statistics

WAYS: dict[Condition, tuple[str, str]] = {
    "closed": ("closed book", "without any context in the prompt"),
    "retrieved": ("retrieved", "with retrieved passages instead of the given context"),
}
SOURCED = ("faithfulness", "unsupported_sentences", "unsupported_numbers")
"""Graded by the passages that were in the prompt, so not measured closed book"""


def _metrics(condition: Condition) -> list[Metric]:
    way, meaning = WAYS[condition]
    shares = [
        Metric(
            f"{condition}_{name}",
            f"{title}, {way}",
            "up",
            1,
            f"The same for decisions {meaning}, in percent.",
            optional=True,
            share=name == "accuracy",
            detail=True,
        )
        for name, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"))
    ]
    return [
        *shares,
        Metric(
            f"{condition}_perplexity",
            f"Perplexity, {way}",
            "down",
            2,
            f"Perplexity of the reference answers, {meaning}.",
            optional=True,
            detail=True,
        ),
        Metric(
            f"{condition}_rougeL",
            f"ROUGE-L, {way}",
            "up",
            3,
            f"The same for answers {meaning}.",
            optional=True,
            detail=True,
        ),
        *(
            _sourced(metric, way)
            for metric in faithfulness.METRICS
            if condition == "retrieved" and metric.name in SOURCED
        ),
    ]


def _sourced(metric: Metric, way: str) -> Metric:
    return Metric(
        f"retrieved_{metric.name}",
        f"{metric.title}, {way}",
        metric.direction,
        metric.digits,
        "The same for answers with retrieved passages, graded against those in the prompt.",
        optional=True,
        detail=True,
        detector=True,
    )


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
    found = agreement(predictions.decision) if predictions.decision else {}
    if predictions.likelihood:
        found["perplexity"] = perplexity(predictions.likelihood)
    if predictions.answer:
        found["rougeL"] = text_overlap.longest(predictions.answer)
    graded = faithfulness.by_sources(predictions.faithfulness)
    return found | {name: each for name, each in graded.items() if name in SOURCED}
