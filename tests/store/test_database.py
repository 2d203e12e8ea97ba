"""Stores are created once and whole, those of later versions left alone; keys are kept as hashes."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from meditune.errors import DataError, StoreError
from meditune.store import database, has_tables, open_store
from meditune.store.answers import Answer, Answers
from meditune.store.api_keys import USUAL, Keys
from meditune.store.database import FILE, LATEST, SQLiteDatabase
from meditune.store.overview import Notes
from meditune.store.postgresql import Postgres
from tests.commands import meditune


def versions(store):
    with open_store(store).opened() as base:
        return [row["version"] for row in base.execute("SELECT version FROM versions ORDER BY version")]


def test_servers_that_start_at_once_make_the_tables_once(store):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_store, [store] * 4))
    assert versions(store) == [LATEST]
    open_store(store)


def test_tables_that_cant_all_be_created_are_not_created_at_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("meditune.store.database.TABLES", f"{database.TABLES}; CREATE TABLE broken (")
        with pytest.raises(StoreError):
            SQLiteDatabase(tmp_path)
    assert list(Answers(SQLiteDatabase(tmp_path)).in_order()) == []


def test_a_later_version_is_left_alone(store):
    with open_store(store).opened() as base:
        base.execute("INSERT INTO versions VALUES (99, 0, 'later')")
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


@pytest.mark.parametrize("url", ["postgresql://u:s3%zzcret@localhost/d", "postgresql://u:s3cret%00@localhost/d"])
def test_a_url_that_isnt_valid_is_refused_without_its_password(url):
    with pytest.raises(StoreError, match=r"URL is invalid\..*%25") as error:
        Postgres(url)
    assert "s3" not in str(error.value)


def test_a_check_of_a_server_creates_no_tables(postgres, tmp_path):
    place = postgres.new()
    words = ("serve", tmp_path, "--check", "--store", place)
    assert "No key is required" in meditune(*words).out
    assert not has_tables(place)
    Keys(open_store(place)).create("Ann")
    assert has_tables(place)
    assert "Every request requires a key. Usable keys: 1." in meditune(*words).out


@pytest.mark.parametrize("is_variable", [False, True], ids=["URL", "PGOPTIONS"])
def test_options_of_a_database_s_url_and_of_libpq_s_variable_apply(postgres, monkeypatch, is_variable):
    place = postgres.new()
    Postgres(place, create=False).change("CREATE SCHEMA clinic")
    if is_variable:
        monkeypatch.setenv("PGOPTIONS", "-c search_path=clinic")
    base = Postgres(place if is_variable else f"{place}?options=-csearch_path%3Dclinic")
    assert {row["schemaname"] for row in base.rows("SELECT schemaname FROM pg_tables WHERE tablename = 'keys'")} == {
        "clinic"
    }
    assert base.rows("SHOW lock_timeout")[0]["lock_timeout"] == "20s"


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
    made, _ = keys.create("Bea", days=1e-9)
    with pytest.raises(DataError, match=r"has expired\. Create a new key: meditune keys create NAME"):
        keys.rotate(made.id)


def test_a_store_that_cant_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="Set another folder with --store"):
        SQLiteDatabase(tmp_path / "file" / "store")
    (tmp_path / FILE).write_text("this is no database at all " * 50)
    with pytest.raises(DataError, match="can't be used"):
        SQLiteDatabase(tmp_path)
