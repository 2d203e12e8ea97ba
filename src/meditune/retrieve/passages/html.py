"""HTML files: title, sections at headings, the text that a reader would see.

Python's own parser is used: it never fetches, runs or expands anything, and takes broken markup as it comes.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from meditune.retrieve.passages.passage import Section
from meditune.retrieve.passages.unreadable import UnreadableError

UNSEEN = {"script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "iframe"}
UNSEEN |= {"object", "head"}
BLOCKS = {"p", "div", "section", "article", "main", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "br", "hr"}
BLOCKS |= {"blockquote", "pre", "figcaption"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
MOST_BYTES = 20_000_000
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]{1,40})""", re.IGNORECASE)


def read(path: Path) -> tuple[str, list[Section]]:
    """Title, and the text under each heading; page furniture (menus, scripts, forms) is left out.

    Raises UnreadableError where it is too long.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UnreadableError(f"longer than {MOST_BYTES // 10**6} MB, which no page for readers is")
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
    """Without comments and without tags that never end: for each of these the parser would search the whole rest."""
    parts: list[str] = []
    at = 0
    while (start := markup.find("<!--", at)) >= 0:
        parts.append(markup[at:start])
        end = markup.find("-->", start)
        at = end + 3 if end >= 0 else len(markup)
    text = re.sub(r"<[!?]\S{0,20}", "<meta ", "".join([*parts, markup[at:]]))
    last = text.rfind(">") + 1
    return text[:last] + text[last:].replace("<", " ")


class _Reader(HTMLParser):
    """Collects sections; an unclosed unseen element ends with the element around it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        """Unseen elements that are open, the outermost first"""
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
            # A line that breaks in the source is a blank on the page.
            self._add(re.sub(r"\s+", " ", data))

    def _add(self, text: str) -> None:
        if not self._open:
            (self._sections[-1][1] if self._heading is None else self._heading).append(text)

    def found(self) -> tuple[str, list[Section]]:
        """Title, else the first heading; and the sections in order."""
        if self._heading:
            self._sections.append(("", self._heading))  # a heading that is never closed is text
        title = " ".join("".join(self._title).split())
        named = title or next((name for name, _ in self._sections if name), "")
        return named, [Section("".join(text), "" if name == named else name) for name, text in self._sections]
