"""Sentences, words, lines and invisible characters of prose."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping

from meditune.errors import DataError

_ENDING = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|vs|cf|al|Fig|fig|approx|i\.e|e\.g|Inc|St)\.$")
_NUMBERED = re.compile(r"\b[Nn]o\.$")
"""An abbreviation of "number" if a digit follows"""
_LETTER = re.compile(r"(?:(?P<before>\S+)\s+)?\b[A-Z]\.$")
LETTERED = re.compile(
    "angiotensin|appendix|bipolar|category|class|factor|grade|group|ha?emophilia|hepatitis|immunoglobulin|influenza|"
    "level|panel|part|phase|stage|type|vitamin"
)
"""Words that a letter or Roman numeral belongs to: the letter in "vitamin D." isn't an initial"""
_BEFORE_NAMES = re.compile("and|by|for|from|in|of|or|than|to|with")
_ALONE = re.compile(r"\W*(?:yes|no)[.!]\W*", re.IGNORECASE)
LAST_CHARACTERS = 100
"""Number of characters before the end of a sentence in which an abbreviation or initial is searched for"""


def sentences(text: str) -> list[str]:
    """Return the sentences of a prose text. Joined with spaces, they contain all words of `text` in order.

    A lone "Yes." or "No." belongs to the sentence that follows it.
    """
    found, start = [], 0
    for match in _ENDING.finditer(text):
        end = match.start() + 1
        # Only the last word or two are needed. The whole piece would take quadratic time for "A. B. C. ...".
        last = text[max(start, end - LAST_CHARACTERS) : end]
        numbered = _NUMBERED.search(last) and text[match.end()].isdigit()
        if _ABBREVIATION.search(last) or numbered or _ends_in_initial(last) or _ALONE.fullmatch(text, start, end):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends_in_initial(piece: str) -> bool:
    """Return whether a text ends in the initial of a name, such as "by J." or "Robert F.", unlike "vitamin D."."""
    match = _LETTER.search(piece)
    if not match:
        return False
    before = match["before"] or ""
    plain = before.strip("\"'([").lower()
    if LETTERED.fullmatch(plain):
        return False
    return not before[:1].islower() or _BEFORE_NAMES.fullmatch(plain) is not None


_SCRIPTS = r"[\u0530-\u1c7f\ua840-\uab2f\ufb50-\ufdff\ufe70-\ufefc]"
_EMOJI = "[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]"
_JOINER = re.compile(
    rf"(?<={_SCRIPTS})(?<!\d)[\u200c\u200d](?={_SCRIPTS})(?!\d)|(?<={_EMOJI})\u200d(?={_EMOJI})"
)  # Changes the shape of the letters around it, as in Persian and Hindi, or joins two emoji


def without_invisible(text: str, is_invisible: Callable[[str], bool]) -> str:
    """Return the text without the characters for which `is_invisible` is true.

    Joiners (U+200C, U+200D) stay within emoji, and between letters of scripts other than Latin, Greek and Cyrillic.
    """
    joiners = {match.start() for match in _JOINER.finditer(text)}
    return "".join(char for place, char in enumerate(text) if place in joiners or not is_invisible(char))


def check_utf8(question: str) -> None:
    """Raise DataError if a question contains a lone surrogate, for example from an invalid byte on the command line."""
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The question isn't valid UTF-8 text: character {error.start + 1} is invalid. Remove or retype it."
        ) from error


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which gets a plural s: "1 document", "5,122 documents"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted_reasons(reasons: Mapping[str, int]) -> str:
    """Return why how many rows were left out: "2 rows: no answer; 1 row: duplicate id"."""
    return "; ".join(f"{counted(count, 'row')}: {reason}" for reason, count in reasons.items())


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
