"""Keys, scopes, rates and quotas, through the server; and what stands in its log.

What `meditune serve --check` calls unsafe.
"""

import json
import logging
import socket
import time

import pytest

from meditune.errors import DataError
from meditune.observability import LOGGER, JsonLines
from meditune.serve.api_errors import too_many_requests
from meditune.serve.auth import Rates
from meditune.serve.http_server import ListenConfig
from meditune.serve.security_check import findings
from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests.assistants import ModelAlone
from tests.loopback_server import served, service, slowed, started
from tests.serve.test_admission import request
from tests.waiting import until


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


def test_who_waits_as_long_as_retry_after_says_is_answered(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rates = Rates()
    while (rate := rates.take("Ed", 50)).allowed:
        pass
    now += int(too_many_requests("", rate.reset_s, "rate_limit_exceeded").headers["retry-after"])
    assert rates.take("Ed", 50).allowed


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


def test_a_proxy_with_ipv4_is_trusted_by_a_server_that_listens_on_ipv6_too(tmp_path):
    try:
        socket.create_server(("::", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    behind = ListenConfig("::", port=0, proxies="10.0.0.2, 127.0.0.0/8")
    with started(service(tmp_path, Settings(per_minute=1)), behind) as server:
        asked = [server.ask("/v1/embeddings", {}, X_Forwarded_For=each).status for each in ("192.0.2.1", "192.0.2.2")]
    assert 429 not in asked


@pytest.mark.parametrize("proxies", ["localhost", "127.0.0.1:443", "127.0.0.1;10.0.0.2", "10.0.0.2, 10.0.0.1/8"])
def test_a_proxy_without_a_valid_address_is_refused(proxies):
    with pytest.raises(DataError, match=r"--proxy .*: write IP addresses"):
        ListenConfig(proxies=proxies)


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
                until(lambda: server.service.engine.load().running, 10)
                time.sleep(0.4)
            assert server.idle()
            until(lambda before=before: used.today("127.0.0.1") > before, 2)
            assert used.today("127.0.0.1") > before + 5
            before = used.today("127.0.0.1")


SAFE = {"keys_needed": True, "per_minute": 60}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    folder = tmp_path / "store"
    Keys(SQLiteDatabase(folder)).create("Ann")
    return folder


def unsafe(store, settings, place, now=None):
    keys = Keys(SQLiteDatabase(store)).all()
    found = findings(settings, place, keys, store, now or keys[0].created)
    assert [finding.verdict for finding in found] == sorted(
        (finding.verdict for finding in found), key=["unsafe", "note", "good"].index
    )
    return [finding.sentence for finding in found if finding.verdict == "unsafe"]


def test_behind_a_proxy_with_keys_and_a_rate_all_is_well(store):
    assert unsafe(store, Settings(**SAFE), ListenConfig("0.0.0.0", proxies="10.0.0.2")) == []
    assert unsafe(store, Settings(), ListenConfig()) == []


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"keys_needed": False}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "no key is required"),
        ({"per_minute": 0}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "--per-minute"),
        ({}, ListenConfig("0.0.0.0"), "sent unencrypted"),
        ({}, ListenConfig("0.0.0.0", proxies="*"), "pose as a proxy"),
        ({"origins": ("*",)}, ListenConfig("0.0.0.0", proxies="10.0.0.2"), "--cors"),
        ({"log_text": True}, ListenConfig(), "--log-text"),
        ({"bare_chat": True}, ListenConfig(), "every caller can use /v1/completions (--raw-chat)"),
        ({"keep_days": 0}, ListenConfig(), "--keep-days"),
    ],
)
def test_each_unsafe_thing_is_named(store, changes, place, said):
    (sentence,) = unsafe(store, Settings(**(SAFE | changes)), place)
    assert said in sentence


@pytest.mark.parametrize(
    ("url", "variable", "is_safe"),
    [
        ("postgresql:///answers", "", True),
        ("postgresql://u@localhost/answers", "", True),
        ("postgresql:///answers?host=/run/postgresql", "", True),
        ("postgresql://u@db.example.org/answers?sslmode=verify-full", "", True),
        ("postgresql://u@db.example.org/answers", "", False),
        ("postgresql:///answers?host=db.example.org", "", False),
        ("postgresql:///answers", "db.example.org", False),
    ],
)
def test_a_database_on_another_machine_needs_tls(monkeypatch, url, variable, is_safe):
    monkeypatch.setenv("PGHOST", variable)
    found = findings(Settings(**SAFE), ListenConfig(), [], url, 0)
    assert any("might not use TLS" in finding.sentence for finding in found) is not is_safe


def test_a_missing_classifier_is_unsafe(store):
    found = findings(
        Settings(**SAFE), ListenConfig(), Keys(SQLiteDatabase(store)).all(), store, 0, "onnxruntime isn't installed."
    )
    (finding,) = [each for each in found if each.verdict == "unsafe"]
    assert "no classifier" in finding.sentence
    assert "onnxruntime isn't installed." in finding.sentence


def test_files_that_others_may_read_and_the_superuser(store, monkeypatch):
    store.chmod(0o755)
    (sentence,) = unsafe(store, Settings(), ListenConfig())
    assert f"chmod go= {store}" in sentence
    store.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (sentence,) = unsafe(store, Settings(), ListenConfig())
    assert "runs as root" in sentence


def test_the_limits_of_all_keys_are_a_rate_limit(store):
    keys = Keys(SQLiteDatabase(store))
    place = ListenConfig("0.0.0.0", proxies="10.0.0.2")
    keys.create("Bo", per_minute=30)
    (sentence,) = unsafe(store, Settings(keys_needed=True), place)  # Ann's key has no limit
    assert "--per-minute" in sentence
    keys.revoke(keys.all()[0].id)
    assert [key.name for key in keys.all() if key.state == "usable"] == ["Bo"]
    assert unsafe(store, Settings(keys_needed=True), place) == []
    # Callers without a key have no limit.
    assert any("--per-minute" in sentence for sentence in unsafe(store, Settings(keys_needed=False), place))


def test_keys_none_of_which_is_usable(store):
    keys = Keys(SQLiteDatabase(store))
    keys.revoke(keys.all()[0].id)
    (sentence,) = unsafe(store, Settings(**SAFE), ListenConfig("0.0.0.0", proxies="10.0.0.2"))
    assert "none is usable" in sentence


def test_old_and_mighty_keys_are_noted(store):
    keys = Keys(SQLiteDatabase(store))
    made, _ = keys.create("Bo", ["admin"])
    other, _ = keys.create("Cy", ["feedback", "admin"])
    found = findings(Settings(**SAFE), ListenConfig(), keys.all(), store, made.created + 400 * 86_400)
    notes = " ".join(finding.sentence for finding in found if finding.verdict == "note")
    assert notes.count("over a year old") == 3
    assert f"The key {made.id} (Bo) can open /admin (scope admin)." in notes
    assert f"The key {other.id} (Cy) can open /admin and delete anyone's answers (scope admin)." in notes


def test_what_reaches_the_model_without_triage_is_named(store):
    keys = Keys(SQLiteDatabase(store))

    def told():
        return {
            each.sentence: each.verdict for each in findings(Settings(**SAFE), ListenConfig(), keys.all(), store, 0.0)
        }

    nobody = "Triage can't be bypassed: no key has the raw scope."
    assert told()[nobody] == "good"
    made, _ = keys.create("Harness", ["generate", "raw"])
    (named,) = (each for each in told() if "scope raw" in each)
    assert told()[named] == "note"
    assert f"The key {made.id} (Harness) can bypass triage" in named
    keys.revoke(made.id)
    assert nobody in told()
