"""`meditune serve`, `meditune keys` and `meditune answers` as a user meets them, in a process of their own."""

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

import pytest

from meditune.serve.http_server import Place
from meditune.serve.settings import Settings
from meditune.serve.startup import lockout, safe
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys
from meditune.store.database import Base
from tests import tiny
from tests.commands import meditune
from tests.serve.server import served, slowed


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


@pytest.mark.slow
def test_a_kill_under_load_loses_nothing_and_the_server_starts_again(model, tmp_path):
    said = []
    with started(model, tmp_path / "store") as (process, address):

        def say():
            while True:
                try:
                    id = chat(address)["id"]
                    asked(address, "v1/feedback", {"id": id, "rating": "up"})
                except OSError:
                    return
                said.append(id)

        people = [threading.Thread(target=say) for _ in range(3)]
        for each in people:
            each.start()
        while len(said) < 12:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for each in people:
            each.join()
    kept = {each["id"]: each["feedback"] for each in Answers(Base(tmp_path / "store")).exported()}
    assert all(len(kept[id]) == 1 for id in said)
    with started(model, tmp_path / "store") as (_, address):
        asked(address, "v1/feedback", {"id": said[0], "rating": "down"})


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
    assert "every answer that was begun is finished" in out
    assert "Traceback" not in log
    assert newest.split("-", 2)[2] not in log
    assert key.split("-", 2)[2] not in log
    written = meditune("answers", "export", "-o", tmp_path / "answers.jsonl", "--store", store)
    assert "2 answers" in written.out
    assert answer in (tmp_path / "answers.jsonl").read_text()
    assert stat.S_IMODE((tmp_path / "answers.jsonl").stat().st_mode) == 0o600
    assert meditune("answers", "delete", answer, "--store", store).code == 0
    meditune("answers", "delete", answer, "--store", store).refused(3, f"no answer '{answer}'")
    assert meditune("answers", "prune", "--days", 0, "--store", store).out == "1 answers deleted.\n"


def test_what_the_end_breaks_off_is_counted_and_by_default_nothing_need_be(tmp_path):
    assert Settings(answer_s=200).ending_s > 200
    with ThreadPoolExecutor() as pool:
        with served(tmp_path, Settings(grace_s=1), loaded=slowed(0.02)) as server:
            broken_off = pool.submit(server.chat, max_tokens=900)
            while not server.service.admission.inside:
                time.sleep(0.01)
            assert server.chat().status == 200
        assert broken_off.exception() is not None or broken_off.result().status >= 500
    assert server.service.broken_off == 1


def test_what_cant_be_served_is_said(model, tmp_path):
    store = ("--store", tmp_path / "store")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        meditune("serve", model, "--port", port, *store).refused(
            1, f"127.0.0.1:{port} can't be listened on", "Choose another"
        )
    free = ("--port", 0, *store)
    meditune("serve", tmp_path / "nothing", *free).refused(4, "There is no model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: quickstart\n")
    meditune("serve", tmp_path / "run", *free).refused(4, "holds no model", "isn't trained yet")
    meditune("serve", model, "--engine", "transfomers", *free).refused(4, "Did you mean transformers?")


def test_without_prometheus_the_way_out_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setattr("meditune.serve.http_server.find_spec", lambda _: None)
    meditune("serve", model, "--store", tmp_path / "s").refused(4, "[serve]'")


def test_check_says_what_is_unsafe_and_ends_so(model, tmp_path):
    store = ("--store", tmp_path / "store")
    unsafe = meditune("serve", model, "--check", "--host", "0.0.0.0", "--open", "--log-text", *store)
    assert unsafe.code == 5
    for said in ("nobody needs a key", "unencrypted", "--per-minute", "--log-text"):
        assert f"unsafe  {said}" in unsafe.out or said in unsafe.out
    assert unsafe.out.splitlines()[0].startswith("unsafe")
    assert not (tmp_path / "store").exists()


def test_beyond_this_machine_nobody_gets_in_before_there_is_a_key(tmp_path):
    keys = Keys(Base(tmp_path))
    everywhere = Place("0.0.0.0")
    settings = safe(Settings(), everywhere, keys, open_to_all=False)
    assert settings.keys_needed
    assert "meditune keys create NAME" in lockout(settings, keys)
    assert not safe(Settings(), everywhere, keys, open_to_all=True).keys_needed
    with served(tmp_path / "open", safe(Settings(), everywhere, keys, open_to_all=True)) as server:
        assert server.chat().status == 200
        for closed in ("/v1/admin/status", "/metrics"):
            assert server.ask(closed).error()["code"] == "missing_scope"
    here = safe(Settings(), Place(), keys, open_to_all=False)
    assert not here.keys_needed
    assert "127.0.0.1" in here.hosts
    keys.create("Ann")
    assert lockout(settings, keys) == ""
    for place in (everywhere, Place()):
        assert safe(Settings(), place, keys, open_to_all=True).keys_needed


def test_drift_is_watched_beside_the_server_and_kept_at_its_end(model, tmp_path):
    from meditune.operate.drift import check, reference
    from meditune.operate.drift.check import Source
    from meditune.store.overview import overview
    from tests.operate.drift.streams import requests, write_facts

    good = write_facts(tmp_path / "good.jsonl", requests(300, 1))
    made = tmp_path / "reference"
    reference.save(check.fitted(Source(good), None, None, 17), made)
    options = ("--drift", made, "--drift-every", 1, "--price", "1,2", "--hourly", 3)
    with started(model, tmp_path / "store", *options) as (process, address):
        chat(address)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            (*_, found) = overview(Base(tmp_path / "store"))["drift"] or [{}]
            if found.get("requests"):
                break
            time.sleep(0.2)
        assert (found["problem"], found["requests"]) == ("", 1)
        with urllib.request.urlopen(f"{address}metrics", timeout=10) as response:
            assert "meditune_drift_checked 1.0" in response.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert made.with_name("reference.state").exists()
    refused = meditune("serve", model, "--price", "dear", "--store", tmp_path / "store")
    assert "--price dear: write two numbers" in refused.err
