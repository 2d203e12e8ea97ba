"""Training, development and test splits, which keep related examples together.

Only official test sets, and splits that the recipe fixes, can separate related examples.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from meditune.data.example import Example
from meditune.data.near_duplicates import MIN_PASSAGE_WORDS, near_questions, normalized
from meditune.data.readers import claims, evidence_inference, liveqa, plain_language, pubmedqa
from meditune.data.readers.conversations import is_greeting
from meditune.errors import DataError

OFFICIAL: dict[str, Callable[[list[Example]], tuple[list[Example], list[Example]]]] = {
    "pubmedqa": pubmedqa.official_split,
    "liveqa": liveqa.official_split,
    **dict.fromkeys((evidence_inference.SOURCE, *plain_language.LICENCES), claims.official_split),
    **{name: partial(claims.official_split, test_splits=splits) for name, splits in claims.TEST_SPLITS.items()},
}
FEW = 3
"""A text in more groups than this doesn't identify an example; a question with more groups and contexts is an
instruction"""
MIN_TURN_WORDS = 8
"""A later message of a conversation is compared together with its reply if it has fewer words ("And for children?")"""
MAX_CONTEXT_SHARE = 0.2
"""A context in more than this share of the examples counts as background"""


Pair = tuple[str, str]
"""Ids of two examples"""
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Splits:
    """The three splits of the examples."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    test_set: str
    """Name of the test set in reports ("pubmedqa-official-500")"""

    def measured(self, split: str) -> list[Example]:
        """Return the examples of `split`, the value of `evaluate.split`."""
        return self.named()[split]

    def measured_name(self, split: str) -> str:
        """Return the name of `split` in reports, such as "dev-100"."""
        return self.test_set if split == "test" else f"dev-{len(self.dev)}"

    def named(self) -> dict[str, list[Example]]:
        """Return the three splits by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def split(
    by_source: dict[str, list[Example]],
    official: bool,
    test_share: float,
    dev_share: float,
    seed: int,
    fold: int | None = None,
    *,
    newest: bool = False,
    all_rows: dict[str, list[Example]] | None = None,
    fixed: Mapping[str, str] | None = None,
    leaks: Callable[[Splits], Iterable[Pair]] | None = None,
    left_out: str = "",
    needed: Collection[str] = SPLITS,
) -> Splits:
    """Split each source by its official test set if there is one and `official` is set, otherwise by group.

    With `newest`, the test set has the newest publications. `fixed` maps a source to the split for all its rows.
    `all_rows` are the rows before quality control; official test sets are defined on these rows. Other rows that share
    a question, context or turn with a row of an official or fixed split go to train or dev (with a row that is fixed as
    training data, to train), where the leakage check finds those that a test item repeats. `leaks` returns the ids of
    held-out rows, each with that of a similar row to train on; such rows are put into one split, unless an official or
    fixed split separates them. Raises DataError if one of the `needed` splits is empty; `left_out` says which rows were
    left out before, and how to keep them.
    """
    rest: list[Example] = []
    test: list[Example] = []
    free: list[Example] = []
    read = by_source if all_rows is None else all_rows
    placed: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for source, examples in by_source.items():
        if source in (fixed or {}):
            placed[(fixed or {})[source]] += examples
        elif official and source in OFFICIAL:
            by_id = {example.id: example for example in examples}
            remaining, held = OFFICIAL[source](read[source])
            rest += [by_id[example.id] for example in remaining if example.id in by_id]
            test += [by_id[example.id] for example in held if example.id in by_id]
        else:
            free += examples
    settled = [*rest, *test, *(example for examples in placed.values() for example in examples)]
    every = [*settled, *free]
    same, general, turns = same_questions(every), backgrounds(every), distinctive_turns(every)
    known = {key for example in settled for key in _shared(example, same, general, turns)}
    seen = {index for index, example in enumerate(free) if known.intersection(_shared(example, same, general, turns))}
    unseen, related = _parted(free, seen)
    related = [*rest, *related]

    def dealt(joined: Collection[Pair]) -> Splits:
        choose = by_year if newest else by_group
        remaining, held = choose(unseen, test_share, seed, same, joined)
        trained = [*related, *remaining]
        if fold is None:
            train, dev = by_group(trained, dev_share, seed + 1, same, joined, kept_with=placed["train"])
        else:
            train, dev = _parted(trained, {index for index, example in enumerate(trained) if example.id in chosen})
        return Splits([*train, *placed["train"]], [*dev, *placed["dev"]], [*test, *held, *placed["test"]], "")

    chosen = set() if fold is None else {each.id for each in pubmedqa.official_folds(read[pubmedqa.SOURCE])[fold]}
    joined: set[Pair] = set()
    splits = dealt(joined)
    # Moving rows can separate others, so the new splits are checked, too. Each round joins rows that were separate.
    while leaks and (found := set(leaks(splits)) - joined):
        joined |= found
        movable = {example.id for example in unseen}
        drawn = {one for one, two in found if two not in movable}
        groups = _components(unseen, same, joined)
        touched = [members for members in groups if any(unseen[index].id in drawn for index in members)]
        unseen, more = _parted(unseen, {index for members in touched for index in members})
        related += more
        splits = dealt(joined)
    if empty := next((name for name, examples in splits.named().items() if not examples and name in needed), None):
        shares = f"data.dev_share and data.test_share{', or data.sources.N.split' if fixed else ''}"
        advice = f"Add more examples, or change {shares}." if every or not left_out else ""
        largest = max(map(len, _components(unseen, same, joined)), default=0)
        if largest > max(1, len(every) / 2):
            advice = f"{largest} of {len(every)} rows stay together because they are related or similar. {advice}"
        raise DataError(
            f"The {empty} split is empty: {len(splits.train) + len(splits.dev)} training and {len(splits.test)} test "
            f"examples are left after the checks. {' '.join(filter(None, (left_out, advice)))}"
        )
    counts = Counter(example.source for example in splits.test)
    kinds = dict.fromkeys(by_source, "newest" if newest else "group")
    kinds |= {source: "official" for source in by_source if official and source in OFFICIAL}
    kinds |= dict.fromkeys(fixed or {}, "fixed")
    names = [f"{name}-{kind}-{counts[name]}" for name, kind in kinds.items() if kind != "fixed" or counts[name]]
    return replace(splits, test_set="+".join(names))


def by_group(
    examples: Sequence[Example],
    share: float,
    seed: int,
    same_question: Mapping[str, str] | None = None,
    joined: Collection[Pair] = (),
    kept_with: Sequence[Example] = (),
) -> tuple[list[Example], list[Example]]:
    """Return (rest, held) with about `share` of the examples held out in complete groups.

    The groups are stratified by source and decision. Examples of a group share their `group`, their context, a turn or
    (according to `same_questions`) their question, or are one of the pairs in `joined`. A group isn't held out if it is
    connected in this way with one of the examples in `kept_with`; these aren't returned.
    """
    same = same_questions([*examples, *kept_with]) if same_question is None else same_question
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for members in _components(examples, same):
        first = examples[members[0]]
        strata[f"{first.source}/{first.decision}"].append(members)
    # Joining groups doesn't change the order of the others, so most rows stay in their split.
    whole = {members[0]: members for members in _components(examples, same, joined)} if joined else {}
    kept: set[int] = set()
    if kept_with:
        for members in _components([*examples, *kept_with], same, joined):
            kept.update(members if members[-1] >= len(examples) else ())
    held: set[int] = set()
    for name in sorted(strata):
        groups = strata[name]
        random.Random(f"{seed}/{name}").shuffle(groups)
        target, taken = share * sum(map(len, groups)), 0
        for members in groups:
            members = whole.get(members[0], []) if joined else members
            if taken + len(members) / 2 > target or not kept.isdisjoint(members):
                continue  # another group may still fit
            held.update(members)
            taken += len(members)
    return _parted(examples, held)


def by_year(
    examples: Sequence[Example],
    share: float,
    seed: int,
    same_question: Mapping[str, str],
    joined: Collection[Pair],
) -> tuple[list[Example], list[Example]]:
    """Return (rest, held) with the newest groups held out: about `share` of the examples that have a year.

    The year of a group is that of its oldest example; a group in which an example has no year isn't held out. Raises
    DataError if no example has a year.
    """
    dated = sum(isinstance(example.meta.get("year"), int) for example in examples)
    if examples and not dated:
        raise DataError(
            "data.split: newest needs the year of publication, but none of the examples has a year. PubMedQA contains "
            "years. Add a column `year` to your own rows, or use data.split: group."
        )
    groups = []
    for members in _components(examples, same_question, joined):
        years = [year for index in members if isinstance(year := examples[index].meta.get("year"), int)]
        if len(years) == len(members):
            groups.append((min(years), members))
    random.Random(f"{seed}/newest").shuffle(groups)
    groups.sort(key=lambda group: -group[0])
    held: set[int] = set()
    for _, members in groups:
        if len(held) + len(members) / 2 <= share * dated:
            held.update(members)
    return _parted(examples, held)


def official_tests(by_source: Mapping[str, list[Example]], fixed: Container[str] = ()) -> set[str]:
    """Return the ids of the official test items of sources that aren't `fixed`. Raises DataError if any are missing."""
    return {
        example.id
        for source, examples in by_source.items()
        if source in OFFICIAL and source not in fixed
        for example in OFFICIAL[source](examples)[1]
    }


def _parted(examples: Sequence[Example], held_out: Container[int]) -> tuple[list[Example], list[Example]]:
    return (
        [example for index, example in enumerate(examples) if index not in held_out],
        [example for index, example in enumerate(examples) if index in held_out],
    )


def question_key(question: str) -> str:
    """Return a question as lowercase words with single spaces between them."""
    return re.sub(r"\W+", " ", normalized(question)).strip()


def context_key(example: Example) -> str:
    """Return an example's context as lowercase words with single spaces between them."""
    return question_key(example.context_text)


def short_digest(example: Example) -> str:
    """Return 12 hexadecimal digits of a hash of the question and the context, for the ids of rows without their own."""
    return hashlib.sha256(f"{question_key(example.user_text)}\n{context_key(example)}".encode()).hexdigest()[:12]


def instructions(examples: Iterable[Example]) -> set[str]:
    """Return the keys of questions that are asked about more than FEW groups (such as patients) and contexts."""
    asked: dict[str, list[set[Any]]] = defaultdict(lambda: [set(), set()])
    alone = set()
    for example in examples:
        key = question_key(example.user_text)
        if not example.context:
            alone.add(key)
        asked[key][0].add((example.source, example.group))
        asked[key][1].add(example.context)
    return {key for key, traits in asked.items() if key not in alone and min(map(len, traits)) > FEW}


def backgrounds(examples: Sequence[Example]) -> set[str]:
    """Return the keys of contexts that are so common that examples with the same context may be unrelated."""
    counts = Counter(context_key(example) for example in examples)
    return {key for key, count in counts.items() if count > max(FEW, MAX_CONTEXT_SHARE * len(examples))}


def same_questions(examples: Sequence[Example]) -> dict[str, str]:
    """Return question key -> key that represents the question and its light rewrites, or "" for an instruction."""
    general = instructions(examples)
    keys = list(dict.fromkeys(question_key(example.user_text) for example in examples))
    asked = [key for key in keys if key not in general]
    parent = {key: key for key in asked}
    for row, column, _ in near_questions(asked, asked, lenient=True):
        first, second = (_root(parent, asked[index]) for index in (row, column))
        parent[second] = first
    return {key: _root(parent, key) if key in parent else "" for key in keys}


def turn_keys(example: Example, last_only: bool = False) -> list[str]:
    """Return the keys by which the turns of a conversation are recognized elsewhere.

    The key of the first message, or of a long message, is the message itself. A short message is joined with its reply.
    """
    said = [(turn.role, turn.text) for turn in example.turns or ()]
    asked = [*(text for role, text in said if role == "user"), example.question]
    replies = [*(text for role, text in said if role == "assistant"), example.answer]
    keys: list[str] = []
    is_first = True
    for number, (question, reply) in enumerate(zip(asked, replies, strict=False)):
        if is_greeting(question):
            continue
        own = question_key(question)
        is_long = own.count(" ") >= MIN_TURN_WORDS - 1
        if not last_only or number == len(asked) - 1:
            keys += [own] if is_long or is_first else []
            if reply and not is_long:
                both = f"{own} {question_key(reply)}"
                keys += [both] if both.count(" ") >= MIN_TURN_WORDS - 1 else []
        is_first = False
    return keys


def distinctive_turns(examples: Sequence[Example]) -> set[str]:
    """Return the `turn_keys` that occur in at most FEW groups; none if no example has earlier turns."""
    groups: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for example in examples if any(example.turns for example in examples) else ():
        for key in turn_keys(example):
            groups[key].add((example.source, example.group))
    return {key for key, found in groups.items() if len(found) <= FEW}


def _components(
    examples: Sequence[Example], same_question: Mapping[str, str], joined: Collection[Pair] = ()
) -> list[list[int]]:
    """Return lists of indices: `joined` examples, and those that share a group, question, context or turn, are in one.

    A joined example that isn't in `examples` connects nothing.
    """
    parent, general = {index: index for index in range(len(examples))}, backgrounds(examples)
    turns = distinctive_turns(examples)
    seen: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        for key in ((example.source, example.group), *_shared(example, same_question, general, turns)):
            other = seen.setdefault(key, index)
            _unite(parent, index, other)
    at = {example.id: index for index, example in enumerate(examples)} if joined else {}
    for one, two in joined:
        if one in at and two in at:
            _unite(parent, at[one], at[two])
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        members[_root(parent, index)].append(index)
    return list(members.values())


def _shared(
    example: Example, same_question: Mapping[str, str], general: Container[str], turns: Collection[str]
) -> list[tuple[str, str]]:
    """Return the keys that connect an example to examples of any source: its question, its context, and its turns."""
    question, context = same_question[question_key(example.user_text)], context_key(example)
    keys = [("question of", question)] if question else []
    keys += [("turn of", key) for key in turn_keys(example) if key in turns] if turns else []
    is_distinctive = len(context.split()) >= MIN_PASSAGE_WORDS and context not in general
    return [*keys, ("context of", context)] if is_distinctive else keys


def _unite(parent: dict[int, int], one: int, two: int) -> None:
    low, high = sorted((_root(parent, one), _root(parent, two)))
    parent[high] = low


def _root(parent: dict[Any, Any], node: Any) -> Any:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


Sampled = TypeVar("Sampled")


def sample(rows: Sequence[Sampled], count: int | None, seed: str) -> list[Sampled]:
    """Return a random sample of at most `count` rows in their original order, or all rows if `count` is None."""
    if count is None or len(rows) <= count:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]
