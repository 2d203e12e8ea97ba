"""Real servers killed in the middle of their work: whatever a client was told of is in the store.

`python -m tests.serve.test_killed FOLDER` starts a server on the store that each line names, and tells its id and port.
Everything is imported once and each server is a fork of that, so that many take seconds, not minutes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from functools import cache
from pathlib import Path

import pytest

from meditune.serve.app import app_for
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import ListenConfig, listening, server_of
from meditune.serve.service import Served, Service
from meditune.serve.settings import Settings
from meditune.store import open_store
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys, Usage
from tests.assistants import ScriptedEngine, assistant_of

KILLS = 10
CLIENTS = 3


@cache
def scripted_engine() -> ScriptedEngine:
    """An engine that all servers share, as its tokenizer is trained in threads, which a fork has none of."""
    return ScriptedEngine("Rest helps most people.")


def service(store: str) -> Service:
    """A service whose model says always the same; all the rest is real."""
    engine, settings, base = scripted_engine(), Settings(feedback_per_minute=0), open_store(store)
    return Service(
        Served("saying", "v1", 1_700_000_000, "c0ffee"),
        engine,
        ChatPrompts(engine.tokenizer, None, engine.context_tokens),
        settings,
        Authenticator(settings, Keys(base), Usage(base)),
        Answers(base),
        assistant_of(engine),
    )


def serve(store: str, told: int) -> None:
    """Serve until killed."""
    place = ListenConfig(port=0)
    sock = listening(place)
    server = server_of(service(store), place)
    os.write(told, f"server {os.getpid()} {sock.getsockname()[1]}\n".encode())
    server.run(sockets=[sock])


def main() -> None:
    """A server a line."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # What is imported late is there before the first fork, too, and so is the engine.
    app_for(service(sys.argv[1]))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            serve(line.strip(), 1)
            os._exit(0)
        os.waitpid(child, 0)


class Servers:
    """Servers, one after the other."""

    def __init__(self, folder):
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.test_killed", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": f"{root}/src:{root}"},
        )

    def start(self, store):
        """The id and port of one on this store, once it listens."""
        self.process.stdin.write(f"{store}\n")
        self.process.stdin.flush()
        # Libraries print as they please while they are imported.
        words = next(line.split() for line in self.process.stdout if line.startswith("server "))
        return int(words[1]), int(words[2])

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def said(port, path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def ask_until_killed(port, known, name):
    """Ask and judge; `known` gets what was answered: an id, and what was said of it once that was taken."""
    number = 0
    while True:
        number += 1
        comment = f"{name} said {number}"  # with hyphens alone, some would be masked as dates
        try:
            question = f"Does rest help with a cold? {number}"
            chat = {"model": "saying", "messages": [{"role": "user", "content": question}]}
            answer = said(port, *(("v1/chat/completions", chat) if number % 2 else ("v1/ask", {"question": question})))
            id = answer["id"]
            known[id] = None
            said(port, "v1/feedback", {"id": id, "rating": "down", "correction": comment})
            known[id] = comment
        except (OSError, ValueError, http.client.HTTPException):
            return


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    made = Servers(tmp_path_factory.mktemp("warm"))
    yield made
    made.end()


@pytest.mark.slow
def test_what_was_told_is_there_after_every_kill(servers, store):
    rng = random.Random(5)
    known: dict[str, str | None] = {}
    for kill in range(KILLS):
        id, port = servers.start(store)
        before = len(known)
        clients = [
            threading.Thread(target=ask_until_killed, args=(port, known, f"{kill}-{client}"))
            for client in range(CLIENTS)
        ]
        for each in clients:
            each.start()
        until = time.monotonic() + 30
        while len(known) == before and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.25))
        os.kill(id, signal.SIGKILL)
        for each in clients:
            each.join()
        assert len(known) > before, "the server answered nothing before it was killed"
    kept = {each["id"]: each for each in Answers(open_store(store)).exported()}
    assert len(known) >= KILLS
    assert sum(comment is not None for comment in known.values()) >= KILLS / 2
    for id, comment in known.items():
        assert (kept[id]["model"], kept[id]["index_content"]) == ("saying v1", "c0ffee")
        if comment is not None:
            assert [each["correction"] for each in kept[id]["feedback"]] == [comment]
    if store.startswith("/"):
        with open_store(store).opened() as base:
            assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


if __name__ == "__main__":
    main()
