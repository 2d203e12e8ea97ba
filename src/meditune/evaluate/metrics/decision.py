"""Decisions: how often they are right, class by class, and whether the model knows how sure to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS
from meditune.evaluate.metrics.metric import Array, Metric, Statistics
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric("accuracy", "Accuracy", "up", 1, "Share of yes/no/maybe decisions that are right, in percent.", share=True),
    Metric("macro_f1", "Macro-F1", "up", 1, "Mean of the F1 of yes, no and maybe, in percent."),
    Metric("ece", "Calibration error", "down", 3, "Expected calibration error of the decision, ten equal bins."),
)
BINS = 10
"""Of confidence, for calibration"""


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.decision
    if not rows:
        return {}
    ids = tuple(row["id"] for row in rows)
    cells = np.zeros((len(rows), 12))
    for index, row in enumerate(rows):
        cells[index, 4 * DECISIONS.index(row["reference"]) + _column(row["prediction"])] = 1
    found = {
        "accuracy": Statistics(ids, cells, lambda sums: 100 * sums[..., [0, 5, 10]].sum(axis=-1) / sums.sum(axis=-1)),
        "macro_f1": Statistics(ids, cells, macro_f1),
    }
    # An API that tells only words leaves nothing to calibrate.
    return found | ({"ece": _calibration(ids, rows)} if all("logits" in row for row in rows) else {})


def confusion(rows: list[dict[str, Any]]) -> NDArray[np.int64]:
    """(3, 3) counts: reference in rows, prediction in columns, both in the order yes, no, maybe.

    (3, 4) where a prediction is None, with those in the last column.
    """
    matrix = np.zeros((3, 4), dtype=np.int64)
    for row in rows:
        matrix[DECISIONS.index(row["reference"]), _column(row["prediction"])] += 1
    return matrix if matrix[:, 3].any() else matrix[:, :3]


def _column(prediction: str | None) -> int:
    """A prediction's column; the last for one that is none of the labels."""
    return len(DECISIONS) if prediction is None else DECISIONS.index(prediction)


def recalls(matrix: NDArray[np.int64]) -> dict[str, float | None]:
    """Recall of each class in percent; None where it has no reference."""
    totals = matrix.sum(axis=1)
    return {
        label: float(100 * matrix[index, index] / totals[index]) if totals[index] else None
        for index, label in enumerate(DECISIONS)
    }


def probabilities(logits: dict[str, float]) -> dict[str, float]:
    """Softmax over the labels."""
    values = np.array(list(logits.values()))
    weights = np.exp(values - values.max())
    return dict(zip(logits, (weights / weights.sum()).tolist(), strict=True))


def macro_f1(sums: Array) -> Array:
    """Macro-F1 in percent from flattened confusion counts (..., 9), or (..., 12) with a column for none of the labels.

    As scikit-learn's f1_score(average="macro"): the mean runs over the classes that occur in references or
    predictions. None of the labels is no class of its own.
    """
    matrix = sums.reshape(*sums.shape[:-1], 3, -1)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(axis=-1) + matrix[..., :3].sum(axis=-2)
    present = both > 0
    f1 = np.where(present, 2 * right / np.where(present, both, 1), 0)
    return np.asarray(100 * f1.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def _calibration(ids: tuple[str, ...], rows: list[dict[str, Any]]) -> Statistics:
    """Columns: of each bin the sum of confidences and how many are right; then how many items there are."""
    bins = np.zeros((len(rows), 2 * BINS + 1))
    for index, row in enumerate(rows):
        right = row["reference"] == row["prediction"]
        confidence = max(probabilities(row["logits"]).values())
        slot = min(int(confidence * BINS), BINS - 1)
        bins[index, 2 * slot : 2 * slot + 2] = confidence, right
        bins[index, -1] = 1
    return Statistics(
        ids, bins, lambda sums: np.abs(sums[..., 0:-1:2] - sums[..., 1:-1:2]).sum(axis=-1) / sums[..., -1]
    )
