"""Rebalancing of training data, and the answer styles plain and expert (conditional training, arXiv:1909.05858)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from meditune.config.data_options import BalanceSpec, DataSpec, Style
from meditune.data.diversity import BY_NAME, grade
from meditune.data.example import STYLE, Example
from meditune.data.quality.ledger import Entry
from meditune.data.splits import Splits
from meditune.errors import DataError

MAX_GRADE = "data.max_reading_grade"
BALANCE = "data.balance"


def rebalanced(train: Sequence[Example], spec: DataSpec, seed: int) -> tuple[list[Example], list[Entry]]:
    """Return the training examples that the recipe's rules keep, in order, and the ledger entries of the changes.

    Rows in `quality.keep` always stay. Raises DataError if no rows are left.
    """
    remaining, changes = _readable(train, spec.max_reading_grade, spec.quality.keep)
    if spec.balance.cap is not None:
        remaining, further = _capped(remaining, spec.balance, spec.balance.cap, seed, spec.quality.keep)
        changes += further
    if train and not remaining:
        grades = [found for example in train if example.answer and (found := grade(example.answer)) is not None]
        easiest = (
            f": the easiest answer has reading grade {min(grades):.1f}" if grades and spec.max_reading_grade else ""
        )
        raise DataError(
            f"{' and '.join(dict.fromkeys(entry.rule for entry in changes))} leave none of the {len(train):,} "
            f"training examples. Loosen these limits{easiest}."
        )
    return remaining, changes


def counted(before: int, after: int, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the numbers of training examples before and after, and of examples that each rule affected, by source."""
    rules: dict[str, dict[str, int]] = {}
    for entry in entries:
        by_source = rules.setdefault(f"{entry.rule}: {'answer removed' if entry.after else 'dropped'}", {})
        by_source[entry.before.source] = by_source.get(entry.before.source, 0) + 1
    return {"before": before, "after": after, "rules": rules}


def _readable(
    train: Sequence[Example], max_grade: float | None, protected: Container[str]
) -> tuple[list[Example], list[Entry]]:
    """Return the examples after removing answers with a reading grade above `max_grade`, and the ledger entries.

    An example with a decision stays without its answer; other examples are dropped together with the answer.
    """
    if max_grade is None:
        return list(train), []
    remaining, changes = [], []
    for example in train:
        found = grade(example.answer) if example.answer else None
        if found is None or found <= max_grade or example.id in protected:
            remaining.append(example)
            continue
        without_answer = example.model_copy(update={"answer": ""}) if example.decision else None
        remaining += [without_answer] if without_answer else []
        detail = f"reading grade {found:.1f}, above {max_grade:g}"
        changes.append(Entry(MAX_GRADE, "mend" if without_answer else "drop", example, without_answer, detail))
    return remaining, changes


def _capped(
    train: Sequence[Example], spec: BalanceSpec, cap: int, seed: int, protected: Container[str]
) -> tuple[list[Example], list[Entry]]:
    """Return the examples after dropping seeded random rows from groups above the cap, and the ledger entries.

    Rows without a group stay.
    """
    dimension = BY_NAME[str(spec.by)]
    groups = [
        sorted(dimension.groups(example)) if not spec.sources or example.source in spec.sources else []
        for example in train
    ]
    counts = Counter(group for each in groups for group in each)
    room = dict.fromkeys(counts, cap)
    order = list(range(len(train)))
    random.Random(f"{seed}/balance").shuffle(order)
    dropped = {}
    for index in order:
        full = [group for group in groups[index] if room[group] <= 0]
        if full and train[index].id not in protected:
            dropped[index] = full[0]
        else:
            for group in groups[index]:
                room[group] -= 1
    changes = []
    for index, group in sorted(dropped.items()):
        detail = f"{spec.by} {group} has {counts[group]:,} examples, more than {cap:,}"
        changes.append(Entry(BALANCE, "drop", train[index], None, detail))
    return [example for index, example in enumerate(train) if index not in dropped], changes


def mark_plain_style(splits: Splits, spec: DataSpec) -> Splits:
    """Return the splits with the style of each row in its meta, if the row is from a source with two styles.

    Evaluation items from such sources always have the style plain.
    """
    names = {source.name for source in spec.sources if source.style == "plain"}
    if not names:
        return splits

    def marked(example: Example, measured: bool) -> Example:
        if example.source not in names:
            return example
        found = None if measured else grade(example.answer)
        is_plain = measured or (found is not None and found <= spec.plain_grade)
        return in_style(example, "plain" if is_plain else "expert")

    parts: dict[str, Any] = {
        name: [marked(each, name != "train") for each in rows] for name, rows in splits.named().items()
    }
    return replace(splits, **parts)


def in_style(example: Example, style: Style) -> Example:
    """Return the example marked with this style."""
    return example.model_copy(update={"meta": {**example.meta, STYLE: style}})


def count_styles(splits: Splits) -> dict[str, dict[str, int]]:
    """Return the number of examples by split and style; empty if no source has two styles."""
    found = {name: Counter(each.style for each in examples if each.style) for name, examples in splits.named().items()}
    return {name: dict(sorted(counts.items())) for name, counts in found.items()} if any(found.values()) else {}
