"""`meditune drift` over files and stores, as a user meets it.

The requests are invented: streams with vectors of a few topics.
"""

import json
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pytest

from meditune.errors import DataError, ModelError
from meditune.operate.drift import drift_detection, monitor, reference
from meditune.operate.drift.drift_detection import RequestSource
from meditune.operate.drift.monitor import Policy
from meditune.operate.drift.signals import Request
from meditune.store import database
from meditune.store.answers import Answers, Feedback
from meditune.store.database import SQLiteDatabase
from tests.commands import meditune

VECTOR_SIZE = 24
TOPICS = {"heart": 0, "skin": 1, "sleep": 2, "vaccine": 3}
_WORDS = ("does", "my", "pain", "help", "with", "the", "daily", "often", "doctor", "when", "night", "cause")


def requests(count, seed, topics=("heart", "skin", "sleep"), first=1, words=(5, 9), confidence=(8, 3), outcome=0.1):
    """So many requests about these topics, their questions so many words long."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(len(TOPICS), VECTOR_SIZE))
    found = []
    for number in range(first, first + count):
        topic = str(rng.choice(topics))
        vector = (middles[TOPICS[topic]] + rng.normal(scale=0.6, size=VECTOR_SIZE)).astype(np.float32)
        said = [topic, *rng.choice(_WORDS, int(rng.integers(*words)))]
        facts = {"confidence": float(rng.beta(*confidence))}
        found.append(
            Request(
                f"r{number}",
                " ".join(said),
                vector=vector / np.linalg.norm(vector),
                outcome="abstained" if rng.random() < outcome else "answered",
                facts=facts,
                ratings=("up",) if rng.random() < 0.3 else (),
                sequence=number,
            )
        )
    return found


def fill_store(folder, given, time=1.0):
    """The requests' figures in a store, in one transaction: one for each would take a disk's time for each."""
    answers = Answers(SQLiteDatabase(folder))
    with answers.base.changing() as base:
        for each in given:
            base.execute(
                "INSERT INTO answers (id, time, who, route, model, index_content, outcome, facts) "
                "VALUES (?, ?, 'k', 'ask', 'm', '', ?, ?)",
                (each.id, time, each.outcome, json.dumps(each.facts)),
            )
    return answers


def write_facts(path, given):
    """The requests without their questions, as `meditune answers export` writes them where texts aren't kept."""
    rows = (
        {"id": each.id, "question": None, "outcome": each.outcome, "facts": dict(each.facts), "feedback": []}
        for each in given
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_facts(folder / "good.jsonl", requests(600, 1))
    reference.save(
        drift_detection.fit_reference(RequestSource(folder / "good.jsonl"), None, None, 17), folder / "reference"
    )
    return folder / "reference"


def test_a_file_like_the_reference_ends_well_and_another_with_code_6(good, tmp_path):
    same = write_facts(tmp_path / "same.jsonl", requests(300, 2, first=1000))
    quiet = meditune("drift", "check", same, "--reference", good).ok()
    assert "ALERT" not in (quiet.out + quiet.err)
    other = write_facts(tmp_path / "other.jsonl", requests(300, 3, first=2000, confidence=(3, 8)))
    page = tmp_path / "page.html"
    found = meditune("drift", "check", other, "--reference", good, "--json", "--page", page)
    assert found.code == 6
    assert "confidence (large)" in (found.out + found.err)
    said = json.loads(found.out)
    assert [alert["signal"] for alert in said["alerts"]] == ["confidence"]
    assert said["signals"]["outcome"]["state"] == "quiet"
    assert "less sure" in page.read_text()
    assert 'src="data:image/png' in page.read_text()


def test_few_requests_are_said_to_be_few(good, tmp_path):
    found = meditune("drift", "check", write_facts(tmp_path / "few.jsonl", requests(7, 4)), "--reference", good).ok()
    assert "Only 7 requests so far" in (found.out + found.err)
    found = meditune("drift", "fit", tmp_path / "few.jsonl", "-o", tmp_path / "reference")
    assert found.code == 3
    assert "needs at least 200" in (found.out + found.err)


def test_other_options_than_those_of_the_state_are_said_to_have_no_effect(good, tmp_path):
    few = write_facts(tmp_path / "few.jsonl", requests(7, 4))
    words = ("drift", "check", few, "--reference", good, "--state", tmp_path / "state")
    assert "stay in effect" not in meditune(*words).ok().err
    assert "stay in effect" not in meditune(*words).ok().err
    told = meditune(*words, "--min-severity", "large").ok()
    assert "--false-alarms 0.1 and --min-severity small" in told.out + told.err


def test_a_store_is_checked_from_where_the_last_check_ended_whatever_the_clock_says(tmp_path):
    folder = tmp_path / "store"
    fill_store(folder, requests(400, 5), time=2e9)
    made = reference.save(drift_detection.fit_reference(RequestSource(folder), None, None, 17), tmp_path / "reference")
    # The clock jumped back by decades: what came later is later still.
    fill_store(folder, requests(100, 6, first=401), time=1.0)
    state = tmp_path / "state"
    found = drift_detection.check(RequestSource(folder), made, state, Policy())
    assert (found.new, found.monitor.count, found.monitor.last_id) == (100, 100, "r500")
    assert drift_detection.check(RequestSource(folder), made, state, Policy()).new == 0
    # The latest answers go, and their places in the file are given again.
    answers = fill_store(folder, [])
    for number in range(491, 501):
        assert answers.delete(f"r{number}")
    fill_store(folder, requests(60, 7, first=601, confidence=(3, 8)))
    found = drift_detection.check(RequestSource(folder), made, state, Policy())
    assert (found.new, found.monitor.count) == (60, 160)
    assert [alert.signal for alert in found.monitor.alerts()] == ["confidence"]


def test_no_request_counts_twice_after_the_newest_answer_was_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(drift_detection, "RECENT", 50)
    monkeypatch.setattr(monitor, "RECENT", 50)
    folder = tmp_path / "store"
    answers = fill_store(folder, requests(400, 5))
    made = reference.save(drift_detection.fit_reference(RequestSource(folder), None, None, 17), tmp_path / "reference")
    fill_store(folder, requests(150, 6, first=401))

    def check():
        found = drift_detection.check(RequestSource(folder), made, tmp_path / "state", Policy())
        return found.new, found.monitor.count

    assert check() == (150, 150)
    assert answers.delete("r550")
    assert check() == check() == (0, 150)
    fill_store(folder, requests(1, 7, first=551))
    assert check() == (1, 151)
    # A backup with 540 answers is restored: their places are given again.
    with answers.base.changing() as base:
        base.execute("DELETE FROM answers WHERE place > 540")
        base.execute("UPDATE sqlite_sequence SET seq = 540")
    assert check() == (0, 151)
    fill_store(folder, requests(5, 8, first=601))
    assert check() == (5, 156)
    assert check() == (0, 156)
    # An older backup contains none of the requests that the state remembers.
    with answers.base.changing() as base:
        base.execute("DELETE FROM answers WHERE place > 450")
        base.execute("UPDATE sqlite_sequence SET seq = 450")
    assert check() == (0, 156)
    fill_store(folder, requests(3, 9, first=701))
    assert check() == (3, 159)


def test_a_check_forgets_deleted_questions(tmp_path):
    folder, state = tmp_path / "store", tmp_path / "state"
    answers = fill_store(folder, requests(400, 5))
    made = reference.save(drift_detection.fit_reference(RequestSource(folder), None, None, 17), tmp_path / "reference")
    fill_store(folder, requests(80, 7, first=401, confidence=(3, 8)))
    (alert,) = drift_detection.check(RequestSource(folder), made, state, Policy()).monitor.alerts()
    assert alert.evidence["examples"]
    assert answers.delete_all_of("k") == 480
    (alert,) = drift_detection.check(RequestSource(folder), made, state, Policy()).monitor.alerts()
    assert alert.evidence == {"examples": []}
    assert monitor.Monitor.load(state, made).alerts() == [alert]


def test_ratings_are_waited_for(tmp_path):
    folder = tmp_path / "store"
    answers = fill_store(folder, requests(600, 8))
    for number in range(1, 401, 2):
        answers.add_feedback(Feedback(f"r{number}", "k", "up" if number % 10 else "down"))
    made = drift_detection.fit_reference(RequestSource(folder), None, None, 17)
    assert made.shares["feedback"].keys() == {"rated", "not rated"}
    made = reference.save(made, tmp_path / "reference")
    fill_store(folder, requests(300, 9, first=601))
    found = drift_detection.check(RequestSource(folder), made, tmp_path / "state", Policy())
    # Nobody has rated the latest 200 yet, which says nothing; nobody will rate the 100 before, which does.
    assert found.monitor.outcomes == 100
    assert [alert.signal for alert in found.monitor.alerts()] == ["feedback"]


def test_a_locked_store_is_named(tmp_path, good, monkeypatch):
    fill_store(tmp_path, requests(3, 10))
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with sqlite3.connect(tmp_path / database.FILE, isolation_level=None) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        found = meditune("drift", "check", tmp_path, "--reference", good)
    assert found.code == 3
    assert "locked" in (found.out + found.err)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not valid JSON"),
        ("{}", "neither question, facts nor outcome"),
        ('{"question": 7}', "question is int, not text"),
        ('{"question": "a", "facts": []}', None),
        ('{"question": "a", "facts": [1]}', "facts is list"),
        ('{"question": "a", "feedback": 3}', "feedback is not a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    if said is None:
        assert next(RequestSource(tmp_path / "a.jsonl").requests()).question == "a"
        return
    with pytest.raises(DataError, match=said):
        list(RequestSource(tmp_path / "a.jsonl").requests())


def test_lines_with_the_same_id_count_one_by_one(good, tmp_path):
    drifted = requests(90, 3, first=2000, confidence=(3, 8))
    path, state = tmp_path / "log.jsonl", tmp_path / "state"

    def check(count):
        write_facts(path, [replace(each, id="session-1") for each in drifted[:count]])
        return drift_detection.check(RequestSource(path), reference.load(good), state, Policy())

    assert check(40).new == 40
    found = check(90)
    assert (found.new, found.monitor.count, found.monitor.last_id) == (50, 90, "session-1, line 90")
    assert "confidence" in [alert.signal for alert in found.monitor.alerts()]
    assert check(90).new == 0


def test_neither_store_nor_file_is_refused(good, tmp_path):
    found = meditune("drift", "check", tmp_path / "nothing", "--reference", good)
    assert found.code == 3
    assert "neither a store" in (found.out + found.err)
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_was_cut_is_refused(good, tmp_path):
    made = reference.load(good)
    path = write_facts(tmp_path / "a.jsonl", requests(50, 11))
    drift_detection.check(RequestSource(path), made, tmp_path / "state", Policy())
    write_facts(path, requests(20, 11))
    with pytest.raises(DataError, match="truncated or replaced"):
        drift_detection.check(RequestSource(path), made, tmp_path / "state", Policy())


def test_another_file_is_refused_with_the_state_of_the_first_one_and_a_moved_store_isnt(good, tmp_path):
    made, state = reference.load(good), tmp_path / "state"
    first = write_facts(tmp_path / "week1.jsonl", requests(50, 11))
    second = write_facts(tmp_path / "week2.jsonl", requests(50, 12))
    drift_detection.check(RequestSource(first), made, state, Policy())
    with pytest.raises(DataError, match=r"belongs to .*week1\.jsonl, but .* come from .*week2\.jsonl.*--state"):
        drift_detection.check(RequestSource(second), made, state, Policy())
    assert drift_detection.check(RequestSource(second), made, tmp_path / "other", Policy()).new == 50
    assert drift_detection.check(RequestSource(first), made, state, Policy()).new == 0
    fill_store(tmp_path / "store", requests(20, 13))
    drift_detection.check(RequestSource(tmp_path / "store"), made, tmp_path / "of-store", Policy())
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    fill_store(moved, requests(5, 14, first=21))
    assert drift_detection.check(RequestSource(moved), made, tmp_path / "of-store", Policy()).new == 5
    fill_store(tmp_path / "unknown", requests(20, 15, first=500))
    with pytest.raises(DataError, match="The state file belongs to"):
        drift_detection.check(RequestSource(tmp_path / "unknown"), made, tmp_path / "of-store", Policy())


def test_a_renamed_file_and_a_moved_store_whose_earlier_answers_were_deleted_are_checked(good, tmp_path):
    made, state = reference.load(good), tmp_path / "state"
    given = requests(60, 11)
    first = write_facts(tmp_path / "a.jsonl", given[:50])
    drift_detection.check(RequestSource(first), made, state, Policy())
    renamed = first.rename(tmp_path / "b.jsonl")
    write_facts(renamed, given)
    assert drift_detection.check(RequestSource(renamed), made, state, Policy()).new == 10
    write_facts(renamed, requests(70, 12))
    before = state.read_bytes()
    with pytest.raises(DataError, match="the file was replaced"):
        drift_detection.check(RequestSource(renamed), made, state, Policy())
    assert state.read_bytes() == before
    answers = fill_store(tmp_path / "store", requests(20, 13))
    drift_detection.check(RequestSource(tmp_path / "store"), made, tmp_path / "of-store", Policy())
    fill_store(tmp_path / "store", requests(5, 14, first=21))
    answers.base.change("DELETE FROM answers WHERE place <= 20")
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    found = drift_detection.check(RequestSource(moved), made, tmp_path / "of-store", Policy())
    assert found.new == 5
    assert "they may have been deleted" in found.remarks[0]
    again = drift_detection.check(RequestSource(moved), made, tmp_path / "of-store", Policy())
    assert not any("they may have been deleted" in each for each in again.remarks)


def test_a_refused_check_forgets_no_evidence(good, tmp_path, monkeypatch):
    made, state = reference.load(good), tmp_path / "state"
    fill_store(tmp_path / "store", requests(20, 13))
    drift_detection.check(RequestSource(tmp_path / "store"), made, state, Policy())
    fill_store(tmp_path / "unknown", requests(20, 15, first=500))
    monkeypatch.setattr(drift_detection, "forget_evidence", lambda *_: pytest.fail("evidence was forgotten"))
    with pytest.raises(DataError, match="The state file belongs to"):
        drift_detection.check(RequestSource(tmp_path / "unknown"), made, state, Policy())


@pytest.mark.model
def test_vectors_of_another_model_are_refused():
    identity = {"name": "all-minilm-l6-v2", "dimension": 384, "space": "of another version"}
    made = reference.fit(requests(300, 12), identity, "test")
    with pytest.raises(ModelError, match="cannot be compared"):
        drift_detection.model_for(made, None)


def test_a_model_whose_package_is_missing_is_named_with_one_that_needs_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "meditune.models.int8_bert", None)
    monkeypatch.delattr("meditune.models.int8_bert", raising=False)
    identity = {"name": "all-minilm-l6-v2", "dimension": 384, "space": "any"}
    made = reference.fit(requests(300, 12), identity, "test")
    with pytest.raises(ModelError, match="--embedding all-minilm-l6-v2-int8"):
        drift_detection.model_for(made, None)
