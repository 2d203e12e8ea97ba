"""PDF files, by pypdf, in a process of its own: a hostile file can't take the memory or the time of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from meditune.errors import DataError, install_command
from meditune.retrieve.passages import pdf_text
from meditune.retrieve.passages.passage import Section
from meditune.retrieve.passages.unreadable import UnreadableError

MOST_PAGES = 5_000
MOST_SECONDS = 120.0
MOST_GB = 2.0
MOST_CHARACTERS = 20_000_000
FEWEST_CHARACTERS_A_PAGE = 20
"""Fewer on average: pictures of pages"""


def read(path: Path) -> tuple[str, list[Section]]:
    """Title, and a section for each page with text.

    Raises UnreadableError where it is encrypted, damaged, holds pictures of text only, or takes too long or too much
    memory; DataError where pypdf isn't installed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", pdf_text.__file__, str(path), str(MOST_PAGES), str(MOST_GB), str(MOST_CHARACTERS)],
            capture_output=True,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(f"not read within {MOST_SECONDS:.0f} seconds; it may be damaged") from error
    try:
        said = json.loads(done.stdout)
    except ValueError as error:
        raise UnreadableError(f"reading it broke down or took more than {MOST_GB:.0f} GB of memory") from error
    if said.get("missing"):
        raise DataError(f"{path}: reading PDF files needs pypdf. Install it with: {install_command('retrieve')}")
    if said.get("problem"):
        raise UnreadableError(said["problem"])
    pages: list[str] = said["pages"]
    if sum(len(page.strip()) for page in pages) < FEWEST_CHARACTERS_A_PAGE * max(1, len(pages)):
        raise UnreadableError("pictures of pages without text; run it through text recognition (OCR) first")
    return said["title"], [Section(_flowing(page), f"Page {n}") for n, page in enumerate(pages, 1) if page.strip()]


def _flowing(page: str) -> str:
    """Lines as they were set, joined to paragraphs; words that were broken at a line's end are whole again."""
    text = ""
    for line in (each.strip() for each in page.splitlines()):
        if text.endswith("-") and line[:1].islower():
            text = text[:-1] + line
        else:
            text += ("\n\n" if not line else " " if not text.endswith("\n") else "") + line
    return text.strip()
