"""Of several answers the most and the least faithful make a pair; what makes none is counted."""

import pytest

from meditune.config.training_options import SampledSpec
from meditune.data.preference.prepare_pairs import (
    judged,
    paired,
    prepare_pairs,
    stored_pairs,
    usable,
    with_training_pairs,
)
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits
from meditune.errors import DataError
from tests.data.preference.test_corrupt import example
from tests.data.preference.test_prepare import recipe, splits

ONE = example("Pain fell.", 1)


def rows(*texts, of=ONE):
    return [judged(of, text, ended=True) for text in texts]


def test_the_most_and_the_least_faithful_make_a_pair():
    texts = (
        "Pain rose in 9 adults.",
        "Pain fell in 47 adults.",
        "Bananas and pears cure 8 very common colds.",
        "Pain fell in 47 of 120.",
    )
    rejects = Rejects()
    (pair,) = paired([ONE], rows(*texts), SampledSpec(), rejects)
    assert (pair.chosen, pair.rejected) == ("Pain fell in 47 adults.", "Bananas and pears cure 8 very common colds.")
    assert (pair.id, pair.kind, pair.question, pair.context, pair.group) == (
        "test:1/sampled", "sampled", ONE.question, ONE.context, ONE.group,
    )  # fmt: skip
    assert len(rejects) == 0


def test_an_answer_that_was_broken_off_ends_with_its_last_whole_sentence():
    assert judged(ONE, " Pain fell. In 47 of 120 ad", ended=False)["text"] == "Pain fell."
    assert judged(ONE, " Pain fell. In 47 of 120 ad", ended=True)["text"] == "Pain fell. In 47 of 120 ad"
    assert judged(ONE, "Pain fell in 47", ended=False)["text"] == ""


def test_what_makes_no_pair_is_counted():
    alike, none = example("Pain fell.", 2), example("Pain fell.", 3)
    answers = (
        rows("Pain fell.", "Pain fell in 47.", of=alike)
        + rows("", "", of=none)
        + rows("Pain fell.", "Pain rose in 9 adults.")
    )
    rejects = Rejects()
    pairs = paired([ONE, alike, none], answers, SampledSpec(margin=0.5), rejects)
    assert [pair.id for pair in pairs] == ["test:1/sampled"]
    assert rejects.counts()["pairs"] == {
        "answers of the model without a whole sentence": 2,
        "examples whose answers are too equally faithful (sampled.margin)": 1,
        "examples without a whole answer of the model": 1,
    }
    written = rows("Pain fell.", "Pain rose.")
    margin = written[0]["score"] - written[1]["score"]
    assert len(paired([ONE], written, SampledSpec(margin=margin), Rejects())) == 1
    assert not paired([ONE], written, SampledSpec(margin=margin + 0.01), Rejects())


def test_what_the_sources_do_not_bear_out_is_kept_with_an_answer():
    found = judged(ONE, "Pain rose in 9 adults.", ended=True)
    assert found["kinds"] == ["direction", "number"]
    assert found["score"] < judged(ONE, "Pain fell in 47 adults.", ended=True)["score"]


def test_pairs_to_train_on_come_later_and_those_to_measure_on_are_corruptions(tmp_path, capsys):
    asked, parts = recipe(source="sampled"), splits()
    made = prepare_pairs(asked, parts, "hash", tmp_path)
    assert made.train == []
    corrupted = prepare_pairs(recipe(), parts, "hash", tmp_path / "corrupted")
    assert made.held_out == corrupted.held_out
    assert "0 to train on (not written yet)" in capsys.readouterr().err
    train = paired(parts.train, rows("Pain fell.", "Colds.", of=parts.train[0]), SampledSpec(), Rejects())
    rejects = Rejects()
    rejects.count_only("pairs", "why", 5)
    filled = with_training_pairs(tmp_path, train, rejects)
    assert filled == stored_pairs(tmp_path) == prepare_pairs(asked, parts, "hash", tmp_path)
    assert (filled.train, filled.held_out) == (train, made.held_out)
    assert (filled.facts["train"], filled.facts["left_out"]) == ({"sampled": 1}, {"why": 5})


def test_a_file_takes_the_place_of_the_source(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        prepare_pairs(recipe(source="sampled", path="none.jsonl"), splits(), "hash", tmp_path)


def test_without_sources_it_is_refused_before_a_model_is_loaded(tmp_path):
    bare = [example("Drug helps.", number).model_copy(update={"context": ()}) for number in range(9)]
    assert not usable(bare)
    with pytest.raises(DataError, match=r"none of the 3 training examples has a context\. Take source corrupted"):
        prepare_pairs(recipe(source="sampled"), Splits(bare[:3], bare[3:6], bare[6:], "t"), "hash", tmp_path)
