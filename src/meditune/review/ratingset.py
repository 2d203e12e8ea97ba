"""A rating set: answers without their origin, and in which order each rater sees them.

A set's folder holds

    set.json         which axes, how raters share the work
    items.jsonl      id, asked (which question), question, context, answer: all that the page may show
    key.json         what each item really is; neither page nor server read it
    ratings.sqlite   what raters said (store.py)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from meditune.data.example import Passage
from meditune.errors import DataError
from meditune.files import numbered_jsonl, read_json
from meditune.review.axes import Axis, axes_of

SET, ITEMS, KEY, STORE = "set.json", "items.jsonl", "key.json", "ratings.sqlite"
BLOCK = 8
"""Questions whose answers are dealt together: far enough apart not to be compared, near enough to be finished."""


@dataclass(frozen=True)
class Item:
    """One answer to rate."""

    id: str
    """Says nothing of where the answer comes from"""
    asked: str
    """The same for all answers to one question"""
    question: str
    context: tuple[Passage, ...]
    answer: str


@dataclass(frozen=True)
class Origin:
    """What an item really is."""

    example: str
    group: str
    """What the example belongs to, with its source; questions of one group aren't independent"""
    origins: tuple[str, ...]
    """base, tuned, reference; several where they gave the same answer"""


@dataclass(frozen=True)
class RatingSet:
    """A set as its folder has it, without the key."""

    folder: Path
    axes_name: str
    raters: int | None
    """How many raters share the work; None where each rates everything"""
    overlap: int | None
    """How many of them rate each question"""
    shuffle: str
    items: dict[str, Item]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What is asked of each answer."""
        return axes_of(self.axes_name)

    def axis(self, name: str) -> Axis | None:
        """The axis of that name, if the set has it."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def work(self, place: int) -> list[str]:
        """Ids for the rater who came as number `place` (from 0), in the order in which that rater sees them.

        The order differs from rater to rater, so that nobody's first and last answers are everybody's. Within a block
        of questions each comes once before any comes again.
        """
        chance = random.Random(f"{self.shuffle}/{place}")
        answers: dict[str, list[str]] = defaultdict(list)
        for item in self.items.values():
            answers[item.asked].append(item.id)
        questions = self._dealt(list(answers), place)
        chance.shuffle(questions)
        order: list[str] = []
        for start in range(0, len(questions), BLOCK):
            block = questions[start : start + BLOCK]
            left = {asked: chance.sample(answers[asked], len(answers[asked])) for asked in block}
            while left:
                for asked in chance.sample(list(left), len(left)):
                    order.append(left[asked].pop())
                left = {asked: ids for asked, ids in left.items() if ids}
        return order

    def _dealt(self, questions: Sequence[str], place: int) -> list[str]:
        """The questions of one rater. Every combination of `overlap` raters gets about as many."""
        if self.raters is None or self.overlap is None:
            return list(questions)
        teams = list(combinations(range(self.raters), self.overlap))
        random.Random(f"{self.shuffle}/teams").shuffle(teams)
        mine = place % self.raters
        return [asked for number, asked in enumerate(questions) if mine in teams[number % len(teams)]]


def read_set(folder: Path) -> RatingSet:
    """The set in that folder. Raises DataError where there is none, or it isn't whole."""
    if not (folder / SET).is_file():
        raise DataError(f"{folder} holds no rating set. Make one: meditune review create RUN --output {folder}")
    said = read_json(folder / SET)
    items: dict[str, Item] = {}
    for number, row in numbered_jsonl(folder / ITEMS):
        try:
            context = tuple(Passage.model_validate(passage) for passage in row["context"])
            item = Item(row["id"], row["asked"], row["question"], context, row["answer"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / ITEMS}, line {number}: not an item of a rating set ({error}).") from error
        items[item.id] = item
    try:
        return RatingSet(folder, said["axes"], said["raters"], said["overlap"], said["shuffle"], items)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / SET}: not a rating set's settings ({error} is missing).") from error


def read_key(folder: Path) -> tuple[dict[str, Origin], dict[str, Any]]:
    """What each item is, and what the set was made from. Raises DataError where the key is missing or damaged."""
    if not (folder / KEY).is_file():
        raise DataError(f"{folder / KEY} is missing. Without it nobody can tell which model wrote which answer.")
    said = read_json(folder / KEY)
    try:
        origins = {id: Origin(row["example"], row["group"], tuple(row["origins"])) for id, row in said["items"].items()}
        return origins, dict(said["made_from"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / KEY}: not the key of a rating set ({error}).") from error
