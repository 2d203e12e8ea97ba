"""What `data.phi` does to the data of a run, and `meditune data phi`, as its user meets it."""

import csv
import json
import re
from collections import Counter
from datetime import datetime, time
from time import process_time

import pyarrow
import pyarrow.parquet
import pytest

from meditune.config.data_options import DataSpec, PhiSpec, SourceSpec
from meditune.config.recipe import Recipe
from meditune.data.deidentify import cleaner, indexed_identifiers, searched_texts
from meditune.data.example import Example
from meditune.data.prepare import prepare
from meditune.data.quality.ledger import entries
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import read_json
from meditune.phi import detector
from meditune.phi.detector import find
from meditune.phi.spans import Span
from tests import layouts
from tests.commands import jsonl, meditune, read_rows, rows

SECRETS = ("Zelazny", "Iwona", "4471123", "3/14/2012", "Okonkwo")
pytestmark = pytest.mark.usefixtures("own_folders")


def prepared(path, folder, **phi):
    """A user's file as prepared in the folder's `data`."""
    data = DataSpec(sources=[SourceSpec(name="own", path=str(path))], split="group", phi=PhiSpec(**phi))
    return prepare(Recipe(name="test", data=data), folder / "data")


def made(tmp_path, **phi):
    changes = {
        "context": lambda n: "Ms. Iwona Zelazny (MRN: 4471123) was seen on 3/14/2012." if n == 3 else f"Text {n}.",
        "answer": lambda n: f"Zelazny improved with treatment {n}." if n == 3 else f"It helps {n}.",
        "nurse_name": lambda n: "Okonkwo" if n == 3 else "",
    }
    return prepared(jsonl(tmp_path / "own.jsonl", rows(40, **changes)), tmp_path / "run", **phi)


def written(tmp_path):
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    plain = "".join(path.read_text(encoding="utf-8") for path in files if path.suffix != ".parquet")
    return plain + "".join(map(str, entries(tmp_path / "run")))


def hidden(text):
    return not any(secret in text for secret in SECRETS)


def row_3(tmp_path):
    folder = tmp_path / "run" / "data"
    every = [row for name in ("train", "dev", "test") for row in read_rows(folder / f"{name}.jsonl")]
    return next(row for row in every if row["id"] == "own:3")


def test_found_counted_and_said_loudly_but_left(tmp_path, capsys):
    quality = made(tmp_path).quality
    assert quality["phi"]["sources"]["own"] == {
        "examples": 40,
        "with_identifiers": 1,
        "kinds": {"name": 3, "mrn": 1, "date": 1},
        "examples_by_kind": {"name": 1, "mrn": 1, "date": 1},
    }
    # Equal data give an equal file, whatever the order of Python's sets.
    assert list(quality["phi"]["sources"]["own"]["examples_by_kind"]) == ["date", "mrn", "name"]
    said = capsys.readouterr().err
    assert "WARNING: own: 1 of 40 examples contains identifiers of people (3 name, 1 mrn, 1 date)" in said
    assert "--set data.phi.action=mask" in said
    command = re.search(r"To see where they are: meditune (data phi .+)", said)[1].split()
    assert command == ["data", "phi", str(tmp_path / "own.jsonl"), "--show", "20"]
    assert "1 of 40 rows" in meditune(*command).out
    assert hidden(said)
    assert "Zelazny" in row_3(tmp_path)["answer"]
    own = f"data.sources=[{{name: own, path: {tmp_path / 'own.jsonl'}}}]"
    again = meditune("data", "prepare", "quickstart", "-o", tmp_path / "cli", "--set", own, "--set", "data.split=group")
    assert "own: identifiers in 1 example, unchanged (3 name, 1 mrn, 1 date)" in again.out


def test_places_are_kept_but_no_text(tmp_path):
    made(tmp_path, action="mask")
    found = read_rows(tmp_path / "run" / "data" / "phi.jsonl")
    assert {"id": "own:3", "field": "answer", "kind": "name", "start": 0, "end": 7} in found
    assert {tuple(row) for row in found} == {("id", "field", "kind", "start", "end")}


def test_masked_everywhere(tmp_path):
    made(tmp_path, action="mask")
    row = row_3(tmp_path)
    assert row["context"][0]["text"] == "Ms. [NAME] (MRN: [ID]) was seen on [DATE]."
    assert row["answer"] == "[NAME] improved with treatment 3."
    assert row["meta"]["nurse_name"] == "[NAME]"
    assert hidden(written(tmp_path))


def test_identifiers_that_are_numbers_are_masked_and_other_numbers_stay(tmp_path):
    numbers = {"mrn": 4471123, "phone": 6175550123.0, "age": 93, "ward": 7, "urgent": True}
    path = jsonl(tmp_path / "own.jsonl", rows(20, **numbers))
    meta = prepared(path, tmp_path / "run", action="mask").splits.train[0].meta
    assert {name: meta[name] for name in numbers} == {
        **{"mrn": "[ID]", "phone": "[PHONE]", "age": "[AGE]", "ward": 7, "urgent": True}
    }


@pytest.mark.parametrize(
    ("column", "number", "masked"),
    [
        *[("DOB", 18336, "[DATE]"), ("date_of_birth", 521510400000, "[DATE]"), ("birthDate", -62135596.5, "[DATE]")],
        *[("Admission Date (Excel)", 43001.0, "[DATE]"), ("dob", 1950, 1950), ("zip", 2139, "[LOCATION]")],
        *[("Zip Code", 21391234, "[LOCATION]"), ("days_to_date", 18336, 18336), ("update", 18336, 18336)],
        *[("post_code", 2139.0, "[LOCATION]"), ("postalCode", 21391, "[LOCATION]"), ("zip", 21, 21)],
        *[("platelets_post", 210000, 210000), ("creatinine zip", 1234.5, 1234.5)],
        *[("children_born", 20000, 20000), ("up_to_date", 18336, 18336), ("Born on", 18336, "[DATE]")],
        *[("gap_to_due_date", 14, 14), ("born", 0, 0), ("date", -1, -1), ("date", 3.14159, 3.14159)],
    ],
)
def test_numbers_below_the_heading_of_a_date_or_zip_code_are_masked(tmp_path, column, number, masked):
    path = jsonl(tmp_path / "in.jsonl", [{"note": "Fine.", column: number}])
    meditune("data", "phi", path, "--output", tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [{"note": "Fine.", column: masked}]
    meditune("data", "phi", path, "--output", tmp_path / "names.jsonl", "--kind", "name")
    assert read_rows(tmp_path / "names.jsonl") == [{"note": "Fine.", column: number}]


def test_surrogates_are_the_same_in_all_fields(tmp_path, monkeypatch):
    # With a secret of chance one secret name is sometimes what takes another's place.
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "always the same one")
    made(tmp_path, action="surrogate")
    row = row_3(tmp_path)
    surname = row["answer"].split()[0]
    assert f" {surname} (MRN: " in row["context"][0]["text"]
    assert hidden(written(tmp_path))


def test_only_the_named_kinds(tmp_path):
    made(tmp_path, action="mask", kinds=["date"])
    assert row_3(tmp_path)["context"][0]["text"] == "Ms. Iwona Zelazny (MRN: 4471123) was seen on [DATE]."


def test_refused_without_a_word_of_it(tmp_path, capsys):
    with pytest.raises(
        DataError, match=r"own: 1 of 40 examples contains identifiers of people \(3 name, 1 mrn, 1 date\)"
    ) as e:
        made(tmp_path, action="refuse")
    assert hidden(str(e.value) + capsys.readouterr().err)
    assert not (tmp_path / "run" / "data").exists()


def test_refused_rows_are_masked_too(tmp_path):
    refused = {
        "answer": "Ms. Iwona Zelazny (MRN: 4471123) was seen.\nNurse:\nOkonkwo",
        "visits": [{"nurse_name": "Okonkwo"}],
        "dob": "3/14/2012",
    }
    lines = [*rows(40), {"id": "x", "question": "", **refused}]
    prepared(jsonl(tmp_path / "own.jsonl", lines), tmp_path / "run", action="mask")
    assert "Ms. [NAME] (MRN: [ID]) was seen." in written(tmp_path)
    assert hidden(written(tmp_path))


def test_a_refused_line_of_a_table_is_masked_by_its_columns(tmp_path):
    path = tmp_path / "own.csv"
    lines = [f"What helps {n}?,Rest helps in case {n}.,Okonkwo" for n in range(20)]
    text = "\n".join(["question,answer,nurse_name", *lines, ",Fine.,Okonkwo", "Is it,Fine.,Okonkwo,4471123"])
    path.write_text(text, encoding="utf-8")
    prepared(path, tmp_path / "run", action="mask")
    refused = read_rows(tmp_path / "run" / "data" / "rejected.jsonl")
    assert [json.loads(row["row"])["nurse_name"] for row in refused] == ["[NAME]", "[NAME]"]
    assert "Okonkwo" not in written(tmp_path)


def test_long_refused_rows_and_values_of_other_types_are_masked_quickly():
    rejects = Rejects(cleaner(PhiSpec(action="mask")))
    rejects.add("own", "own:1", "no question", {"nurses": {"Mr. John Smith"}, "at": time(8, 30)})
    rejects.add("own", "own:2", "no question", {"note": "Okonkwo " * 200, "nurses": ["Ms. Okonkwo"]})
    started = process_time()
    rejects.add("own", "own:3", "no question", {"seen": ["2012-03-14"] * 20_000, "3/14/2012": {"note": ""}})
    assert process_time() - started < 3
    first, second, third = (row["row"] for row in rejects.rows())
    assert first == """{"nurses": "{'Mr. [NAME]'}", "at": "08:30:00"}"""
    assert second.startswith('{"note": "[NAME] [NAME]')
    assert third.startswith('{"seen": ["[DATE]", "[DATE]"')
    assert "Okonkwo" not in second


def test_off_looks_at_nothing(tmp_path):
    assert made(tmp_path, action="off").quality["phi"]["sources"] == {}
    assert not (tmp_path / "run" / "data" / "phi.jsonl").exists()


def test_published_sources_are_counted_quietly(tmp_path, capsys):
    item = layouts.pubmedqa_item(7, CONTEXTS=["Our patient, Mr. Zelazny, was seen on 3/14/2012."], LABELS=["CASE"])
    items = {str(number): layouts.pubmedqa_item(number) for number in range(40)} | {"7": item}
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    recipe = Recipe(name="test", data=DataSpec(sources=[SourceSpec(name="pubmedqa")], split="group"))
    quality = prepare(recipe, tmp_path / "run" / "data").quality
    assert quality["phi"]["sources"]["pubmedqa"]["kinds"] == {"name": 1, "date": 1}
    assert capsys.readouterr().err == ""


def test_rows_whose_identifiers_are_left_are_shown_by_id_only(tmp_path):
    changes = {
        "answer": lambda n: "Ms. Iwona Zelazny (MRN: 4471123) was seen, and then" if n == 3 else f"It helps {n}."
    }
    path = jsonl(tmp_path / "own.jsonl", rows(40, **changes))
    meditune("data", "audit", path, "-o", tmp_path / "audit").ok()
    quality = read_json(tmp_path / "audit" / "quality.json")
    assert any(each["id"] == "own:3" for each in quality["audit"]["rules"]["truncated"]["examples"])
    for name in ("quality.json", "audit.html"):
        assert "Zelazny" not in (tmp_path / "audit" / name).read_text(encoding="utf-8")


NOTE = "Ms. Iwona Zelazny (MRN: 4471123) was seen on 3/14/2012 by Dr. Okonkwo."


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "notes.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [["patient_id", "nurse_name", "note"], ["9", "Okonkwo", NOTE], ["10", "", "Fine."]]
        )
    return path


def test_a_table_of_counts_without_the_text(table):
    done = meditune("data", "phi", table).ok()
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
    done = meditune("data", "phi", table, "--output", out)
    assert f"Written: {out}" in done.out
    assert out.read_text(encoding="utf-8").splitlines() == [
        "patient_id,nurse_name,note",
        "9,[NAME],Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME].",
        "10,,Fine.",
    ]


def test_a_masked_copy_of_a_table_keeps_a_column_without_a_name(tmp_path):
    path, out = tmp_path / "notes.csv", tmp_path / "masked.csv"
    path.write_text("id,note,\n1,Fine.,\n2,Seen on 3/14/2012.,twice\n", encoding="utf-8")
    meditune("data", "phi", path, "--output", out).ok()
    assert out.read_text(encoding="utf-8") == "id,note,\n1,Fine.,\n2,Seen on [DATE].,twice\n"


def test_camel_case_columns_help_like_columns_with_underscores(tmp_path):
    row = {"patientLastName": "King", "nextOfKin": "Xiomar Vasko", "homePhone": "5550123", "hasMS": "Yes"}
    out = tmp_path / "out.jsonl"
    meditune("data", "phi", jsonl(tmp_path / "in.jsonl", [row]), "--output", out)
    assert list(read_rows(out)[0].values()) == ["[NAME]", "[NAME]", "[PHONE]", "Yes"]


def test_surrogates_by_patient(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "a secret of the clinic")
    notes = [{"patient": patient, "note": {"text": NOTE}} for patient in (1, 1, 2)]
    out = tmp_path / "out.jsonl"
    words = ("--output", out, "--action", "surrogate", "--patient-column", "patient")
    meditune("data", "phi", jsonl(tmp_path / "in.jsonl", notes), *words)
    first, second, third = (row["note"]["text"] for row in read_rows(out))
    assert first == second != third
    assert hidden(first + third)


def test_one_date_shows_the_order_of_day_and_month_in_the_whole_row(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "a secret of the clinic")
    out = tmp_path / "out.jsonl"
    row = {"seen": "03/04/2023", "again": "Seen again 25/04/2023."}
    meditune("data", "phi", jsonl(tmp_path / "in.jsonl", [row]), "--output", out, "--action", "surrogate")
    moved = [re.search(r"\d+/\d+/\d+", text)[0] for text in read_rows(out)[0].values()]
    seen, again = (datetime.strptime(written, "%d/%m/%Y") for written in moved)
    assert (again - seen).days == 22
    assert moved[0] != "03/04/2023"


def test_a_text_and_a_kind(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text(NOTE, encoding="utf-8")
    meditune("data", "phi", note, "--kind", "date", "--output", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == NOTE.replace("3/14/2012", "[DATE]")


def test_a_recipes_data(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    items = {str(number): layouts.pubmedqa_item(number, CONTEXTS=[NOTE]) for number in range(5)}
    layouts.pubmedqa(tmp_path / "pubmedqa", items)
    done = meditune("data", "phi", "quickstart")
    assert "pubmedqa: 5 of 5 rows" in done.out
    assert hidden(done.out + done.err)


def test_a_recipe_file_and_the_places_in_its_rows(table, tmp_path):
    recipe = tmp_path / "mine.yaml"
    source = f"{{name: own, path: {table}, fields: {{question: note, answer: note}}}}"
    recipe.write_text(f"name: mine\ndata:\n  sources: [{source}]\n  phi: {{action: mask}}\n", encoding="utf-8")
    done = meditune("data", "phi", recipe, "--show", 2).ok()
    places = [line for line in done.out.splitlines() if line.startswith("  own:")]
    assert [" ".join(line.split()[:3]) for line in places] == [
        "own:notes-1 question (name):",
        "own:notes-1 question (mrn):",
    ]
    assert places[1].endswith("Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME].")
    assert hidden(done.out + done.err)


def test_what_can_not_be_done_is_said(table, tmp_path):
    meditune("data", "phi", table, "--kind", "nmae").refused(3, "--kind nmae: unknown kind. Choose from name, date")
    meditune("data", "phi", table, "--action", "mask").refused(3, "needs --output OUT")
    meditune("data", "phi", table, "--output", tmp_path / "out.xml").refused(3, "must end in one of .jsonl, .csv, .tsv")
    meditune("data", "phi", table, "--patient-column", "patient").refused(
        3, "no column patient (--patient-column). The columns are patient_id"
    )
    meditune("data", "phi", "quickstart", "--output", tmp_path / "o").refused(3, "--set data.phi.action=mask")
    meditune("data", "phi", tmp_path / "none.csv").refused(3, "no such file")
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_file_is_named_without_its_text(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"note": NOTE}) + '\n{"note": "Ms. Zelazny', encoding="utf-8")
    done = meditune("data", "phi", path, "--output", tmp_path / "out.jsonl")
    done.refused(3, "bad.jsonl, line 2")
    assert hidden(done.err)
    assert not (tmp_path / "out.jsonl").exists()


def test_bytes_and_maps_of_parquet_are_searched(tmp_path):
    tags = pyarrow.map_(pyarrow.string(), pyarrow.string())
    schema = pyarrow.schema({"note": pyarrow.binary(), "tags": tags})
    cells = {"note": NOTE.encode(), "tags": [("summary", NOTE)]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([cells], schema), tmp_path / "notes.parquet")
    meditune("data", "phi", tmp_path / "notes.parquet", "--output", tmp_path / "out.jsonl")
    masked = "Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME]."
    assert read_rows(tmp_path / "out.jsonl") == [{"note": masked, "tags": [["summary", masked]]}]


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "notes.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"note": NOTE, "scan": b"\xff\xd8"}]), path)
    done = meditune("data", "phi", path, "--output", tmp_path / "out.jsonl")
    done.refused(3, "notes.parquet, row 1, column scan: the bytes aren't text", "Remove the column")
    assert not (tmp_path / "out.jsonl").exists()


def test_keys_with_dots_and_nested_keys_are_told_apart(tmp_path):
    notes = [{"a.b": "Fine.", "a": {"b": NOTE}}, {"a": {"b": "Fine."}, "a.b": NOTE}]
    path, masked = jsonl(tmp_path / "in.jsonl", notes), "Ms. [NAME] (MRN: [ID]) was seen on [DATE] by Dr. [NAME]."
    meditune("data", "phi", path, "--output", tmp_path / "out.jsonl")
    expected = [{"a.b": "Fine.", "a": {"b": masked}}, {"a": {"b": "Fine."}, "a.b": masked}]
    assert read_rows(tmp_path / "out.jsonl") == expected
    path = jsonl(tmp_path / "own.jsonl", rows(20, **notes[0]))
    meta = prepared(path, tmp_path / "run", action="mask").splits.train[0].meta
    assert {name: meta[name] for name in notes[0]} == expected[0]


def test_keys_and_labels_are_searched_and_keys_that_become_equal_get_numbers(tmp_path):
    visits = {"Ms. Iwona Zelazny": "well", "Ms. Anna Okonkwo": "ill", "Ms. [NAME] 2": "fine"}
    row = {"visits": [visits], "Ms. Zelazny (MRN: 4471123)": "Zelazny"}
    hidden_visits = {"Ms. [NAME]": "well", "Ms. [NAME] 3": "ill", "Ms. [NAME] 2": "fine"}
    expected = {"visits": [hidden_visits], "Ms. [NAME] (MRN: [ID])": "Zelazny"}
    path = jsonl(tmp_path / "in.jsonl", [row | {"Ms. Zelazny (MRN: 4471123)": "Fine."}])
    done = meditune("data", "phi", path, "--output", tmp_path / "out.jsonl", "--show", 9)
    assert read_rows(tmp_path / "out.jsonl") == [expected | {"Ms. [NAME] (MRN: [ID])": "Fine."}]
    assert "in.jsonl:1 visits.0.Ms. [NAME].(key) (name): Ms. [NAME]" in done.out
    assert hidden(done.out + done.err)

    context = [{"text": "Rest helps.", "label": "Letter of Dr. Iwona Zelazny, MRN 4471123"}]
    path = jsonl(tmp_path / "own.jsonl", rows(20, context=context, **row))
    for action in ("mask", "report"):
        example = prepared(path, tmp_path / action, action=action).splits.train[0]
        found = (tmp_path / action / "data" / "phi.jsonl").read_text(encoding="utf-8")
        assert '"context_labels.0"' in found
        assert '"meta.visits.0.Ms. [NAME].(key)"' in found
        assert hidden(found)
        if action == "mask":
            assert example.context[0].label == "Letter of Dr. [NAME], MRN [ID]"
            assert {name: example.meta[name] for name in expected} == expected | {"Ms. [NAME] (MRN: [ID])": "[NAME]"}
        else:
            assert example.context[0].label == context[0]["label"]
            assert {name: example.meta[name] for name in row} == row


def test_each_key_is_searched_once_and_by_the_rules(monkeypatch):
    searched = Counter()

    def found_by_rules(text, kinds):
        searched[text] += 1
        return find(text, kinds)

    monkeypatch.setattr(detector, "find", found_by_rules)
    monkeypatch.setattr(detector, "find_with_presidio", lambda text, _: [Span(0, len(text), "city")])
    parts = {
        "source": "own",
        "group": "g",
        "question": "Is it flu?",
        "answer": "No.",
        "meta": {"Creatinine of 2 h": 1.5},
    }
    examples = [Example(id=f"own:{n}", **parts) for n in range(5)]
    for example in examples:
        assert indexed_identifiers(example, PhiSpec()) == []
        assert ("meta", "Creatinine of 2 h") in searched_texts(example, PhiSpec(engine="presidio"))
    assert searched["Creatinine of 2 h"] == 1


def test_a_table_without_a_header_is_refused(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(f"4471123,{NOTE}\n4471124,Fine.\n", encoding="utf-8")
    done = meditune("data", "phi", path, "--output", tmp_path / "out.csv", "--patient-column", "patient")
    done.refused(3, "notes.csv, line 1: the names of the columns contain", "looks like the file has no header")
    assert hidden(done.out + done.err)
    assert not (tmp_path / "out.csv").exists()
    path.write_text("A,3/14/2012\nB,4/14/2012\n", encoding="utf-8")
    meditune("data", "phi", path, "--output", tmp_path / "out.csv").refused(3, "identifiers of people (date)")
    meditune("data", "phi", path).ok()
    meditune("data", "phi", path, "--output", tmp_path / "names.csv", "--kind", "name").ok()


def test_a_header_with_dates_and_names_is_accepted(tmp_path):
    path = tmp_path / "ratings.csv"
    header = "id,2024-01-05,Jan 2020,Dr. Smith rating,St. Mary's Hospital"
    path.write_text(f"{header}\n1,3,4,5,\n2,Ms. Iwona Zelazny,2,1,\n", encoding="utf-8")
    meditune("data", "phi", path, "--output", tmp_path / "out.csv").ok()
    assert hidden((tmp_path / "out.csv").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"note": "Fine.", "ward": "B"}, "column 'ward' is missing in the first row"),
        ({"note": ["Fine."]}, "column 'note' contains a list or an object"),
        ({"note": "Fine \ud83d"}, "column 'note' contains half a character"),
    ],
)
def test_rows_that_no_table_can_hold_are_written_as_json_lines(tmp_path, row, said):
    path = jsonl(tmp_path / "in.jsonl", [{"note": NOTE}, row])
    done = meditune("data", "phi", path, "--output", tmp_path / "out.csv", "--show", "9")
    done.refused(3, f"in.jsonl:2: {said}", "can't be a .csv file", "--output masked.jsonl")
    assert not (tmp_path / "out.csv").exists()
    meditune("data", "phi", path, "--output", tmp_path / "out.jsonl", "--show", "9").ok()
    assert read_rows(tmp_path / "out.jsonl")[1] == row


def test_no_file_that_is_there_is_overwritten(table):
    before = table.read_bytes()
    meditune("data", "phi", table, "--output", table).refused(3, "won't be overwritten", "another name")
    assert table.read_bytes() == before
