"""Fixtures that every test folder may use."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.models.quiet import no_telemetry
from tests.store.databases import Cluster, cluster

no_telemetry()
# Tiny models gain nothing from a second thread, and two test processes whose threads wait for each other crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Failing:
    """Names each test when it fails, so that a run that is ended from outside has told what it found."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})")


def pytest_configure(config: pytest.Config) -> None:
    """What a process of xdist's finds, the one that started it tells."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failing(config))


@pytest.fixture(autouse=True)
def logs_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    """What earlier tests did to logging is undone: libraries quieten handlers, a server keeps its log to itself."""
    caplog.handler.setLevel(logging.NOTSET)
    logging.getLogger("meditune").propagate = True


@pytest.fixture
def real_data() -> Path:
    """The folder with the publishers' data; the test is skipped where MEDITUNE_DATA doesn't name one."""
    folder = os.environ.get("MEDITUNE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDITUNE_DATA doesn't name a folder with the publishers' data")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server; the test is skipped, with the reason, where there is none."""
    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path) -> str:
    """The place of a new store, of either kind."""
    return str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres").new()
