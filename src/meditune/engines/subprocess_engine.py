"""OpenVINO's engine in a separate process, for a server that must answer while the model computes.

OpenVINO GenAI holds Python's global interpreter lock (GIL) during each step, which can take seconds when it reads
prompts. In the server's process, nothing else could run during that time, not even an answer to an emergency or the
rejection of a request. In a separate process, the engine can also open while the server opens its index, and the server
can report that the engine has died.

A message is sent over a pipe as its length and a pickled tuple. Unpickling is safe: both ends are Meditune processes of
the same user, and nothing else writes to the pipe. The engine's process runs this module, reads requests from its
standard input, writes chunks to its standard output, and ends when its input ends:

    python -m meditune.engines.subprocess_engine FOLDER CONCURRENCY [scores]
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meditune.engines.engine import (
    EngineLoad,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
)
from meditune.engines.exported_model import read_exported_model
from meditune.engines.openvino_engine import OpenvinoEngine, check_supported
from meditune.engines.scheduler import CLOSED
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import EngineError, MedituneError
from meditune.hardware import limit_malloc_arenas, release_memory

log = logging.getLogger(__name__)
LENGTH_PREFIX = struct.Struct("<I")
READ_BYTES = 1 << 20
CLOSE_S = 1.0
END_S = 10.0
"""Maximum time in seconds for the process to end"""
SCORING_THREADS = 2
PARENT_CHECK_S = 0.5


class MessageReader:
    """The reading end of a pipe."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._buffer = b""

    def read(self) -> list[Any]:
        """Wait for messages, and return all complete ones; return an empty list if the other end was closed.

        Messages are returned together, because each return from a system call may wait for the GIL for a whole step.
        """
        while more := os.read(self._file, READ_BYTES):
            self._buffer += more
            found, end = [], 0
            while len(self._buffer) >= (begin := end + LENGTH_PREFIX.size):
                length = LENGTH_PREFIX.unpack_from(self._buffer, end)[0]
                if begin + length > len(self._buffer):
                    break
                end = begin + length
                found.append(pickle.loads(self._buffer[begin:end]))
            self._buffer = self._buffer[end:]
            if found:
                return found
        return []


class MessageWriter:
    """The writing end of a pipe, for use from any thread."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, *message: Any) -> None:
        """Send a message. Raises OSError if the other end is gone."""
        packed = pickle.dumps(message)
        left = memoryview(LENGTH_PREFIX.pack(len(packed)) + packed)
        with self._lock:
            while left:
                left = left[os.write(self._file, left) :]

    def close(self) -> None:
        """Stop writing, because the file descriptor may soon be reused. Wait up to 1 second for a write in progress."""
        held = self._lock.acquire(timeout=CLOSE_S)
        self._file = -1
        if held:
            self._lock.release()


class SubprocessEngine:
    """An engine that runs in another process. It opens in the background; `opened` waits until it is open."""

    def __init__(self, folder: Path, concurrency: int = 32, scores: bool = False) -> None:
        """Start the process. For `scores`, see open_engine in open_engine.py."""
        model = read_exported_model(folder)
        self.name = f"{model.engine} {model.weights}"
        self.context_tokens = model.context_tokens
        self.concurrency = concurrency
        more = ["scores"] if scores else []
        # Ctrl-C in a terminal reaches both processes. The engine ignores it; the server ends the engine later.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "meditune.engines.subprocess_engine", str(folder), str(concurrency), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._out, self._in = MessageWriter(self._process.stdin.fileno()), MessageReader(self._process.stdout.fileno())
        self._lock = threading.Lock()
        self._number = 0
        self._delivered: dict[int, Callable[[GenerationChunk], None]] = {}
        self._ready: Future[Any] = Future()
        self._results: dict[int, Future[Any]] = {0: self._ready}
        self._closing = False
        self._gone = False
        self.tokenizer: Any = PlainTokenizer(folder)
        self._thread = threading.Thread(target=self._read, name="meditune-subprocess", daemon=True)
        self._thread.start()

    def opened(self) -> None:
        """Wait until the model is open. Raises ModelError if it can't be opened."""
        self._ready.result()

    def failure(self) -> EngineError | None:
        """See engine.py. The engine has failed if its process has ended."""
        if self._closing:
            return EngineError(CLOSED)
        return self._exit_error() if self._gone else None

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py and openvino_engine.py."""
        check_request(request, self.context_tokens)
        check_supported(request, self.tokenizer)
        with self._lock:
            number = self._new()
            self._delivered[number] = deliver
        self._send("start", number, request)
        return RemoteGeneration(self, number)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. The five most likely tokens of each position are returned, too."""
        scored: Future[list[list[TokenLogprob]]] = Future()
        with self._lock:
            number = self._new()
            self._results[number] = scored
        self._send("score", number, list(prompt), [list(text) for text in texts])
        return scored.result()

    def load(self) -> EngineLoad:
        """See engine.py."""
        with self._lock:
            requests = len(self._delivered)
        return EngineLoad.of(requests, self.concurrency)

    def close(self) -> None:
        """See engine.py."""
        with self._lock:
            self._closing = True
        assert self._process.stdin is not None
        self._out.close()
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def cancel(self, number: int) -> None:
        """Cancel the request with this number."""
        self._send("cancel", number)

    def _new(self) -> int:
        if failure := self.failure():
            raise failure
        self._number += 1
        return self._number

    def _send(self, *message: Any) -> None:
        """Send a message; if the process is gone, the reading thread ends the waiting requests."""
        with suppress(OSError):
            self._out.write(*message)

    def _read(self) -> None:
        while messages := self._in.read():
            for kind, *values in messages:
                self._take(kind, values)
        self._end_all()

    def _take(self, kind: str, values: list[Any]) -> None:
        if kind == "chunk":
            number, chunk = values
            with self._lock:
                deliver = self._delivered.pop(number, None) if chunk.is_last else self._delivered.get(number)
            if deliver:
                self._deliver(number, deliver, chunk)
        elif kind == "result":
            with self._lock:
                future = self._results.pop(values[0])
            if isinstance(values[1], Exception):
                future.set_exception(values[1])
            else:
                future.set_result(values[1])
        elif kind == "log":
            log.log(values[0], "The engine's process: %s", values[1])

    def _deliver(self, number: int, deliver: Callable[[GenerationChunk], None], chunk: GenerationChunk) -> None:
        try:
            deliver(chunk)
        except Exception:
            log.exception("The receiver of an answer failed; the answer is cancelled")
            self.cancel(number)

    def _end_all(self) -> None:
        """End all requests after the process has ended, whether that was requested or not."""
        self._process.wait()
        with self._lock:
            self._gone = True
            requests, results = [*self._delivered.items()], [*self._results.values()]
            self._delivered.clear()
            self._results.clear()
            closing = self._closing
        error = EngineError(CLOSED) if closing else self._exit_error()
        last = GenerationChunk("", finish="cancelled") if closing else GenerationChunk("", error=error)
        for number, deliver in requests:
            self._deliver(number, deliver, last)
        for future in results:
            future.set_exception(error)

    def _exit_error(self) -> EngineError:
        return EngineError(
            f"The engine's process ended unexpectedly (exit code {self._process.returncode}); see the log."
        )


@dataclass(frozen=True)
class RemoteGeneration:
    """A request that runs in the other process."""

    engine: SubprocessEngine
    number: int

    def cancel(self) -> None:
        """End the request now; its last chunk reports the cancellation."""
        self.engine.cancel(self.number)


class EngineWorker:
    """A worker in the engine's process that passes a server's messages to the engine."""

    def __init__(self, engine: OpenvinoEngine, out: MessageWriter) -> None:
        self.engine, self._out = engine, out
        self._running: dict[int, RunningGeneration] = {}
        self._scoring = ThreadPoolExecutor(SCORING_THREADS)

    def handle(self, kind: str, values: list[Any]) -> None:
        """Process one message: start or cancel a request, or score texts."""
        if kind == "start":
            self._start(*values)
        elif kind == "cancel":
            if running := self._running.get(values[0]):
                running.cancel()
        elif kind == "score":
            self._scoring.submit(self._score, *values)

    def _start(self, number: int, request: GenerationRequest) -> None:
        ended = False

        def deliver(chunk: GenerationChunk) -> None:
            nonlocal ended
            if chunk.error is not None:
                chunk = replace(chunk, error=_reported(chunk.error))
            # If the server is gone, the input ends, and so does this process.
            with suppress(OSError):
                self._out.write("chunk", number, chunk)
            if chunk.is_last:
                ended = True
                self._running.pop(number, None)

        try:
            self._running[number] = self.engine.start(request, deliver)
            # A short answer may have ended before it was stored.
            if ended:
                self._running.pop(number, None)
        except MedituneError as error:
            self._out.write("chunk", number, GenerationChunk("", error=error))

    def _score(self, number: int, prompt: list[int], texts: list[list[int]]) -> None:
        try:
            found: Any = self.engine.score(prompt, texts)
        except Exception as error:  # noqa: BLE001 - raised in the server's process
            found = _reported(error)
        self._out.write("result", number, found)


def _reported(error: Exception) -> MedituneError:
    """Return an error to send to the server. Other libraries' errors may quote a question, or can't be pickled."""
    return error if isinstance(error, MedituneError) else EngineError(f"OpenVINO failed ({type(error).__name__}).")


class _LogForwarder(logging.Handler):
    """A handler that sends log records to the server's log, without error messages, which may quote a question."""

    def __init__(self, out: MessageWriter) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        with suppress(OSError):
            self._out.write("log", record.levelno, record.getMessage() + (f" ({kind.__name__})" if kind else ""))


def main(folder: Path, concurrency: int, scores: bool) -> None:
    """Serve an engine in this process until the input ends."""
    # Ignore signals, because the server ends this process when the running answers are complete.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    limit_malloc_arenas()
    out, incoming = MessageWriter(os.dup(1)), MessageReader(0)
    # Redirect what libraries print from standard output, which is the pipe, to standard error.
    os.dup2(2, 1)
    logging.basicConfig(handlers=[_LogForwarder(out)], level=logging.WARNING)
    try:
        serving = EngineWorker(OpenvinoEngine(folder, concurrency, scores), out)
    except MedituneError as error:
        out.write("result", 0, error)
        return
    release_memory()
    closing = threading.Event()
    threading.Thread(target=_end_with, args=(serving.engine, closing), daemon=True).start()
    out.write("result", 0, None)
    while messages := incoming.read():
        for kind, *values in messages:
            serving.handle(kind, values)
    closing.set()
    serving.engine.close()


def _end_with(engine: OpenvinoEngine, closing: threading.Event) -> None:
    """End this process when its engine fails, so that the server starts another process."""
    while not closing.wait(PARENT_CHECK_S):
        failure = engine.failure()
        if failure is not None and not closing.is_set():
            logging.getLogger(__name__).critical("%s", failure)
            os._exit(failure.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "scores" in sys.argv[3:])
    # Exit at once: threads of libraries may still be running, and there is nothing to save.
    os._exit(0)
