"""Signs of danger in a message, by the patterns of signs.yaml: misspelled, but not denied, asked about or long past."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from meditune.errors import DataError
from meditune.readability.familiar import per_million
from meditune.serve.safety.reading import clauses, telling, windows

HERE = Path(__file__).parent
NEAR = 60
"""Signs belong together within so many words"""
KNOWN = 1.0
"""A word that stands so often in a million is no slip"""
_GAP = r"(?:\\S+ ){0,4}?"


@lru_cache(maxsize=256)
def seen(message: str) -> tuple[frozenset[str], ...]:
    """The signs that a message tells of, for each stretch of it in which they belong together."""
    found = clauses(message, spelled)
    signs = {id(clause): frozenset(_in(clause.text)) if clause.happening else frozenset() for clause in found}
    return tuple(frozenset().union(*(signs[id(clause)] for clause in stretch)) for stretch in windows(found, NEAR))


def mentioned(message: str) -> frozenset[str]:
    """The signs whose words stand anywhere in it, whoever has them and whenever."""
    return frozenset().union(*(_in(clause.text) for clause in clauses(message, spelled)), frozenset())


def names() -> frozenset[str]:
    """Of all signs."""
    return frozenset(_patterns())


def _in(text: str) -> Iterable[str]:
    for name, patterns in _patterns().items():
        if any(not _denied(text, match) for pattern in patterns for match in pattern.finditer(text)):
            yield name


def _denied(text: str, match: re.Match[str]) -> bool:
    before = _denial().search(text[max(0, match.start() - 80) : match.start()].rstrip())
    return bool(before and not telling("denial_ends").search(before["between"]))


@cache
def _denial() -> re.Pattern[str]:
    return re.compile(rf"{telling('denial').pattern}(?P<between>(?: \S+){{0,9}})$")


def spelled(word: str) -> str:
    """The word of the patterns that a rare word is a slip of, else the word."""
    return _slip(word) if len(word) >= 5 and word.isalpha() else word


@lru_cache(maxsize=8192)
def _slip(word: str) -> str:
    from rapidfuzz.distance import OSA

    known = _vocabulary()
    if word in known or per_million(word) >= KNOWN:
        return word
    most = 1 if len(word) < 8 else 2
    near = [(OSA.distance(word, other, score_cutoff=most), other) for other in known if other[0] == word[0]]
    best = min(near, default=(most + 1, word))
    return best[1] if best[0] <= most else word


@cache
def _patterns() -> dict[str, tuple[re.Pattern[str], ...]]:
    texts = _texts()
    words = texts["words"]
    return {name: tuple(compiled(each, words) for each in patterns) for name, patterns in texts["signs"].items()}


def compiled(pattern: str, words: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern with its short cuts written out. Raises DataError where it names words that aren't there."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise DataError(f"signs.yaml: {pattern!r} uses @{match[1]}, which `words` doesn't have.")
        return words[match[1]]

    written = re.sub(r"@(\w+)", put, pattern)
    written = re.sub(r"(?<=\w)\*", r"\\w*", written)
    written = re.sub(r"(?<!\w)_ ", _GAP, written)
    return re.compile(rf"\b(?:{written})(?!\w)")


@cache
def _vocabulary() -> frozenset[str]:
    text = " ".join([*_texts()["words"].values(), *(each for group in _texts()["signs"].values() for each in group)])
    found = set()
    for word, star in re.findall(r"([a-z]{4,})(\*?)", re.sub(r"\\\w|@\w+", " ", text)):
        found |= {word + ending for ending in ("", "s", "ing", "ed", "ness")} if star else {word}
    return frozenset(word for word in found if len(word) >= 5)


@cache
def _texts() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HERE / "signs.yaml").read_text(encoding="utf-8"))
    return loaded
