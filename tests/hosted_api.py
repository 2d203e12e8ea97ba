"""A server on loopback that speaks the part of OpenAI's API that fine-tuning and chats need, with its troubles."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.http_servers import Answering, listening

KEY = "sk-test-0123456789abcdef"
DECISIONS = ("yes", "no", "maybe")
LIFE = ("validating_files", "queued", "running", "succeeded")


@dataclass
class Trouble:
    """What befalls the next requests that `match` names ("POST /files")."""

    match: str
    times: int = 1
    heard: bool = False
    """The request is carried out first."""
    status: int | None = None
    """Answer with this status; None breaks the connection off."""
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    partial: bool = False
    """Break off in the middle of the answer."""
    delay: float = 0.0
    act: Callable[[], None] | None = None


@dataclass
class Api:
    """The API's memory, and what it is to do."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each, in order."""
    chats: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    life: tuple[str, ...] = LIFE
    """The states that a job has at each look at it; the last one stays."""
    failure: str = "the file has too few tokens"
    key: str | None = KEY
    likelihoods: bool = True
    refused: tuple[str, ...] = ()
    """Options of a chat that are answered with 400."""
    lists: bool = True
    """Whether files and jobs can be listed."""
    answer: Callable[[str, bool], str] | None = None
    """What a model writes to a prompt, by whether it is tuned; else the base always says yes and the tuned is right."""
    under_way: int = 0
    most_at_once: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def trouble(self, match: str, **facts: Any) -> None:
        """Arrange for a trouble."""
        self.troubles.append(Trouble(match, **facts))

    def count(self, method: str, path: str) -> int:
        """So many requests came."""
        return sum(each == (method, path) for each in self.requests)

    def next_trouble(self, method: str, path: str) -> Trouble | None:
        with self.lock:
            for each in self.troubles:
                if each.times and re.fullmatch(each.match, f"{method} {path}"):
                    each.times -= 1
                    return each
        return None

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""
        with self.lock:
            match [method, *path.strip("/").split("/")]:
                case ["POST", "files"]:
                    return 200, self._upload(body)
                case ["GET", "files"] if self.lists:
                    return 200, page(list(self.files.values()), query)
                case ["POST", "fine_tuning", "jobs"]:
                    return self._create(body)
                case ["GET", "fine_tuning", "jobs"] if self.lists:
                    return 200, page(list(self.jobs.values())[::-1], query)
                case ["GET", "fine_tuning", "jobs", job] if job in self.jobs:
                    return 200, self._look(job)
                case ["GET", "fine_tuning", "jobs", job, "events"] if job in self.jobs:
                    return 200, page(self.events[job][::-1], query)
                case ["POST", "fine_tuning", "jobs", job, "cancel"] if job in self.jobs:
                    self.jobs[job]["status"] = "cancelled"
                    return 200, self.jobs[job]
                case ["POST", "chat", "completions"]:
                    return self._chat(body)
        return error(404, f"Unknown request: {method} {path}")

    def _upload(self, form: dict[str, Any]) -> dict[str, Any]:
        assert form["purpose"] == "fine-tune"
        identifier = f"file-{len(self.files) + 1}"
        content = form["file"]
        self.files[identifier] = {
            **{"id": identifier, "object": "file", "bytes": len(content), "filename": form["filename"]},
            **{"purpose": "fine-tune", "status": "processed", "created_at": 1, "content": content.decode()},
        }
        return public(self.files[identifier])

    def _create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["training_file"] not in self.files:
            return error(400, "invalid training_file")
        hyperparameters = body["method"]["supervised"]["hyperparameters"]
        assert isinstance(hyperparameters["n_epochs"], int)
        identifier = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[identifier] = {
            **{"id": identifier, "object": "fine_tuning.job", "model": body["model"], "status": "validating_files"},
            **{"training_file": body["training_file"], "fine_tuned_model": None, "error": None, "looks": 0},
            **{"method": body["method"], "seed": body["seed"], "created_at": 100, "finished_at": None},
        }
        self.events[identifier] = []
        self._tell(identifier, f"Created fine-tuning job: {identifier}")
        return 200, public(self.jobs[identifier])

    def _look(self, identifier: str) -> dict[str, Any]:
        job = self.jobs[identifier]
        if job["status"] not in {"cancelled", "failed", "succeeded"}:
            job["status"] = self.life[min(job["looks"], len(self.life) - 1)]
            job["looks"] += 1
            if job["status"] == "running":
                for step in range(1, 4):
                    data = {"step": step, "train_loss": 2.0 / step, "total_steps": 3}
                    self._tell(identifier, f"Step {step}/3: training loss={2 / step:.2f}", type="metrics", data=data)
            if job["status"] == "succeeded":
                job |= {"fine_tuned_model": f"ft:{job['model']}:org:meditune:{identifier}", "finished_at": 160}
                job |= {"trained_tokens": 4321}
                self._tell(identifier, "The job has successfully completed")
            if job["status"] == "failed":
                job["error"] = {"code": "invalid_training_file", "message": self.failure, "param": "training_file"}
        return public(job)

    def _tell(self, job: str, message: str, **more: Any) -> None:
        number = len(self.events[job]) + 1
        event = {"id": f"ftevent-{job}-{number}", "object": "fine_tuning.job.event", "level": "info"}
        self.events[job].append({**event, "created_at": number, "message": message, "type": "message", **more})

    def _chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.chats.append(body)
        for option in self.refused:
            if option in body:
                instead = " Use 'max_completion_tokens' instead." if option == "max_tokens" else ""
                return error(400, f"Unsupported parameter: '{option}' isn't supported.{instead}", {"param": option})
        tuned = body["model"].startswith("ft:")
        if tuned and all(job["fine_tuned_model"] != body["model"] for job in self.jobs.values()):
            return error(404, f"The model `{body['model']}` does not exist", {"code": "model_not_found"})
        prompt = body["messages"][-1]["content"]
        text = self.answer(prompt, tuned) if self.answer else usual(prompt, tuned)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
        if body.get("logprobs") and self.likelihoods:
            choice["logprobs"] = {"content": [{"token": text.split(" ")[0], "top_logprobs": candidates(text)}]}
        return 200, {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice | {"finish_reason": "stop"}]}


def usual(prompt: str, tuned: bool) -> str:
    """Both models' answers: the base always decides yes and writes nothing of use, the tuned is right."""
    number = int(re.findall(r"treatment (\d+) help", prompt)[-1])
    if prompt.endswith("Answer:"):
        return DECISIONS[number % 3].capitalize() if tuned else "Yes"
    return f"Own treatment {number} helps with pain in adults." if tuned else "It is hard to say."


def candidates(text: str) -> list[dict[str, Any]]:
    """The likeliest first tokens of a text: itself at 80%, the lower-case labels behind it."""
    shares = {text.split(" ")[0]: 0.8, "yes": 0.08, " no": 0.05, "may": 0.03, "The": 0.01}
    return [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in shares.items()]


def public(thing: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in thing.items() if name not in {"content", "looks"}}


def page(things: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Two objects at a time, so that whoever lists must turn pages."""
    ids = [thing["id"] for thing in things]
    start = ids.index(query["after"]) + 1 if "after" in query else 0
    data = [public(thing) for thing in things[start : start + 2]]
    return {"object": "list", "data": data, "has_more": start + 2 < len(things)}


def error(status: int, message: str, more: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    facts = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return status, {"error": facts | (more or {})}


class Handler(Answering):
    """HTTP around an Api."""

    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self) -> None:
        self._respond("GET")

    def do_POST(self) -> None:
        with self.api.lock:
            self.api.under_way += 1
            self.api.most_at_once = max(self.api.most_at_once, self.api.under_way)
        self._respond("POST")
        with self.api.lock:
            self.api.under_way -= 1

    def _respond(self, method: str) -> None:
        parts = urlsplit(self.path)
        assert parts.path.startswith("/v1/")
        path = parts.path.removeprefix("/v1")
        raw = self.body()
        trouble = self.api.next_trouble(method, path)
        self.api.requests.append((method, path))
        if self.api.key and self.headers.get("Authorization") != f"Bearer {self.api.key}":
            self._send(*error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}."))
            return
        status, answer = 0, {}
        if trouble is None or trouble.heard or trouble.partial:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, answer = self.api.handle(method, path, query, self._body(raw))
        if trouble is not None:
            if trouble.act:
                trouble.act()
            time.sleep(trouble.delay)
            if trouble.status:
                status, answer = error(trouble.status, "The server had a trouble", trouble.error)
            elif not trouble.partial and not trouble.delay:
                self.close_connection = True
                return
        self._send(status, answer, trouble)

    def _send(self, status: int, answer: dict[str, Any], trouble: Trouble | None = None) -> None:
        content = json.dumps(answer).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in (trouble.headers if trouble else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if trouble and trouble.partial else content)
        self.close_connection = bool(trouble and trouble.partial)

    def _body(self, raw: bytes) -> Any:
        kind = self.headers.get("Content-Type") or ""
        if not kind.startswith("multipart/form-data"):
            return json.loads(raw) if raw else None
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        form: dict[str, Any] = {}
        for part in email.message_from_bytes(head + raw, policy=email.policy.HTTP).iter_parts():
            name = part.get_param("name", header="content-disposition")
            content = part.get_payload(decode=True)
            if part.get_filename():
                form |= {str(name): content, "filename": part.get_filename()}
            else:
                form[str(name)] = content.decode().strip()
        return form


@contextlib.contextmanager
def serving(**facts: Any) -> Iterator[Api]:
    """An API on a free port of loopback, until the block ends."""
    api = Api(**facts)
    with listening(type("Bound", (Handler,), {"api": api})) as url:
        api.url = f"{url}/v1"
        yield api
