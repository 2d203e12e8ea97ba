"""Presidio as the engine, where it is installed, without a network."""

import socket

import pytest

from meditune.errors import DataError
from meditune.phi.detector import engine

TEXT = "Maria Gonzalez wrote from maria@example.com on March 14, 2012. [**Hospital1 18**] daily"


def test_it_finds_kinds_of_ours_and_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("presidio_analyzer")

    def refused(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    found = {(span.kind, TEXT[span.start : span.end]) for span in engine("presidio")(TEXT, None)}
    assert {("name", "Maria Gonzalez"), ("email", "maria@example.com"), ("bracket", "[**Hospital1 18**]")} <= found
    assert "daily" not in {text for _, text in found}


def test_without_it_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from meditune.phi import detector

    detector._analyzer.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)
    with pytest.raises(DataError, match=r"pip install --editable .*\[phi\]"):
        engine("presidio")(TEXT, None)
