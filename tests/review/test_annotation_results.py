"""From ratings to decisions: majorities, adjudication, changed texts, known items, and raters who are left out.

Verdicts and changed texts through CSV and Label Studio, and back.
"""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from meditune.data.reviewer_decisions import VERDICTS, read_decisions
from meditune.errors import DataError
from meditune.files import read_json
from meditune.review.annotation_results import (
    REWRITTEN,
    TIED,
    open_disputes,
    read_checked,
    resolve,
    results,
    write_decisions,
    write_results,
)
from meditune.review.rating_set import CANNOT, read_set
from meditune.review.ratings_store import ADJUDICATION, Rating, Store
from tests.commands import meditune
from tests.review.known_ratings import annotated_item, judge, key, made_annotation_set, right
from tests.review.test_import_export import everything


def by_number(**verdicts):
    """Says of row n what n's keyword says, else correct."""
    return lambda _, row: verdicts.get(f"n{row.example.partition(':')[2]}", right(_, row))


def resolved(folder):
    decided, undecided = resolve(read_checked(folder).rated)
    named = {id: row.example for id, row in key(folder).items()}
    return {named[id]: each for id, each in decided.items()}, {named[id]: why for id, why in undecided.items()}


def test_more_than_half_decide_and_a_tie_stays_open_until_it_is_settled(tmp_path):
    folder = made_annotation_set(tmp_path, 4)
    judge(folder, "rater-1", by_number(n0="wrong", n1="unsafe"))
    judge(folder, "rater-2", by_number(n0="wrong"))
    decided, undecided = resolved(folder)
    assert (decided["own:0"].label, decided["own:0"].raters) == ("wrong", ("R1", "R2"))
    assert undecided == {"own:1": TIED}
    assert [row["example"] for row in results(read_checked(folder))["disputed"]] == ["own:1"]
    judge(folder, "rater-3", by_number(n1="unsafe"))
    assert resolved(folder)[0]["own:1"].raters == ("R1", "R3")
    store = Store(folder)
    chief = store.rater("rater-4", takes_share=False).id
    store.save([Rating(chief, annotated_item(folder, 1), "verdict", None, 1.0, round=ADJUDICATION)])
    assert not any(row["settled"] for row in results(read_checked(folder))["disputed"])
    store.save([Rating(chief, annotated_item(folder, 1), "verdict", 5, 1.0, round=ADJUDICATION)])
    assert [row["example"] for row in results(read_checked(folder))["disputed"] if row["settled"]] == ["own:1"]
    settled = resolved(folder)[0]["own:1"]
    assert (settled.label, settled.settled, settled.raters) == ("off-topic", True, ("R4",))


def test_a_changed_text_counts_where_it_comes_from_those_who_agree(tmp_path):
    folder = made_annotation_set(tmp_path, 4)
    judge(folder, "rater-1", by_number(), n0="Better.", n1="One.", n2="Mine.")
    judge(folder, "rater-2", by_number(n2="incomplete"), n1="Other.")
    judge(folder, "rater-3", by_number(n2="incomplete"))
    decided, undecided = resolved(folder)
    assert decided["own:0"].answer == "Better."
    assert undecided == {"own:1": REWRITTEN}
    assert (decided["own:2"].label, decided["own:2"].answer) == ("incomplete", "")
    assert {row["example"] for row in results(read_checked(folder))["disputed"]} == {"own:1", "own:2"}


def test_careless_raters_are_named_and_can_be_left_out(tmp_path):
    folder = made_annotation_set(tmp_path, 20, rows=8, planted=5)
    judge(folder, "rater-1", right)
    judge(folder, "rater-2", right)
    judge(folder, "rater-3", lambda *_: "correct")
    judge(folder, "rater-4", lambda _, row: right(_, row) if row.known else None)
    found = write_results(folder)
    careless = {row["name"]: (row["known_right"], row["known_judged"], row["careless"]) for row in found["raters"]}
    assert careless["rater-3"] == (0, 5, True)
    assert careless["rater-1"] == (5, 5, False)
    assert any("rater-3 (R3) judged only 0 of 5 known items correctly" in remark for remark in found["remarks"])
    done = meditune("annotate", "results", folder)
    assert "exclude the ratings: --exclude-rater R3" in " ".join(done.out.split())
    for words in (("--exclude-rater", "rater-3"), ("--exclude-rater", "r3"), ("--exclude-careless",)):
        meditune("annotate", "results", folder, *words).ok()
        after = read_json(folder / "results.json")
        assert after["ratings"] == 16
        assert [row["name"] for row in after["raters"] if row["left_out"]] == ["rater-3"]
    meditune("annotate", "results", folder, "--exclude-rater", "nobody").refused(3, "no rater 'nobody'", "rater-1 (R1)")


def test_figures_count_rows_of_the_data_only(tmp_path):
    folder = made_annotation_set(tmp_path, 10, planted=4)
    judge(folder, "rater-1", by_number(n0="wrong", n1="incomplete"), n2="New words.")
    found = results(read_checked(folder))
    counts = {"correct": 8, "incomplete": 1, "wrong": 1, "unsafe": 0, "off-topic": 0}
    assert found["rows_by_verdict"] == found["ratings_by_verdict"] == counts
    assert (found["rows"], found["judged"], found["changed"]) == (10, 10, 1)
    assert found["correct"]["percent"] == 70
    assert found["agreement"]["alpha"]["value"] is None, "one rater agrees with nobody"


def test_a_signal_is_judged_by_what_raters_found(tmp_path):
    odd = {"answer": lambda n: "See above, where all of this was told at length." if n < 2 else f"Row {n} says why."}
    folder = made_annotation_set(tmp_path, 6, odd, sample="suspicious")
    judge(folder, "rater-1", by_number(n0="off-topic"))
    found = results(read_checked(folder))
    assert found["suspicions"]["repeated"] == {"rows": 2, "decided": 2, "faulty": 1}
    assert any("most suspicious" in remark for remark in found["remarks"])


def test_the_decisions_file_gathers_sets_and_knows_no_gold(tmp_path):
    first, second = made_annotation_set(tmp_path / "a", 6, planted=2), made_annotation_set(tmp_path / "b", 8)
    path = tmp_path / "decisions.jsonl"
    with pytest.raises(DataError, match="nothing was decided yet"):
        write_decisions(first, path)
    judge(first, "rater-1", by_number(n0="wrong"))
    done = meditune("annotate", "import", first, "-o", path)
    assert "6 rows decided, 0 undecided. Decisions from other sets kept: 0." in done.out
    assert set(read_decisions(path)) == {f"own:{n}" for n in range(6)}
    judge(second, "rater-2", lambda _, row: "unsafe" if row.example in {"own:0", "own:7"} else None)
    assert (
        "2 rows decided, 0 undecided. Decisions from other sets kept: 5."
        in meditune("annotate", "import", second, "-o", path).out
    )
    found = read_decisions(path)
    assert len(found) == 7
    assert (found["own:0"].verdict, found["own:0"].raters, found["own:1"].verdict) == ("unsafe", ("R1",), "correct")
    judge(first, "rater-1", by_number(n1="wrong"))
    assert write_decisions(first, path).from_other_sets == 1, (
        "a set's own decisions are written anew, whoever had them last"
    )
    assert "rater-1" not in path.read_text()


def test_a_raters_name_that_is_anothers_code_excludes_nobody_by_mistake(tmp_path):
    folder = made_annotation_set(tmp_path, 6)
    for name in ("R2", "R1", "R3"):
        judge(folder, name, lambda *_: "correct")
    with pytest.raises(DataError, match=r"'R1' is one rater's name and another's code. Raters: R2 \(R1\), R1 \(R2\)"):
        read_checked(folder, ["R1"])
    assert [rater.name for rater in read_checked(folder, ["r1 (r2)", "R3"]).excluded] == ["R1", "R3"]


def test_only_rows_of_the_data_are_there_to_be_settled(tmp_path):
    folder = made_annotation_set(tmp_path, 20, rows=6, planted=4)
    judge(folder, "rater-1", right)
    judge(folder, "rater-2", lambda *_: "correct")
    meditune("annotate", "serve", folder, "--adjudicate").refused(1, "nothing to adjudicate")
    judge(folder, "rater-3", lambda *_: "wrong")
    assert len(open_disputes(folder, (), False)) == 6
    meditune("annotate", "serve", folder, "--adjudicate", "--exclude-rater", "R3").refused(1, "nothing to adjudicate")


@pytest.fixture
def judged(tmp_path):
    """A set that two raters judged, with a text that was changed."""
    folder = made_annotation_set(tmp_path, 20, {"decision": lambda n: "yes" if n % 2 else ""}, rows=6, planted=2)
    number = next(row.example.partition(":")[2] for row in key(folder).values() if not row.known)
    judge(folder, "rater-1", right, **{f"n{number}": "Said better."})
    judge(folder, "rater-2", lambda *_: "unsafe")
    return folder


@pytest.mark.parametrize("name", ["ratings.csv", "tasks.json"])
def test_there_and_back_nothing_changes(judged, tmp_path, name):
    before = everything(judged)
    assert len(before[0]) == 16
    meditune("annotate", "export", judged, "--to", tmp_path / name).ok()
    for part in ("", "-wal", "-shm"):
        (judged / f"ratings.sqlite{part}").unlink(missing_ok=True)
    done = meditune("annotate", "import", judged, tmp_path / name)
    assert done.last == "16 new ratings, 0 changed, 0 unchanged."
    assert everything(judged) == before


def test_the_labeling_configuration_is_label_studios(judged, tmp_path):
    """Tags and attributes as labelstud.io/tags/{choices,choice,textarea,text,header} have them."""
    meditune("annotate", "export", judged, "--to", tmp_path / "tasks.json").ok()
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
    folder = made_annotation_set(tmp_path, 2)
    tasks = []
    for n, text in ((0, read_set(folder).items[annotated_item(folder, 0)].answer), (1, "Quite another text.")):
        choice = {"from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": ["Off-topic"]}}
        area = {"from_name": "better_answer", "to_name": "answer", "type": "textarea", "value": {"text": [text]}}
        annotation = {"completed_by": 4, "result": [choice, area], "lead_time": 9.0, "was_cancelled": False}
        tasks.append({"id": n, "data": {"item": annotated_item(folder, n)}, "annotations": [annotation]})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    meditune("annotate", "import", folder, tmp_path / "export.json").ok()
    store = Store(folder)
    assert [rating.option for rating in store.ratings()] == [5, 5]
    assert [(note.item, note.better) for note in store.notes()] == [(annotated_item(folder, 1), "Quite another text.")]


def test_an_import_without_anything_to_do_is_told(tmp_path):
    meditune("annotate", "import", made_annotation_set(tmp_path, 2)).refused(
        1, "Specify a FILE of ratings to import, --output"
    )
