"""Each corruption changes one thing and leaves the rest of the answer alone."""

import random
from collections import Counter

import pytest

from meditune.config.training_options import PreferenceSpec
from meditune.data.example import Example, Passage
from meditune.data.preference.pairs import build, corrupt
from meditune.evidence.words import OPPOSITE


def example(answer, number=0, context="Pain fell in 47 of 120 adults."):
    return Example(
        id=f"test:{number}",
        source="test",
        question=f"Does drug {number} help?",
        context=(Passage(text=context),),
        answer=answer,
        group=f"g{number}",
    )


def corrupted(kind, answer, seed=0, **changes):
    others = [example("Exercise is safe.", 1), example("Sleep helps.", 2)]
    return corrupt(kind, example(answer, **changes), others, random.Random(seed))


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("number", "Pain fell in 30 adults.", {"Pain fell in 47 adults.", "Pain fell in 120 adults."}),
        ("number", "The risk was 1,200 times 0.5.", {"The risk was 47 times 0.5.", "The risk was 120 times 0.5."}),
        ("number", "COX-2 and p53 are no numbers.", {None}),
        ("negation", "The drug does not help.", {"The drug does help."}),
        ("negation", "It doesn't help.", {"It does help."}),
        ("negation", "It cannot and it can't help.", {"It can and it can't help.", "It cannot and it can help."}),
        ("negation", "No benefit was seen.", {"Some benefit was seen."}),
        ("negation", "The drug is safe.", {"The drug is not safe."}),
        ("negation", "It can help.", {"It cannot help."}),
        ("negation", "Exercise helps.", {None}),
        ("direction", "Higher dose, better sleep.", {"Lower dose, better sleep.", "Higher dose, worse sleep."}),
        ("direction", "Sleep was measured.", {None}),
        ("other", "The drug is safe.", {"Exercise is safe.", "Sleep helps."}),
    ],
)  # fmt: skip
def test_what_is_changed(kind, answer, expected):
    found = {corrupted(kind, answer, seed) for seed in range(20)}
    if "1,200" in answer:
        found = {text for text in found if text.endswith("0.5.")}
    assert found == expected


def test_a_lone_number_is_multiplied_and_keeps_its_decimals():
    found = {corrupted("number", "It cost 0.50 a day.", seed, context="None.") for seed in range(20)}
    assert found == {"It cost 1.00 a day.", "It cost 1.50 a day."}


def test_another_answer_says_something_else_and_is_of_another_group():
    same = [example("The drug is SAFE.", 1), example("Sleep helps.", 0)]
    assert corrupt("other", example("The drug is safe."), same, random.Random(0)) is None


def test_every_direction_has_one_opposite():
    assert all(OPPOSITE[other] == word and other != word for word, other in OPPOSITE.items())


ANSWERS = ["The drug is not safe in 30 adults.", "Pain was higher.", "Exercise helps.", "", "Sleep is better in 12."]


def test_pairs_are_seeded_and_their_kinds_even():
    many = [example(f"{ANSWERS[n % 5]} {'abcde'[n % 5]}" if ANSWERS[n % 5] else "", n) for n in range(50)]
    pairs, barren = build(many, PreferenceSpec(), seed=1)
    assert (pairs, barren) == build(many, PreferenceSpec(), seed=1)
    assert pairs != build(many, PreferenceSpec(), seed=2)[0]
    assert barren == 0
    assert len(pairs) == 40
    assert len({pair.id for pair in pairs}) == 40
    counts = Counter(pair.kind for pair in pairs)
    assert set(counts) == {"number", "negation", "direction", "other"}
    assert min(counts.values()) >= 8
    assert all(pair.chosen != pair.rejected for pair in pairs)
    twice, _ = build(many, PreferenceSpec(per_example=2), seed=1)
    assert len(twice) > 60
    assert max(Counter((pair.question, pair.kind) for pair in twice).values()) == 1
    only, barren = build(many, PreferenceSpec(corruptions=["number"]), seed=1)
    assert {pair.kind for pair in only} == {"number"}
    assert barren == 20
