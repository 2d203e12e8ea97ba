"""Metrics of written answers: overlap and similarity with the references, repetition, faithfulness, readability.

Overlap metrics use the statistics of sacrebleu and rouge_score. If an item has several references, BLEU and SARI use
all of them, and every other overlap metric uses the best-matching reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import zip_longest
from statistics import fmean
from typing import Any

import numpy as np

from meditune import readability
from meditune.evaluate.predictions import Predictions, ids_of, references
from meditune.evidence.lexical_detector import CONTRADICTIONS, Sentence, placed
from meditune.statistics import Array, Statistics, mean, ratio
from meditune.text import sentences

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ORDERS = 4
"""Maximum length of BLEU's and SARI's word n-grams"""
OPERATIONS = ("add", "keep", "delete")
"""SARI's operations on the n-grams of the source"""
LOG_ZERO = -9999999999.0
"""sacrebleu's value for the logarithm of 0"""
GRAM = 4
TIMES, SHORTEST = 3, 8
"""Minimum number of repetitions of a phrase in a loop, and minimum number of words in the loop"""
COMMONEST = 20
_COLUMNS = ("answers", "outside", "sentences", "words", "polysyllables", "rare", "unexplained")
Rows = Sequence[dict[str, Any]]


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    found = by_sources(predictions.faithfulness) | _by_samples(predictions)
    rows = predictions.similarity
    for name in ("similarity", "token_similarity") if rows else ():
        found[name] = mean(ids_of(rows), [row[name] for row in rows])
    rows = predictions.sari
    if rows:
        counts = np.array([[row[name] for name in OPERATIONS] for row in rows], dtype=np.float64)
        found["sari"] = Statistics(ids_of(rows), counts.reshape(len(rows), -1), corpus_sari)
    rows = predictions.answer
    if rows:
        ids, texts = ids_of(rows), [row["prediction"] for row in rows]
        found |= _overlap(rows) | _readability(ids, texts)
        found["answer_repetition"] = mean(ids, [100 * repeated(text) for text in texts])
        found["answer_loops"] = mean(ids, [100.0 * loops(text) for text in texts])
    return found


# Overlap with references


def _overlap(rows: Rows) -> dict[str, Statistics]:
    from rouge_score.rouge_scorer import RougeScorer

    ids, written = ids_of(rows), [row["prediction"] for row in rows]
    found = {
        name: Statistics(ids, np.array(scorer._extract_corpus_statistics(written, None), dtype=np.float64), figure)
        for (name, scorer), figure in zip(_scorers(rows).items(), (corpus_bleu, corpus_chrf), strict=True)
    }
    rouge = RougeScorer(list(ROUGE), use_stemmer=True)
    # One sentence per line affects only ROUGE-Lsum.
    scores = [
        rouge.score_multi(
            ["\n".join(sentences(each)) for each in references(row)], "\n".join(sentences(row["prediction"]))
        )
        for row in rows
    ]
    found |= {kind: mean(ids, [each[kind].fmeasure for each in scores]) for kind in ROUGE}
    lengths = [len(text.split()) for text in written]
    meant = [_closest(length, references(row)) for length, row in zip(lengths, rows, strict=True)]
    return found | {"length_ratio": ratio(ids, lengths, meant)}


def longest(rows: Rows) -> Statistics:
    """Return the statistics of `rougeL`; there must be at least one answer."""
    return mean(ids_of(rows), list(map(rouge, rows)))


def rouge(row: dict[str, Any]) -> float:
    """Return the ROUGE-L F1 of an answer's row with its best-matching reference, with stemming."""
    return float(_rouge_scorer().score_multi(references(row), row["prediction"])["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def signatures(predictions: Predictions) -> dict[str, str]:
    """Return sacrebleu's signatures of `bleu` and `chrf`, which record every setting; empty without answers."""
    rows = predictions.answer
    return {name: str(scorer.get_signature()) for name, scorer in _scorers(rows).items()} if rows else {}


def _scorers(rows: Rows) -> dict[str, Any]:
    """Return BLEU and chrF scorers with all references, padded with None for items with fewer references."""
    from sacrebleu.metrics import BLEU, CHRF

    streams = list(zip_longest(*map(references, rows)))
    return {"bleu": BLEU(references=streams), "chrf": CHRF(references=streams)}


def _closest(length: int, texts: Sequence[str]) -> int:
    """Return the word count that is closest to `length` among `texts`; in a tie, the smaller one, as in BLEU."""
    return min((len(text.split()) for text in texts), key=lambda words: (abs(words - length), words))


def corpus_bleu(sums: Array) -> Array:
    """Return sacrebleu's corpus BLEU from summed statistics (..., 10): lengths, matches and totals of 1- to 4-grams.

    This is BLEU.compute_bleu with the smoothing "exp", vectorized over bootstrap draws.
    """
    written, meant = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    brevity = np.where(written < meant, np.exp(np.minimum(0, 1 - meant / np.maximum(written, 1))), 1.0)
    # The first n-gram length without a match counts as half a match, the next one as a quarter, and so on.
    halved = 2.0 ** np.cumsum((matches == 0) & (totals > 0), axis=-1)
    precisions = 100 * np.where(matches > 0, matches, 1 / halved) / np.maximum(totals, 1)
    logs = np.where(totals > 0, np.log(precisions), LOG_ZERO)
    scores = brevity * np.exp(logs.sum(axis=-1) / ORDERS)
    return np.where(matches.any(axis=-1) & (written > 0), scores, 0.0)


def corpus_chrf(sums: Array) -> Array:
    """Return sacrebleu's chrF2 from summed statistics (..., 18), vectorized over bootstrap draws.

    The statistics are the numbers of character n-grams (n from 1 to 6) in the answer, in the reference and in both.
    """
    written, meant, shared = (sums[..., column::3] for column in range(3))
    counts = (written > 0) & (meant > 0)
    orders = np.maximum(counts.sum(axis=-1), 1)
    precision = np.where(counts, shared / np.maximum(written, 1), 0).sum(axis=-1) / orders
    recall = np.where(counts, shared / np.maximum(meant, 1), 0).sum(axis=-1) / orders
    both = 4 * precision + recall
    return np.where(both > 0, 100 * 5 * precision * recall / np.where(both > 0, both, 1), 0.0)


def sari_counts(source: str, answer: str, texts: Sequence[str]) -> dict[str, list[list[float]]]:
    """Return for each of OPERATIONS and each n-gram length: how often it was right, done by the answer, and expected.

    The n-grams are those of lowercase words, split by sacrebleu's tokenizer 13a. As in EASSE, an n-gram that is kept or
    deleted counts once for each time it occurs and each reference; the counts are divided by the number of references,
    so that all items have the same weight. An added n-gram counts once.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer, times = Tokenizer13a(), len(texts)
    words = [tokenizer(text.lower()).split() for text in (source, answer, *texts)]
    found: dict[str, list[list[float]]] = {name: [] for name in OPERATIONS}
    for length in range(1, ORDERS + 1):
        before, after, *wanted = (Counter(zip(*(each[at:] for at in range(length)), strict=False)) for each in words)
        expected = sum(wanted, Counter[tuple[str, ...]]())
        before, after = (Counter({gram: times * count for gram, count in each.items()}) for each in (before, after))
        added, to_add = after.keys() - before.keys(), expected.keys() - before.keys()
        found["add"].append([float(len(each)) for each in (added & to_add, added, to_add)])
        for name, done, right in (
            ("keep", before & after, before & expected),
            ("delete", before - after, before - expected),
        ):
            found[name].append([each.total() / times for each in (done & right, done, right)])
    return found


def corpus_sari(sums: Array) -> Array:
    """Return EASSE's corpus SARI from summed counts (..., 36) of `sari_counts`: the mean F1, 0 to 100.

    Xu et al. 2016 (https://aclanthology.org/Q16-1029) defined SARI. EASSE (Alva-Manchego et al. 2019,
    https://aclanthology.org/D19-3009) pools the counts over all items and uses F1 for deletions, too, not precision.
    """
    counts = sums.reshape(*sums.shape[:-1], len(OPERATIONS), ORDERS, 3)
    right, total = counts[..., 0], counts[..., 1] + counts[..., 2]
    f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    return np.asarray(100 * f1.mean(axis=(-2, -1)))


# Repetition


def repeated(text: str) -> float:
    """Return 1 minus the share of distinct four-word sequences (seq-rep-4, Welleck et al. 2020, arXiv:1908.04319).

    The result is 0 for a text of fewer than four words. Case is ignored.
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(text: str) -> bool:
    """Return True if `text` contains a phrase three or more times in a row, with eight or more words in all."""
    words = text.lower().split()
    numbers = np.unique(words, return_inverse=True)[1] if words else np.array([], dtype=np.int64)
    for period in range(1, len(words) // TIMES + 1):
        same = numbers[period:] == numbers[:-period]
        breaks = np.flatnonzero(~np.concatenate(([False], same, [False])))
        longest_run = int(np.diff(breaks).max()) - 1
        if longest_run + period >= max(TIMES * period, SHORTEST):
            return True
    return False


# Faithfulness: all its metrics leave out empty answers


def by_sources(rows: Rows) -> dict[str, Statistics]:
    """Return the statistics of each faithfulness metric; empty if all answers are empty."""
    if not any(row["sentences"] for row in rows):
        return {}
    ids = ids_of(rows)
    answered = [float(bool(row["sentences"])) for row in rows]
    counts = [float(len(row["sentences"])) for row in rows]
    unsupported = [100.0 * sum(not each["supported"] for each in row["sentences"]) for row in rows]
    against = [100.0 * sum(_is_contradicted(each, row["spans"]) for each in row["sentences"]) for row in rows]
    found = {
        "faithfulness": ratio(ids, [row["score"] or 0.0 for row in rows], answered),
        "unsupported_sentences": ratio(ids, unsupported, counts),
        "contradictions": ratio(ids, against, counts),
    }
    for kind in ("number", "name"):
        with_one = [100.0 * any(span["kind"] == kind for span in row["spans"]) for row in rows]
        found[f"unsupported_{kind}s"] = ratio(ids, with_one, answered)
    return found


def _is_contradicted(sentence: dict[str, Any], spans: Rows) -> bool:
    if "contradicting" in sentence:
        return bool(sentence["contradicting"])
    return any(
        span["kind"] in CONTRADICTIONS and sentence["start"] <= span["start"] < sentence["end"] for span in spans
    )


def _by_samples(predictions: Predictions) -> dict[str, Statistics]:
    answers = {row["id"]: row["prediction"] for row in predictions.answer}
    rows = [row for row in predictions.samples if row["id"] in answers]
    found = [agreement(answers[row["id"]], row["predictions"]) for row in rows]
    known = [float(each is not None) for each in found]
    return {"self_consistency": ratio(ids_of(rows), [each or 0.0 for each in found], known)} if any(known) else {}


def agreement(answer: str, samples: list[str]) -> float | None:
    """Return how well samples agree with an answer, 0 to 1; None if the answer or all samples are empty.

    For each sentence of the answer and each sample, agreement is the weighted share of the sentence's words that occur
    in the most similar sentence of the sample. The result is the mean over all sentences and samples, as in
    SelfCheckGPT (Manakul et al. 2023, arXiv:2303.08896), but with shared words instead of BERTScore.
    """
    answer_sentences = [sentence for _, text in placed(answer) if (sentence := Sentence(text)).total]
    sample_weights = [[Sentence(text).weights for _, text in placed(sample)] for sample in samples]
    if not answer_sentences or not any(sample_weights):
        return None
    return fmean(
        max((each.share_in(one) for one in sample), default=0.0)
        for each in answer_sentences
        for sample in sample_weights
    )


# Readability: its metrics leave out empty answers, and `spread` counts them


def _readability(ids: tuple[str, ...], texts: Sequence[str]) -> dict[str, Statistics]:
    """Return the statistics of each readability metric; empty if at least half of the answers are empty."""
    rows = [measured(text) for text in texts]
    if 2 * sum(row["answers"] for row in rows) <= len(rows):
        return {}
    items = np.array([[row[name] for name in _COLUMNS] for row in rows], dtype=np.float64)

    def ratio_of(sums: Array) -> Array:
        # A divisor is 0 if a bootstrap draw contains only empty answers; otherwise, it is at least 1.
        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1.0))

    def part(over: str, under: str, times: float = 1.0) -> Statistics:
        columns = items[:, [_COLUMNS.index(over), _COLUMNS.index(under)]]
        return Statistics(ids, columns, lambda sums: times * ratio_of(sums))

    hard = part("polysyllables", "sentences")
    return {
        "grade_gap": part("outside", "answers"),
        "smog": Statistics(ids, hard.items, lambda sums: readability.smog(ratio_of(sums), np.ones(()))),
        "sentence_length": part("words", "sentences"),
        "rare_words": part("rare", "words", 100.0),
        "unexplained_terms": part("unexplained", "words", 100.0),
    }


@lru_cache(maxsize=8192)
def measured(text: str) -> Mapping[str, float]:
    """Return what a text adds to the metrics' sums, and its `grade`; zeros and no grade if it has no words."""
    counts = readability.counted(text)
    if not counts.words:
        return dict.fromkeys(_COLUMNS, 0.0)
    return {
        "answers": 1.0,
        "grade": counts.grade,
        "outside": readability.outside(counts.grade),
        "sentences": counts.sentences,
        "words": counts.words,
        "polysyllables": counts.polysyllables,
        "rare": sum(map(readability.is_rare, readability.words(text))),
        "unexplained": sum(not explained for explained in readability.terms(text).values()),
    }


def spread(texts: list[str]) -> dict[str, Any]:
    """Return quantiles of the texts' Flesch-Kincaid grades, and percentages below, inside and above the target.

    `texts` and `empty` are counts. `unexplained` contains the most common unexplained terms, each with the number of
    texts that leave it unexplained. If every text is empty, only the counts are present.
    """
    found = np.array([row["grade"] for row in map(measured, texts) if row["answers"]])
    counts = {"texts": len(texts), "empty": len(texts) - len(found)}
    if not len(found):
        return counts
    low, high = readability.TARGET
    left = Counter(term for text in texts for term, explained in readability.terms(text).items() if not explained)
    quantiles = zip(("p10", "p25", "median", "p75", "p90"), np.percentile(found, [10, 25, 50, 75, 90]), strict=True)
    return counts | {
        **{name: float(value) for name, value in quantiles},
        "below": float(100 * (found < low).mean()),
        "inside": float(100 * ((found >= low) & (found <= high)).mean()),
        "above": float(100 * (found > high).mean()),
        "unexplained": [[term, left[term]] for term in sorted(left, key=lambda term: (-left[term], term))[:COMMONEST]],
    }
