"""The user's own documents: text, Markdown, HTML, PDF and Word files in a folder. Unreadable files are reported.

lxml's HTML parser fetches and runs nothing. PDF and Word files are read in a separate process, so that a malicious file
can't exhaust memory or time.
"""

from __future__ import annotations

import codecs
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    return _sections(_seen_elements(_decoded(path.read_bytes())))


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


def _seen_elements(markup: str) -> Any:
    """Return the root of a page's elements without those that a reader of the page doesn't see; None for no elements.

    A landmark, such as <aside>, and struck-out text count as not seen, unless they have no end tag.
    """
    try:
        from lxml import etree
    except ImportError as error:
        raise DataError(f"HTML pages need lxml. Install it with: {install_command('retrieve')}") from error
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    root = etree.fromstring(_repaired(markup).encode(), parser)
    if root is None:
        return None
    ends = Counter(tag.lower() for tag in re.findall(r"</(\w+)", markup))
    starts = Counter(element.tag for element in root.iter())
    unseen = UNSEEN | {tag for tag in LANDMARKS | STRUCK if ends[tag] >= starts[tag]}
    seen_in = {"header": {"main", "article"}, "button": HEADINGS}
    for element in root.iter():
        is_hidden = element.get("hidden", "until-found") != "until-found"
        is_hidden |= bool(_INVISIBLE.search(element.get("style", "")))
        around = seen_in.get(element.tag, ())
        is_unseen = element.tag in unseen and not any(each.tag in around for each in element.iterancestors(*around))
        if (is_hidden and element.tag not in ("html", "body")) or is_unseen:
            element.tag = "template"
    etree.strip_elements(root, "template", with_tail=False)
    return root


def _sections(root: Any) -> tuple[str, list[Section]]:
    """Return the title of a page, or else its first heading, and its text under each heading."""
    from lxml import etree

    text = _PageText()
    title = ""
    for event, element in etree.iterwalk(root, events=("start", "end")) if root is not None else ():
        if element.tag == "title" and event == "start":
            title = title or " ".join((element.text or "").split())
        elif event == "start":
            text.start(element.tag)
            text.add_words(element.text or "")
        else:
            text.end(element.tag)
            text.add_words(element.tail or "")
    named = title or next((name for name, _ in text.sections if name), "")
    found = ((_table_rows("".join(parts)), name) for name, parts in text.sections)
    return named, [Section(body, "" if name == named else name) for body, name in found]


class _PageText:
    """Collects a page's text in `sections` (heading, texts) from the start and end of each element."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, list[str]]] = [("", [])]
        self._heading: list[str] | None = None
        self._in_row = self._in_superscript = False
        self._pre = 0
        """Number of open <pre> elements"""

    def start(self, tag: str) -> None:
        if self._heading and tag != "br" and tag in BLOCKS | HEADINGS:
            self._end_heading()
        if tag in HEADINGS:
            self._heading = []
        elif tag in CELLS:
            self._add(CELL if self._in_row else ROW)
            self._in_row = True
        else:
            self._break_line(tag)
        self._in_superscript |= tag == "sup"
        self._pre += tag == "pre"

    def end(self, tag: str) -> None:
        if tag in HEADINGS:
            self._end_heading()
        if tag not in ("br", "hr"):
            self._break_line(tag)
        self._in_superscript &= tag != "sup"
        self._pre -= tag == "pre"

    def _break_line(self, tag: str) -> None:
        if tag in ("table", "tr"):
            self._add(ROW)
            self._in_row = False
        if tag in BLOCKS:
            self._add("\n")

    def _end_heading(self) -> None:
        if self._heading is not None:
            self.sections.append((" ".join("".join(self._heading).split()), []))
            self._heading = None

    def add_words(self, text: str) -> None:
        # A line break in the source is a space on the page, except in <pre>. In a table, a row stays one line.
        text = re.sub(r"[^\S\n]+" if self._pre and not self._in_row else r"\s+", " ", text)
        if self._in_superscript and text.strip():
            text = pdf_docx_text.with_caret(text)
            self._in_superscript = False
        self._add(text)

    def _add(self, text: str) -> None:
        if self._heading is None:
            self.sections[-1][1].append(text)
        elif self._heading or text.strip():
            self._heading.append(text)


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
