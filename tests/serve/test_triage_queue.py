"""Who is judged next: callers share alike, and short messages don't wait behind long ones."""

import asyncio
import threading

import pytest

from meditune.serve.admission import TriageQueue
from meditune.serve.api_errors import ApiError


class Held:
    """Judgements that end when they are told to, in the order in which they began."""

    def __init__(self):
        self.order, self.go = [], threading.Semaphore(0)

    def judge(self, name):
        def work():
            self.order.append(name)
            assert self.go.acquire(timeout=10)
            return name

        return work


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def served(messages, threads=2, room=100):
    """The order in which messages (caller, characters, name) were begun; the first ones hold the threads meanwhile."""

    async def main():
        queue, held = TriageQueue(threads, room, 10), Held()
        runs = []
        for caller, characters, name in messages:
            runs.append(asyncio.ensure_future(queue.run(caller, characters, held.judge(name))))
            await asyncio.sleep(0.01)
        for _ in messages:
            held.go.release()
        results = await asyncio.gather(*runs, return_exceptions=True)
        queue.close()
        return held.order, results

    return asyncio.run(asyncio.wait_for(main(), 10))


def test_a_short_message_is_begun_beside_long_ones():
    order, results = served([("a", 4000, "1"), ("a", 4000, "2"), ("b", 4000, "3"), ("c", 100, "short")])
    assert order[:2] == ["1", "short"]
    assert results == ["1", "2", "3", "short"]


def test_short_messages_of_a_flooding_caller_go_before_its_long_ones():
    order, _ = served([("a", 4000, str(n)) for n in range(4)] + [("a", 900, "x"), ("a", 900, "y"), ("a", 50, "z")])
    assert order[:2] == ["0", "x"]
    assert order.index("z") < order.index("y") < order.index("1")


def test_a_caller_with_many_messages_delays_itself():
    order, _ = served([*(("a", 4000, f"a{n}") for n in range(6)), ("b", 4000, "b")])
    assert order.index("b") <= 2


def test_long_messages_are_not_starved_by_ever_new_callers_with_short_ones():
    async def main():
        queue, held = TriageQueue(1, 100, 10), Held()
        long, runs = None, []
        for number in range(40):
            runs.append(asyncio.ensure_future(queue.run(f"s{number}", 300, held.judge(number))))
            await until(lambda: held.order)
            if number == 1:
                long = asyncio.ensure_future(queue.run("l", 4000, held.judge("long")))
            if number > 1:
                begun = len(held.order)
                held.go.release()
                await until(lambda begun=begun: len(held.order) > begun)
        for _ in range(3):
            held.go.release()
        await asyncio.gather(long, *runs)
        queue.close()
        return held.order

    assert 4 < asyncio.run(asyncio.wait_for(main(), 10)).index("long") < 20


def test_where_the_room_is_full_whoever_waits_most_is_refused_and_told_what_to_do_in_an_emergency():
    order, results = served([("a", 4000, str(n)) for n in range(5)] + [("b", 4000, "b"), ("c", 100, "c")], room=3)
    assert {"b", "c"} <= set(order)
    refused = [each for each in results if isinstance(each, ApiError)]
    assert len(refused) == 2
    assert all(each.status == 429 and "call your emergency number" in each.message for each in refused)


def test_a_turn_that_does_not_come_in_time_is_refused_and_leaves_no_trace():
    async def main():
        queue, held = TriageQueue(1, 10, 0.05), Held()
        first = asyncio.ensure_future(queue.run("a", 10, held.judge("first")))
        await until(lambda: held.order)
        with pytest.raises(ApiError) as refused:
            await queue.run("b", 10, held.judge("second"))
        assert refused.value.status == 429
        assert int(refused.value.headers["retry-after"]) >= 1
        assert queue.waiting == 0
        held.go.release()
        assert await first == "first"
        held.go.release()
        assert await queue.run("b", 10, held.judge("third")) == "third"
        queue.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_callers_that_leave_free_their_turns_and_a_running_judgement_keeps_its_thread():
    async def main():
        queue, held = TriageQueue(1, 10, 10), Held()
        runs = [asyncio.ensure_future(queue.run("a", 10, held.judge(n))) for n in range(4)]
        await until(lambda: held.order)
        for run in runs[:3]:
            run.cancel()
        await asyncio.sleep(0.02)
        assert held.order == [0]
        held.go.release()
        await until(lambda: len(held.order) == 2)
        held.go.release()
        assert await runs[3] == 3
        assert (held.order, queue.waiting) == ([0, 3], 0)
        queue.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_what_a_judgement_raises_is_raised_and_frees_its_thread():
    async def main():
        queue = TriageQueue(1, 10, 10)
        with pytest.raises(ZeroDivisionError):
            await queue.run("a", 10, lambda: 1 // 0)
        assert await queue.run("a", 10, lambda: "well") == "well"
        queue.close()

    asyncio.run(asyncio.wait_for(main(), 10))
