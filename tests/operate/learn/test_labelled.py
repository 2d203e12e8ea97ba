"""What experts said of a queue, as rows that a recipe reads."""

from __future__ import annotations

from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.files import read_json, read_jsonl
from meditune.operate.active_learning.annotation_queue import NOT_JUDGED, NOTHING, rows
from tests.commands import jsonl, meditune
from tests.operate.learn.material import judge, store


def made(tmp_path, *words):
    done = meditune("learn", "queue", store(tmp_path / "store"), "-o", tmp_path / "set", "--strategy", "random", *words)
    assert done.code == 0, done.err
    return tmp_path / "set"


def test_what_experts_said_comes_back_as_rows_that_a_recipe_reads(tmp_path):
    folder = made(tmp_path)
    meditune("learn", "rows", folder, "-o", tmp_path / "x").refused(3, "nothing to learn (6 not judged yet)")
    judge(
        folder,
        "expert",
        {
            "answers:fine": ("yes", "correct", ""),
            "answers:disliked": ("maybe", "wrong", "It can be controlled, as Dr. Jane Miller of 555-123-4567 says."),
            "answers:unsupported": (None, "wrong", ""),
            "answers:corrected": ("neither", "incomplete", ""),
            "answers:abstained": ("neither", None, "By washing the wound and vaccination at once."),
        },
    )
    done = meditune("learn", "rows", folder, "-o", tmp_path / "expert.jsonl")
    assert "3 rows" in done.out
    assert f"Left out: 2, {NOTHING}." in done.out
    assert f"Left out: 1, {NOT_JUDGED}." in done.out
    found = {each.id: each for each in user_files.read(tmp_path / "expert.jsonl", Rejects())}
    fine, disliked = found["own:answers:fine"], found["own:answers:disliked"]
    assert (fine.answer, fine.decision, fine.meta["model"]) == ("It helps.", "yes", "tiny 1")
    assert disliked.decision == "maybe"
    assert disliked.answer.startswith("It can be controlled")
    assert "Miller" not in disliked.answer
    abstained = found["own:answers:abstained"]
    assert (abstained.answer, abstained.decision) == ("By washing the wound and vaccination at once.", None)
    assert fine.meta["expert"]["verdict"] == "correct"
    assert fine.meta["expert"]["raters"] == ["R1"]
    assert not any(passage.label.startswith("A user") for each in found.values() for passage in each.context)


def test_experts_who_disagree_teach_nothing_until_they_are_settled(tmp_path):
    folder = made(tmp_path)
    judge(folder, "one", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("no", "wrong", "")})
    judge(folder, "two", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("yes", "wrong", "")})
    found = rows(folder)
    assert [row["id"] for row in found.rows] == ["answers:fine"]
    assert found.left_out["raters disagree"] == 1
    assert [row["decision"] for row in rows(folder, without=["two"]).rows if row["id"] == "answers:unsure"] == ["no"]


def test_the_annotation_commands_take_a_queue(tmp_path):
    folder = made(tmp_path)
    judge(folder, "one", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("no", "wrong", "")})
    judge(folder, "two", {"answers:fine": ("maybe", "correct", "")})
    assert meditune("annotate", "results", folder).code == 0
    results = read_json(folder / "results.json")
    assert results["sample"] == "queue"
    assert results["rows_by_verdict"]["correct"] == 1
    assert results["decisions"] == {"yes": 0, "no": 1, "maybe": 0, "neither": 0, "undecided": 1}
    assert meditune("annotate", "export", folder, "--to", tmp_path / "said.csv").code == 0
    assert "3 as they were" not in meditune("annotate", "import", folder, tmp_path / "said.csv").err
    assert meditune("annotate", "export", folder, "--to", tmp_path / "said.json").code == 0
    assert 'name="decision"' in (tmp_path / "said.xml").read_text()


def test_a_set_of_another_kind_is_refused(tmp_path):
    table = jsonl(tmp_path / "mine.jsonl", [{"question": f"Why {n}?", "answer": "So it is."} for n in range(4)])
    assert meditune("annotate", "create", table, "-o", tmp_path / "set").code == 0
    meditune("learn", "rows", tmp_path / "set", "-o", tmp_path / "x").refused(3, "no queue of `meditune learn queue`")
    assert read_jsonl(table)
