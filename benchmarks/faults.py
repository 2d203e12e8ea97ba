"""Inject faults into a real server while a few users ask questions, and report what the users got and what was lost.

    python benchmarks/faults.py runs/quickstart --index library
    python benchmarks/faults.py runs/quickstart --index library --faults engine-killed disk-full --users 4
    python benchmarks/faults.py runs/quickstart --index library --faults index-replaced --rebuild --source medquad
    python benchmarks/faults.py runs/quickstart --index library --faults version-promoted --postgresql
    python benchmarks/faults.py runs/quickstart --index library --faults server-killed --servers 2
    python benchmarks/faults.py runs/quickstart --index library --faults index-replaced --servers 2 --object-storage

For each fault, a server starts with an empty store that keeps texts (`--keep-text`), so each reply with status 200
confirms that the answer is stored. Each user asks the questions of RUN/data/test.jsonl one after the other, a third of
them as streams, sends feedback on every second answer, and deletes every fourth answer. The fault is injected while
they ask. Before that, a server without faults answers each question once; an answer is wrong if it is empty, is cut
off, cites a passage that it doesn't show, has other sources than the undisturbed answer, or belongs to another
question. Confirmed answers, feedback and deletions, and the order of each user's answers, are looked up in the store
after the server has ended. `Normal again` is the time from the injection to the first correct answer to a question
asked after the injection, or after the last request that failed. The server's log goes to --logs. A disk that is full
is a small tmpfs, or without the right to mount one, a limit on the size of the server's files (RLIMIT_FSIZE).
PostgreSQL (stopped, or with --postgresql the store of every fault) needs its programs (initdb) and the package psycopg.
The faults of a registry serve RUN as two versions of a registry. libfaketime sets the clock that the server sees. With
`--servers 2`, HAProxy distributes the requests to two servers, as deploy/haproxy.cfg says; a fault of a server, an
engine or a clock hits the first server. With `--object-storage`, the servers read the index from a server for S3's
interface (moto), and the note says how many bytes they read from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

import servers
from meditune.store import open_store
from meditune.store.answers import Answers
from servers import Served

PAUSE_S = 0.3
TOKENS = 60
"""The longest answer"""
HELD_S = 10.0
"""How long a process is stopped, the store is locked, and the disk is full"""
SWITCHED_S = 60.0
"""The longest wait for the first answer by another version of a registry"""
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
FIRST, SECOND = "v0001", "v0002"
UNTESTED = ("--force", "--reason", "benchmark")
"""Options that accept a version without a gate"""
HALF_OPEN, IDLE = 100, 10_000
APART = 10
"""How many questions lie between the first questions of two users, so that each asks what no cache knows"""
TMPFS = "2m"
MALFORMED = (
    b"GARBAGE\r\n\r\n",
    b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
)
BODIES = (
    b"{",
    b'{"question": "\xff\xfe"}',
    b"[]",
    b'{"question": "\\ud800 Does it help?"}',
    b"[" * 50_000,
    b"\x00",
    b"",
)


@dataclass
class Reply:
    """One request: when it began and ended, and what came of it (`answered`, `503`, `broken`, `wrong: ...`)."""

    begun: float
    ended: float
    what: str
    detail: str = ""


@dataclass
class Users:
    """A few users who ask until they are stopped, and everything that they were told."""

    expected: dict[str, dict[str, Any]]
    """Question -> the answer without faults"""
    address: str = ""
    replies: list[Reply] = field(default_factory=list)
    confirmed: dict[str, str] = field(default_factory=dict)
    """Id of a confirmed answer -> the confirmed correction, or empty"""
    deleted: set[str] = field(default_factory=set)
    """The ids of the answers whose deletion was confirmed"""
    asked: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The ids of each user's answers, in order"""
    reworded: int = 0
    """Answers whose words differ from those without faults: in a batch, an engine rounds numbers differently"""
    versions: list[str] = field(default_factory=list)
    """The version of the model that wrote each answer"""
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, user: int) -> None:
        """Ask one question after the other."""
        chosen = itertools.islice(itertools.cycle(self.expected), user * APART, None)
        for number, question in enumerate(chosen):
            if self.ended.wait(PAUSE_S):
                return
            answer = self.one(question, stream=number % 3 == 2)
            if answer:
                self.asked[user].append(answer["id"])
            if answer and number % 2 == 0:
                self.rate(answer["id"], f"user {user} said {number}")
            if answer and number % 4 == 1:
                self.delete(answer["id"])

    def one(self, question: str, stream: bool = False) -> dict[str, Any] | None:
        """Ask one question, and record the result; return the answer if there is one."""
        body = {"question": question, "max_new_tokens": TOKENS, "stream": stream}
        begun, (what, detail), answer = time.monotonic(), self._sent("ask", body), None
        if what == "200":
            answer, what = _answer(detail) if stream else (json.loads(detail), "")
        if answer:
            what = wrong(answer, question, self.expected) or "answered"
            normal = self.expected.get(question)
            detail = f"{written(answer)!r} instead of {written(normal)!r}" if normal and what != "answered" else ""
            self.reworded += answer["text"] != self.expected.get(question, answer)["text"]
            self.confirmed[answer["id"]] = ""
            self.versions.append(answer["versions"].get("model", ""))
        self.replies.append(Reply(begun, time.monotonic(), what, detail))
        return answer

    def rate(self, id: str, correction: str) -> None:
        """Send feedback on an answer."""
        begun = time.monotonic()
        what, detail = self._sent("feedback", {"id": id, "rating": "down", "correction": correction})
        if what == "200":
            self.confirmed[id] = correction
        else:
            self.replies.append(Reply(begun, time.monotonic(), f"feedback {what}", detail))

    def delete(self, id: str) -> None:
        """Delete an answer. A 404 means that it was deleted by a request whose response was lost."""
        begun = time.monotonic()
        what, detail = self._sent(f"answers/{id}", method="DELETE")
        self.confirmed.pop(id)
        if what in ("200", "404"):
            self.deleted.add(id)
        if what != "200":
            self.replies.append(Reply(begun, time.monotonic(), f"deletion {what}", detail))

    def _sent(self, route: str, body: dict[str, Any] | None = None, method: str = "POST") -> tuple[str, str]:
        """Return the status of a request and the text of the response, or what broke."""
        try:
            reply = httpx2.request(method, f"{self.address}v1/{route}", json=body, timeout=150)
        except httpx2.ConnectError:
            return "no connection", ""
        except httpx2.HTTPError as error:
            return "broken", repr(error)
        readable = reply.status_code == 200 or reply.headers.get("content-type", "").startswith("application/json")
        return f"{reply.status_code}{'' if readable else ' without JSON'}", reply.text


def _answer(text: str) -> tuple[dict[str, Any] | None, str]:
    """Return the answer at the end of a stream; if there is none, the code of its error."""
    for block in reversed(text.strip().split("\n\n")):
        if block.startswith(("event: answer", "event: error")):
            said = json.loads(block.split("data: ", 1)[1])
            return (None, f"error event {said['error']['code']}") if "error" in said else (said, "")
    return None, "wrong: the stream has no end"


def written(answer: dict[str, Any]) -> str:
    """Return all sentences of an answer, also those that aren't shown because no source supports them."""
    return " ".join(each["text"] for each in answer["sentences"])


def wrong(answer: dict[str, Any], question: str, expected: dict[str, dict[str, Any]]) -> str:
    """Return what is wrong with an answer; empty if nothing is."""
    normal, text = expected.get(question), answer["text"]
    cited = [one["number"] for each in answer["sentences"] if each["shown"] for one in each["citations"]]
    if answer["question"] != question:
        return "wrong: another question"
    if not text.strip():
        return "wrong: empty"
    if answer["outcome"] == "answered" and not cited:
        return "wrong: cites nothing"
    if not {*cited} <= {each["number"] for each in answer["sources"]}:
        return "wrong: cites what it doesn't show"
    if normal is None:
        return ""
    # At the limit on tokens, one answer's last sentence can be finished and the other's left out as unfinished.
    cut = written(answer) != written(normal) and written(normal).startswith(written(answer))
    if cut and answer["tokens"]["completion"] < TOKENS:
        return "wrong: cut"
    others = [each["text"] for each in expected.values() if each["outcome"] == "answered"]
    if text != normal["text"] and text in others:
        return "wrong: another question's answer"
    shown = [[each["id"] for each in one["sources"]] for one in (answer, normal)]
    return "" if shown[0] == shown[1] else "wrong: other sources"


@dataclass
class Trial:
    """One fault: the server, its store and index, and the users."""

    options: Any
    folder: Path
    users: Users
    log: Path
    store: str = ""
    note: str = ""
    """What the fault has to add to its description"""
    ports: list[int] = field(default_factory=lambda: [0])
    """The servers' ports; 0 selects a free port"""
    clock: Path | None = None
    """The file with the deviation of the first server's clock; None if the clock stays right"""
    storage: servers.ObjectStorage | None = None
    """The object storage with the index; None if the index is in a folder"""
    server: Served = field(init=False)
    """The first server, which the fault hits"""
    _running: ExitStack = field(default_factory=ExitStack)
    _others: ExitStack = field(default_factory=ExitStack)
    """The other server and the proxy"""

    def start_all(self) -> None:
        """Start the servers, and with several servers, the proxy in front of them."""
        if self.options.servers == 1:
            self.start()
            return
        self.ports = [servers.free_port() for _ in range(self.options.servers)]
        self.start()
        for number in range(1, self.options.servers):
            self._serve(self._others, number, {})
        self.users.address = self._others.enter_context(servers.haproxy(self.ports))

    def start(self) -> None:
        """Start the first server on the store."""
        self.server = self._serve(self._running, 0, _faked(self.clock) if self.clock else {})
        if self.options.servers == 1:
            self.users.address = self.server.address

    def _serve(self, running: ExitStack, number: int, env: dict[str, str]) -> Served:
        words = ["--index", self.index, "--store", self.store, "--keep-text", "--engine", self.options.engine]
        if self.options.servers > 1:
            words += ["--proxy", "127.0.0.1", "--allow-anonymous"]
        model = str(self.registry) if self.registry.is_dir() else self.options.model
        env |= self.storage.env(f"server{number}") if self.storage else {}
        words += ["--port", self.ports[number]]
        return running.enter_context(servers.meditune(model, *words, log=self.log, env=env))

    @property
    def index(self) -> str:
        """Return the location of the index."""
        return self.storage.index if self.storage else str(self.folder / "index")

    def bytes_read(self) -> str:
        """Return a note about the bytes that each server has read from the object storage since the last call."""
        if self.storage is None:
            return ""
        read = [self.storage.read.pop(f"server{number}", 0) / 1e6 for number in range(len(self.ports))]
        return f", {' and '.join(f'{each:.1f} MB' for each in read)} read from the object storage"

    def set_clock(self, deviation: str) -> None:
        """Set the first server's clock, for example to `-1h`: one hour slow. The server sees it within a second."""
        assert self.clock is not None
        new = self.clock.with_suffix(".new")
        new.write_text(f"{deviation}\n")
        new.replace(self.clock)

    def await_index(self) -> None:
        """Wait until every server's log says that it uses a new version of the index, and note how long that took."""
        begun, found = time.monotonic(), 0
        while time.monotonic() - begun < SWITCHED_S and found < len(self.ports):
            time.sleep(0.1)
            found = self.log.read_text().count("the index has changed")
        self.note += (
            f"; {found} of {len(self.ports)} servers used the new version after {time.monotonic() - begun:.1f} s"
        )

    @property
    def registry(self) -> Path:
        """Return the folder of the registry, which exists only for faults of a registry."""
        return self.folder / "registry"

    def change(self, *words: str) -> None:
        """Run a command of `meditune registry` on the registry."""
        command = [sys.executable, "-m", "meditune", "registry", words[0], str(self.registry), *words[1:]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def await_version(self, version: str) -> None:
        """Wait until the users get an answer by a version, and note how long that took."""
        begun, known = time.monotonic(), len(self.users.versions)
        found = "never"
        while time.monotonic() - begun < SWITCHED_S and found == "never":
            time.sleep(0.1)
            if any(version in each for each in self.users.versions[known:]):
                found = f"after {time.monotonic() - begun:.1f} s"
        waited = f"first answer by {version} {found}"
        self.note = f"{self.note}, {waited}" if self.note else waited

    def stop(self) -> None:
        """Stop the first server as its supervisor would (SIGTERM)."""
        self._running.close()

    def stop_all(self) -> None:
        """Stop the proxy and all servers."""
        self.stop()
        self._others.close()

    def engine(self) -> psutil.Process:
        """Return the engine's process."""
        return next(each for each in self.server.process.children(True) if "subprocess_engine" in str(each.cmdline()))

    def connect(self) -> socket.socket:
        """Return a new connection to the server."""
        host, port = self.server.address.removeprefix("http://").strip("/").split(":")
        return socket.create_connection((host, int(port)), timeout=60)


def engine_killed(trial: Trial) -> None:
    """the engine's process is killed (SIGKILL)"""
    trial.engine().kill()


def engine_stopped(trial: Trial) -> None:
    """the engine's process is stopped (SIGSTOP) for 10 s"""
    engine = trial.engine()
    engine.suspend()
    time.sleep(HELD_S)
    engine.resume()


def server_killed(trial: Trial) -> None:
    """the server is killed (SIGKILL) and started again at once"""
    children = trial.server.process.children(recursive=True)
    trial.server.process.kill()
    trial.stop()
    _, left = psutil.wait_procs(children, timeout=10)
    trial.note = f"{len(left)} of its processes stayed"
    trial.bytes_read()
    trial.start()
    trial.note += f", the new server started in {trial.server.ready_s:.1f} s{trial.bytes_read()}"


def server_terminated(trial: Trial) -> None:
    """the server is ended (SIGTERM) and started again when it has ended"""
    asked = time.monotonic()
    trial.stop()
    trial.note = f"it ended after {time.monotonic() - asked:.1f} s"
    trial.start()


def disk_full(trial: Trial) -> None:
    """the store's disk is full for 10 s"""
    if Path(trial.store).is_mount():
        trial.note = f"tmpfs of {TMPFS}"
        fill = Path(trial.store) / "fill"
        with suppress(OSError), fill.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        time.sleep(HELD_S)
        fill.unlink()
        return
    trial.note = "RLIMIT_FSIZE"
    process, kind = trial.server.process, psutil.RLIMIT_FSIZE
    before = process.rlimit(kind)
    process.rlimit(kind, (4096, before[1]))
    time.sleep(HELD_S)
    process.rlimit(kind, before)


def store_locked(trial: Trial) -> None:
    """another program locks the SQLite store for 10 s"""
    holder = sqlite3.connect(Path(trial.store) / "meditune.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    time.sleep(HELD_S)
    holder.execute("ROLLBACK")
    holder.close()


def index_replaced(trial: Trial) -> None:
    """the index is replaced by a new build of the same documents"""
    begun = time.monotonic()
    words = ["index", "build", *trial.options.rebuild, "-o", trial.index, "--replace"]
    env = {**os.environ, **(trial.storage.env("builder") if trial.storage else {})}
    trial.bytes_read()
    subprocess.run([sys.executable, "-m", "meditune", *words], check=True, capture_output=True, env=env)
    trial.note = f"the build took {time.monotonic() - begun:.0f} s"
    trial.await_index()
    trial.note += trial.bytes_read()


def index_removed(trial: Trial) -> None:
    """the index's folder is removed"""
    shutil.rmtree(trial.folder / "index")
    time.sleep(35)


def index_corrupted(trial: Trial) -> None:
    """every file of the index is overwritten with zeros"""
    for each in (trial.folder / "index").rglob("*"):
        if each.is_file():
            with each.open("r+b") as stream:
                stream.write(bytes(each.stat().st_size))
    time.sleep(35)


def half_open(trial: Trial) -> None:
    """100 clients send half a head or half a body, and wait"""
    head = b"POST /v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    clients = [trial.connect() for _ in range(HALF_OPEN)]
    for number, each in enumerate(clients):
        each.sendall(head if number % 2 else head + b'Content-Length: 30\r\n\r\n{"question')
    seen = Counter(_status(each) for each in clients)
    trial.note = f"they got {dict(seen)}"


def idle(trial: Trial) -> None:
    """many connections that send nothing"""
    clients: list[socket.socket] = []
    with suppress(OSError):
        while len(clients) < trial.options.idle:
            clients.append(trial.connect())
    trial.note = f"{len(clients):,} connections"
    time.sleep(20)
    for each in clients:
        each.close()


def malformed(trial: Trial) -> None:
    """invalid HTTP, JSON and UTF-8; clients that leave in the middle of a stream"""
    seen: Counter[str] = Counter()
    for raw in MALFORMED * 5:
        with trial.connect() as client:
            client.sendall(raw)
            seen[_status(client)] += 1
    for body in BODIES * 3:
        for route in ("ask", "feedback"):
            headers = {"content-type": "application/json"}
            reply = httpx2.post(f"{trial.server.address}v1/{route}", content=body, headers=headers, timeout=60)
            seen[str(reply.status_code)] += 1
    for question in [*trial.users.expected] * 2:
        body_ = {"question": question, "stream": True}
        with httpx2.stream("POST", f"{trial.server.address}v1/ask", json=body_, timeout=60) as reply:
            next(reply.iter_raw(), b"")
    trial.note = f"they got {dict(seen)}"


def postgresql_stopped(trial: Trial) -> None:
    """PostgreSQL is stopped for 10 s"""
    trial.options.cluster.stop()
    time.sleep(HELD_S)
    trial.options.cluster.start()


def clock_set_back(trial: Trial) -> None:
    """the clock is set back by an hour, after 10 s by ten years, and after 10 s set right"""
    for deviation in ("-1h", "-10y", "+0"):
        trial.set_clock(deviation)
        time.sleep(HELD_S)


def clock_slow_at_start(trial: Trial) -> None:
    """the server is started again with a clock that is ten years slow, the clock is set right, and it starts again"""
    for deviation in ("-10y", "+0"):
        trial.set_clock(deviation)
        time.sleep(HELD_S)
        trial.stop()
        trial.start()
        time.sleep(HELD_S)


def version_promoted(trial: Trial) -> None:
    """another version of the registry is promoted"""
    trial.change("promote", SECOND, *UNTESTED)
    trial.await_version(SECOND)


def canary_promoted(trial: Trial) -> None:
    """a version is tried as a canary by half of the conversations, then promoted"""
    trial.change("canary", SECOND, "--percent", "50", *UNTESTED)
    trial.await_version(SECOND)
    trial.change("promote", SECOND, *UNTESTED)
    time.sleep(2 * HELD_S)
    known = len(trial.users.versions)
    time.sleep(HELD_S)
    by = Counter(FIRST in each for each in trial.users.versions[known:])
    trial.note += f"; 20 to 30 s after the promotion, {by[False]} answers by {SECOND} and {by[True]} by {FIRST}"


def version_rolled_back(trial: Trial) -> None:
    """another version is promoted and rolled back"""
    version_promoted(trial)
    trial.change("rollback")
    trial.await_version(FIRST)


def version_damaged(trial: Trial) -> None:
    """a version is promoted, and its files are damaged before the server has loaded it"""
    trial.server.process.suspend()
    trial.change("promote", SECOND, *UNTESTED)
    for file in (trial.registry / "versions" / SECOND).rglob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))
    trial.server.process.resume()
    time.sleep(2 * HELD_S)
    trial.await_version(FIRST)


def _status(client: socket.socket) -> str:
    try:
        return client.recv(4096).decode(errors="replace")[9:12] or "closed"
    except OSError as error:
        return type(error).__name__


FAULTS: dict[str, Callable[[Trial], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        engine_killed, engine_stopped, server_killed, server_terminated, disk_full, store_locked, index_replaced,
        index_removed, index_corrupted, half_open, idle, malformed, postgresql_stopped, clock_set_back,
        clock_slow_at_start, version_promoted, canary_promoted, version_rolled_back, version_damaged,
    )
}  # fmt: skip
OF_A_REGISTRY = ("version-promoted", "canary-promoted", "version-rolled-back", "version-damaged")
OF_A_CLOCK = ("clock-set-back", "clock-slow-at-start")
SQLITE_ONLY = ("disk-full", "store-locked")
FOLDER_ONLY = ("index-removed", "index-corrupted")


def main() -> None:
    """Inject the faults one after the other, and print a row of a Markdown table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run's folder")
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS], default=[*FAULTS])
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--postgresql", action="store_true", help="the store is a PostgreSQL database")
    parser.add_argument("--servers", type=int, default=1, choices=[1, 2], help="2: on PostgreSQL, behind HAProxy")
    parser.add_argument("--object-storage", action="store_true", help="the servers read the index from object storage")
    parser.add_argument("--idle", type=int, default=IDLE, help="idle connections")
    parser.add_argument("--before", type=float, default=8, help="seconds of load before the fault")
    parser.add_argument("--after", type=float, default=15, help="seconds of load after the fault")
    parser.add_argument("--logs", type=Path, default=Path("faults-logs"))
    parser.add_argument("--rebuild", nargs=argparse.REMAINDER, default=["--source", "pubmedqa"], help="for the index")
    options = parser.parse_args()
    options.postgresql |= options.servers > 1
    options.logs.mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (Path(options.model) / "data" / "test.jsonl").open() as stream:
        questions = [json.loads(line)["question"] for line in itertools.islice(stream, options.questions)]
    expected: dict[str, dict[str, Any]] = {}
    storage = _published(options)
    index, env = (storage.index, storage.env("calm")) if storage else (options.index, {})
    with servers.meditune(options.model, "--index", index, "--engine", options.engine, env=env) as server:
        started = f"{server.ready_s:.1f} s"
        if storage:
            started += f" and read {storage.read['calm'] / 1e6:.1f} MB from the object storage"
        calm = Users(expected, server.address)
        answers = {question: calm.one(question) for question in questions}
    expected |= {question: answer for question, answer in answers.items() if answer}
    print(
        f"{len(expected)} questions, {options.users} users; without load, a server started in {started}\n\n"
        "| fault | answered | refused or ended | wrong | answers, feedback, deletions confirmed "
        "| answers or feedback missing, answers still there | slowest answer | normal again after |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in options.faults:
        print(injected(name, options, expected), flush=True)


def injected(name: str, options: Any, expected: dict[str, dict[str, Any]]) -> str:
    """Inject one fault, and return the row of the table."""
    if why := _impossible(name, options):
        return f"| {name} | not run: {why} | | | | | | |"
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, users = Path(place), Users(expected)
        trial = Trial(options, folder, users, options.logs / f"{name}.log")
        trial.log.unlink(missing_ok=True)
        trial.storage = _published(options)
        if not trial.storage:
            shutil.copytree(options.index, folder / "index")
        trial.store = stack.enter_context(_store(name, options, folder))
        if name in OF_A_CLOCK:
            trial.clock = folder / "clock"
            trial.set_clock("+0")
        if name in OF_A_REGISTRY:
            trial.change("add", options.model)
            trial.change("add", options.model)
        trial.start_all()
        people = [threading.Thread(target=users.ask, args=(user,)) for user in range(options.users)]
        try:
            for each in people:
                each.start()
            time.sleep(options.before)
            while not users.replies:
                time.sleep(0.1)
            at = time.monotonic()
            FAULTS[name](trial)
            held = time.monotonic() - at
            time.sleep(options.after)
        finally:
            users.ended.set()
            for each in people:
                each.join()
            trial.stop_all()
        kept = {each["id"]: each["feedback"] for each in Answers(open_store(trial.store)).exported()}
    return row(f"{(FAULTS[name].__doc__ or '')} ({held:.0f} s; {trial.note})".replace("; )", ")"), users, kept, at)


def row(described: str, users: Users, kept: dict[str, list[dict[str, Any]]], at: float) -> str:
    """Return the row of a fault that was injected `at` this time; `kept` are the answers in the store."""
    what = Counter(each.what for each in users.replies)
    good = what.pop("answered", 0)
    bad = {kind: what.pop(kind) for kind in [*what] if kind.startswith("wrong")}
    said = {id: correction for id, correction in users.confirmed.items() if correction}
    lost = sum(id not in kept for id in users.confirmed)
    lost_feedback = sum(text not in [each["correction"] for each in kept.get(id, [])] for id, text in said.items())
    failed = max([at, *(each.begun for each in users.replies if each.what != "answered")])
    normal = [each.ended for each in users.replies if each.what == "answered" and each.begun >= failed]
    slowest = max((each.ended - each.begun for each in users.replies if each.what == "answered"), default=0)
    places = {id: place for place, id in enumerate(kept)}
    for ids in users.asked.values():
        found = [places[id] for id in ids if id in places]
        if found != sorted(found):
            described += " (STORED IN ANOTHER ORDER)"
    for each in {reply.what: reply for reply in users.replies if reply.detail}.values():
        print(f"  {each.what}: {each.detail[:1000]}", file=sys.stderr)
    cells = [
        described,
        f"{good} ({users.reworded} reworded)" if users.reworded else str(good),
        ", ".join(f"{kind}: {count}" for kind, count in sorted(what.items())) or "0",
        ", ".join(f"{kind}: {count}" for kind, count in bad.items()) or "0",
        f"{len(users.confirmed)}, {len(said)}, {len(users.deleted)}",
        f"{lost}, {lost_feedback}, {sum(id in kept for id in users.deleted)}",
        f"{slowest:.1f} s",
        f"{min(normal) - at:.1f} s" if normal else "never",
    ]
    return f"| {' | '.join(cells)} |"


def _impossible(name: str, options: Any) -> str:
    """Return why a fault can't be injected; empty if it can."""
    if options.postgresql and name in SQLITE_ONLY:
        return "the fault is one of the SQLite store"
    if options.object_storage and name in FOLDER_ONLY:
        return "the fault is one of an index in a folder"
    if name in OF_A_CLOCK and FAKETIME is None:
        return "libfaketime, which sets the server's clock, isn't installed: apt-get install libfaketime"
    installed = shutil.which("initdb") or [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (options.postgresql or name == "postgresql-stopped") and not installed:
        return "PostgreSQL isn't installed: apt-get install postgresql"
    return ""


def _published(options: Any) -> servers.ObjectStorage | None:
    """Return object storage that contains the index; None if the servers read the index from a folder."""
    if not options.object_storage:
        return None
    storage = servers.ObjectStorage()
    storage.publish(options.index)
    return storage


def _faked(clock: Path) -> dict[str, str]:
    """Return the variables with which libfaketime adds the deviation in a file to a program's wall clock."""
    limits = {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), **limits}


@contextmanager
def _store(name: str, options: Any, folder: Path) -> Iterator[str]:
    """Yield the location of an empty store for a fault."""
    place = folder / "store"
    place.mkdir()
    if options.postgresql or name == "postgresql-stopped":
        with servers.postgresql() as made:
            options.cluster = made
            yield made.new()
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", str(place)]
    mounted = name == "disk-full" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield str(place)
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


if __name__ == "__main__":
    main()
