"""Markdown files: sections at headings, prose without the marks."""

from __future__ import annotations

import re
from pathlib import Path

from meditune.retrieve.passages.passage import Section
from meditune.retrieve.passages.unreadable import UnreadableError

_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*$")
_UNDERLINE = re.compile(r"(=+|-{3,})\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_LINK = re.compile(r"!?\[([^\[\]]{0,1000})\]\([^()]{0,2000}\)")
_EMPHASIS = re.compile(r"(\*\*|__|`)(?=\S)|(?<=\S)(\*\*|__|`)")


def decoded(path: Path) -> str:
    """The text of a file in UTF-8, or UTF-16 with its mark. Raises UnreadableError where it is neither, or no text."""
    data = path.read_bytes()
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text at byte {error.start}; convert it") from error
    if "\0" in text:
        raise UnreadableError("not text: it holds zero bytes")
    return text


def read(path: Path) -> tuple[str, list[Section]]:
    """The first heading as title, and the prose under each heading."""
    lines = decoded(path).splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        lines = lines[lines.index("---", 1) + 1 :]  # metadata of static site generators
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


def _bare(line: str) -> str:
    return _EMPHASIS.sub("", _LINK.sub(r"\1", line))
