"""Which words are names, and which only look like some: the detector's lists, all in small letters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from meditune.faithfulness.words import rarity

_FOLDER = Path(__file__).parent


def _words(file: str) -> frozenset[str]:
    lines = (_FOLDER / file).read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


WORD_NAMES = _words("word_names.txt")
"""English words that are also names: names only where something says so, or beside a name."""
EPONYMS = _words("eponyms.txt")
"""Those after whom something is named."""
EPONYMOUS = _words("eponymous.txt")
"""What follows an eponym: disease, sign, catheter, test."""
PLACES = _words("places.txt")
"""States, countries, peoples and languages."""
GENERIC = _words("generic.txt")
"""What any hospital may be called."""
_OTHERS = _words("others.txt") | PLACES
GIVEN = _words("given.txt") - WORD_NAMES - PLACES
"""Given names that are nothing else."""
SURNAMES = _words("surnames.txt") - WORD_NAMES
"""Surnames that are no English words."""
CITIES = frozenset(
    line.lower() for line in (_FOLDER / "cities.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"
)


def is_name(low: str) -> bool:
    """Whether a word is on one of the lists of names, and no English word."""
    return low in GIVEN or low in SURNAMES


@lru_cache(maxsize=65536)
def is_ordinary(low: str) -> bool:
    """Whether a word isn't a name without more reason."""
    if low in _OTHERS or low in EPONYMOUS:
        return True
    return not is_name(low) and rarity(low) < 1


def is_other(low: str) -> bool:
    """Whether a word is never a name: a heading, a specialty, a day, a pronoun, a country."""
    return low in _OTHERS
