"""A real server on the loopback with a tiny model, in a thread of the test's process, and a browser for its pages.

Chromium is found on the PATH or through MEDITUNE_BROWSER, never fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from meditune.config.data_options import PromptFormat
from meditune.engines.transformers_engine import TransformersEngine
from meditune.models.load import LoadedModel
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import ListenConfig, listening, server_of
from meditune.serve.service import Served, Service
from meditune.serve.settings import Settings
from meditune.store import StoreLocation as StorePlace
from meditune.store import open_store
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys, Usage
from tests import tiny

if TYPE_CHECKING:
    from meditune.serve.http_server import Extend

MODEL = "tiny"


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def error(self) -> dict[str, Any]:
        """The error object, of OpenAI's shape."""
        (name,) = self.json
        assert name == "error"
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


@dataclass
class Running:
    """A server that runs."""

    service: Service
    port: int
    server: Any
    thread: threading.Thread

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any = None, method: str | None = None, key: str = "", **headers: str) -> Reply:
        """One request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            named["Authorization"] = f"Bearer {key}"
        if data is not None:
            named.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.address + path, data, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Reply(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read().decode())

    def chat(self, text: str = "Does the drug help?", key: str = "", **more: Any) -> Reply:
        """A chat of one message."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4} | more
        return self.ask("/v1/chat/completions", body, key=key)

    def figure(self, name: str, key: str = "") -> float:
        """A metric's value, by its name with labels; 0 where it isn't there."""
        lines = self.ask("/metrics", key=key).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def raw(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether the engine has nothing to do within some seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            load = self.service.engine.load()
            if not load.running and not load.waiting and not self.service.admission.active:
                return True
            time.sleep(0.01)
        return False


def slowed(seconds: float = 0.005) -> LoadedModel:
    """A tiny model that takes its time for each token."""
    loaded = tiny.loaded()
    step = loaded.model.forward

    def slower(*words: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return step(*words, **named)

    loaded.model.forward = slower
    return loaded


def service(
    store: StorePlace,
    settings: Settings | None = None,
    loaded: LoadedModel | None = None,
    form: PromptFormat | None = None,
    index: str = "",
    **more: Any,
) -> Service:
    """A service around a tiny model."""
    settings = settings or Settings()
    engine = TransformersEngine(loaded or tiny.loaded())
    base = open_store(store)
    return Service(
        Served(MODEL, "v1", 1_700_000_000, index),
        engine,
        ChatPrompts(engine.tokenizer, form, engine.context_tokens),
        settings,
        Authenticator(settings, Keys(base), Usage(base)),
        Answers(base),
        **more,
    )


@contextmanager
def served(
    store: StorePlace,
    settings: Settings | None = None,
    loaded: LoadedModel | None = None,
    form: PromptFormat | None = None,
    **more: Any,
) -> Iterator[Running]:
    """A server for the block; at its end it is told to end, and must."""
    with started(service(store, settings, loaded, form, **more)) as running:
        yield running


@contextmanager
def started(made: Service, place: ListenConfig | None = None, extend: Extend | None = None) -> Iterator[Running]:
    """The same around a service that is there already."""
    place = place or ListenConfig(port=0)
    sock = listening(place)
    server = server_of(made, place, extend)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server didn't start"
        time.sleep(0.005)
    running = Running(made, sock.getsockname()[1], server, thread)
    try:
        yield running
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        sock.close()
        assert not thread.is_alive(), "the server didn't end"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


def browser_path() -> str | None:
    """Where the browser is; None where there is none."""
    return os.environ.get("MEDITUNE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    path = browser_path()
    if not path:
        pytest.skip(f"no browser: {', '.join(BROWSERS)} aren't on the PATH and MEDITUNE_BROWSER isn't set")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    with sync.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=list(BROWSER_OPTIONS))
        yield browser
        browser.close()
