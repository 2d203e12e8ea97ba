"""Decisions asked for in other ways: without any context, and in words."""

from __future__ import annotations

from meditune.evaluate.metrics.decision import agreement
from meditune.evaluate.metrics.metric import Metric, Statistics
from meditune.evaluate.predictions import Predictions

METRICS = tuple(
    Metric(
        f"{kind}_{name}",
        f"{title}, {way}",
        "up",
        1,
        meaning,
        optional=True,
        share=name == "accuracy",
        detail=True,
    )
    for kind, way, meaning in (
        ("closed", "closed book", "Of decisions without any context in the prompt, in percent."),
        ("written", "written", "Of decisions that the model wrote; one that names no label is wrong. In percent."),
    )
    for name, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"))
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    found: dict[str, Statistics] = {}
    for kind, rows in (("closed", predictions.closed), ("written", predictions.written)):
        if rows:
            found |= {f"{kind}_{name}": each for name, each in agreement(rows).items()}
    return found
