"""Keys are kept as hashes and compared in constant time."""

import stat

import pytest

from meditune.errors import DataError
from meditune.store.api_keys import USUAL, Keys
from meditune.store.database import FILE, SQLiteDatabase
from meditune.store.open_store import open_store


def test_a_key_is_known_again_and_nowhere_written(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path / "new"))
    assert not keys.any()
    made, text = keys.create("Ann", per_minute=5, daily_tokens=100, days=1)
    assert keys.any()
    assert keys.who(text) == made == keys.get(made.id)
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
    assert keys.who(text) == made == keys.all()[0]
    later = keys.rotate(made.id, grace_hours=0)
    assert (keys.who(text), keys.who(later)) == (None, keys.get(made.id))
    keys.revoke(made.id)
    assert keys.who(later) is None
    assert Keys(open_store(store)).get(made.id).state == "revoked"


def test_what_is_no_key(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    made, text = keys.create("Ann")
    for wrong in ("", "mt", "mt-", f"mt-{made.id}", f"mt-{made.id}-", text[3:], text.upper(), "' OR 1=1 --", "\ud800"):
        assert keys.who(wrong) is None


def test_every_check_compares_hashes_whether_the_id_is_known_or_not(tmp_path, monkeypatch):
    keys = Keys(SQLiteDatabase(tmp_path))
    made, _ = keys.create("Ann")
    compared = []

    def counting(one, two):
        compared.append((len(one), len(two)))
        return one == two

    monkeypatch.setattr("meditune.store.api_keys.hmac.compare_digest", counting)
    for wrong in (f"mt-{made.id}-wrong", "mt-00000000-wrong", "nothing"):
        keys.who(wrong)
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
