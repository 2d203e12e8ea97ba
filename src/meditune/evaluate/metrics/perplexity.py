"""Metrics of likelihood: perplexity of reference answers, forgetting, and (experimental) preference between answers."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from meditune.evaluate.predictions import Predictions, ids_of
from meditune.statistics import Array, Statistics, mean, ratio

Rows = list[dict[str, Any]]


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    measured: dict[str, Rows] = {"": predictions.likelihood, "unconditional_": predictions.unconditional}
    measured |= {f"{kind}_": windows for kind, windows in predictions.texts().items()}
    found = {f"{prefix}perplexity": perplexity(rows) for prefix, rows in measured.items() if rows}
    for prefix, rows in (("", predictions.likelihood), ("general_", predictions.general)):
        if rows and all("bytes" in row for row in rows):
            bits = [row["nll"] / log(2) for row in rows]
            found[f"{prefix}bits_per_byte"] = ratio(ids_of(rows), bits, [row["bytes"] for row in rows])
    if predictions.choice:
        right = [100.0 * (chosen(row) == row["reference"]) for row in predictions.choice]
        found["general_choice"] = mean(ids_of(predictions.choice), right)
    return found | preference_statistics(predictions.preference)


def perplexity(rows: Rows) -> Statistics:
    """Return the perplexity over all tokens of rows with `nll` in nats and `tokens`."""
    items = np.array([[row["nll"], row["tokens"]] for row in rows], dtype=np.float64)
    return Statistics(ids_of(rows), items, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))


def chosen(row: dict[str, Any]) -> int:
    """Return the index of the choice with the highest likelihood per byte, like acc_norm in lm-evaluation-harness."""
    each = [nll / size for nll, size in zip(row["nll"], row["bytes"], strict=True)]
    return each.index(min(each))


def preference_statistics(rows: Rows) -> dict[str, Statistics]:
    """Return the statistics of each preference metric that can be computed.

    Single answers with thumbs up or down have no accuracy; their margin is the difference between the two means.
    """
    names = ("chosen_nll", "rejected_nll")
    if rows and all(name in row for row in rows for name in names):
        margins = [row["rejected_nll"] - row["chosen_nll"] for row in rows]
        return {
            "preference_accuracy": mean(ids_of(rows), [100.0 * (margin > 0) for margin in margins]),
            "preference_margin": mean(ids_of(rows), margins),
        }
    items = np.array([[each for name in names for each in (row.get(name, 0.0), name in row)] for row in rows], float)
    if not rows or not items[:, 1::2].any(axis=0).all():
        return {}

    def margin(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):  # a bootstrap draw may lack one of the two kinds
            found: Array = sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1]
        return found

    return {"preference_margin": Statistics(ids_of(rows), items, margin)}
