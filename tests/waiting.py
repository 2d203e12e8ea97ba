"""Waiting for what another thread or process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 120, process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until the condition holds. The test fails after these seconds, or if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"nothing happened within {seconds:g} seconds"
        time.sleep(0.01)


def output_of(*words: Any, **options: Any) -> str:
    """Wait for a program, which must succeed, and return what it printed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
