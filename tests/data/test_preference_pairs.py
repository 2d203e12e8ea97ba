"""Each corruption changes one thing and leaves the rest of the answer alone.

MedQuAD's judged answers: joined with LiveQA's questions as their publisher laid them out.

A run's pairs: what a file may hold, what is refused and where, and that nothing measured is trained on.

Rated answers: which two make a pair, which don't, and that nothing is left out uncounted.
"""

import csv
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from meditune.config.recipe import Recipe
from meditune.config.training_options import PreferenceSpec
from meditune.data.example import Example, Passage, Turn
from meditune.data.leakage import record
from meditune.data.preference_pairs import Rated, build, corrupt, from_rows, paired
from meditune.data.prepare_pairs import prepare_pairs, read_given_pairs, stored_pairs
from meditune.data.read_sources import is_restricted
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, question_key
from meditune.errors import DataError
from meditune.evidence.lexical_features import OPPOSITE, stem
from tests import layouts
from tests.commands import jsonl, read_rows


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


def test_the_opposite_of_an_opposite_is_the_same_direction():
    for word, other in OPPOSITE.items():
        assert stem(other) != stem(word) == stem(OPPOSITE[other])


ANSWERS = ["The drug is not safe in 30 adults.", "Pain was higher.", "Exercise helps.", "", "Sleep is better in 12."]


def test_pairs_are_seeded_and_their_kinds_even():
    many = [example(f"{ANSWERS[n % 5]} {'abcde'[n % 5]}" if ANSWERS[n % 5] else "", n) for n in range(50)]
    pairs, without_pair = build(many, PreferenceSpec(), seed=1)
    assert (pairs, without_pair) == build(many, PreferenceSpec(), seed=1)
    assert pairs != build(many, PreferenceSpec(), seed=2)[0]
    assert without_pair == 0
    assert len(pairs) == 40
    assert len({pair.id for pair in pairs}) == 40
    counts = Counter(pair.kind for pair in pairs)
    assert set(counts) == {"number", "negation", "direction", "other"}
    assert min(counts.values()) >= 8
    assert all(pair.chosen != pair.rejected for pair in pairs)
    twice, _ = build(many, PreferenceSpec(per_example=2), seed=1)
    assert len(twice) > 60
    assert max(Counter((pair.question, pair.kind) for pair in twice).values()) == 1


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


def recipe(objective="dpo", **preference):
    return Recipe.model_validate({"name": "r", "train": {"objective": objective, "preference": preference}})


def refused(tmp_path, message, *given, **preference):
    """No pairs can be prepared, and nothing is written."""
    with pytest.raises(DataError, match=message):
        prepare_pairs(recipe(*given, **preference), splits(), "hash", tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    assert (refused["where"], refused["reason"]) == (f"{path}:42", "no rejected answer (or it isn't text)")
    assert stored_pairs(tmp_path / "run") == made
    path.unlink()
    assert prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run") == made
    with pytest.raises(DataError, match="no such file"):
        prepare_pairs(recipe(path=str(path), per_example=2), splits(), "hash", tmp_path / "run")


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
    assert left == {"too similar to a question, context or group of the development or test set": 2}


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
    assert "WARNING: pairs: 1 of 19 examples contains identifiers" in capsys.readouterr().err


def test_pairs_of_restricted_questions_stay_restricted(tmp_path):
    secret = example("Drug 40 is safe.", 40).model_copy(update={"meta": {"restricted": True}})
    made = prepare_pairs(
        recipe(), Splits([secret, *splits().train], [], splits().test, "t"), "hash", tmp_path / "built"
    )
    assert {is_restricted(pair.example()) for pair in made.train if pair.id.startswith(secret.id)} == {True}
    path = jsonl(tmp_path / "pairs.jsonl", pair_rows(20, **{"Restricted ": "yes", "Source": "clinic"}))
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


def test_columns_with_other_names(tmp_path):
    row = {"Prompt": "Does it help?", "good": "Yes, it does.", "REJECTED": "No.", "note": 3}
    path = jsonl(tmp_path / "pairs.jsonl", [row])
    (pair,) = read_given_pairs(path, recipe(fields={"chosen": "good"}), Rejects())
    assert (pair.question, pair.chosen, pair.rejected, pair.kind) == ("Does it help?", "Yes, it does.", "No.", "own")


GOOD = json.dumps(pair_rows(1)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no rows"),
        (f"{GOOD}\n{{broken\n", r"pairs\.jsonl, line 2: not valid JSON"),
        (f"{GOOD}\n[1]\n", r"pairs\.jsonl, line 2: expected a JSON object"),
        ('{"question": "Why?", "chosen": "So."}\n', r"pairs\.jsonl:1: no column for the rejected\. The columns are"),
        ('\n{"question": "Why?", "chosen": "So.", "rejected": " So. "}\n', r"pairs\.jsonl:2: chosen and rejected ans"),
        ('{"question": "Why?", "chosen": [{"role": "user"}], "rejected": "x"}\n', r"pairs\.jsonl:1: no chosen answer"),
        (f"{GOOD}\n", r"1 usable pairs give"),
    ],
)  # fmt: skip
def test_bad_files_say_where(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    refused(tmp_path, message, path=str(path))


def test_answers_that_allow_no_corruption_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"can be corrupted.*train\.preference\.path"):
        prepare_pairs(
            recipe(),
            Splits([example("Aspirin.")], [example("Aspirin.", 1)], [example("Aspirin.", 2)], "t"),
            "hash",
            tmp_path,
        )


REAL = Path(os.environ.get("MEDITUNE_DATA", "nowhere"))


def published(text):
    """An answer as it is published: with its own question and address, and a bracket too many."""
    return f"Question: What is it ? (Also called: that)\nURL: https://x\nAnswer: {text}) \n"


def judged_set(folder, lines, answers):
    folder.mkdir()
    with (folder / "All-2-Answers-retrieved-from-MedQuAD.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("AnswerID", "Answer"), *answers.items()])
    (folder / "qrels-odd-questions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def liveqa(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    layouts.liveqa(tmp_path / "data" / "liveqa")


@pytest.mark.usefixtures("liveqa")
def test_judgments_are_joined_with_questions_and_answers(tmp_path):
    answers = {"A_Sec1.txt": published("It is rare (very)."), "A_Sec2.txt": published("Rest."), "A_Sec3.txt": "Rest."}
    lines = ["1 4-Excellent A_Sec1.txt", "1 1-Incorrect A_Sec2.txt", "1 3-Incomplete A_Sec9.txt",
             "900 3-Incomplete A_Sec1.txt", "1 good A_Sec2.txt"]  # fmt: skip
    rejects = Rejects()
    (pair,) = read_given_pairs(judged_set(tmp_path / "judged", lines, answers), recipe(), rejects)
    assert (pair.chosen, pair.rejected) == ("It is rare (very).", "Rest.")
    assert pair.id == "pairs:TQ1/A_Sec1.txt>TQ1/A_Sec2.txt"
    assert rejects.counts()["pairs"] == {
        "unknown question or answer": 2,
        "the line doesn't consist of question, judgment and answer": 1,
        "no AnswerID, or an Answer that doesn't consist of Question, URL and Answer": 1,
    }
    assert [row["where"].rpartition("/")[2] for row in rejects.rows()][1:] == [
        f"qrels-odd-questions.txt:{number}" for number in (3, 4, 5)
    ]


def test_another_folder_is_refused(tmp_path, liveqa):
    with pytest.raises(
        DataError,
        match=r"no \*Answers\*\.csv\. Set train\.preference\.path to a file of pairs or rated answers",
    ):
        read_given_pairs(tmp_path, recipe(), Rejects())


@pytest.mark.skipif(not (REAL / "medquad-judged").is_dir(), reason="needs MEDITUNE_DATA with medquad-judged")
def test_the_real_judgments():
    rejects = Rejects()
    pairs = read_given_pairs(REAL / "medquad-judged", recipe(), rejects)
    assert len(pairs) == 464
    assert len({pair.question for pair in pairs}) == 47
    assert rejects.counts()["pairs"] == {
        "answers rated too close to all other answers to their question": 100,
        "pairs beyond the maximum for one question": 5693 - 464,
        "further ratings of the same answer (averaged)": 93,
    }
    assert not list(rejects.rows())


def rated(question, *ratings, **more):
    """Rows about one question, whose answers are called after their ratings."""
    return [
        {"question": question, "answer": f"{question} {number}: {rating}.", "rating": rating} | more
        for number, rating in enumerate(ratings)
    ]


def pairs_of(tmp_path, rows, seed=17):
    """(pairs, how many were left out for each reason)."""
    path = jsonl(tmp_path / "ratings.jsonl", rows)
    rejects = Rejects()
    asked = recipe().model_copy(update={"seed": seed})
    return read_given_pairs(path, asked, rejects), rejects.counts().get("pairs", {})


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
def test_the_higher_rated_is_preferred_where_they_are_far_enough_apart(ratings, margin, expected):
    answers = [Rated(str(n), str(n), "Q?", (), f"{n}: {rating}.", "", rating) for n, rating in enumerate(ratings)]
    pairs = paired(answers, 17, Rejects(), margin)
    assert scores(pairs) == expected
    assert {pair.kind for pair in pairs} <= {"rated"}


def test_only_answers_to_the_same_question_context_and_group_are_compared(tmp_path):
    rows = rated("Does it HELP?", 1) + rated("does it help", 3)
    rows += rated("Which?", 1, context="In adults.") + rated("Which?", 3, context="In children.")
    rows += rated("Why?", 1, group="a") + rated("Why?", 3, group="b")
    pairs, left_out = pairs_of(tmp_path, rows)
    assert [(pair.question, pair.chosen, pair.rejected) for pair in pairs] == [
        ("does it help", "does it help 0: 3.", "Does it HELP? 0: 1.")
    ]
    assert left_out == {"answers without another answer for the same question, context and group": 4}


def test_an_answer_rated_twice_has_the_mean_of_its_ratings(tmp_path):
    rows = [{"answer_id": name, "question": "Q?", "answer": f"{name}!", "rating": r} for name, r in
            (("a", 1), ("a", 4), ("b", 3), ("c", 1.4))]  # fmt: skip
    pairs, left_out = pairs_of(tmp_path, rows)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [
        ("pairs:a>c", "a!", "c!"),
        ("pairs:b>c", "b!", "c!"),
    ]
    assert left_out == {"further ratings of the same answer (averaged)": 1}


def test_a_questions_pairs_are_a_seeded_choice_and_the_rest_is_counted(tmp_path):
    rows = rated("Q?", *range(8)) + rated("R?", 1, 2)
    pairs, left_out = pairs_of(tmp_path, rows)
    assert Counter(pair.question for pair in pairs) == {"Q?": 10, "R?": 1}
    assert left_out == {"pairs beyond the maximum for one question": 28 - 10}
    assert pairs == pairs_of(tmp_path, rows)[0]
    others = [pairs_of(tmp_path, rows, seed)[0] for seed in range(40)]
    assert len({pair.id for each in others for pair in each}) == 29


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
        "answers rated too close to all other answers to their question": 4,
        "no rating (or the rating isn't a number)": 2,
        "no answer (or the answer isn't text)": 1,
        "no question": 1,
        "the id is already used for another answer": 1,
    }


def test_rated_answers_in_columns_with_other_names(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("question_id,Query,text,SCORE,RESTRICTED\n7,Why?,So.,4,yes\n7,Why?,No.,1,no\n", encoding="utf-8")
    (pair,) = read_given_pairs(path, recipe(fields={"answer": "text"}), Rejects())
    assert (pair.question, pair.chosen, pair.rejected, pair.group) == ("Why?", "So.", "No.", "7")
    assert pair.restricted


def test_a_file_with_both_is_one_of_pairs(tmp_path):
    row = {"question": "Q?", "chosen": "A.", "rejected": "B.", "answer": "C.", "rating": 3}
    pairs, _ = pairs_of(tmp_path, [row])
    assert [(pair.chosen, pair.kind) for pair in pairs] == [("A.", "own")]


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"question": "Q?", "answer": "A."}], {}, r"ratings\.jsonl:1: the rows are neither .*'question', 'answer'"),
        ([{"question": "Q?", "rating": 1}], {}, r"no column for the answer"),
        ([{"answer": "Q?", "rating": 1}], {}, r"no column for the question"),
        ([{"question": "Q?", "answer": "A.", "rank": 1}], {"rating": "rnak"}, r"Did you mean 'rank'"),
        (rated("Q?", 1, 1), {}, r"no usable pairs \(2 rows: answers rated too close"),
        (rated("Q?", "low", 1), {}, r"1 row: no rating .* The first rejected row is .*ratings\.jsonl:1: no rating"),
        (rated("Q?", 1, 4), {}, r"1 usable pairs give"),
    ],
)  # fmt: skip
def test_bad_files_say_what_to_do(tmp_path, rows, fields, message):
    refused(tmp_path, message, path=str(jsonl(tmp_path / "ratings.jsonl", rows)), fields=fields)


def test_a_run_keeps_questions_apart_and_leaves_out_what_it_measures(tmp_path):
    rows = [row for number in range(30) for row in rated(f"Own question {number}?", *range(6))]
    path = jsonl(tmp_path / "ratings.jsonl", rows + rated("Does drug 9 help?", 1, 4))
    made = prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run")
    assert made.facts["train"] == {"rated": len(made.train)}
    assert len(made.train) + len(made.held_out) == 300
    assert not {pair.question for pair in made.train} & {pair.question for pair in made.held_out}
    assert made.facts["left_out"] == {
        "pairs beyond the maximum for one question": 150,
        "about a question of the development or test set": 1,
    }


def thumbs_of(tmp_path, rows, **preference):
    """(question -> kind, left out) of rated answers for KTO."""
    path, rejects = jsonl(tmp_path / "thumbs.jsonl", rows), Rejects()
    pairs = read_given_pairs(path, recipe("kto", **preference), rejects)
    assert all(bool(pair.chosen) == (pair.kind == "up") != bool(pair.rejected) for pair in pairs)
    return {pair.question: pair.kind for pair in pairs}, rejects.counts().get("pairs", {})


def test_thumbs_are_read_and_an_answers_majority_counts(tmp_path):
    values = [True, "up", 1, "1.0", " TRUE ", False, "down", -1, "-1.0", "False"]
    rows = [{"question": f"{number}?", "answer": "A.", "thumbs": value} for number, value in enumerate(values)]
    kinds, left_out = thumbs_of(tmp_path, rows)
    assert kinds == {f"{number}?": "up" if number < 5 else "down" for number in range(10)}
    assert left_out == {}
    votes = [{"Prompt": "Q?", "completion": "A.", "mark": value} for value in ("up", "down", "up", "")]
    votes += [{"Prompt": "R?", "completion": "A.", "mark": value} for value in (1, -1)]
    assert thumbs_of(tmp_path, votes, fields={"rating": "mark"}) == (
        {"Q?": "up"},
        {
            "further ratings of the same answer (the majority counts)": 3,
            "answers with as many thumbs up as thumbs down": 1,
            "no rating": 1,
        },
    )


def test_of_a_servers_answers_those_with_text_and_feedback_are_used(tmp_path):
    def answered(name, *feedback, **changes):
        given = [{"who": "k", "rating": rating, "expert": expert} for rating, expert in feedback]
        return {"id": name, "outcome": "answered", "question": f"{name}?", "answer": "A.", "feedback": given} | changes

    up, down, expert = ("up", False), ("down", False), ("down", True)
    rows = [
        answered("unrated"),
        answered("liked", up, up, down),
        answered("overruled", up, up, expert),
        answered("no text", up, question=None, answer=None),
        answered("abstained", down, outcome="abstained"),
    ]
    assert thumbs_of(tmp_path, rows) == (
        {"liked?": "up", "overruled?": "down"},
        {
            "further ratings of the same answer (the majority counts)": 2,
            "answers without feedback": 1,
            "answers whose text wasn't stored (meditune serve --keep-text)": 1,
            "answers that the model didn't write (abstained, declined or escalated)": 1,
        },
    )
    with pytest.raises(DataError, match=r"no usable ratings \(1 row: answers without feedback\).*that people rated"):
        thumbs_of(tmp_path, rows[:1])
    path = jsonl(tmp_path / "answers.jsonl", rows)
    with pytest.raises(DataError, match=r"`meditune answers export`, set train\.objective to kto"):
        read_given_pairs(path, recipe(), Rejects())


def test_pairs_become_single_answers_for_kto_and_stay_pairs_to_measure_on(tmp_path):
    path = jsonl(tmp_path / "pairs.jsonl", pair_rows(40))
    made = prepare_pairs(recipe("kto", path=str(path)), splits(), "hash", tmp_path / "run")
    assert made.facts["train"] == {"down": len(made.train) // 2, "up": len(made.train) // 2}
    assert len({pair.id for pair in made.train}) == len(made.train)
    assert made.facts["held_out"] == {"own": 40 - len(made.train) // 2}
    other = prepare_pairs(recipe(path=str(path)), splits(), "hash", tmp_path / "run")
    assert set(other.facts["train"]) == {"own"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["up", "down", "meh"], r"thumbs\.jsonl:3: unknown rating 'meh'.*up or down, true or false, or 1 or -1"),
        ([1, 4], r"thumbs\.jsonl:2: unknown rating '4'.*on a scale, set train\.objective to dpo"),
        (["up"] * 20, r"16 answers with thumbs up and 0 with thumbs down are left for training, which needs both"),
        (["up"] * 20 + ["down"], r"4 answers with thumbs up and 0 with thumbs down are left for evaluation"),
    ],
)
def test_bad_thumbs_say_where_or_what_is_missing(tmp_path, values, message):
    rows = [{"question": f"Own {n}?", "answer": "A.", "thumbs": value} for n, value in enumerate(values)]
    refused(tmp_path, message, "kto", path=str(jsonl(tmp_path / "thumbs.jsonl", rows)))


def test_a_pair_of_a_conversation_has_its_earlier_turns():
    turns = (Turn(role="user", text="How much aspirin?"), Turn(role="assistant", text="Up to 4 g."))
    talk = example("Half of the 4 g.").model_copy(update={"question": "And for children?", "turns": turns})
    (pair,), _ = build([talk], PreferenceSpec(), seed=1)
    assert pair.example().turns == turns
    row = json.loads(pair.model_dump_json())
    (read,) = from_rows([("row 1", row)], Rejects(), None, "rows", "no rows")
    assert read.turns == turns
