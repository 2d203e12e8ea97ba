"""JSON log lines on stderr and OpenTelemetry traces of requests, both without the text of questions.

Exception messages may quote questions, so only an exception's type and stack locations are logged; a StoreError quotes
nothing, so its message is logged, too. Traces show how long triage, search, writing and checking took; they contain
only numbers, names and exception types. Tracing is off unless OpenTelemetry's environment variables configure it
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/):
OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; OTEL_EXPORTER_OTLP_HEADERS for a key;
OTEL_SERVICE_NAME; OTEL_TRACES_SAMPLER. Tracing needs the extra `otel`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from meditune import __version__
from meditune.errors import ModelError, StoreError, install_command

LOGGER = logging.getLogger("meditune.serve")
_OWN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """A formatter that writes time, level, message and all extra fields of a record as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in record.__dict__.items() if name not in _OWN}
        if record.exc_info and record.exc_info[1]:
            entry |= error_location(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False, default=str)


def error_location(error: BaseException) -> dict[str, Any]:
    """Return an exception's type and stack locations, without its message, which may quote a question.

    The messages of a StoreError quote nothing, and say what is wrong (a full disk, a lock), so they are included.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    why = {"why": str(error)} if isinstance(error, StoreError) else {}
    return {"exception": type(error).__name__, **why, "at": where}


def set_up_logging() -> None:
    """Make Meditune, its threads and uvicorn log JSON lines only, without other handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    others = (("uvicorn.error", logging.WARNING), ("asyncio", logging.ERROR), ("psycopg.pool", logging.WARNING))
    for name, least in (("meditune", logging.INFO), *others):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    threading.excepthook = _thread_failed


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        LOGGER.error("A thread failed", extra=error_location(failed.exc_value))


VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Span:
    """A span that records nothing; it is used while tracing is off."""

    def set_attribute(self, _: str, __: Any, /) -> Any:
        """Do nothing; a real span records the number or name."""


class _Tracing:
    """The process's tracer; None while tracing is off."""

    tracer: Any = None
    provider: Any = None


def set_up_tracing(environment: Mapping[str, str] = os.environ) -> bool:
    """Start sending traces if the environment names an endpoint; return whether tracing is on.

    Raises ModelError if the packages for tracing are missing.
    """
    if not any(environment.get(name) for name in VARIABLES) or environment.get("OTEL_SDK_DISABLED") == "true":
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ModelError(
            f"{VARIABLES[1]} is set, but traces need OpenTelemetry. Install it with: {install_command('otel')}"
        ) from error
    named = {"service.name": environment.get("OTEL_SERVICE_NAME") or "meditune", "service.version": __version__}
    _Tracing.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    _Tracing.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Tracing.tracer = _Tracing.provider.get_tracer("meditune", __version__)
    return True


def shut_down_tracing() -> None:
    """Send the remaining traces and stop tracing."""
    provider, _Tracing.tracer, _Tracing.provider = _Tracing.provider, None, None
    if provider is not None:
        provider.shutdown()


@contextmanager
def span(name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
    """Trace a part of the current request or, with `headers`, a new request in its caller's W3C trace context."""
    if _Tracing.tracer is None:
        yield Span()
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    current: AbstractContextManager[Any] = nullcontext()
    if headers is None:
        traced = _Tracing.tracer.start_span(name)
    else:
        above = TraceContextTextMapPropagator().extract(dict(headers))
        traced = _Tracing.tracer.start_span(name, context=above, kind=trace.SpanKind.SERVER)
        current = trace.use_span(traced, record_exception=False, set_status_on_exception=False)
    try:
        with current:
            yield traced
    except BaseException as error:
        # Error messages may quote questions.
        traced.set_attribute("error.type", type(error).__name__)
        traced.set_status(trace.Status(trace.StatusCode.ERROR))
        raise
    finally:
        traced.end()


def trace_id(traced: Any) -> str:
    """Return the id of a span's trace; empty if tracing is off."""
    return "" if isinstance(traced, Span) else f"{traced.get_span_context().trace_id:032x}"
