"""Stored predictions that aren't those of the items to be measured: refused or named, never passed over."""

import pytest

from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.compare import compare
from meditune.evaluate.evaluation_items import coverage_remarks, unmeasured_ids
from meditune.evaluate.metrics import summarise
from meditune.evaluate.predictions import Predictions, read
from meditune.files import write_jsonl

RECIPE = Recipe(name="test")
EXAMPLES = [
    Example(id=f"own:{n}", source="own", question=f"Is it {n}?", answer=f"It is {n}.", decision="yes", group=str(n))
    for n in range(8)
]


def decided(ids, prediction="yes", reference="yes"):
    return [{"id": f"own:{n}", "reference": reference, "prediction": prediction} for n in ids]


def answered(ids, reference="It is {}."):
    return [{"id": f"own:{n}", "reference": reference.format(n), "prediction": "It is."} for n in ids]


def stored(folder, **kinds):
    for kind, rows in kinds.items():
        write_jsonl(folder / f"tuned-{kind}.jsonl", rows)
    return read(folder, "tuned")


def test_whole_predictions_need_no_remark():
    whole = Predictions(decision=decided(range(8)), answer=answered(range(8)))
    assert coverage_remarks(whole, "tuned", EXAMPLES, RECIPE) == []


def test_missing_items_are_named_and_counted():
    said = coverage_remarks(Predictions(decision=decided(range(2, 8))), "tuned", EXAMPLES, RECIPE)
    assert said == [
        "2 of 8 items have no prediction in tuned-decision.jsonl (own:0, own:1); the metrics cover only the others."
    ]


def test_unknown_items_and_other_references_are_refused():
    with pytest.raises(DataError, match=r"tuned-decision\.jsonl: 1 of 9 .*test data \(own:8\)"):
        coverage_remarks(Predictions(decision=decided(range(9))), "tuned", EXAMPLES, RECIPE)
    with pytest.raises(DataError, match=r"base-answer\.jsonl: 8 of 8 predictions have another reference"):
        coverage_remarks(Predictions(answer=answered(range(8), "It was {}.")), "base", EXAMPLES, RECIPE)


def test_an_id_that_comes_twice_or_not_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tuned-decision\.jsonl: 1 ids occur more than once \(own:3\)"):
        stored(tmp_path, decision=decided([1, 3, 3]))
    with pytest.raises(DataError, match=r"1 of 1 rows have no id"):
        stored(tmp_path, decision=[{"reference": "yes", "prediction": "yes"}])


def test_an_empty_reference_is_counted_and_not_scored(tmp_path):
    rows = answered(range(8))
    whole = summarise(Predictions(answer=rows[1:]))
    rows[0]["reference"] = " "
    found = stored(tmp_path, answer=rows)
    assert summarise(found) == whole
    assert coverage_remarks(found, "tuned", EXAMPLES, RECIPE) == [
        "1 answers in tuned-answer.jsonl have an empty reference (own:0) and are left out of the metrics."
    ]


def test_items_with_nothing_to_measure_are_counted():
    bare = EXAMPLES[0].model_copy(update={"answer": " ", "decision": None})
    assert unmeasured_ids(EXAMPLES) == []
    assert unmeasured_ids([bare, *EXAMPLES[1:]]) == [
        "1 of 8 items have neither an answer nor a decision to measure (own:0)."
    ]


def test_the_order_of_rows_means_nothing():
    base = Predictions(decision=decided(range(6), "no") + decided([6, 7]))
    tuned = decided(range(7)) + decided([7], "no")
    forwards, backwards = (compare(base, Predictions(decision=rows), 200, 1) for rows in (tuned, tuned[::-1]))
    assert forwards == backwards
    assert forwards["accuracy"]["delta"] == pytest.approx(100 * 5 / 8)


def test_a_comparison_names_the_items_that_only_one_side_has():
    with pytest.raises(DataError, match=r"1 only in the first \(own:0\), 1 only in the second \(own:7\)"):
        compare(Predictions(decision=decided(range(7))), Predictions(decision=decided(range(1, 8))), 200, 1)
