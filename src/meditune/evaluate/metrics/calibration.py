"""Decisions after what was fitted on dev corrected them. The uncorrected figures stand beside these."""

from __future__ import annotations

from typing import Any

from meditune.evaluate.metrics.confidence import Rows, calibration_error
from meditune.evaluate.metrics.decision import agreement
from meditune.evaluate.metrics.metric import Metric, Statistics
from meditune.evaluate.predictions import Predictions

_SHARE = "Of decisions corrected by what was fitted on dev, in percent."
METRICS = (
    Metric("calibrated_accuracy", "Accuracy, calibrated", "up", 1, _SHARE, optional=True, share=True, detail=True),
    Metric("calibrated_macro_f1", "Macro-F1, calibrated", "up", 1, _SHARE, optional=True, detail=True),
    Metric(
        "calibrated_ece",
        "Calibration error, calibrated",
        "down",
        3,
        "Of decisions corrected by what was fitted on dev.",
        optional=True,
        detail=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    if not predictions.calibration or not predictions.decision:
        return {}
    rows = calibrated(predictions.decision, predictions.calibration[0])
    found = agreement(rows) | {"ece": calibration_error(rows)}
    return {f"calibrated_{name}": each for name, each in found.items()}


def calibrated(rows: Rows, fit: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with corrected `logits`, and the `prediction` that follows from them."""
    corrected = []
    for row in rows:
        logits = {label: value / fit["temperature"] + fit["bias"][label] for label, value in row["logits"].items()}
        corrected.append(row | {"logits": logits, "prediction": max(logits, key=lambda label: logits[label])})
    return corrected
