import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.data.readers import mimic
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from tests import layouts


def test_a_discharge_summary_becomes_questions(tmp_path: Path) -> None:
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(174)])
    examples = {example.meta["section"]: example for example in mimic.read(path, Rejects())}
    assert list(examples) == [
        "hospital-course",
        "discharge-diagnosis",
        "discharge-medications",
        "discharge-instructions",
        "followup-instructions",
    ]
    medications = examples["discharge-medications"]
    assert medications.id == "mimic:174-discharge-medications"
    assert medications.group == "22532"
    assert medications.answer == "1. Levofloxacin 500 mg Tablet Sig: One (1) Tablet PO once a day."
    assert [passage.label for passage in medications.context] == ["HOSPITAL COURSE", "DISCHARGE DIAGNOSIS"]
    assert medications.meta == {
        "row_id": 174,
        "hadm_id": "167853",
        "section": "discharge-medications",
        "licence": "PhysioNet Credentialed Health Data Use Agreement 1.5.0",
        "restricted": True,
    }
    assert examples["discharge-diagnosis"].answer == "Pneumonia"
    instructions = examples["discharge-instructions"].answer
    assert instructions == (
        'You came with a lung infection. Take "all" of your tablets,\nand call us if you have a fever.'
    )
    assert examples["followup-instructions"].answer == "[DATE] visit in [LOCATION]"
    assert examples["hospital-course"].context[0].text == (
        "Mr. [NAME] is a 61 year-old man with cough, seen at [HOSPITAL]."
    )
    assert all("[**" not in example.model_dump_json() for example in examples.values())


def test_rows_that_are_left_out_are_counted_without_their_text(tmp_path: Path) -> None:
    note = layouts.note
    path = layouts.noteevents(
        tmp_path / "NOTEEVENTS.csv",
        [
            note(1),
            note(2, ISERROR="1"),
            note(3, CATEGORY="Nursing"),
            note(4, TEXT="Nothing that we ask about."),
            note(1),
            note(6, SUBJECT_ID=""),
            note(7, CATEGORY="Nursing", ISERROR="1"),
        ],
    )
    with path.open("a", encoding="utf-8") as stream:
        stream.write('8,22532,"Discharge summary","secret text"\nsecret\n')
    rejects = Rejects()
    assert {example.meta["row_id"] for example in mimic.read(path, rejects)} == {1}
    assert rejects.counts()["mimic"] == {
        "marked as an error by the hospital (ISERROR)": 2,
        "wrong number of columns": 2,
        "not a discharge summary": 1,
        "discharge summary without a section that answers a question": 1,
        "duplicate id": 1,
        "no ROW_ID or SUBJECT_ID": 1,
    }
    rows = list(rejects.rows())
    assert [row["row"] for row in rows] == [f'{{"ROW_ID": "{number}"}}' for number in ("1", "6", "8", "")]
    assert rows[0]["where"].startswith(f"{path}:")


def test_the_compressed_file_in_a_folder(tmp_path: Path) -> None:
    plain = layouts.noteevents(tmp_path / "plain.csv", [layouts.note(1), layouts.note(2)])
    layouts.noteevents(tmp_path / "data" / "NOTEEVENTS.csv.gz", [layouts.note(1), layouts.note(2)])
    assert list(mimic.read(tmp_path / "data", Rejects())) == list(mimic.read(plain, Rejects()))


def test_upper_case_headings_and_other_names() -> None:
    found = mimic.sections(
        "HISTORY OF PRESENT ILLNESS:  Cough.\n\nBRIEF HOSPITAL COURSE BY SYSTEM:\n1. Lungs: better.\n"
        "Labs on discharge: normal\nMEDICATIONS ON DISCHARGE:\n1. Aspirin\nDISCHARGE DIAGNOSES:\nFlu.\n"
        "Discharge Condition:\nGood\nFOLLOW-UP PLANS:  See us.\nDischarge Diagnosis: again"
    )
    assert found == {
        "history-of-present-illness": "Cough.",
        "hospital-course": "1. Lungs: better.",
        "discharge-medications": "1. Aspirin",
        "discharge-diagnosis": "Flu.",
        "followup-instructions": "See us.",
    }


def test_long_notes_are_read(tmp_path: Path) -> None:
    long = layouts.NOTE_TEXT + "word " * 60_000
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(1, TEXT=long)])
    assert max(len(example.answer) for example in mimic.read(path, Rejects())) > 250_000


def test_a_cut_or_foreign_file_is_an_error_that_shows_no_text(tmp_path: Path) -> None:
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", [layouts.note(n) for n in range(50)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"NOTEEVENTS\.csv, after line \d+: unexpected end of data") as caught:
        list(mimic.read(path, Rejects()))
    assert "visit" not in str(caught.value)
    packed = layouts.noteevents(tmp_path / "cut.csv.gz", [layouts.note(n) for n in range(50)])
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.csv\.gz, after line \d+"):
        list(mimic.read(packed, Rejects()))
    packed.write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"cut\.csv\.gz, after line 0"):
        list(mimic.read(packed, Rejects()))
    other = tmp_path / "other.csv"
    other.write_text("question,answer\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns ROW_ID, SUBJECT_ID"):
        list(mimic.read(other, Rejects()))
    with pytest.raises(DataError, match=r"no NOTEEVENTS\.csv"):
        list(mimic.read(tmp_path / "empty", Rejects()))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    text = layouts.NOTE_TEXT.replace("Discharge Instructions:", "was better. " * 800 + "\nDischarge Instructions:")

    def notes(number: int) -> Iterator[dict[str, object]]:
        return (layouts.note(n, TEXT=text) for n in range(number))

    def peak(path: Path) -> int:
        tracemalloc.start()
        assert sum(1 for _ in mimic.read(path, Rejects())) > 0
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small = layouts.noteevents(tmp_path / "small.csv", notes(30))
    large = layouts.noteevents(tmp_path / "large.csv", notes(300))
    assert large.stat().st_size > 3_000_000
    peak(small)  # what is loaded or cached once
    base, full = peak(small), peak(large)
    assert full < base + 180_000  # a set of 300 numbers is most of it
    assert full < 2_000_000


def test_the_notice_says_what_is_forbidden() -> None:
    assert "Data Use Agreement" in mimic.NOTICE
    assert "API" in mimic.NOTICE
