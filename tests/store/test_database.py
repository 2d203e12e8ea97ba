"""Stores of earlier versions are brought up to date, those of later ones left alone; keys are kept as hashes."""

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from meditune.errors import DataError, StoreError
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.api_keys import USUAL, Keys
from meditune.store.database import FILE, LATEST, SQLiteDatabase
from meditune.store.open_store import open_store
from meditune.store.overview import Notes
from meditune.store.postgresql import Postgres

OLD = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, old_hash TEXT, old_until REAL,
    scopes TEXT NOT NULL, per_minute INTEGER, daily_tokens INTEGER, created REAL NOT NULL, expires REAL, revoked REAL
);
CREATE TABLE usage (
    who TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (who, day)
);
CREATE TABLE answers (
    id TEXT PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    index_content TEXT NOT NULL, outcome TEXT NOT NULL, facts TEXT NOT NULL, question TEXT, answer TEXT
);
CREATE INDEX answers_time ON answers (time);
CREATE TABLE feedback (
    answer TEXT NOT NULL REFERENCES answers (id) ON DELETE CASCADE, who TEXT NOT NULL, time REAL NOT NULL,
    rating TEXT NOT NULL, reasons TEXT NOT NULL, comment TEXT NOT NULL, correction TEXT NOT NULL,
    PRIMARY KEY (answer, who)
);
INSERT INTO keys VALUES ('1a2b', 'Ann', 'x', NULL, NULL, 'generate', NULL, NULL, 1.0, NULL, NULL);
INSERT INTO answers VALUES ('a1', 5.0, '1a2b', 'ask', 'm v1', 'i1', 'answered', '{"sources": 1}', 'Why?', 'So.');
INSERT INTO answers VALUES ('gone', 6.0, '1a2b', 'ask', 'm v1', '', 'answered', '{}', NULL, NULL);
INSERT INTO answers VALUES ('a2', 4.0, '1a2b', 'ask', 'm v1', '', 'abstained', '{}', NULL, NULL);
DELETE FROM answers WHERE id = 'gone';
INSERT INTO feedback VALUES ('a1', '1a2b', 7.0, 'down', '["unclear"]', 'hm', 'Because.');
PRAGMA user_version = 1;
"""


def old(folder):
    with sqlite3.connect(folder / FILE) as base:
        base.executescript(OLD)
    return folder


def versions(store):
    with open_store(store).opened() as base:
        return [row["version"] for row in base.execute("SELECT version FROM versions ORDER BY version")]


def test_a_file_of_the_first_version_keeps_everything(tmp_path):
    answers = Answers(SQLiteDatabase(old(tmp_path)))
    assert versions(str(tmp_path)) == list(range(1, LATEST + 1))
    told = list(answers.in_order())
    # Places stay, gaps included: a drift check goes on from one.
    assert [(place, each.id, said) for place, each, said in told] == [(1, "a1", ("down",)), (3, "a2", ())]
    (said,) = next(answers.exported())["feedback"]
    assert (said["correction"], said["decision"], said["expert"]) == ("Because.", "", False)
    assert Keys(answers.base).get("1a2b").name == "Ann"
    answers.add_feedback(Feedback("a1", "other", "up"))
    assert answers.delete("a1")
    with answers.base.opened() as base:
        assert base.execute("SELECT count(*) FROM feedback").fetchone()[0] == 0
        assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_servers_that_start_at_once_make_the_tables_once(store, tmp_path):
    if store == str(tmp_path):
        old(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_store, [store] * 4))
    assert versions(store) == list(range(1, LATEST + 1))
    open_store(store)


def test_a_step_that_fails_is_undone_whole(tmp_path, monkeypatch):
    old(tmp_path)
    from meditune.store import database

    broken = database.Step(2, database.STEPS[1].sqlite + "CREATE TABLE broken (;", "")
    monkeypatch.setattr(database, "STEPS", (database.STEPS[0], broken))
    with pytest.raises(StoreError):
        SQLiteDatabase(tmp_path)
    monkeypatch.undo()
    assert [each.id for _, each, _ in Answers(SQLiteDatabase(tmp_path)).in_order()] == ["a1", "a2"]


def test_a_later_version_is_left_alone(store):
    with open_store(store).opened() as base:
        base.execute("INSERT INTO versions VALUES (99, 0, 'later')")
        if store.startswith("/"):
            base.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="later version"):
        open_store(store)


def test_notes_replace_each_other(store):
    notes = Notes(open_store(store))
    notes.put("server/a", {"model": "m"})
    notes.put("server/b", {"model": "n"})
    notes.put("update/a", {})
    notes.put("server/a", {"model": "o"})
    assert [(each.name, each.facts["model"]) for each in notes.all("server")] == [("server/a", "o"), ("server/b", "n")]
    notes.remove("server/a")
    assert [each.name for each in notes.all("server")] == ["server/b"]


def test_what_is_wrong_with_a_database_is_said_without_its_password(postgres):
    with pytest.raises(StoreError, match=r"postgresql://u@127\.0\.0\.1:1/d can't be used \(.*refused") as error:
        Postgres("postgresql://u:s3cret@127.0.0.1:1/d")
    assert "s3cret" not in str(error.value)
    with pytest.raises(StoreError, match="%40") as error:
        Postgres("postgresql://u:s3c/ret@localhost/d")
    assert "s3c" not in str(error.value)
    with pytest.raises(StoreError, match=r"database .*nowhere.* does not exist"):
        Postgres(postgres.url("nowhere"))


def test_a_database_that_was_started_anew_is_found_again(postgres):
    answers = Answers(Postgres(postgres.new()))
    answers.keep(Answer("a1", "k", "ask", "m"))
    postgres.stop()
    try:
        with pytest.raises(StoreError, match="can't be used"):
            answers.get("a1")
    finally:
        postgres.start()
    assert answers.get("a1").who == "k"
    answers.keep(Answer("a2", "k", "ask", "m"))


def test_a_new_store_can_be_opened_by_many_at_once(tmp_path):
    def opened(folder: Path) -> None:
        together.wait()
        SQLiteDatabase(folder)

    together = Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            list(pool.map(opened, [tmp_path / str(number)] * 8))


def test_another_programs_lock_is_waited_for_and_then_named(postgres, monkeypatch):
    monkeypatch.setattr("meditune.store.postgresql.LOCK_S", 0.3)
    base = Postgres(postgres.new())
    with base.changing() as other:
        other.execute("LOCK TABLE answers")
        with pytest.raises(StoreError, match="lock timeout"):
            Answers(base).keep(Answer("a1", "k", "ask", "m"))
    Answers(base).keep(Answer("a1", "k", "ask", "m"))


def test_a_key_is_known_again_and_nowhere_written(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path / "new"))
    assert not keys.any()
    made, text = keys.create("Ann", per_minute=5, daily_tokens=100, days=1)
    assert keys.any()
    assert keys.authenticate(text) == made == keys.get(made.id)
    assert made.scopes == set(USUAL)
    secret = text.removeprefix(f"mt-{made.id}-")
    assert len(secret) >= 43
    files = list((tmp_path / "new").iterdir())
    assert not any(secret.encode() in file.read_bytes() for file in files)
    assert stat.S_IMODE((tmp_path / "new" / FILE).stat().st_mode) == 0o600


def test_a_key_lives_in_every_store(store):
    keys = Keys(open_store(store))
    assert not keys.any()
    made, text = keys.create("Ann", per_minute=5, daily_tokens=10**10)
    assert keys.authenticate(text) == made == keys.all()[0]
    later = keys.rotate(made.id, grace_hours=0)
    assert (keys.authenticate(text), keys.authenticate(later)) == (None, keys.get(made.id))
    keys.revoke(made.id)
    assert keys.authenticate(later) is None
    assert Keys(open_store(store)).get(made.id).state == "revoked"


def test_what_is_no_key(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    made, text = keys.create("Ann")
    for wrong in ("", "mt", "mt-", f"mt-{made.id}", f"mt-{made.id}-", text[3:], text.upper(), "' OR 1=1 --", "\ud800"):
        assert keys.authenticate(wrong) is None


def test_every_check_compares_hashes_whether_the_id_is_known_or_not(tmp_path, monkeypatch):
    keys = Keys(SQLiteDatabase(tmp_path))
    made, _ = keys.create("Ann")
    compared = []

    def counting(one, two):
        compared.append((len(one), len(two)))
        return one == two

    monkeypatch.setattr("meditune.store.api_keys.hmac.compare_digest", counting)
    for wrong in (f"mt-{made.id}-wrong", "mt-00000000-wrong", "nothing"):
        keys.authenticate(wrong)
    assert compared == [(64, 64)] * 6


def test_errors_are_sentences(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    with pytest.raises(DataError, match=r"Unknown scopes: root\. Choose from: generate"):
        keys.create("Ann", ["root"])
    with pytest.raises(DataError, match=r"There is no key 'x'.*meditune keys list"):
        keys.revoke("x")
    made, _ = keys.create("Ann")
    keys.revoke(made.id)
    with pytest.raises(DataError, match="was revoked"):
        keys.rotate(made.id)


def test_a_store_that_cant_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="Name another folder with --store"):
        SQLiteDatabase(tmp_path / "file" / "store")
    (tmp_path / FILE).write_text("this is no database at all " * 50)
    with pytest.raises(DataError, match="can't be used"):
        SQLiteDatabase(tmp_path)
    later = SQLiteDatabase(tmp_path / "later")
    with later.opened() as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="later version"):
        SQLiteDatabase(tmp_path / "later")
