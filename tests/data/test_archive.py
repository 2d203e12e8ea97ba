import zipfile
from pathlib import Path

import pytest

from meditune.data.readers.medquad import parse_xml, texts, tidy, xml_files
from meditune.errors import DataError


def zipped(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_folder_and_zip_give_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.xml").write_text("<b/>", encoding="utf-8")
    (folder / "b" / "1.xml").write_text("<a/>", encoding="utf-8")
    (folder / "readme.txt").write_text("no", encoding="utf-8")
    archive = zipped(tmp_path / "set.zip", {"b/2.xml": "<b/>", "b/1.xml": "<a/>", "readme.txt": "no"})
    expected = [("b/1.xml", b"<a/>"), ("b/2.xml", b"<b/>")]
    assert [(str(name), data) for name, data in xml_files(folder)] == expected
    assert [(str(name), data) for name, data in xml_files(archive)] == expected
    archive.rename(folder / "only.zip")
    for file in (folder / "b").iterdir():
        file.unlink()
    assert [(str(name), data) for name, data in xml_files(folder)] == expected


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no XML files and no zip"):
        list(xml_files(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        list(xml_files(tmp_path / "nowhere"))
    whole = zipped(tmp_path / "a.zip", {"a.xml": "<a/>" * 1000})
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.zip: neither a folder nor a whole zip"):
        list(xml_files(tmp_path / "cut.zip"))
    damaged = bytearray(whole.read_bytes())
    damaged[60:80] = b"x" * 20
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"bad\.zip: a damaged zip"):
        list(xml_files(tmp_path / "bad.zip"))
    with pytest.raises(DataError, match="no XML files in this zip"):
        list(xml_files(zipped(tmp_path / "other.zip", {"a.txt": ""})))


def test_xml_is_read_with_a_byte_order_mark_and_any_case() -> None:
    root = parse_xml(b'\xef\xbb\xbf<?xml version="1.0" encoding="UTF-8"?><a><Focus>  one\n two</Focus><focus/></a>')
    assert texts(root, "FOCUS") == ["one two"]
    with pytest.raises(ValueError, match=r"not well-formed XML \(.*line 1, column 8\)"):
        parse_xml(b"<a><b></a>")
    with pytest.raises(ValueError, match="unknown text encoding"):
        parse_xml(b'<?xml version="1.0" encoding="klingon"?><a/>')


def test_tidy_keeps_lines_paragraphs_and_list_items() -> None:
    text = "Key   points\n      - one  \n\n  \n\n  Next\xa0 line:    - two    - three - four  "
    assert tidy(text) == "Key points\n- one\n\nNext line:\n- two\n- three - four"
