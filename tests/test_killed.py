"""A run that was killed, or met a full disk, ends like one that nothing disturbed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import bench, jsonl, meditune, read_rows, rows, stopped_after

STEPS = {
    **{"train__batch_size": 2, "train__checkpoint_steps": 2, "train__epochs": 1, "model__lora__r": 4},
    **{"evaluate__answers": 2, "evaluate__max_new_tokens": 2, "evaluate__resamples": 100},
}
TRIALS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("killed")) as made:
        yield made


@pytest.mark.slow
def test_killed_anywhere(place):
    """At changes of the folder spread over the whole run, and at moments between them."""
    words = ["run", "quickstart", *place.own(jsonl(place.folder / "own.jsonl", rows(24)), **STEPS)]
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(place.folder), str(TRIALS), *words],
        cwd=Path(__file__).parent.parent,
        env=os.environ | place.environment | alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    trials = [json.loads(line) for line in found.stdout.splitlines() if line.startswith('{"killed"')]
    assert len(trials) == TRIALS
    for trial in trials:
        assert trial["resumed"] == 0, trial
        assert trial["same"], trial
        assert trial["tidy"], trial
        assert trial["went_on"] == trial["checkpoint"] or trial["checkpoint"] is None or trial["went_on"] is None, trial
    assert sum(any(name.startswith(".checkpoint.") for name in trial["left"]) for trial in trials) >= 3, trials
    assert len({trial["went_on"] for trial in trials}) >= 3, trials


def test_a_checkpoint_that_was_being_replaced_is_put_back(place):
    """The old one has been moved aside, the new one isn't in its place yet."""
    words = ["train", "quickstart", "--output", place.folder / "aside", *place.settings(**STEPS)]
    with stopped_after(5):
        assert meditune(*words).code == 130
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = place.folder / "aside"
    (folder / "checkpoint").rename(folder / f".checkpoint.{ended.pid}.old")
    resumed = meditune(*words)
    assert resumed.code == 0
    assert "Resuming training after step 4" in resumed.err
    assert not list(folder.glob(".*.old"))


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_last_one(place, monkeypatch):
    words = ["train", "quickstart", "--output", place.folder / "full", *place.settings(**STEPS)]
    whole = ["train", "quickstart", "--output", place.folder / "roomy", *place.settings(**STEPS)]
    assert meditune(*whole).code == 0
    checkpoint, real = place.folder / "full" / "checkpoint", os.fsync

    def full(handle):
        if checkpoint.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        meditune(*words).refused(1, "disk is full", str(checkpoint))
    assert len(read_rows(checkpoint / "training.jsonl")) == 2
    resumed = meditune(*words)
    assert resumed.code == 0
    assert "Resuming training after step 2" in resumed.err
    assert place.adapter("full") == place.adapter("roomy")
