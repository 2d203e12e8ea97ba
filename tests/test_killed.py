"""A run that was killed, or met a full disk, ends like one that nothing disturbed.

The runs that are killed (SIGKILL) are started by a program of their own, this file's `main`: it imports everything once
and forks a process for each run, so that a run takes a second instead of ten. A process kills itself at the n-th change
that it is about to make in the run's folder, which an audit hook sees, or is killed from outside after some time.

    python -m tests.test_killed FOLDER TRIALS WORD...

WORD... are the words of `meditune` without --output. It prints a JSON line for each trial.
"""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from meditune.cli import main as cli
from meditune.evaluate.report import plots
from tests.commands import described, jsonl, meditune, read_rows, rows, stopped_after
from tests.waiting import output_of

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


@dataclass
class Trial:
    """What became of one run."""

    killed: str
    """When it was"""
    left: list[str]
    """Half-written things that the killed process left"""
    checkpoint: int | None
    """Steps in the checkpoint that it left"""
    resumed: int
    """Exit code of the same command afterwards"""
    went_on: int | None
    """After which step training went on"""
    same: bool
    """Whether the adapter is that of the undisturbed run, byte for byte"""
    tidy: bool


def main(folder: Path, trials: int, words: list[str]) -> None:
    """Print the trials."""
    draw = random.Random(17)
    gc.disable()
    started_here(words, folder / "whole")
    plots._svg = described
    gc.freeze()
    seen = mmap.mmap(-1, 8)
    started = time.monotonic()
    assert forked(words, folder / "counted", folder / "log", seen=seen) == 0, (folder / "log").read_text()
    seconds, changes = time.monotonic() - started, int.from_bytes(seen[:8], "little")
    adapter = weights(folder / "whole")
    assert weights(folder / "counted") == adapter
    for number in range(trials):
        run, log = folder / f"trial-{number}", folder / f"log-{number}"
        by_change = number % 3 != 0
        at = 1 + number * changes // trials
        wait = seconds * draw.uniform(0.02, 0.98)
        # A machine that has got faster since may finish before it is killed.
        while forked(words, run, log, at if by_change else None, None if by_change else wait) != -signal.SIGKILL:
            assert not by_change, log.read_text()
            shutil.rmtree(run)
            wait /= 2
        left = sorted(path.name for path in run.glob(".*.*")) if run.exists() else []
        log_of_checkpoint = run / "checkpoint" / "training.jsonl"
        kept = len(log_of_checkpoint.read_text().splitlines()) if log_of_checkpoint.is_file() else None
        code = forked(words, run, log)
        _, went_on, after = log.read_text().partition("Resuming training after step ")
        trial = Trial(
            killed=f"before change {at} of {changes}" if by_change else f"after {wait:.2f} of {seconds:.2f} s",
            left=left,
            checkpoint=kept,
            resumed=code,
            went_on=int(after.partition(".")[0]) if went_on else None,
            same=code == 0 and weights(run) == adapter,
            tidy=not [path for path in run.rglob("*") if path.name.endswith((".partial", ".old"))],
        )
        print(json.dumps(asdict(trial)), flush=True)
        shutil.rmtree(run)


def weights(run: Path) -> bytes:
    """The adapter that a run left."""
    return (run / "model" / "adapter_model.safetensors").read_bytes()


def started_here(words: list[str], run: Path) -> int:
    """The command in this process; its exit code."""
    sys.argv = ["meditune", *words, "--output", str(run)]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def forked(
    words: list[str],
    run: Path,
    log: Path,
    change: int | None = None,
    wait: float | None = None,
    seen: mmap.mmap | None = None,
) -> int:
    """The command in a process of its own, killed before its `change`-th change or after `wait` seconds.

    Its output goes to `log`, the number of its changes to `seen`.
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            count = 0

            def look(event: str, given: tuple[Any, ...]) -> None:
                nonlocal count
                writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
                if (event in CHANGES or writes) and any(str(value).startswith(str(run)) for value in given):
                    count += 1
                    if count == change:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if seen:
                        seen[:8] = count.to_bytes(8, "little")

            sys.addaudithook(look)
            code = started_here(words, run)
        finally:
            os._exit(code)
    if wait is not None:
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


STEPS = {
    **{"train__batch_size": 2, "train__checkpoint_steps": 2, "train__epochs": 1, "model__lora__r": 4},
    **{"evaluate__answers": 2, "evaluate__max_new_tokens": 2, "evaluate__resamples": 100},
}
TRIALS = 21


@pytest.mark.slow
def test_killed_anywhere(place):
    """At changes of the folder spread over the whole run, and at moments between them."""
    words = [
        "run",
        "quickstart",
        *place.own(jsonl(place.folder / "own.jsonl", rows(24)), **STEPS | {"train__checkpoint_steps": 1}),
    ]
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    options = {"cwd": Path(__file__).parent.parent, "env": os.environ | place.environment | alone}
    found = output_of(sys.executable, "-m", "tests.test_killed", place.folder, TRIALS, *words, **options)
    trials = [json.loads(line) for line in found.splitlines() if line.startswith('{"killed"')]
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
    resumed = meditune(*words).ok()
    assert "Resuming training after step 4" in resumed.err
    assert not list(folder.glob(".*.old"))


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_last_one(place, monkeypatch):
    words = ["train", "quickstart", "--output", place.folder / "full", *place.settings(**STEPS)]
    whole = ["train", "quickstart", "--output", place.folder / "roomy", *place.settings(**STEPS)]
    meditune(*whole).ok()
    checkpoint, real = place.folder / "full" / "checkpoint", os.fsync

    def full(handle):
        if checkpoint.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        meditune(*words).refused(1, "disk is full", str(checkpoint))
    assert len(read_rows(checkpoint / "training.jsonl")) == 2
    resumed = meditune(*words).ok()
    assert "Resuming training after step 2" in resumed.err
    assert place.adapter("full") == place.adapter("roomy")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
