"""Documents and passages: the records in an index, and the splitting of text into passages.

Text is split into passages that can be searched and cited. It is split between sentences; a sentence that
is longer than a passage is split between words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from meditune.text import sentences

MOST_WORDS = 160  # With a title, about 256 tokens of medical English, the most that all-MiniLM-L6-v2 reads
FEWEST_WORDS = 25  # A last passage with fewer words is joined to the previous one
MOST_CHARACTERS = 1600  # Limit for text that isn't measurable in words: codes, tables, scripts without spaces


def split_text(text: str) -> Iterator[str]:
    """Yield passages of about `MOST_WORDS` words, in order; each word of the text is in exactly one passage."""
    waiting: list[str] = []
    words = 0
    last = ""
    for unit, starts_paragraph in _units(text):
        size = len(unit.split())
        if waiting and (words + size > MOST_WORDS or sum(map(len, waiting)) + len(unit) > MOST_CHARACTERS):
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
    """Yield each sentence, or the parts of a sentence longer than a passage, and whether it starts a line."""
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


@dataclass(frozen=True)
class IndexedPassage:
    """A part of a document that can be found and cited on its own."""

    id: str  # `DOCUMENT#NUMBER`; the number is the position (0-based) of the passage in the document
    document: str  # The id of the document: `medquad:COLLECTION/FILE-PAIR`, `pubmed:PMID`, `documents:FOLDER/FILE`
    source: str  # The collection, used to narrow searches
    text: str
    title: str = ""
    section: str = ""
    url: str = ""
    licence: str = ""
    date: str = ""  # ISO 8601, as precise as known (2018, 2018-05, 2018-05-17), or empty
    group: str = ""  # Passages of one group must be in the same split (`Example.group`)
    restricted: bool = False  # True if the licence forbids sharing the passage (`data/read_sources.py`)

    @property
    def searched(self) -> str:
        """The text that is searched: the title, the section's heading and the text."""
        return "\n".join(part for part in (self.title, self.section, self.text) if part)

    @property
    def digest(self) -> str:
        """A hash of all fields, which changes whenever the passage changes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Section:
    """The text under one heading."""

    text: str
    heading: str = ""


@dataclass(frozen=True)
class Document:
    """The output of a reader: a complete text in sections, not yet split into passages."""

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
        """Yield the text in passages that fit the embedding model. Each passage belongs to a single section."""
        parts = [(section.heading, text) for section in self.sections for text in split_text(section.text)]
        for number, (heading, text) in enumerate(parts):
            yield IndexedPassage(
                id=f"{self.id}#{number}",
                document=self.id,
                source=self.source,
                text=text,
                title=self.title,
                section=heading,
                url=self.url,
                licence=self.licence,
                date=self.date,
                group=self.group or self.id,
                restricted=self.restricted,
            )


class UnreadableError(Exception):
    """A file that cannot be indexed. The message is the reason, for the list of files that were left out."""
