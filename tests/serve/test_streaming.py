"""Clients that leave, read slowly, or say nothing; answers that take too long."""

import json
import socket
import time

import pytest

from meditune.serve.settings import Settings
from tests.loopback_server import MODEL, served, slowed


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
        while not slow.service.engine.load().running:
            time.sleep(0.005)
    left = time.monotonic()
    assert slow.idle()
    assert time.monotonic() - left < 1.0
    assert slow.figure("meditune_cancelled_total") == before + 1


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
            while server.service.admission.waiting < 1:
                time.sleep(0.005)
            second.close()
            while server.service.admission.waiting:
                time.sleep(0.005)
        assert server.idle(5)
        assert server.chat().status == 200


def test_an_answer_that_takes_too_long_is_broken_off(tmp_path):
    with served(tmp_path, Settings(answer_s=0.1), slowed()) as server:
        reply = server.ask("/v1/chat/completions", endless(False))
        assert reply.status == 504
        assert reply.error()["code"] == "timeout"
        stream = server.ask("/v1/chat/completions", endless(True))
        assert stream.status == 200
        last = stream.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert server.idle()


def test_a_client_that_reads_nothing_is_given_up(slow):
    before = slow.figure("meditune_cancelled_total")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", slow.port))
        body = endless(True) | {"logprobs": True, "top_logprobs": 20}
        line.sendall(request("/v1/chat/completions", body))
        line.settimeout(20)
        while not slow.service.engine.load().running:
            time.sleep(0.005)
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
