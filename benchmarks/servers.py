"""Servers for the other benchmarks: Meditune's, those of other libraries, HAProxy, and object storage."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

READY_S = 120.0
COMPILED_S = 600.0
"""The longest wait for vLLM, which compiles the model first"""
LLAMA = """
import sys, time
from pathlib import Path
from meditune.engines.llamacpp_engine import server
started = server(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "key")
print(started.listening_address + "/", flush=True)
time.sleep(1e9)
"""
"""llama.cpp's own HTTP server, from the package xllamacpp, whose wheel is built for many processors"""


@dataclass
class Served:
    """A running server."""

    process: psutil.Process
    address: str
    """Base URL with a slash at the end"""
    model: str
    ready_s: float
    key: str = ""

    def cpu(self) -> float:
        """Return the CPU seconds so far of the process and its children."""
        times = [each.cpu_times() for each in self._all()]
        return float(sum(one.user + one.system for one in times))

    def memory(self) -> float:
        """Return the resident memory in MB, with shared pages counted once (PSS, proc(5))."""
        return float(sum(each.memory_full_info().pss for each in self._all())) / 1e6

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def meditune(
    model: str,
    *words: Any,
    store: Path | None = None,
    key: str = "",
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Run `meditune serve` with these options on a free port; `key` is a key of the store, if it has keys.

    The server's log is appended to the file `log`. By default, its end is printed if the block fails. The variables
    `env` are added to the server's environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = str(store or folder)
        command = [sys.executable, "-m", "meditune", "serve", model, "--port", "0", "--store", kept]
        with _started([*command, *map(str, words)], log, {**os.environ, **(env or {})}) as (process, begun):
            address = _printed_address(process)
            ready = time.monotonic() - begun
            headers = {"authorization": f"Bearer {key}"} if key else {}
            names = httpx2.get(f"{address}v1/models", headers=headers).json()["data"]
            yield Served(psutil.Process(process.pid), address, names[0]["id"], ready, key)


@contextmanager
def llama_cpp(file: Path, tokens: int, at_once: int) -> Iterator[Served]:
    """Run llama.cpp's server with a context of `tokens` tokens in `at_once` slots."""
    with _started([sys.executable, "-c", LLAMA, str(file), str(tokens), str(at_once)]) as (process, begun):
        address = _printed_address(process)
        yield Served(psutil.Process(process.pid), address, "model", time.monotonic() - begun, "key")


@contextmanager
def llama_server(program: Path, file: Path, tokens: int, at_once: int) -> Iterator[Served]:
    """Like `llama_cpp`, but with llama.cpp's own program `llama-server`, for example one built for this processor."""
    port = free_port()
    words = ["-m", str(file), "-c", str(tokens), "-np", str(at_once), "-t", str(os.cpu_count() or 1)]
    with _started([str(program), *words, "--port", str(port), "--no-webui"]) as (process, begun):
        address = f"http://127.0.0.1:{port}/"
        while not _healthy(f"{address}health"):
            if process.poll() is not None or time.monotonic() - begun > READY_S:
                raise RuntimeError("`llama-server` didn't start")
            time.sleep(0.05)
        yield Served(psutil.Process(process.pid), address, "model", time.monotonic() - begun)


@contextmanager
def transformers(folder: Path, *words: str) -> Iterator[Served]:
    """Run `transformers serve` on a model's folder."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port), *words]
    with _started(command) as (process, begun):
        address = f"http://localhost:{port}/"
        while not _healthy(f"{address}health"):
            if process.poll() is not None or time.monotonic() - begun > READY_S:
                raise RuntimeError("`transformers serve` didn't start")
            time.sleep(0.2)
        yield Served(psutil.Process(process.pid), address, str(folder), time.monotonic() - begun)


@contextmanager
def vllm(folder: Path, at_once: int) -> Iterator[Served]:
    """Run `vllm serve`, which must be on the PATH, on a model's folder, without usage statistics."""
    port = free_port()
    words = ["--port", str(port), "--max-model-len", "1024", "--max-num-seqs", str(at_once)]
    words += ["--uvicorn-log-level", "error"]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    quiet["VLLM_LOGGING_LEVEL"] = "ERROR"  # nobody reads its output
    with _started(["vllm", "serve", str(folder), *words], env={**os.environ, **quiet}) as (process, begun):
        address = f"http://localhost:{port}/"
        while not _healthy(f"{address}health"):
            if process.poll() is not None or time.monotonic() - begun > COMPILED_S:
                raise RuntimeError("`vllm serve` didn't start")
            time.sleep(0.2)
        yield Served(psutil.Process(process.pid), address, str(folder), time.monotonic() - begun)


@contextmanager
def haproxy(ports: Sequence[int]) -> Iterator[str]:
    """Run HAProxy with deploy/haproxy.cfg in front of two servers on this machine; yield its address."""
    place = f"127.0.0.1:{free_port()}"
    addresses = {f"SERVER_{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, start=1)}
    settings = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"
    command = ["haproxy", "-db", "-f", str(settings)]
    process = subprocess.Popen(command, env={**os.environ, **addresses, "LISTEN": place})
    try:
        begun = time.monotonic()
        while not _healthy(f"http://{place}/readyz"):
            if process.poll() is not None or time.monotonic() - begun > READY_S:
                raise RuntimeError("HAProxy didn't start")
            time.sleep(0.1)
        yield f"http://{place}/"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def postgresql() -> Iterator[Any]:
    """Run PostgreSQL, as the tests do; `new()` of what it yields returns the URL of a new database."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.conftest import cluster

    with cluster() as made:
        yield made


REGION = "us-east-1"


class ObjectStorage:
    """moto's server for S3's interface, in this process. It counts the bytes that each access key reads."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.read: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler)
        # moto's servers in one process share their buckets.
        self._bucket = f"library-{self._server.port}"
        self.index = f"s3://{self._bucket}/index"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, folder: Path) -> None:
        """Copy an index from a folder to the object storage."""
        from pyarrow.fs import S3FileSystem, copy_files

        place = f"127.0.0.1:{self._server.port}"
        files = S3FileSystem(
            access_key="publisher",
            secret_key="any",
            region=REGION,
            scheme="http",
            endpoint_override=place,
            allow_bucket_creation=True,
        )
        files.create_dir(self._bucket)
        copy_files(str(folder), self.index.removeprefix("s3://"), destination_filesystem=files)

    def env(self, key: str) -> dict[str, str]:
        """Return the environment variables with which a program reads the object storage by this access key."""
        endpoint = f"http://127.0.0.1:{self._server.port}"
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "any"}
        return {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": REGION, **keys}

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        found = re.search(r"Credential=(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        with closing(self._app(environ, start_response)) as parts:
            for part in parts:
                with self._lock:
                    self.read[found[1] if found else ""] += len(part)
                yield part


def streamed(line: str) -> dict[str, Any] | None:
    """Return the JSON of a line of server-sent events; None for other lines and the end."""
    if not line.startswith("data:") or line[5:].strip() in {"", "[DONE]"}:
        return None
    said: dict[str, Any] = json.loads(line[5:])
    return said


@contextmanager
def _started(
    command: Sequence[str], to: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], float]]:
    with to.open("a+") if to else tempfile.TemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            yield process, begun
        except BaseException:
            log.seek(0)
            print(log.read()[-2000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _printed_address(process: subprocess.Popen[str]) -> str:
    """Return the address that a server prints when it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+/", line):
            return found[0]
    raise RuntimeError("the server didn't start")


def _healthy(address: str) -> bool:
    try:
        return httpx2.get(address, timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def free_port() -> int:
    """Return a port that no program uses now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
