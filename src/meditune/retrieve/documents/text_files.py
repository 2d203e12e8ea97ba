"""The user's own documents: text, Markdown, HTML, PDF and Word files in a folder. Unreadable files are reported.

Python's HTML parser never fetches, runs or expands anything. PDF and Word files are read in a separate process, so that
a malicious file can't exhaust memory or time.
"""

from __future__ import annotations

import codecs
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
_NO_PARAGRAPH = re.compile(r"\s*(?:[-*+>]|\d+[.)])\s")  # A list item or quotation, below which "---" is a rule
_METADATA = re.compile(r"\s*(?:[\w.-]+:(?:\s|$)|---(?:\n|$))")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_LINK = re.compile(r"!?\[([^\[\]]{0,1000})\]\([^()]{0,2000}\)")
_STRUCK = re.compile(
    r"(?<!~)~~(?=\S)[^~]{1,1000}(?<=\S)~~(?!~)|<(del|s|strike)\b[^<>]*>(?:(?!<\1\b).){0,1000}?</\1\s*>", re.IGNORECASE
)
_POWER = r"(?<=\d)\*\*-?\d|(?<=[^\W\d_])\*\*-?\d(?![^*]*(?<=\S)\*\*(?!-?\d))"  # 10**9 and m**2, but not H**2**O
_EMPHASIS = re.compile(rf"(?!{_POWER})(?:(?:\*\*|__|`)(?=\S)|(?<=\S)(?:\*\*|__|`))")
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark. Raises UnreadableError otherwise."""
    data = path.read_bytes()
    try:
        text = codecs.utf_16_decode(data)[0] if data.startswith(UTF_16_MARKS) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text (at byte {error.start}); convert it") from error
    if "\0" in text:
        raise UnreadableError("not text: contains zero bytes")
    return text


def read(path: Path) -> tuple[str, list[Section]]:
    """Return a Markdown file's title (its first heading), and the text under each heading without markup."""
    lines = _without_comments(decoded(path)).splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:] and _METADATA.match("\n".join(lines[1:])):
        lines = lines[lines.index("---", 1) + 1 :]  # skip the metadata (front matter) of static site generators
    title, heading, fence = "", "", ""
    sections: list[Section] = []
    body: list[str] = []
    for line in lines:
        mark = _FENCE.match(line)
        if fence and line.strip().startswith(fence) and not line.strip(f"{fence[0]} \t"):
            fence = ""
            continue
        if mark and not fence:
            fence = mark[1]
            continue
        found = None if fence else _HEADING.match(line)
        below_text = not fence and body and body[-1].strip() and not _NO_PARAGRAPH.match(body[-1])
        underlined = below_text and _UNDERLINE.fullmatch(line)
        if not found and not underlined:
            body.append(line if fence else _bare(line))
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
    return _EMPHASIS.sub("", _LINK.sub(r"\1", _STRUCK.sub("", line)))


LANDMARKS = {"nav", "header", "footer", "aside"}
UNSEEN = {"script", "style", "noscript", "template", "svg", "iframe", "object"}
UNSEEN |= {"select", "datalist", "button", "textarea"}
STRUCK = {"del", "s", "strike"}
CELLS = {"td", "th"}
BLOCKS = {"p", "div", "section", "article", "main", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "br", "hr"}
BLOCKS |= {"blockquote", "pre", "figcaption", "caption", "details", "summary", "form", "fieldset", "legend"}
BLOCKS |= CELLS | LANDMARKS
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
HEADING = "h1"  # The name under which every heading is remembered, because the end tag of any level ends a heading
NESTING = BLOCKS | UNSEEN | {HEADING}  # The end tag of a hidden inline element around one of these doesn't close it
NEVER_OPEN = {"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
ENDED_BY = {
    "p": (BLOCKS | {HEADING}) - {"br"},
    "li": {"li"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "td": {"td", "th", "tr"},
    "th": {"td", "th", "tr"},
    "tr": {"tr"},
    HEADING: {HEADING},
}  # Element without an end tag -> the start tags that end it
_INVISIBLE = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden|text-decoration(?:-line)?\s*:[^;]*line-through)",
    re.IGNORECASE,
)  # Or struck out
ROW, CELL = "\x1e", "\x1f"  # Marks at the start and end of a row, and between its cells
MOST_BYTES = 20_000_000
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]{1,40})""", re.IGNORECASE)

CHARSETS = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "shift_jis": "cp932"}
CHARSETS |= {"euc_kr": "cp949"} | dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be"), "utf-8")
"""Python's name of a declared encoding -> the encoding that browsers use instead (https://encoding.spec.whatwg.org)"""
CONTROLS = {0xDC00 + code: code for code in range(0x80, 0xA0)}  # Surrogate of a byte -> control character
NO_CHARSETS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}  # Codecs of Python only


def read_html(path: Path) -> tuple[str, list[Section]]:
    """Return an HTML file's title and the text under each heading. Raises UnreadableError if the file is too large."""
    if path.stat().st_size > MOST_BYTES:
        raise UnreadableError(f"larger than {MOST_BYTES // 10**6} MB, too large for a page")
    reader = _Reader()
    reader.feed(_closed(_decoded(path.read_bytes())))
    reader.close()
    return reader.found()


def _decoded(data: bytes) -> str:
    """Return the text of a page. Raises UnreadableError if bytes are invalid in the page's encoding, or it is unknown.

    If a page declares no encoding, it is UTF-8 or else Windows-1252, as in browsers. An incomplete character at the end
    of UTF-16 text is ignored.
    """
    declared = _CHARSET.search(data[:4096])
    name, encodings = "", ["utf-8", "cp1252"]
    if data.startswith(UTF_16_MARKS):
        encodings = ["utf-16"]
    elif data.startswith(codecs.BOM_UTF8):
        encodings = ["utf-8-sig"]
    elif declared:
        name = declared[1].decode("ascii")
        encodings = [_encoding(name)]
        if encodings[0] in ("cp1252", "cp1254"):  # In browsers, undefined bytes are control characters
            return data.decode(encodings[0], "surrogateescape").translate(CONTROLS)
    problem = ""
    for encoding in encodings:
        try:
            return codecs.utf_16_decode(data)[0] if encoding == "utf-16" else data.decode(encoding)
        except UnicodeDecodeError as error:
            said = encoding if encoding.startswith("utf") else name or encoding
            problem = problem or f"not {said} text (at byte {error.start}); convert it to UTF-8"
    raise UnreadableError(problem)


def _encoding(declared: str) -> str:
    """Return Python's name of the encoding that browsers use for a page that declares this one."""
    try:
        name = codecs.lookup(declared).name
        if name in NO_CHARSETS:
            raise LookupError
        b" ".decode(name, "replace")  # raises LookupError for codecs of other things, such as base64
    except LookupError as error:
        raise UnreadableError(f"unknown text encoding {declared}; convert it to UTF-8") from error
    return CHARSETS.get(name, name)


def _closed(markup: str) -> str:
    """Return the markup without comments and unclosed tags.

    For each of these, the parser would search the whole rest of the markup for the end.
    """
    visible = _without_comments(markup).partition("<!--")[0]
    text = re.sub(r"<[!?]\S{0,20}", "<meta ", visible)
    last = text.rfind(">") + 1
    return text[:last] + text[last:].replace("<", " ")


@dataclass(frozen=True)
class _Element:
    name: str
    is_hidden: bool
    start: tuple[int, int, int, bool] | None = None
    """For a landmark or struck-out text: the numbers of sections, of texts in the last section and of texts in the
    heading, and whether the next text is the first one of a superscript"""


class _Reader(HTMLParser):
    """An HTML parser that collects sections. An unclosed hidden element ends together with the element around it.

    The text of a landmark, such as <aside>, and struck-out text are removed at the end tag, so that one without an end
    tag hides nothing.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[_Element] = []
        """Open blocks and hidden elements, the outermost first; in a hidden element, all open elements"""
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        """Positions in `_open` by the element's name"""
        self._blocks: list[int] = []
        """Positions in `_open` of the elements in NESTING"""
        self._hidden = 0
        self._title: list[str] = []
        self._in_title = False
        self._in_row = False
        self._in_superscript = False
        self._heading: list[str] | None = None
        self._sections: list[tuple[str, list[str]]] = [("", [])]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self._places["svg"]:
            self._in_title = True
            return
        name = HEADING if tag in HEADINGS else tag
        while self._blocks and name in ENDED_BY.get(self._open[self._blocks[-1]].name, ()):
            self._close(self._blocks[-1])
        is_hidden = tag not in ("html", "body") and any(
            (key == "hidden" and value != "until-found") or (key == "style" and _INVISIBLE.search(value or ""))
            for key, value in attrs
        )
        is_hidden |= tag in UNSEEN and not (tag == "button" and self._heading is not None)
        if not (self._hidden or is_hidden):
            self._start(name)
        is_content = tag == "header" and (self._places["main"] or self._places["article"])
        start = None
        if tag in LANDMARKS | STRUCK and not is_content:
            numbers = (len(self._sections), len(self._sections[-1][1]), len(self._heading or ()))
            start = (*numbers, self._in_superscript)
        if tag not in NEVER_OPEN and (name in NESTING or is_hidden or start or self._hidden):
            if name in NESTING:
                self._blocks.append(len(self._open))
            self._places[name].append(len(self._open))
            self._open.append(_Element(name, is_hidden, start))
            self._hidden += is_hidden

    def _start(self, name: str) -> None:
        if self._heading and name != "br" and (name in BLOCKS or name == HEADING):
            self._end_heading()
        if name == HEADING:
            self._heading = []
        elif name in CELLS:
            self._add(CELL if self._in_row else ROW)
            self._in_row = True
        else:
            self._break_line(name)
        self._in_superscript |= name == "sup"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        name = HEADING if tag in HEADINGS else tag
        places, was_hidden = self._places[name], self._hidden
        closes_blocks = name in NESTING or (name in STRUCK and not self._hidden)
        if places and (closes_blocks or not self._blocks or self._blocks[-1] < places[-1]):
            element = self._open[places[-1]]
            self._close(places[-1])
            if element.start:
                number, texts, heading_texts, self._in_superscript = element.start
                del self._sections[number:], self._sections[-1][1][texts:], (self._heading or [])[heading_texts:]
        if not was_hidden:
            self._break_line(name)
        self._in_superscript &= name != "sup"

    def _break_line(self, name: str) -> None:
        if name in ("table", "tr"):
            self._add(ROW)
            self._in_row = False
        if name in BLOCKS:
            self._add("\n")

    def _close(self, place: int) -> None:
        """Close the open element at this position, and those in it."""
        while len(self._open) > place:
            element = self._open.pop()
            self._places[element.name].pop()
            if self._blocks[-1:] == [len(self._open)]:
                self._blocks.pop()
            self._hidden -= element.is_hidden
            if element.name == HEADING:
                self._end_heading()

    def _end_heading(self) -> None:
        if self._heading is not None:
            self._sections.append((" ".join("".join(self._heading).split()), []))
            self._heading = None

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
            return
        # A line break in the source is a space on the page, except in <pre>. In a table, a row stays one line.
        is_pre = self._places["pre"] and not self._in_row
        text = re.sub(r"[^\S\n]+" if is_pre else r"\s+", " ", data)
        if self._in_superscript and not self._hidden and text.strip():
            text = pdf_docx_text.with_caret(text)
            self._in_superscript = False
        self._add(text)

    def _add(self, text: str) -> None:
        if self._hidden:
            return
        if self._heading is None:
            self._sections[-1][1].append(text)
        elif self._heading or text.strip():
            self._heading.append(text)

    def found(self) -> tuple[str, list[Section]]:
        """Return the title, or else the first heading, and the sections in order."""
        if self._heading:
            self._sections.append(("", self._heading))  # an unclosed heading counts as text
        title = " ".join("".join(self._title).split())
        named = title or next((name for name, _ in self._sections if name), "")
        return named, [
            Section(_table_rows("".join(text)), "" if name == named else name) for name, text in self._sections
        ]


def _table_rows(text: str) -> str:
    """Return the text with vertical bars in place of the marks between cells, and without rows of empty cells."""
    joined = " | ".join(cell.strip(" \n") for cell in text.strip(f"{CELL} \n").split(CELL))
    lines = (line for line in joined.split("\n") if ROW not in line or line.strip(f"{ROW} |"))
    return "\n".join(lines).replace(ROW, "")


MOST_PAGES = 5_000
MOST_SECONDS = 120.0
MOST_GB = 2.0
MOST_CHARACTERS = 20_000_000
EXTRACTED = (".pdf", ".docx")


def read_extracted(path: Path) -> tuple[str, list[Section], str]:
    """Return the title, a section for each page (PDF) or heading (Word), and a note on unread pages, or "".

    Raises UnreadableError if the file is encrypted, damaged, contains only images of text, or takes too much time or
    memory. Raises DataError if pypdf, python-docx or a package that pypdf needs for the file isn't installed.
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
        raise DataError(f"{path}: {result['missing']}. Install what is missing with: {install_command('retrieve')}")
    if result.get("problem"):
        raise UnreadableError(_repaired(result["problem"]))
    flowing = _flowing if path.suffix.lower() == ".pdf" else str
    return result["title"], [Section(flowing(text), heading) for heading, text in result["sections"]], result["unread"]


HYPHENATED = {"alpha", "beta", "gamma", "delta", "non"}
"""Words that keep the hyphen at the end of a line. In "anti-" and "biotic", the hyphen is no part of the word."""


def _flowing(page: str) -> str:
    """Return a page's lines joined into paragraphs. Words that are hyphenated at the end of a line are joined, too.

    The hyphen stays after a digit, the words in HYPHENATED and a single letter, as in 5-fluorouracil, beta-blocker and
    T-cell, but not after "a" and "I", which begin words such as "a-bout". A dash after a space isn't a hyphen.
    """
    text = ""
    for line in (each.strip() for each in page.splitlines()):
        if re.search(r"\S-\Z", text[-2:]) and line[:1].islower():
            first = re.split(r"\W+", text[-20:-1])[-1]
            is_name = (len(first) < 2 and first not in ("a", "I")) or first.lower() in HYPHENATED
            text = (text if is_name or first[-1].isdigit() else text[:-1]) + line
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
        place = place.encode(errors="backslashreplace").decode()  # the name of a file can be invalid UTF-8
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
            title=title or Path(place).stem.replace("_", " ").replace("-", " "),
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
    repaired = [Section(_repaired(section.text), _repaired(section.heading)) for section in sections]
    sections = [section for section in repaired if section.text.strip()]
    if not sections:
        raise UnreadableError("contains no text")
    return _repaired(title), sections, unread


def _repaired(text: str) -> str:
    """Return the text with U+FFFD in place of lone surrogates, which UTF-8 can't encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
