import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from meditune.data.example import Passage
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, locate_source
from meditune.errors import DataError
from tests import layouts


def test_an_item_becomes_an_example(tmp_path: Path) -> None:
    path = layouts.pubmedqa(tmp_path, {"21645374": layouts.pubmedqa_item(0), "7": layouts.pubmedqa_item(1, YEAR=None)})
    rejects = Rejects()
    first, second = pubmedqa.read(path, rejects)
    assert first.id == "pubmedqa:21645374"
    assert (first.source, first.group, first.decision) == ("pubmedqa", "21645374", "yes")
    assert first.question == "Does treatment 0 help?"
    assert first.context[1] == Passage(text="It helped 0 of 200 patients.", label="RESULTS")
    assert first.answer == "Treatment 0 may help some patients."
    assert first.meta == {
        "url": "https://pubmed.ncbi.nlm.nih.gov/21645374/",
        "licence": "MIT",
        "subset": "PQA-L",
        "mesh": ["Humans", "Treatment Outcome"],
        "year": 2011,
    }
    assert second.meta["year"] is None
    assert len(rejects) == 0


@pytest.mark.parametrize("layout", ["published", "hub"])
def test_annotators_labels_are_never_returned(layout: str, tmp_path: Path) -> None:
    changes = {"reasoning_required_pred": "required", "reasoning_free_pred": "free"}
    if layout == "published":
        items = {str(n): layouts.pubmedqa_item(n, **changes) for n in range(3)}
        read = list(pubmedqa.read(layouts.pubmedqa(tmp_path, items), Rejects()))
    else:
        rows = [layouts.pubmedqa_hub_row(n, **changes) for n in range(3)]
        for row in rows:
            row["context"] |= changes
        read = list(pubmedqa.from_rows((("hub", row) for row in rows), Rejects()))
    assert len(read) == 3
    for example in read:
        assert not {"required", "free", "reasoning"} & set(re.findall(r"[a-z]+", example.model_dump_json()))


def test_the_conclusion_is_never_in_the_context(tmp_path: Path) -> None:
    path = layouts.pubmedqa(tmp_path, {str(n): layouts.pubmedqa_item(n) for n in range(5)})
    for example in pubmedqa.read(path, Rejects()):
        assert all(example.answer not in passage.text for passage in example.context)


def test_the_name_of_a_file_says_the_subset(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path, {"1": layouts.pubmedqa_item(1)})
    layouts.pubmedqa(tmp_path, {"2": layouts.pubmedqa_item(2)}, "ori_pqaa.json")
    layouts.pubmedqa(tmp_path, {"3": layouts.pubmedqa_item(3, final_decision=None)}, "ori_pqau.json")
    assert [e.id for e in pubmedqa.read(tmp_path, Rejects())] == ["pubmedqa:1"]
    (artificial,) = pubmedqa.read(tmp_path / "ori_pqaa.json", Rejects())
    assert artificial.meta["subset"] == "PQA-A"
    (unlabeled,) = pubmedqa.read(tmp_path / "ori_pqau.json", Rejects())
    assert unlabeled.meta["subset"] == "PQA-U"


def test_bad_items_are_rejected_and_named(tmp_path: Path) -> None:
    item = layouts.pubmedqa_item
    path = layouts.pubmedqa(
        tmp_path,
        {
            "1": item(1, QUESTION=" "),
            "2": item(2, final_decision="perhaps"),
            "3": item(3, final_decision=None, LONG_ANSWER=""),
            "4": item(4, CONTEXTS=[]),
            "5": "not an item",
            "6": item(6, LABELS=["ONE"]),
        },
    )
    rejects = Rejects()
    (kept,) = pubmedqa.read(path, rejects)
    assert [p.label for p in kept.context] == ["", ""]
    assert [(row["where"], row["reason"]) for row in rejects.rows()] == [
        (f"{path}, item 1", "no question"),
        (f"{path}, item 2", "unknown decision (not yes, no or maybe)"),
        (f"{path}, item 3", "neither answer nor decision"),
        (f"{path}, item 4", "no context"),
        (f"{path}, item 5", "no question"),
    ]


def test_hub_rows_as_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [layouts.pubmedqa_hub_row(0), layouts.pubmedqa_hub_row(1), layouts.pubmedqa_hub_row(1)]
    lines = tmp_path / "hub.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "pqa_labeled").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "pqa_labeled" / "train-00000-of-00001.parquet"
    )

    rejects = Rejects()
    from_lines = list(pubmedqa.read(lines, rejects))
    assert [row["where"] for row in rejects.rows()] == [f"{lines}:3"]
    assert rejects.counts() == {"pubmedqa": {"duplicate id": 1}}
    assert from_lines == list(pubmedqa.read(tmp_path, Rejects()))
    assert from_lines[0].id == "pubmedqa:20000000"
    assert from_lines[0].context == (Passage(text="We studied treatment 0.", label="BACKGROUND"),)
    assert from_lines == list(pubmedqa.from_rows((("hub", row) for row in rows), Rejects()))


def test_a_cut_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = layouts.pubmedqa(tmp_path, {"1": layouts.pubmedqa_item(1)})
    path.write_text(path.read_text(encoding="utf-8")[:300], encoding="utf-8")
    with pytest.raises(DataError, match=r"ori_pqal\.json, line \d+"):
        list(pubmedqa.read(path, Rejects()))
    path.unlink()
    with pytest.raises(DataError, match=r"no ori_pqal\.json in this folder"):
        list(pubmedqa.read(tmp_path, Rejects()))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but cut")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(pubmedqa.read(tmp_path / "x.parquet", Rejects()))
    with pytest.raises(DataError, match="no such file or folder"):
        list(pubmedqa.read(tmp_path / "nowhere", Rejects()))


def test_the_split_needs_every_item_or_the_ids(tmp_path: Path) -> None:
    path = layouts.pubmedqa(tmp_path, {str(n): layouts.pubmedqa_item(n) for n in range(6)})
    examples = list(pubmedqa.read(path, Rejects()))
    train, test = pubmedqa.official_split(examples, ["4", "1"])
    assert [e.group for e in train] == ["0", "2", "3", "5"]
    assert [e.group for e in test] == ["4", "1"]
    with pytest.raises(DataError, match=r"1,000 items of PQA-L with a decision, but these data contain 6"):
        pubmedqa.official_split(examples)
    with pytest.raises(DataError, match=r"1 of 2 official test items are missing from the data \(first: 99\)"):
        pubmedqa.official_split(examples, ["1", "99"])


def test_folds_of_a_complete_set_are_even_and_disjoint(tmp_path: Path) -> None:
    path = layouts.pubmedqa(tmp_path, {str(n): layouts.pubmedqa_item(n) for n in range(1000)})
    examples = list(pubmedqa.read(path, Rejects()))
    train, test = pubmedqa.official_split(examples)
    folds = pubmedqa.official_folds(examples)
    ids = [e.id for fold in folds for e in fold]
    assert len(folds) == 10
    assert len(set(ids)) == len(ids) == len(train)
    assert set(ids) == {e.id for e in train}
    assert not set(ids) & {e.id for e in test}


def test_ground_truth_must_hold_decisions(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path, {"1": "yes", "2": "perhaps"}, "test_ground_truth.json")
    with pytest.raises(DataError, match="yes, no or maybe"):
        pubmedqa.ground_truth(tmp_path)


@pytest.mark.real
def test_the_real_file_and_its_official_split(real_data: Path) -> None:
    rejects = Rejects()
    started = time.monotonic()
    examples = list(pubmedqa.read(real_data / "pubmedqa", rejects))
    assert time.monotonic() - started < 10
    assert (len(examples), len(rejects)) == (1000, 0)

    truth = pubmedqa.ground_truth(real_data / "pubmedqa")
    train, test = pubmedqa.official_split(examples)
    assert [e.group for e in test] == list(truth)  # the same ids, even in the same order
    assert [e.decision for e in test] == list(truth.values())
    assert Counter(e.decision for e in test) == {"yes": 276, "no": 169, "maybe": 55}
    assert (train, test) == pubmedqa.official_split(examples, truth)

    folds = pubmedqa.official_folds(examples)
    assert [len(fold) for fold in folds] == [50] * 10
    assert {e.id for fold in folds for e in fold} == {e.id for e in train}
    # From a run of the publisher's preprocess/split_dataset.py: ids by blanks within a fold, folds by newlines.
    listing = "\n".join(" ".join(e.group for e in fold) for fold in folds)
    assert hashlib.sha256(listing.encode()).hexdigest() == (
        "a7c179ef41a560f8dc7824fcb49086bbf47b358970905c22b5f292fe45e23562"
    )


def test_no_synthetic_example_passes_for_a_published_study() -> None:
    reader = SOURCES["sample"].reader
    assert reader is not None
    rejects = Rejects()
    examples = list(reader(locate_source("sample"), rejects))
    assert len(examples) >= 100
    assert len(rejects) == 0
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        assert example.id.startswith("sample:")
        assert (example.source, example.meta["licence"], example.meta["synthetic"]) == ("sample", "CC0-1.0", True)
        assert "url" not in example.meta
        assert example.decision
        assert example.answer
        assert example.context
