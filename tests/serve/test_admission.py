"""A bounded queue in which callers take turns."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from meditune.serve.admission import Admission
from meditune.serve.api_errors import ApiError
from meditune.serve.settings import Settings
from tests.serve.server import served, slowed


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def played(admission, asks, log, leave=()):
    """Let callers ask in this order while one place is taken, then let go."""
    gate = asyncio.Event()

    async def one(who):
        try:
            async with admission.place(who):
                log.append(who)
                if who == "first":
                    await gate.wait()
        except ApiError as error:
            log.append(f"{who} refused" if error.status == 429 and int(error.headers["retry-after"]) > 0 else error)

    tasks = [asyncio.ensure_future(one("first"))]
    await settled()
    for who in asks:
        tasks.append(asyncio.ensure_future(one(who)))
        await settled()
    for number in leave:
        tasks[number].cancel()
        await settled()
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.inside, admission.waiting) == (0, 0)


def test_callers_take_turns():
    log = []
    asyncio.run(played(Admission(1, 10, 60), ["a", "a", "a", "b", "c", "b"], log))
    assert log == ["first", "a", "b", "c", "a", "b", "a"]


def test_a_full_room_refuses_whoever_has_most_in_it():
    log = []
    asyncio.run(played(Admission(1, 3, 60), ["a", "a", "a", "b", "a", "c"], log))
    assert log[:4] == ["first", "a refused", "a refused", "a refused"]
    assert log[4:] == ["a", "b", "c"]


def test_one_who_leaves_makes_room():
    log = []
    asyncio.run(played(Admission(1, 2, 60), ["a", "b"], log, leave=[1]))
    assert log == ["first", "b"]


def test_one_who_has_just_left_is_neither_counted_nor_displaced():
    async def race():
        admission = Admission(1, 3, 60)
        async with admission.place("first"):
            waiting = [asyncio.ensure_future(admission.place("a").__aenter__()) for _ in range(3)]
            await settled()
            newcomers = [asyncio.ensure_future(admission.place(who).__aenter__()) for who in "bc"]
            waiting[2].cancel()  # its task notices after the newcomers have come
            await settled()
            failed = [task.exception() for task in waiting + newcomers if task.done() and not task.cancelled()]
            assert all(isinstance(each, ApiError) and each.status == 429 for each in failed)
            assert not any(task.done() for task in newcomers)
            for task in waiting + newcomers:
                task.cancel()
            await settled()
        assert (admission.inside, admission.waiting) == (0, 0)

    asyncio.run(race())


def test_waiting_has_an_end():
    async def wait():
        admission = Admission(1, 5, 0.05)
        async with admission.place("a"):
            with pytest.raises(ApiError) as refused:
                async with admission.place("b"):
                    pass
            assert refused.value.code == "overloaded"
        assert (admission.inside, admission.waiting) == (0, 0)

    asyncio.run(wait())


def test_who_would_wait_in_vain_is_refused_at_once():
    async def refuse():
        admission = Admission(1, 50, 5)
        admission._mean_s = 4.0
        async with admission.place("a"):
            waiting = asyncio.ensure_future(admission.place("b").__aenter__())
            await settled()
            async with asyncio.timeout(1):
                with pytest.raises(ApiError) as refused:
                    async with admission.place("c"):
                        pass
            assert int(refused.value.headers["retry-after"]) == 8
            waiting.cancel()
            await settled()

    asyncio.run(refuse())


def test_a_place_given_to_one_who_has_just_left_goes_on():
    async def race():
        admission = Admission(1, 5, 5)
        inside = admission.place("a")
        await inside.__aenter__()
        waiting = asyncio.ensure_future(admission.place("b").__aenter__())
        await settled()
        await inside.__aexit__(None, None, None)
        waiting.cancel()
        await settled()
        async with asyncio.timeout(1), admission.place("c"):
            pass
        assert admission.inside == 0

    asyncio.run(race())


def test_overload_is_answered_at_once_with_429(tmp_path):
    settings = Settings(at_once=2, waiting=2)
    with served(tmp_path, settings, slowed(0.01)) as server, ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.chat(max_tokens=30), range(12)))
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 4
        for reply in replies:
            if reply.status == 429:
                assert reply.error()["code"] == "overloaded"
                assert int(reply.headers["retry-after"]) >= 1
        assert server.ask("/readyz").status == 200
        assert server.figure('meditune_refused_total{reason="overloaded"}') == statuses.count(429)
        assert server.figure("meditune_running") == 0


def test_spare_places_are_those_that_nobody_uses_or_waits_for():
    async def counted():
        admission = Admission(3, 2, 60)
        async with admission.place("a"):
            with admission.spare(5) as more:
                assert (more, admission.inside) == (2, 3)
                waits = asyncio.ensure_future(_inside(admission))
                await settled()
                with admission.spare(1) as none:
                    assert none == 0
                assert not waits.done()
            await settled()
            assert waits.done()
        assert admission.inside == 0

    async def _inside(admission):
        async with admission.place("b"):
            return

    asyncio.run(counted())
