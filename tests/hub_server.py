"""A hub on this machine: the parts of the Hugging Face hub's HTTP API that an upload of a data set or a model needs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_invented"


@dataclass
class Hub:
    """What arrived."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256, before a commit names them."""
    large: tuple[str, ...] = ()
    """Endings of what goes the way of large files."""
    private: bool | None = None
    """Whether the repository was there before, and private."""
    refuses: int = 0
    """The status that every commit is answered with, if any."""


@contextlib.contextmanager
def hub(**settings: Any) -> Iterator[Hub]:
    """A running hub."""
    state = Hub(**settings)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(f"POST {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            if self.path == "/api/validate-yaml":
                text = json.loads(body)["content"]
                fine = isinstance(yaml.safe_load(text.split("---")[1]), dict)
                return self._answer(200 if fine else 400, {"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                state.created.append(json.loads(body))
                name = "/".join(filter(None, (state.created[-1].get("organization"), state.created[-1]["name"])))
                return self._answer(200, {"url": f"{state.url}/datasets/{name}"})
            if "/preupload/" in self.path:
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(state.large) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                return self._answer(200, {"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{state.url}/store/{each['oid']}", "header": {}}}}
                    for each in json.loads(body)["objects"]
                ]
                return self._answer(200, {"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                if state.refuses:
                    return self._answer(state.refuses, {"error": "You don't have the rights to write here"})
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        state.files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        state.files[value["path"]] = state.stored[value["oid"]]
                made = {"success": True, "commitOid": "a" * 40, "commitUrl": f"{state.url}/datasets/x/y/commit/a"}
                return self._answer(200, made)
            return self._answer(404, {"error": f"no {self.path}"})

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append("PUT /store")
            oid = self.path.rsplit("/", 1)[1]
            assert hashlib.sha256(body).hexdigest() == oid
            state.stored[oid] = body
            self._answer(200, {})

        def do_GET(self) -> None:
            state.requests.append(f"GET {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            if self.path.startswith(("/api/datasets/clinic/questions", "/api/models/clinic/answers")):
                private = state.private if state.private is not None else state.created[-1]["visibility"] == "private"
                return self._answer(200, {"id": self.path.split("/", 3)[3], "private": private, "sha": "a" * 40})
            return self._answer(404, {"error": f"no {self.path}"})

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
