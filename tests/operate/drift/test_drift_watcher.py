"""A store that is watched while it is written to, as beside a running server."""

import json
import threading

import pytest

from meditune.operate.drift import drift_detection, notifications, reference
from meditune.operate.drift.drift_detection import RequestSource
from meditune.operate.drift.drift_watcher import DriftWatcher, WatcherOptions, outbox_of, state_of
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.notifications import from_environment
from meditune.serve.metrics import Metrics
from meditune.store.answers import Answers
from meditune.store.database import SQLiteDatabase
from meditune.store.overview import overview
from tests.commands import meditune
from tests.operate.drift.test_alerts import receiver
from tests.operate.drift.test_drift_detection import fill_store, requests
from tests.waiting import until


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(notifications, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    fill_store(folder, requests(400, 5))
    return reference.save(drift_detection.fit_reference(RequestSource(folder), None, None, 17), folder / "reference")


@pytest.fixture
def watched(good, tmp_path):
    reference.save(good, tmp_path / "reference")
    SQLiteDatabase(tmp_path)
    return WatcherOptions(str(tmp_path), tmp_path / "reference", 0.05, "https://here/admin#drift")


def drifted(folder, first=601, seed=7):
    fill_store(folder, requests(80, seed, first=first, confidence=(3, 8)))


def figure(metrics, line):
    return next(float(row.split()[-1]) for row in metrics.text().decode().splitlines() if row.startswith(line))


def test_drift_is_found_shown_and_sent_once(watched, tmp_path):
    metrics = Metrics()
    with receiver() as (url, got):
        watching = DriftWatcher(watched, metrics.drifted, from_environment({"MEDITUNE_ALERT_WEBHOOK": url}))
        fill_store(tmp_path, requests(100, 6, first=401))
        quiet = watching.check_once()
        assert (quiet["requests"], quiet["alerts"], got) == (100, [], [])
        assert figure(metrics, "meditune_drift_checked ") == 100
        drifted(tmp_path)
        found = watching.check_once()
        assert [alert["signal"] for alert in found["alerts"]] == ["confidence"]
        watching.check_once()
    (sent,) = [json.loads(body) for _, _, body in got]
    assert sent["title"].startswith("Drift: confidence")
    assert sent["link"] == "https://here/admin#drift"
    severity = found["alerts"][0]["severity"]
    assert figure(metrics, f'meditune_drift_alert{{severity="{severity}",signal="confidence"}}') == 1
    assert figure(metrics, 'meditune_drift_evidence{signal="confidence"}') == 1
    (note,) = overview(SQLiteDatabase(tmp_path))["drift"]
    assert note["alerts"][0]["evidence"]["examples"][0]["id"].startswith("r")
    # An alert that stays is no longer shown once it is over.
    metrics.drifted(found | {"alerts": []})
    assert "meditune_drift_alert{" not in metrics.text().decode()


def test_a_deleted_question_is_no_evidence_any_more(watched, tmp_path):
    watching = DriftWatcher(watched, Metrics().drifted, [])
    drifted(tmp_path)
    shown = watching.check_once()["alerts"][0]["evidence"]["examples"]
    assert Answers(SQLiteDatabase(tmp_path)).delete(shown[0]["id"])
    assert overview(SQLiteDatabase(tmp_path))["drift"][0]["alerts"][0]["evidence"]["examples"] == shown[1:]
    left = watching.check_once()["alerts"][0]["evidence"]["examples"]
    assert left == shown[1:]
    assert overview(SQLiteDatabase(tmp_path))["drift"][0]["alerts"][0]["evidence"]["examples"] == left
    assert Monitor.load(state_of(watched.reference), reference.load(watched.reference)).alerts()[0].evidence == {
        **watching.check_once()["alerts"][0]["evidence"]
    }


def test_the_state_of_another_store_is_refused_and_stays_as_it_is(watched, tmp_path):
    drifted(tmp_path)
    checked = threading.Event()
    first = DriftWatcher(watched, lambda _: checked.set(), []).start()
    assert checked.wait(60)
    first.stop()
    before = state_of(watched.reference).read_bytes()
    fill_store(tmp_path / "other", requests(100, 8, first=2000))
    other = WatcherOptions(str(tmp_path / "other"), watched.reference, 0.05, watched.link)
    watching = DriftWatcher(other, lambda _: None, []).start()
    watching.stop()
    assert "The state file belongs to" in watching.check_once()["problem"]
    assert state_of(watched.reference).read_bytes() == before


def test_a_webhook_that_is_down_is_tried_again_and_shown(watched, tmp_path):
    metrics = Metrics()
    with receiver([503] * 3) as (url, got):
        watching = DriftWatcher(watched, metrics.drifted, from_environment({"MEDITUNE_ALERT_WEBHOOK": url}))
        drifted(tmp_path)
        (said,) = watching.check_once()["unsent"]
        assert "not sent by webhook (answers 503)" in said
        assert figure(metrics, "meditune_alerts_unsent ") == 1
        assert overview(SQLiteDatabase(tmp_path))["drift"][0]["unsent"] == [said]
        assert len(got) == 3
        # Nothing new came; what wasn't sent goes out all the same.
        assert watching.check_once()["unsent"] == []
        assert len(got) == 4
    assert figure(metrics, "meditune_alerts_unsent ") == 0
    assert "sent" in meditune("drift", "status", "--reference", watched.reference).out
    meditune("drift", "status", "--reference", tmp_path / "mistyped").refused(3, "mistyped")


def test_it_goes_on_after_a_kill_and_sends_nothing_twice(watched, tmp_path):
    with receiver() as (url, got):
        channels = from_environment({"MEDITUNE_ALERT_WEBHOOK": url})
        first = DriftWatcher(watched, lambda _: None, channels)
        drifted(tmp_path)
        first.check_once()
        fill_store(tmp_path, requests(30, 8, first=901))
        first.check_once()
        # Killed: the lock goes with the process, what came since the state was kept is read again.
        first._lock.release()
        again = DriftWatcher(watched, lambda _: None, channels).check_once()
        assert again["requests"] == 110
        assert len(again["alerts"]) == len(got) == 1


def test_a_second_server_waits_for_the_first(watched, tmp_path):
    first, second = (DriftWatcher(watched, lambda _: None) for _ in range(2))
    assert first.check_once()["problem"] == ""
    assert "will start checking when that process ends" in second.check_once()["problem"]
    first._lock.release()
    assert second.check_once()["problem"] == ""


def test_a_locked_store_is_named_and_the_next_look_goes_on(watched, tmp_path, monkeypatch):
    import sqlite3

    metrics = Metrics()
    monkeypatch.setattr("meditune.store.database.BUSY_S", 0.1)
    watching = DriftWatcher(watched, metrics.drifted)
    with sqlite3.connect(tmp_path / "meditune.sqlite", isolation_level=None) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        assert "locked" in watching.check_once()["problem"]
        assert figure(metrics, "meditune_drift_failing ") == 1
    holder.close()
    assert watching.check_once()["problem"] == ""
    assert figure(metrics, "meditune_drift_failing ") == 0


def test_it_watches_while_requests_come_and_keeps_where_it_stands(watched, tmp_path):
    seen = []
    watching = DriftWatcher(watched, seen.append).start()
    drifted(tmp_path)
    until(lambda: seen and seen[-1].get("alerts"), 20)
    watching.stop()
    assert state_of(watched.reference).exists()
    # A check by hand goes on from there.
    found = meditune("drift", "check", tmp_path, "--reference", watched.reference)
    assert (found.code, "0 new requests, 80 since" in found.out) == (6, True)


def test_check_sends_to_the_channels_of_the_environment(watched, tmp_path, monkeypatch):
    drifted(tmp_path)
    without = meditune("drift", "check", tmp_path, "--reference", watched.reference, "--notify")
    assert (without.code, "No channel for alerts" in without.err) == (3, True)
    with receiver() as (url, got):
        monkeypatch.setenv("MEDITUNE_ALERT_SLACK", url)
        page = tmp_path / "page.html"
        words = ("drift", "check", tmp_path, "--reference", watched.reference, "--notify", "--page", page)
        assert meditune(*words).code == 6
        assert meditune(*words).code == 6
    (sent,) = [json.loads(body) for _, _, body in got]
    assert sent["text"].startswith("Drift: confidence")
    assert str(page) in sent["blocks"][1]["text"]["text"]
    assert outbox_of(watched.reference).exists()


def test_what_cant_be_sent_is_noted_by_check(watched, tmp_path, monkeypatch):
    drifted(tmp_path)
    with receiver([404]) as (url, _):
        monkeypatch.setenv("MEDITUNE_ALERT_WEBHOOK", url)
        found = meditune("drift", "check", tmp_path, "--reference", watched.reference, "--notify")
    assert found.code == 6
    assert "not sent by webhook (answers 404); it will be retried later" in found.err
    assert "secret-path" not in found.err
