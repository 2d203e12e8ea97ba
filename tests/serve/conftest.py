"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from meditune.serve.settings import Settings
from tests.loopback_server import Running, served


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # It has no assistant, so there is nothing to triage; tests of programs' routes need the scope raw.
    with served(tmp_path_factory.mktemp("store"), Settings(bare_chat=True)) as running:
        yield running
