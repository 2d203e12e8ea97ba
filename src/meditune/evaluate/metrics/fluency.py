"""How surprised a model is by text: by reference answers, and by running text that shows what it forgot."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from meditune.evaluate.metrics.metric import Metric, Statistics, ratio
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric("perplexity", "Perplexity", "down", 2, "Of the reference answer's tokens, given question and context."),
    Metric(
        "unconditional_perplexity",
        "Unconditional perplexity",
        "down",
        2,
        "Of the same answers without question and context.",
        optional=True,
    ),
    Metric(
        "bits_per_byte",
        "Bits per byte",
        "down",
        3,
        "Of the reference answers, given question and context; comparable between tokenizers.",
        optional=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    found = {}
    if predictions.likelihood:
        found["perplexity"] = perplexity(predictions.likelihood)
    if predictions.unconditional:
        found["unconditional_perplexity"] = perplexity(predictions.unconditional)
    if has_bytes(predictions.likelihood):
        found["bits_per_byte"] = bits_per_byte(predictions.likelihood)
    return found


def perplexity(rows: list[dict[str, Any]]) -> Statistics:
    """Of all tokens of rows with `nll` in nats and `tokens`."""
    items = np.array([[row["nll"], row["tokens"]] for row in rows], dtype=np.float64)
    return Statistics(tuple(row["id"] for row in rows), items, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))


def bits_per_byte(rows: list[dict[str, Any]]) -> Statistics:
    """Of all UTF-8 bytes of rows with `nll` in nats and `bytes`."""
    return ratio([row["id"] for row in rows], [row["nll"] / log(2) for row in rows], [row["bytes"] for row in rows])


def has_bytes(rows: list[dict[str, Any]]) -> bool:
    """Whether there are rows that say how long their text is; those of earlier versions don't."""
    return bool(rows) and all("bytes" in row for row in rows)
