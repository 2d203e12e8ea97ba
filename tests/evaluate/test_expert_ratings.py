"""LiveQA's scores from raters' grades."""

from collections import defaultdict

import pytest

from meditune.data import prepare_pairs
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.evaluate.compare import compare
from meditune.evaluate.expert_ratings import read_ratings, store
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import Predictions, read
from meditune.files import write_jsonl
from tests.commands import meditune


def rated(scores):
    return Predictions(rating=[{"id": str(n), "score": score} for n, score in enumerate(scores)])


def test_the_scores_are_those_of_the_track():
    """Five questions, one of them unanswered: grades 4, 3, 2, 1."""
    assert summarize(rated([4, 3, 2, 1, None])) == pytest.approx(
        {
            "avg_score": (3 + 2 + 1 + 0 + 0) / 5,
            "succ_2": 3 / 5,
            "succ_3": 2 / 5,
            "succ_4": 1 / 5,
            "prec_2": 3 / 4,
            "prec_3": 2 / 4,
            "prec_4": 1 / 4,
        }
    )


def test_a_system_that_answers_nothing_scores_nothing():
    assert set(summarize(rated([None, None])).values()) == {0.0}


def test_two_systems_are_compared_question_by_question():
    found = compare(rated([1, 2, None] * 20), rated([3, 4, 2] * 20), 200, 1)
    assert found["avg_score"]["delta"] == pytest.approx((2 + 3 + 1) / 3 - 1 / 3)
    assert all(row["better"] is True for row in found.values())


def file(folder, text, name="ratings.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_several_raters_are_averaged_and_of_several_answers_the_best_counts(tmp_path):
    path = file(tmp_path, "qid,grade\nA,2\nA,4\nB,\nC,1\n")
    mean, best = (read_ratings(path, best)[""] for best in (False, True))
    assert mean == [{"id": "A", "score": 3}, {"id": "B", "score": None}, {"id": "C", "score": 1}]
    assert best[0]["score"] == 4


def test_each_rows_own_columns_count(tmp_path):
    path = file(tmp_path, '{"id": "A", "score": 2}\n{"id": "A", "score": 4, "model": "base"}\n', "ratings.jsonl")
    assert read_ratings(path) == {"": [{"id": "A", "score": 2}], "base": [{"id": "A", "score": 4}]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,score\nA,5\n", r"ratings\.csv:2: the score '5' isn't a number from 1"),
        ("id,score\nA,good\n", r"ratings\.csv:2: the score 'good'"),
        ("id,score\n,3\n", r"ratings\.csv:2: no question id"),
        ("id,score\nA,3,x\n", r"ratings\.csv:2: 3 fields"),
        ("id,words\nA,3\n", "no column for the score"),
        ("id,score\n", "no ratings"),
    ],
)
def test_a_row_that_cant_be_used_is_named(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_ratings(file(tmp_path, text))


def test_ratings_are_kept_with_the_answers_of_each_model(tmp_path):
    for name, texts in (("base", ("It is.", "")), ("tuned", ("It is so.", "No."))):
        answers = [{"id": f"own:{n}", "reference": "x", "prediction": text} for n, text in enumerate(texts)]
        write_jsonl(tmp_path / f"{name}-answer.jsonl", answers)
    path = file(tmp_path, "id,score,model\nown:0,2,base\nown:0,4,tuned\nown:1,3,tuned\n")
    assert store(read_ratings(path), tmp_path) == (["base", "tuned"], 0)
    assert read(tmp_path, "base").rating == [{"id": "own:0", "score": 2}, {"id": "own:1", "score": None}], (
        "nothing said"
    )
    assert summarize(read(tmp_path, "tuned"))["avg_score"] == 2.5
    with pytest.raises(DataError, match=r"1 of 1 questions rated for 'tuned' aren't among its .* questions \(own:7\)"):
        store({"": [{"id": "own:7", "score": 3}]}, tmp_path)
    with pytest.raises(DataError, match="contains only answers of tuned and base"):
        store({"gpt": [{"id": "own:0", "score": 3}]}, tmp_path)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_empty_answer_to_a_question_that_wasnt_rated_leaves_the_models_comparable(tmp_path, at_once):
    """Questions 0 to 3 were rated; base wrote nothing to 2 and 5, tuned nothing to 5, and 4 was left out."""
    for name, empty in (("base", {2, 4, 5}), ("tuned", {5})):
        answers = [{"id": f"q{n}", "reference": "x", "prediction": "" if n in empty else "It is."} for n in range(6)]
        write_jsonl(tmp_path / f"{name}-answer.jsonl", answers)
    rows = {"base": "q0,base,2\nq1,base,3\nq3,base,1\n", "tuned": "".join(f"q{n},tuned,4\n" for n in range(4))}
    for text in ["".join(rows.values())] if at_once else rows.values():
        store(read_ratings(file(tmp_path, "id,model,score\n" + text)), tmp_path)
    found = compare(read(tmp_path, "base"), read(tmp_path, "tuned"), 100, 1)["avg_score"]
    assert found["items"] == 5
    assert found["delta"] == pytest.approx(4 * 3 / 5 - (1 + 2 + 0) / 5)


def test_questions_that_were_rated_for_one_model_only_are_left_out_for_both(tmp_path):
    for name in ("base", "tuned"):
        answers = [{"id": f"q{n}", "reference": "x", "prediction": "It is."} for n in range(8)]
        write_jsonl(tmp_path / "predictions" / f"{name}-answer.jsonl", answers)
    rows = [f"q{n},{name},3" for name, count in (("base", 8), ("tuned", 6)) for n in range(count)]
    result = meditune("ratings", file(tmp_path, "\n".join(["id,model,score", *rows]) + "\n"), "--run", tmp_path)
    assert "the other model's answer has no rating: 2." in result.out
    sides = [read(tmp_path / "predictions", name) for name in ("base", "tuned")]
    assert compare(*sides, 100, 1)["avg_score"]["items"] == 6


def test_the_command_shows_each_systems_figures(tmp_path):
    result = meditune("ratings", file(tmp_path, "id,score,system\nA,4,mine\nB,0,mine\nA,1,yours\nB,1,yours\n")).ok()
    lines = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in result.out.splitlines()}
    assert lines["answered"] == ["1", "2"]
    assert lines["Average score"] == ["1.500", "0.000"]
    assert lines["prec@4+"] == ["1.000", "0.000"]


@pytest.mark.real
def test_the_best_retrieved_answer_of_each_judged_question(real_data, tmp_path):
    """MedQuAD's judged answers: a system that finds the best answer for each of the judged LiveQA questions."""
    judged = list(prepare_pairs.read_judged(real_data / "medquad-judged", real_data / "liveqa", Rejects()))
    lines = [f"{each.name.partition('/')[0]},{each.rating:g}" for each in judged]
    path = file(tmp_path, "\n".join(["id,score", *lines]) + "\n")
    rows = read_ratings(path, best=True)[""]
    highest = defaultdict(float)
    for each in judged:
        name = each.name.partition("/")[0]
        highest[name] = max(highest[name], each.rating)
    figures = summarize(Predictions(rating=rows))
    count = len(highest)
    assert figures["avg_score"] == pytest.approx(sum(highest.values()) / count - 1)
    assert count == 51
    assert figures["succ_4"] == pytest.approx(sum(grade == 4 for grade in highest.values()) / count)
    assert figures["succ_2"] >= figures["succ_3"] >= figures["succ_4"] == figures["prec_4"]
