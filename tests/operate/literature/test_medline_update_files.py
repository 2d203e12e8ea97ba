"""MEDLINE's update files: each once, in order, checked; what is malformed is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from meditune.errors import DataError
from meditune.operate.literature.medline_update_files import UpdateFileFolder
from tests.commands import meditune
from tests.operate.literature.pubmed_server import (
    Paper,
    PubMed,
    deletes,
    document,
    documents_found,
    library_rows,
    update_file,
)

pytest.importorskip("lancedb")


def test_a_malformed_record_is_named_and_the_rest_goes_on(served: PubMed, tmp_path: Path) -> None:
    bad = Paper(102).xml().replace("<Language>", "<Langu age>")
    never = Paper(104).xml().replace("</PubmedArticle>", "")
    none = Paper(105).xml().replace('<PMID Version="1">105</PMID>', "")
    update_file(served.folder, 1340, Paper(101), bad, Paper(103), never, none, Paper(106))
    result = meditune("update", tmp_path / "library", "--update-files", served.folder).ok()
    assert "3 new" in result.out
    rejects = library_rows(tmp_path, "rejects.jsonl")
    places = [each["where"].rpartition("/")[2] for each in rejects]
    assert [place.partition(",")[0] for place in places] == ["pubmed26n1340.xml.gz"] * 3
    assert "PMID 102" in places[0]
    before = document(Paper(101)).decode().splitlines()
    assert f"line {len(before)}, PMID 102" in places[0]
    assert "malformed XML" in rejects[0]["reason"]
    assert "no </PubmedArticle> before the next record" in rejects[1]["reason"]
    assert rejects[2]["reason"] == "no PubMed id"


def test_update_files_are_applied_once_and_in_order(served: PubMed, tmp_path: Path) -> None:
    folder = served.folder
    update_file(folder, 1340, Paper(101), Paper(102), deletes(103, 102))  # a deletion before its article comes
    update_file(folder, 1341, Paper(103), Paper(101, revised="2026-01-05"))  # and a duplicate that is older
    result = meditune("update", tmp_path / "library", "--update-files", folder, "--index", tmp_path / "index").ok()
    assert "Update files applied: 2 (pubmed26n1340.xml.gz to pubmed26n1341.xml.gz)" in result.out
    assert "1 older than what is there" in result.out
    assert {each["id"] for each in library_rows(tmp_path, "pairs.jsonl")} == {"101", "103"}
    assert sorted(set(documents_found(tmp_path, "treatment"))) == ["pubmed:101", "pubmed:103"]

    update_file(folder, 1342, Paper(101), deletes(103))
    again = meditune("update", tmp_path / "library", "--update-files", folder, "--index", tmp_path / "index")
    assert "Update files applied: 1 (pubmed26n1342.xml.gz)" in again.out
    assert documents_found(tmp_path, "treatment") == ["pubmed:101"]
    nothing = meditune("update", tmp_path / "library", "--update-files", folder, "--index", tmp_path / "index").ok()
    assert "Update files" not in nothing.out

    update_file(folder, 1344, Paper(110))
    gap = meditune("update", tmp_path / "library", "--update-files", folder)
    assert gap.code == 3
    assert "pubmed26n1343.xml.gz is missing" in gap.err
    meditune("update", tmp_path / "library", "--update-files", folder, "--first-file", "pubmed26n1344.xml.gz").ok()
    update_file(folder, 1, Paper(111), year=27)
    meditune("update", tmp_path / "library", "--update-files", folder).ok()


def test_a_file_that_isnt_what_was_published_stops_the_row(served: PubMed, tmp_path: Path) -> None:
    folder = served.folder
    update_file(folder, 1340, Paper(101))
    cut = update_file(folder, 1341, Paper(102))
    cut.write_bytes(cut.read_bytes()[:-30])
    update_file(folder, 1342, Paper(103))
    result = meditune("update", tmp_path / "library", "--update-files", folder)
    assert result.code == 3
    assert "pubmed26n1341.xml.gz: the file's MD5 is" in result.err
    assert "1 new" in result.out
    cut.with_name(f"{cut.name}.md5").unlink()
    assert (
        "pubmed26n1341.xml.gz.md5 is missing" in meditune("update", tmp_path / "library", "--update-files", folder).err
    )
    # Published damaged: what can be read is taken, the rest said.
    update_file(folder, 1341, Paper(102))
    broken = cut.read_bytes()[:-30]
    cut.write_bytes(broken)
    cut.with_name(f"{cut.name}.md5").write_text(f"{hashlib.md5(broken).hexdigest()}  {cut.name}\n")
    result = meditune("update", tmp_path / "library", "--update-files", folder).ok()
    assert "is truncated" in result.out
    assert "Update files applied: 2" in result.out


def test_update_files_come_from_a_server_and_go_on_where_they_broke_off(served: PubMed, tmp_path: Path) -> None:
    update_file(served.folder, 1340, *(Paper(pmid) for pmid in range(101, 131)))
    (served.folder / "pubmed26n1340_stats.html").write_text("<html></html>")
    served.fail("file", "cut", "500", "", "damaged")
    served.fail("md5", "html", "503")
    words = ("update", tmp_path / "library", "--update-files", f"{served.url}/updatefiles/", "--email", "me@clinic.org")
    result = meditune(*words)
    assert result.code == 3  # a page for people isn't an MD5
    assert "contains no MD5" in result.err
    result = meditune(*words).ok()
    assert "30 new" in result.out
    assert served.ranges, "the rest was asked for, not the whole file"
    assert not list((tmp_path / "library" / "fetched").iterdir())

    update_file(served.folder, 1341, Paper(140), md5="0" * 32)
    result = meditune(*words)
    assert result.code == 3
    assert "downloaded 3 times, but the file's MD5 is" in result.err
    update_file(served.folder, 1341, Paper(140))
    served.fail("file", "cut", "no-range")
    assert "1 new" in meditune(*words).out


def test_a_folder_without_update_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains no file like pubmed26n1340\.xml\.gz"):
        UpdateFileFolder(tmp_path / "empty").names()
