"""An update that was killed ends, when it is run again, like one that nothing disturbed.

The updates that are killed (SIGKILL) are started by a program of their own, this file's `main`: it imports everything
once and forks a process for each update. An update kills itself before the n-th thing that it is about to write: a file
of the library or index, or a transaction, before it is committed and after.

    python -m tests.operate.literature.test_killed FOLDER TRIALS      prints a JSON line for each trial
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meditune.operate.literature import literature_update, pubmed_search
from meditune.operate.literature.article_library import Library
from meditune.retrieve import build_index
from tests import corpus, layouts
from tests.commands import meditune
from tests.operate.literature import pubmed_server
from tests.operate.literature.pubmed_server import Paper, PubMed, deletes, notice, update_file
from tests.test_killed import CHANGES
from tests.waiting import output_of, until

WANTED = {"email": "me@clinic.org", "queries": ("all",)}


def main(folder: Path, trials: int) -> None:
    """Print the trials."""
    layouts.pubmedqa(folder / "data" / "pubmedqa", {"20000000": layouts.pubmedqa_item(0)})
    os.environ |= {"MEDITUNE_DATA": str(folder / "data"), "MEDITUNE_OFFLINE": "1"}
    pubmed_search.INTERVAL, pubmed_search.FIRST_WAIT, pubmed_search.PAGE, build_index.BATCH = 0.0, 0.0, 2, 2
    literature_update.load_encoder = lambda _: corpus.TINY
    work, files = folder / "work", folder / "files"
    files.mkdir()
    with pubmed_server.serving(files) as served:
        served.add(*(Paper(pmid) for pmid in range(101, 106)))
        update_file(files, 1340, Paper(201), Paper(202))
        assert forked(served, work) == 0
        shutil.copytree(work, folder / "before")
        served.add(
            Paper(102, conclusion="Treatment 102 raises the number of attacks.", revised="2026-02-01"),
            Paper(103, types=("Retracted Publication",), revised="2026-02-01"),
            *(Paper(pmid, revised="2026-02-01") for pmid in range(301, 304)),
        )
        update_file(files, 1341, deletes(201), notice(901, of=104), Paper(203))
        seen = mmap.mmap(-1, 8)
        assert forked(served, work, seen=seen) == 0
        whole, changes = state(work), int.from_bytes(seen[:8], "little")
        for number in range(trials):
            at = 1 + number * changes // trials
            shutil.rmtree(work)
            shutil.copytree(folder / "before", work)
            killed = forked(served, work, at)
            code = forked(served, work)
            now = state(work)
            trial = {
                "at": f"{at} of {changes}",
                "killed": killed == -signal.SIGKILL,
                "resumed": code,
                "differs": [name for name in whole if now[name] != whole[name]],
                "left": [path.name for path in work.rglob("*") if path.name.endswith((".partial", ".part"))],
            }
            print(json.dumps(trial), flush=True)


def state(work: Path) -> dict[str, Any]:
    """All that an update leaves, but for times."""
    library = work / "library"
    with sqlite3.connect(library / "library.sqlite") as base:
        rows = base.execute("SELECT pmid, record, state, reason FROM articles ORDER BY pmid").fetchall()
        applied = base.execute("SELECT name FROM files ORDER BY name").fetchall()
    retracted = [json.loads(line) for line in (library / "retracted.jsonl").read_text().splitlines()]
    return {
        "articles": rows,
        "files": applied,
        "pairs": (library / "pairs.jsonl").read_text(),
        "retracted": sorted((each["pmid"], each["notice"]) for each in retracted),
        "index": json.loads((work / "index" / "index.json").read_text())["content"],
    }


def forked(served: PubMed, work: Path, event: int | None = None, seen: mmap.mmap | None = None) -> int:
    """An update in a process of its own, killed at its `event`-th event; their number goes to `seen`."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    count = 0

    def happens() -> None:
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen:
            seen[:8] = count.to_bytes(8, "little")

    def look(name: str, given: tuple[Any, ...]) -> None:
        writes = name == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
        if (name in CHANGES or writes) and any(str(value).startswith(str(work)) for value in given):
            happens()

    together = Library.transaction

    @contextmanager
    def watched(library: Library) -> Iterator[None]:
        with together(library):
            yield
            happens()
        happens()

    code = 1
    try:
        Library.transaction = watched  # type: ignore[method-assign]
        sys.addaudithook(look)
        wanted = literature_update.UpdateOptions(
            **WANTED, eutils=f"{served.url}/entrez/eutils", files=f"{served.url}/updatefiles", index=str(work / "index")
        )
        report = literature_update.update(work / "library", wanted)
        code = len(report.failures)
        for failure in report.failures:
            print(failure, file=sys.stderr)
    finally:
        os._exit(code)


pytest.importorskip("lancedb")
ROOT = Path(__file__).parents[3]


TRIALS = 6


@pytest.mark.slow
def test_killed_anywhere(tmp_path: Path) -> None:
    """Before files and transactions spread over the whole update."""
    found = output_of(sys.executable, "-m", "tests.operate.literature.test_killed", tmp_path, TRIALS, cwd=ROOT)
    said = [json.loads(line) for line in found.splitlines() if line.startswith("{")]
    assert len(said) == TRIALS
    for trial in said:
        assert trial["killed"], trial
        assert trial["resumed"] == 0, trial
        assert trial["differs"] == [], trial
        assert trial["left"] == [], trial


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path, own_folders: None) -> None:
    (tmp_path / "files").mkdir()
    with pubmed_server.serving(tmp_path / "files") as served:
        served.add(*(Paper(pmid) for pmid in range(101, 501)))
        served.fail("efetch", "", "429:60")
        words = ["update", tmp_path / "library", "--query", "all", "--email", "me@clinic.org"]
        words += ["--eutils-url", f"{served.url}/entrez/eutils"]
        command = [sys.executable, "-m", "meditune", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: len(served.asked_of("efetch")) >= 2, process=process)
            time.sleep(0.2)
            meditune(*words).refused(3, "another process is updating this literature folder")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 130, err
        assert "run the same command again to resume" in err
        served.asked.clear()
        assert "200 new" in meditune(*words).out
        assert [each["retstart"] for each in served.asked_of("efetch")] == ["200"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
