"""Program that prints the text of one PDF or Word file. text_files.py runs it in a process with limited memory.

    python pdf_docx_text.py FILE PAGES GB CHARACTERS

PAGES, GB (of memory) and CHARACTERS are limits. The program prints a JSON object with the keys "title", "sections" and
"unread", or with the key "problem" or "missing". Each section is a list [heading, text].
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FEWEST_CHARACTERS_A_PAGE = 20  # A page with an image and fewer characters than this counts as a scan


def pdf(path: str, max_pages: int, max_characters: int) -> dict[str, Any]:
    """Return the title, a section for each page with text, and a note on scanned pages; or only the problem.

    Raises pypdf's errors.
    """
    import pypdf

    reader = pypdf.PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        return {"problem": "encrypted; save it without a password"}
    if len(reader.pages) > max_pages:
        return {"problem": f"{len(reader.pages):,} pages, more than {max_pages:,}; split it"}
    sections: list[tuple[str, str]] = []
    images: list[str] = []
    characters = 0
    for number, page in enumerate(reader.pages, 1):
        text = _page_text(page)
        characters += len(text)
        if characters > max_characters:
            return {"problem": f"more than {max_characters:,} characters; split it"}
        if len(text.strip()) < FEWEST_CHARACTERS_A_PAGE and len(page.images):
            images.append(str(number))
        if text.strip():
            sections.append((f"Page {number}", text))
    if characters < FEWEST_CHARACTERS_A_PAGE * max(1, len(reader.pages)):
        return {"problem": "only images of pages, without text; run text recognition (OCR) on it first"}
    ocr = "run text recognition (OCR) on them. The other pages were read"
    unread = f"with pages that are images of text ({', '.join(images)}); {ocr}" if images else ""
    title = str((reader.metadata and reader.metadata.title) or "").strip()
    return {"title": title, "sections": sections, "unread": unread}


def _page_text(page: Any) -> str:
    """Return the page's text. A superscript follows a caret: smaller text that starts above the line before it."""
    pieces: list[tuple[str, float, float]] = []  # the text, its height above the page's lower edge, its size

    def collect(text: str, user: Any, matrix: Any, _font: Any, size: float) -> None:
        above = matrix[4] * user[1] + matrix[5] * user[3] + user[5]
        pieces.append((text, above, size * abs(matrix[3] * user[3])))

    text = str(page.extract_text(visitor_text=collect))
    marked, line = "", (0.0, 0.0)
    for piece, above, size in pieces:
        rise = above - line[0]
        raised = size < 0.85 * line[1] and 0.15 * line[1] < rise < 0.8 * line[1]
        is_after_word = marked[-1:].isalnum() or marked[-1:] == ")"
        marked += with_caret(piece) if raised and is_after_word else piece
        if piece.strip() and not raised:
            line = above, size
    return marked if marked.replace("^", "") == text.replace("^", "") else text


OLD_WORD = b"\xd0\xcf\x11\xe0"  # First bytes of an encrypted file, and of a file in the format before .docx
HIDDEN = {"del", "moveFrom", "Fallback", "instrText"}  # Deleted or moved text, second copies of text boxes, field codes
NOT_VALID = {"strike", "dstrike", "vanish"}  # Properties of struck-out and hidden text
SUPERSCRIPT = re.compile(r"(?!(?:st|nd|rd|th|tm)\b)[-+\u2212\u2013]?[^\W_]", re.IGNORECASE)
WHITESPACE = {"tab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
SYMBOLS = {
    "symbol": dict(
        zip(
            (*range(0x20, 0x60), *range(0x61, 0x7F), *range(0xA0, 0xBD), *range(0xBF, 0xE6), 0xF1, 0xF2),
            " !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_αβχδεφγηιϕκλµνοπθρστυϖωξψζ{|}∼"
            "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊〈®©™∑〉∫",
            strict=True,
        )
    ),
    "wingdings": dict(zip(b"lno\x9f\xa7\xa8\xd8\xdf\xe0\xe1\xe2\xe8\xfb\xfc\xfd\xfe", "●■□•▪□➢←→↑↓→✗✓☒☑", strict=True)),
    "": {0xB7: "•"},  # copied from a list
}  # Font -> code -> character. Symbol: https://www.unicode.org/Public/MAPPINGS/VENDORS/ADOBE/symbol.txt
PRIVATE = re.compile("[\ue000-\uf8ff]")  # Characters whose meaning depends on the font
CODE = re.compile(r"(?!0+\Z|D[89A-F]..)[0-9A-F]{1,4}", re.IGNORECASE)  # Of a character: no zero, no half of a pair
MOST_CODES = 5  # Number of unknown symbols that the note names


def docx(path: str, max_characters: int) -> dict[str, Any]:
    """Return the title, the text under each heading, the footnotes and endnotes, and a note; or only the problem.

    The text is read from the XML, because python-docx's own paragraphs lack tracked insertions, content controls and
    text boxes. Symbols whose meaning isn't known become U+FFFD, and the note names their codes. Raises python-docx's
    errors for a damaged file.
    """
    with Path(path).open("rb") as stream:
        if stream.read(4) == OLD_WORD:
            return {"problem": "encrypted, or in the format before .docx; save it as .docx without a password"}
    import docx as library
    from docx.oxml import parse_xml

    opened = library.Document(path)
    title, heading = "", ""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for level, text in _blocks(opened.element.body, _headings(opened.styles)):
        if level == "Title" and not title:
            title = text
        elif level:
            heading = text
            sections.append((heading, []))
        else:
            sections[-1][1].append(text)
    for part in opened.part.package.iter_parts():
        if str(part.partname).endswith(("/footnotes.xml", "/endnotes.xml")):
            notes = [text for _, text in _blocks(parse_xml(part.blob), {})]
            sections.append(("Notes", notes))
    texts = [(heading, "\n\n".join(parts)) for heading, parts in sections if parts]
    if sum(len(text) for _, text in texts) > max_characters:
        return {"problem": f"more than {max_characters:,} characters; split it"}
    if not texts and opened.element.body.xpath(".//w:drawing | .//w:pict"):
        return {"problem": "only images, without text; run text recognition (OCR) on it first"}
    title = title or str(opened.core_properties.title or "").strip()
    every = title + "".join(heading + text for heading, text in texts)
    codes = sorted({f"{ord(char):X}" for char in PRIVATE.findall(every)})
    listed = ", ".join(codes[:MOST_CODES]) + (" and others" if len(codes) > MOST_CODES else "")
    rest = "replace them with ordinary characters. The other text was read"
    unread = f"with symbols of a font that aren't text (codes {listed}); {rest}" if codes else ""
    known = [(PRIVATE.sub("\ufffd", heading), PRIVATE.sub("\ufffd", text)) for heading, text in texts]
    return {"title": PRIVATE.sub("\ufffd", title), "sections": known, "unread": unread}


def _headings(styles: Any) -> dict[str, str]:
    """Return the styles of titles and headings, and styles based on these: id -> name of Word's own style."""
    found = {}
    for style in styles:
        base = style
        while base is not None and not (base.name == "Title" or (base.name or "").startswith("Heading ")):
            base = getattr(base, "base_style", None)
        if base is not None:
            found[style.style_id] = base.name
    return found


def _blocks(element: Any, headings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (heading style, text) for each paragraph and table row with text; the style is "" if there is none.

    A row's cells are separated by vertical bars. The text of a cell merged across rows is in the first row only.
    """
    for child in element:
        kind = _tag(child)
        if kind == "p":
            style = child.find("{*}pPr/{*}pStyle")
            text = "".join(_text(child)).strip()
            level = "" if style is None else next((headings.get(value, "") for value in style.attrib.values()), "")
            if text:
                yield level, " ".join(text.split()) if level else text
        elif kind == "tr":
            row = " | ".join(" ".join("".join(_text(cell)).split()) for cell in _cells(child))
            if row.strip(" |"):
                yield "", row
        elif kind not in HIDDEN:
            yield from _blocks(child, headings)


def _cells(row: Any) -> Iterator[Any]:
    for child in row:
        if _tag(child) == "tc":
            yield child
        else:
            yield from _cells(child)


def _text(element: Any) -> Iterator[str]:
    kind = _tag(element)
    if kind in HIDDEN or any(
        _tag(each) in NOT_VALID and not {"0", "false", "off"}.intersection(each.attrib.values())
        for each in element.iterfind("{*}rPr/*")
    ):
        return
    if kind == "t":
        yield _characters(element)
    elif kind == "sym":
        values = {_name(key): value for key, value in element.attrib.items()}
        code = values.get("char", "")
        yield _symbol(int(code, 16), values.get("font", "")) if CODE.fullmatch(code) else "\ufffd"
    yield WHITESPACE.get(kind, "")
    raised = ""  # a superscript may consist of several runs
    for child in element:
        text = "".join(_text(child))
        position = child.find("{*}rPr/{*}vertAlign") if _tag(child) == "r" else None
        if position is not None and "superscript" in position.attrib.values():
            raised += text
        elif text:
            yield with_caret(raised) + text
            raised = ""
    yield with_caret(raised)
    if kind == "p":
        yield "\n"


def _characters(element: Any) -> str:
    """Return the text of a w:t element. In the font Symbol, letters and private codes are Greek letters and signs."""
    text = str(element.text or "")
    fonts = element.getparent().find("{*}rPr/{*}rFonts")
    names = {} if fonts is None else {_name(key): value for key, value in fonts.attrib.items()}
    if names.get("ascii") == "Symbol":
        text = re.sub("[ -~]", lambda match: _symbol(ord(match[0]), "Symbol"), text)
    font = next((name for name in names.values() if name.lower() in SYMBOLS), "")
    return PRIVATE.sub(lambda match: _symbol(ord(match[0]), font), text)


def _symbol(code: int, font: str) -> str:
    """Return the character with this code in a font of symbols; a private character if the meaning isn't known."""
    if code < 0x100 and (font == "Symbol" or "dings" in font):
        code += 0xF000
    return SYMBOLS.get(font.lower(), {}).get(code - 0xF000, chr(code))


def with_caret(superscript: str) -> str:
    """Return the text of a superscript, after a caret if it is an exponent, a charge or the like: 10^9, but 1st."""
    text = superscript.lstrip()
    return f"^{text}" if SUPERSCRIPT.match(text) else superscript


def _tag(element: Any) -> str:
    return _name(str(element.tag))


def _name(qualified: str) -> str:
    return qualified.rpartition("}")[2]


def main(path: str, max_pages: str, max_gb: str, max_characters: str) -> dict[str, Any]:
    """Read the file and return the result to print."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (int(float(max_gb) * 2**30),) * 2)
    kind = "Word file" if path.lower().endswith(".docx") else "PDF"
    try:
        if kind == "PDF":
            return pdf(path, int(max_pages), int(max_characters))
        return docx(path, int(max_characters))
    except ModuleNotFoundError:
        return {"missing": "pypdf or python-docx is missing"}
    except Exception as error:  # noqa: BLE001 (a damaged file can raise any error; this process does nothing else)
        if type(error).__name__ == "DependencyError":  # pypdf's error for a file that needs an optional package
            return {"missing": f"pypdf can't read this file: {error}"}
        return {"problem": f"a damaged or unusual {kind} ({type(error).__name__}: {str(error)[:200]})"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
