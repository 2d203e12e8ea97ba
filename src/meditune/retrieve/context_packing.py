"""Passages in the room that a prompt has for them: the best first, whole sentences only.

More of the document than the passage that was found: its neighbours, in the order of the text.

A short passage is found best, but what it says may need what stands beside it: the results of a study answer the
question that its background asks. Sections keep their headings, as a given context has them.

For whom an answer is: which of the passages found it rests on, easier ones or those that say more.

What an answer reads like follows from what it is written from, so a style chooses among passages that are about as
near to the question. A model that learnt a cue for plain words is asked with it, too; for any other the prompt stays as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from meditune.config.data_options import PromptFormat, Style
from meditune.readability import counted, flesch_kincaid
from meditune.retrieve.hybrid_search import Hit
from meditune.retrieve.prompt_injection import clean_passage
from meditune.text import sentences


@dataclass(frozen=True)
class PackedPassage:
    """A passage as the model reads it."""

    hit: Hit
    title: str
    """Cleaned, like the text"""
    text: str
    """Of the passage, so many whole sentences as there was room for"""
    left_out: int = 0
    """Sentences that found no room"""

    @property
    def shown(self) -> str:
        """What stands in the prompt: the text under its title, without which it may not say what it speaks of."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class PackedContext:
    """What of the hits is in the prompt."""

    passages: tuple[PackedPassage, ...]
    remarks: tuple[str, ...] = ()
    """What was left out, and why"""


def pack(
    hits: Sequence[Hit],
    form: PromptFormat,
    special_tokens: Sequence[str],
    count: Callable[[Sequence[str]], int],
    room: int,
) -> PackedContext:
    """As many of the hits, in their order, as fit: `count` is how many tokens a prompt with these texts has.

    The first hit that doesn't fit whole is cut after a sentence; those after it are left out.
    """
    packed: list[PackedPassage] = []
    remarks: list[str] = []
    for number, hit in enumerate(hits):
        clean = clean_passage(hit.passage.text, form, special_tokens)
        title = clean_passage(hit.passage.title, form, special_tokens)
        orders = len(clean.orders) + len(title.orders)
        if orders:
            remarks.append(
                f"{hit.passage.id}: {_sentences(orders)} that told the model what to do {_was(orders)} left out."
            )
        if not clean.text:
            continue
        fits = partial(_fits, count, room, [each.shown for each in packed])
        fitting = _fitting(hit, title.text, sentences(clean.text), fits)
        if fitting is not None:
            packed.append(fitting)
        if fitting is None or fitting.left_out:
            remarks += _no_room(fitting, len(hits) - number - (fitting is not None))
            break
    return PackedContext(tuple(packed), tuple(remarks))


def _fits(count: Callable[[Sequence[str]], int], room: int, before: Sequence[str], text: str) -> bool:
    return count([*before, text]) <= room


def _fitting(hit: Hit, title: str, whole: Sequence[str], fits: Callable[[str], bool]) -> PackedPassage | None:
    """The most sentences from the beginning that fit, by halving; None where not even the first does."""
    low, high = 0, len(whole)
    if fits(PackedPassage(hit, title, " ".join(whole)).shown):
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if middle < len(whole) and fits(PackedPassage(hit, title, " ".join(whole[:middle])).shown):
            low = middle
        else:
            high = middle - 1
    return PackedPassage(hit, title, " ".join(whole[:low]), len(whole) - low) if low else None


def _no_room(cut: PackedPassage | None, others: int) -> list[str]:
    said = []
    if cut:
        said.append(f"the last {_sentences(cut.left_out)} of {cut.hit.passage.id}")
    if others:
        said.append(f"{others} further {'passage' if others == 1 else 'passages'}")
    return [f"There was no room in the prompt for {' and '.join(said)}."]


def _sentences(number: int) -> str:
    return f"{number} sentence" if number == 1 else f"{number} sentences"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


Part = Mapping[str, Any]
"""A passage's columns"""
Section = tuple[str, str]
"""A heading, which may be empty, and a text"""


def with_neighbors(passages: Sequence[Part], found: str, words: int) -> list[Part]:
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
    return clean_text([(heading if several else "", " ".join(texts)) for heading, texts in sections], form)


def clean_text(sections: Sequence[Section], form: PromptFormat) -> list[Section]:
    """Sections as they may stand in a prompt, without headings that could be taken for its cues."""
    kept = []
    for heading, text in sections:
        said = clean_passage(text, form).text
        if said:
            is_safe = clean_passage(f"{heading}: {said}", form).text == f"{heading}: {said}"
            kept.append((heading if is_safe else "", said))
    return kept


def _length(part: Part) -> int:
    return len(str(part["text"]).split())


AS_NEAR = 0.15
"""A passage is read where its cosine is below the best one's by no more than this: small models write about whatever
stands before them, so a passage about another disease makes an answer about that one, borne out and beside the point"""
READABLE = 9.0
"""Grades above this count against a passage in the plain style"""
PER_GRADE = 0.06
"""By so much of its place's worth for each grade"""
RESEARCH = ("pubmed",)
"""Sources of these names, or that begin so, are for experts"""
TOWARDS = 0.5
"""By so much more a source counts for those whom it is for"""

Chooser = Callable[[Sequence[Hit], int], Sequence[Hit]]
"""Takes so many of the hits, the best ones for somebody"""


def chooser(style: Style) -> Chooser:
    """What takes k of the hits in this style."""
    return partial(chosen, style)


def chosen(style: Style, hits: Sequence[Hit], k: int) -> Sequence[Hit]:
    """Up to k hits that are about as near to the question as the nearest, those that suit the style best first."""
    nearest = max((hit.meaning for hit in hits if hit.meaning is not None), default=None)
    if nearest is None:
        return hits[:k]
    near = [hit for hit in hits if hit.meaning is not None and hit.meaning >= nearest - AS_NEAR]
    worth = {id(hit): _weight(style, hit) / (place + 3) for place, hit in enumerate(near)}
    return sorted(near, key=lambda hit: -worth[id(hit)])[:k]


@lru_cache(maxsize=4096)
def grade(text: str) -> float:
    """The school grade of a text (Flesch-Kincaid); 0 without words."""
    found = counted(text)
    return flesch_kincaid(found.words, found.sentences, found.syllables) if found.words else 0.0


def _weight(style: Style, hit: Hit) -> float:
    research = hit.passage.source.startswith(RESEARCH)
    if style == "expert":
        return 1 + TOWARDS * research
    hard = max(0.0, grade(hit.passage.text) - READABLE)
    return (1 + TOWARDS * (not research)) / (1 + PER_GRADE * hard)
