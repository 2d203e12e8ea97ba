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


def as_text(parts: Sequence[Part], form: PromptFormat) -> str:
    """The passages as one text with a line for each section, without orders to the model and the prompt's cues."""
    sections: list[tuple[str, list[str]]] = []
    for part in parts:
        if not sections or sections[-1][0] != part["section"]:
            sections.append((part["section"], []))
        sections[-1][1].append(part["text"])
    return in_lines([(heading, " ".join(texts)) for heading, texts in sections], form)


def in_lines(sections: Sequence[tuple[str, str]], form: PromptFormat) -> str:
    """Headings with their texts, a line for each; a single section's heading says no more than the title."""
    lines = (f"{heading}: {text}" if heading and len(sections) > 1 else text for heading, text in sections)
    return "\n".join(clean for line in lines if (clean := cleaned(line, form).text))


def _length(part: Part) -> int:
    return len(str(part["text"]).split())
