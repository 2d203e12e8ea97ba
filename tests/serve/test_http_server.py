"""`meditune serve`, `meditune keys` and `meditune answers` as a user meets them, in a process of their own.

Connections that would hang a server.

Faults of the server's own: told as such, without what is inside, and logged as JSON.

From names to a service.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meditune.errors import EngineError
from meditune.serve.http_server import ListenConfig
from meditune.serve.settings import Settings
from meditune.serve.startup import ServerOptions, lockout, name_of, open_service, safe
from meditune.serve.version_router import fingerprint
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests import loopback_server, tiny
from tests.commands import meditune
from tests.loopback_server import served, slowed
from tests.serve.test_auth import LOGGER, Lines
from tests.waiting import until


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "small")


@contextmanager
def started(model, store, *words):
    """The server's process and its address; killed at the end of the block."""
    command = [sys.executable, "-m", "meditune", "serve", str(model), "--port", "0", "--store", str(store)]
    process = subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def asked(address, path, body=None, key=""):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=30) as response:
        return json.loads(response.read())


def chat(address, key="", tokens=4):
    messages = [{"role": "user", "content": "Does it help?"}]
    body = {"model": "small", "messages": messages, "max_tokens": tokens, "temperature": 1.5, "seed": 3}
    return asked(address, "v1/chat/completions", body, key)


def test_keys_from_making_to_revoking_and_an_end_that_waits(model, tmp_path):
    store = tmp_path / "store"
    made = meditune("keys", "create", "Ann", "--store", store)
    key = made.last
    assert key.startswith("mt-")
    id = key.split("-")[1]
    listed = meditune("keys", "list", "--store", store).out
    assert id in listed
    assert "usable" in listed
    assert key.split("-", 2)[2] not in listed
    with started(model, store, "--host", "0.0.0.0") as (process, address):
        address = f"http://127.0.0.1:{address.rpartition(':')[2]}"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            chat(address)
        answer = chat(address, key)["id"]
        arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert key not in arguments
        newest = meditune("keys", "rotate", id, "--grace-hours", 0, "--store", store).last
        with pytest.raises(urllib.error.HTTPError, match="401"):
            chat(address, key)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(chat(address, newest, tokens=600)))
        asking.start()
        time.sleep(0.2)
        assert meditune("keys", "revoke", id, "--store", store).out == f"{id} is revoked.\n"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            chat(address, newest)
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
        asking.join()
    assert answers[0]["usage"]["completion_tokens"] > 100
    assert process.returncode == 0
    assert "all running answers were finished" in out
    assert "Traceback" not in log
    assert newest.split("-", 2)[2] not in log
    assert key.split("-", 2)[2] not in log
    written = meditune("answers", "export", "-o", tmp_path / "answers.jsonl", "--store", store)
    assert "2 answers" in written.out
    assert answer in (tmp_path / "answers.jsonl").read_text()
    assert stat.S_IMODE((tmp_path / "answers.jsonl").stat().st_mode) == 0o600
    meditune("answers", "delete", answer, "--store", store).ok()
    meditune("answers", "delete", answer, "--store", store).refused(3, f"no answer '{answer}'")
    assert meditune("answers", "prune", "--days", 0, "--store", store).out == "1 answers deleted.\n"


def test_what_the_end_breaks_off_is_counted_and_by_default_nothing_need_be(tmp_path):
    assert Settings(answer_s=200).ending_s > 200
    with ThreadPoolExecutor() as pool:
        with served(tmp_path, Settings(grace_s=1), loaded=slowed(0.02)) as server:
            broken_off = pool.submit(server.chat, max_tokens=900)
            until(lambda: server.service.admission.active)
            assert server.chat().status == 200
        assert broken_off.exception() is not None or broken_off.result().status >= 500
    assert server.service.aborted_requests == 1


def test_what_cant_be_served_is_said(model, tmp_path):
    store = ("--store", tmp_path / "store")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        meditune("serve", model, "--port", port, *store).refused(
            1, f"Can't listen on 127.0.0.1:{port}", "Choose another"
        )
    meditune("serve", model, "--host", "a..b", *store).refused(1, "--host a..b: this isn't a host name or an address")
    meditune("serve", model, "--timeout", "inf", *store).refused(2, "--timeout", "86400")
    meditune("serve", model, "--keep-days", 1_000_000, *store).refused(2, "--keep-days", "36500")
    free = ("--port", 0, *store)
    meditune("serve", tmp_path / "nothing", *free).refused(4, "no such folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: quickstart\n")
    meditune("serve", tmp_path / "run", *free).refused(4, "contains no model", "training hasn't finished")
    meditune("serve", model, "--engine", "transfomers", *free).refused(4, "Did you mean transformers?")


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """A certificate with its private key, another private key, and a file that is neither."""
    folder = tmp_path_factory.mktemp("tls")
    own, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    for name, key in (("own", own), ("other", other)):
        plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.key").write_bytes(key.private_bytes(*plain))
    name, now = x509.Name([]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, own.public_key(), 1, now, now + timedelta(days=1)).sign(own, SHA256())
    (folder / "own.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "junk.pem").write_text("hello")
    return folder


@pytest.mark.parametrize(
    ("certificate", "key", "named"),
    [
        ("", "own.key", "own.key has no certificate"),
        ("junk.pem", "own.key", "junk.pem contains no TLS certificate"),
        ("own.pem", "", "own.pem contains no private key"),
        ("own.pem", "junk.pem", "junk.pem contains no private key"),
        ("own.pem", "other.key", "other.key contains no private key that fits"),
    ],
)
def test_tls_files_that_cannot_be_used_are_named_before_the_model_is_opened(pem, tmp_path, certificate, key, named):
    chosen = ("--certificate", pem / certificate) * bool(certificate) + ("--private-key", pem / key) * bool(key)
    words = ("serve", tmp_path / "nothing", "--port", 0, "--store", tmp_path / "store", *chosen)
    meditune(*words).refused(1, named)
    checked = meditune(*words, "--check")
    assert checked.code == 5
    assert named in checked.out.splitlines()[0]
    assert "encrypted with TLS" not in checked.out


def test_a_certificate_with_its_private_key_is_good(pem, model, tmp_path):
    words = ("--store", tmp_path / "store", "--certificate", pem / "own.pem", "--private-key", pem / "own.key")
    assert "good    Requests are encrypted with TLS." in meditune("serve", model, *words, "--check").out


def test_a_tls_handshake_that_never_comes_is_not_awaited_for_long(pem, tmp_path):
    place = ListenConfig(port=0, certificate=pem / "own.pem", private_key=pem / "own.key")
    service = loopback_server.service(tmp_path, Settings(header_s=0.3))
    with loopback_server.started(service, place) as server, server.raw() as line:
        begun = time.monotonic()
        assert line.recv(1) == b""
        assert time.monotonic() - begun < 5


def test_without_prometheus_the_way_out_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setattr("meditune.serve.http_server.find_spec", lambda _: None)
    meditune("serve", model, "--store", tmp_path / "s").refused(4, "[serve]'")


def test_check_says_what_is_unsafe_and_ends_so(model, tmp_path):
    store = ("--store", tmp_path / "store")
    unsafe = meditune("serve", model, "--check", "--host", "0.0.0.0", "--allow-anonymous", "--log-text", *store)
    assert unsafe.code == 5
    for said in ("no key is required", "unencrypted", "--per-minute", "--log-text"):
        assert f"unsafe  {said}" in unsafe.out or said in unsafe.out
    assert unsafe.out.splitlines()[0].startswith("unsafe")
    assert not (tmp_path / "store").exists()


def test_origins_may_end_in_a_slash_but_not_in_a_path(model, tmp_path):
    words = ("serve", model, "--check", "--store", tmp_path / "store", "--cors")
    assert "Pages of https://clinic.example can call" in meditune(*words, "https://Clinic.example/").out
    for wrong in ("https://clinic.example/chat", "clinic.example"):
        meditune(*words, wrong).refused(3, f"--cors {wrong}: write a scheme and a host")


def test_beyond_this_machine_nobody_gets_in_before_there_is_a_key(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    everywhere = ListenConfig("0.0.0.0")
    settings = safe(Settings(), everywhere, keys, allow_anonymous=False)
    assert settings.keys_needed
    assert "meditune keys create NAME" in lockout(settings, keys)
    assert not safe(Settings(), everywhere, keys, allow_anonymous=True).keys_needed
    with served(tmp_path / "open", safe(Settings(), everywhere, keys, allow_anonymous=True)) as server:
        assert server.chat().status == 200
        for closed in ("/v1/admin/status", "/metrics"):
            assert server.ask(closed).error()["code"] == "missing_scope"
    here = safe(Settings(), ListenConfig(), keys, allow_anonymous=False)
    assert not here.keys_needed
    assert "127.0.0.1" in here.hosts
    keys.create("Ann")
    assert lockout(settings, keys) == ""
    for place in (everywhere, ListenConfig()):
        assert safe(Settings(), place, keys, allow_anonymous=True).keys_needed


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/model", "model"),
        ("/model/model", "model"),
        ("/model/export/openvino", "model"),
        ("/models/gout", "gout"),
        ("/runs/gout/model", "gout"),
        ("/runs/gout/export/openvino", "gout"),
    ],
)
def test_a_model_is_named_after_its_run_or_the_folder_that_a_container_mounts(folder, name):
    assert name_of(Path(folder)) == name


def test_drift_is_watched_beside_the_server_and_kept_at_its_end(model, tmp_path):
    from meditune.operate.drift import drift_detection, reference
    from meditune.operate.drift.drift_detection import RequestSource
    from meditune.store.overview import overview
    from tests.operate.drift.test_drift_detection import requests, write_facts

    good = write_facts(tmp_path / "good.jsonl", requests(300, 1))
    made = tmp_path / "reference"
    reference.save(drift_detection.fit_reference(RequestSource(good), None, None, 17), made)
    options = ("--drift", made, "--drift-interval", 1, "--price", "1,2", "--hourly-cost", 3)
    with started(model, tmp_path / "store", *options) as (process, address):
        chat(address)
        base = SQLiteDatabase(tmp_path / "store")
        until(lambda: any(each.get("requests") for each in overview(base)["drift"]), 30)
        (*_, found) = overview(base)["drift"]
        assert (found["problem"], found["requests"]) == ("", 1)
        with urllib.request.urlopen(f"{address}metrics", timeout=10) as response:
            assert "meditune_drift_checked 1.0" in response.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert made.with_name("reference.state").exists()
    refused = meditune("serve", model, "--price", "dear", "--store", tmp_path / "store")
    assert "--price dear: write two numbers" in refused.err


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    settings = Settings(header_s=0.3, body_s=0.5, idle_s=1, connections=6)
    with served(tmp_path_factory.mktemp("store"), settings) as server:
        yield server


@pytest.fixture
def patient(tmp_path):
    """A server that closes connections only because there are too many."""
    with served(tmp_path / "store", Settings(header_s=8, body_s=8, idle_s=8, connections=6)) as server:
        yield server


def opened(server, count):
    """So many connections, which the server has accepted in this order, and no others."""
    connections = server.server.server_state.connections
    until(lambda: not connections)
    lines = []
    for number in range(count):
        lines.append(server.raw())
        until(lambda number=number: len(connections) == number + 1)
    return lines


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


def test_the_time_for_a_head_begins_with_its_first_byte(tmp_path):
    settings = Settings(header_s=0.3, idle_s=60)
    with served(tmp_path / "store", settings) as server, server.raw() as busy, server.raw() as slow:
        time.sleep(0.6)  # clients that get no processor time after they have connected
        busy.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in said(busy)
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert b" 408 " in said(slow)


def test_a_body_that_never_comes(hasty):
    with hasty.raw() as line:
        line.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 10\r\n\r\n{")
        assert b" 408 " in line.recv(500)


def test_a_body_that_goes_on_slowly_after_the_response_ends_the_connection(hasty):
    with hasty.raw() as line:
        line.sendall(b"GET /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n")
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            while time.monotonic() - begun < 5:
                line.sendall(b"x")
                time.sleep(0.02)


def test_a_connection_whose_body_is_not_complete_after_the_response_makes_room(patient):
    lines = opened(patient, 6)
    try:
        for line in lines:
            line.sendall(b"GET /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert b" 404 " in line.recv(65536)
            line.sendall(b"x")
        time.sleep(0.1)
        assert patient.ask("/healthz").status == 200
    finally:
        for line in lines:
            line.close()


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


def test_too_many_connections_close_the_one_that_is_idle_longest(patient):
    lines = opened(patient, 6)
    try:
        lines[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in lines[0].recv(65536)
        assert patient.ask("/healthz").status == 200
        assert b" 503 " in said(lines[1])
    finally:
        for line in lines:
            line.close()


def test_a_connection_that_waits_for_its_next_request_is_closed_without_a_word(patient):
    with opened(patient, 1)[0] as kept:
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # head and body may arrive apart
            answer += kept.recv(65536)
        lines = [patient.raw() for _ in range(6)]
        try:
            assert said(kept) == b""
        finally:
            for line in lines:
                line.close()


def test_one_connection_more_is_refused_where_none_is_idle(patient):
    lines = opened(patient, 6)
    try:
        for line in lines:
            line.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.1)
        with patient.raw() as one_more:
            assert b" 503 " in said(one_more)
    finally:
        for line in lines:
            line.close()
    time.sleep(0.1)
    assert patient.ask("/healthz").status == 200


def test_a_connection_that_is_half_open_is_forgotten(hasty):
    with hasty.raw() as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        line.recv(65536)
        line.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        said(line)
        assert time.monotonic() - begun < 5


FAILING = """
import logging, threading
from meditune.observability import set_up_logging
set_up_logging()
try:
    raise ValueError("secretword")
except ValueError:
    logging.getLogger("meditune.engines.scheduler").exception("A step failed")
thread = threading.Thread(target=lambda: int("secretword"))
thread.start()
thread.join()
"""


def test_faults_are_503_and_tell_no_paths_and_addresses(tmp_path):
    lines = Lines()
    LOGGER.addHandler(lines)
    with served(tmp_path, Settings(keep_text=True)) as server:
        base = server.service.answers.base
        kept, base.path = base.path, tmp_path / "gone" / "store"
        store = server.chat()
        base.path = kept

        def fails(*_):
            raise EngineError("No server answers at http://10.1.2.3:8000/v1")

        server.service.engine.start = fails
        engine = server.chat()
    LOGGER.removeHandler(lines)
    for reply in (store, engine):
        assert reply.status == 503
        assert reply.error()["type"] == "server_error"
        assert "gone" not in reply.text
        assert "10.1.2.3" not in reply.text
    failed = [json.loads(line) for line in lines.lines]
    assert {"StoreError", "EngineError"} <= {each.get("exception") for each in failed}


def test_an_answer_that_the_engine_breaks_off_is_no_finished_one(tmp_path):
    with served(tmp_path, Settings(bare_chat=True), slowed(0.02)) as server, ThreadPoolExecutor() as pool:
        whole = pool.submit(server.chat, max_tokens=400)
        streamed = pool.submit(server.chat, max_tokens=400, stream=True)
        body = {"model": "tiny", "prompt": "Does", "max_tokens": 400}
        text = pool.submit(server.ask, "/v1/completions", body)
        streamed_text = pool.submit(server.ask, "/v1/completions", body | {"stream": True})
        until(lambda: server.service.admission.active == 4)
        time.sleep(0.2)
        server.service.engine.close()
        assert (whole.result().status, text.result().status) == (503, 503)
        for told in (streamed.result().text, streamed_text.result().text):
            assert "broken_off" in told
            assert '"finish_reason": "stop"' not in told


def test_engines_and_threads_log_json_without_messages():
    ran = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [each["exception"] for each in said] == ["ValueError", "ValueError"]
    assert "secretword" not in ran.stderr


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/gout", "gout"), ("runs/gout/model", "gout"), ("runs/gout/export/merged", "gout"), ("model", "here")],
)
def test_a_model_is_called_by_its_run(tmp_path, folder, name):
    model = tiny.save(tmp_path / "here" / folder)
    service = open_service(ServerOptions(str(model)), Settings(), tmp_path / "store")
    service.engine.close()
    assert service.served.name == name
    named = open_service(ServerOptions(str(model), name="mine"), Settings(), tmp_path / "store")
    named.engine.close()
    assert named.served.name == "mine"
    assert named.served.version == service.served.version != "unknown"


def test_a_version_is_that_of_the_weights(tmp_path):
    one, same, other = (tiny.save(tmp_path / name / "model") for name in ("one", "same", "other"))
    tiny.model("llama", seed=1).save_pretrained(other)
    assert fingerprint(one) == fingerprint(same) == fingerprint(one.parent)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one / "model.safetensors") not in {"", fingerprint(one)}
    (same / "prompt.json").write_text("{}")
    assert fingerprint(one) != fingerprint(same)
    (tmp_path / "empty").mkdir()
    assert fingerprint(tmp_path / "empty") == ""
