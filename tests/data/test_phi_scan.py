"""`meditune data phi`, as its user meets it."""

import csv
import json

import pytest

from tests.commands import jsonl, meditune, read_rows
from tests.data import layouts

NOTE = "Ms. Iwona Zelazny (MRN: 4471123) was seen on 3/14/2012 by Dr. Okonkwo."
SECRETS = ("Zelazny", "Iwona", "4471123", "3/14/2012", "Okonkwo")


def hidden(text):
    return not any(secret in text for secret in SECRETS)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "notes.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [["patient_id", "nurse_name", "note"], ["9", "Okonkwo", NOTE], ["10", "", "Fine."]]
        )
    return path


def test_a_table_of_counts_without_the_text(table):
    done = meditune("data", "phi", table)
    assert done.code == 0
    assert f"{table}: 1 of 2 rows" in done.out
    assert [line.split() for line in done.out.splitlines()[2:5]] == [
        ["name", "3", "1"],
        ["mrn", "1", "1"],
        ["date", "1", "1"],
    ]
    assert "doesn't prove that a text is free" in done.last
    assert hidden(done.out + done.err)


def test_places_are_shown_with_all_that_was_found_blotted_out(table):
    done = meditune("data", "phi", table, "--show", 10)
    assert f"{table}:2 note (mrn): Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME]." in done.out
    assert hidden(done.out)


def test_a_masked_copy(table, tmp_path):
    out = tmp_path / "masked.csv"
    done = meditune("data", "phi", table, "--mask", out)
    assert f"Written: {out}" in done.out
    assert out.read_text(encoding="utf-8").splitlines() == [
        "patient_id,nurse_name,note",
        "9,[NAME],Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME].",
        "10,,Fine.",
    ]


def test_surrogates_by_patient(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "a secret of the clinic")
    notes = [{"patient": patient, "note": {"text": NOTE}} for patient in (1, 1, 2)]
    out = tmp_path / "out.jsonl"
    meditune(
        "data", "phi", jsonl(tmp_path / "in.jsonl", notes), "--mask", out, "--action", "surrogate", "--group", "patient"
    )
    first, second, third = (row["note"]["text"] for row in read_rows(out))
    assert first == second != third
    assert hidden(first + third)


def test_a_text_and_a_kind(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text(NOTE, encoding="utf-8")
    meditune("data", "phi", note, "--kind", "date", "--mask", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == NOTE.replace("3/14/2012", "[DATE]")


def test_a_recipes_data(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    items = {str(number): layouts.pubmedqa_item(number, CONTEXTS=[NOTE]) for number in range(5)}
    layouts.pubmedqa(tmp_path / "pubmedqa", items)
    done = meditune("data", "phi", "quickstart")
    assert "pubmedqa: 5 of 5 rows" in done.out
    assert hidden(done.out + done.err)


def test_what_can_not_be_done_is_said(table, tmp_path):
    meditune("data", "phi", table, "--kind", "nmae").refused(3, "--kind nmae: no such kind. Choose from name, date")
    meditune("data", "phi", table, "--action", "mask").refused(3, "together with --mask OUT")
    meditune("data", "phi", table, "--mask", tmp_path / "out.xml").refused(3, "must end in one of .jsonl, .csv, .tsv")
    meditune("data", "phi", table, "--group", "patient").refused(
        3, "no column patient (--group). The columns are patient_id"
    )
    meditune("data", "phi", "quickstart", "--mask", tmp_path / "o").refused(3, "--set data.phi.action=mask")
    meditune("data", "phi", tmp_path / "none.csv").refused(3, "no such file")
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_file_is_named_without_its_text(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"note": NOTE}) + '\n{"note": "Ms. Zelazny', encoding="utf-8")
    done = meditune("data", "phi", path, "--mask", tmp_path / "out.jsonl")
    done.refused(3, "bad.jsonl, line 2")
    assert hidden(done.err)
    assert not (tmp_path / "out.jsonl").exists()


def test_no_file_that_is_there_is_overwritten(table):
    before = table.read_bytes()
    meditune("data", "phi", table, "--mask", table).refused(3, "isn't overwritten", "another name")
    assert table.read_bytes() == before
