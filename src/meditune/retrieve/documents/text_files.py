"""The user's own documents: text, Markdown, HTML, PDF and Word files in a folder. Unreadable files are reported.

Python's HTML parser never fetches, runs or expands anything. PDF and Word files are read in a separate process, so that
a malicious file can't exhaust memory or time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

from meditune.data.readers.tables import FORMATS, Rejects
from meditune.errors import DataError, install_command
from meditune.progress import track
from meditune.retrieve.documents import pdf_docx_text
from meditune.retrieve.documents.document import Document, Section, UnreadableError

_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*$")
_UNDERLINE = re.compile(r"(=+|-{3,})\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_LINK = re.compile(r"!?\[([^\[\]]{0,1000})\]\([^()]{0,2000}\)")
_EMPHASIS = re.compile(r"(\*\*|__|`)(?=\S)|(?<=\S)(\*\*|__|`)")


def decoded(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark. Raises UnreadableError otherwise."""
    data = path.read_bytes()
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text (at byte {error.start}); convert it") from error
    if "\0" in text:
        raise UnreadableError("not text: contains zero bytes")
    return text


def read(path: Path) -> tuple[str, list[Section]]:
    """Return a Markdown file's title (its first heading), and the text under each heading without markup."""
    lines = _without_comments(decoded(path)).splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        lines = lines[lines.index("---", 1) + 1 :]  # skip the metadata (front matter) of static site generators
    title, heading, fenced = "", "", False
    sections: list[Section] = []
    body: list[str] = []
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
            continue
        found = None if fenced else _HEADING.match(line)
        underlined = not fenced and body and body[-1].strip() and _UNDERLINE.fullmatch(line)
        if not found and not underlined:
            body.append(line if fenced else _bare(line))
            continue
        name = _bare(found[2]) if found else body.pop().strip()
        sections.append(Section("\n".join(body), heading))
        title, heading, body = title or name, name, []
    sections.append(Section("\n".join(body), heading))
    return title, [Section(each.text, "" if each.heading == title else each.heading) for each in sections]


def _without_comments(markup: str) -> str:
    parts: list[str] = []
    at = 0
    while (start := markup.find("<!--", at)) >= 0 and (end := markup.find("-->", start)) >= 0:
        parts.append(markup[at:start])
        at = end + len("-->")
    return "".join([*parts, markup[at:]])


def _bare(line: str) -> str:
    return _EMPHASIS.sub("", _LINK.sub(r"\1", line))


UNSEEN = {"script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "iframe"}
UNSEEN |= {"object", "head"}
BLOCKS = {"p", "div", "section", "article", "main", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "br", "hr"}
BLOCKS |= {"blockquote", "pre", "figcaption"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
MOST_BYTES = 20_000_000
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]{1,40})""", re.IGNORECASE)


def read_html(path: Path) -> tuple[str, list[Section]]:
    """Return an HTML file's title and the text under each heading. Raises UnreadableError if the file is too large."""
    if path.stat().st_size > MOST_BYTES:
        raise UnreadableError(f"larger than {MOST_BYTES // 10**6} MB, too large for a page")
    reader = _Reader()
    reader.feed(_closed(_decoded(path.read_bytes())))
    reader.close()
    return reader.found()


def _decoded(data: bytes) -> str:
    declared = _CHARSET.search(data[:4096])
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif data.startswith(b"\xef\xbb\xbf"):
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding, errors="replace")
    except LookupError as error:
        raise UnreadableError(f"unknown text encoding {encoding}") from error


def _closed(markup: str) -> str:
    """Return the markup without comments and unclosed tags.

    For each of these, the parser would search the whole rest of the markup for the end.
    """
    visible = _without_comments(markup).partition("<!--")[0]
    text = re.sub(r"<[!?]\S{0,20}", "<meta ", visible)
    last = text.rfind(">") + 1
    return text[:last] + text[last:].replace("<", " ")


class _Reader(HTMLParser):
    """An HTML parser that collects sections. An unclosed hidden element ends together with the element around it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        """Hidden elements that are open, the outermost first"""
        self._title: list[str] = []
        self._in_title = False
        self._heading: list[str] | None = None
        self._sections: list[tuple[str, list[str]]] = [("", [])]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "title" and "svg" not in self._open:
            self._in_title = True
        elif tag == "body":
            self._open.clear()
        elif tag in UNSEEN:
            self._open.append(tag)
        elif not self._open and tag in HEADINGS:
            self._heading = []
        elif tag in BLOCKS:
            self._add("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(tag) :]
        elif tag in HEADINGS and self._heading is not None:
            self._sections.append((" ".join("".join(self._heading).split()), []))
            self._heading = None
        elif tag in BLOCKS:
            self._add("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        else:
            # A line break in the source is a space on the page.
            self._add(re.sub(r"\s+", " ", data))

    def _add(self, text: str) -> None:
        if not self._open:
            (self._sections[-1][1] if self._heading is None else self._heading).append(text)

    def found(self) -> tuple[str, list[Section]]:
        """Return the title, or else the first heading, and the sections in order."""
        if self._heading:
            self._sections.append(("", self._heading))  # an unclosed heading counts as text
        title = " ".join("".join(self._title).split())
        named = title or next((name for name, _ in self._sections if name), "")
        return named, [Section("".join(text), "" if name == named else name) for name, text in self._sections]


MOST_PAGES = 5_000
MOST_SECONDS = 120.0
MOST_GB = 2.0
MOST_CHARACTERS = 20_000_000
EXTRACTED = (".pdf", ".docx")


def read_extracted(path: Path) -> tuple[str, list[Section], str]:
    """Return the title, a section for each page (PDF) or heading (Word), and a note on unread pages, or "".

    Raises UnreadableError if the file is encrypted, damaged, contains only images of text, or takes too much time or
    memory. Raises DataError if pypdf or python-docx isn't installed.
    """
    program = pdf_docx_text.__file__
    try:
        done = subprocess.run(
            [sys.executable, "-I", program, str(path), str(MOST_PAGES), str(MOST_GB), str(MOST_CHARACTERS)],
            capture_output=True,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(f"not read within {MOST_SECONDS:.0f} seconds; it may be damaged") from error
    try:
        result = json.loads(done.stdout)
    except ValueError as error:
        raise UnreadableError(f"reading the file failed or took more than {MOST_GB:.0f} GB of memory") from error
    if result.get("missing"):
        raise DataError(f"{path}: pypdf or python-docx is missing. Install both with: {install_command('retrieve')}")
    if result.get("problem"):
        raise UnreadableError(result["problem"])
    flowing = _flowing if path.suffix.lower() == ".pdf" else str
    return result["title"], [Section(flowing(text), heading) for heading, text in result["sections"]], result["unread"]


def _flowing(page: str) -> str:
    """Return a page's lines joined into paragraphs. Words that are hyphenated at the end of a line are joined, too."""
    text = ""
    for line in (each.strip() for each in page.splitlines()):
        if text.endswith("-") and line[:1].islower():
            text = text[:-1] + line
        else:
            text += ("\n\n" if not line else " " if not text.endswith("\n") else "") + line
    return text.strip()


SOURCE = "documents"
LICENCE = "your own document"
TABLE = "a file with one question per row is indexed on its own: --documents NAME=FILE"
FILES_MOST_BYTES = 100_000_000  # A larger file is rejected, because it is unlikely to be one document

Reader = Callable[[Path], tuple[str, list[Section]]]
"""Returns the title and sections of a file; raises UnreadableError with the reason if the file can't be read"""


READERS: dict[str, Reader] = {
    ".txt": lambda path: ("", [Section(decoded(path))]),
    ".md": read,
    ".markdown": read,
    ".html": read_html,
    ".htm": read_html,
}


def read_files(path: Path, rejects: Rejects, name: str = SOURCE) -> Iterator[Document]:
    """Yield one document for each file under a folder (or for a single file), ordered by name.

    A document's id is `NAME:PATH IN THE FOLDER`, and its date is that of the file's last change. Files that can't be
    read or have no text are listed in `rejects` with the reason; files of unsupported types are only counted there.
    Hidden files and folders are skipped, and links that lead out of the folder aren't followed. Raises DataError if the
    path doesn't exist or has no file of a supported type.
    """
    readable, others = readable_files(path)
    for file in others:
        kind = file.suffix.lower()
        reason = TABLE if kind in FORMATS else "unsupported file type"
        rejects.count_only(name, f"{kind or 'no extension'}: {reason}")
    for file in track(readable, "Reading documents", unit="files"):
        place = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            title, sections, unread = _read(file)
        except UnreadableError as error:
            rejects.add(name, str(file), str(error), "")
            continue
        if unread:
            rejects.add(name, str(file), unread, "")
        yield Document(
            id=f"{name}:{place}",
            source=name,
            sections=sections,
            title=title or file.stem.replace("_", " ").replace("-", " "),
            url=file.resolve().as_uri(),
            licence=LICENCE,
            date=datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat(),
        )


def readable_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of supported types under a folder (or a single file), ordered by name, and all other files.

    Raises DataError if the path doesn't exist or has no file of a supported type.
    """
    files, kinds = _files(path), (*READERS, *EXTRACTED)
    readable = [file for file in files if file.suffix.lower() in kinds]
    others = [file for file in files if file.suffix.lower() not in kinds]
    if not readable:
        table = next((f" {file.name}: {TABLE}." for file in sorted(others) if file.suffix.lower() in FORMATS), "")
        raise DataError(
            f"{path}: no file that ends in {', '.join(kinds)}. Specify a folder with your documents.{table}"
        )
    return sorted(readable), others


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


def _read(file: Path) -> tuple[str, list[Section], str]:
    unread = ""
    try:
        size = file.stat().st_size
        if size > FILES_MOST_BYTES:
            raise UnreadableError(f"larger than {FILES_MOST_BYTES // 10**6} MB ({size // 10**6} MB); split it")
        if file.suffix.lower() in EXTRACTED:
            title, sections, unread = read_extracted(file)
        else:
            title, sections = READERS[file.suffix.lower()](file)
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror or error})") from error
    sections = [section for section in sections if section.text.strip()]
    if not sections:
        raise UnreadableError("contains no text")
    return title, sections, unread
