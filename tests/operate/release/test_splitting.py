"""Where rows go that come again: nothing leaves the place that it had."""

from __future__ import annotations

import pytest

from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.operate.retraining.new_training_data import Shares, deal

WORDS = ("asthma", "angina", "gout", "measles", "scurvy", "rickets", "mumps", "tetanus", "anthrax", "cholera")


def example(number: int, answer: str = "It helps.") -> Example:
    word = f"{WORDS[number % 10]}{WORDS[number // 10]}"
    return Example(
        id=f"own:{number}", source="own", question=f"What of {word}?", answer=f"{word}: {answer}", group=f"g{number}"
    )


@pytest.mark.parametrize("held_out", [0.1, 0.3, 0.8])
def test_a_corrected_row_keeps_its_place_whatever_share_is_held_out(held_out: float) -> None:
    old = Splits(
        [example(number) for number in range(20)],
        [example(number) for number in range(20, 30)],
        [example(number) for number in range(30, 50)],
        "first",
    )
    corrected = [example(number, "It does not help.") for number in range(50)]
    fresh = [example(number) for number in range(50, 90)]
    pool = {each.id: each for each in old.train}
    splits = deal([*corrected, *fresh], old, pool, Shares(held_out), 0).splits
    now = {name: {each.id: each for each in rows} for name, rows in splits.named().items()}
    for name, rows in old.named().items():
        for each in rows:
            assert "not help" in now[name][each.id].answer
