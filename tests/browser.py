"""Chromium for tests of pages: found on the PATH or through MEDITUNE_BROWSER, never fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


def executable() -> str | None:
    """Where the browser is; None where there is none."""
    return os.environ.get("MEDITUNE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    path = executable()
    if not path:
        pytest.skip(f"no browser: {', '.join(NAMES)} aren't on the PATH and MEDITUNE_BROWSER isn't set")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    with sync.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()
