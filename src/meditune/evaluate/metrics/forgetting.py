"""What tuning made a model forget."""

from __future__ import annotations

from meditune.evaluate.metrics.fluency import bits_per_byte, has_bytes, perplexity
from meditune.evaluate.metrics.metric import Metric, Statistics
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
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    found = {f"{kind}_perplexity": perplexity(windows) for kind, windows in predictions.texts().items()}
    if has_bytes(predictions.general):
        found["general_bits_per_byte"] = bits_per_byte(predictions.general)
    return found
