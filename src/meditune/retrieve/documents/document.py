"""The record that is indexed and found: a short piece of a document, which knows where it comes from.

Prose in pieces of a size that can be searched and cited: cut between paragraphs, then sentences, then words.

The error for a file that gives no text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from meditune.text import sentences

MOST_WORDS = 160
"""Some 215 tokens of medical English: with its title all of a piece is among the 256 that all-MiniLM-L6-v2 reads."""
FEWEST_WORDS = 25
"""A shorter last piece goes to the one before it, rather than stand alone."""
MOST_CHARACTERS = 1600
"""... of a piece, where words are no measure: codes, tables, scripts without blanks."""


def split_text(text: str) -> Iterator[str]:
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


@dataclass(frozen=True)
class IndexedPassage:
    """A piece of a document that can be found and cited by itself."""

    id: str
    """`DOCUMENT#NUMBER`: by place, so it stays when another part of the document changes"""
    document: str
    """The id of what it is a piece of: `medquad:COLLECTION/FILE-PAIR`, `pubmed:PMID`, `documents:FOLDER/FILE`"""
    source: str
    """The collection, by which searches may be narrowed"""
    text: str
    title: str = ""
    section: str = ""
    url: str = ""
    licence: str = ""
    date: str = ""
    """ISO 8601 as far as it is known (2018, 2018-05, 2018-05-17), or empty"""
    group: str = ""
    """What must not straddle a split (`Example.group`)"""
    restricted: bool = False
    """Whether its licence forbids passing it on (`data/read_sources.py`)"""

    @property
    def searched(self) -> str:
        """What is searched: the text under its headings."""
        return "\n".join(part for part in (self.title, self.section, self.text) if part)

    @property
    def digest(self) -> str:
        """A hash of everything it says: another one means that it has changed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Section:
    """Prose under one heading."""

    text: str
    heading: str = ""


@dataclass(frozen=True)
class Document:
    """What a reader gives: a whole text in sections, not yet cut."""

    id: str
    source: str
    sections: Sequence[Section]
    title: str = ""
    url: str = ""
    licence: str = ""
    date: str = ""
    group: str = ""
    restricted: bool = False

    def passages(self) -> Iterator[IndexedPassage]:
        """Its text in pieces of a size that the embedding model reads to the end; none across a heading."""
        number = 0
        for section in self.sections:
            for text in split_text(section.text):
                yield IndexedPassage(
                    id=f"{self.id}#{number}",
                    document=self.id,
                    source=self.source,
                    text=text,
                    title=self.title,
                    section=section.heading,
                    url=self.url,
                    licence=self.licence,
                    date=self.date,
                    group=self.group or self.id,
                    restricted=self.restricted,
                )
                number += 1


class UnreadableError(Exception):
    """A file that can't be indexed; the message is the reason, for the list of what was left out."""
