"""What people decided, applied to the data: dropped, replaced, marked, refused, and never on test items."""

from __future__ import annotations

import json

import pytest

from meditune.data.example import Example
from meditune.data.prepare import prepare
from meditune.data.quality.ledger import entries
from meditune.data.reviewer_decisions import RULE, RowDecision, fingerprint, read_decisions
from meditune.errors import DataError
from meditune.files import read_json, write_jsonl
from tests import layouts
from tests.commands import meditune, read_rows
from tests.data.test_prepare import own, recipe


def decide(path, examples, **by_number):
    """A file of decisions about the rows with these numbers: n3="wrong", n4=("incomplete", "New answer.")."""
    known = {example.id: example for example in examples}
    lines = []
    for name, said in by_number.items():
        verdict, answer = said if isinstance(said, tuple) else (said, "")
        example = known[f"own:{name[1:]}"]
        decided = RowDecision(
            id=example.id, verdict=verdict, answer=answer, raters=("R1", "R2"), set="s1", sha256=fingerprint(example)
        )
        lines.append(decided.model_dump(mode="json"))
    write_jsonl(path, lines)
    return str(path)


def prepared(tmp_path, name, **data):
    return prepare(recipe(own(tmp_path), **data), tmp_path / name)


@pytest.fixture
def plain(tmp_path):
    return prepared(tmp_path, "plain").splits


def test_rows_are_dropped_replaced_and_marked_and_all_is_written_down(tmp_path, plain):
    names = [f"n{example.id.partition(':')[2]}" for example in plain.train[:6]]
    verdicts = ("wrong", "unsafe", "off-topic", "correct", "incomplete", ("wrong", "A new answer."))
    file = decide(tmp_path / "d.jsonl", plain.train, **dict(zip(names, verdicts, strict=True)))
    made = prepared(tmp_path, "out", decisions=file)
    before, after = ({e.id: e for e in splits.train} for splits in (plain, made.splits))
    ids = [f"own:{name[1:]}" for name in names]
    assert set(before) - set(after) == set(ids[:3])
    assert after[ids[3]].meta["validated"]["verdict"] == "correct"
    assert after[ids[3]].answer == before[ids[3]].answer
    assert after[ids[4]].meta["validated"]["verdict"] == "incomplete"
    assert after[ids[5]].answer == "A new answer."
    assert after[ids[5]].decision is None, "it was judged together with the answer that was wrong"
    assert all("validated" not in example.meta for id, example in after.items() if id not in ids)
    assert made.splits.test == plain.test
    quality = read_json(tmp_path / "out" / "quality.json")
    assert quality["decisions"]["actions"] == {"drop": 3, "validate": 1, "flag": 1, "replace": 1}
    assert quality["decisions"]["verdicts"]["wrong"] == 2
    assert quality["splits"]["train"]["examples"] == len(plain.train) - 3
    ledger = {row["id"]: row for row in entries(tmp_path / "out") if row["rule"] == RULE}
    assert set(ledger) == set(ids)
    assert set(ledger[ids[0]]) == {"id", "rule", "action", "before", "after", "source", "detail"}
    assert json.loads(ledger[ids[0]]["before"])["answer"] == before[ids[0]].answer
    assert (ledger[ids[0]]["after"], ledger[ids[0]]["action"]) == (None, "drop")
    assert json.loads(ledger[ids[5]]["after"])["answer"] == "A new answer."
    assert "R1, R2" in ledger[ids[0]]["detail"]


def test_without_decisions_nothing_is_written_of_them(tmp_path, plain):
    assert all(row["rule"] != RULE for row in entries(tmp_path / "plain"))
    assert "decisions" not in read_json(tmp_path / "plain" / "quality.json")


def test_incomplete_rows_are_kept_with_a_mark(tmp_path, plain):
    example = plain.dev[0]
    file = decide(tmp_path / "d.jsonl", plain.dev, **{f"n{example.id[4:]}": "incomplete"})
    kept = prepared(tmp_path, "kept", decisions=file).splits.dev
    assert next(e for e in kept if e.id == example.id).meta["validated"]["verdict"] == "incomplete"


def test_decisions_move_no_row_and_leave_test_items_alone(tmp_path, plain):
    names = {f"n{example.id[4:]}": "wrong" for example in (*plain.test, *plain.train[:5])}
    made = prepared(tmp_path, "out", decisions=decide(tmp_path / "d.jsonl", (*plain.test, *plain.train), **names))
    assert made.splits.test == plain.test
    assert made.splits.train == plain.train[5:]
    assert made.splits.dev == plain.dev
    assert made.quality["decisions"]["actions"] == {"drop": 5, "leave": len(plain.test)}


def test_pubmedqas_official_test_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    items = {str(20_000_000 + number): layouts.pubmedqa_item(number) for number in range(1000)}
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    meditune("data", "prepare", "quickstart", "-o", tmp_path / "a").ok()
    rows = [row for name in ("train", "test") for row in read_rows(tmp_path / "a" / "data" / f"{name}.jsonl")]
    lines = [
        RowDecision(id=row["id"], verdict="wrong", answer="Changed.", sha256=fingerprint(Example.model_validate(row)))
        for row in rows[-600:]
    ]
    write_jsonl(tmp_path / "d.jsonl", (each.model_dump(mode="json") for each in lines))
    meditune(
        "data", "prepare", "quickstart", "-o", tmp_path / "b", "--set", f"data.decisions={tmp_path / 'd.jsonl'}"
    ).ok()
    for name, same in (("test", True), ("train", False)):
        texts = [(tmp_path / run / "data" / f"{name}.jsonl").read_bytes() for run in ("a", "b")]
        assert (texts[0] == texts[1]) is same
    assert read_json(tmp_path / "b" / "data" / "quality.json")["decisions"]["actions"] == {"replace": 100, "leave": 500}
    again = ("data", "prepare", "quickstart", "-o", tmp_path / "b", "--set", f"data.decisions={tmp_path / 'd.jsonl'}")
    assert "People's decisions: 100 replace, 500 leave; 0 about rows that aren't in the data" in meditune(*again).out
    write_jsonl(tmp_path / "d.jsonl", [])
    meditune(*again).refused(3, "d.jsonl has changed since the data", "another --output")


def test_a_row_that_changed_since_it_was_judged_is_refused(tmp_path, plain):
    numbers = [example.id[4:] for example in plain.train[:5]]
    file = decide(tmp_path / "d.jsonl", plain.train, **{f"n{n}": "correct" for n in numbers})
    with pytest.raises(
        DataError, match=r"d\.jsonl: the question, context, answer or decision of own:\d+, .* and 2 more"
    ):
        prepare(recipe(own(tmp_path, answer="Another answer."), decisions=file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_decisions_about_rows_that_arent_there_are_counted(tmp_path, plain):
    file = decide(tmp_path / "d.jsonl", plain.train, **{f"n{plain.train[0].id[4:]}": "correct"})
    rows = read_rows(tmp_path / "d.jsonl")
    write_jsonl(tmp_path / "d.jsonl", [*rows, rows[0] | {"id": "own:999"}])
    assert prepared(tmp_path, "out", decisions=file).quality["decisions"]["not_in_the_data"] == 1


def test_decisions_that_leave_nothing_are_refused(tmp_path, plain):
    everything = {f"n{example.id[4:]}": "wrong" for example in plain.dev}
    with pytest.raises(DataError, match="leave no rows in the dev split"):
        prepared(tmp_path, "out", decisions=decide(tmp_path / "d.jsonl", plain.dev, **everything))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": "own:1", "verdict": "fine", "sha256": "' + "0" * 64 + '"}', "line 2: not a valid RowDecision"),
        ('{"id": "own:1", "verdict": "correct", "sha256": "x"}', "line 2: not a valid RowDecision"),
        ('{"id": "own:0", "verdict": "correct", "sha256": "' + "0" * 64 + '"}', "own:0 has several decisions"),
    ],
)
def test_a_damaged_file_is_told_with_its_line(tmp_path, line, told):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "own:0", "verdict": "correct", "sha256": "' + "0" * 64 + f'"}}\n{line}\n')
    with pytest.raises(DataError, match=told):
        read_decisions(path)
