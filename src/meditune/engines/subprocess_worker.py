"""The code that runs in a separate engine process (started by subprocess_engine.py).

    python -m meditune.engines.subprocess_worker FOLDER AT_ONCE [scores]

It reads requests from its standard input, writes chunks to its standard output, and ends when the input does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from meditune.engines.engine import GenerationChunk, GenerationRequest, RunningGeneration
from meditune.engines.openvino_engine import OpenvinoEngine
from meditune.engines.subprocess_engine import MessageReader, MessageWriter
from meditune.errors import EngineError, MedituneError
from meditune.hardware import limit_malloc_arenas, release_memory

SCORING_THREADS = 2
PARENT_CHECK_S = 0.5


def main(folder: Path, concurrency: int, scores: bool) -> None:
    """Serve until the input ends."""
    # The server ends this process, after the answers in progress.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    limit_malloc_arenas()
    out, incoming = MessageWriter(os.dup(1)), MessageReader(0)
    # Redirect what libraries print to the log.
    os.dup2(2, 1)
    logging.basicConfig(handlers=[_LogForwarder(out)], level=logging.WARNING)
    try:
        serving = EngineWorker(OpenvinoEngine(folder, concurrency, scores), out)
    except MedituneError as error:
        out.write("failed", error)
        return
    release_memory()
    closing = threading.Event()
    threading.Thread(target=_end_with, args=(serving.engine, closing), daemon=True).start()
    out.write("ready")
    while messages := incoming.read():
        for kind, *values in messages:
            serving.handle(kind, values)
    closing.set()
    serving.engine.close()


def _end_with(engine: OpenvinoEngine, closing: threading.Event) -> None:
    """End this process when its engine fails, so that the server opens another one."""
    while not closing.wait(PARENT_CHECK_S):
        failure = engine.failure()
        if failure is not None and not closing.is_set():
            logging.getLogger(__name__).critical("%s", failure)
            os._exit(failure.exit_code)


class EngineWorker:
    """A worker that passes a server's messages to an engine."""

    def __init__(self, engine: OpenvinoEngine, out: MessageWriter) -> None:
        self.engine, self._out = engine, out
        self._running: dict[int, RunningGeneration] = {}
        self._scoring = ThreadPoolExecutor(SCORING_THREADS)

    def handle(self, kind: str, values: list[Any]) -> None:
        """Process one message."""
        if kind == "start":
            self._start(*values)
        elif kind == "cancel":
            if running := self._running.get(values[0]):
                running.cancel()
        elif kind == "score":
            self._scoring.submit(self._score, *values)

    def _start(self, number: int, request: GenerationRequest) -> None:
        try:
            self._running[number] = self.engine.start(request, self._to(number))
        except MedituneError as error:
            self._out.write("chunk", number, GenerationChunk("", error=error))

    def _to(self, number: int) -> Callable[[GenerationChunk], None]:
        def deliver(chunk: GenerationChunk) -> None:
            if chunk.error is not None and not isinstance(chunk.error, MedituneError):
                chunk = GenerationChunk(chunk.text, chunk.tokens, chunk.likely, error=_engine_error(chunk.error))
            # If the server is gone, the input ends too.
            with suppress(OSError):
                self._out.write("chunk", number, chunk)
            if chunk.finish or chunk.error:
                self._running.pop(number, None)

        return deliver

    def _score(self, number: int, prompt: list[int], texts: list[list[int]]) -> None:
        try:
            scored = self.engine.score(prompt, texts)
        except Exception as error:  # noqa: BLE001 - raised in the caller's process
            self._out.write("not scored", number, error if isinstance(error, MedituneError) else _engine_error(error))
            return
        self._out.write("scored", number, scored)


class _LogForwarder(logging.Handler):
    """A handler that sends log records to the server's log, without error messages, which may quote a question."""

    def __init__(self, out: MessageWriter) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        with suppress(OSError):
            self._out.write("log", record.levelno, record.getMessage() + (f" ({kind.__name__})" if kind else ""))


def _engine_error(error: BaseException) -> EngineError:
    return EngineError(f"OpenVINO failed ({type(error).__name__}).")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "scores" in sys.argv[3:])
    # Threads of libraries may still be running, and there is nothing to save.
    os._exit(0)
