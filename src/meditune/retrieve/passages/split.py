"""Prose in pieces of a size that can be searched and cited: cut between paragraphs, then sentences, then words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.text import sentences

MOST_WORDS = 160
"""Some 215 tokens of medical English: with its title all of a piece is among the 256 that all-MiniLM-L6-v2 reads."""
FEWEST_WORDS = 25
"""A shorter last piece goes to the one before it, rather than stand alone."""
MOST_CHARACTERS = 1600
"""... of a piece, where words are no measure: codes, tables, scripts without blanks."""


def pieces(text: str) -> Iterator[str]:
    """The text in order, in pieces of about `MOST_WORDS` words; their words are those of the text, each once."""
    waiting: list[str] = []
    words = 0
    last = ""
    for unit, starts_paragraph in _units(text):
        size = len(unit.split())
        if waiting and (words + size > MOST_WORDS or _length(waiting) + len(unit) > MOST_CHARACTERS):
            if last:
                yield last
            last, waiting, words = "".join(waiting).strip(), [], 0
        waiting.append(("\n" if starts_paragraph else " ") + unit)
        words += size
    rest = "".join(waiting).strip()
    if last and words < FEWEST_WORDS and len(last) + len(rest) < MOST_CHARACTERS:
        yield f"{last}\n{rest}".strip()
    else:
        yield from (piece for piece in (last, rest) if piece)


def _units(text: str) -> Iterator[tuple[str, bool]]:
    """Sentences, or parts of those that are longer than a piece; and whether a line begins with them."""
    for line in text.splitlines():
        starts = True
        for sentence in sentences(" ".join(line.split())):
            for part in _parts(sentence):
                yield part, starts
                starts = False


def _parts(sentence: str) -> Iterator[str]:
    words = sentence.split(" ")
    if len(words) <= MOST_WORDS and len(sentence) <= MOST_CHARACTERS:
        yield sentence
        return
    for start in range(0, len(words), MOST_WORDS):
        run = " ".join(words[start : start + MOST_WORDS])
        yield from re.findall(f"(?s).{{1,{MOST_CHARACTERS}}}", run)


def _length(parts: list[str]) -> int:
    return sum(map(len, parts))
