"""Items whose verdict is known, mixed among the others to tell who rates with care."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meditune.data import own
from meditune.data.decisions import KEPT, VERDICTS, Verdict
from meditune.data.example import Example
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.faithfulness.sources import Sentence
from meditune.review.annotate.suspicion import ON_TOPIC, stems

TRIES = 200
"""Other rows that are looked at for an answer that doesn't fit"""
COLUMN = "verdict"


@dataclass(frozen=True)
class Gold:
    """One known item."""

    example: Example
    expected: tuple[Verdict, ...]
    """Verdicts that count as right"""
    kind: Literal["gold", "planted"]


def read_gold(path: Path) -> list[Gold]:
    """Known items of a user's own table, whose column `verdict` holds one verdict, or several with commas between.

    Raises DataError, with the row, where one has no known verdict or can't be read.
    """
    rejects = Rejects()
    found = []
    for example in own.read(path, rejects, source="gold"):
        stated = [part.strip().lower() for part in str(example.meta.get(COLUMN) or "").split(",")]
        expected = tuple(verdict for verdict in VERDICTS if verdict in stated)
        if len(expected) != len(set(stated)):
            raise DataError(
                f"{path}, row {example.id.partition(':')[2]}: {COLUMN} {example.meta.get(COLUMN)!r} isn't made of "
                f"{', '.join(VERDICTS)}."
            )
        found.append(Gold(example, expected, "gold"))
    first = next(rejects.rows(), None)
    if first:
        raise DataError(f"{first['where']}: {first['reason']}.")
    return found


def plant(rows: Sequence[Example], count: int, seed: int) -> list[Gold]:
    """Rows with the answer of another row of their source that shares few of the question's words.

    Any verdict by which a row is dropped counts as right: such an answer is wrong and off-topic, and may be unsafe.
    Raises DataError where there aren't enough rows that differ.
    """
    chance = random.Random(f"{seed}/planted")
    able = [row for row in rows if row.answer]
    planted: list[Gold] = []
    for row in chance.sample(able, len(able)):
        if len(planted) == count:
            break
        asked = Sentence(row.question)
        for other in chance.sample(able, min(TRIES, len(able))):
            alien = other.source == row.source and other.group != row.group and asked.total
            if alien and asked.share_in(stems(other.answer)) < ON_TOPIC / 2:
                wrong = row.model_copy(update={"answer": other.answer})
                planted.append(Gold(wrong, tuple(each for each in VERDICTS if each not in KEPT), "planted"))
                break
    if len(planted) < count:
        raise DataError(
            f"Only {len(planted)} of {count} wrong rows can be planted: the others have no answer that clearly "
            "belongs to another question. Give a smaller --planted, or known items of your own (--gold)."
        )
    return planted
