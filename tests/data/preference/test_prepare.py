"""A run's pairs: what a file may hold, what is refused and where, and that nothing measured is trained on."""

import json

import pytest

from meditune.config.recipe import Recipe
from meditune.data.example import Passage
from meditune.data.leakage import record
from meditune.data.preference import rated_answers
from meditune.data.preference.prepare_pairs import prepare_pairs, stored_pairs
from meditune.data.read_sources import is_restricted
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, question_key
from meditune.errors import DataError
from tests.commands import jsonl, read_rows
from tests.data.preference.test_corrupt import example


def pair_rows(count, **changes):
    return [
        {
            "question": f"Does own treatment {number // 2} help?",
            "context": f"We gave own treatment {number // 2} to 120 adults.",
            "chosen": f"Own treatment {number // 2} helps, said expert {number}.",
            "rejected": f"Own treatment {number // 2} harms, said expert {number}.",
        }
        | changes
        for number in range(count)
    ]


def splits(*test):
    made = [example(f"Drug {n} is safe.", n) for n in range(12)]
    return Splits(made[:6], made[6:8], [*made[8:], *test], "test-set")


def recipe(**preference):
    return Recipe.model_validate({"name": "r", "train": {"objective": "dpo", "preference": preference}})


def test_a_file_is_parted_by_question_and_nothing_measured_is_trained_on(tmp_path, capsys):
    rows = pair_rows(40)
    rows += [rows[0] | {"question": "Does DRUG 9 help??"}, rows[1] | {"rejected": ""}]
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    made = prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run")
    assert len(made.train) + len(made.held_out) == 40
    assert 4 <= len(made.held_out) <= 12
    assert not {pair.question for pair in made.train} & {pair.question for pair in made.held_out}
    assert "about a question of the development or test set" in capsys.readouterr().err
    (refused,) = read_rows(tmp_path / "run" / "pairs" / "rejected.jsonl")
    assert (refused["where"], refused["reason"]) == (f"{path}:42", "no rejected answer (or one that isn't text)")
    assert stored_pairs(tmp_path / "run") == made
    path.unlink()
    assert prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run") == made
    with pytest.raises(DataError, match="no such file"):
        prepare_pairs(recipe(path=str(path), held_out_share=0.5), splits(), "hash", tmp_path / "run")


def test_pairs_with_an_answer_that_is_measured_on_are_left_out(tmp_path):
    rows = pair_rows(20)
    rows[0] |= {"chosen": "Drug 9 is SAFE"}
    rows[1] |= {"rejected": "Drug 6 is safe."}
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    made = prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run")
    assert len(made.train) + len(made.held_out) == 18
    assert made.facts["left_out"] == {"with an answer of the development or test set": 2}


def test_pairs_near_to_what_is_measured_are_left_out(tmp_path):
    measured = example("Drug 30 is safe.", 30)
    rows = pair_rows(20)
    rows[0] |= {"group": measured.group, "source": measured.source}
    rows[1] |= {"context": measured.context[0].text * 3}
    test = measured.model_copy(update={"context": (Passage(text=measured.context[0].text * 3),)})
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    made = prepare_pairs(recipe(path=str(path)), splits(test), "hash", tmp_path / "run")
    left = made.facts["left_out"]
    assert left == {"too near to a question, context or group of the development or test set": 2}


def test_identifiers_in_a_files_pairs_become_what_the_recipe_says(tmp_path, capsys):
    rows = pair_rows(20)
    rows[3] |= {"chosen": "Ms. Iwona Zelazny (MRN: 4471123) improved."}
    rows[5] |= {"chosen": "", "rejected": "Seen with Ms. Iwona Zelazny on 3/14/2012."}
    path = jsonl(tmp_path / "pairs.jsonl", rows)

    def made(action):
        settings = {"objective": "dpo", "preference": {"path": str(path)}}
        asked = Recipe.model_validate({"name": "r", "data": {"phi": {"action": action}}, "train": settings})
        return prepare_pairs(asked, splits(), "hash", tmp_path / action)

    pairs = made("mask")
    assert "Ms. [NAME] (MRN: [ID]) improved." in {pair.chosen for pair in (*pairs.train, *pairs.held_out)}
    assert "Zelazny" not in "".join(file.read_text() for file in (tmp_path / "mask" / "pairs").iterdir())
    assert pairs.facts["phi"]["sources"]["pairs"]["with_identifiers"] == 1
    with pytest.raises(DataError, match="action is refuse"):
        made("refuse")
    made("report")
    assert "WARNING: pairs: 1 of 19 examples hold identifiers" in capsys.readouterr().err


def test_pairs_of_restricted_questions_stay_restricted(tmp_path):
    secret = example("Drug 40 is safe.", 40).model_copy(update={"meta": {"restricted": True}})
    made = prepare_pairs(
        recipe(), Splits([secret, *splits().train], [], splits().test, "t"), "hash", tmp_path / "built"
    )
    assert {is_restricted(pair.example()) for pair in made.train if pair.id.startswith(secret.id)} == {True}
    path = jsonl(tmp_path / "pairs.jsonl", pair_rows(20, restricted="yes", source="clinic"))
    read = prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "read")
    assert record([pair.example() for pair in read.train])["unlisted"] == len(read.train)


def test_automatic_pairs_to_measure_on_come_from_the_examples_that_are_measured(tmp_path):
    parts = splits()
    made = prepare_pairs(recipe(), parts, "hash", tmp_path)
    for pairs, examples in ((made.train, parts.train), (made.held_out, parts.test)):
        assert {pair.question for pair in pairs} == {each.question for each in examples}
        answers = {each.answer for each in examples}
        assert all(pair.rejected in answers for pair in pairs if pair.kind == "other")
    assert sum(made.facts["train"].values()) == len(made.train) == 6
    trained = {question_key(pair.question) for pair in made.train}
    assert not trained & {question_key(each.question) for each in (*parts.dev, *parts.test)}


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_formats_and_columns_with_other_names(tmp_path, ending):
    rows = [{"Prompt": "Does it help?", "good": "Yes, it does.", "REJECTED": "No.", "note": 3}]
    path = tmp_path / f"pairs.{ending}"
    if ending == "csv":
        path.write_text('Prompt,good,REJECTED,note\nDoes it help?,"Yes, it does.",No.,3\n', encoding="utf-8")
    elif ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (pair,) = rated_answers.read_given_pairs(path, recipe(fields={"chosen": "good"}), Rejects())
    assert (pair.question, pair.chosen, pair.rejected, pair.kind) == ("Does it help?", "Yes, it does.", "No.", "own")


GOOD = json.dumps(pair_rows(1)[0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"no rows"),
        (f"{GOOD}\n{{broken\n", r"pairs\.jsonl, line 2: not valid JSON"),
        (f"{GOOD}\n[1]\n", r"pairs\.jsonl, line 2: expected a JSON object"),
        ('{"question": "Why?", "chosen": "So."}\n', r"pairs\.jsonl:1: no column for the rejected; there are"),
        ('\n{"question": "Why?", "chosen": "So.", "rejected": " So. "}\n', r"pairs\.jsonl:2: chosen and rejected are"),
        ('{"question": "Why?", "chosen": [{"role": "user"}], "rejected": "x"}\n', r"pairs\.jsonl:1: no chosen answer"),
        (f"{GOOD}\n", r"1 usable pairs give"),
    ],
)  # fmt: skip
def test_bad_files_say_where(tmp_path, text, told):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_that_allow_no_corruption_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"corrupted by number.*train\.preference\.path"):
        prepare_pairs(
            recipe(corruptions=["number"]),
            Splits([example("Safe.")], [example("Safe.", 1)], [example("Safe.", 2)], "t"),
            "hash",
            tmp_path,
        )
