"""Hits as they are shown: for people in a terminal, and as JSON Lines."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict

from meditune.retrieve.search import Found, Hit

WIDTH = 100
LINES = 6


def as_text(found: Found) -> Iterator[str]:
    """Each hit's title, origin and the beginning of its text."""
    if not found.hits:
        yield "Nothing was found. Use other words, or narrow the search less."
    for number, hit in enumerate(found.hits, start=1):
        passage = hit.passage
        yield f"{number}. {passage.title or passage.document}" + (f" [{passage.section}]" if passage.section else "")
        facts = [passage.source, passage.date, passage.url, "restricted" if passage.restricted else ""]
        yield f"   {' · '.join(fact for fact in facts if fact)}"
        yield f"   {_scores(hit)}"
        yield from textwrap.wrap(
            passage.text, WIDTH, initial_indent="   ", subsequent_indent="   ", max_lines=LINES, placeholder=" …"
        )
        yield ""


def as_json(found: Found) -> Iterator[str]:
    """One object a hit: its passage's fields, `score`, `words`, `meaning`."""
    for hit in found.hits:
        said = asdict(hit.passage) | {"score": hit.score, "words": hit.words, "meaning": hit.meaning}
        yield json.dumps(said, ensure_ascii=False)


def _scores(hit: Hit) -> str:
    words = "not among the words' best" if hit.words is None else f"words {hit.words:.1f}"
    meaning = "not among the nearest in meaning" if hit.meaning is None else f"meaning {hit.meaning:.2f}"
    return f"score {hit.score:.4f}: {words}, {meaning}"
