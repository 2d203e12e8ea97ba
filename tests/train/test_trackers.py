"""Each step's figures are there while training runs, and the recipe's tracker holds the same ones."""

import json
import os
import sqlite3
import struct
import sys

import pytest

from meditune.train import finetune
from tests.commands import jsonl, meditune, read_rows, stopped_after
from tests.waiting import until

STEPS = {"train__batch_size": 4, "train__accumulation": 1, "train__checkpoint_steps": 3, "train__epochs": 1}
FIGURES = {"loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "seconds", "epoch", "penalty"}


def trained(place, name, tracker="none", **changes):
    settings = place.settings(**(STEPS | {"train__tracker": tracker} | changes))
    return meditune("train", "quickstart", "--output", place.folder / name, *settings)


def without_time(rows):
    return [row | {"seconds": 0} for row in rows]


def tensorboard_of(folder):
    """Figure -> its steps and values, in the order in which they were written."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def mlflow_of(folder):
    client = pytest.importorskip("mlflow").MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("meditune").experiment_id])
    assert run.info.run_name == "quickstart"
    read = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(metric.step, metric.value) for metric in history] for name, history in read.items()}


def trackio_of(folder):
    pytest.importorskip("trackio")
    with sqlite3.connect(folder / "trackio" / "meditune.db") as base:
        rows = list(base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"))
    assert {row[0] for row in rows} == {"quickstart"}
    return by_name((step, json.loads(metrics)) for _, step, metrics in rows)


def wandb_of(folder):
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")

    def written():
        return [pb.Record.FromString(data) for data in leveldb_records(log.read_bytes())]

    # wandb's own process writes the end of the log shortly after `finish` has returned.
    until(lambda: any(record.HasField("exit") for record in written()), seconds=30)
    records = written()
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name, run.host) == ("meditune", "quickstart", "")
    kept = {"run", "history"} | {"header", "footer", "telemetry", "exit", "final", "summary", "metric", "config"}
    assert {record.WhichOneof("record_type") for record in records} <= kept
    rows = [record.history for record in records if record.HasField("history")]
    figures = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows
    ]
    return by_name((row["_step"], {name: row[name] for name in row if not name.startswith("_")}) for row in figures)


def leveldb_records(data):
    """The records of a log in LevelDB's format: blocks of 32 KiB, and before each part checksum, length and kind."""
    place, whole = len(":W&B???"), b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def by_name(steps):
    found = {}
    for step, figures in steps:
        for name, value in figures.items():
            found.setdefault(name, []).append((step, value))
    return found


READ = {"tensorboard": tensorboard_of, "mlflow": mlflow_of, "trackio": trackio_of, "wandb": wandb_of}


def holds_the_log(tracker, folder):
    """Every figure of every step in training.jsonl, once, and no other."""
    log = read_rows(folder / "training.jsonl")
    found = READ[tracker](folder)
    assert set(found) == FIGURES
    for name, values in found.items():
        assert values == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in log]
    return log


@pytest.fixture(scope="module")
def whole(place):
    """The log of an undisturbed training without a tracker."""
    trained(place, "whole").ok()
    folder = place.folder / "whole"
    assert not [name for name in READ if (folder / name).exists()]
    return read_rows(folder / "training.jsonl")


def test_each_step_can_be_read_as_soon_as_it_is_done(place, whole, monkeypatch):
    path, seen = place.folder / "followed" / "training.jsonl", []
    real = finetune.train

    def looking(*given, **named):
        for step in real(*given, **named):
            yield step
            assert path.read_bytes().endswith(b"}\n")
            seen.append(read_rows(path)[-1]["step"])

    monkeypatch.setattr(finetune, "train", looking)
    trained(place, "followed").ok()
    assert seen == [row["step"] for row in whole]
    assert without_time(read_rows(path)) == without_time(whole)


@pytest.mark.parametrize("tracker", READ)
def test_stopped_and_resumed_no_step_comes_twice_and_none_is_missing(place, whole, tracker, monkeypatch):
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/else")
    folder = place.folder / tracker
    with stopped_after(5):
        assert trained(place, tracker, tracker).code == 130
    assert [row["step"] for row in holds_the_log(tracker, folder)] == [1, 2, 3, 4, 5]
    resumed = trained(place, tracker, tracker).ok()
    assert "after step 3" in resumed.err
    assert without_time(holds_the_log(tracker, folder)) == without_time(whole)
    assert place.adapter(tracker) == place.adapter("whole")


def test_steps_after_the_checkpoint_are_taken_back(place, whole):
    """Also a line that a crash of the machine has cut."""
    folder = place.folder / "cut"
    with stopped_after(5):
        assert trained(place, "cut").code == 130
    log = read_rows(folder / "training.jsonl")
    jsonl(folder / "training.jsonl", log)
    with (folder / "training.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 6, "lo')
    with stopped_after(4):
        assert trained(place, "cut").code == 130
    assert without_time(read_rows(folder / "training.jsonl")) == without_time(whole[:4])
    trained(place, "cut").ok()
    assert without_time(read_rows(folder / "training.jsonl")) == without_time(whole)


def test_a_tracker_that_fails_says_so_once_and_stops_nothing(place, whole):
    pytest.importorskip("tensorboard")
    folder = place.folder / "failing"
    with stopped_after(5):
        assert trained(place, "failing", "tensorboard").code == 130
    (folder / "tensorboard").rename(folder / "elsewhere")
    (folder / "tensorboard").write_text("in the way", encoding="utf-8")
    resumed = trained(place, "failing", "tensorboard").ok()
    assert resumed.err.count("train.tracker tensorboard failed") == 1
    assert "Training continues" in resumed.err
    assert without_time(read_rows(folder / "training.jsonl")) == without_time(whole)


@pytest.mark.parametrize("tracker", READ)
def test_a_missing_package_is_said_with_the_command_before_anything_is_done(place, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)
    trained(place, "missing", tracker).refused(1, f"train.tracker {tracker}", f"[{tracker}]'")
    assert not (place.folder / "missing").exists()


def test_an_unknown_tracker_is_refused(place):
    trained(place, "unknown", "aim").refused(2, "train.tracker", "none", *READ)


def test_telemetry_is_off(whole):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
