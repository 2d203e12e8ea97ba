"""Sentences, words and lines of English prose."""

from __future__ import annotations

import re
import textwrap

_ENDING = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|vs|cf|al|Fig|fig|No|no|approx|i\.e|e\.g|Inc|St)|\b[A-Z])\.$")


def sentences(text: str) -> list[str]:
    """Return the sentences of a prose text. Joined with spaces, they contain all words of `text` in order."""
    found, start = [], 0
    for match in _ENDING.finditer(text):
        piece = text[start : match.start() + 1]
        if _ABBREVIATION.search(piece):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which gets a plural s: "1 document", "5,122 documents"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


WIDTH = 100
"""The maximum length of a printed line, in characters"""


def wrapped(text: str) -> list[str]:
    """Return the lines of a text, wrapped at WIDTH."""
    return [line for part in text.splitlines() for line in textwrap.wrap(part, WIDTH) or [""]]


def excerpt(text: str, indent: str, lines: int) -> list[str]:
    """Return the first lines of a text, indented and wrapped at WIDTH."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=lines, placeholder=" …"
    )
