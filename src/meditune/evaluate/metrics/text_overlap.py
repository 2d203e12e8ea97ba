"""What written answers share with the references: sacrebleu's and rouge_score's statistics, never our own.

Where an item has several references, an answer is held to the one that suits it best, each metric in its own way.

How near written answers come to the references in meaning, as a sentence model sees it.

Whether written answers repeat themselves, as small models do that don't know how to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from meditune.evaluate.predictions import Predictions, references
from meditune.statistics import Array, Metric, Statistics, mean, ratio
from meditune.text import sentences

METRICS = (
    Metric("bleu", "BLEU", "up", 2, "sacrebleu's corpus BLEU of greedy answers, 0 to 100."),
    Metric(
        "chrf",
        "chrF",
        "up",
        2,
        "sacrebleu's chrF: sequences of characters shared, 0 to 100; recall counts twice, so length helps.",
        optional=True,
    ),
    Metric("rouge1", "ROUGE-1", "up", 3, "Words shared with the reference (F, stemmed)."),
    Metric("rouge2", "ROUGE-2", "up", 3, "Pairs of neighbouring words shared with the reference (F, stemmed)."),
    Metric("rougeL", "ROUGE-L", "up", 3, "Longest sequence of words in the reference's order (F, stemmed)."),
    Metric("rougeLsum", "ROUGE-Lsum", "up", 3, "ROUGE-L sentence by sentence (F, stemmed).", optional=True),
    Metric("length_ratio", "Length ratio", "one", 2, "Words written over words of the references."),
)
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ORDERS = 4
"""Of BLEU's word n-grams"""
LOG_ZERO = -9999999999.0
"""What sacrebleu takes for the logarithm of 0"""


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.answer
    if not rows:
        return {}
    from rouge_score.rouge_scorer import RougeScorer

    ids, written = tuple(row["id"] for row in rows), [row["prediction"] for row in rows]
    found = {
        name: Statistics(ids, np.array(scorer._extract_corpus_statistics(written, None), dtype=np.float64), figure)
        for (name, scorer), figure in zip(_scorers(rows).items(), (corpus_bleu, corpus_chrf), strict=True)
    }
    rouge = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        rouge.score_multi([_by_line(each) for each in references(row)], _by_line(row["prediction"])) for row in rows
    ]
    found |= {kind: mean(ids, [each[kind].fmeasure for each in scores]) for kind in ROUGE}
    lengths = [len(text.split()) for text in written]
    meant = [closest(length, references(row)) for length, row in zip(lengths, rows, strict=True)]
    return found | {"length_ratio": ratio(ids, lengths, meant)}


def longest(rows: list[dict[str, Any]]) -> Statistics:
    """`rougeL` alone, of at least one answer."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [rouge.score_multi(references(row), row["prediction"])["rougeL"].fmeasure for row in rows]
    return mean([row["id"] for row in rows], scores)


def signatures(predictions: Predictions) -> dict[str, str]:
    """sacrebleu's signatures of `bleu` and `chrf`, which name every setting; none where no answers were written."""
    rows = predictions.answer
    return {name: str(scorer.get_signature()) for name, scorer in _scorers(rows).items()} if rows else {}


def closest(length: int, texts: Sequence[str]) -> int:
    """The number of words of the text that is nearest to `length`; of two as near, the shorter one's, as in BLEU."""
    return min((len(text.split()) for text in texts), key=lambda words: (abs(words - length), words))


def corpus_bleu(sums: Array) -> Array:
    """sacrebleu's corpus BLEU from summed statistics (..., 10): lengths, matches and totals of 1- to 4-grams.

    As BLEU.compute_bleu with the smoothing "exp", over any number of bootstrap draws at once.
    """
    written, meant = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    brevity = np.where(written < meant, np.exp(np.minimum(0, 1 - meant / np.maximum(written, 1))), 1.0)
    # Each order without a match counts as half a match, the next one as a quarter, and so on.
    halved = 2.0 ** np.cumsum((matches == 0) & (totals > 0), axis=-1)
    precisions = 100 * np.where(matches > 0, matches, 1 / halved) / np.maximum(totals, 1)
    logs = np.where(totals > 0, np.log(precisions), LOG_ZERO)
    scores = brevity * np.exp(logs.sum(axis=-1) / ORDERS)
    return np.where(matches.any(axis=-1) & (written > 0), scores, 0.0)


def corpus_chrf(sums: Array) -> Array:
    """sacrebleu's chrF2 from summed statistics (..., 18): of 1 to 6 characters those written, meant and shared.

    As CHRF's own, over any number of draws at once.
    """
    written, meant, shared = (sums[..., column::3] for column in range(3))
    counts = (written > 0) & (meant > 0)
    orders = np.maximum(counts.sum(axis=-1), 1)
    precision = np.where(counts, shared / np.maximum(written, 1), 0).sum(axis=-1) / orders
    recall = np.where(counts, shared / np.maximum(meant, 1), 0).sum(axis=-1) / orders
    both = 4 * precision + recall
    return np.where(both > 0, 100 * 5 * precision * recall / np.where(both > 0, both, 1), 0.0)


def _scorers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """BLEU and chrF with all references; None stands for one that an item doesn't have."""
    from sacrebleu.metrics import BLEU, CHRF

    streams = list(zip_longest(*map(references, rows)))
    return {"bleu": BLEU(references=streams), "chrf": CHRF(references=streams)}


def _by_line(text: str) -> str:
    """Its sentences in lines of their own, which only ROUGE-Lsum can tell from the text as it was."""
    return "\n".join(sentences(text))


SIMILARITY_METRICS = (
    Metric(
        "similarity",
        "Similarity",
        "up",
        3,
        "Cosine of answer and reference by a sentence model, -1 to 1; it can't tell true from false.",
        optional=True,
    ),
    Metric(
        "token_similarity",
        "Token similarity",
        "up",
        3,
        "Tokens of answer and reference matched by meaning (F).",
        optional=True,
    ),
)


def similarity_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.similarity
    ids = [row["id"] for row in rows]
    return {metric.name: mean(ids, [row[metric.name] for row in rows]) for metric in SIMILARITY_METRICS} if rows else {}


REPETITION_METRICS = (
    Metric(
        "answer_repetition",
        "Repetition",
        "down",
        1,
        "Share of an answer's four-word sequences that stood in it before, in percent.",
        optional=True,
    ),
    Metric(
        "answer_loops",
        "Answers in a loop",
        "down",
        1,
        "Share of answers that say one phrase three times in a row or more, in percent.",
        optional=True,
        share=True,
    ),
)
GRAM = 4
TIMES, SHORTEST = 3, 8
"""A loop: a phrase so many times in a row, so many words in all."""


def repetition_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.answer
    if not rows:
        return {}
    ids = [row["id"] for row in rows]
    return {
        "answer_repetition": mean(ids, [100 * repeated(row["prediction"]) for row in rows]),
        "answer_loops": mean(ids, [100.0 * loops(row["prediction"]) for row in rows]),
    }


def repeated(text: str) -> float:
    """1 - different four-word sequences / all of them (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319, on words).

    0 for a text of fewer than four words. Case doesn't count.
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(text: str) -> bool:
    """Whether some phrase stands in `text` at least three times in a row, making up eight words or more."""
    words = text.lower().split()
    numbers = np.unique(words, return_inverse=True)[1] if words else np.array([], dtype=np.int64)
    for period in range(1, len(words) // TIMES + 1):
        same = numbers[period:] == numbers[:-period]
        if _longest_run(same) + period >= max(TIMES * period, SHORTEST):
            return True
    return False


def _longest_run(values: np.typing.NDArray[np.bool_]) -> int:
    """How many neighbouring values are true at most."""
    edges = np.flatnonzero(~np.concatenate(([False], values, [False])))
    return int(np.diff(edges).max()) - 1
