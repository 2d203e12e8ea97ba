"""Answers and feedback: masked, whole, deletable, and there after a kill."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from meditune.store import database, open_store
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.api_keys import Usage
from meditune.store.database import SQLiteDatabase
from meditune.store.overview import Notes, overview


@pytest.fixture
def answers(store):
    return Answers(open_store(store))


@pytest.fixture
def in_file(tmp_path):
    return Answers(SQLiteDatabase(tmp_path))


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_text_is_masked_before_it_is_written(answers, tmp_path):
    question = "My name is John Miller, born 03/04/1956, SSN 123-45-6789. Does aspirin help?"
    answers.keep(Answer("a1", "k1", "ask", "m v1", question=question, answer="Aspirin, Mr. John Miller, may help."))
    reasons = ["wrong", "It is about John Miller, 03/04/1956"]
    answers.add_feedback(
        Feedback("a1", "k1", "down", reasons, "Call me: 555-867-5309", "John Miller should ask a doctor.")
    )
    kept = next(answers.exported())
    assert "aspirin" in kept["question"]
    assert "Aspirin" in kept["answer"]
    assert kept["feedback"][0]["reasons"][0] == "wrong"
    for secret in ("123-45-6789", "03/04/1956", "867-5309", "Miller"):
        assert secret not in str(list(answers.exported()))
        assert secret.encode() not in everything(tmp_path)


def test_without_text_only_figures_are_kept(answers):
    answers.keep(Answer("a1", "k1", "ask", "m v1", "i1", "abstained", {"tokens": {"prompt": 3}}))
    found = answers.get("a1")
    assert (found.question, found.answer, found.outcome) == (None, None, "abstained")
    assert found.facts == {"tokens": {"prompt": 3}}
    assert abs(found.time - time.time()) < 60


def test_feedback_replaces_the_same_persons_and_needs_an_answer(answers):
    assert not answers.add_feedback(Feedback("nothing", "k1", "up"))
    answers.keep(Answer("a1", "k1", "ask", "m v1"))
    for who, rating in (("k1", "up"), ("k2", "up"), ("k1", "down")):
        assert answers.add_feedback(Feedback("a1", who, rating))
    assert {each["who"]: each["rating"] for each in next(answers.exported())["feedback"]} == {"k1": "down", "k2": "up"}


def test_an_answer_that_several_people_rated_counts_as_one_rated_answer(answers):
    for id in ("a1", "a2"):
        answers.keep(Answer(id, "k1", "ask", "m v1"))
    answers.keep(Answer("old", "k1", "ask", "m v1", time=1.0))
    for id, who in (("a1", "k1"), ("a1", "k2"), ("a1", "k3"), ("old", "k1")):
        answers.add_feedback(Feedback(id, who, "up"))
    found = overview(answers.base)["feedback"]
    assert (found["up"], found["rated"]) == (4, 0.5)


def test_feedback_with_the_same_rating_keeps_what_it_leaves_out(answers):
    answers.keep(Answer("a1", "k1", "ask", "m v1"))

    def told(*words, **named):
        assert answers.add_feedback(Feedback("a1", "k1", *words, **named))
        (kept,) = next(answers.exported())["feedback"]
        return kept["rating"], kept["reasons"], kept["comment"], kept["correction"], kept["decision"]

    everything = ("down", ["unsafe"], "Ouch.", "The dose is wrong.", "no")
    assert told(*everything) == everything
    assert told("down") == everything
    assert told("down", ["wrong"], correction="") == ("down", ["wrong"], "Ouch.", "", "no")
    assert told("up") == ("up", [], "", "", "")


def test_what_is_deleted_is_gone_from_the_file(in_file, tmp_path):
    answers = in_file
    for name in ("a1", "a2"):
        answers.keep(Answer(name, "k1", "ask", "m v1", question=f"unmistakable {name} words"))
        answers.add_feedback(Feedback(name, "k1", "up", (), f"remarkable {name} comment"))
    assert answers.delete("a1")
    assert not answers.delete("a1")
    assert [each["id"] for each in answers.exported()] == ["a2"]
    assert b"unmistakable a1" not in everything(tmp_path)
    assert b"remarkable a1" not in everything(tmp_path)
    assert b"remarkable a2" in everything(tmp_path)


def test_a_deleted_question_is_gone_from_the_notes_about_drift(answers, tmp_path):
    for name in ("a1", "a2", "a3"):
        answers.keep(Answer(name, "k1", "ask", "m v1"))
    rows = [{"id": name, "question": f"unmistakable {name} words"} for name in ("a1", "a2", "a3")]
    groups = [{"name": "words", "examples": rows[:1]}, {"name": "more", "examples": rows[:2]}]
    notes = Notes(answers.base)
    notes.put("drift/r", {"alerts": [{"evidence": {"examples": rows, "groups": groups}}, {"evidence": {}}]})
    (before,) = notes.all("drift")
    assert answers.delete("a1")
    (left,) = notes.all("drift")
    assert left.facts["alerts"][0]["evidence"] == {
        "examples": rows[1:],
        "groups": [{"name": "more", "examples": rows[1:2]}],
    }
    assert left.time == before.time
    assert b"unmistakable a1" not in everything(tmp_path)
    assert answers.prune(0) == 2
    assert "unmistakable" not in str(notes.all("drift"))


def test_what_stays_in_the_log_for_a_reader_is_said_and_gone_with_the_next_pruning(
    in_file, tmp_path, monkeypatch, caplog
):
    answers = in_file
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    answers.keep(Answer("a1", "k1", "ask", "m v1", question="unmistakable words"))
    with answers.base.opened() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM answers").fetchone()
        assert answers.delete("a1")
        assert "still in" in caplog.text
        assert b"unmistakable" in everything(tmp_path)
        reader.execute("COMMIT")
        assert answers.prune(30) == 0
        assert b"unmistakable" not in everything(tmp_path)


def test_what_is_old_is_deleted_with_its_feedback(answers):
    answers.keep(Answer("old", "k1", "ask", "m v1", time=time.time() - 31 * 86_400))
    answers.keep(Answer("new", "k1", "ask", "m v1"))
    answers.add_feedback(Feedback("old", "k1", "up"))
    assert answers.prune(30) == 1
    assert [each["id"] for each in answers.exported()] == ["new"]
    assert answers.prune(30) == 0


def test_answers_with_a_wrong_time_are_deleted_with_the_answers_stored_before_and_after_them(answers, monkeypatch):
    start = time.time()
    # The clock is right, ten years slow, ten years fast, and right again, and each answer comes a day later.
    for day, deviation in enumerate([0, -3650, 3650, 0]):
        answers.keep(Answer(f"day {day}", "k1", "ask", "m v1", time=start + (day + deviation) * 86_400))

    def left(day):
        monkeypatch.setattr(time, "time", lambda: start + day * 86_400)
        answers.prune(30)
        return [each["id"] for each in answers.exported()]

    assert left(29) == ["day 0", "day 1", "day 2", "day 3"]
    # Times leave only the order, so the day with the slow clock goes with the day before it.
    assert left(30.5) == ["day 2", "day 3"]
    assert left(33.5) == []


def test_all_of_a_key_is_deleted_on_request(answers):
    for id, who in (("a1", "k1"), ("a2", "k2"), ("a3", "k1")):
        answers.keep(Answer(id, who, "ask", "m v1", question="What helps?"))
    answers.add_feedback(Feedback("a2", "k1", "down", comment="k1 said this"))
    answers.add_feedback(Feedback("a2", "k2", "up"))
    assert answers.delete_all_of("k1") == 2
    (left,) = answers.exported()
    assert (left["id"], [each["who"] for each in left["feedback"]]) == ("a2", ["k2"])


def test_an_experts_word_is_kept_as_such(answers):
    answers.keep(Answer("a1", "k1", "ask", "m v1"))
    answers.add_feedback(Feedback("a1", "k2", "down", (), "", "It doesn't help.", "no", True))
    (said,) = next(answers.exported())["feedback"]
    assert (said["decision"], said["expert"], said["correction"]) == ("no", True, "It doesn't help.")


def test_answers_come_in_the_order_of_writing_by_pages_with_their_feedback(answers, monkeypatch):
    monkeypatch.setattr("meditune.store.answers.PAGE", 3)
    for number in range(8):
        answers.keep(Answer(f"a{number}", "k1", "ask", "m", time=1e9 - number))
        answers.add_feedback(Feedback(f"a{number}", "k1", "up" if number % 2 else "down"))
    told = list(answers.in_order())
    assert [each.id for _, each, _ in told] == [f"a{number}" for number in range(8)]
    assert [said for _, _, said in told] == [("down",), ("up",)] * 4
    places = [place for place, _, _ in told]
    assert places == sorted(set(places))
    assert [each.id for _, each, _ in answers.in_order(places[5])] == ["a6", "a7"]
    # The last place isn't given again.
    answers.delete("a7")
    answers.keep(Answer("a8", "k1", "ask", "m"))
    assert answers.last_place() > places[-1]


def test_many_writers_lose_nothing_and_are_read_in_order(store):
    def write(writer):
        mine = Answers(open_store(store))
        for number in range(15):
            mine.keep(Answer(f"w{writer}-{number}", "k", "ask", "m"))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, writer) for writer in range(4)]
        seen, after, reader = [], 0, Answers(open_store(store))
        while len(seen) < 60:
            for place, answer, _ in reader.in_order(after):
                after = place
                seen.append(answer.id)
            for each in done:
                if each.done():
                    each.result()
    assert len(set(seen)) == 60


def test_signs_that_a_database_cant_hold_stop_nobody(answers):
    answers.keep(Answer("a1", "k1", "ask", "m", question="Does it\0 help?", answer="?%s ?"))
    kept = answers.get("a1")
    assert kept.question.startswith("Does it")
    assert kept.answer == "?%s ?"


WRITER = """
import sys
from pathlib import Path
from meditune.store import database
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.database import SQLiteDatabase
answers = Answers(SQLiteDatabase(Path(sys.argv[1])))
for n in range(100_000):
    answers.keep(Answer(f"a{n}", "k", "ask", "m"))
    answers.add_feedback(Feedback(f"a{n}", "k", "up", (), f"comment {n}"))
    print(n, flush=True)
"""


def test_nothing_that_was_reported_is_lost_by_a_kill(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    reported = [process.stdout.readline() for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    reported += process.stdout.readlines()
    process.wait()
    kept = {each["id"]: each["feedback"] for each in Answers(SQLiteDatabase(tmp_path)).exported()}
    for line in reported:
        assert kept[f"a{int(line)}"][0]["comment"] == f"comment {int(line)}"


def test_usage_is_counted_by_day(store):
    usage = Usage(open_store(store))
    assert usage.today("k1") == 0
    usage.add("k1", 10)
    usage.add("k1", 5)
    usage.add("k2", 7)
    assert (Usage(open_store(store)).today("k1"), usage.today("k2")) == (15, 7)


def test_old_usage_is_deleted_with_its_address(tmp_path):
    usage = Usage(SQLiteDatabase(tmp_path))
    usage.add("192.0.2.7", 5)
    with usage.base.opened() as base:
        base.execute("INSERT INTO usage VALUES ('198.51.100.9', '2020-01-01', 1, 5)")
    usage.prune(30)
    assert usage.today("192.0.2.7") == 5
    assert b"198.51.100.9" not in everything(tmp_path)
