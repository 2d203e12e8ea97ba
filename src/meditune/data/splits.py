"""Train, development and test: nothing that belongs together straddles them."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.data import liveqa, pubmedqa
from meditune.data.example import Example
from meditune.errors import DataError

OFFICIAL = {"pubmedqa": pubmedqa.official_split, "liveqa": liveqa.official_split}
"""Sources whose publisher names the test set."""


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
) -> Splits:
    """Split each source: by its publisher's test set where there is one and `official` asks for it, else by group.

    A question that an official set holds is kept for training wherever else it turns up, so that it can only leak, and
    be refused, or do no harm. The development set is taken from what isn't test, by group, stratified by source and
    decision; with `fold` it is that one of PubMedQA's published folds and nothing else. Raises DataError where a test
    item (its group or its question) would also be trained on.
    """
    rest: list[Example] = []
    test: list[Example] = []
    free: list[Example] = []
    for source, examples in by_source.items():
        if official and source in OFFICIAL:
            kept, held = OFFICIAL[source](examples)
            rest += kept
            test += held
        else:
            free += examples
    known = {question_key(example.question) for example in (*rest, *test)}
    rest += [example for example in free if question_key(example.question) in known]
    kept, held = by_group([e for e in free if question_key(e.question) not in known], test_share, seed)
    rest += kept
    test += held
    refuse_leakage(rest, test)
    train, dev = by_group(rest, dev_share, seed + 1) if fold is None else _fold(by_source, rest, fold)
    for name, examples in (("train", train), ("dev", dev), ("test", test)):
        if not examples:
            raise DataError(
                f"The {name} split is empty: {len(rest)} examples to train on and {len(test)} to test on are left "
                "after the checks. Give more examples, or change data.dev_share and data.test_share."
            )
    counts = Counter(example.source for example in test)
    kinds = {source: "official" if official and source in OFFICIAL else "group" for source in by_source}
    return Splits(train, dev, test, "+".join(f"{name}-{kind}-{counts[name]}" for name, kind in kinds.items()))


def by_group(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(rest, held): about `share` of the examples held, whole groups at a time, stratified by source and decision.

    Examples with the same group or the same question are one group. Each stratum's groups are shuffled with the seed.
    """
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for members in _components(examples):
        first = examples[members[0]]
        strata[f"{first.source}/{first.decision}"].append(members)
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
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [example for index, example in enumerate(examples) if index in held],
    )


def _fold(
    by_source: dict[str, list[Example]], rest: Sequence[Example], fold: int
) -> tuple[list[Example], list[Example]]:
    """(train, dev) with the published fold as dev. Raises DataError where something else asks what the fold asks."""
    chosen = {example.id for example in pubmedqa.official_folds(by_source[pubmedqa.SOURCE])[fold]}
    train = [example for example in rest if example.id not in chosen]
    dev = [example for example in rest if example.id in chosen]
    refuse_leakage(train, dev)
    return train, dev


def refuse_leakage(train: Sequence[Example], test: Sequence[Example]) -> None:
    """Raise DataError where an item of `train` has the group or the question of a test item."""
    groups = {(example.source, example.group): example.id for example in test}
    questions = {question_key(example.question): example.id for example in test}
    leaks = []
    for example in train:
        twin = groups.get((example.source, example.group)) or questions.get(question_key(example.question))
        if twin:
            leaks.append(f"{example.id} = {twin}")
    if leaks:
        more = f" and {len(leaks) - 5} more" if len(leaks) > 5 else ""
        raise DataError(
            f"Leakage: {len(leaks)} training items are also test items ({', '.join(leaks[:5])}{more}; training item = "
            "test item). Take them out of the training source; a model tested on what it was shown proves nothing."
        )


def question_key(question: str) -> str:
    """A question without case, punctuation and spacing."""
    return re.sub(r"\W+", " ", question.casefold()).strip()


def _components(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of examples that hang together through a group or a question, in order of first appearance."""
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        for key in ((example.source, example.group), ("", question_key(example.question))):
            other = seen.setdefault(key, index)
            low, high = sorted((root(index), root(other)))
            parent[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        members[root(index)].append(index)
    return list(members.values())
