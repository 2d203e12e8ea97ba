import time
import zipfile
from pathlib import Path

import pytest

from meditune.data.readers import medquad
from meditune.data.readers.medquad import parse_xml, texts, tidy, xml_files
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from tests import layouts

PAIRS = [
    ("information", "What is (are) Gout ?", "Gout is   a disease.\n\n   It hurts."),
    ("treatment", "What are the treatments for Gout ?", ""),
]


def small(folder: Path) -> Path:
    return layouts.medquad(
        folder,
        {
            "1_CancerGov_QA/0000001_1.xml": layouts.medquad_document("0000001_1", "Gout  Disease", PAIRS),
            "9_CDC_QA/0000001_1.xml": layouts.medquad_document("0000001_1", "", PAIRS, source="CDC", layout="flat"),
            "6_NINDS_QA/0000007.xml": layouts.medquad_document("7", "ALS", PAIRS, source="NINDS", layout="doc"),
        },
    )


def test_pairs_with_their_annotations(tmp_path: Path) -> None:
    rejects = Rejects()
    cancer, ninds, cdc = medquad.read(small(tmp_path), rejects)
    assert cancer.id == "medquad:1_CancerGov_QA/0000001_1-1"
    assert cancer.question == "What is (are) Gout ?"
    assert cancer.answer == "Gout is a disease.\n\nIt hurts."
    assert (cancer.group, cancer.decision, cancer.context) == ("gout disease", None, ())
    assert cancer.meta == {
        "focus": "Gout Disease",
        "synonyms": ["Gout Disease (disorder)"],
        "cui": ["C0751606"],
        "semantic_type": ["T191"],
        "semantic_group": "Disorders",
        "question_type": "information",
        "url": "https://www.example.org/0000001_1",
        "licence": "CC BY 4.0",
        "collection": "1_CancerGov_QA",
        "document": "0000001_1",
    }
    assert (ninds.meta["focus"], ninds.meta["document"], ninds.meta["cui"]) == ("ALS", "7", [])
    assert cdc.group == "9_CDC_QA/0000001_1"  # no focus: its own document
    assert rejects.counts() == {"medquad": {medquad.NO_ANSWER: 3}}
    assert list(rejects.rows()) == []


def test_a_repeated_document_number_still_gives_unique_ids(tmp_path: Path) -> None:
    document = layouts.medquad_document("0000013_2", "Leukemia", PAIRS)
    twice = document.replace(
        "</QAPairs>", '<QAPair pid="1"><Question>Why?</Question><Answer>So.</Answer></QAPair></QAPairs>'
    )
    layouts.medquad(tmp_path, {"1_C/0000013_2_1.xml": document, "1_C/0000013_2_2.xml": twice})
    assert [example.id for example in medquad.read(tmp_path, Rejects())] == [
        "medquad:1_C/0000013_2_1-1",
        "medquad:1_C/0000013_2_2-1",
        "medquad:1_C/0000013_2_2-1-again",
    ]


def test_a_broken_file_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    small(tmp_path)
    layouts.medquad(tmp_path, {"2_GARD_QA/0000001.xml": "<Document><Focus>Flu", "2_GARD_QA/0000002.xml": "<Document/>"})
    pair = '<QAPairs><QAPair pid="4"><Question> </Question><Answer>Yes.</Answer></QAPair></QAPairs>'
    layouts.medquad(tmp_path, {"2_GARD_QA/0000003.xml": f"<Document>{pair}</Document>"})
    rejects = Rejects()
    assert len(list(medquad.read(tmp_path, rejects))) == 3
    rows = list(rejects.rows())
    assert [row["where"] for row in rows] == [
        "2_GARD_QA/0000001.xml",
        "2_GARD_QA/0000002.xml",
        "2_GARD_QA/0000003.xml, pair 4",
    ]
    assert "not well-formed XML" in rows[0]["reason"]
    assert [row["reason"] for row in rows[1:]] == ["no question-answer pairs in the file", "no question"]


@pytest.mark.real
def test_the_real_collection(real_data: Path) -> None:
    rejects = Rejects()
    started = time.monotonic()
    examples = list(medquad.read(real_data / "medquad", rejects))
    assert time.monotonic() - started < 60
    # The publisher's readme counts 47,457 pairs: 47,441 in <QAPair> (16,407 answered) and 16 in the <doc> layout.
    assert len(examples) == 16_407 + 16
    assert rejects.counts()["medquad"] == {medquad.NO_ANSWER: 31_034, "no question-answer pairs in the file": 6}
    assert len(examples) + 31_034 == 47_457
    assert len({example.id for example in examples}) == len(examples)
    assert len({example.meta["question_type"] for example in examples}) == 16


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
    with pytest.raises(DataError, match=r"cut\.zip: neither a folder nor a complete zip"):
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
