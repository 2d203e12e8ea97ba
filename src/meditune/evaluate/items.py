"""Which test items are measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meditune.data.example import Example


def chosen_answers(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """The examples whose long answers are scored: a seeded subset in the original order."""
    able = [example for example in examples if example.answer.strip()]
    if count is None or len(able) <= count:
        return able
    return [able[index] for index in sorted(random.Random(f"{seed}/answers").sample(range(len(able)), count))]
