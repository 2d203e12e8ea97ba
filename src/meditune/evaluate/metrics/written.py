"""Decisions that the model was let to write."""

from __future__ import annotations

from meditune.evaluate.metrics.decision import agreement
from meditune.evaluate.metrics.metric import Metric, Statistics
from meditune.evaluate.predictions import Predictions

METRICS = tuple(
    Metric(
        f"written_{name}",
        f"{title}, written",
        "up",
        1,
        "Of decisions that the model wrote; one that names no label is wrong. In percent.",
        optional=True,
        share=name == "accuracy",
        detail=True,
    )
    for name, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"))
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    if not predictions.written:
        return {}
    return {f"written_{name}": each for name, each in agreement(predictions.written).items()}
