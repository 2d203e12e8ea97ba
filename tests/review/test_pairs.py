"""Ratings become pairs that preference tuning reads as they are."""

import pytest

from meditune.data.preference import rated_answers
from meditune.data.preference.prepare_pairs import prepare_pairs
from meditune.data.readers.tables import Rejects
from meditune.review.ratings_store import Note, Store
from meditune.review.results import write_pairs
from tests.commands import meditune
from tests.data.preference.test_prepare import recipe, splits
from tests.review.rated import item_of, made, rate
from tests.review.runs import ANSWERS

BEST = {"reference": 1, "tuned": 2, "base": 3}


def said(n, origin):
    return ANSWERS[origin].format(n=n)


def test_the_better_rated_answer_is_preferred_and_the_existing_reader_takes_it(tmp_path):
    folder = made(tmp_path, 4)
    rate(folder, "Ann", lambda _, origin: BEST[origin])
    path = tmp_path / "pairs.jsonl"
    assert write_pairs(folder, path, 1.0, 10).rated == 12
    read = rated_answers.read_given_pairs(path, recipe(), Rejects())
    assert {(pair.chosen, pair.rejected) for pair in read if pair.group == "g2"} == {
        (said(2, "reference"), said(2, "tuned")),
        (said(2, "reference"), said(2, "base")),
        (said(2, "tuned"), said(2, "base")),
    }
    assert all(pair.question == f"Does treatment {pair.group[1:]} help?" for pair in read)
    assert read[0].context[0].label == "METHODS"
    assert len({pair.id for pair in read}) == 12


def test_answers_as_good_as_each_other_make_no_pair(tmp_path):
    folder = made(tmp_path, 2)
    rate(folder, "Ann", lambda _, origin: 1 if origin == "reference" else 2)
    made_of = write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 10)
    read = rated_answers.read_given_pairs(tmp_path / "pairs.jsonl", recipe(), Rejects())
    assert made_of.rated == 4
    assert {pair.chosen for pair in read} == {said(0, "reference"), said(1, "reference")}
    assert write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 1).left_out == {"pairs beyond rated.per_question": 2}


def test_a_corrected_answer_is_preferred_to_what_it_corrects(tmp_path):
    folder = made(tmp_path, 2, tuned={1: ""})
    store = Store(folder)
    ann, bo = (store.rater(name).id for name in ("Ann", "Bo"))
    item, empty = item_of(folder, 0, "tuned"), item_of(folder, 1, "tuned")
    store.save([], [Note(ann, item, "", " It may help some. "), Note(bo, item, "Fine.", said(0, "tuned"))])
    store.save([], [Note(ann, empty, "", "Something.")])
    done = write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 10)
    assert (done.rated, done.corrected) == (0, 1)
    assert done.left_out == {"better answers that change nothing": 1, "better answers to an empty answer": 1}
    (pair,) = rated_answers.read_given_pairs(tmp_path / "pairs.jsonl", recipe(), Rejects())
    assert (pair.chosen, pair.rejected) == ("It may help some.", said(0, "tuned"))


def test_what_isnt_rated_on_every_axis_makes_no_pair(tmp_path):
    folder = made(tmp_path, 2)
    rate(folder, "Ann", lambda _, origin: BEST[origin], only=("helpfulness",))
    meditune("review", "pairs", folder, "-o", tmp_path / "pairs.jsonl").refused(3, "no pair can be made", "--margin")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_run_trains_on_them(tmp_path, capsys):
    folder = made(tmp_path, 12)
    rate(folder, "Ann", lambda _, origin: BEST[origin])
    done = meditune("review", "pairs", folder, "-o", tmp_path / "pairs.jsonl")
    assert done.code == 0
    assert "36 pairs of rated answers, 0 with an answer that a rater wrote." in done.out
    sets = prepare_pairs(recipe(path=str(tmp_path / "pairs.jsonl")), splits(), "hash", tmp_path / "other")
    assert len(sets.train) + len(sets.held_out) == 36
    assert not {pair.group for pair in sets.train} & {pair.group for pair in sets.held_out}


@pytest.mark.parametrize("margin", [0.5, 2.0, 3.9])
def test_the_margin_is_on_a_scale_of_1_to_5(tmp_path, margin):
    folder = made(tmp_path, 1)
    rate(folder, "Ann", lambda _, origin: BEST[origin], only=("helpfulness", "understandability"))
    rate(folder, "Ann", lambda _, __: 1, only=("intent",))
    gaps = [4 / 3, 4 / 3, 8 / 3]
    expected = sum(gap >= margin for gap in gaps)
    if expected:
        assert write_pairs(folder, tmp_path / "pairs.jsonl", margin, 10).rated == expected
    else:
        meditune("review", "pairs", folder, "-o", tmp_path / "p.jsonl", "--margin", margin).refused(3, "too close")
