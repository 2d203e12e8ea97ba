"""Which words most readers know, by how often English is written and spoken with them.

The frequencies are wordfreq's (Speer 2022, https://doi.org/10.5281/zenodo.7199437), of Wikipedia, subtitles, news,
books, web pages and social media together. Its data end in 2021 and no longer change.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

COMMON_WORDS = 5000
"""Forms, inflected ones among them, that everyone is taken to know"""
_ENDINGS = (
    *(("ies", "y"), ("ied", "y"), ("ier", "y"), ("iest", "y"), ("es", ""), ("s", ""), ("ed", ""), ("ed", "e")),
    *(("ing", ""), ("ing", "e"), ("er", ""), ("er", "e"), ("est", ""), ("est", "e"), ("ly", "")),
)


@lru_cache(maxsize=65536)
def is_rare(word: str) -> bool:
    """Whether `word` is neither among the COMMON_WORDS most frequent forms of English nor a regular form of one.

    Numbers aren't rare; a word with hyphens is if a part of it is. This is Dale and Chall's idea of a difficult word
    (Dale and Chall 1948; Chall and Dale 1995) with frequency in the place of their list of 3,000 words.
    """
    return any(not _is_common(part) for part in _parts(word))


@lru_cache(maxsize=65536)
def per_million(word: str) -> float:
    """How often `word` stands in a million words of English, at least 0; of its rarest part where it has hyphens."""
    return min((1e6 * _frequencies().get(part, 0.0) for part in _parts(word)), default=math.inf)


def _parts(word: str) -> list[str]:
    lowered = word.lower().replace("’", "'").removesuffix("'s")
    return [part for part in lowered.replace("‐", "-").replace("‑", "-").split("-") if part and not part[0].isdigit()]


def _is_common(word: str) -> bool:
    known = _common()
    if word in known:
        return True
    for ending, put in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and (stem + put in known or (not put and stem[-1:] == stem[-2:-1] and stem[:-1] in known)):
            return True
    return False


@cache
def _common() -> frozenset[str]:
    from wordfreq import top_n_list

    return frozenset(top_n_list("en", COMMON_WORDS))


@cache
def _frequencies() -> dict[str, float]:
    from wordfreq import get_frequency_dict

    found: dict[str, float] = get_frequency_dict("en", wordlist="small")
    return found
