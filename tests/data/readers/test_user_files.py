import json
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow
import pyarrow.parquet
import pytest

from meditune.data.example import LABEL, LABELS, Example, Passage, write_records
from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.data.sources import locate_own
from meditune.errors import DataError
from tests.layouts import jsonl


def test_json_lines_with_guessed_columns(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "clinic.jsonl",
        [
            {"Prompt": "Is it flu?", "Response": "Perhaps.", "label": "Maybe", "context": "Cough.", "ward": 7},
            {"Prompt": "IS  it flu?", "Response": "No.", "context": ["One.", "", "Two."], "patient_id": 12.0},
            {"Prompt": "Why?", "Response": "So.", "context": [{"text": "A", "label": "RESULTS"}], "id": "x9"},
        ],
    )
    rejects = Rejects()
    first, second, third = user_files.read(path, rejects)
    assert first.model_dump() == {
        "id": "own:clinic-1",
        "source": "own",
        "question": "Is it flu?",
        "context": ({"text": "Cough.", "label": ""},),
        "answer": "Perhaps.",
        "decision": "maybe",
        "group": first.group,
        "meta": {"ward": 7},
    }
    assert (second.context, second.group) == ((Passage(text="One."), Passage(text="Two.")), "12")
    assert (third.id, third.context) == ("own:x9", (Passage(text="A", label="RESULTS"),))
    assert len(rejects) == 0


def test_the_same_question_gets_the_same_group(tmp_path: Path) -> None:
    rows = [{"question": "Is it flu?", "answer": "No."}, {"question": " is IT  flu?", "answer": "Yes."}]
    first, second = user_files.read(jsonl(tmp_path / "a.jsonl", rows), Rejects())
    assert first.group == second.group


def test_csv_with_named_columns_and_lines_inside_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        '\ufeffnr,frage,antwort,urteil\n1,"Hilft\nes?",Ja.,yes\n\n2,,Nein.,no\n3,Wann?,,\n4,Wo?,Hier.,perhaps\n'
        "1,Wer?,Du.,\n5,Zu,viel,hier,drin\n6,Warum?,Darum.,\n",
        encoding="utf-8",
    )
    fields = {"id": "nr", "question": "frage", "answer": "antwort", "decision": "urteil"}
    rejects = Rejects()
    kept = list(user_files.read(path, rejects, fields=fields, source="klinik"))
    assert [(example.id, example.decision) for example in kept] == [("klinik:1", "yes"), ("klinik:6", None)]
    assert kept[0].question == "Hilft\nes?"
    assert [(row["where"], row["reason"]) for row in rejects.rows()] == [
        (f"{path}:9", "5 fields, but the header has 4"),
        (f"{path}:5", "no question"),
        (f"{path}:6", "neither answer nor decision"),
        (f"{path}:7", "unknown decision (not yes, no or maybe)"),
        (f"{path}:8", "duplicate id"),
    ]
    assert set(rejects.counts()) == {"klinik"}


def test_parquet_tsv_and_json(tmp_path: Path) -> None:
    rows = [{"question": "Q1?", "answer": "A1.", "context": ["C"]}, {"question": "Q2?", "answer": None, "context": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    rejects = Rejects()
    (from_parquet,) = user_files.read(tmp_path / "a.parquet", rejects)
    assert [row["where"] for row in rejects.rows()] == [f"{tmp_path / 'a.parquet'}, row 2"]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    assert list(user_files.read(tmp_path / "a.json", Rejects())) == [from_parquet]
    (tmp_path / "a.tsv").write_text("question\tanswer\tcontext\nQ1?\tA1.\tC\n", encoding="utf-8")
    assert list(user_files.read(tmp_path / "a.tsv", Rejects())) == [from_parquet]


def test_keys_of_databases_are_groups_and_years_are_numbers(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{n}?", "answer": "A.", "patient_id": key, "year": year}
        for n, (key, year) in enumerate(((Decimal(1001), 2015.0), (Decimal(1001), None), (Decimal(1002), 1999.0)))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(user_files.read(tmp_path / "a.parquet", Rejects()))
    assert [example.group for example in found] == ["1001", "1001", "1002"]
    assert [example.meta["year"] for example in found] == [2015, None, 1999]
    (tmp_path / "a.csv").write_text("question,answer,year\nQ?,A.,2015\nR?,A.,2016.0\n", encoding="utf-8")
    assert [each.meta["year"] for each in user_files.read(tmp_path / "a.csv", Rejects())] == [2015, 2016]
    keys = [b"p1", UUID(int=1), b"\xff\xfe", ["p1"]]
    rejects = Rejects()
    stream = ((f"row {n}", {"question": f"Q{n}?", "answer": "A.", "group": key}) for n, key in enumerate(keys))
    assert [each.group for each in user_files.from_rows(stream, rejects)] == ["p1", str(UUID(int=1)), "fffe"]
    assert [row["reason"] for row in rejects.rows()] == ["group is not text or a number"]


def test_numbers_keep_all_digits(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "answer": 1234567.5, "id": 1234567.1, "group": 12345678.25},
        {"question": "How many more?", "answer": 0.000123456789, "id": 1234567.2, "group": 12345678.75},
    ]
    found = list(user_files.read(jsonl(tmp_path / "a.jsonl", rows), Rejects()))
    assert [(each.id, each.answer, each.group) for each in found] == [
        ("own:1234567.1", "1234567.5", "12345678.25"),
        ("own:1234567.2", "0.000123456789", "12345678.75"),
    ]
    columns = {
        "question": ["How much?", "How little?"],
        "answer": [Decimal("1234567.89"), Decimal("0.01")],
        "group": pyarrow.array([0.1, 7], pyarrow.float32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    exact = user_files.read(tmp_path / "a.parquet", Rejects())
    assert [(each.answer, each.group) for each in exact] == [("1234567.89", "0.1"), ("0.01", "7")]


def test_examples_written_by_meditune_come_back(tmp_path: Path) -> None:
    example = Example(
        id="pubmedqa:1",
        source="pubmedqa",
        question="Why?",
        context=(Passage(text="T", label="L"),),
        decision="no",
        group="1",
        meta={"year": 2011},
    )
    write_records(tmp_path / "kept.jsonl", [example])
    (back,) = user_files.read(tmp_path / "kept.jsonl", Rejects())
    assert (back.id, back.context, back.group) == ("own:pubmedqa:1", example.context, "1")
    assert back.meta == {"year": 2011, "source": "pubmedqa"}
    claim = Example(
        id="a:1", source="a", question="Aspirin helps.", context=example.context, group="1", meta={LABEL: "refuted"}
    )
    write_records(tmp_path / "claims.jsonl", [claim])
    (back,) = user_files.read(tmp_path / "claims.jsonl", Rejects())
    assert (back.label, back.question, back.context) == ("refuted", claim.question, claim.context)


def test_columns_that_cannot_be_told_are_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "Answer.", "input": "Flu?", "answer": "No."}])
    with pytest.raises(DataError, match="both 'instruction' and 'input' could be the question"):
        list(user_files.read(path, Rejects()))
    (chosen,) = user_files.read(path, Rejects(), fields={"question": "input"})
    assert (chosen.question, chosen.answer, chosen.meta) == ("Flu?", "No.", {"instruction": "Answer."})
    with pytest.raises(DataError, match=r"no column 'inputs' \(fields\.question\).*Did you mean 'input'\?"):
        list(user_files.read(path, Rejects(), fields={"question": "inputs"}))
    with pytest.raises(DataError, match=r"fields\.frage isn't a known field"):
        list(user_files.read(path, Rejects(), fields={"frage": "input"}))
    with pytest.raises(DataError, match=r"no column for the question\. The columns are 'q', 'a'"):
        list(user_files.read(jsonl(tmp_path / "b.jsonl", [{"q": "Flu?", "a": "No."}]), Rejects()))
    with pytest.raises(DataError, match="no column for the answer or decision"):
        list(user_files.read(jsonl(tmp_path / "c.jsonl", [{"question": "Flu?"}]), Rejects()))


def test_spaces_around_column_names_do_not_matter(tmp_path: Path) -> None:
    names = ["\u200bquestion", "Answer\xa0", " context", "group "]
    values = ["Is it flu?", "No.", "Cough.", "p1"]
    (tmp_path / "a.csv").write_text(f"{','.join(names)}\n{','.join(values)}\n", encoding="utf-8")
    row = dict(zip(names, values, strict=True))
    jsonl(tmp_path / "a.jsonl", [row])
    (tmp_path / "a.json").write_text(json.dumps([row]), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet"):
        for fields in ({}, {"question": "\ufeffquestion", "answer": "Answer", "group": "group "}):
            (example,) = user_files.read(tmp_path / name, Rejects(), fields=fields)
            assert (example.group, example.context_text, example.meta) == ("p1", "Cough.", {}), name
    (tmp_path / "twice.csv").write_text("question,answer,answer \nQ,A,B\n", encoding="utf-8")
    columns = [pyarrow.array(["Q"]), pyarrow.array(["A"]), pyarrow.array(["B"])]
    table = pyarrow.Table.from_arrays(columns, ["question", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "twice.parquet")
    for name in ("twice.csv", "twice.parquet"):
        with pytest.raises(DataError, match="a column name occurs twice in question, answer, answer"):
            list(user_files.read(tmp_path / name, Rejects()))
    # One such row among many doesn't make a file of objects unreadable.
    rows = [{"question": "Q", "answer": "A"}, {"question": "R", "answer": "A", "answer ": "B"}]
    path = jsonl(tmp_path / "twice.jsonl", rows)
    assert [(each.answer, each.meta) for each in user_files.read(path, Rejects())] == [
        ("A", {}),
        ("A", {"answer ": "B"}),
    ]
    (example,) = user_files.read(jsonl(path, rows[1:]), Rejects(), fields={"answer": "answer "})
    assert (example.answer, example.meta) == ("B", {"answer": "A"})


def test_a_json_file_can_contain_json_lines(tmp_path: Path) -> None:
    rows = [{"question": "Q1?", "answer": "A1."}, {"question": "Q2?", "answer": "A2."}]
    path, rejects = jsonl(tmp_path / "a.json", [*rows, {"question": "Q3?"}]), Rejects()
    assert [(each.id, each.answer) for each in user_files.read(path, rejects)] == [
        ("own:a-1", "A1."),
        ("own:a-2", "A2."),
    ]
    assert [row["where"] for row in rejects.rows()] == [f"{path}:3"]
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    assert [each.answer for each in user_files.read(path, Rejects())] == ["A1.", "A2."]


def test_what_excel_adds_to_a_csv_file_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in (
        "question,answer,,\nQ?,A.,,\n",
        ",question,answer,\n,Q?,A., \n",
        "sep=,\nquestion,answer\nQ?,A.\n",
        "sep=;\r\nquestion;answer\r\nQ?;A.\r\n",
        'question, answer\n"Q?", "A."\n',
    ):
        path.write_text(text, encoding="utf-8", newline="")
        (example,) = user_files.read(path, Rejects())
        assert (example.question, example.answer, example.meta) == ("Q?", "A.", {}), text
    path.write_text(",question,answer\n0,Q?,A.\n", encoding="utf-8")  # pandas writes its index without a name
    assert next(user_files.read(path, Rejects())).meta == {"": "0"}
    path.write_text("question,answer,,\nQ?,A.,,\nR?,B.,,note\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv, line 3: column 4 contains a value but has no name in the header"):
        list(user_files.read(path, Rejects()))
    path.write_text("sep=;\nquestion;answer\nQ?;A.;B.\n", encoding="utf-8")
    rejects = Rejects()
    with pytest.raises(DataError, match=r"no rows.*a\.csv:3: 3 fields, but the header has 2\."):
        list(user_files.read(path, rejects))
    assert [row["where"] for row in rejects.rows()] == [f"{path}:3"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        list(user_files.read(tmp_path / "gone.jsonl", Rejects()))
    (tmp_path / "a.docx").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"'\.docx' isn't a supported format"):
        list(user_files.read(tmp_path / "a.docx", Rejects()))
    (tmp_path / "empty.csv").write_text("question,answer\n", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        list(user_files.read(tmp_path / "empty.csv", Rejects()))
    (tmp_path / "quote.csv").write_text('question,answer\nQ,A\nQ,"A\nmore\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"quote\.csv, line 3: unexpected end of data"):
        list(user_files.read(tmp_path / "quote.csv", Rejects()))


def test_odd_contexts(tmp_path: Path) -> None:
    rows = [
        {"question": "1?", "answer": "A", "context": {"contexts": ["C1", "C2"], "labels": ["L1", "L2"]}},
        {"question": "2?", "answer": "A", "context": None},
        {"question": "3?", "answer": "A", "context": [3]},
        {"question": "4?", "answer": "A", "context": {"what": 1}},
    ]
    rejects = Rejects()
    first, second = user_files.read(jsonl(tmp_path / "a.jsonl", rows), rejects)
    assert first.context == (Passage(text="C1", label="L1"), Passage(text="C2", label="L2"))
    assert second.context == ()
    assert sum(rejects.counts()["own"].values()) == 2


def test_a_list_of_passages_in_a_text_cell(tmp_path: Path) -> None:
    cells = ['["C1", "C2"]', '[{"text": "C1", "label": "RESULTS"}]', '{"contexts": ["C1"], "labels": ["AIM"]}', "[]"]
    cells += ["['C1', \"C'2\"]", "{'contexts': ['C1'], 'labels': None}"]  # as pandas writes them
    cells += ["[1]", "[Background] We asked.", '["C1"', '{"what": 1}', "['C1'\n 'C2']", "[Aim] To ask [again]", "{x}"]
    rows = [{"question": f"{n}?", "answer": "A", "context": each} for n, each in enumerate(cells)]
    quoted = (each.replace('"', '""') for each in cells)
    lines = (f'{n}?,A,"{each}"\n' for n, each in enumerate(quoted))
    (tmp_path / "a.csv").write_text("question,answer,context\n" + "".join(lines), encoding="utf-8")
    expected = [
        (Passage(text="C1"), Passage(text="C2")),
        (Passage(text="C1", label="RESULTS"),),
        (Passage(text="C1", label="AIM"),),
        (),
        (Passage(text="C1"), Passage(text="C'2")),
        (Passage(text="C1"),),
        *((Passage(text=each),) for each in cells[6:]),
    ]
    for path in (tmp_path / "a.csv", jsonl(tmp_path / "a.jsonl", rows)):
        assert [each.context for each in user_files.read(path, Rejects())] == expected
    unusable = ['["C1 \\ud800"]', '["C1\\u0000"]']  # JSON escapes of characters that no file may contain
    path = jsonl(tmp_path / "b.jsonl", [rows[0] | {"id": n, "context": each} for n, each in enumerate(unusable)])
    assert [each.context_text for each in user_files.read(path, Rejects())] == unusable


def test_a_data_set_by_its_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    # `datasets` reads a folder of that name as it reads the hub, so this needs no network.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clinic" / "questions").mkdir(parents=True)
    jsonl(tmp_path / "clinic" / "questions" / "train.jsonl", [{"question": "Flu?", "answer": "No.", "ward": 7}])
    (example,) = user_files.read("clinic/questions", Rejects())
    assert (example.id, example.meta) == ("own:clinic/questions-1", {"ward": 7})
    with pytest.raises(DataError, match=r"clinic/questions: .* the split 'nowhere' can't be read from the hub"):
        list(user_files.hub_rows("clinic/questions", "nowhere", None))
    (tmp_path / "clinic" / "questions").rename(tmp_path / "clinic" / "questions-2.5")
    (example,) = user_files.read(locate_own("clinic/questions-2.5"), Rejects())
    assert example.question == "Flu?"
    assert locate_own("elsewhere/questions-2.5-small") == "elsewhere/questions-2.5-small"
    for missing in ("clinic/questions.csv", "clinic/questions.docx"):
        with pytest.raises(DataError, match="No file"):
            locate_own(missing)


def test_a_large_file_is_read_quickly(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "answer": "A" * 200} for n in range(20_000)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    started = time.monotonic()
    assert sum(1 for _ in user_files.read(path, Rejects())) == 20_000
    assert time.monotonic() - started < 20


def test_columns_that_first_appear_far_below_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"Q{n}?", "answer": "A."} for n in range(1000)]
    late = {"Context": "It helps.", "final_decision": "Yes", "pmid": 7, "topic": "gout"}
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"question": "Does it help?"} | late])
    rejects = Rejects()
    example = list(user_files.read(path, rejects))[-1]
    assert not len(rejects)
    assert (example.context, example.decision) == ((Passage(text="It helps."),), "yes")
    assert (example.question, example.group, example.meta) == ("Does it help?", "7", {"topic": "gout"})


@pytest.mark.parametrize("column", [[{"pmid": 7, "title": "A trial"}], 3, "Smith 2019", ["", "It helps."]])
def test_references_that_are_no_answers_are_kept_under_another_name(tmp_path: Path, column: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "answer": "A.", "references": column}])
    (example,) = user_files.read(path, Rejects())
    assert example.references() == ["A."]
    assert example.meta == {"own_references": column}


@pytest.mark.parametrize("column", [["B."], [{"answer": "B.", "url": "u"}]])
def test_references_that_are_answers_stay_answers(tmp_path: Path, column: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "answer": "A.", "references": column}])
    (example,) = user_files.read(path, Rejects())
    assert example.references() == ["A.", "B."]
    assert example.meta == {"references": column}


def test_rows_are_counted_and_written(tmp_path: Path) -> None:
    rejects = Rejects()
    rejects.add("own", "a.csv:3", "no question", {"question": "", "answer": "Käse"})
    rejects.add("own", "a.csv:9", "no question", {"answer": "x" * 2000})
    rejects.count_only("medquad", "no answer", 31)
    rejects.count_only("medquad", "never", 0)

    assert rejects.counts() == {"medquad": {"no answer": 31}, "own": {"no question": 2}}
    assert len(rejects) == 33
    assert rejects.write(tmp_path / "rejects.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "source": "own",
        "where": "a.csv:3",
        "reason": "no question",
        "row": '{"question": "", "answer": "Käse"}',
    }
    assert len(lines[1]["row"]) == 500


def test_rows_can_be_added_after_writing(tmp_path: Path) -> None:
    rejects = Rejects()
    rejects.add("own", "1", "bad", "a")
    assert rejects.write(tmp_path / "r.jsonl") == 1
    rejects.add("own", "2", "bad", "b")
    assert [row["where"] for row in rejects.rows()] == ["1", "2"]


def test_many_rows_take_little_memory() -> None:
    rejects = Rejects()
    tracemalloc.start()
    for number in range(20_000):
        rejects.add("own", f"file:{number}", "no question", "x" * 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000  # the rows are 12 MB
    assert len(list(rejects.rows())) == 20_000


def claims(tmp_path, rows, **options):
    path, rejects = tmp_path / "claims.jsonl", Rejects()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(user_files.read(path, rejects, **options)), rejects


def test_a_file_with_claims_and_evidence_is_read_as_claims_with_the_words_of_publishers(tmp_path):
    row = {"claim": "The drug helps.", "evidence": "Pain fell.", "label": "SUPPORT"}
    rows = [row, row | {"label": "Refutes"}, row | {"label": "NEI", "year": "2020"}, row | {"label": "perhaps"}]
    found, rejects = claims(tmp_path, [*rows, row | {"evidence": ""}], source="own/trials")
    assert [(each.id, each.label) for each in found] == [
        ("own/trials:claims-1", "supported"),
        ("own/trials:claims-2", "refuted"),
        ("own/trials:claims-3", "not_enough_information"),
    ]
    assert (found[0].question, found[0].context[0].text) == ("The drug helps.", "Pain fell.")
    assert found[0].labels == LABELS
    assert found[2].meta == {"year": 2020, LABEL: "not_enough_information"}
    assert len({each.group for each in found}) == 1
    reasons = {"unknown label (not supported, refuted, not_enough_information)": 1, "no evidence": 1}
    assert rejects.counts() == {"own/trials": reasons}


def test_a_source_with_two_labels_has_no_third_and_columns_and_words_can_be_mapped(tmp_path):
    rows = [{"text": "A.", "source_text": ["B.", "C."], "gold": gold} for gold in ("entailment", "not_entailment")]
    fields = {"claim": "text", "evidence": "source_text", "label": "gold"}
    found, _ = claims(tmp_path, rows, fields=fields, labels={"not_entailment": "refuted"})
    assert [each.label for each in found] == ["supported", "refuted"]
    assert all(each.labels == ("supported", "refuted") for each in found)
    with pytest.raises(DataError, match="no column for the label"):
        claims(tmp_path, [{"claim": "A.", "evidence": "B."}])


def test_questions_stay_questions_beside_columns_named_like_those_of_claims(tmp_path):
    row = {"question": "Is it flu?", "answer": "Perhaps.", "context": "Cough.", "statement": "S-7", "label": "yes"}
    (example,) = user_files.read(jsonl(tmp_path / "a.jsonl", [row]), Rejects())
    assert (example.question, example.decision, example.label) == ("Is it flu?", "yes", None)
    row = {"claim": "Is it flu?", "evidence": "Cough.", "verdict": "no"}
    fields = {"question": "claim", "context": "evidence", "decision": "verdict"}
    (example,) = user_files.read(jsonl(tmp_path / "b.jsonl", [row]), Rejects(), fields=fields)
    assert (example.question, example.decision, example.label) == ("Is it flu?", "no", None)
