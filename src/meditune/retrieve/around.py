"""More of the document than the passage that was found: its neighbours, in the order of the text.

A short passage is found best, but what it says may need what stands beside it: the results of a study answer the
question that its background asks. Sections keep their headings, as a given context has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meditune.recipe import PromptFormat
from meditune.retrieve.untrusted import cleaned

Part = Mapping[str, Any]
"""A passage's columns"""
Section = tuple[str, str]
"""A heading, which may be empty, and a text"""


def around(passages: Sequence[Part], found: str, words: int) -> list[Part]:
    """The passage with the id `found`, and so many neighbours as have at most `words` words with it.

    `passages` are all of its document, in order. Neighbours after it come before those ahead of it, as far away.
    """
    place = next(number for number, each in enumerate(passages) if each["id"] == found)
    first = last = place
    left = words - _length(passages[place])
    while True:
        after, before = last + 1, first - 1
        if after < len(passages) and _length(passages[after]) <= left:
            last = after
            left -= _length(passages[after])
        elif before >= 0 and _length(passages[before]) <= left:
            first = before
            left -= _length(passages[before])
        else:
            return list(passages[first : last + 1])


def in_sections(parts: Sequence[Part], form: PromptFormat) -> list[Section]:
    """The passages as sections, without orders to the model and the prompt's cues."""
    sections: list[tuple[str, list[str]]] = []
    for part in parts:
        if not sections or sections[-1][0] != part["section"]:
            sections.append((part["section"], []))
        sections[-1][1].append(part["text"])
    several = len(sections) > 1  # a single one's heading says no more than the title
    return clean([(heading if several else "", " ".join(texts)) for heading, texts in sections], form)


def clean(sections: Sequence[Section], form: PromptFormat) -> list[Section]:
    """Sections as they may stand in a prompt, without headings that could be taken for its cues."""
    kept = []
    for heading, text in sections:
        said = cleaned(text, form).text
        if said:
            is_safe = cleaned(f"{heading}: {said}", form).text == f"{heading}: {said}"
            kept.append((heading if is_safe else "", said))
    return kept


def _length(part: Part) -> int:
    return len(str(part["text"]).split())
