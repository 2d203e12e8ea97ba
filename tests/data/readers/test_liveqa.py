from collections import Counter
from pathlib import Path

import pytest

from meditune.data.readers import liveqa
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from tests import layouts

TEST = "TestDataset/TREC-2017-LiveQA-Medical-Test.xml"
SUMMARIES = "TestDataset/TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml"


def test_both_training_layouts_and_the_test(tmp_path: Path) -> None:
    rejects = Rejects()
    examples = {example.id: example for example in liveqa.read(layouts.liveqa(tmp_path), rejects)}
    assert list(examples) == [
        "liveqa-test:TQ1",
        "liveqa-train-1:Q1-S1-A1",
        "liveqa-train-1:Q1-S1-A2",
        "liveqa-train-2:1.0",
        "liveqa-train-2:2.0",
    ]
    test = examples["liveqa-test:TQ1"]
    assert test.question == (
        "Noonan syndrome\nWhat are the references with noonan syndrome and polycystic renal disease"
    )
    assert test.answer == "About 11% have mild changes."
    assert test.meta == {
        "subject": "Noonan syndrome",
        "paraphrase": "How are Noonan syndrome and kidney cysts related?",
        "summary": "Are Noonan syndrome and kidney cysts related?",
        "focus": ["noonan syndrome", "polycystic renal disease"],
        "question_type": ["effect"],
        "references": [
            {"answer": "About 11% have mild changes.", "url": "https://www.example.org/1", "comment": "A case report."},
            {"answer": "Most need no treatment.", "url": "https://www.example.org/2", "comment": ""},
        ],
        "split_hint": "test",
        "licence": liveqa.LICENCE,
    }
    first = examples["liveqa-train-1:Q1-S1-A1"]
    assert first.question == "Literature on gout. Please tell me where I can get it."
    assert (first.meta["focus"], first.meta["question_type"]) == (["gout"], ["information"])
    assert first.group == examples["liveqa-train-1:Q1-S1-A2"].group
    assert examples["liveqa-train-2:1.0"].meta["split_hint"] == "train"
    assert [(row["where"], row["reason"]) for row in rejects.rows()] == [
        ("TrainingDatasets/TREC-2017-LiveQA-Medical-Train-1.xml, question Q1", "no answer")
    ]


def test_a_training_pair_that_repeats_a_test_question_is_left_out(tmp_path: Path) -> None:
    examples = list(liveqa.read(layouts.liveqa(tmp_path), Rejects()))
    repeated = examples[-1]
    assert repeated.meta["test_question"] == "TQ1"
    assert repeated.group == examples[0].group
    train, test = liveqa.official_split(examples)
    assert [example.id for example in test] == ["liveqa-test:TQ1"]
    assert repeated not in train
    assert len(train) == 3


def test_the_plain_test_file_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    layouts.liveqa(tmp_path)
    (tmp_path / SUMMARIES).unlink()
    test = next(liveqa.read(tmp_path, Rejects()))
    assert test.meta["summary"] == ""
    (alone,) = liveqa.read(tmp_path / TEST, Rejects())
    assert alone == test


def test_damage_is_an_error(tmp_path: Path) -> None:
    layouts.liveqa(tmp_path)
    file = tmp_path / SUMMARIES
    file.write_text(file.read_text(encoding="utf-8")[:900], encoding="utf-8")
    with pytest.raises(DataError, match=r"w-summaries\.xml\): not well-formed XML .* line \d+"):
        list(liveqa.read(tmp_path, Rejects()))
    layouts.medquad(tmp_path / "other", {"a/b.xml": "<a/>"})
    with pytest.raises(DataError, match="no TREC-2017-LiveQA-Medical XML files"):
        list(liveqa.read(tmp_path / "other", Rejects()))


@pytest.mark.real
def test_the_real_files(real_data: Path) -> None:
    rejects = Rejects()
    examples = list(liveqa.read(real_data / "liveqa", rejects))
    assert len(rejects) == 0
    assert Counter(example.id.split(":")[0] for example in examples) == {
        "liveqa-test": 104,
        "liveqa-train-1": 388,
        "liveqa-train-2": 246,
    }
    assert len({example.id for example in examples}) == 738
    train, test = liveqa.official_split(examples)
    assert sum(len(example.meta["references"]) for example in test) == 167
    assert len({example.meta.get("test_question") for example in examples} - {None}) == 16
    assert (len(train), len(test)) == (618, 104)
    assert not {example.group for example in train} & {example.group for example in test}
