"""Verdicts and changed texts through CSV and Label Studio, and back."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from meditune.data.row_decisions import VERDICTS
from meditune.review.rating_set import CANNOT, read_set
from meditune.review.ratings_store import Store
from tests.commands import meditune
from tests.review.annotate.sets import item_of, judge, key, made, right
from tests.review.test_exchange import everything


@pytest.fixture
def judged(tmp_path):
    """A set that two raters judged, with a text that was changed."""
    folder = made(tmp_path, 20, {"decision": lambda n: "yes" if n % 2 else ""}, rows=6, planted=2)
    number = next(row.example.partition(":")[2] for row in key(folder).values() if not row.known)
    judge(folder, "rater-1", right, **{f"n{number}": "Said better."})
    judge(folder, "rater-2", lambda *_: "unsafe")
    return folder


@pytest.mark.parametrize("name", ["ratings.csv", "tasks.json"])
def test_there_and_back_nothing_changes(judged, tmp_path, name):
    before = everything(judged)
    assert len(before[0]) == 16
    assert meditune("annotate", "export", judged, "--to", tmp_path / name).code == 0
    for part in ("", "-wal", "-shm"):
        (judged / f"ratings.sqlite{part}").unlink(missing_ok=True)
    done = meditune("annotate", "import", judged, tmp_path / name)
    assert done.last == "16 new ratings, 0 changed, 0 as they were."
    assert everything(judged) == before


def test_the_labeling_configuration_is_label_studios(judged, tmp_path):
    """Tags and attributes as labelstud.io/tags/{choices,choice,textarea,text,header} have them."""
    assert meditune("annotate", "export", judged, "--to", tmp_path / "tasks.json").code == 0
    tree = ElementTree.parse(tmp_path / "tasks.xml")
    (choices,) = tree.iter("Choices")
    assert choices.attrib == {"name": "verdict", "toName": "answer", "choice": "single", "showInline": "true"}
    options = {choice.get("value"): choice.get("hotkey") for choice in choices.iter("Choice")}
    assert options == {verdict.capitalize(): str(n) for n, verdict in enumerate(VERDICTS, start=1)} | {CANNOT: "0"}
    areas = {area.get("name"): area.get("value") for area in tree.iter("TextArea")}
    assert areas == {"comment": None, "better_answer": "$answer"}
    shown = {tag.get("value").removeprefix("$") for tag in tree.iter("Text")}
    assert shown == {"question", "sources", "answer", "decision", "source"}
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        assert shown <= set(task["data"])
        assert not {"example", "origin"} & set(task["data"])


def test_a_text_that_label_studio_filled_in_and_nobody_changed_is_no_text(tmp_path):
    folder = made(tmp_path, 2)
    tasks = []
    for n, text in ((0, read_set(folder).items[item_of(folder, 0)].answer), (1, "Quite another text.")):
        choice = {"from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": ["Off-topic"]}}
        area = {"from_name": "better_answer", "to_name": "answer", "type": "textarea", "value": {"text": [text]}}
        annotation = {"completed_by": 4, "result": [choice, area], "lead_time": 9.0, "was_cancelled": False}
        tasks.append({"id": n, "data": {"item": item_of(folder, n)}, "annotations": [annotation]})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert meditune("annotate", "import", folder, tmp_path / "export.json").code == 0
    store = Store(folder)
    assert [rating.option for rating in store.ratings()] == [5, 5]
    assert [(note.item, note.better) for note in store.notes()] == [(item_of(folder, 1), "Quite another text.")]


def test_an_import_without_anything_to_do_is_told(tmp_path):
    meditune("annotate", "import", made(tmp_path, 2)).refused(1, "Give a FILE to take ratings from, or --output")
