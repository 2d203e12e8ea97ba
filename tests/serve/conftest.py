"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from tests.serve.server import Running, served


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("store")) as running:
        yield running
