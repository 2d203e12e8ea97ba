"""New rows among the old ones: what is learnt, what is held out for good, and what is rehearsed of the old data.

A version's splits are those of its parent and the new rows'. Once held out, always held out: a row's place follows from
a hash of its group, so it is the same in every retraining, and a row that comes again keeps the place that it had.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from meditune.data import leakage
from meditune.data.decisions import apply, fingerprint
from meditune.data.example import Example
from meditune.data.prepare import stored
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.recipe import Incomplete
from meditune.registry.registry import Registry

Place = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Shares:
    """How new rows are dealt."""

    held_out: float = 0.3
    """Of the new rows' groups, to measure on"""
    dev: float = 0.1
    replay: float = 1.0
    """Old training rows for each new one; all of them where there are fewer"""


class TooFewError(DataError):
    """Too little that is new to be worth a training."""


@dataclass
class Dealt:
    """The splits of the next version, and which of the items that are held out are new."""

    splits: Splits
    new: frozenset[str]
    """Ids of the dev and test items that came with this retraining"""
    learnt: int
    """New rows that are trained on"""
    replayed: int
    left_out: Counter[str] = field(default_factory=Counter)
    decided: dict[str, Any] = field(default_factory=dict)


def known_rows(registry: Registry, id: str) -> dict[str, Example]:
    """Every training row of a version and of all it came from, by id; a later version's row counts."""
    found: dict[str, Example] = {}
    for parent in registry.get(id).parents:
        found |= known_rows(registry, parent)
    return found | {example.id: example for example in stored(registry.place(id) / "data").splits.train}


def deal(
    rows: Sequence[Example],
    old: Splits,
    pool: dict[str, Example],
    shares: Shares,
    seed: int,
    decisions: Path | None = None,
    incomplete: Incomplete = "keep",
    least: int = 0,
) -> Dealt:
    """The new rows dealt among the old splits; `pool` are all training rows that the current version learnt.

    What reads like a held-out item isn't trained on, and what reads like a row that was trained on isn't held out.
    Raises TooFewError where fewer rows than `least` are new, or none can be learnt or measured on.
    """
    left_out: Counter[str] = Counter()
    seen = {fingerprint(example) for example in (*pool.values(), *old.dev, *old.test)}
    fresh = [example for example in rows if fingerprint(example) not in seen]
    left_out["known before"] += len(rows) - len(fresh)
    if len(fresh) < least:
        raise TooFewError(f"{len(fresh):,} of {len(rows):,} rows are new, and {least:,} are wanted (--least).")
    dealt: dict[Place, list[Example]] = {"train": [], "dev": [], "test": []}
    had: dict[str, Place] = {
        **dict.fromkeys(pool, "train"),
        **{example.id: "dev" for example in old.dev},
        **{example.id: "test" for example in old.test},
    }
    for example in fresh:
        dealt[had.get(example.id) or place_of(example.group, shares)].append(example)
    changed = {example.id for example in fresh}
    kept = {
        "dev": [example for example in old.dev if example.id not in changed],
        "test": [example for example in old.test if example.id not in changed],
    }
    test = _unlike(dealt["test"], [*pool.values(), *kept["dev"]], left_out, "held out, but like a row learnt before")
    measured = [*kept["test"], *test]
    dev = _unlike(dealt["dev"], measured, left_out, "for development, but like a test item")
    learnt = _unlike(dealt["train"], [*measured, *kept["dev"], *dev], left_out, "like an item that is held out")
    left_out = +left_out
    if not learnt or not test:
        raise TooFewError(
            f"{len(fresh)} new rows leave {len(learnt)} to learn and {len(test)} to measure on ("
            + (", ".join(f"{count} {why}" for why, count in left_out.items()) or "none was left out")
            + "). Gather more before retraining."
        )
    old_rows = [example for id, example in sorted(pool.items()) if id not in changed]
    shown = Splits(old_rows, kept["dev"], kept["test"], old.test_set)
    shown, applied = apply(str(decisions) if decisions else None, incomplete, shown)
    replayed = rehearsed(shown.train, round(shares.replay * len(learnt)), seed)
    name = f"{old.test_set}+new-{len(test)}"
    splits = Splits([*replayed, *learnt], [*shown.dev, *dev], measured, name)
    new = frozenset(example.id for example in (*dev, *test))
    return Dealt(splits, new, len(learnt), len(replayed), left_out, applied.facts)


def place_of(group: str, shares: Shares) -> Place:
    """Where rows of a group go, by a hash of its name."""
    at = int.from_bytes(hashlib.sha256(f"release/{group}".encode()).digest()[:8], "big") / 2**64
    if at < shares.held_out:
        return "test"
    return "dev" if at < shares.held_out + shares.dev else "train"


def rehearsed(rows: Sequence[Example], count: int, seed: int) -> list[Example]:
    """A seeded sample of old rows in their order; all of them where there are fewer."""
    if count >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(random.Random(f"{seed}/replay").sample(range(len(rows)), count))]


def _unlike(rows: list[Example], others: Iterable[Example], left_out: Counter[str], why: str) -> list[Example]:
    """The rows without those that ask or hold what one of the others does, word for word or nearly."""
    against = list(others)
    while gone := {leak.train for leak in leakage.find(rows, against) if leak.kind in ("group", "question", "context")}:
        left_out[why] += len(gone)
        rows = [example for example in rows if example.id not in gone]
    return rows
