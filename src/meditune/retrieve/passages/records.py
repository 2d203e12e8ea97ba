"""Files of PubMed's XML cut into their records, so that a malformed one harms no other.

A parser stops for good at the first thing that isn't well-formed; here each record is found by its tags and parsed by
itself. So an entity that a file declares means nothing, either, and can't grow.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from meditune.progress import Progress

ARTICLE, BOOK, DELETED = "PubmedArticle", "PubmedBookArticle", "DeleteCitation"
CHUNK = 2**18
LONGEST = 2**24
"""Bytes after which a record that doesn't end is given up; articles of a thousand authors take a tenth of it."""
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged gzip file raises."""

_OPENING = re.compile(rb"<(PubmedArticle|PubmedBookArticle|DeleteCitation)(?=[\s>])")
_PMID = re.compile(rb"<PMID[^>]*>\s*(\d{1,12})\s*</PMID>")
_TAIL = 32
"""Bytes in which a tag that was cut by a chunk's end may begin."""


@dataclass(frozen=True)
class Record:
    """One record as it stands in a file."""

    kind: str
    line: int
    """Where it begins, from 1"""
    xml: bytes
    problem: str = ""
    """Why there is nothing to parse"""

    @property
    def pmid(self) -> str:
        """The first PubMed id in it, well-formed or not; empty without one."""
        found = _PMID.search(self.xml)
        return found[1].decode() if found else ""


def of_file(file: Path, progress: Progress | None = None) -> Iterator[Record]:
    """The records of a file, gzip or not. Damage at its end gives a last record with a problem and no kind.

    `progress` is told of the megabytes of the file that were read.
    """
    told = 0
    with file.open("rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as stream:
        for record in of_stream(cast(BinaryIO, stream)):
            yield record
            if progress:
                told, before = raw.tell(), told
                progress.advance((told - before) / 1e6)


def of_stream(stream: BinaryIO) -> Iterator[Record]:
    """The records of a stream, in order; memory holds one."""
    held, line, ended, problem, rooted, whole = b"", 1, False, "", False, True
    while not ended:
        try:
            more = stream.read(CHUNK)
        except DAMAGED as error:
            more, problem = b"", f"the file breaks off: {error}"
        ended = not more
        held += more
        rooted = _is_open(held, rooted)
        counted = done = 0
        for kind, start, done, wrong in _cut(held, ended):
            line += held.count(b"\n", counted, start)
            counted = start
            if kind:
                whole = not wrong
                yield Record(kind, line, held[start:done], wrong)
        line += held.count(b"\n", counted, done)
        held = held[done:]
    if rooted and whole and not problem:
        problem = "the file breaks off: its last tag is missing"
    if problem:
        yield Record("", line, b"", problem)


def _is_open(held: bytes, before: bool) -> bool:
    """Whether the set of records has begun and not ended."""
    begins, ends = held.rfind(b"<PubmedArticleSet"), held.rfind(b"</PubmedArticleSet")
    return ends < begins if max(begins, ends) >= 0 else before


def _cut(held: bytes, ended: bool) -> Iterator[tuple[str, int, int, str]]:
    """Kind, beginning, end and problem of each record that is whole in `held`; at last, without a kind, how far it was
    read.
    """
    at = 0
    while True:
        opening = _OPENING.search(held, at)
        if opening is None:
            break
        kind, start = opening[1].decode(), opening.start()
        closing = b"</%b>" % opening[1]
        end, following = held.find(closing, start), _OPENING.search(held, opening.end())
        problem = ""
        if following is not None and not 0 <= end < following.start():
            end, problem = following.start(), f"no {closing.decode()} before the next record"
        elif end >= 0:
            end += len(closing)
        elif len(held) - start > LONGEST:
            end, problem = len(held), f"no {closing.decode()} within {LONGEST // 2**20} MB"
        elif ended:
            end, problem = len(held), "the file breaks off inside it"
        else:
            yield "", start, start, ""
            return
        yield kind, start, end, problem
        at = end
    rest = len(held) if ended else max(at, len(held) - _TAIL)
    yield "", rest, rest, ""
