"""Metrics of decisions by likelihood, calibrated decisions and written decisions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS
from meditune.evaluate.metrics.confidence import Rows, brier_score, calibration_error, risk_area
from meditune.evaluate.predictions import Predictions
from meditune.statistics import Array, Metric, Statistics

METRICS = (
    Metric("accuracy", "Accuracy", "up", 1, "Correct yes/no/maybe decisions, in percent.", share=True),
    Metric("macro_f1", "Macro-F1", "up", 1, "Mean of the F1 of yes, no and maybe, in percent."),
    *(
        Metric(
            f"f1_{label}", f"F1 of {label}", "up", 1, f"F1 of the decision “{label}”, in percent.", True, detail=True
        )
        for label in DECISIONS
    ),
    Metric("ece", "Calibration error", "down", 3, "Expected calibration error of decisions, with ten equal bins."),
    Metric(
        "brier",
        "Brier score",
        "down",
        3,
        "Squared distance of the label probabilities from the reference, 0 to 2.",
        optional=True,
        detail=True,
    ),
    Metric(
        "aurc",
        "Risk-coverage area",
        "down",
        3,
        "Share of wrong decisions among the most confident ones, averaged over coverage.",
        optional=True,
        detail=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows = predictions.decision
    if not rows:
        return {}
    found = agreement(rows) | class_f1(rows)
    # Without likelihoods from the API, there is no confidence to evaluate.
    if not all("logits" in row for row in rows):
        return found
    return found | {"ece": calibration_error(rows), "brier": brier_score(rows), "aurc": risk_area(rows)}


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Statistics]:
    """Return `accuracy` and `macro_f1` of rows with `reference` and `prediction`, which is None without a label."""
    ids, cells = _cells(rows)
    return {
        "accuracy": Statistics(ids, cells, lambda sums: 100 * sums[..., [0, 5, 10]].sum(axis=-1) / sums.sum(axis=-1)),
        "macro_f1": Statistics(ids, cells, macro_f1),
    }


def class_f1(rows: Sequence[dict[str, Any]]) -> dict[str, Statistics]:
    """Return `f1_yes` and so on for the labels that occur in the references."""
    ids, cells = _cells(rows)
    return {
        f"f1_{label}": Statistics(ids, cells, partial(_f1_of, index))
        for index, label in enumerate(DECISIONS)
        if any(row["reference"] == label for row in rows)
    }


def confusion(rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Return (3, 3) counts: references in rows, predictions in columns, both in the order yes, no, maybe.

    If a prediction is None, the result is (3, 4), with these predictions in the last column.
    """
    matrix = np.zeros((3, 4), dtype=np.int64)
    for row in rows:
        matrix[DECISIONS.index(row["reference"]), _column(row["prediction"])] += 1
    return matrix if matrix[:, 3].any() else matrix[:, :3]


def recalls(matrix: NDArray[np.int64]) -> dict[str, float | None]:
    """Return the recall of each class in percent; None for a class without references."""
    totals = matrix.sum(axis=1)
    return {
        label: float(100 * matrix[index, index] / totals[index]) if totals[index] else None
        for index, label in enumerate(DECISIONS)
    }


def macro_f1(sums: Array) -> Array:
    """Return macro-F1 in percent from flattened confusion counts (..., 9), or (..., 12) with a column for no label.

    As in scikit-learn's f1_score(average="macro"), the mean is over the classes that occur in references or
    predictions. Predictions without a label don't form a class.
    """
    f1, present = _f1(sums)
    return np.asarray(f1.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def _f1_of(index: int, sums: Array) -> Array:
    return np.asarray(_f1(sums)[0][..., index])


def _f1(sums: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return (..., 3) F1 of each class in percent (0 for a class that doesn't occur), and whether it occurs."""
    matrix = sums.reshape(*sums.shape[:-1], 3, -1)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(axis=-1) + matrix[..., :3].sum(axis=-2)
    present = both > 0
    return np.where(present, 100 * 2 * right / np.where(present, both, 1), 0), present


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], Array]:
    """Return ids, and (n, 12) with a 1 in the item's cell of the confusion matrix."""
    cells = np.zeros((len(rows), 12))
    for index, row in enumerate(rows):
        cells[index, 4 * DECISIONS.index(row["reference"]) + _column(row["prediction"])] = 1
    return tuple(row["id"] for row in rows), cells


def _column(prediction: str | None) -> int:
    """Return a prediction's column; the last one for a prediction without a label."""
    return len(DECISIONS) if prediction is None else DECISIONS.index(prediction)


_BY_NAME = {metric.name: metric for metric in METRICS}
CALIBRATION_METRICS = tuple(
    _BY_NAME[name].variant("calibrated", "calibrated", f"The same for decisions after calibration on dev{unit}.")
    for name, unit in (("accuracy", ", in percent"), ("macro_f1", ", in percent"), ("ece", ""))
)


def calibration_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    if not predictions.calibration or not predictions.decision:
        return {}
    rows = calibrated(predictions.decision, predictions.calibration[0])
    found = agreement(rows) | {"ece": calibration_error(rows)}
    return {f"calibrated_{name}": each for name, each in found.items()}


def calibrated(rows: Rows, fit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with calibrated `logits` and the resulting `prediction`."""
    corrected = []
    for row in rows:
        logits = {label: value / fit["temperature"] + fit["bias"][label] for label, value in row["logits"].items()}
        corrected.append(row | {"logits": logits, "prediction": max(logits, key=lambda label: logits[label])})
    return corrected


WRITTEN_METRICS = tuple(
    _BY_NAME[name].variant(
        "written", "written", "The same for written decisions, in percent; a text without a label counts as wrong."
    )
    for name in ("accuracy", "macro_f1")
)


def written_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    if not predictions.written:
        return {}
    return {f"written_{name}": each for name, each in agreement(predictions.written).items()}
