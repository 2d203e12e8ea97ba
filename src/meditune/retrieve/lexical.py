"""How well a passage's words meet a question's, for a few passages and without an index: BM25 with English counts.

BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) weighs a word by how few passages hold it. Here
its rarity in English takes that place, so that a handful of candidates can be compared and scores don't change when the
index does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve.synonyms import says, words

SATURATION, LENGTH = 1.2, 0.6
"""BM25's k1 and b"""
USUAL_LENGTH = 150.0
"""Words of a passage whose score is neither raised nor lowered for its length"""
LETTERS = 1500
"""Of a passage's text that are looked at"""
_BETWEEN = str.maketrans({sign: " " for sign in (*map(chr, range(128)), *"’‘“”–—•…") if not sign.isalnum()})


def split(text: str) -> list[str]:
    """The text's words as they are written, in small letters; what stands behind an apostrophe is a word by itself."""
    return text[:LETTERS].casefold().translate(_BETWEEN).split()


@dataclass(frozen=True)
class Counted:
    """How often each of some words stands in a text, and how many words it has."""

    there: Counter[str]
    words: int


def counted(asked: Iterable[str], texts: Iterable[str]) -> list[Counted]:
    """The texts with the asked words (without plural endings) counted; plural endings in a text don't count."""
    # Only words that are asked for are looked at: putting all words of 100 passages into the singular takes 10 ms.
    meant = {f"{word}{ending}": word for word in asked for ending in ("s", "")}
    divided = map(split, texts)
    return [Counted(Counter([meant[word] for word in text if word in meant]), len(text)) for text in divided]


def overlap(question: str, texts: Sequence[Counted], usual: float = USUAL_LENGTH) -> NDArray[np.float64]:
    """(n,) BM25 of each text for the question's words, as a share of the highest; zeros where no word is met."""
    asked = {word: says(word) for word in set(words(question))}
    found = np.array([_score(asked, text, usual) for text in texts])
    highest = found.max(initial=0.0)
    return found / highest if highest else found


def _score(asked: Mapping[str, float], text: Counted, usual: float) -> float:
    longer = SATURATION * (1 - LENGTH + LENGTH * text.words / usual)
    return sum(
        asked[word] * count * (SATURATION + 1) / (count + longer) for word, count in text.there.items() if word in asked
    )
