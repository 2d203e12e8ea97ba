"""What the score sees: numbers, words, negations and directions that the sources don't bear out."""

import os
import random
from pathlib import Path

import pytest

from meditune.data import pubmedqa
from meditune.data.example import Passage
from meditune.data.preference.corrupt import corrupt
from meditune.data.preference.faithfulness import faithfulness
from meditune.data.rejects import Rejects

SOURCES = (
    Passage(label="METHODS", text="We gave aspirin or placebo to 1,200 adults. Nobody was followed for long."),
    Passage(label="RESULTS", text="Severe headaches increased in 30 adults. Aspirin did not lower blood pressure."),
)


def of(answer):
    return faithfulness(answer, SOURCES)


@pytest.mark.parametrize(
    ("answer", "numbers", "words", "agreement"),
    [
        ("Severe headaches increased in 30 adults.", 1, 1, 1),
        ("Severe headaches increased in 30.0 adults.", 1, 1, 1),
        ("Severe headaches increased in 31 or 30 adults.", 1 / 2, 1, 1),
        ("Severe headaches decreased in 30 adults.", 1, 3 / 4, 0),
        ("Severe headaches did not increase in 30 adults.", 1, 1, 0),
        ("Aspirin doesn't lower blood pressure.", None, 1, 1),
        ("Aspirin lowers blood pressure.", None, 1, 0),
        ("Aspirin didn't raise blood pressure.", None, 3 / 4, 1),
        ("Aspirin didn't raise blood pressure. Severe headaches decreased.", None, 5 / 7, 1 / 2),
        ("Bananas cure colds.", None, 0, None),
        ("Bananas, adults.", None, 1 / 2, None),
        ("It was not.", None, None, None),
        ("Severe headaches increased in 1,200 adults.", 0, 1, 1),
        ("Placebo was given to 1200 men.", 1, 1 / 3, None),
        ("", None, None, None),
    ],
)  # fmt: skip
def test_each_share(answer, numbers, words, agreement):
    found = of(answer)
    assert found.numbers == (numbers if numbers is None else pytest.approx(numbers))
    assert found.words == (words if words is None else pytest.approx(words))
    assert found.agreement == agreement


def test_the_score_is_the_mean_of_what_can_be_judged():
    assert of("Severe headaches decreased in 31 adults.").score == pytest.approx((0 + 3 / 4 + 0) / 3)
    assert of("Bananas, adults.").score == pytest.approx(1 / 2)
    assert of("").score == 0


def test_without_sources_nothing_is_borne_out():
    assert faithfulness("Aspirin helped 30 adults.", ()).score == 0


REAL = Path(os.environ.get("MEDITUNE_DATA", "nowhere")) / "pubmedqa"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs MEDITUNE_DATA with pubmedqa")
@pytest.mark.parametrize(
    ("kind", "higher", "lower"),
    [("other", 0.99, 0.01), ("direction", 0.38, 0.06), ("number", 0.33, 0.1), ("negation", 0.09, 0.05)],
)
def test_real_conclusions_are_more_often_higher_than_their_corruptions(kind, higher, lower):
    examples, _ = pubmedqa.official_split(pubmedqa.read(REAL, Rejects()))
    differences = [
        faithfulness(example.answer, example.context).score - faithfulness(text, example.context).score
        for example in examples
        if (text := corrupt(kind, example, examples, random.Random(example.id)))
    ]
    assert sum(each > 1e-9 for each in differences) / len(differences) > higher
    assert sum(each < -1e-9 for each in differences) / len(differences) < lower
