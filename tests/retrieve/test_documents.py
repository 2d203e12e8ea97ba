"""The user's own documents and PubMed's XML: what is read, what is left out and why, where prose is cut."""

from __future__ import annotations

import gzip
import os
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.retrieve import collections
from meditune.retrieve.documents import pdf_docx_text, pubmed_articles, text_files
from meditune.retrieve.documents.document import MOST_CHARACTERS, MOST_WORDS, Document, Section, split_text
from tests import corpus, layouts

HTML = """<!doctype html><html><head><title>Gout &amp; you</title><style>p {color: red}</style></head><body>
<nav>Menu</nav><h1>Gout &amp; you</h1><p>Uric acid<br>crystals.<script>alert("x")</script></p>
<h2>Treatment</h2><ul><li>Rest</li><li>Colchicine</li></ul><footer>Imprint</footer></body></html>"""


def sections(folder: Path, rejects: Rejects | None = None) -> dict[str, list[tuple[str, str]]]:
    read = text_files.read_files(folder, Rejects() if rejects is None else rejects)
    return {each.id: [(part.heading, part.text.strip()) for part in each.sections] for each in read}


def reasons(rejects: Rejects) -> dict[str, str]:
    return {Path(row["where"]).name: row["reason"] for row in rejects.rows()}


def test_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\ntags: x\n---\nFirst.\n\n# Asthma\n\nSee **[this](http://x)**.\n\nCare\n----\nRest.\n"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text(HTML)
    (tmp_path / "c.txt").write_bytes("Müdigkeit".encode("utf-16") + b"!")
    (tmp_path / "d.htm").write_bytes('<meta charset="latin-1"><p>caf\xe9'.encode("latin-1"))
    assert sections(tmp_path) == {
        "documents:a.md": [("", "First."), ("", "See this."), ("Care", "Rest.")],
        "documents:c.txt": [("", "Müdigkeit")],
        "documents:d.htm": [("", "café")],
        "documents:sub/b.html": [("", "Uric acid\ncrystals."), ("Treatment", "Rest\n\nColchicine")],
    }
    titles = {each.id: (each.title, each.url) for each in text_files.read_files(tmp_path, Rejects(), "mine")}
    assert titles["mine:a.md"] == ("Asthma", (tmp_path / "a.md").as_uri())
    assert titles["mine:sub/b.html"][0] == "Gout & you"
    assert titles["mine:c.txt"][0] == "c"


@pytest.mark.parametrize(
    ("markup", "found"),
    [
        (
            "<table><caption>Doses</caption><tr><th>Age<th>Tablets<tr><td>6 to 8 years</td><td><p>4</p></td>"
            "<td>250 mg<table hidden><tr><td>x</table></td><td>oral</td></tr>"
            "<tr><td></td><td></td></tr><tr><td></td><td>daily</td></tr></table>Take with water.",
            [("", "Doses\nAge | Tablets\n6 to 8 years | 4 | 250 mg | oral\n | daily\nTake with water.")],
        ),
        (
            "10<sup>9</sup>/L, 10<sup>-3</sup> g, kg/m<sup>2</sup>, H<sub>2</sub>O, 1<sup>st</sup> day<sup>[2]</sup>",
            [("", "10^9/L, 10^-3 g, kg/m^2, H2O, 1st day[2]")],
        ),
        (
            "<form><header>Clinic</header><input value=x><select><option>Site</select><main><header><h1>Gout</h1>Pain."
            "</header><p>Rest.<button>Send</button></main></form>",
            [("", "Pain.\nRest.")],
        ),
        (
            "<pre>Age   Dose\n1 year 5 mg\n2 years\t10 mg</pre>Rest.<table><tr><td><pre>a\nb</pre><td>c</table>",
            [("", "Age Dose\n1 year 5 mg\n2 years 10 mg\nRest.\na b | c")],
        ),
        ("<aside>Note.<p>Rest.<footer>Imprint</footer>", [("", "Note.\nRest.")]),
        ("<p>Take <s>5 mg<br>10 mg daily.</p><table><tr><td><del>1<td>2", [("", "Take 5 mg\n10 mg daily.\n1 | 2")]),
        ("<h1>Gout<h2>Dose <s>old</s>10<sup><s>6</s>9</sup></h2>Rest.", [("Dose 10^9", "Rest.")]),
        (
            "<h1>Drug<h2>Side effects<p>Nausea.<h2>Dose<br>a day</h2>5 mg",
            [("Side effects", "Nausea."), ("Dose a day", "5 mg")],
        ),
        ("<div><h1>Gout</div>Pain.<h2><button>Care</button></h2>Rest.", [("", "Pain."), ("Care", "Rest.")]),
    ],
)
def test_pages_keep_their_tables_headings_and_text(tmp_path: Path, markup: str, found: list[tuple[str, str]]) -> None:
    (tmp_path / "a.html").write_text(markup)
    (read,) = sections(tmp_path).values()
    assert [(heading, text.replace("\n\n", "\n")) for heading, text in read] == found


@pytest.mark.parametrize(
    "hidden",
    [
        "<div hidden><div>Drink</div> bleach.</div>",
        '<p style="color: red; DISPLAY : none">Drink bleach.<p>',
        '<span style="visibility:hidden" style="">Drink bleach.</span>',
        "<b><div hidden>Drink</b> bleach.</div>",
        "<span hidden><div>Drink</span> bleach.</div></span>",
        "<h2 hidden>Drink bleach.</h2>",
        "<del>Drink <p>bleach.</p></del>",
        "<p><s>Drink</s> <strike>bleach.</strike></p>",
        "<del>Drink <p>bleach.</del>",
        "<del>Drink <h2>Care</h2><table><tr><td>bleach.</table></del>",
        '<span style="color: red; text-decoration: line-through red">Drink bleach.</span>',
    ],
)
def test_what_a_page_does_not_show_is_no_text(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "a.html").write_text(f'<body style="visibility:hidden"><input type="hidden" hidden>Rest.{hidden}Ice.')
    assert [" ".join(text.split()) for _, text in sections(tmp_path)["documents:a.html"]] in (
        ["Rest.Ice."],
        ["Rest. Ice."],
    )


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (b"<p>125 \xb5g at 38 \xb0C", "125 µg at 38 °C"),
        ("<p>INR ≥ 3".encode(), "INR ≥ 3"),
        (b"<meta charset=iso-8859-1><p>5\x9610 mg", "5–10 mg"),
        (b"<meta charset=us-ascii><p>5\x9610 mg", "5–10 mg"),
        (b"<meta charset=iso-8859-1><p>5\x9610\x81 mg", "5–10\x81 mg"),
        ("<p>5–10 mg".encode("utf-16") + b"<", "5–10 mg"),
        (b"\xef\xbb\xbf<meta charset=x-unknown><p>5 mg", "5 mg"),
        (b"<meta charset=windows-1253><p>5\xaa", "not windows-1253 text (at byte 31); convert it to UTF-8"),
        (b"<meta charset=Shift_JIS><p>5\x82", "not Shift_JIS text (at byte 28); convert it to UTF-8"),
        ("<meta charset=utf-16><p>5–10 mg".encode(), "5–10 mg"),
        (b"<meta charset=utf-8><p>5\x9610 mg", "not utf-8 text (at byte 24); convert it to UTF-8"),
        (b"<p>5\x9610\x81 mg", "not utf-8 text (at byte 4); convert it to UTF-8"),
        *(
            (f"<meta charset={name}><p>5 mg".encode(), f"unknown text encoding {name}; convert it to UTF-8")
            for name in ("undefined", "idna", "punycode", "rot13", "x-unknown")
        ),
    ],
)
def test_pages_are_decoded_as_in_browsers_or_listed(tmp_path: Path, page: bytes, text: str) -> None:
    (tmp_path / "a.html").write_bytes(page)
    rejects = Rejects()
    read = [part.text for each in text_files.read_files(tmp_path, rejects) for part in each.sections]
    assert [*read, *reasons(rejects).values()] == [text]


def test_comments_in_markdown_are_no_text(tmp_path: Path) -> None:
    text = "# Gout\n\nRest.<!-- a note\n# To the editor\n\nCheck this. --> Ice.\n\np <!-- 5 mg\n"
    (tmp_path / "a.md").write_text(text)
    assert sections(tmp_path)["documents:a.md"] == [("", "Rest. Ice.\n\np <!-- 5 mg")]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("WBC **10**9/L** and 2**3, kg/m**2, 10**-3", "WBC 10**9/L and 2**3, kg/m**2, 10**-3"),
        ("dose**5 mg**, H**2**O, kg/m**2 or **10 mg**", "dose5 mg, H2O, kg/m**2 or 10 mg"),
        ("**Dose:** __5__ `mg`", "Dose: 5 mg"),
        ("```metformin 500 mg```\n**Rest.**", "metformin 500 mg\nRest."),
        ("````text\n```\n**a**\n```\n````\n**Rest.**", "```\n**a**\n```\nRest."),
        ("~~~\n```\n**a**\n~~~\n**Rest.**", "```\n**a**\nRest."),
        ("~~~ a~b\n**a**\n~~~\n**Rest.**", "**a**\nRest."),
    ],
)
def test_markdown_loses_its_marks_but_no_powers_or_code(tmp_path: Path, markup: str, text: str) -> None:
    (tmp_path / "a.md").write_text(markup)
    assert sections(tmp_path)["documents:a.md"] == [("", text)]


@pytest.mark.parametrize("text", ["---\nRest.\n\n---\n\nIce.", "- Rest.\n- Ice.\n---\nDiet.", "> Rest.\n---\nIce."])
def test_rules_in_markdown_hide_no_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text)
    assert sections(tmp_path)["documents:a.md"] == [("", text)]


def test_struck_out_text_in_markdown_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "Take ~~10 mg~~ 1 mg, <DEL>not 2 mg,</DEL>for ~~ 5 to ~~7 days.\n\n~~~\n~~a~~\n~~~\n"
    )
    assert sections(tmp_path)["documents:a.md"] == [("", "Take  1 mg, for ~~ 5 to ~~7 days.\n\n~~a~~")]


def test_what_gives_no_text_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("Good.")
    (tmp_path / "blank.md").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "outside.txt").symlink_to("/etc/hostname")
    rejects = Rejects()
    assert list(sections(tmp_path, rejects)) == ["documents:good.txt"]
    assert reasons(rejects) == {
        "binary.txt": "not text: contains zero bytes",
        "blank.md": "contains no text",
        "latin.txt": "not UTF-8 text (at byte 3); convert it",
    }
    assert rejects.counts()["documents"][".png: unsupported file type"] == 1
    with pytest.raises(DataError, match=r"no file that ends in \.txt"):
        list(text_files.read_files(tmp_path / "picture.png", Rejects()))
    with pytest.raises(DataError, match="no such file or folder"):
        list(text_files.read_files(tmp_path / "none", Rejects()))


@pytest.mark.parametrize(
    "unit",
    [
        "<div>",
        "<",
        "<p a=1 ",
        "<!--",
        "<!-- >",
        "<!d",
        "<![CDATA[ >",
        "<? ",
        "</",
        "<p a='",
        "<script>",
        "&#",
        "<a>",
        "<h2><p>",
        "<s><p>",
        "<s>a</s>",
    ],
)
def test_hostile_markup_takes_no_time(tmp_path: Path, unit: str) -> None:
    (tmp_path / "a.html").write_text("<p>before</p>" + unit * 50_000 + "after")
    started = time.process_time()
    assert "before" in sections(tmp_path)["documents:a.html"][0][1]
    assert time.process_time() - started < 5


def page(content: bytes, extra: str = "", media: str = "", second: str = "") -> bytes:
    """A PDF of one page, or of two with the resources of the second, which is otherwise empty."""
    kids = "[3 0 R 6 0 R] /Count 2" if second else "[3 0 R] /Count 1"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids {kids} >>".encode(),
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R {media} >>".encode(),
        f"<< /Length {len(content)} {extra} >>\nstream\n".encode() + content + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {second} >>".encode(),
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>"
        b"\nstream\n0\nendstream",
    ]
    made, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(made))
        made += f"{number} 0 obj\n".encode() + each + b"\nendobj\n"
    table = b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF\n".encode()
    return made + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode() + table + end


FONT = "/Resources << /Font << /F1 5 0 R >> >>"
IMAGE = "7 0 R"


def test_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdf")
    monkeypatch.setattr(text_files, "MOST_GB", 0.6)
    said = b"BT /F1 12 Tf 50 700 Td (Colchicine calms an attack of in-) Tj 0 -14 Td (flamed joints.) Tj ET"
    (tmp_path / "good.pdf").write_bytes(page(said, media=FONT))
    (tmp_path / "scan.pdf").write_bytes(page(b"q 600 0 0 800 0 0 cm Q"))
    (tmp_path / "mixed.pdf").write_bytes(page(said, media=FONT, second=f"/Resources << /XObject << /I {IMAGE} >> >>"))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing here")
    squeezed = zlib.compress(zlib.compress(b" " * 300_000_000, 9), 9)
    (tmp_path / "bomb.pdf").write_bytes(page(squeezed, "/Filter [/FlateDecode /FlateDecode]", FONT))
    rejects = Rejects()
    assert sections(tmp_path, rejects) == {
        f"documents:{name}.pdf": [("Page 1", "Colchicine calms an attack of inflamed joints.")]
        for name in ("good", "mixed")
    }
    said_of = reasons(rejects)
    assert "OCR" in said_of["scan.pdf"]
    assert said_of["mixed.pdf"] == (
        "with pages that are images of text (2); run text recognition (OCR) on them. The other pages were read"
    )
    assert said_of["broken.pdf"].startswith("a damaged or unusual PDF")
    assert said_of["bomb.pdf"]


def test_exponents_in_a_pdf_follow_a_caret(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    said = (
        b"BT /F1 12 Tf 50 700 Td (Under 150 x 10) Tj /F1 8 Tf 79 4 Td (9) Tj /F1 12 Tf 5 -4 Td (/L and H) Tj "
        b"/F1 8 Tf 45 -2 Td (2) Tj /F1 12 Tf 5 2 Td (O.) Tj /F1 8 Tf -184 -20 Td (5 small words) Tj ET"
    )
    (tmp_path / "a.pdf").write_bytes(page(said, media=FONT))
    assert sections(tmp_path) == {"documents:a.pdf": [("Page 1", "Under 150 x 10^9/L and H2O. 5 small words")]}


def test_hyphens_of_names_stay_at_the_end_of_a_pdfs_line(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    lines = ("Give 5-", "fluorouracil, beta-", "blockers, T-", "cells or non-", "steroidal anti-", "biotics. I-")
    lines += ("buprofen: a-", "bout 400 mg -", "daily.")
    drawn = "0 -14 Td ".join(f"({line}) Tj " for line in lines)
    (tmp_path / "a.pdf").write_bytes(page(f"BT /F1 12 Tf 50 700 Td {drawn} ET".encode(), media=FONT))
    text = "Give 5-fluorouracil, beta-blockers, T-cells or non-steroidal antibiotics. Ibuprofen: about 400 mg - daily."
    assert sections(tmp_path) == {"documents:a.pdf": [("Page 1", text)]}


def test_a_pdf_encrypted_without_a_password_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pypdf = pytest.importorskip("pypdf")
    (tmp_path / "open.pdf").write_bytes(page(b"BT /F1 12 Tf 50 700 Td (Colchicine calms an attack.) Tj ET", media=FONT))
    writer = pypdf.PdfWriter(tmp_path / "open.pdf")
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")
    assert sections(tmp_path / "locked.pdf") == {"documents:locked.pdf": [("Page 1", "Colchicine calms an attack.")]}

    program = tmp_path / "program.py"
    hidden = "import runpy, sys\nsys.modules['cryptography'] = sys.modules['Crypto'] = None\n"
    program.write_text(f"{hidden}runpy.run_path({pdf_docx_text.__file__!r}, run_name='__main__')\n")
    monkeypatch.setattr(pdf_docx_text, "__file__", str(program))
    with pytest.raises(DataError, match=r"locked.pdf: .*cryptography.* is required .* pip install .*\[retrieve\]"):
        sections(tmp_path / "locked.pdf")


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    codes = b"begincmap 1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <D835> endbfchar endcmap"
    font = "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >> >> >>"
    made = page(b"BT /F1 12 Tf 50 700 Td (Gout attacks hurt: A) Tj ET", media=font)
    stream = b"/Length %d >>\nstream\n%b\nendstream" % (len(codes), codes)
    (tmp_path / "a.pdf").write_bytes(made.replace(b"/Length 1 >>\nstream\n0\nendstream", stream))
    (tmp_path / "b.html").write_bytes(b'<meta charset="utf-7">Rest +2AA-')
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("Ice.")
    found = list(text_files.read_files(tmp_path, Rejects()))
    assert [(each.id, each.sections[0].text) for each in found] == [
        ("documents:a.pdf", "Gout attacks hurt: \ufffd"),
        ("documents:b.html", "Rest \ufffd"),
        ("documents:caf\\udce9.txt", "Ice."),
    ]


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def test_word_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also tracked changes, content controls, merged cells and footnotes, which python-docx itself leaves out."""
    library = pytest.importorskip("docx")
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part
    from docx.oxml import parse_xml

    monkeypatch.setattr(text_files, "MOST_GB", 0.6)
    made = library.Document()
    made.core_properties.title = "Template"
    made.add_paragraph("Gout guideline", style="Title")
    adults = made.add_paragraph("For adults with 10")
    for text, raised in (("\u2212", True), ("3", True), (" g, on the 1", False), ("st", True), (" day.", False)):
        adults.add_run(text).font.superscript = raised
    made.add_heading("Treatment", 1)
    style = made.styles.add_style("Our heading", 1)
    style.base_style = made.styles["Heading 2"]
    made.add_paragraph("Doses", style=style)
    table = made.add_table(rows=3, cols=3)
    cells = [("Drug", "Dose", "Days"), ("Colchicine", "0.5 mg", "7"), ("Ibuprofen", "400 mg", "3")]
    for row, texts in zip(table.rows, cells, strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    table.cell(2, 1).merge(table.cell(2, 2))
    run = "<w:r><w:t>{}</w:t></w:r>"
    changed = f"<w:ins>{run.format('Start early')}</w:ins><w:del><w:r><w:delText>late</w:delText></w:r></w:del>"
    control = (
        f"<w:sdt {W}><w:sdtContent><w:p>{changed}<w:r><w:tab/><w:t>and rest.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    made.element.body.insert(-1, parse_xml(control))
    note = (
        f"<w:footnotes {W}><w:footnote><w:p>{run.format('Less with kidney disease.')}</w:p></w:footnote></w:footnotes>"
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    made.part.relate_to(Part(PackURI("/word/footnotes.xml"), kind, note.encode(), made.part.package), f"{W[9:-1]}/f")
    made.save(tmp_path / "gout.docx")
    with zipfile.ZipFile(tmp_path / "gout.docx") as good:
        parts = {name: good.read(name) for name in good.namelist()}
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "lol">{entities}]><w:document {W}><w:body><w:p><w:r><w:t>&l11;</w:t></w:r></w:p>'
    bodies = {"bomb": f"{bomb}</w:body></w:document>".encode(), "huge": b" " * 300_000_000}
    for name, body in bodies.items():
        with zipfile.ZipFile(tmp_path / f"{name}.docx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bad:
            for part, content in parts.items():
                bad.writestr(part, body if part == "word/document.xml" else content)
    (tmp_path / "broken.docx").write_bytes(b"PK no zip")
    (tmp_path / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0 an encrypted file")
    (tmp_path / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    library.Document().save(tmp_path / "empty.docx")
    rejects = Rejects()
    (found,) = text_files.read_files(tmp_path, rejects)
    assert found.title == "Gout guideline"
    assert [(each.heading, each.text) for each in found.sections] == [
        ("", "For adults with 10^\u22123 g, on the 1st day."),
        ("Doses", "Drug | Dose | Days\n\nColchicine | 0.5 mg | 7\n\nIbuprofen | 400 mg 3\n\nStart early and rest."),
        ("Notes", "Less with kidney disease."),
    ]
    said_of = reasons(rejects)
    assert set(said_of) == {"bomb.docx", "huge.docx", "broken.docx", "locked.docx", "empty.docx"}
    assert said_of["empty.docx"] == "contains no text"
    assert said_of["broken.docx"].startswith("a damaged or unusual Word file")
    assert "without a password" in said_of["locked.docx"]
    assert rejects.counts()["documents"][".doc: unsupported file type"] == 1


def word_file(path: Path, *runs: tuple[str, str]) -> Path:
    """A Word file of one paragraph; each run has properties and content."""
    library = pytest.importorskip("docx")
    from docx.oxml import parse_xml

    made = library.Document()
    inner = "".join(f"<w:r><w:rPr>{properties}</w:rPr>{content}</w:r>" for properties, content in runs)
    made.element.body.insert(-1, parse_xml(f"<w:p {W}>{inner}</w:p>"))
    made.save(path)
    return path


def test_symbols_in_word_files_are_text_or_listed(tmp_path: Path) -> None:
    def text(content: str) -> str:
        return f'<w:t xml:space="preserve">{content}</w:t>'

    def sign(code: str, font: str = "Symbol") -> str:
        return f'<w:sym w:font="{font}" w:char="{code}"/>'

    font = '<w:rFonts w:ascii="Symbol" w:hAnsi="Symbol"/>'
    runs = [
        ("", text("Give 125 ") + sign("F06D") + text("g if INR ") + sign("F0B3") + text(" 3 at 38") + sign("00B0")),
        (font, text("\uf061 b")),
        ("", text("-blocker ") + sign("F0E0", "Wingdings") + text(" rest")),
    ]
    rejects = Rejects()
    word_file(tmp_path / "a.docx", *runs)
    assert sections(tmp_path, rejects) == {
        "documents:a.docx": [("", "Give 125 µg if INR ≥ 3 at 38°α β-blocker → rest")]
    }
    assert not reasons(rejects)
    word_file(tmp_path / "a.docx", ("", text("Give \uf0b3 5 ") + sign("F04A", "Wingdings 2")))
    assert sections(tmp_path, rejects) == {"documents:a.docx": [("", "Give \ufffd 5 \ufffd")]}
    assert "with symbols of a font that aren't text (codes F04A, F0B3)" in reasons(rejects)["a.docx"]
    invalid = ("", "zz", "D800", "0000", "110000")
    word_file(tmp_path / "a.docx", ("", text("Rest.") + "".join(sign(code) for code in invalid)))
    assert sections(tmp_path) == {"documents:a.docx": [("", "Rest." + "\ufffd" * len(invalid))]}


def test_struck_out_and_hidden_text_in_word_files_is_no_text(tmp_path: Path) -> None:
    properties = ("", "<w:strike/>", "<w:dstrike/>", "<w:vanish w:val='1'/>", "<w:strike w:val='0'/>")
    word_file(tmp_path / "a.docx", *((each, f"<w:t>Dose{n}.</w:t>") for n, each in enumerate(properties)))
    assert sections(tmp_path) == {"documents:a.docx": [("", "Dose0.Dose4.")]}


def prose(sentences: int) -> str:
    return " ".join(f"Sentence number {n} says something about the heart." for n in range(sentences))


@pytest.mark.parametrize("text", [prose(1), prose(100), "word " * 1000, "x" * 10_000, prose(3) + "\n\n- a\n- b\n" * 60])
def test_every_word_is_in_one_piece_in_order(text: str) -> None:
    made = list(split_text(text))
    assert "".join("".join(made).split()) == "".join(text.split())
    assert all(len(piece.split()) <= MOST_WORDS * 1.2 for piece in made)
    assert all(len(piece) <= MOST_CHARACTERS * 1.1 for piece in made)


def test_it_is_cut_between_sentences_and_the_last_piece_isnt_a_scrap() -> None:
    made = list(split_text(prose(41)))
    assert all(piece.startswith("Sentence") and piece.endswith(".") for piece in made)
    assert min(len(piece.split()) for piece in made) >= 25
    assert list(split_text(" \n ")) == []


def test_no_piece_goes_over_a_heading_and_ids_are_by_place() -> None:
    document = Document(
        "d:1", "d", [Section("Cold air hurts.", "Causes"), Section("Warm air helps.", "Care")], "Asthma"
    )
    made = list(document.passages())
    assert [(each.id, each.section, each.text) for each in made] == [
        ("d:1#0", "Causes", "Cold air hurts."),
        ("d:1#1", "Care", "Warm air helps."),
    ]
    assert made[0].searched == "Asthma\nCauses\nCold air hurts."
    assert made[0].digest == next(iter(document.passages())).digest != made[1].digest


def test_an_article_has_sections_date_and_address(tmp_path: Path) -> None:
    file = corpus.articles(
        tmp_path / "a.xml", corpus.article(7, "A <i>new</i> drug", "It  helped\n<sub>2</sub>.", "1999 Jan-Feb")
    )
    (found,) = pubmed_articles.read(file, Rejects())
    assert (found.id, found.title, found.url) == ("pubmed:7", "A new drug", "https://pubmed.ncbi.nlm.nih.gov/7/")
    assert [(each.heading, each.text) for each in found.sections] == [("Results", "It helped 2.")]


def test_gz_broken_off_and_without_abstract(tmp_path: Path) -> None:
    whole = corpus.articles(tmp_path / "a.xml", corpus.article(1, "A", "First."), corpus.article(2, "B", ""))
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(whole.read_bytes().replace(b">1<", b">3<")))
    (tmp_path / "c.xml").write_bytes(whole.read_bytes().replace(b">1<", b">4<")[:-60])
    (tmp_path / "d.xml.gz").write_bytes(gzip.compress(whole.read_bytes())[:40])
    rejects = Rejects()
    assert [each.id for each in pubmed_articles.read(tmp_path, rejects)] == ["pubmed:1", "pubmed:3", "pubmed:4"]
    reasons = [row["reason"] for row in rejects.rows()]
    assert reasons.count("no abstract") == 2
    assert sum("is truncated" in reason for reason in reasons) == 2
    with pytest.raises(DataError, match=r"no \.xml or \.xml\.gz file"):
        list(pubmed_articles.read(tmp_path / "none", Rejects()))


def test_entities_that_grow_without_bound_are_stopped(tmp_path: Path) -> None:
    lines = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    corpus.articles(tmp_path / "a.xml", "<PubmedArticle>&l11;</PubmedArticle>")
    whole = (tmp_path / "a.xml").read_text()
    (tmp_path / "a.xml").write_text(whole.replace("?>", f'?><!DOCTYPE x [<!ENTITY l0 "lol">{lines}]>'))
    rejects = Rejects()
    assert list(pubmed_articles.read(tmp_path / "a.xml", rejects)) == []
    assert len(rejects) == 1


def test_each_malformed_record_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    """Also where records lie across the pieces in which a file is read."""
    good = [corpus.article(number, f"Title {number}", "It helped. " * 400) for number in range(1, 201)]
    good[50] = good[50].replace("</ArticleTitle>", "</ArticleTitel>")
    good[120] = good[120].replace("</PubmedArticle>", "")
    file = corpus.articles(tmp_path / "a.xml", *(f"{each}\n" for each in good))
    rejects = Rejects()
    assert len(list(pubmed_articles.read(file, rejects))) == 198
    one, two = rejects.rows()
    assert one["where"] == f"{file}, line 51, PMID 51"
    assert "malformed XML: mismatched tag" in one["reason"]
    assert two["where"] == f"{file}, line 121, PMID 121"
    assert "before the next record" in two["reason"]


def test_retracted_articles_are_left_out_and_leave(tmp_path: Path) -> None:
    marked = corpus.article(1, "A", "First.").replace(
        "</MedlineCitation>",
        '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn"><RefSource>J</RefSource><PMID>9</PMID>'
        "</CommentsCorrections></CommentsCorrectionsList></MedlineCitation>",
    )
    corpus.articles(tmp_path / "1.xml", corpus.article(1, "A", "First."), corpus.article(2, "B", "Second."))
    corpus.articles(tmp_path / "2.xml", marked)
    withdrawn: set[str] = set()
    rejects = Rejects()
    assert [each.id for each in pubmed_articles.read(tmp_path, rejects, withdrawn)] == ["pubmed:1", "pubmed:2"]
    assert withdrawn == {"pubmed:1"}
    assert [row["reason"] for row in rejects.rows()] == ["retracted"]


def test_exponents_in_abstracts_follow_a_caret(tmp_path: Path) -> None:
    text = "Under 150 x 10<sup>9</sup>/L, H<sub>2</sub>O, <i>r<sup>2</sup></i> = 0.4, on the 2<sup>nd</sup> day."
    (found,) = pubmed_articles.read(corpus.articles(tmp_path / "a.xml", corpus.article(1, "A", text)), Rejects())
    assert found.sections[0].text == "Under 150 x 10^9/L, H2O, r^2 = 0.4, on the 2nd day."


def test_contexts_of_pubmedqa_are_without_the_conclusion(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path, {"11": layouts.pubmedqa_item(1)})
    (found,) = collections.NAMED["pubmedqa"](tmp_path, Rejects())
    assert [each.heading for each in found.sections] == ["Background", "Results"]
    assert (found.date, found.group) == ("2011", "11")
    assert "may help some patients" not in str(found)


@pytest.mark.real
def test_the_publishers_files(real_data: Path) -> None:
    rejects = Rejects()
    judged = list(collections.read_judged(real_data / "medquad-judged", rejects))
    assert len(judged) + len(rejects) == 2479
    assert len(rejects) < 10
    (article,) = pubmed_articles.read(real_data / "pubmed", rejects)
    assert article.date == "2018-05-17"
    assert [each.heading for each in article.sections] == ["Background", "Methods", "Results", "Conclusions"]
