"""Every figure of a model, computed from its stored predictions.

Each metric is kept as per-item statistics and a function that turns sums of them into the figure, so that the same code
gives the figure and its bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS
from meditune.evaluate.predictions import Predictions

Array = NDArray[np.float64]
Direction = Literal["up", "down", "one"]


@dataclass(frozen=True)
class Metric:
    """How a metric is named, read and judged."""

    name: str
    title: str
    direction: Direction
    """up: higher is better; down: lower is better; one: closer to 1 is better."""
    digits: int
    meaning: str
    optional: bool = False
    """Of no interest in a report of a run that didn't measure it."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", "up", 1, "Share of yes/no/maybe decisions that are right, in percent."),
        Metric("macro_f1", "Macro-F1", "up", 1, "Mean of the F1 of yes, no and maybe, in percent."),
        Metric("ece", "Calibration error", "down", 3, "Expected calibration error of the decision, ten equal bins."),
        Metric("perplexity", "Perplexity", "down", 2, "Of the reference answer's tokens, given question and context."),
        Metric("bleu", "BLEU", "up", 2, "sacrebleu's corpus BLEU of greedy answers, 0 to 100."),
        Metric("rouge1", "ROUGE-1", "up", 3, "Words shared with the reference (F, stemmed)."),
        Metric("rouge2", "ROUGE-2", "up", 3, "Pairs of neighbouring words shared with the reference (F, stemmed)."),
        Metric("rougeL", "ROUGE-L", "up", 3, "Longest sequence of words in the reference's order (F, stemmed)."),
        Metric("length_ratio", "Length ratio", "one", 2, "Words written over words of the references."),
        Metric("general_perplexity", "General perplexity", "down", 2, "Of WikiText-2: rises when a model forgets."),
        Metric(
            "technical_perplexity",
            "Technical perplexity",
            "down",
            2,
            "Of technical English, Python's language reference: rises when a model forgets.",
            optional=True,
        ),
        Metric(
            "preference_accuracy",
            "Preference accuracy",
            "up",
            1,
            "Share of held-out pairs whose preferred answer is likelier than the other, in percent (experimental).",
            optional=True,
        ),
        Metric(
            "preference_margin",
            "Preference margin",
            "up",
            2,
            "Mean log-likelihood of preferred answers less that of the others, in nats (experimental).",
            optional=True,
        ),
    )
}
PREFERENCE = ("preference_accuracy", "preference_margin")


@dataclass(frozen=True)
class Statistics:
    """Per-item statistics of one metric, and what their sums say."""

    ids: tuple[str, ...]
    items: Array
    """(n, k): k statistics of each of n items"""
    figure: Callable[[Array], Array]
    """From sums (..., k) over any selection of items to the figure (...)"""

    def value(self) -> float:
        """The figure over all items."""
        return float(self.figure(self.items.sum(axis=0)))


def summarise(predictions: Predictions) -> dict[str, float]:
    """Every metric that the predictions allow."""
    return {name: statistics.value() for name, statistics in statistics_of(predictions).items()}


def statistics_of(predictions: Predictions) -> dict[str, Statistics]:
    """Per-item statistics of every metric that the predictions allow, in the order of METRICS."""
    found: dict[str, Statistics] = {}
    if predictions.decision:
        found |= _decision(predictions.decision)
    if predictions.likelihood:
        found["perplexity"] = _perplexity(predictions.likelihood)
    if predictions.answer:
        found |= _overlap(predictions.answer)
    found |= {f"{kind}_perplexity": _perplexity(windows) for kind, windows in predictions.texts().items()}
    if predictions.preference:
        found |= _preference(predictions.preference)
    return {name: found[name] for name in METRICS if name in found}


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


def _decision(rows: list[dict[str, Any]]) -> dict[str, Statistics]:
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


def _calibration(ids: tuple[str, ...], rows: list[dict[str, Any]]) -> Statistics:
    bins = np.zeros((len(rows), 20))
    for index, row in enumerate(rows):
        right = row["reference"] == row["prediction"]
        confidence = max(probabilities(row["logits"]).values())
        slot = min(int(confidence * 10), 9)
        bins[index, 2 * slot : 2 * slot + 2] = confidence, right
    return Statistics(ids, bins, lambda sums: np.abs(sums[..., 0::2] - sums[..., 1::2]).sum(axis=-1) / len(rows))


def _perplexity(rows: list[dict[str, Any]]) -> Statistics:
    items = np.array([[row["nll"], row["tokens"]] for row in rows], dtype=np.float64)
    return Statistics(tuple(row["id"] for row in rows), items, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))


def _overlap(rows: list[dict[str, Any]]) -> dict[str, Statistics]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    ids = tuple(row["id"] for row in rows)
    bleu, kinds = BLEU(), ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    grams, rouge, words = [], [], []
    for row in rows:
        counted = bleu.corpus_score([row["prediction"]], [[row["reference"]]])
        grams.append([counted.sys_len, counted.ref_len, *counted.counts, *counted.totals])
        scores = scorer.score(row["reference"], row["prediction"])
        rouge.append([scores[kind].fmeasure for kind in kinds])
        words.append([len(row["prediction"].split()), len(row["reference"].split())])
    count = len(rows)
    found = {"bleu": Statistics(ids, np.array(grams, dtype=np.float64), corpus_bleu)}
    for index, kind in enumerate(kinds):
        column = np.array(rouge, dtype=np.float64)[:, [index]]
        found[kind] = Statistics(ids, column, lambda sums: sums[..., 0] / count)
    found["length_ratio"] = Statistics(ids, np.array(words, dtype=np.float64), lambda sums: sums[..., 0] / sums[..., 1])
    return found


def _preference(rows: list[dict[str, Any]]) -> dict[str, Statistics]:
    ids, count = tuple(row["id"] for row in rows), len(rows)
    margins = np.array([[row["rejected_nll"] - row["chosen_nll"]] for row in rows], dtype=np.float64)
    return {
        "preference_accuracy": Statistics(ids, np.where(margins > 0, 100.0, 0.0), lambda sums: sums[..., 0] / count),
        "preference_margin": Statistics(ids, margins, lambda sums: sums[..., 0] / count),
    }


def corpus_bleu(sums: Array) -> Array:
    """sacrebleu's corpus BLEU from summed statistics (..., 10): lengths, matches and totals of 1- to 4-grams."""
    from sacrebleu.metrics import BLEU

    flat = sums.reshape(-1, sums.shape[-1])
    scores = [
        BLEU.compute_bleu(
            correct=[int(value) for value in row[2:6]],
            total=[int(value) for value in row[6:10]],
            sys_len=int(row[0]),
            ref_len=int(row[1]),
            smooth_method="exp",
        ).score
        for row in flat
    ]
    return np.array(scores).reshape(sums.shape[:-1])
