"""The log: one JSON object a line on stderr, without what people asked.

Messages of exceptions may hold what people asked, so of an exception the kind and the places are logged alone.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("meditune.serve")
_OWN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, message, and every further field of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        said |= {name: value for name, value in record.__dict__.items() if name not in _OWN}
        if record.exc_info and record.exc_info[1]:
            said |= where(record.exc_info[1])
        return json.dumps(said, ensure_ascii=False, default=str)


def where(error: BaseException) -> dict[str, Any]:
    """An exception's kind and the places it came through, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "exception": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
    }


def set_up(level: int = logging.INFO) -> None:
    """Let Meditune, its threads and uvicorn write JSON lines, and nobody else's handlers repeat them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    others = (("uvicorn.error", logging.WARNING), ("asyncio", logging.ERROR), ("psycopg.pool", logging.WARNING))
    for name, least in (("meditune", level), *others):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    threading.excepthook = _thread_failed


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        LOGGER.error("A thread failed", extra=where(failed.exc_value))
