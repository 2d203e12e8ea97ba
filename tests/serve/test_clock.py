"""A clock that jumps makes nothing look old enough to be deleted."""

import asyncio
import time

import pytest

from meditune.serve import store_access
from meditune.serve.settings import Settings
from meditune.serve.store_access import STEADY_S, Clock
from meditune.store.answers import Answer, Answers
from meditune.store.open_store import open_store
from tests.serve.server import service

YEAR = 365 * 86_400.0


class Hands:
    """The two clocks of a machine."""

    def __init__(self, monkeypatch):
        self.wall, self.steady = time.time(), 1000.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(store_access, "_steady", lambda: self.steady)

    def passes(self, seconds):
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def hands(monkeypatch):
    return Hands(monkeypatch)


def test_a_jump_is_waited_out_and_sleep_is_none(hands):
    made = Clock(hands.wall - 3600)
    assert made.trusted()
    hands.passes(3 * 86_400)
    assert made.trusted()
    hands.wall += YEAR
    assert not made.trusted()
    hands.passes(STEADY_S / 2)
    hands.wall -= YEAR
    assert not made.trusted()
    hands.passes(STEADY_S)
    assert made.trusted()


def test_a_store_that_was_away_is_waited_for_too(hands):
    assert Clock(0).trusted()
    made = Clock(hands.wall - YEAR)
    assert not made.trusted()
    hands.passes(STEADY_S)
    assert made.trusted()


def test_nothing_is_lost_where_the_clock_jumps_ahead(tmp_path, hands):
    answers = Answers(open_store(tmp_path))
    answers.keep(Answer("a1", "", "ask", "m"))
    made = service(tmp_path, Settings(keep_days=30))
    assert asyncio.run(made.prune()) == 0
    hands.wall += YEAR
    assert asyncio.run(made.prune()) == 0
    assert answers.get("a1")
    # A server that is started with the wrong clock does no harm either.
    assert asyncio.run(service(tmp_path, Settings(keep_days=30)).prune()) == 0
    assert answers.get("a1")
    hands.wall -= YEAR
    hands.passes(2 * STEADY_S)
    assert asyncio.run(made.prune()) == 0
    hands.passes(31 * 86_400)
    assert asyncio.run(made.prune()) == 1
