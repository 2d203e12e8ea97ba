"""How well a passage's words meet a question's, for a few passages and without an index: BM25 with English counts.

BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) weighs a word by how few passages hold it. Here
its rarity in English takes that place, so that a handful of candidates can be compared and scores don't change when the
index does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve.synonyms import says, words

SATURATION, LENGTH = 1.2, 0.6
"""BM25's k1 and b"""
USUAL_LENGTH = 150.0
"""Words of a passage whose score is neither raised nor lowered for its length"""
LETTERS = 1500
"""Of a passage's text that are looked at"""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def split(text: str) -> list[str]:
    """The text's words as they are written, in small letters."""
    return _WORD.findall(text[:LETTERS].casefold())


def overlap(question: str, texts: Sequence[Sequence[str]], usual: float = USUAL_LENGTH) -> NDArray[np.float64]:
    """(n,) BM25 of each text's words for the question's, as a share of the highest; zeros where no word is met.

    Plural and possessive endings don't count.
    """
    asked = {word: says(word) for word in set(words(question))}
    # Only words that are asked for are reduced to their singular: of 100 passages all of them would take 10 ms.
    meant = {f"{word}{ending}": word for word in asked for ending in ("'s", "’s", "s", "")}
    found = np.array([_score(asked, meant, text, usual) for text in texts])
    highest = found.max(initial=0.0)
    return found / highest if highest else found


def _score(asked: Mapping[str, float], meant: Mapping[str, str], text: Sequence[str], usual: float) -> float:
    there = Counter([meant[word] for word in text if word in meant])
    longer = SATURATION * (1 - LENGTH + LENGTH * len(text) / usual)
    return sum(asked[word] * count * (SATURATION + 1) / (count + longer) for word, count in there.items())
