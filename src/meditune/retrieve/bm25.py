"""In-memory BM25 over all passages of an index: for each word, the passages that contain it and their scores.

BM25 is described by Robertson and Zaragoza 2009 (https://doi.org/10.1561/1500000019). The scores are computed when the
index is built, so a search only adds them up (Lù 2024, "BM25S", arXiv:2407.03618). LanceDB's full-text index, which
large indexes use instead, takes ten times as long. As in LanceDB, words are lowercased and reduced to their English
stems, and accents and stop words are removed. The postings are stored in one numpy archive beside the table:

words     the stems
starts    for each stem, the position of its first posting (and, as the last entry, the number of postings)
places    for each posting, the position of the row (0-based, in order of the rows' ids)
scores    for each posting, the score
count     the number of passages
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError, ModelError, install_command
from meditune.retrieve.storage import REBUILD, archive, read_archive

SATURATION, LENGTH = 1.2, 0.75  # BM25's k1 and b, as in LanceDB
_WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split()
)  # NLTK's stop words, as in LanceDB; the part after an apostrophe is a separate word


Numbers = TypeVar("Numbers", float, NDArray[Any])


def term_score(rarity: Numbers, count: Numbers, length: Numbers, average_length: float, b: float = LENGTH) -> Numbers:
    """Return the BM25 score of a word that occurs `count` times in a text of `length` words.

    `rarity` is the word's weight, `average_length` the average length of a text, and `b` how strongly long texts are
    penalized. The first three arguments may also be arrays.
    """
    score: Numbers = rarity * count * (SATURATION + 1) / (count + SATURATION * (1 - b + b * length / average_length))
    return score


class BM25Index:
    """The postings of all words, with precomputed scores."""

    def __init__(
        self,
        words: Iterable[str],
        starts: NDArray[np.int64],
        places: NDArray[np.int32],
        scores: NDArray[np.float32],
        count: int,
    ) -> None:
        self.words = tuple(words)
        self.starts, self.places, self.scores, self.count = starts, places, scores, count
        self._number = {word: number for number, word in enumerate(self.words)}

    def best(self, text: str, k: int, allowed: NDArray[np.bool_] | None = None) -> dict[int, float]:
        """Return the positions and BM25 scores of the at most `k` passages that match a text best, the best first.

        If a word occurs several times in the text, it counts several times, because messages repeat their topic.
        `allowed` (count,) marks the passages that may be returned.
        """
        totals = np.zeros(self.count, dtype=np.float32)
        for word, often in Counter(_stems(text)).items():
            number = self._number.get(word)
            if number is not None:
                some = slice(self.starts[number], self.starts[number + 1])
                totals[self.places[some]] += often * self.scores[some]
        if allowed is not None:
            totals[~allowed] = 0.0
        few = min(k, self.count)
        best = np.argpartition(-totals, few - 1)[:few]
        # Ties are ordered by id, so that the same question always gives the same hits.
        ordered = best[np.lexsort((best, -totals[best]))]
        return {place: score for place, score in zip(ordered.tolist(), totals[ordered].tolist(), strict=True) if score}


def build_postings(texts: Iterable[str]) -> BM25Index:
    """Return the postings for the passages' texts, which must be in the order of the table's rows."""
    number: dict[str, int] = {}
    numbers, lengths = array("q"), array("q")
    for text in texts:
        stems = _stems(text)
        numbers.extend([number.setdefault(stem, len(number)) for stem in stems])
        lengths.append(len(stems))
    count = len(lengths)
    owners = np.repeat(np.arange(count), lengths)
    pairs, often = np.unique(np.frombuffer(numbers, dtype=np.int64) * count + owners, return_counts=True)
    terms, places = np.divmod(pairs, max(count, 1))
    starts = np.searchsorted(terms, np.arange(len(number) + 1))
    containing = np.diff(starts)
    rarity = np.log1p((count - containing + 0.5) / (containing + 0.5))
    usual = max(len(numbers) / max(count, 1), 1.0)
    scores = term_score(rarity[terms], often, np.array(lengths)[places], usual)
    return BM25Index(number, starts, places.astype(np.int32), scores.astype(np.float32), count)


def as_bytes(postings: BM25Index) -> bytes:
    """Return the postings as a numpy archive."""
    arrays = {name: getattr(postings, name) for name in ("starts", "places", "scores")}
    return archive(words=postings.words, count=np.array(postings.count), **arrays)


def read(data: bytes | None, name: str, count: int) -> BM25Index:
    """Return the postings in an archive. Raises DataError if it is damaged or not for `count` passages."""
    found = read_archive(data, name, "the BM25 postings are")
    if found["count"] != count:
        raise DataError(f"{name}: postings for {found['count']:,} passages, but the index has {count:,}. {REBUILD}")
    return BM25Index(**found | {"count": count})


def _stems(text: str) -> list[str]:
    if not text.isascii():
        text = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return list(filter(None, map(_stemmer(), _WORD.findall(text.lower()))))


@cache
def _stemmer() -> Any:
    """Return a function that maps a word to its stem, or to "" if it is a stop word."""
    try:
        from Stemmer import Stemmer
    except ImportError as error:
        raise ModelError(f"An index needs PyStemmer. Install it with: {install_command('retrieve')}") from error
    stem = Stemmer("english").stemWord
    return lru_cache(maxsize=65536)(lambda word: "" if word in STOP_WORDS else stem(word))
