"""Keys, scopes, rates and quotas, through the server; and what stands in its log."""

import json
import logging
import time

import pytest

from meditune.observability import LOGGER, JsonLines
from meditune.serve.http_server import ListenConfig
from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests.assistants import ModelAlone
from tests.loopback_server import served, service, slowed, started
from tests.serve.test_streaming import request


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server that needs keys, and its keys."""
    folder = tmp_path_factory.mktemp("store")
    keys = Keys(SQLiteDatabase(folder))
    with served(folder, Settings(keys_needed=True)) as server:
        yield server, keys


def test_nobody_gets_in_without_a_key(place):
    server, keys = place
    _, key = keys.create("Ann")
    assert server.chat(key=key).status == 200
    for wrong in ("", key[:-1], key + "x", "mt-00000000-" + key[12:], "sk-123", "x" * 5000, "mt--"):
        reply = server.chat(key=wrong)
        assert reply.status == 401, wrong
        assert reply.error()["type"] == "authentication_error"
        assert reply.headers["www-authenticate"] == "Bearer"
    assert server.ask("/v1/models").status == 401
    assert server.ask("/healthz").status == 200
    assert server.ask("/docs").status == 200


def test_scopes(place):
    server, keys = place
    _, metrics = keys.create("Prometheus", ["metrics"])
    _, usual = keys.create("Bo")
    assert server.ask("/metrics", key=metrics).status == 200
    reply = server.chat(key=metrics)
    assert (reply.status, reply.error()["code"]) == (403, "missing_scope")
    assert server.ask("/metrics", key=usual).status == 403


def test_revoked_and_rotated_keys(place):
    server, keys = place
    made, old = keys.create("Cy")
    new = keys.rotate(made.id, grace_hours=1)
    assert server.chat(key=new).status == server.chat(key=old).status == 200
    newest = keys.rotate(made.id, grace_hours=0)
    assert server.chat(key=newest).status == 200
    assert server.chat(key=new).status == server.chat(key=old).status == 401
    keys.revoke(made.id)
    assert server.chat(key=newest).status == 401


def test_an_expired_key(place):
    server, keys = place
    _, key = keys.create("Di", days=1e-9)
    assert server.chat(key=key).status == 401


def test_a_rate_is_kept_and_told(place):
    server, keys = place
    _, key = keys.create("Ed", per_minute=3)
    replies = [server.chat(key=key) for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
    assert replies[-1].error()["code"] == "rate_limit_exceeded"
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 21
    _, other = keys.create("Fay")
    assert server.chat(key=other).status == 200


def test_a_quota_outlives_the_server(tmp_path):
    _, key = Keys(SQLiteDatabase(tmp_path)).create("Gil", daily_tokens=20)
    for statuses in ([200, 200, 429], [429]):
        with served(tmp_path, Settings(keys_needed=True)) as server:
            replies = [server.chat(key=key) for _ in statuses]
        assert [reply.status for reply in replies] == statuses
        assert replies[-1].error()["code"] == "insufficient_quota"
        assert int(replies[-1].headers["retry-after"]) <= 86_400


def test_guessing_is_slowed_down(tmp_path):
    Keys(SQLiteDatabase(tmp_path)).create("Hal")
    with served(tmp_path, Settings(keys_needed=True)) as server:
        statuses = [server.chat(key=f"mt-12345678-{n}").status for n in range(25)]
    assert statuses[:20] == [401] * 20
    assert statuses[20:] == [429] * 5


def test_rates_without_keys_are_by_address(tmp_path):
    with served(tmp_path, Settings(per_minute=2)) as server:
        assert [server.chat().status for _ in range(3)] == [200, 200, 429]
        assert server.figure('meditune_refused_total{reason="rate"}') == 1


def test_callers_with_ipv6_are_known_by_their_network(tmp_path):
    body = {"model": "tiny", "prompt": "Does it", "max_tokens": 1}
    behind = ListenConfig(port=0, proxies="127.0.0.1")
    with started(service(tmp_path, Settings(per_minute=2, bare_chat=True)), behind) as server:

        def statuses(*addresses):
            return [server.ask("/v1/completions", body, X_Forwarded_For=each).status for each in addresses]

        # One household has 2^64 addresses, and more than one address of IPv4 is more than one household.
        assert statuses("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2:3:4:5:6") == [200, 200, 429]
        assert statuses("2001:db8:1:3::1", "192.0.2.1", "192.0.2.2") == [200] * 3
        assert statuses("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2") == [200, 429, 200]


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


def test_the_log_holds_no_question_and_no_key(tmp_path):
    _, key = Keys(SQLiteDatabase(tmp_path)).create("Ida")
    lines = Lines()
    LOGGER.addHandler(lines)
    LOGGER.setLevel(logging.INFO)
    try:
        with served(tmp_path, Settings(keys_needed=True)) as server:
            server.chat("My secretword hurts", key=key, user="secretword")
            server.chat("My secretword hurts", key=key, secretword=1)
            server.chat("My secretword hurts", key=key + "x")
            server.ask("/v1/secretword?secretword=1", key=key)
            server.ask("/v1/chat/completions", b'{"secretword', key=key)
            server.service.prompts.chat = lambda turns: 1 / (len(turns) - 1)
            assert server.chat("My secretword hurts", key=key).status == 500
    finally:
        LOGGER.removeHandler(lines)
    text = "\n".join(lines.lines)
    said = [json.loads(line) for line in lines.lines]
    assert "secretword" not in text
    assert key[-20:] not in text
    assert [entry["status"] for entry in said if entry["message"] == "request"] == [200, 400, 401, 404, 400, 500]
    failed = next(entry for entry in said if entry["level"] == "error")
    assert failed["exception"] == "ZeroDivisionError"
    assert "test_auth.py" in failed["at"][-1]
    first = said[0]
    assert {"request", "route", "seconds", "prompt_tokens", "completion_tokens", "first_token"} <= set(first)
    assert first["route"] == "/v1/chat/completions"


def test_who_leaves_early_has_used_what_was_written(tmp_path):
    settings = Settings(daily_tokens=10_000)
    with served(tmp_path, settings, slowed(0.01)) as server:
        server.service.assistant = ModelAlone(server.service.engine)
        used, before = server.service.access.usage, 0
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400}
        for path, body in (
            ("/v1/chat/completions", chat | {"stream": True}),
            ("/v1/chat/completions", chat),
            ("/v1/ask", {"question": "Does it help?", "max_new_tokens": 400, "stream": True}),
        ):
            with server.raw() as line:
                line.sendall(request(path, body))
                time.sleep(0.4)
            assert server.idle()
            until = time.monotonic() + 2
            while used.today("127.0.0.1") <= before and time.monotonic() < until:
                time.sleep(0.01)
            assert used.today("127.0.0.1") > before + 5
            before = used.today("127.0.0.1")
