"""Answers and feedback: masked, whole, deletable, and there after a kill."""

import os
import signal
import subprocess
import sys
import time

import pytest

from meditune.store import base
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.base import Base
from meditune.store.usage import Usage


@pytest.fixture
def answers(tmp_path):
    return Answers(Base(tmp_path))


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_text_is_masked_before_it_is_written(answers, tmp_path):
    question = "My name is John Miller, born 03/04/1956, SSN 123-45-6789. Does aspirin help?"
    answers.keep(Answer("a1", "k1", "ask", "m v1", question=question, answer="Aspirin, Mr. John Miller, may help."))
    reasons = ["wrong", "It is about John Miller, 03/04/1956"]
    answers.say(Feedback("a1", "k1", "down", reasons, "Call me: 555-867-5309", "John Miller should ask a doctor."))
    kept = next(answers.exported())
    assert "aspirin" in kept["question"]
    assert "Aspirin" in kept["answer"]
    assert kept["feedback"][0]["reasons"][0] == "wrong"
    for secret in (b"123-45-6789", b"03/04/1956", b"867-5309", b"Miller"):
        assert secret not in everything(tmp_path)


def test_without_text_only_figures_are_kept(answers):
    answers.keep(Answer("a1", "k1", "ask", "m v1", "i1", "abstained", {"tokens": {"prompt": 3}}))
    found = answers.get("a1")
    assert (found.question, found.answer, found.outcome) == (None, None, "abstained")
    assert found.facts == {"tokens": {"prompt": 3}}
    assert abs(found.time - time.time()) < 60


def test_feedback_replaces_the_same_persons_and_needs_an_answer(answers):
    assert not answers.say(Feedback("nothing", "k1", "up"))
    answers.keep(Answer("a1", "k1", "ask", "m v1"))
    for who, rating in (("k1", "up"), ("k2", "up"), ("k1", "down")):
        assert answers.say(Feedback("a1", who, rating))
    assert {each["who"]: each["rating"] for each in next(answers.exported())["feedback"]} == {"k1": "down", "k2": "up"}


def test_what_is_deleted_is_gone_from_the_file(answers, tmp_path):
    for name in ("a1", "a2"):
        answers.keep(Answer(name, "k1", "ask", "m v1", question=f"unmistakable {name} words"))
        answers.say(Feedback(name, "k1", "up", (), f"remarkable {name} comment"))
    assert answers.delete("a1")
    assert not answers.delete("a1")
    assert [each["id"] for each in answers.exported()] == ["a2"]
    assert b"unmistakable a1" not in everything(tmp_path)
    assert b"remarkable a1" not in everything(tmp_path)
    assert b"remarkable a2" in everything(tmp_path)


def test_what_stays_in_the_log_for_a_reader_is_said_and_gone_with_the_next_pruning(
    answers, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(base, "BUSY_S", 0.2)
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
    answers.say(Feedback("old", "k1", "up"))
    assert answers.prune(30) == 1
    assert [each["id"] for each in answers.exported()] == ["new"]
    assert answers.prune(30) == 0


WRITER = """
import sys
from pathlib import Path
from meditune.store import base
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.base import Base
answers = Answers(Base(Path(sys.argv[1])))
for n in range(100_000):
    answers.keep(Answer(f"a{n}", "k", "ask", "m"))
    answers.say(Feedback(f"a{n}", "k", "up", (), f"comment {n}"))
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
    kept = {each["id"]: each["feedback"] for each in Answers(Base(tmp_path)).exported()}
    for line in reported:
        assert kept[f"a{int(line)}"][0]["comment"] == f"comment {int(line)}"


def test_usage_is_counted_by_day(tmp_path):
    usage = Usage(Base(tmp_path))
    assert usage.today("k1") == 0
    usage.add("k1", 10)
    usage.add("k1", 5)
    usage.add("k2", 7)
    assert (Usage(Base(tmp_path)).today("k1"), usage.today("k2")) == (15, 7)


def test_old_usage_is_deleted_with_its_address(tmp_path):
    usage = Usage(Base(tmp_path))
    usage.add("192.0.2.7", 5)
    with usage.base.opened() as base:
        base.execute("INSERT INTO usage VALUES ('198.51.100.9', '2020-01-01', 1, 5)")
    usage.prune(30)
    assert usage.today("192.0.2.7") == 5
    assert b"198.51.100.9" not in everything(tmp_path)
