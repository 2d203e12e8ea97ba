"""Where raters disagree most: what is worth a second look, by one who settles it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from meditune.review.axes import Axis
from meditune.review.store import RATING, Note, Rating


@dataclass(frozen=True)
class Dispute:
    """An item on which raters differ."""

    item: str
    said: dict[str, dict[int, int]]
    """Axis that they differ on -> option -> how many chose it"""
    distance: float
    """0 to 1: how far two raters' words are apart, on average over the item's axes that two or more rated"""


def disputed(axes: Sequence[Axis], ratings: Iterable[Rating], notes: Iterable[Note] = ()) -> list[Dispute]:
    """Items of the first round on which two or more raters differ, the most disputed first.

    Two words on a nominal axis are 0 or 1 apart, on an ordinal one as far as their options are on the way from the best
    to the worst. "Can't judge" says nothing. Of `notes` the better answers count: where raters wrote different ones,
    all that was said of the item is in dispute.
    """
    said: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        if rating.round == RATING and rating.option is not None:
            said[rating.item][rating.axis].append(rating.option)
    texts: dict[str, set[str]] = defaultdict(set)
    for note in notes:
        if note.round == RATING and note.better.strip():
            texts[note.item].add(" ".join(note.better.split()))
    known = {axis.name: axis for axis in axes}
    found = []
    for item, by_axis in said.items():
        several = {name: words for name, words in by_axis.items() if len(words) > 1 and name in known}
        rewritten = len(texts[item]) > 1
        differing = {name: dict(Counter(words)) for name, words in several.items() if rewritten or len(set(words)) > 1}
        if differing:
            apart = [_apart(known[name], words) for name, words in several.items()]
            found.append(Dispute(item, differing, sum(apart) / len(apart)))
    return sorted(found, key=lambda each: (-each.distance, each.item))


def _apart(axis: Axis, words: Sequence[int]) -> float:
    """The mean distance of two raters' words."""
    pairs = list(combinations(words, 2))
    steps = len(axis.options) - 1 if axis.level == "ordinal" else 1
    return sum(min(abs(a - b), steps) / steps for a, b in pairs) / len(pairs)
