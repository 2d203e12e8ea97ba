"""Metrics of written answers: overlap and similarity with the references, and repetition.

Overlap metrics use the statistics of sacrebleu and rouge_score. If an item has several references, each metric
compares an answer with the best-matching one.
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
        "sacrebleu's chrF: shared character n-grams, 0 to 100; recall counts twice, which favours long answers.",
        optional=True,
    ),
    Metric("rouge1", "ROUGE-1", "up", 3, "Words shared with the reference (F1, stemmed)."),
    Metric("rouge2", "ROUGE-2", "up", 3, "Pairs of adjacent words shared with the reference (F1, stemmed)."),
    Metric("rougeL", "ROUGE-L", "up", 3, "Longest common subsequence of words with the reference (F1, stemmed)."),
    Metric("rougeLsum", "ROUGE-Lsum", "up", 3, "ROUGE-L sentence by sentence (F1, stemmed).", optional=True),
    Metric(
        "length_ratio", "Length ratio", "one", 2, "Number of words in the answers divided by that in the references."
    ),
)
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ORDERS = 4
"""Maximum length of BLEU's word n-grams"""
LOG_ZERO = -9999999999.0
"""sacrebleu's value for the logarithm of 0"""


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
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
    """Return `rougeL` of at least one answer."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [rouge.score_multi(references(row), row["prediction"])["rougeL"].fmeasure for row in rows]
    return mean([row["id"] for row in rows], scores)


def signatures(predictions: Predictions) -> dict[str, str]:
    """Return sacrebleu's signatures of `bleu` and `chrf`, which contain every setting; empty without answers."""
    rows = predictions.answer
    return {name: str(scorer.get_signature()) for name, scorer in _scorers(rows).items()} if rows else {}


def closest(length: int, texts: Sequence[str]) -> int:
    """Return the number of words of the text closest to `length`; in a tie, of the shorter text, as in BLEU."""
    return min((len(text.split()) for text in texts), key=lambda words: (abs(words - length), words))


def corpus_bleu(sums: Array) -> Array:
    """Return sacrebleu's corpus BLEU from summed statistics (..., 10): lengths, matches and totals of 1- to 4-grams.

    This is BLEU.compute_bleu with the smoothing "exp", vectorized over bootstrap draws.
    """
    written, meant = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    brevity = np.where(written < meant, np.exp(np.minimum(0, 1 - meant / np.maximum(written, 1))), 1.0)
    # The first order without a match counts as half a match, the next one as a quarter, and so on.
    halved = 2.0 ** np.cumsum((matches == 0) & (totals > 0), axis=-1)
    precisions = 100 * np.where(matches > 0, matches, 1 / halved) / np.maximum(totals, 1)
    logs = np.where(totals > 0, np.log(precisions), LOG_ZERO)
    scores = brevity * np.exp(logs.sum(axis=-1) / ORDERS)
    return np.where(matches.any(axis=-1) & (written > 0), scores, 0.0)


def corpus_chrf(sums: Array) -> Array:
    """Return sacrebleu's chrF2 from summed statistics (..., 18), vectorized over bootstrap draws.

    The statistics are the numbers of character n-grams (n from 1 to 6) in answer and reference, and of shared ones.
    """
    written, meant, shared = (sums[..., column::3] for column in range(3))
    counts = (written > 0) & (meant > 0)
    orders = np.maximum(counts.sum(axis=-1), 1)
    precision = np.where(counts, shared / np.maximum(written, 1), 0).sum(axis=-1) / orders
    recall = np.where(counts, shared / np.maximum(meant, 1), 0).sum(axis=-1) / orders
    both = 4 * precision + recall
    return np.where(both > 0, 100 * 5 * precision * recall / np.where(both > 0, both, 1), 0.0)


def _scorers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return BLEU and chrF scorers with all references, padded with None for items with fewer references."""
    from sacrebleu.metrics import BLEU, CHRF

    streams = list(zip_longest(*map(references, rows)))
    return {"bleu": BLEU(references=streams), "chrf": CHRF(references=streams)}


def _by_line(text: str) -> str:
    """Return the text with one sentence per line, which affects only ROUGE-Lsum."""
    return "\n".join(sentences(text))


SIMILARITY_METRICS = (
    Metric(
        "similarity",
        "Similarity",
        "up",
        3,
        "Cosine similarity of answer and reference by a sentence model, -1 to 1; it can't tell true from false.",
        optional=True,
    ),
    Metric(
        "token_similarity",
        "Token similarity",
        "up",
        3,
        "Tokens of answer and reference matched by meaning (F1).",
        optional=True,
    ),
)


def similarity_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows = predictions.similarity
    ids = [row["id"] for row in rows]
    return {metric.name: mean(ids, [row[metric.name] for row in rows]) for metric in SIMILARITY_METRICS} if rows else {}


REPETITION_METRICS = (
    Metric(
        "answer_repetition",
        "Repetition",
        "down",
        1,
        "Four-word sequences of an answer that occur earlier in it, in percent.",
        optional=True,
    ),
    Metric(
        "answer_loops",
        "Answers in a loop",
        "down",
        1,
        "Answers that repeat a phrase three or more times in a row, in percent.",
        optional=True,
        share=True,
    ),
)
GRAM = 4
TIMES, SHORTEST = 3, 8
"""Minimum number of repetitions, and of words in all, of a loop"""


def repetition_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows = predictions.answer
    if not rows:
        return {}
    ids = [row["id"] for row in rows]
    return {
        "answer_repetition": mean(ids, [100 * repeated(row["prediction"]) for row in rows]),
        "answer_loops": mean(ids, [100.0 * loops(row["prediction"]) for row in rows]),
    }


def repeated(text: str) -> float:
    """Return 1 - distinct / all four-word sequences (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319, on words).

    The result is 0 for a text of fewer than four words. Case is ignored.
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(text: str) -> bool:
    """Return True if `text` repeats a phrase at least three times in a row, with eight or more words in all."""
    words = text.lower().split()
    numbers = np.unique(words, return_inverse=True)[1] if words else np.array([], dtype=np.int64)
    for period in range(1, len(words) // TIMES + 1):
        same = numbers[period:] == numbers[:-period]
        if _longest_run(same) + period >= max(TIMES * period, SHORTEST):
            return True
    return False


def _longest_run(values: np.typing.NDArray[np.bool_]) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(~np.concatenate(([False], values, [False])))
    return int(np.diff(edges).max()) - 1
