"""Train, development and test: nothing that belongs together straddles them."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meditune.data.example import Example
from meditune.data.near_duplicates import LEAST_WORDS, near_questions
from meditune.data.readers import liveqa, pubmedqa
from meditune.errors import DataError

OFFICIAL = {"pubmedqa": pubmedqa.official_split, "liveqa": liveqa.official_split}
"""Sources whose publisher names the test set."""
FEW = 3
"""A question that is put to more groups, each with its own context, is an instruction."""
MOST = 0.2
"""A context that a larger share of the examples has is their background."""


@dataclass(frozen=True)
class Splits:
    """Disjoint by group and by question."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    test_set: str
    """What the test set is called in reports ("pubmedqa-official-500")."""

    def measured(self, split: str) -> list[Example]:
        """The examples that a recipe's `evaluate.split` asks for."""
        return self.named()[split]

    def measured_name(self, split: str) -> str:
        """What those are called in reports."""
        return self.test_set if split == "test" else f"dev-{len(self.dev)}"

    def named(self) -> dict[str, list[Example]]:
        """The three by name."""
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
    traits: Sequence[str] = ("source", "decision"),
    whole: dict[str, list[Example]] | None = None,
) -> Splits:
    """Split each source: by its publisher's test set where there is one and `official` asks for it, else by group.

    With `newest` the test is what was published last. `whole` are the rows as they were read, by which publishers name
    their test sets, where quality control left some out since. Groups are stratified by the `traits`.

    A question or context that an official set holds is kept for training wherever else it turns up, so that it can
    only leak, and be refused (leakage.py), or do no harm. The development set is taken from what isn't test, by group,
    stratified by source and decision; with `fold` it is that one of PubMedQA's published folds and nothing else.
    Raises DataError where a split is empty.
    """
    rest: list[Example] = []
    test: list[Example] = []
    free: list[Example] = []
    read = by_source if whole is None else whole
    for source, examples in by_source.items():
        if official and source in OFFICIAL:
            there = {example.id: example for example in examples}
            kept, held = OFFICIAL[source](read[source])
            rest += [there[example.id] for example in kept if example.id in there]
            test += [there[example.id] for example in held if example.id in there]
        else:
            free += examples
    same, general = same_questions([*rest, *test, *free]), backgrounds([*rest, *test, *free])
    known = {key for example in (*rest, *test) for key in _shared(example, same, general)}
    new = [not known.intersection(_shared(example, same, general)) for example in free]
    rest += [example for example, is_new in zip(free, new, strict=True) if not is_new]
    unseen = [example for example, is_new in zip(free, new, strict=True) if is_new]
    kept, held = by_year(unseen, test_share, seed, same) if newest else by_group(unseen, test_share, seed, same, traits)
    rest += kept
    test += held
    train, dev = by_group(rest, dev_share, seed + 1, same, traits) if fold is None else _fold(read, rest, fold)
    for name, examples in (("train", train), ("dev", dev), ("test", test)):
        if not examples:
            raise DataError(
                f"The {name} split is empty: {len(rest)} examples to train on and {len(test)} to test on are left "
                "after the checks. Give more examples, or change data.dev_share and data.test_share."
            )
    counts = Counter(example.source for example in test)
    other = "newest" if newest else "group"
    kinds = {source: "official" if official and source in OFFICIAL else other for source in by_source}
    return Splits(train, dev, test, "+".join(f"{name}-{kind}-{counts[name]}" for name, kind in kinds.items()))


def by_group(
    examples: Sequence[Example],
    share: float,
    seed: int,
    same: Mapping[str, str] | None = None,
    traits: Sequence[str] = ("source", "decision"),
) -> tuple[list[Example], list[Example]]:
    """(rest, held): about `share` of the examples held, whole groups at a time, stratified by the `traits`.

    Examples with the same group, the same context, or the same question or nearly, are one group; `same` is what
    `same_questions` says of them. Each stratum's groups are shuffled with the seed.
    """
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for members in _components(examples, same_questions(examples) if same is None else same):
        strata["/".join(_trait(examples[members[0]], trait) for trait in traits)].append(members)
    held: set[int] = set()
    for name in sorted(strata):
        groups = strata[name]
        random.Random(f"{seed}/{name}").shuffle(groups)
        wanted, taken = share * sum(map(len, groups)), 0
        for members in groups:
            if taken + len(members) / 2 > wanted:
                continue  # a smaller group may still fit
            held.update(members)
            taken += len(members)
    return _parted(examples, held)


def by_year(
    examples: Sequence[Example], share: float, seed: int, same: Mapping[str, str] | None = None
) -> tuple[list[Example], list[Example]]:
    """(rest, held): the newest groups held, up to about `share` of the examples that have a year.

    A group is as old as its oldest example, so nothing held has been published before that; those without a year aren't
    held. Of the last year that is reached, groups are chosen with the seed. Raises DataError where no example has a
    year.
    """
    dated = sum(isinstance(example.meta.get("year"), int) for example in examples)
    if examples and not dated:
        raise DataError(
            "data.split: newest needs the year of publication, which none of the examples has. PubMedQA has it; give "
            "your own rows a column `year`, or take data.split: group."
        )
    groups = []
    for members in _components(examples, same_questions(examples) if same is None else same):
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


def official_tests(by_source: Mapping[str, list[Example]]) -> set[str]:
    """Ids of the test items that publishers name. Raises DataError where the rows don't hold them all."""
    return {
        example.id
        for source, examples in by_source.items()
        if source in OFFICIAL
        for example in OFFICIAL[source](examples)[1]
    }


def _parted(examples: Sequence[Example], held: Container[int]) -> tuple[list[Example], list[Example]]:
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [example for index, example in enumerate(examples) if index in held],
    )


def _trait(example: Example, trait: str) -> str:
    """What an example has of `source`, `decision` or `question_type`, in words."""
    value = example.meta.get(trait) if trait == "question_type" else getattr(example, trait)
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _fold(read: dict[str, list[Example]], rest: Sequence[Example], fold: int) -> tuple[list[Example], list[Example]]:
    """(train, dev) with the published fold as dev."""
    chosen = {example.id for example in pubmedqa.official_folds(read[pubmedqa.SOURCE])[fold]}
    train = [example for example in rest if example.id not in chosen]
    return train, [example for example in rest if example.id in chosen]


def question_key(question: str) -> str:
    """A question without case, punctuation and spacing."""
    return re.sub(r"\W+", " ", question.casefold()).strip()


def context_key(example: Example) -> str:
    """An example's context without case, punctuation and spacing."""
    return question_key(" ".join(passage.text for passage in example.context))


def instructions(examples: Iterable[Example]) -> set[str]:
    """Keys of questions that are put to more than a few groups, each with a context of its own.

    "What is the diagnosis at discharge?" asks something else of every patient. So it is no sign that two items are the
    same.
    """
    asked: dict[str, list[set[Any]]] = defaultdict(lambda: [set(), set()])
    alone = set()
    for example in examples:
        key = question_key(example.question)
        if not example.context:
            alone.add(key)
        asked[key][0].add((example.source, example.group))
        asked[key][1].add(example.context)
    return {key for key, traits in asked.items() if key not in alone and min(map(len, traits)) > FEW}


def backgrounds(examples: Sequence[Example]) -> set[str]:
    """Keys of contexts that so many examples have that they are no sign that two items are the same."""
    counts = Counter(context_key(example) for example in examples)
    return {key for key, count in counts.items() if count > max(FEW, MOST * len(examples))}


def same_questions(examples: Sequence[Example]) -> dict[str, str]:
    """Each question's key -> the key that stands for it and its light rewrites; empty for an instruction."""
    general = instructions(examples)
    keys = list(dict.fromkeys(question_key(example.question) for example in examples))
    asked = [key for key in keys if key not in general]
    parent = {key: key for key in asked}
    for row, column, _ in near_questions(asked, asked, loosely=True):
        first, second = (_root(parent, asked[index]) for index in (row, column))
        parent[second] = first
    return {key: _root(parent, key) if key in parent else "" for key in keys}


def _components(examples: Sequence[Example], same: Mapping[str, str]) -> list[list[int]]:
    """Indices of examples that hang together through what they share, in order of first appearance."""
    parent, general = {index: index for index in range(len(examples))}, backgrounds(examples)
    seen: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        for key in ((example.source, example.group), *_shared(example, same, general)):
            other = seen.setdefault(key, index)
            low, high = sorted((_root(parent, index), _root(parent, other)))
            parent[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        members[_root(parent, index)].append(index)
    return list(members.values())


def _shared(example: Example, same: Mapping[str, str], general: Container[str]) -> list[tuple[str, str]]:
    """What an example has in common with others of any source: its question, and its context if it isn't short."""
    question, context = same[question_key(example.question)], context_key(example)
    kept = [("question of", question)] if question else []
    is_telling = len(context.split()) >= LEAST_WORDS and context not in general
    return [*kept, ("context of", context)] if is_telling else kept


def _root(parent: dict[Any, Any], node: Any) -> Any:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
