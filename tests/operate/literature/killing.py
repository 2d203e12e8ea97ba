"""Updates that are killed (SIGKILL) at chosen moments, run again, and compared with one that nothing disturbed.

A program of its own, started by test_killed.py: it imports everything once and forks a process for each update. An
update kills itself before the n-th thing that it is about to write: a file of the library or index, or a transaction,
before it is committed and after.

    python -m tests.operate.literature.killing FOLDER TRIALS      prints a JSON line a trial
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meditune.operate.literature import literature_update, pubmed_client, pubmed_search
from meditune.operate.literature.article_library import Library
from meditune.retrieve import build_index
from tests.data import layouts
from tests.killing import CHANGES
from tests.operate.literature import pubmed_server
from tests.operate.literature.medline import Paper, deletes, notice, update_file
from tests.operate.literature.pubmed_server import PubMed
from tests.retrieve import corpus

WANTED = {"email": "me@clinic.org", "queries": ("all",)}


def main(folder: Path, trials: int) -> None:
    """Print the trials."""
    layouts.pubmedqa(folder / "data" / "pubmedqa", {"20000000": layouts.pubmedqa_item(0)})
    os.environ |= {"MEDITUNE_DATA": str(folder / "data"), "MEDITUNE_OFFLINE": "1"}
    pubmed_client.INTERVAL, pubmed_client.FIRST_WAIT, pubmed_search.PAGE, build_index.BATCH = 0.0, 0.0, 2, 2
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

    together = Library.together

    @contextmanager
    def watched(library: Library) -> Iterator[None]:
        with together(library):
            yield
            happens()
        happens()

    code = 1
    try:
        Library.together = watched  # type: ignore[method-assign]
        sys.addaudithook(look)
        wanted = literature_update.Wanted(
            **WANTED,
            eutils=f"{served.url}/entrez/eutils",
            files=f"{served.url}/updatefiles",
            index=str(work / "index"),
        )
        report = literature_update.update(work / "library", wanted)
        code = len(report.failures)
        for failure in report.failures:
            print(failure, file=sys.stderr)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
