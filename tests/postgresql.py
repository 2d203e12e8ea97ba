"""A real PostgreSQL on this machine, for as long as the tests last; skipped, with the reason, where there is none."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL isn't installed (initdb is on no PATH): apt-get install postgresql")


class Cluster:
    """A server of PostgreSQL's."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.bin = folder, port, programs()
        # PostgreSQL doesn't run as the superuser.
        self.as_user = {"user": "nobody"} if os.geteuid() == 0 else {}

    def run(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", **self.as_user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        words = ("-D", f"{self.folder}/data", "-o", options, "-l", f"{self.folder}/log", "-w", "start")
        self.run(str(self.bin / "pg_ctl"), *words)

    def end_with(self, process: int) -> None:
        """End when a process does, even if it is killed."""
        stop = f"{self.bin}/pg_ctl -D {self.folder}/data -m immediate stop; rm -rf {self.folder}"
        watch = f"while ps -p {process} > /dev/null; do sleep 2; done; test ! -d {self.folder} || ({stop})"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", "start_new_session": True}
        subprocess.Popen(["sh", "-c", watch], **quiet, **self.as_user)

    def stop(self) -> None:
        self.run(str(self.bin / "pg_ctl"), "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://meditune@127.0.0.1:{self.port}/{database}"

    def new(self) -> str:
        """The URL of a new database."""
        psycopg = pytest.importorskip("psycopg", reason="psycopg isn't installed: the extra postgres")
        name = f"store{next(_NUMBERS)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server for the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="meditune-postgres-"))
    made = Cluster(folder, port)
    try:
        if made.as_user:
            shutil.chown(folder, "nobody")
        made.run(str(made.bin / "initdb"), "-D", f"{folder}/data", "-U", "meditune", "-A", "trust", "--no-sync")
        made.start()
        made.end_with(os.getpid())
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
