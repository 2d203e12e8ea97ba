"""For whom an answer is: which of the passages found it rests on, easier ones or those that say more.

What an answer reads like follows from what it is written from, so a style chooses among passages that are about as
near to the question. A model that learnt a cue for plain words is asked with it, too; for any other the prompt stays as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from meditune.readability.grades import counted, flesch_kincaid
from meditune.recipe import Style
from meditune.retrieve.search import Hit

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
