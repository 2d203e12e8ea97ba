"""Query understanding: rules that turn a message into a search query, and filters into an SQL condition.

Patients describe their history, begin with a greeting, and misspell names. The rules extract the topic, the kind of
question, and the words to search for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.errors import DataError
from meditune.retrieve import storage
from meditune.retrieve.topics import QUESTION_KINDS, Mention, Synonyms
from meditune.text import check_utf8, sentences

MAX_CHARACTERS = 2_000  # Longer than any LiveQA question. Further text is noise for BM25, and MiniLM doesn't read it
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Query:
    """A search query."""

    text: str  # The question in one line
    message: str  # The question with line breaks, for the reranker: the first line may be a subject
    remarks: tuple[str, ...] = ()  # Remarks for the user, for example that the question was truncated


def build_query(question: str) -> Query:
    """Return the search query for a question. Raises DataError if it has no letters or digits, or isn't valid UTF-8."""
    check_utf8(question)
    lines = [" ".join(line.split()) for line in question.splitlines()]
    text = " ".join(question.split())
    if not re.search(r"\w", text):
        raise DataError("The question is empty: it contains no letters or digits. Enter a question in words.")
    remarks: tuple[str, ...] = ()
    if len(text) > MAX_CHARACTERS:
        remarks = (
            f"The question has {len(text):,} characters; only the first {MAX_CHARACTERS:,} were used for the search.",
        )
    return Query(text[:MAX_CHARACTERS], "\n".join(filter(None, lines))[:MAX_CHARACTERS], remarks)


def row_filter(
    index_sources: Sequence[str], sources: Sequence[str] | None, since: str | None, until: str | None
) -> str | None:
    """Return an SQL condition on the table's rows, or None if there are no filters.

    Passages without a date never match a date filter. Raises DataError if a source isn't one of `index_sources`,
    or a date doesn't have the form 2018, 2018-05 or 2018-05-17.
    """
    parts: list[str] = []
    if sources:
        unknown = [name for name in sources if name not in index_sources]
        if unknown:
            raise DataError(f"The index has no source {unknown[0]!r}. Its sources: {', '.join(index_sources)}.")
        parts.append(f"source IN ({', '.join(map(storage.quoted, sources))})")
    for name, date in (("since", since), ("until", until)):
        if date is not None and not _DATE.fullmatch(date):
            raise DataError(f"{name} {date!r} is not a date like 2018, 2018-05 or 2018-05-17.")
    if since is not None:
        # A passage dated "2018" may be from any day of that year, so it matches unless the whole year is too early.
        parts.append(f"date != '' AND rpad(date, 10, '-99-99') >= '{since}'")
    if until is not None:
        parts.append(f"date != '' AND date <= '{until}~'")
    return " AND ".join(parts) or None


def _any(*patterns: str, start: str = r"\b", end: str = r"\b") -> re.Pattern[str]:
    return re.compile(f"{start}(?:{'|'.join(patterns)}){end}", re.IGNORECASE)


ASKS = _any(*QUESTION_KINDS["messages"]["asks"], start="", end="")
GREETING = _any(*QUESTION_KINDS["messages"]["greeting"], start=r"^\W*", end="")
UNINFORMATIVE = _any(*QUESTION_KINDS["messages"]["uninformative"], start=r"^\W*", end=r"\W*$")
KINDS = {kind: _any(*cues, end="" if kind == "information" else r"\b") for kind, cues in QUESTION_KINDS["cues"].items()}
"""For each kind of question, a pattern of its cues in messages. More specific kinds come first."""


SUBJECT_WORDS = 12  # Maximum number of words in a first line that counts as a subject


@dataclass(frozen=True)
class QueryFocus:
    """A message reduced to what it asks."""

    query: str  # The text to search for: subject and questions, without greetings and history
    mentions: tuple[Mention, ...] = ()  # All topics that the message names, the most informative first
    kinds: tuple[str, ...] = ()  # All kinds of question for which there are cues; if there are none, "information"


def query_focus(question: str, synonyms: Synonyms) -> QueryFocus:
    """Return what a message asks; its first line may be a subject."""
    question = synonyms.corrected(question)
    subject, parts = _parts(question)
    asking = [part for part in parts if ASKS.search(part)] or parts
    query = " ".join(dict.fromkeys([subject, *asking] if subject else asking)) or " ".join(question.split())
    mentions = _mentions(subject, asking, question, synonyms)
    if mentions and mentions[0].topic not in query.casefold():
        query = f"{mentions[0].topic}. {query}"
    for text in (" ".join([subject, *asking]), question):
        if kinds := tuple(kind for kind, pattern in KINDS.items() if pattern.search(text)):
            break
    return QueryFocus(query, tuple(mentions), kinds or ("information",))


def _parts(question: str) -> tuple[str, list[str]]:
    """Return the subject ("" if there is no informative one) and the message's sentences without greetings."""
    first, _, rest = question.strip().partition("\n")
    subject = first.strip() if rest.strip() and len(first.split()) <= SUBJECT_WORDS else ""
    message = " ".join((rest if subject else question).split())
    stripped = [GREETING.sub("", sentence).strip() for sentence in sentences(message)]
    return "" if UNINFORMATIVE.match(subject) else subject, [sentence for sentence in stripped if sentence]


def _mentions(subject: str, questions: Sequence[str], question: str, synonyms: Synonyms) -> list[Mention]:
    """Return the topics mentioned, the most informative first. Those in the subject or questions weigh more."""
    found: dict[str, Mention] = {}
    weight: dict[str, float] = {}
    for text, share in ((subject, 1.0), (" ".join(questions), 0.9), (question, 0.5)):
        for mention in synonyms.find(text):
            key = min(mention.topics) if len(mention.topics) == 1 else mention.name
            found.setdefault(key, mention)
            weight[key] = max(weight.get(key, 0.0), share * mention.weight)
    return [found[key] for key in sorted(found, key=lambda key: -weight[key])]
