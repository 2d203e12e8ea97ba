"""The text of one PDF file: a program that text_files.py starts as a separate process, with limited memory.

python pdf_text.py FILE PAGES GB CHARACTERS     prints {"title", "pages"}, {"problem"} or {"missing"} as JSON
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def bound_memory(gigabytes: float) -> None:
    """Limit the process's memory, where the system supports it."""
    try:
        import resource
    except ImportError:  # on Windows only the time limit applies
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)


def text(path: str, max_pages: int, max_characters: int) -> dict[str, Any]:
    """Return the title and pages, or the problem. Raises pypdf's errors for a damaged file."""
    import pypdf

    reader = pypdf.PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        return {"problem": "encrypted; save it without a password"}
    if len(reader.pages) > max_pages:
        return {"problem": f"{len(reader.pages):,} pages, more than {max_pages:,}; split it"}
    pages: list[str] = []
    for page in reader.pages:
        pages.append(page.extract_text())
        if sum(map(len, pages)) > max_characters:
            return {"problem": f"more than {max_characters:,} characters; split it"}
    return {"title": str((reader.metadata and reader.metadata.title) or "").strip(), "pages": pages}


def main(path: str, max_pages: str, max_gb: str, max_characters: str) -> dict[str, Any]:
    """Return what is printed."""
    logging.disable()
    bound_memory(float(max_gb))
    try:
        return text(path, int(max_pages), int(max_characters))
    except ModuleNotFoundError:
        return {"missing": True}
    except Exception as error:  # noqa: BLE001 (a damaged file can raise any error; this process reads nothing else)
        return {"problem": f"a damaged or unusual PDF ({type(error).__name__}: {str(error)[:200]})"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
