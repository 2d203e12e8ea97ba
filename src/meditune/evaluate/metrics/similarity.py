"""How near written answers come to the references in meaning, as a sentence model sees it."""

from __future__ import annotations

from meditune.evaluate.metrics.metric import Metric, Statistics, mean
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric(
        "similarity",
        "Similarity",
        "up",
        3,
        "Cosine of answer and reference by a sentence model, -1 to 1; it can't tell true from false.",
        optional=True,
    ),
    Metric(
        "token_similarity",
        "Token similarity",
        "up",
        3,
        "Tokens of answer and reference matched by meaning (F).",
        optional=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.similarity
    ids = [row["id"] for row in rows]
    return {metric.name: mean(ids, [row[metric.name] for row in rows]) for metric in METRICS} if rows else {}
