"""A set of items to judge, without what raters mustn't know, and in which order each rater sees them.

A set's folder holds

    set.json         which task and axes, how raters share the work
    items.jsonl      id, asked (which question), question, context, answer ...: all that the page may show
    key.json         what each item really is; neither page nor server read it
    ratings.sqlite   what raters said (store.py)
"""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from meditune.data.example import Passage
from meditune.errors import DataError, MedituneError
from meditune.files import numbered_jsonl, read_json, replacing_folder, write_json, write_jsonl
from meditune.review.axes import Axis
from meditune.review.tasks import RATE, TASKS, Task

SET, ITEMS, KEY, STORE = "set.json", "items.jsonl", "key.json", "ratings.sqlite"
Read = TypeVar("Read")
BLOCK = 8
"""Questions whose answers are dealt together: far enough apart not to be compared, near enough to be finished."""


@dataclass(frozen=True)
class Item:
    """One answer to judge."""

    id: str
    """Says nothing of where the answer comes from"""
    asked: str
    """The same for all answers to one question"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    decision: str = ""
    """yes, no or maybe, where it is judged together with the answer"""
    source: str = ""
    """Where the answer comes from, in words; empty where raters mustn't know"""
    link: str = ""
    """Its page there"""
    axes: tuple[str, ...] = ()
    """Those that it is judged on; all of the set's where none is named"""


@dataclass(frozen=True)
class Origin:
    """What an item really is."""

    example: str
    group: str
    """What the example belongs to, with its source; questions of one group aren't independent"""
    origins: tuple[str, ...]
    """base, tuned, reference, several where they gave the same answer; row, gold or planted where data are checked"""
    restricted: bool = field(default=False, kw_only=True)
    """Whether the example's licence forbids passing it on"""


@dataclass(frozen=True)
class RatingSet:
    """A set as its folder has it, without the key."""

    folder: Path
    task: Task
    axes_name: str
    raters: int | None
    """How many raters share the work; None where each rates everything"""
    overlap: int | None
    """How many of them rate each question"""
    shuffle: str
    items: dict[str, Item]
    everyone: frozenset[str] = frozenset()
    """Questions (`asked`) that every rater sees, however the others are shared"""
    ranked: bool = False
    """Whether the items stand in the order of their weight, so that the first ones are to be seen first"""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What is asked of each answer."""
        return self.task.form(self.axes_name)

    def axis(self, name: str) -> Axis | None:
        """The axis of that name, if the set has it."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def asked(self, item: str) -> list[str]:
        """The names of the axes on which an item is judged."""
        return list(self.items[item].axes) or [axis.name for axis in self.axes]

    def unchanged(self, item: str, text: str) -> bool:
        """Whether a better text is just the one that the rater was shown to change."""
        return self.task.edits and text.strip() == self.items[item].answer.strip()

    def work(self, place: int) -> list[str]:
        """Ids for the rater who came as number `place` (from 0), in the order in which that rater sees them.

        The order differs from rater to rater, so that nobody's first and last answers are everybody's; in a ranked
        set it does so within blocks only. Within a block of questions each comes once before any comes again.
        """
        chance = random.Random(f"{self.shuffle}/{place}")
        answers: dict[str, list[str]] = defaultdict(list)
        for item in self.items.values():
            answers[item.asked].append(item.id)
        questions = self._dealt(list(answers), place)
        if not self.ranked:
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
        dealt = [asked for asked in questions if asked not in self.everyone]
        given = {asked for number, asked in enumerate(dealt) if mine in teams[number % len(teams)]} | self.everyone
        return [asked for asked in questions if asked in given]


def read_set(folder: Path, task: Task | None = None) -> RatingSet:
    """The set in that folder. Raises DataError where there is none, it isn't whole, or `task` isn't its task."""
    if not (folder / SET).is_file():
        raise DataError(f"{folder} holds no rating set. Make one: {(task or RATE).made_by} {folder}")
    said = read_json(folder / SET)
    items: dict[str, Item] = {}
    for number, row in numbered_jsonl(folder / ITEMS):
        try:
            context = tuple(Passage.model_validate(passage) for passage in row.pop("context"))
            item = Item(**row | {"axes": tuple(row.get("axes", ()))}, context=context)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / ITEMS}, line {number}: not an item of a rating set ({error}).") from error
        items[item.id] = item
    try:
        own = TASKS[said.get("task", RATE.name)]
        shared = said["raters"], said["overlap"], said["shuffle"]
        found = RatingSet(
            folder, own, said["axes"], *shared, items, frozenset(said.get("everyone", ())), said.get("ranked", False)
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SET}: not a rating set's settings ({error} is missing).") from error
    if task is not None and own is not task:
        verb = own.made_by.split()[1]
        raise DataError(f"{folder} is a set of another kind. Use the commands of `meditune {verb}` with it.")
    return found


def write_set(
    folder: Path,
    settings: Mapping[str, Any],
    items: Iterable[dict[str, Any]],
    key: Mapping[str, Any],
    made_from: Mapping[str, Any],
) -> None:
    """Leave a set in `folder`, whole or not at all; `items` stand there in the order that is given."""
    with replacing_folder(folder) as partial:
        write_json(partial / SET, {**settings, "shuffle": secrets.token_hex(8)})
        write_jsonl(partial / ITEMS, items, private=True)
        write_json(partial / KEY, {"made_from": made_from, "items": key}, private=True)


def check_sharing(raters: int | None, overlap: int | None) -> None:
    """Raise MedituneError where so many raters can't share the work that way."""
    if overlap is not None and raters is None:
        raise MedituneError("--overlap says how many of the raters see each question: give --raters too.")
    if raters is not None and not 1 <= (overlap or raters) <= raters:
        raise MedituneError(f"--overlap {overlap} isn't possible with --raters {raters}. Give a number up to {raters}.")


def read_key(folder: Path) -> tuple[dict[str, Origin], dict[str, Any]]:
    """What each item is, and what the set was made from. Raises DataError where the key is missing or damaged."""
    return read_key_as(folder, origin_of)


def origin_of(row: dict[str, Any]) -> Origin:
    """Of an item's row in the key."""
    return Origin(row["example"], row["group"], tuple(row["origins"]), restricted=bool(row.get("restricted")))


def read_key_as(folder: Path, made: Callable[[dict[str, Any]], Read]) -> tuple[dict[str, Read], dict[str, Any]]:
    """As `read_key`, with what `made` makes of each item's row."""
    if not (folder / KEY).is_file():
        raise DataError(f"{folder / KEY} is missing. Without it nobody can tell what the items of this set are.")
    said = read_json(folder / KEY)
    try:
        return {id: made(row) for id, row in said["items"].items()}, dict(said["made_from"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / KEY}: not the key of a rating set ({error}).") from error
