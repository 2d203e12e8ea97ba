"""Fixtures that every test folder may use, among them a real PostgreSQL on this machine."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meditune.hardware import release_memory
from meditune.models.quiet_libraries import no_telemetry
from tests.http_servers import free_port
from tests.waiting import output_of

if TYPE_CHECKING:
    from tests.commands import Bench

no_telemetry()
# Tiny models gain nothing from a second thread, and two test processes whose threads wait for each other crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Imports leave hundreds of thousands of objects, and Python would search all of them for garbage while it makes more.
gc.disable()
gc.set_threshold(20_000, 20, 20)
# What reaches the disk matters after a power failure only, and a tiny run would wait for the disk 90 times.
os.fsync = lambda _: None


ALLOWED_SKIPS = {
    "could not import 'mlflow'": "MLflow keeps pyarrow at an older version than everything else is tested with",
    "multiply 8-bit numbers by oneDNN": "depends on the processor, which CI takes as it comes",
    "on CPUs with AVX-512 BF16 only": "depends on the processor",
    "MKL is as fast as this processor": "depends on the processor",
    "needs an NVIDIA GPU": "CI has none; the summary says how many tests were left out",
    "file systems can't be mounted here": "containers may not mount, root or not",
    "isn't downloaded": "models are large; the tests use those that the machine has",
}
"""Pattern of a skip's reason -> why that skip may stay where CI is set"""


NO_GPU = "needs an NVIDIA GPU"


class Telling:
    """Names each test when it fails, so that a run that is ended from outside has told what it found.

    Where the environment sets CI, it also fails a run that skips a test for a reason outside ALLOWED_SKIPS.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._unexpected: list[str] = []
        self._without_gpu = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})")
        self._skip(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._skip(report)

    def _skip(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        self._without_gpu += NO_GPU in reason
        if os.environ.get("CI", "false") in ("", "0", "false"):
            return
        if not any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS):
            self._unexpected.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._without_gpu:
            terminalreporter.write_line(f"{self._without_gpu} tests were left out: they need a GPU (make test-gpu).")
        if self._unexpected:
            terminalreporter.section("skips that CI does not allow", red=True)
            terminalreporter.write_line("\n".join(sorted(set(self._unexpected))))
            terminalreporter.write_line(
                "Install what is missing, or add the reason to ALLOWED_SKIPS (tests/conftest.py)."
            )


def pytest_configure(config: pytest.Config) -> None:
    """Register `Telling` in the process that gets the reports of all others."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Telling(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process waits at the end for the other's long test.

    Without a GPU, its tests are skipped.
    """
    if on_gpu := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason=NO_GPU))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Search for garbage from now on, but not in what the tests' modules imported."""
    gc.freeze()
    gc.enable()


_DATABASE_NUMBERS = itertools.count()


def postgresql_programs() -> Path:
    """The folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL isn't installed (initdb is on no PATH): apt-get install postgresql")


class Cluster:
    """A server of PostgreSQL's, for as long as the tests last."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.bin = folder, port, postgresql_programs()
        # PostgreSQL doesn't run as the superuser.
        self.as_user = {"user": "nobody"} if os.geteuid() == 0 else {}

    def run(self, *words: str) -> None:
        output_of(*words, cwd="/", **self.as_user)

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
        name = f"store{next(_DATABASE_NUMBERS)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server for the block."""
    folder = Path(tempfile.mkdtemp(prefix="meditune-postgres-"))
    made = Cluster(folder, free_port())
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


@pytest.fixture(autouse=True)
def logs_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    """What earlier tests did to logging is undone: libraries quieten handlers, a server keeps its log to itself."""
    caplog.handler.setLevel(logging.NOTSET)
    logging.getLogger("meditune").propagate = True


@pytest.fixture(scope="module", autouse=True)
def memory_of_ended_modules() -> Iterator[None]:
    """Return freed memory to the system after each module; without this, a test process holds over 3 GB in the end."""
    yield
    release_memory()


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch.compile makes serves all tests of this call, in whichever process they run, and no later call."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder with the publishers' data; the test is skipped where MEDITUNE_DATA doesn't name one."""
    folder = os.environ.get("MEDITUNE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDITUNE_DATA doesn't name a folder with the publishers' data")
    return Path(folder)


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own folders of data and of the cache, and no downloads."""
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A user's machine for all tests of a module."""
    from tests.commands import bench  # which imports torch

    with bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    from tests.loopback_server import chromium  # which imports torch

    with chromium() as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server; the test is skipped, with the reason, where there is none."""
    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path) -> str:
    """The place of a new store, of either kind."""
    return str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres").new()
