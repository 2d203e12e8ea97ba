"""Every store that there may be."""

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path) -> str:
    """The place of a new store."""
    return str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres").new()
