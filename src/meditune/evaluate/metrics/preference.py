"""Experimental: whether a model finds preferred answers likelier than others."""

from __future__ import annotations

from meditune.evaluate.metrics.metric import Metric, Statistics, mean
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric(
        "preference_accuracy",
        "Preference accuracy",
        "up",
        1,
        "Share of held-out pairs whose preferred answer is likelier than the other, in percent (experimental).",
        optional=True,
        share=True,
    ),
    Metric(
        "preference_margin",
        "Preference margin",
        "up",
        2,
        "Mean log-likelihood of preferred answers less that of the others, in nats (experimental).",
        optional=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.preference
    if not rows:
        return {}
    ids = [row["id"] for row in rows]
    margins = [row["rejected_nll"] - row["chosen_nll"] for row in rows]
    return {
        "preference_accuracy": mean(ids, [100.0 * (margin > 0) for margin in margins]),
        "preference_margin": mean(ids, margins),
    }
