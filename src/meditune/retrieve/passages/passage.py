"""The record that is indexed and found: a short piece of a document, which knows where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from meditune.retrieve.passages.split import pieces


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
    """Whether its licence forbids passing it on (`data/restrictions.py`)"""

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
            for text in pieces(section.text):
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
