"""Ratings through files and back: CSV and Label Studio, and what bad files are told."""

import csv
import json
import stat
from xml.etree import ElementTree

import pytest

from meditune.errors import DataError
from meditune.review.import_export import export, import_ratings
from meditune.review.rating_set import CANNOT, read_set
from meditune.review.ratings_store import ADJUDICATION, Note, Rating, Store
from tests.commands import meditune
from tests.review.known_ratings import made_rating_set, rate, rated_item

NASTY = '=HYPERLINK("http://evil.example"),\n"quoted" – 5 µg'


def everything(folder):
    """Ratings and notes with names for raters."""
    store = Store(folder)
    names = {id: rater.name for id, rater in store.raters().items()}
    ratings = {(names[r.rater], r.round, r.item, r.axis, r.option, r.seconds, r.time) for r in store.ratings()}
    return ratings, {(names[n.rater], n.round, n.item, n.comment, n.better) for n in store.notes()}


@pytest.fixture
def rated(tmp_path):
    """A set with ratings of all sorts."""
    folder = made_rating_set(tmp_path, 3)
    rate(folder, "Ann", lambda n, _: 1 + n)
    rate(folder, "=Bo", lambda n, _: None if n else 2, only=("helpfulness",))
    store = Store(folder)
    chief, item = store.rater("Chief", takes_share=False).id, rated_item(folder, 0, "base")
    store.save(
        [Rating(chief, item, "helpfulness", 3, 7.5, round=ADJUDICATION)],
        [
            Note(chief, item, "''Quoted''", "Better.", round=ADJUDICATION),
            Note(store.rater("Ann").id, item, NASTY, "'=1"),
            Note(store.rater("=Bo").id, item, " Indented", "'Quoted'"),
        ],
    )
    return folder


@pytest.mark.parametrize("name", ["ratings.csv", "tasks.json"])
def test_there_and_back_nothing_changes(rated, tmp_path, name):
    before = everything(rated)
    written = export(rated, tmp_path / name, None, False)
    assert import_ratings(rated, written[0]).unchanged == len(before[0])
    assert everything(rated) == before
    (rated / "ratings.sqlite").unlink()
    for part in ("-wal", "-shm"):
        (rated / f"ratings.sqlite{part}").unlink(missing_ok=True)
    taken = import_ratings(rated, written[0])
    assert (taken.new, taken.changed, taken.unchanged) == (len(before[0]), 0, 0)
    assert everything(rated) == before


@pytest.mark.parametrize("format", ["csv", "label-studio"])
def test_ratings_are_for_their_owner_alone(rated, format):
    exported = export(rated, None, format, False)[0]
    for path in (exported, rated / "ratings.sqlite", rated / "key.json", rated / "items.jsonl"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_cell_is_a_formula(rated):
    (path,) = export(rated, None, "csv", False)
    with path.open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    items = read_set(rated).items
    assert all(item[0].isalpha() for item in items), "a spreadsheet reads 12345e678901 as a number"


def test_only_when_asked_for_files_tell_whose_an_answer_is(rated):
    for format in ("csv", "label-studio"):
        blind = export(rated, None, format, False)[0].read_text()
        assert not any(word in blind for word in ("tuned", "pubmedqa"))
        assert "tuned" in export(rated, None, format, True)[0].read_text()


def test_a_form_filled_in_elsewhere_needs_few_columns(tmp_path):
    folder = made_rating_set(tmp_path, 1)
    item = rated_item(folder, 0, "tuned")
    path = tmp_path / "by-hand.csv"
    path.write_text(f"item,rater,axis,option,label\n{item},Ann,intent,2,\n{item},Ann,helpfulness,,{CANNOT}\n")
    done = meditune("review", "import", folder, path)
    assert done.last == "2 new ratings, 0 changed, 0 unchanged."
    assert {(r.axis, r.option) for r in Store(folder).ratings()} == {("intent", 2), ("helpfulness", None)}
    path.write_text(f"item,rater,axis,option\n{item},ann,intent,1\n")
    assert meditune("review", "import", folder, path).last == "0 new ratings, 1 changed, 0 unchanged."


def test_what_spreadsheets_and_pandas_add_to_a_file_is_understood(tmp_path):
    folder = made_rating_set(tmp_path, 1)
    item, path = rated_item(folder, 0, "tuned"), tmp_path / "ratings.csv"
    lines = [f"{item},Ann,1.0,intent,2.0,", f"{item},Ann,,comment,,Checked.", ",,,,,", " ,,,,,"]
    path.write_text("\n".join(["item,rater,round,axis,option,text", *lines]) + "\n")
    assert import_ratings(folder, path).lines() == [
        "Comments and better answers: 1 new or changed.",
        "1 new ratings, 0 changed, 0 unchanged.",
    ]
    assert [(rating.axis, rating.option) for rating in Store(folder).ratings()] == [("intent", 2)]


def test_a_file_with_one_text_leaves_the_raters_other_text(tmp_path):
    folder = made_rating_set(tmp_path, 1)
    item, path = rated_item(folder, 0, "tuned"), tmp_path / "texts.csv"
    store = Store(folder)
    store.save([], [Note(store.rater("Ann").id, item, "Too short.", "A longer answer.", "2026-01-01T00:00:00")])
    path.write_text(f"item,rater,axis,text\n{item},ann,comment,Checked.\n{item},Bo,better_answer,Yes.\n")
    done = meditune("review", "import", folder, path)
    assert "Comments and better answers: 2 new or changed." in done.out
    assert {(n.comment, n.better) for n in store.notes()} == {("Checked.", "A longer answer."), ("", "Yes.")}
    assert import_ratings(folder, path).texts == 0
    assert not any(note.time.startswith("2026-01-01T00:00:00") for note in store.notes()), (
        "the note is as new as its text"
    )


HEAD = "item,rater,round,axis,option,seconds\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("item,axis,option\nx,intent,1\n", "line 1: no column rater"),
        (HEAD + "{item},Ann,1,intent,1,1\nnothing,Ann,1,intent,1,1\n", ":3: this set has no item 'nothing'"),
        (HEAD + "{item},,1,intent,1,1\n", ":2: no rater"),
        (HEAD + "{item},Ann,3,intent,1,1\n", ":2: round '3'"),
        (HEAD + "{item},Ann,1,bias,1,1\n", ":2: this set has no axis 'bias'. Its axes: intent, helpfulness"),
        (HEAD + "{item},Ann,1,intent,3,1\n", ":2: intent has no option '3'. Choose from 1 (Yes), 2 (No), 0"),
        (HEAD + "{item},Ann,1,intent,1,soon\n", ":2: seconds 'soon' is not a number"),
        (HEAD + "{item},Ann,1,intent,1,nan\n", ":2: seconds 'nan' is not a number"),
        (HEAD + "{item},Ann,1,intent,1,1\n{item},Ann,1\n", ":3: 3 fields, but the header has 6"),
    ],
)
def test_bad_csv_is_told_with_its_line_and_nothing_is_taken(tmp_path, text, told):
    folder = made_rating_set(tmp_path, 1)
    path = tmp_path / "bad.csv"
    path.write_text(text.replace("{item}", rated_item(folder, 0, "tuned")))
    meditune("review", "import", folder, path).refused(3, f"{path}", told)
    assert Store(folder).ratings() == []


def annotated(folder, **changes):
    """A task as Label Studio exports it."""
    choice = {
        "from_name": "helpfulness",
        "to_name": "answer",
        "type": "choices",
        "value": {"choices": ["Yes, it helps"]},
    }
    note = {"from_name": "better_answer", "to_name": "answer", "type": "textarea", "value": {"text": ["Say no."]}}
    annotation = {"completed_by": {"id": 3, "email": "a@example.org"}, "result": [choice, note], "lead_time": 12.5}
    return {"id": 5, "data": {"item": rated_item(folder, 0, "tuned")}, "annotations": [annotation | changes]}


def test_label_studios_own_annotations_are_read(tmp_path):
    folder = made_rating_set(tmp_path, 1)
    path = tmp_path / "export.json"
    tasks = [
        annotated(folder),
        annotated(folder, completed_by=7),
        annotated(folder, was_cancelled=True, completed_by=8),
    ]
    path.write_text(json.dumps(tasks))
    assert import_ratings(folder, path).new == 2
    store = Store(folder)
    assert [rater.name for rater in store.raters().values()] == ["a@example.org", "user 7"]
    assert {(r.axis, r.option, r.seconds) for r in store.ratings()} == {("helpfulness", 1, 12.5)}
    assert {note.better for note in store.notes()} == {"Say no."}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda task: task["data"].update(item="other"), "task 1: data.item is 'other'"),
        (lambda task: task["annotations"][0].pop("result"), "task 1: one of its annotations has no list 'result'"),
        (lambda task: task["annotations"][0].pop("completed_by"), "has no author"),
        (lambda task: task["annotations"][0]["result"][0].update(from_name="bias"), "no axis 'bias'"),
        (
            lambda task: task["annotations"][0]["result"][0]["value"].update(choices=["Perhaps"]),
            "neither a choice of this set",
        ),
        (lambda task: task["annotations"][0]["result"][0]["value"].update(choices=[]), "neither a choice of this set"),
        (lambda task: task["annotations"][0]["result"].append("?"), "neither a choice of this set"),
    ],
)
def test_bad_tasks_are_told_with_their_number(tmp_path, change, told):
    folder = made_rating_set(tmp_path, 1)
    task = annotated(folder)
    change(task)
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    with pytest.raises(DataError, match="task 1") as caught:
        import_ratings(folder, path)
    assert told in str(caught.value)
    assert Store(folder).ratings() == []


def test_files_of_other_kinds_are_refused(rated, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    meditune("review", "import", rated, tmp_path / "x.json").refused(3, "a list of tasks")
    meditune("review", "import", rated, tmp_path / "x.xlsx").refused(3, "neither CSV")
    meditune("review", "import", rated, tmp_path / "none.csv").refused(3, "no such file")
    meditune("review", "export", rated, "--format", "excel").refused(3, "csv, label-studio")


@pytest.mark.parametrize("axes", ["lay", "expert"])
def test_the_labeling_configuration_has_every_axis_and_option(tmp_path, axes):
    folder = made_rating_set(tmp_path, 1, axes)
    tasks, config = export(folder, None, "label-studio", False)
    tree = ElementTree.parse(config)
    found = {
        choices.get("name"): [choice.get("value") for choice in choices.iter("Choice")]
        for choices in tree.iter("Choices")
    }
    assert found == {axis.name: [*(option.label for option in axis.options), CANNOT] for axis in read_set(folder).axes}
    named = {tag.get("value").removeprefix("$") for tag in tree.iter("Text")}
    assert all(named <= set(task["data"]) for task in json.loads(tasks.read_text()))
