"""Rated answers: which two make a pair, which don't, and that nothing is left out uncounted."""

import json
from collections import Counter

import pytest

from meditune.data.preference import rated_answers
from meditune.data.preference.prepare_pairs import prepare_pairs
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from tests.commands import jsonl
from tests.data.preference.test_prepare import recipe, splits


def rated(question, *ratings, **more):
    """Rows about one question, whose answers are called after their ratings."""
    return [
        {"question": question, "answer": f"{question} {number}: {rating}.", "rating": rating} | more
        for number, rating in enumerate(ratings)
    ]


def pairs_of(tmp_path, rows, seed=17, fields=None, **options):
    """(pairs, how many were left out for each reason)."""
    path = jsonl(tmp_path / "ratings.jsonl", rows)
    rejects = Rejects()
    asked = recipe(rated=options, fields=fields or {}).model_copy(update={"seed": seed})
    return rated_answers.read_given_pairs(path, asked, rejects), rejects.counts().get("pairs", {})


def scores(pairs):
    return sorted((float(pair.chosen.split()[-1][:-1]), float(pair.rejected.split()[-1][:-1])) for pair in pairs)


@pytest.mark.parametrize(
    ("ratings", "margin", "expected"),
    [
        ((1, 4), 1, [(4, 1)]),
        ((2, 2), 1, []),
        ((4, 3.5), 1, []),
        ((4, 3.5), 0.5, [(4, 3.5)]),
        ((1, 2, 3), 1, [(2, 1), (3, 1), (3, 2)]),
        ((1, 2, 3), 2, [(3, 1)]),
        ((3, 1, 1), 1, [(3, 1), (3, 1)]),
        ((0.1, 0.3), 0.2, [(0.3, 0.1)]),
    ],
)  # fmt: skip
def test_the_higher_rated_is_preferred_where_they_are_far_enough_apart(tmp_path, ratings, margin, expected):
    rows = rated("Q?", *ratings) + rated("Other?", 1, 100)
    pairs, _ = pairs_of(tmp_path, rows, margin=margin)
    assert scores(pair for pair in pairs if pair.question == "Q?") == expected
    assert {pair.kind for pair in pairs} == {"rated"}


def test_only_answers_to_the_same_question_context_and_group_are_compared(tmp_path):
    rows = rated("Does it HELP?", 1) + rated("does it help", 3)
    rows += rated("Which?", 1, context="In adults.") + rated("Which?", 3, context="In children.")
    rows += rated("Why?", 1, group="a") + rated("Why?", 3, group="b")
    pairs, left_out = pairs_of(tmp_path, rows)
    assert [(pair.question, pair.chosen, pair.rejected) for pair in pairs] == [
        ("does it help", "does it help 0: 3.", "Does it HELP? 0: 1.")
    ]
    assert left_out == {"answers without another to the same question, context and group": 4}


def test_an_answer_rated_twice_has_the_mean_of_its_ratings(tmp_path):
    rows = [{"answer_id": name, "question": "Q?", "answer": f"{name}!", "rating": r} for name, r in
            (("a", 1), ("a", 4), ("b", 3), ("c", 1.4))]  # fmt: skip
    pairs, left_out = pairs_of(tmp_path, rows)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [
        ("pairs:a>c", "a!", "c!"),
        ("pairs:b>c", "b!", "c!"),
    ]
    assert left_out == {"further ratings of the same answer, averaged with its first": 1}


def test_a_questions_pairs_are_a_seeded_choice_and_the_rest_is_counted(tmp_path):
    rows = rated("Q?", *range(8)) + rated("R?", 1, 2)
    pairs, left_out = pairs_of(tmp_path, rows, per_question=5)
    assert Counter(pair.question for pair in pairs) == {"Q?": 5, "R?": 1}
    assert left_out == {"pairs beyond rated.per_question": 28 - 5}
    assert pairs == pairs_of(tmp_path, rows, per_question=5)[0]
    others = [pairs_of(tmp_path, rows, seed, per_question=5)[0] for seed in range(40)]
    every, _ = pairs_of(tmp_path, rows, per_question=99)
    assert len(every) == 29
    assert {pair.id for each in others for pair in each} == {pair.id for pair in every}


def test_what_cant_be_used_is_counted_with_its_reason(tmp_path):
    rows = [
        *rated("Q?", 1, 1.5, 1.2),
        *rated("R?", 1, 3, 2.5),
        {"question": "Q?", "answer": "No number.", "rating": "good"},
        {"question": "Q?", "answer": "Not finite.", "rating": "nan"},
        {"question": "Q?", "answer": "", "rating": 1},
        {"question": "", "answer": "What?", "rating": 1},
        {"question": "Q?", "answer": "One.", "rating": 1, "id": "one"},
        {"question": "Q?", "answer": "Two.", "rating": 1, "id": "one"},
    ]
    pairs, left_out = pairs_of(tmp_path, rows)
    assert len(pairs) == 2
    assert left_out == {
        "answers rated too close to all others of their question (rated.margin)": 4,
        "no rating (or one that isn't a number)": 2,
        "no answer (or one that isn't text)": 1,
        "no question": 1,
        "id of another answer": 1,
    }


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "json"])
def test_formats_and_columns_with_other_names(tmp_path, ending):
    rows = [
        {"question_id": 7, "Query": "Why?", "text": "So.", "SCORE": "4"},
        {"question_id": 7, "Query": "Why?", "text": "No.", "SCORE": "1"},
    ]
    path = tmp_path / f"ratings.{ending}"
    if ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        mark = "," if ending == "csv" else "\t"
        path.write_text("\n".join(mark.join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))))
    (pair,) = rated_answers.read_given_pairs(path, recipe(fields={"answer": "text"}), Rejects())
    assert (pair.question, pair.chosen, pair.rejected, pair.group) == ("Why?", "So.", "No.", "7")


def test_a_file_with_both_is_one_of_pairs(tmp_path):
    row = {"question": "Q?", "chosen": "A.", "rejected": "B.", "answer": "C.", "rating": 3}
    pairs, _ = pairs_of(tmp_path, [row])
    assert [(pair.chosen, pair.kind) for pair in pairs] == [("A.", "own")]


@pytest.mark.parametrize(
    ("rows", "fields", "told"),
    [
        ([{"question": "Q?", "answer": "A."}], {}, r"ratings\.jsonl:1: neither pairs .*'question', 'answer'"),
        ([{"question": "Q?", "rating": 1}], {}, r"no column for the answer"),
        ([{"answer": "Q?", "rating": 1}], {}, r"no column for the question"),
        ([{"question": "Q?", "answer": "A.", "rank": 1}], {"rating": "rnak"}, r"Did you mean 'rank'"),
        (rated("Q?", 1, 1), {}, r"no pair can be made of it \(2 answers rated too close"),
        (rated("Q?", "low", 1), {}, r"1 no rating .* The first refused row, .*ratings\.jsonl:1: no rating"),
        (rated("Q?", 1, 4), {}, r"1 usable pairs give"),
    ],
)  # fmt: skip
def test_bad_files_say_what_to_do(tmp_path, rows, fields, told):
    path = jsonl(tmp_path / "ratings.jsonl", rows)
    with pytest.raises(DataError, match=told):
        prepare_pairs(recipe(path=str(path), fields=fields), splits(), "hash", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_questions_apart_and_leaves_out_what_it_measures(tmp_path):
    rows = [row for number in range(30) for row in rated(f"Own question {number}?", 1, 2, 4)]
    path = jsonl(tmp_path / "ratings.jsonl", rows + rated("Does drug 9 help?", 1, 4))
    made = prepare_pairs(recipe(path=str(path), rated={"per_question": 2}), splits(), "hash", tmp_path / "run")
    assert made.facts["train"] == {"rated": len(made.train)}
    assert len(made.train) + len(made.held_out) == 60
    assert not {pair.question for pair in made.train} & {pair.question for pair in made.held_out}
    assert made.facts["left_out"] == {
        "pairs beyond rated.per_question": 30,
        "about a question of the development or test set": 1,
    }
