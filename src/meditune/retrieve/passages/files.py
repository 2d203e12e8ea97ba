"""The user's own documents: text, Markdown, HTML and PDF files of a folder. What can't be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.progress import track
from meditune.retrieve.passages import html, markdown, pdf
from meditune.retrieve.passages.passage import Document, Section
from meditune.retrieve.passages.unreadable import UnreadableError

SOURCE = "documents"
LICENCE = "your own document"
MOST_BYTES = 100_000_000
"""A longer file is refused: it is hardly one document."""

Reader = Callable[[Path], tuple[str, list[Section]]]
"""Title and sections of a file; raises UnreadableError with the reason where it has none"""


def _plain(path: Path) -> tuple[str, list[Section]]:
    return "", [Section(markdown.decoded(path))]


READERS: dict[str, Reader] = {
    ".txt": _plain,
    ".md": markdown.read,
    ".markdown": markdown.read,
    ".html": html.read,
    ".htm": html.read,
    ".pdf": pdf.read,
}


def read(path: Path, rejects: Rejects, name: str = SOURCE) -> Iterator[Document]:
    """One document for each file under a folder (or for the one file), in order of name.

    Ids are `NAME:PLACE IN THE FOLDER`; the date is that of the file's last change. Files that give no text go to
    `rejects` with the reason, other kinds of file are counted there. Hidden files and folders aren't looked at, and
    links that lead out of the folder aren't followed. Raises DataError where there is no such path or no file that
    could be read.
    """
    files = _files(path)
    readable = [file for file in files if file.suffix.lower() in READERS]
    if not readable:
        raise DataError(f"{path}: no file that ends in {', '.join(READERS)}. Point at a folder with your documents.")
    for file in set(files) - set(readable):
        rejects.count_only(name, f"{file.suffix.lower() or 'no ending'}: not a kind of file that is read")
    for file in track(sorted(readable), "Reading documents", unit="files"):
        place = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            title, sections = _read(file)
        except UnreadableError as error:
            rejects.add(name, str(file), str(error), "")
            continue
        yield Document(
            id=f"{name}:{place}",
            source=name,
            sections=sections,
            title=title or file.stem.replace("_", " ").replace("-", " "),
            url=file.resolve().as_uri(),
            licence=LICENCE,
            date=datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat(),
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder.")
    inside = path.resolve()
    return [
        file
        for file in path.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
        and file.resolve().is_relative_to(inside)
    ]


def _read(file: Path) -> tuple[str, list[Section]]:
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise UnreadableError(f"longer than {MOST_BYTES // 10**6} MB ({size // 10**6}); split it")
        title, sections = READERS[file.suffix.lower()](file)
    except OSError as error:
        raise UnreadableError(f"can't be opened ({error.strerror or error})") from error
    sections = [section for section in sections if section.text.strip()]
    if not sections:
        raise UnreadableError("no text in it")
    return title, sections
