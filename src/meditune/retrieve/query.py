"""A question as it is searched for: cut where it is too long, refused where it says nothing, and what narrows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.errors import DataError
from meditune.retrieve import tables

MOST_CHARACTERS = 2_000
"""Longer than any question of LiveQA; what follows would mostly be noise for BM25, and isn't read by MiniLM"""
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    words: str
    """By BM25"""
    meaning: str
    """By vectors"""
    message: str
    """As the reranker reads it: by lines, since the first one may be a subject"""
    reworded: bool = False
    """Whether words are to be searched for that aren't the message's own"""
    remarks: tuple[str, ...] = ()
    """What the user should know of how it was read"""


def query(question: str, words: str | None = None, meaning: str | None = None) -> Query:
    """The question, whose wording for either part may be given apart. Raises DataError where there is nothing in it."""
    remarks: list[str] = []
    said = [" ".join(text.split()) for text in (question, words or question, meaning or question)]
    if not re.search(r"\w", said[0]):
        raise DataError("The question is empty: it has no letters and no digits. Ask in words.")
    if len(said[0]) > MOST_CHARACTERS:
        remarks.append(
            f"The question has {len(said[0]):,} characters; only its first {MOST_CHARACTERS:,} were searched for."
        )
    return Query(
        said[1][:MOST_CHARACTERS],
        said[2][:MOST_CHARACTERS],
        _by_lines(meaning or question)[:MOST_CHARACTERS],
        words is not None,
        tuple(remarks),
    )


def _by_lines(text: str) -> str:
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def condition(there: Sequence[str], sources: Sequence[str] | None, since: str | None, until: str | None) -> str | None:
    """A condition on the table's rows; None where nothing is narrowed.

    Passages without a date pass no condition on dates. Raises DataError where a source isn't `there`, or a date isn't
    like 2018, 2018-05 or 2018-05-17.
    """
    parts: list[str] = []
    if sources:
        unknown = [name for name in sources if name not in there]
        if unknown:
            raise DataError(f"The index has no source {unknown[0]!r}. It holds {', '.join(there)}.")
        parts.append(f"source IN ({', '.join(map(tables.quoted, sources))})")
    for name, date in (("since", since), ("until", until)):
        if date is not None and not _DATE.fullmatch(date):
            raise DataError(f"{name} {date!r} isn't a date like 2018, 2018-05 or 2018-05-17.")
    if since is not None:
        # A passage of "2018" may be of any day of that year: it is in, unless the whole year is before.
        parts.append(f"date != '' AND rpad(date, 10, '-99-99') >= '{since}'")
    if until is not None:
        parts.append(f"date != '' AND date <= '{until}~'")
    return " AND ".join(parts) or None
