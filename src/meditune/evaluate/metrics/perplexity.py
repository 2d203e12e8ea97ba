"""Metrics of likelihood: perplexity of reference answers, forgetting, and (experimental) preference between answers."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from meditune.evaluate.predictions import Predictions
from meditune.statistics import Array, Metric, Statistics, mean, ratio

METRICS = (
    Metric("perplexity", "Perplexity", "down", 2, "Perplexity of the reference answers, given question and context."),
    Metric(
        "unconditional_perplexity",
        "Unconditional perplexity",
        "down",
        2,
        "Perplexity of the same answers without question and context.",
        optional=True,
    ),
    Metric(
        "bits_per_byte",
        "Bits per byte",
        "down",
        3,
        "Bits per byte of the reference answers, given question and context; comparable between tokenizers.",
        optional=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    found = {}
    if predictions.likelihood:
        found["perplexity"] = perplexity(predictions.likelihood)
    if predictions.unconditional:
        found["unconditional_perplexity"] = perplexity(predictions.unconditional)
    if has_bytes(predictions.likelihood):
        found["bits_per_byte"] = bits_per_byte(predictions.likelihood)
    return found


def perplexity(rows: list[dict[str, Any]]) -> Statistics:
    """Return the perplexity over all tokens of rows with `nll` in nats and `tokens`."""
    items = np.array([[row["nll"], row["tokens"]] for row in rows], dtype=np.float64)
    return Statistics(tuple(row["id"] for row in rows), items, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))


def bits_per_byte(rows: list[dict[str, Any]]) -> Statistics:
    """Return the bits per UTF-8 byte of rows with `nll` in nats and `bytes`."""
    return ratio([row["id"] for row in rows], [row["nll"] / log(2) for row in rows], [row["bytes"] for row in rows])


def has_bytes(rows: list[dict[str, Any]]) -> bool:
    """Return True if there are rows and all have `bytes`; rows of earlier versions don't."""
    return bool(rows) and all("bytes" in row for row in rows)


FORGETTING_METRICS = (
    Metric(
        "general_perplexity",
        "General perplexity",
        "down",
        2,
        "Perplexity of WikiText-2; it rises when a model forgets.",
    ),
    Metric(
        "general_bits_per_byte",
        "General bits per byte",
        "down",
        3,
        "Bits per byte of WikiText-2; comparable between tokenizers.",
        optional=True,
    ),
    Metric(
        "technical_perplexity",
        "Technical perplexity",
        "down",
        2,
        "Perplexity of technical English (Python's language reference); it rises when a model forgets.",
        optional=True,
    ),
    Metric(
        "general_choice",
        "General knowledge",
        "up",
        1,
        "Everyday questions whose correct choice (of four) is the most likely one, in percent; guessing gives 25.",
        optional=True,
        share=True,
    ),
)


def forgetting_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    found = {f"{kind}_perplexity": perplexity(windows) for kind, windows in predictions.texts().items()}
    if has_bytes(predictions.general):
        found["general_bits_per_byte"] = bits_per_byte(predictions.general)
    if predictions.choice:
        right = [100.0 * (chosen(row) == row["reference"]) for row in predictions.choice]
        found["general_choice"] = mean([row["id"] for row in predictions.choice], right)
    return found


def chosen(row: dict[str, Any]) -> int:
    """Return the index of the choice with the highest likelihood per byte, as lm-evaluation-harness's acc_norm."""
    each = [nll / size for nll, size in zip(row["nll"], row["bytes"], strict=True)]
    return each.index(min(each))


PREFERENCE_METRICS = (
    Metric(
        "preference_accuracy",
        "Preference accuracy",
        "up",
        1,
        "Held-out pairs whose preferred answer is more likely than the other, in percent (experimental).",
        optional=True,
        share=True,
    ),
    Metric(
        "preference_margin",
        "Preference margin",
        "up",
        2,
        "Mean log-likelihood of preferred answers minus that of the others, in nats (experimental).",
        optional=True,
    ),
)


def preference_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions.

    Single answers, with thumbs up or down, have no accuracy; their margin is the difference of two means.
    """
    rows = predictions.preference
    ids = [row["id"] for row in rows]
    if rows and all("chosen_nll" in row and "rejected_nll" in row for row in rows):
        margins = [row["rejected_nll"] - row["chosen_nll"] for row in rows]
        return {
            "preference_accuracy": mean(ids, [100.0 * (margin > 0) for margin in margins]),
            "preference_margin": mean(ids, margins),
        }
    names = ("chosen_nll", "rejected_nll")
    items = np.array([[each for name in names for each in (row.get(name, 0.0), name in row)] for row in rows], float)
    if not rows or not items[:, 1::2].any(axis=0).all():
        return {}

    def margin(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):  # a bootstrap draw may lack one of the two kinds
            found: Array = sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1]
        return found

    return {"preference_margin": Statistics(tuple(ids), items, margin)}
