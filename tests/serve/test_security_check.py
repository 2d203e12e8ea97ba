"""What `meditune serve --check` calls unsafe."""

import pytest

from meditune.serve.http_server import ListenConfig
from meditune.serve.security_check import findings
from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase

SAFE = {"keys_needed": True, "per_minute": 60}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    folder = tmp_path / "store"
    Keys(SQLiteDatabase(folder)).create("Ann")
    return folder


def unsafe(store, settings, place, now=None):
    keys = Keys(SQLiteDatabase(store)).all()
    found = findings(settings, place, keys, store, now or keys[0].created)
    assert [finding.verdict for finding in found] == sorted(
        (finding.verdict for finding in found), key=["unsafe", "note", "good"].index
    )
    return [finding.sentence for finding in found if finding.verdict == "unsafe"]


def test_behind_a_proxy_with_keys_and_a_rate_all_is_well(store):
    assert unsafe(store, Settings(**SAFE), ListenConfig("0.0.0.0", proxies="10.0.0.2")) == []
    assert unsafe(store, Settings(), ListenConfig()) == []


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"keys_needed": False}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "no key is required"),
        ({"per_minute": 0}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "--per-minute"),
        ({}, ListenConfig("0.0.0.0"), "sent unencrypted"),
        ({}, ListenConfig("0.0.0.0", proxies="*"), "pose as a proxy"),
        ({"origins": ("*",)}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "--cors"),
        ({"log_text": True}, ListenConfig(), "--log-text"),
        ({"bare_chat": True}, ListenConfig(), "every caller can use /v1/completions (--raw-chat)"),
        ({"keep_days": 0}, ListenConfig(), "--keep-days"),
    ],
)
def test_each_unsafe_thing_is_named(store, changes, place, said):
    (sentence,) = unsafe(store, Settings(**(SAFE | changes)), place)
    assert said in sentence


def test_a_missing_classifier_is_unsafe(store):
    found = findings(
        Settings(**SAFE), ListenConfig(), Keys(SQLiteDatabase(store)).all(), store, 0, "onnxruntime isn't installed."
    )
    (finding,) = [each for each in found if each.verdict == "unsafe"]
    assert "no classifier" in finding.sentence
    assert "onnxruntime isn't installed." in finding.sentence


def test_files_that_others_may_read_and_the_superuser(store, monkeypatch):
    store.chmod(0o755)
    (sentence,) = unsafe(store, Settings(), ListenConfig())
    assert f"chmod go= {store}" in sentence
    store.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (sentence,) = unsafe(store, Settings(), ListenConfig())
    assert "runs as root" in sentence


def test_keys_none_of_which_is_usable(store):
    keys = Keys(SQLiteDatabase(store))
    keys.revoke(keys.all()[0].id)
    (sentence,) = unsafe(store, Settings(**SAFE), ListenConfig("0.0.0.0", proxies="10.0.0.2"))
    assert "none is usable" in sentence


def test_old_and_mighty_keys_are_noted(store):
    keys = Keys(SQLiteDatabase(store))
    made, _ = keys.create("Bo", ["admin"])
    found = findings(Settings(**SAFE), ListenConfig(), keys.all(), store, made.created + 400 * 86_400)
    notes = " ".join(finding.sentence for finding in found if finding.verdict == "note")
    assert notes.count("over a year old") == 2
    assert f"The key {made.id} (Bo) can delete" in notes


def test_what_reaches_the_model_without_triage_is_named(store):
    keys = Keys(SQLiteDatabase(store))

    def told():
        return {
            each.sentence: each.verdict for each in findings(Settings(**SAFE), ListenConfig(), keys.all(), store, 0.0)
        }

    nobody = "Triage can't be bypassed: no key has the raw scope."
    assert told()[nobody] == "good"
    made, _ = keys.create("Harness", ["generate", "raw"])
    (named,) = (each for each in told() if "scope raw" in each)
    assert told()[named] == "note"
    assert f"The key {made.id} (Harness) can bypass triage" in named
    keys.revoke(made.id)
    assert nobody in told()
