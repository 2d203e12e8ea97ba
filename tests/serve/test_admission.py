"""A bounded queue in which callers take turns.

Who is judged next: callers share alike, and short messages don't wait behind long ones.

Clients that leave, read slowly, or say nothing; answers that take too long.
"""

import asyncio
import json
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from meditune.serve.admission import Admission, TriageQueue
from meditune.serve.api_errors import ApiError
from meditune.serve.settings import Settings
from tests.loopback_server import MODEL, served, slowed
from tests.waiting import until


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
    assert (admission.active, admission.waiting) == (0, 0)


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
        assert (admission.active, admission.waiting) == (0, 0)

    asyncio.run(race())


def test_waiting_has_an_end():
    async def wait():
        admission = Admission(1, 5, 0.05)
        async with admission.place("a"):
            with pytest.raises(ApiError) as refused:
                async with admission.place("b"):
                    pass
            assert refused.value.code == "overloaded"
        assert (admission.active, admission.waiting) == (0, 0)

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
        assert admission.active == 0

    asyncio.run(race())


def test_overload_is_answered_at_once_with_429(tmp_path):
    settings = Settings(concurrency=2, queue_size=2)
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
            with admission.reserve_free(5) as more:
                assert (more, admission.active) == (2, 3)
                waits = asyncio.ensure_future(_inside(admission))
                await settled()
                with admission.reserve_free(1) as none:
                    assert none == 0
                assert not waits.done()
            await settled()
            assert waits.done()
        assert admission.active == 0

    async def _inside(admission):
        async with admission.place("b"):
            return

    asyncio.run(counted())


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


async def until_async(condition):
    while not condition():
        await asyncio.sleep(0.001)


def served_messages(messages, threads=2, room=100):
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
    order, results = served_messages([("a", 4000, "1"), ("a", 4000, "2"), ("b", 4000, "3"), ("c", 100, "short")])
    assert order[:2] == ["1", "short"]
    assert results == ["1", "2", "3", "short"]


def test_short_messages_of_a_flooding_caller_go_before_its_long_ones():
    order, _ = served_messages(
        [("a", 4000, str(n)) for n in range(4)] + [("a", 900, "x"), ("a", 900, "y"), ("a", 50, "z")]
    )
    assert order[:2] == ["0", "x"]
    assert order.index("z") < order.index("y") < order.index("1")


def test_a_caller_with_many_messages_delays_itself():
    order, _ = served_messages([*(("a", 4000, f"a{n}") for n in range(6)), ("b", 4000, "b")])
    assert order.index("b") <= 2


def test_long_messages_are_not_starved_by_ever_new_callers_with_short_ones():
    async def main():
        queue, held = TriageQueue(1, 100, 10), Held()
        long, runs = None, []
        for number in range(40):
            runs.append(asyncio.ensure_future(queue.run(f"s{number}", 300, held.judge(number))))
            await until_async(lambda: held.order)
            if number == 1:
                long = asyncio.ensure_future(queue.run("l", 4000, held.judge("long")))
            if number > 1:
                begun = len(held.order)
                held.go.release()
                await until_async(lambda begun=begun: len(held.order) > begun)
        for _ in range(3):
            held.go.release()
        await asyncio.gather(long, *runs)
        queue.close()
        return held.order

    assert 4 < asyncio.run(asyncio.wait_for(main(), 10)).index("long") < 20


def test_where_the_room_is_full_whoever_waits_most_is_refused_and_told_what_to_do_in_an_emergency():
    order, results = served_messages(
        [("a", 4000, str(n)) for n in range(5)] + [("b", 4000, "b"), ("c", 100, "c")], room=3
    )
    assert {"b", "c"} <= set(order)
    refused = [each for each in results if isinstance(each, ApiError)]
    assert len(refused) == 2
    assert all(each.status == 429 and "call your emergency number" in each.message for each in refused)


def test_a_turn_that_does_not_come_in_time_is_refused_and_leaves_no_trace():
    async def main():
        queue, held = TriageQueue(1, 10, 0.05), Held()
        first = asyncio.ensure_future(queue.run("a", 10, held.judge("first")))
        await until_async(lambda: held.order)
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
        await until_async(lambda: held.order)
        for run in runs[:3]:
            run.cancel()
        await asyncio.sleep(0.02)
        assert held.order == [0]
        held.go.release()
        await until_async(lambda: len(held.order) == 2)
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


def request(path, body, headers=""):
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def endless(stream):
    """A chat that writes until its context is full, unless it is ended."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Does it help?"}],
        "max_tokens": 900,
        "temperature": 1.5,
        "seed": 3,
        "stream": stream,
    }


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server whose model takes some seconds for 900 tokens."""
    with served(tmp_path_factory.mktemp("store"), Settings(send_s=1.0), slowed()) as server:
        yield server


@pytest.mark.parametrize("stream", [True, False])
def test_writing_ends_when_the_client_leaves(slow, stream):
    before = slow.figure("meditune_cancelled_total")
    with slow.raw() as line:
        line.sendall(request("/v1/chat/completions", endless(stream)))
        if stream:
            assert b"200 OK" in line.recv(400)
        until(lambda: slow.service.engine.load().running)
    left = time.monotonic()
    assert slow.idle()
    assert time.monotonic() - left < 1.0
    assert slow.figure("meditune_cancelled_total") == before + 1


@contextmanager
def compiling(server):
    """Hold back the compiling of schemas: what was compiled, whether it has begun, and a way to let it go on."""
    compiler, compiled, begun, going = server.service.engine.constraints, [], threading.Event(), threading.Event()
    compile_plainly = compiler.compile

    def compile_slowly(asked):
        if asked.json_schema is not None:
            compiled.append(asked)
            begun.set()
            assert going.wait(10)
        return compile_plainly(asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "compile", compile_slowly)
        yield compiled, begun, going
        going.set()


def test_others_are_answered_while_a_schema_is_compiled_once(slow):
    with compiling(slow) as (compiled, begun, going), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.chat, response_format={"type": "json_object"})
        assert begun.wait(10)
        assert slow.chat().status == slow.ask("/healthz").status == 200
        assert not asked.done()
        going.set()
        assert asked.result().status == 200
        assert len(compiled) == 1


def test_one_who_leaves_while_a_schema_is_compiled_gets_no_answer(slow, monkeypatch):
    started: queue.Queue = queue.Queue()
    start, before = slow.service.engine.start, slow.figure("meditune_cancelled_total")

    def noted(*words):
        started.put(start(*words))
        return started.queue[-1]

    monkeypatch.setattr(slow.service.engine, "start", noted)
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 900}
    form = {"type": "json_schema", "json_schema": {"schema": numbers}}
    with compiling(slow) as (_, begun, going):
        with slow.raw() as line:
            line.sendall(request("/v1/chat/completions", endless(False) | {"response_format": form}))
            assert begun.wait(10)
        until(lambda: slow.figure("meditune_cancelled_total") > before, 8)
        going.set()
        answer = started.get(timeout=10)
    assert slow.idle(2)
    assert answer.cancelled


def test_a_reset_connection_is_a_client_that_left(slow):
    line = slow.raw()
    line.sendall(request("/v1/chat/completions", endless(True)))
    line.recv(100)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    line.close()
    assert slow.idle(2)


def test_one_who_waits_and_leaves_takes_no_place(tmp_path):
    with served(tmp_path, Settings(concurrency=1, queue_size=2)) as server:
        with server.raw() as first, server.raw() as second:
            first.sendall(request("/v1/chat/completions", endless(True)))
            first.recv(100)
            second.sendall(request("/v1/chat/completions", endless(True)))
            until(lambda: server.service.admission.waiting)
            second.close()
            until(lambda: not server.service.admission.waiting)
        assert server.idle(5)
        assert server.chat().status == 200


def test_an_answer_that_takes_too_long_is_broken_off(tmp_path):
    site = "https://clinic.example"
    with served(tmp_path, Settings(answer_s=0.1, origins=(site,)), slowed()) as server:
        reply = server.ask("/v1/chat/completions", endless(False), Origin=site)
        assert reply.status == 504
        assert reply.headers["access-control-allow-origin"] == site, "the site's page can read the error"
        assert reply.error()["code"] == "timeout"
        assert "Try again later" in reply.error()["message"]
        assert int(reply.headers["retry-after"]) >= 1
        stream = server.ask("/v1/chat/completions", endless(True))
        assert stream.status in (200, 504), "504 if the time is over before the first token"
        last = stream.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert server.idle()
        counted = 'meditune_requests_total{method="POST",route="/v1/chat/completions",status="504"}'
        until(lambda: server.figure(counted) == 2, 5)  # an error inside a stream counts, too


def test_a_client_that_reads_nothing_is_given_up(slow):
    before = slow.figure("meditune_cancelled_total")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", slow.port))
        body = endless(True) | {"logprobs": True, "top_logprobs": 20}
        line.sendall(request("/v1/chat/completions", body))
        line.settimeout(20)
        until(lambda: slow.service.engine.load().running)
        assert slow.idle(20)
    assert slow.figure("meditune_cancelled_total") == before + 1


def test_the_end_waits_for_running_answers(tmp_path):
    with served(tmp_path) as server, server.raw() as line:
        line.sendall(request("/v1/chat/completions", endless(True) | {"max_tokens": 200}))
        got = line.recv(100)
        server.server.should_exit = True
        while piece := line.recv(65536):
            got += piece
        assert b"data: [DONE]" in got
        server.thread.join(10)
        assert not server.thread.is_alive()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)
