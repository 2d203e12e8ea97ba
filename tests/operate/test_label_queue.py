"""Which answers and rows experts are asked about, why, and what is said where nothing can be.

A queue is worked in a real browser, too, and what experts said of it becomes rows that a recipe reads.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from meditune.data.example import DECISIONS
from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import read_json, read_jsonl
from meditune.operate.label_queue import NOT_JUDGED, NOTHING, choose, read, rows
from meditune.review.rating_set import VERDICT, read_key, read_set
from meditune.review.ratings_store import Note, Rating, Store
from meditune.store import StoreLocation, database, open_store
from meditune.store.answers import Answer, Answers, Feedback
from tests import layouts
from tests.commands import jsonl, meditune
from tests.loopback_server import chromium
from tests.review.known_ratings import served
from tests.review.test_page import opened, saved, sign_in


def keep(place: StoreLocation, id: str, question: str | None, answer: str = "It helps.", **facts: Any) -> Answers:
    """A store with one more answer."""
    answers = Answers(open_store(place))
    outcome = facts.pop("outcome", "answered")
    answers.keep(Answer(id, "", "ask", "tiny 1", "idx", outcome, facts, question, answer, time=1_700_000_000.0))
    return answers


def store(folder: StoreLocation) -> StoreLocation:
    """Six answers: one that a user disliked, one that a user corrected, and four of which nobody complains."""
    decided = {"answer": "yes", "probabilities": {"yes": 0.9, "no": 0.06, "maybe": 0.04}, "calibrated": False}
    keep(folder, "unsure", "Does vitamin C prevent colds?", decision="maybe")
    keep(folder, "plain", "What causes gout?", "Uric acid.")
    keep(folder, "abstained", "How is rabies treated?", "", outcome="abstained")
    answers = keep(folder, "disliked", "Is asthma curable?", decision=decided)
    keep(folder, "corrected", "Can children have migraine?", decision=decided)
    keep(folder, "fine", "Does exercise help the heart?", decision=decided)
    answers.add_feedback(Feedback("disliked", "a", "down", ["wrong"], "My doctor Dr. Jane Miller says otherwise."))
    answers.add_feedback(Feedback("corrected", "a", "down", [], "", "Yes, they can have it as well."))
    answers.add_feedback(Feedback("fine", "a", "up"))
    return folder


def judge(folder: Path, name: str, said: dict[str, tuple[str | None, str | None, str]]) -> None:
    """Let an expert say decision, verdict and a better text (or nothing of one) of examples by id."""
    there = Store(folder)
    rater = there.rater(name).id
    items = {origin.example: id for id, origin in read_key(folder)[0].items()}
    assert set(items.values()) == set(read_set(folder).items)
    for example, (decision, verdict, better) in said.items():
        item, ratings = items[example], []
        if decision:
            number = DECISIONS.index(decision) + 1 if decision in DECISIONS else len(DECISIONS) + 1  # type: ignore[arg-type]
            ratings.append(Rating(rater, item, "decision", number, 1.0))
        if verdict:
            ratings.append(Rating(rater, item, "verdict", VERDICT.numbers()[verdict.capitalize()], 1.0))
        there.save(ratings, [Note(rater, item, "", better)] if better else [])


def ids(chosen):
    return [each.candidate.id.rpartition(":")[2] for each in chosen]


def test_what_users_say_goes_first_and_the_rest_is_drawn_by_the_seed(tmp_path):
    pool = read(store(tmp_path / "store"))[0]
    chosen = choose(pool, 6)
    assert ids(chosen)[:2] == ["corrected", "disliked"]
    reasons = [each.reasons for each in chosen]
    assert reasons[0] == {"corrected": "a user wrote a correction", "disliked": "a user rated it down"}
    assert reasons[1] == {"disliked": "a user rated it down (wrong)"}
    assert reasons[2:] == [{"random": "chosen at random"}] * 4, "praise is no reason to ask"
    assert [each.score for each in chosen] == [1.0, 0.8, 0, 0, 0, 0]
    drawn = [ids(choose(pool, 4, "random", seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    rest = [ids(choose(pool, 6, "feedback", seed))[2:] for seed in (1, 1, 2)]
    assert rest[0] == rest[1] != rest[2]
    assert choose([], 3) == []
    with pytest.raises(DataError, match="Choose from feedback, margin, random"):
        choose(pool, 5, "luck")


def test_the_least_certain_decisions_follow_what_users_say(tmp_path):
    for name, yes in (("sure", 0.96), ("torn", 0.47), ("leaning", 0.6)):
        shares = {"yes": yes, "no": 0.97 - yes, "maybe": 0.03}
        keep(tmp_path / "store", name, f"Is {name} treatable?", decision={"answer": "yes", "probabilities": shares})
    pool = read(store(tmp_path / "store"))[0]
    chosen = choose(pool, 20, "margin")
    assert ids(chosen)[:6] == ["corrected", "disliked", "torn", "leaning", "fine", "sure"]
    assert set(ids(chosen)[6:]) == {"unsure", "plain", "abstained"}, "without probabilities, they come last"
    assert chosen[2].reasons == {"uncertain": "its two likeliest labels are 3 percentage points apart"}
    assert chosen[0].reasons == choose(pool, 1)[0].reasons
    assert chosen[-1].reasons == {"random": "chosen at random"}


def test_a_queue_of_a_store_is_a_set_to_annotate_that_holds_no_identifier(tmp_path):
    folder = store(tmp_path / "store")
    done = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "2").ok()
    assert "Selected: 2 of 6 candidates." in done.out
    assert "Reasons: rated down 2, corrected 1." in done.out
    assert "a user wrote a correction" in done.out
    found = read_set(tmp_path / "set")
    assert [item.question for item in found.items.values()] == ["Can children have migraine?", "Is asthma curable?"]
    corrected, disliked = found.items.values()
    assert (corrected.context[0].label, corrected.context[0].text) == (
        "A user's correction",
        "Yes, they can have it as well.",
    )
    assert corrected.axes == ("decision", "verdict")
    assert "Jane Miller" not in "".join((tmp_path / "set" / name).read_text() for name in ("items.jsonl", "key.json"))
    assert all(item[0].isalpha() for item in found.items)  # a spreadsheet would read 12e456789012 as a number
    assert "[NAME]" in disliked.context[0].text
    again = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "2")
    assert again.code == 0, "the same queue is there already"
    other = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "1")
    other.refused(1, "contains something else")
    more = ("learn", "queue", folder, "-o", tmp_path / "next", "--earlier-queue", tmp_path / "set")
    done = meditune(*more, "--json", "--budget", "5")
    told = json.loads(done.out)
    assert not {"answers:corrected", "answers:disliked"} & {each["id"] for each in told["chosen"]}
    assert told["pool"] == 4
    assert told["remarks"][-1] == "All candidates (4) are in the queue, fewer than the budget of 5."


def test_rows_need_only_a_question_and_known_ones_arent_asked(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [{"question": f"Is {n} safe?"} for n in range(6)] + [{"question": ""}])
    known = jsonl(tmp_path / "known.jsonl", [{"question": "is 3 SAFE", "answer": "Yes."}])
    done = meditune("learn", "queue", path, "--training-data", known, "-o", tmp_path / "set", "--strategy", "random")
    assert "Selected: 5 of 5 candidates." in done.out
    assert "All candidates (5) are in the queue" in done.err
    assert "1 answers or rows without a question" in done.err
    assert {item.axes for item in read_set(tmp_path / "set").items.values()} == {("decision",)}
    pubmedqa = layouts.pubmedqa(tmp_path, {str(n): layouts.pubmedqa_item(n) for n in range(30)})
    assert {each.example.source for each in read(pubmedqa)[0]} == {"pubmedqa"}


def test_the_same_question_is_asked_once_and_counted(tmp_path):
    for n in range(3):
        keep(tmp_path, f"n{n}", "What causes gout?" if n else "what causes GOUT")
    done = meditune("learn", "queue", tmp_path, "-o", tmp_path / "set", "--strategy", "random")
    assert "Selected: 1 of 1 candidate." in done.out
    assert "(asked 3 times)" in done.out


def test_praise_of_a_later_answer_hides_no_correction_of_an_earlier_one(tmp_path):
    for id in ("first", "second"):
        answers = keep(tmp_path / "store", id, "What causes gout?")
    answers.add_feedback(Feedback("first", "a", "down", [], "", "Crystals of uric acid."))
    answers.add_feedback(Feedback("second", "b", "up"))
    done = meditune("learn", "queue", tmp_path / "store", "-o", tmp_path / "set").ok()
    assert "Reasons: corrected 1, rated down 1." in done.out


def test_what_cant_be_queued_is_told(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    database.SQLiteDatabase(empty)
    rows = jsonl(tmp_path / "rows.jsonl", [{"question": "Is it safe?"}])

    def refused(*words, code=3, told=()):
        meditune("learn", "queue", *words, "-o", tmp_path / "set").refused(code, *told)

    refused(empty, told=["no answers yet"])
    refused(tmp_path / "nowhere", told=["no such file or folder"])
    refused(rows, "--strategy", "best", told=["Unknown --strategy best", "feedback, margin, random"])
    refused(rows, "--training-data", rows, told=["none is left to ask"])
    keep(empty, "a", None)
    refused(empty, told=["--keep-text"])
    nothing = jsonl(tmp_path / "nothing.jsonl", [{"question": "", "answer": "So."}])
    refused(nothing, told=["no row has a question", "nothing.jsonl:1"])
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    with sqlite3.connect(empty / database.FILE, isolation_level=None) as held:
        held.execute("PRAGMA locking_mode = EXCLUSIVE")
        held.execute("BEGIN EXCLUSIVE")
        refused(empty, told=["can't be used", "locked"])


def test_a_database_is_a_store_too_and_its_password_is_nowhere(postgres, tmp_path):
    url = store(postgres.new()).replace("meditune@", "meditune:secret@")
    done = meditune("learn", "queue", url, "-o", tmp_path / "set", "--budget", "2")
    assert "Selected: 2 of 6 candidates." in done.out, done.err
    assert not any("secret" in path.read_text() for path in (tmp_path / "set").iterdir())


def made(tmp_path, *words):
    meditune("learn", "queue", store(tmp_path / "store"), "-o", tmp_path / "set", "--strategy", "random", *words).ok()
    return tmp_path / "set"


def test_what_experts_said_comes_back_as_rows_that_a_recipe_reads(tmp_path):
    folder = made(tmp_path)
    meditune("learn", "rows", folder, "-o", tmp_path / "x").refused(3, "no training rows yet (6 not judged yet)")
    judge(
        folder,
        "expert",
        {
            "answers:fine": ("yes", "correct", ""),
            "answers:disliked": ("maybe", "wrong", "It can be controlled, as Dr. Jane Miller of 555-123-4567 says."),
            "answers:plain": (None, "wrong", ""),
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
    assert [row["decision"] for row in rows(folder, excluded_raters=["two"]).rows if row["id"] == "answers:unsure"] == [
        "no"
    ]


def test_a_decision_that_all_experts_reject_isnt_learnt_even_if_they_find_the_answer_correct(tmp_path):
    folder = made(tmp_path)
    for name, decision in (("one", "no"), ("two", "maybe")):
        judge(folder, name, {"answers:fine": (decision, "correct", "")})
    (row,) = rows(folder).rows
    assert (row["answer"], row["decision"]) == ("It helps.", "")
    assert [row["decision"] for row in rows(folder, excluded_raters=["two"]).rows] == ["no"]


def test_rows_without_ids_of_two_files_of_the_same_name_have_different_ids(tmp_path):
    found = []
    for month, word in (("january", "aspirin"), ("february", "zinc")):
        (tmp_path / month).mkdir()
        path = jsonl(
            tmp_path / month / "asked.jsonl", [{"question": f"Does {word} help?"}, {"id": 7, "question": "A?"}]
        )
        found.append([each.id for each in read(path)[0]])
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1] == "own:7"


def test_the_annotation_commands_take_a_queue(tmp_path):
    folder = made(tmp_path)
    judge(folder, "one", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("no", "wrong", "")})
    judge(folder, "two", {"answers:fine": ("maybe", "correct", "")})
    meditune("annotate", "results", folder).ok()
    results = read_json(folder / "results.json")
    assert results["sample"] == "queue"
    assert results["rows_by_verdict"]["correct"] == 1
    assert results["decisions"] == {"yes": 0, "no": 1, "maybe": 0, "neither": 0, "undecided": 1}
    meditune("annotate", "export", folder, "--to", tmp_path / "said.csv").ok()
    assert "3 unchanged" not in meditune("annotate", "import", folder, tmp_path / "said.csv").err
    meditune("annotate", "export", folder, "--to", tmp_path / "said.json").ok()
    assert 'name="decision"' in (tmp_path / "said.xml").read_text()


def test_a_set_of_another_kind_is_refused(tmp_path):
    table = jsonl(tmp_path / "mine.jsonl", [{"question": f"Why {n}?", "answer": "So it is."} for n in range(4)])
    meditune("annotate", "create", table, "-o", tmp_path / "set").ok()
    meditune("learn", "rows", tmp_path / "set", "-o", tmp_path / "x").refused(
        3, "was not made by `meditune learn queue`"
    )
    assert read_jsonl(table)


@pytest.mark.browser
def test_an_expert_labels_by_keys_and_writes_what_is_missing(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder, "--budget", "2")
    meditune(*words).ok()
    meditune("learn", "queue", tmp_path / "store", "-o", tmp_path / "all", "--strategy", "random").ok()
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        for _ in range(2):
            page.get_by_text("2 of 2 still to rate for this answer.").wait_for()
            if page.get_by_role("heading", name="Can children have migraine?").is_visible():
                assert page.get_by_text("Yes, they can have it as well.").is_visible(), "the user's correction is shown"
                page.keyboard.press("1")  # yes
                page.keyboard.press("3")  # wrong
                page.keyboard.press("b")
                page.locator("#better").fill("Children can have migraine, too.")
                page.keyboard.press("Escape")
            else:
                page.keyboard.press("3")  # maybe
                page.keyboard.press("1")  # correct
            saved(page)
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    found = {row["id"]: (row["decision"], row["answer"]) for row in rows(folder).rows}
    assert found == {
        "answers:corrected": ("yes", "Children can have migraine, too."),
        "answers:disliked": ("maybe", "It helps."),
    }


@pytest.mark.browser
def test_a_question_without_an_answer_asks_for_no_verdict(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder)
    meditune(*words).ok()
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        while not page.get_by_role("heading", name="How is rabies treated?").is_visible():
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(200)
        assert page.locator("#axes .axis").count() == 1
        page.keyboard.press("4")  # neither
        page.keyboard.press("b")
        page.locator("#better").fill("By vaccination at once.")
        page.keyboard.press("Escape")
        saved(page)
    assert [(row["decision"], row["answer"]) for row in rows(folder).rows] == [("", "By vaccination at once.")]
