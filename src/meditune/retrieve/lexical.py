"""How well a passage's words meet a question's, for a few passages and without an index: BM25 with English counts.

BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) weighs a word by how few passages hold it. Here
its rarity in English takes that place, so that a handful of candidates can be compared and scores don't change when the
index does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve.synonyms import says, words

SATURATION, LENGTH = 1.2, 0.6
"""BM25's k1 and b"""
USUAL_LENGTH = 150.0
"""Words of a passage whose score is neither raised nor lowered for its length"""
LETTERS = 1500
"""Of a passage's text that are looked at"""


def overlap(question: str, texts: Sequence[str], usual: float = USUAL_LENGTH) -> NDArray[np.float64]:
    """(n,) BM25 of each text for the question's words, as a share of the highest; zeros where no word is met."""
    asked = {word: says(word) for word in set(words(question))}
    found = np.array([_score(asked, counts(text[:LETTERS]), usual) for text in texts])
    highest = found.max(initial=0.0)
    return found / highest if highest else found


@lru_cache(maxsize=20_000)
def counts(text: str) -> Counter[str]:
    """How often each word stands in a text, without plural endings."""
    return Counter(words(text))


def _score(asked: Mapping[str, float], there: Counter[str], usual: float) -> float:
    longer = SATURATION * (1 - LENGTH + LENGTH * there.total() / usual)
    return sum(
        weight * there[word] * (SATURATION + 1) / (there[word] + longer)
        for word, weight in asked.items()
        if word in there
    )
