"""Connections that would hang a server."""

import json
import socket
import time

import pytest

from meditune.serve.settings import Settings
from tests.serve.server import served


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    settings = Settings(header_s=0.3, body_s=0.5, idle_s=1, connections=6)
    with served(tmp_path_factory.mktemp("store"), settings) as server:
        yield server


def said(line):
    """Everything until the other side closes."""
    got = b""
    while piece := line.recv(65536):
        got += piece
    return got


def test_a_head_of_a_megabyte(hasty):
    with hasty.raw() as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: ")
        try:
            for _ in range(16):
                line.sendall(b"a" * 65536)
            answer = said(line)
        except ConnectionError:
            answer = b" 431 "
        assert b" 431 " in answer
    assert hasty.ask("/healthz").status == 200


def test_a_head_that_never_ends(hasty):
    with hasty.raw() as line:
        begun = time.monotonic()
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        answer = said(line)
        assert time.monotonic() - begun < 3
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 408 " in head
    assert json.loads(body)["error"]["code"] == "timeout"


def test_a_head_that_comes_a_byte_at_a_time(hasty):
    with hasty.raw() as line:
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            for byte in b"GET /healthz HTTP/1.1\r\nHost: " + b"x" * 1000:
                line.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - begun < 3


def test_a_connection_that_says_nothing(hasty):
    with hasty.raw() as line:
        begun = time.monotonic()
        assert b" 408 " in said(line)
        assert time.monotonic() - begun < 3


def test_a_body_that_never_comes(hasty):
    with hasty.raw() as line:
        line.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 10\r\n\r\n{")
        assert b" 408 " in line.recv(500)


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff\xfe\xfd" * 20 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http(hasty, text):
    with hasty.raw() as line:
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        answer = said(line)
        assert not answer or b" 400 " in answer or b" 408 " in answer


def test_two_requests_in_one_go(hasty):
    with hasty.raw() as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        time.sleep(0.2)
        assert line.recv(65536).count(b'{"status":"ok"}') == 2
        time.sleep(0.5)
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in line.recv(65536)


def test_too_many_connections(hasty):
    lines = [hasty.raw() for _ in range(6)]
    try:
        with hasty.raw() as one_more:
            assert b" 503 " in said(one_more)
    finally:
        for line in lines:
            line.close()
    time.sleep(0.1)
    assert hasty.ask("/healthz").status == 200


def test_a_connection_that_is_half_open_is_forgotten(hasty):
    with hasty.raw() as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        line.recv(65536)
        line.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        said(line)
        assert time.monotonic() - begun < 5
