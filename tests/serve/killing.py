"""Servers to be killed: `python -m tests.serve.killing STORE` starts one for each line that it reads, and tells its id
and port. Everything is imported once and each server is a fork of that, so that many take seconds, not minutes.
"""

from __future__ import annotations

import os
import sys

from meditune.serve.app import app_for
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import Place, listening, server_of
from meditune.serve.service import Served, Service
from meditune.serve.settings import Settings
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys, Usage
from meditune.store.open_store import open_store
from tests.assistant.saying import Saying, assistant_of

os.environ["TOKENIZERS_PARALLELISM"] = "false"


# Made before the first fork: its tokenizer is trained in threads, which a fork has none of and would wait for.
ENGINE = Saying("Rest helps most people.")


def service(store: str) -> Service:
    """A service whose model says always the same; all the rest is real."""
    engine, settings, base = ENGINE, Settings(feedback_per_minute=0), open_store(store)
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
    place = Place(port=0)
    sock = listening(place)
    server = server_of(service(store), place)
    os.write(told, f"server {os.getpid()} {sock.getsockname()[1]}\n".encode())
    server.run(sockets=[sock])


def main() -> None:
    """A server a line."""
    store = sys.argv[1]
    # What is imported late is there before the first fork, too.
    app_for(service(store))
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            serve(store, 1)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
