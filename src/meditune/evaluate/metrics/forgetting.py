"""What tuning made a model forget."""

from __future__ import annotations

from typing import Any

from meditune.evaluate.metrics.fluency import bits_per_byte, has_bytes, perplexity
from meditune.evaluate.metrics.metric import Metric, Statistics, mean
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric("general_perplexity", "General perplexity", "down", 2, "Of WikiText-2: rises when a model forgets."),
    Metric(
        "general_bits_per_byte",
        "General bits per byte",
        "down",
        3,
        "Of WikiText-2; comparable between tokenizers.",
        optional=True,
    ),
    Metric(
        "technical_perplexity",
        "Technical perplexity",
        "down",
        2,
        "Of technical English, Python's language reference: rises when a model forgets.",
        optional=True,
    ),
    Metric(
        "general_choice",
        "General knowledge",
        "up",
        1,
        "Share of everyday questions whose right choice, of four, is the likeliest, in percent; chance is 25.",
        optional=True,
        share=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    found = {f"{kind}_perplexity": perplexity(windows) for kind, windows in predictions.texts().items()}
    if has_bytes(predictions.general):
        found["general_bits_per_byte"] = bits_per_byte(predictions.general)
    if predictions.choice:
        right = [100.0 * (chosen(row) == row["reference"]) for row in predictions.choice]
        found["general_choice"] = mean([row["id"] for row in predictions.choice], right)
    return found


def chosen(row: dict[str, Any]) -> int:
    """Index of the choice with the highest likelihood for each of its bytes, as lm-evaluation-harness's acc_norm."""
    each = [nll / size for nll, size in zip(row["nll"], row["bytes"], strict=True)]
    return each.index(min(each))
