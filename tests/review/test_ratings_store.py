"""What was said is kept: repeated, changed, taken back, by several at once, and through a killed process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from meditune.errors import MedituneError
from meditune.review.ratings_store import ADJUDICATION, Note, Rating, Store


def test_saying_it_again_changes_nothing_and_saying_another_thing_does(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    for option in (2, 2, 3):
        store.save([Rating(rater, "i", "harm", option, 1.5)])
    store.save([Rating(rater, "i", "bias", None, 1.0), Rating(rater, "i", "harm", 1, 1.0, round=ADJUDICATION)])
    assert {(r.axis, r.option, r.round) for r in store.ratings()} == {
        *(("harm", 3, 1), ("bias", None, 1)),
        ("harm", 1, ADJUDICATION),
    }
    store.remove(rater, "i", "harm")
    store.remove(rater, "i", "harm")
    assert {(r.axis, r.round) for r in store.ratings(item="i")} == {("bias", 1), ("harm", ADJUDICATION)}


def test_names_are_one_without_regard_to_case_and_spaces(tmp_path):
    store = Store(tmp_path)
    first, second = store.rater("Ann  Lee"), store.rater("Bo")
    assert store.rater(" ann LEE ").id == first.id
    assert [(r.name, r.code, r.place) for r in store.raters().values()] == [("Ann Lee", "R1", 0), ("Bo", "R2", 1)]
    assert second.id != first.id


def test_who_only_adjudicates_takes_no_share_of_the_first_round(tmp_path):
    store = Store(tmp_path)
    assert store.rater("Chief", takes_share=False).place is None
    assert store.rater("Ann").place == 0
    assert store.rater("Chief").place == 1


def test_an_empty_note_is_no_note(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    store.save([], [Note(rater, "i", "Hm.", "")])
    assert [note.comment for note in store.notes()] == ["Hm."]
    store.save([], [Note(rater, "i", " ", "")])
    assert store.notes() == []


def test_all_or_nothing(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    with pytest.raises(MedituneError):
        store.save([Rating(rater, "i", "harm", 1, 1.0), Rating("nobody", "i", "harm", 1, 1.0)])
    assert store.ratings() == []


def test_raters_at_once_lose_nothing(tmp_path):
    Store(tmp_path)

    def rate(name):
        store = Store(tmp_path)
        rater = store.rater(name).id
        for number in range(20):
            store.save([Rating(rater, f"i{number}", "harm", 1, 1.0)])

    threads = [threading.Thread(target=rate, args=(f"rater {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(tmp_path).ratings()) == 80
    assert sorted(rater.place for rater in Store(tmp_path).raters().values()) == [0, 1, 2, 3]


def test_a_killed_process_loses_nothing_that_it_stored(tmp_path):
    code = (
        "import sys; from pathlib import Path; from meditune.review.ratings_store import *\n"
        "store = Store(Path(sys.argv[1])); rater = store.rater('Ann').id\n"
        "for n in range(10**6):\n    store.save([Rating(rater, f'i{n}', 'harm', 1, 1.0)]); print(n, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.communicate()[0].splitlines(keepends=True)
    last = max(int(line) for line in said if line.endswith("\n"))
    assert {f"i{n}" for n in range(last + 1)} <= {r.item for r in Store(tmp_path).ratings()}


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "ratings.sqlite").write_bytes(b"no database at all, and long enough to be looked at" * 40)
    with pytest.raises(MedituneError, match=r"ratings\.sqlite cannot be used"):
        Store(tmp_path)
