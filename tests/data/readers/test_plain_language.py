"""Readers of published plain-language pairs, on small files in the publishers' layouts with invented content."""

import json
from pathlib import Path
from typing import Any

import pytest

from meditune.data import leakage
from meditune.data.readers import plain_language as pairs
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, has_files
from meditune.data.splits import OFFICIAL, split
from meditune.errors import DataError
from tests.data.readers.test_claims import reasons


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def cochrane(folder: Path) -> Path:
    place = folder / "data" / "data-1024"
    for name, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
        write(place / f"{name}.source", *(f"Zinc {n} (OR 1.{n})\u2028shortened\rcolds." for n in numbers))
        write(place / f"{name}.target", *(f"Zinc number {n} made colds shorter." for n in numbers))
        write(place / f"{name}.doi", *(f"10.1002/14651858.CD00000{n}.pub{n}" for n in numbers))
    write(folder / "data" / "dummy" / "train.source", "Not data.")
    return folder


def test_a_line_of_each_cochrane_file_is_a_pair_with_its_published_split(tmp_path: Path) -> None:
    rejects = Rejects()
    found = list(pairs.read_cochrane(cochrane(tmp_path), rejects))
    assert [(each.id, each.group, each.meta["split"]) for each in found] == [
        ("cochrane:10.1002/14651858.CD000004.pub4", "10.1002/14651858.CD000004", "test"),
        ("cochrane:10.1002/14651858.CD000001.pub1", "10.1002/14651858.CD000001", "train"),
        ("cochrane:10.1002/14651858.CD000002.pub2", "10.1002/14651858.CD000002", "train"),
        ("cochrane:10.1002/14651858.CD000003.pub3", "10.1002/14651858.CD000003", "val"),
    ]
    assert found[0].context_text == "Zinc 4 (OR 1.4)\u2028shortened\rcolds.", "only a line feed ends a line"
    assert found[0].answer == "Zinc number 4 made colds shorter."
    assert found[0].meta["url"] == "https://doi.org/10.1002/14651858.CD000004.pub4"
    rest, test = OFFICIAL["cochrane"](found)
    assert ([each.id for each in test], len(rest)) == ([found[0].id], 3)
    assert rejects.counts() == {}
    assert has_files(SOURCES["cochrane"], tmp_path)
    (only,) = pairs.read_cochrane(tmp_path / "data" / "data-1024" / "val.source", Rejects())
    assert only.meta["split"] == "val"


def test_cochrane_files_that_dont_belong_together_are_refused(tmp_path: Path) -> None:
    folder = cochrane(tmp_path) / "data" / "data-1024"
    write(folder / "train.target", "One line.")
    with pytest.raises(DataError, match=r"train.source 2, train.target 1, train.doi 2"):
        list(pairs.read_cochrane(tmp_path, Rejects()))
    (folder / "test.target").unlink()
    with pytest.raises(DataError, match=r"test.target: no such file"):
        list(pairs.read_cochrane(tmp_path, Rejects()))


def test_sections_of_a_scraped_cochrane_review_are_passages(tmp_path: Path) -> None:
    review: dict[str, Any] = {
        "doi": "10.1002/1.pub2",
        "abstract": [{"heading": "Main results", "text": "OR 1.5."}, {"heading": "Conclusions", "text": "It helps."}],
        "pls": [{"heading": "What did we find?", "text": "It helps a bit."}, {"heading": "So?", "text": "Take it."}],
    }
    reviews = [review, review | {"doi": "2", "pls": "It helps.\nA bit."}, review | {"doi": "3", "pls": []}]
    (tmp_path / "data.json").write_text(json.dumps(reviews), encoding="utf-8")
    rejects = Rejects()
    first, second = pairs.read_cochrane(tmp_path, rejects)
    assert [(each.label, each.text) for each in first.context] == [
        ("Main results", "OR 1.5."), ("Conclusions", "It helps."),
    ]  # fmt: skip
    assert (first.answer, second.answer) == ("It helps a bit.\n\nTake it.", "It helps.\nA bit.")
    assert reasons(rejects) == [("data.json, item 3", "no plain version")]


def plaba(folder: Path) -> Path:
    def abstract(topic: str, *versions: dict[str, str]) -> dict[str, Any]:
        texts = {"1": f"{topic} was studied.", "2": f"{topic} ameliorated rhinitis (p<0.05)."}
        return {
            "Title": topic,
            "abstract": texts,
            "adaptations": {f"adaptation{n}": version for n, version in enumerate(versions, start=1)},
        }

    plain = {"1": "", "2": "Zinc helped with a runny nose. "}
    data = {
        "4": {"question": "What helps a cold?", "question_type": "B", "101": abstract("Zinc", plain, {"1": "Zinc."})},
        "5": {
            "question": "Is honey safe?",
            "question_type": "A",
            "102": abstract("Honey", plain),
            "103": abstract("Tea"),
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_plaba_joins_sentences_and_keeps_every_adaptation(tmp_path: Path) -> None:
    rejects = Rejects()
    zinc, honey = pairs.read_plaba(plaba(tmp_path), rejects)
    assert (zinc.id, zinc.question, zinc.group) == ("plaba:4-101", "What helps a cold?", "question-4")
    assert zinc.context_text == "Zinc was studied. Zinc ameliorated rhinitis (p<0.05)."
    assert zinc.references() == ["Zinc helped with a runny nose.", "Zinc."]
    assert zinc.meta["url"] == "https://pubmed.ncbi.nlm.nih.gov/101/"
    assert reasons(rejects) == [("data.json, question 5, abstract 103", "no plain version")]
    rest, test = OFFICIAL["plaba"]([zinc, honey])
    assert (rest, test) == ([zinc], [honey]), "question 5 is in the publisher's test split"
    assert has_files(SOURCES["plaba"], tmp_path)


def test_another_json_file_isnt_taken_for_plaba(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('[{"question": "Is honey safe?"}]', encoding="utf-8")
    with pytest.raises(DataError, match="maps question numbers to abstracts"):
        list(pairs.read_plaba(tmp_path, Rejects()))


def mediqa(folder: Path) -> Path:
    for name in ("Validation", "Test"):
        begin = f"MEDIQA2021_Task2_{name}Set"
        place = folder / "Task2" / name
        questions = "shortQuestions" if name == "Test" else "ShortQuestions"
        write(place / f"{begin}_{questions}.txt", "3||What helps a cold?", "4||Is honey safe?", "no bars here")
        write(place / f"{begin}_MultiAbstrativeSummaries.txt", "3||Zinc may help || ", "4||Mostly.")
        write(place / f"{begin}_MultiExtractiveSummaries.txt", "3||Zinc shortens colds.")
        rows = ("3,3_Answer8,Zinc shortens colds.", '3,3_Answer2,"Rest, and drink."', "5,5_Answer1,Of no question.")
        write(place / f"{begin}_Answers.csv", "QuestionID,AnswerID,Answer", *rows)
    return folder


def test_mediqas_retrieved_answers_are_the_passages_of_one_question(tmp_path: Path) -> None:
    rejects = Rejects()
    test, validation = pairs.read_mediqa(mediqa(tmp_path), rejects)
    assert (validation.id, test.id) == ("mediqa-2021:validation-3", "mediqa-2021:test-3")
    assert [each.text for each in validation.context] == ["Zinc shortens colds.", "Rest, and drink."]
    assert validation.question == "What helps a cold?"
    assert validation.references() == ["Zinc may help", "Zinc shortens colds."]
    assert set(reasons(rejects)) == {
        ("MEDIQA2021_Task2_ValidationSet_ShortQuestions.txt:3", "not a line of the form ID||TEXT"),
        ("MEDIQA2021_Task2_ValidationSet_ShortQuestions.txt:2", "no source text"),
        ("MEDIQA2021_Task2_TestSet_shortQuestions.txt:3", "not a line of the form ID||TEXT"),
        ("MEDIQA2021_Task2_TestSet_shortQuestions.txt:2", "no source text"),
    }
    assert OFFICIAL["mediqa-2021"]([test, validation]) == ([validation], [test])
    assert has_files(SOURCES["mediqa-2021"], tmp_path)


def test_mediqas_answers_can_be_json_lines_and_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = mediqa(tmp_path) / "Task2" / "Validation"
    (folder / "MEDIQA2021_Task2_ValidationSet_Answers.csv").unlink()
    with pytest.raises(DataError, match=r"the validation set of MEDIQA 2021 lacks Answers\.csv \(the sheet of"):
        list(pairs.read_mediqa(tmp_path, Rejects()))
    row = {"QuestionID": "3", "AnswerID": "3_Answer8", "Answer": "Zinc shortens colds.\n"}
    write(folder / "answer_summaries.jsonl", json.dumps(row))
    validation = next(each for each in pairs.read_mediqa(folder, Rejects()))
    assert [each.text for each in validation.context] == ["Zinc shortens colds."]
    (folder / "MEDIQA2021_Task2_ValidationSet_MultiExtractiveSummaries.txt").unlink()
    validation = next(each for each in pairs.read_mediqa(folder, Rejects()))
    assert validation.references() == ["Zinc may help"]
    write(tmp_path / "copy" / "ShortQuestions.txt", "3||What helps a cold?")
    with pytest.raises(DataError, match=r"ShortQuestions\.txt look like the questions of the validation set"):
        list(pairs.read_mediqa(tmp_path, Rejects()))
    with pytest.raises(DataError, match=r"lacks ShortQuestions\.txt and MultiAbstrativeSummaries\.txt and Answers"):
        list(pairs.read_mediqa(tmp_path / "nowhere", Rejects()))


def test_a_plain_version_may_quote_its_source_but_not_its_question(tmp_path: Path) -> None:
    text = "Zinc taken within a day of the first sneeze made colds two days shorter in most adults."
    write(tmp_path / "test.source", f"We found this. {text}")
    write(tmp_path / "test.target", text)
    (pair,) = pairs.read_cochrane(tmp_path, Rejects())
    assert leakage.in_prompt([pair]) == []
    asked = pair.model_copy(update={"question": f"Is it true? {text}"})
    assert [leak.kind for leak in leakage.in_prompt([asked])] == ["answer_in_prompt"]
    other = pair.model_copy(update={"meta": {}})
    assert [leak.kind for leak in leakage.in_prompt([other])] == ["answer_in_prompt"]


def test_a_set_can_be_split_for_measuring_only(tmp_path: Path) -> None:
    examples = list(pairs.read_cochrane(cochrane(tmp_path), Rejects()))
    fixed = {"cochrane": "test"}
    found = split({"cochrane": examples}, True, 0.2, 0.1, 17, fixed=fixed, needed={"test"})
    assert (found.train, found.dev, len(found.test)) == ([], [], 4)
    assert found.test_set == "cochrane-fixed-4"
    with pytest.raises(DataError, match="The train split is empty"):
        split({"cochrane": examples}, True, 0.2, 0.1, 17, fixed=fixed)
