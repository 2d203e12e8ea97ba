"""A file from a server, whole and checked, or not there; one that broke off goes on where it was."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from meditune.errors import DataError
from meditune.files import disk_full
from meditune.models.api.retry import PassingError
from meditune.operate.literature.polite import Polite, StartedOverError
from meditune.progress import Progress

WRONG = 3
"""So many times a file may come with another MD5 than the published one."""


def download(http: Polite, url: str, path: Path, md5: str) -> Path:
    """`path`, with what is at `url`. Raises DataError where it can't be had, or has another MD5 three times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _md5(path) == md5:
        return path
    partial = path.with_name(f"{path.name}.part")
    found = ""
    for _ in range(WRONG):
        http.until_it_works(lambda: _go_on(http, url, partial), url)
        found = _md5(partial)
        if found == md5:
            partial.replace(path)
            return path
        partial.unlink()
    raise DataError(
        f"{url}: it came {WRONG} times with the MD5 {found}, and {md5} was published. Run the same command later; if "
        "it stays so, tell NLM (info@ncbi.nlm.nih.gov)."
    )


def _go_on(http: Polite, url: str, partial: Path) -> None:
    """Fetch what is missing of the file. Raises PassingError where it breaks off."""
    size = http.size(url)
    there = partial.stat().st_size if partial.is_file() else 0
    if size and there > size:
        partial.unlink()
        there = 0
    if size and there == size:
        return
    try:
        _fetch(http, url, partial, there, size)
    except StartedOverError:
        _fetch(http, url, partial, 0, size)
    there = partial.stat().st_size
    if size and there != size:
        raise PassingError(f"broke off at {there:,} of {size:,} bytes")


def _fetch(http: Polite, url: str, partial: Path, start: int, size: int) -> None:
    name = url.rpartition("/")[2]
    pieces = http.rest(url, start)
    try:
        with Progress(f"Fetching {name}", size / 1e6 or None, "MB") as progress:
            progress.advance(start / 1e6)
            first = next(pieces, b"")
            with partial.open("ab" if start else "wb") as stream:
                stream.write(first)
                for piece in pieces:
                    stream.write(piece)
                    progress.advance(len(piece) / 1e6)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(partial) from error
        raise


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
