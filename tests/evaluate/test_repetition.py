"""Answers that repeat themselves are counted, and those that only use a word often aren't."""

import pytest

from meditune.evaluate.compare import compare
from meditune.evaluate.metrics import summarise
from meditune.evaluate.metrics.text_overlap import loops, repeated
from meditune.evaluate.predictions import Predictions

PLAIN = "The drug eased pain in adults, and no harm was seen in children over the whole year."


def test_repeated_four_word_sequences_are_counted():
    assert repeated(PLAIN) == 0
    assert repeated("It helps with pain. It helps with pain. It helps with pain.") == pytest.approx(5 / 9)
    assert repeated("IT helps WITH pain. it Helps with pain.") == pytest.approx(1 / 5)
    assert repeated("yes yes yes") == repeated("") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, False),
        ("", False),
        ("no no no", False),
        ("no " * 8, True),
        ("It helps with pain. " * 2, False),
        ("It helps with pain. " * 3, True),
        (PLAIN + " and it helps" * 4, True),
        (PLAIN + " and it helps" * 3 + " " + PLAIN, True),
        (f"{PLAIN} " * 3, True),
        (f"{PLAIN} {PLAIN} The drug eased", False),
    ],
)
def test_a_loop_is_a_phrase_three_times_in_a_row(text, expected):
    assert loops(text) is expected


def test_an_answers_share_counts_the_same_whatever_its_length():
    rows = [
        {"id": "a", "reference": "x", "prediction": "It helps. " * 40},
        {"id": "b", "reference": "x", "prediction": PLAIN},
    ]
    figures = summarise(Predictions(answer=rows))
    assert figures["answer_repetition"] == pytest.approx(100 * (1 - 2 / 77) / 2)
    assert figures["answer_loops"] == 50


def test_an_answer_that_leaves_its_loop_is_gained():
    stuck, free = ([{"id": "a", "reference": "x", "prediction": said}] for said in ("It helps. " * 9, PLAIN))
    row = compare(Predictions(answer=stuck), Predictions(answer=free), 100, 1)["answer_loops"]
    assert (row["delta"], row["gained"], row["lost"]) == (-100, 1, 0)
