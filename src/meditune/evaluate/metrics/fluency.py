"""How surprised a model is by text: by reference answers, and by running text that shows what it forgot."""

from __future__ import annotations

from typing import Any

import numpy as np

from meditune.evaluate.metrics.metric import Metric, Statistics
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric("perplexity", "Perplexity", "down", 2, "Of the reference answer's tokens, given question and context."),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    return {"perplexity": perplexity(predictions.likelihood)} if predictions.likelihood else {}


def perplexity(rows: list[dict[str, Any]]) -> Statistics:
    """Of all tokens of rows with `nll` in nats and `tokens`."""
    items = np.array([[row["nll"], row["tokens"]] for row in rows], dtype=np.float64)
    return Statistics(tuple(row["id"] for row in rows), items, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))
