"""MedQuAD's judged answers: joined with LiveQA's questions as their publisher laid them out."""

import csv
import os
from pathlib import Path

import pytest

from meditune.config.recipe import Recipe
from meditune.data.preference import rated_answers
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from tests.data import layouts
from tests.data.preference.test_prepare import recipe

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
    (pair,) = rated_answers.read_given_pairs(judged_set(tmp_path / "judged", lines, answers), recipe(), rejects)
    assert (pair.chosen, pair.rejected) == ("It is rare (very).", "Rest.")
    assert pair.id == "pairs:TQ1/A_Sec1.txt>TQ1/A_Sec2.txt"
    assert rejects.counts()["pairs"] == {
        "unknown question or answer": 2,
        "neither question, judgment and answer": 1,
        "no AnswerID, or an Answer that isn't Question, URL and Answer": 1,
    }
    assert [row["where"].rpartition("/")[2] for row in rejects.rows()][1:] == [
        f"qrels-odd-questions.txt:{number}" for number in (3, 4, 5)
    ]


def test_another_folder_is_refused(tmp_path, liveqa):
    with pytest.raises(DataError, match=r"no \*Answers\*\.csv in it\. Name a file of pairs or of rated answers"):
        rated_answers.read_given_pairs(tmp_path, recipe(), Rejects())


@pytest.mark.skipif(not (REAL / "medquad-judged").is_dir(), reason="needs MEDITUNE_DATA with medquad-judged")
def test_the_real_judgments():
    rejects = Rejects()
    asked = Recipe.model_validate(
        {"name": "r", "train": {"objective": "dpo", "preference": {"rated": {"per_question": 10_000}}}}
    )
    pairs = rated_answers.read_given_pairs(REAL / "medquad-judged", asked, rejects)
    assert len(pairs) == 5693
    assert len({pair.question for pair in pairs}) == 47
    assert rejects.counts()["pairs"] == {
        "answers rated too close to all others of their question (rated.margin)": 100,
        "further ratings of the same answer, averaged with its first": 93,
    }
    assert not list(rejects.rows())
