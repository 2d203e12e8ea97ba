import dataclasses
import functools
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from meditune.data import sources
from meditune.data.readers.medquad import contents_sha256
from meditune.data.sources import SOURCES, Download, locate_source
from meditune.errors import DataError
from tests import layouts
from tests.http_servers import listening


class Publisher(SimpleHTTPRequestHandler):
    """Serves a folder; /short breaks off, /slow never answers."""

    hits = 0

    def do_GET(self) -> None:
        type(self).hits += 1
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        elif self.path == "/slow":
            threading.Event().wait(3)
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "site"
    layouts.pubmedqa(folder, {"1": layouts.pubmedqa_item(1)})
    Publisher.hits = 0
    with listening(functools.partial(Publisher, directory=str(folder))) as url:
        yield url


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    for name in ("MEDITUNE_DATA", "MEDITUNE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def published(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None = None) -> None:
    source = dataclasses.replace(SOURCES["pubmedqa"], download=(Download(url, "ori_pqal.json", sha256),))
    monkeypatch.setitem(SOURCES, "pubmedqa", source)


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"1": layouts.pubmedqa_item(1)}
    cached = layouts.pubmedqa(tmp_path / "cache" / "data" / "pubmedqa", item).parent
    assert locate_source("pubmedqa") == cached
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "mine"))
    assert locate_source("pubmedqa") == cached  # the user's folder has none
    mine = layouts.pubmedqa(tmp_path / "mine" / "pubmedqa", item).parent
    assert locate_source("pubmedqa") == mine
    named = layouts.pubmedqa(tmp_path / "recipe", item)
    assert locate_source("pubmedqa", named) == named
    assert locate_source("pubmedqa", str(named.parent)) == named.parent


def test_a_path_of_the_recipe_is_the_only_place(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path / "cache" / "data" / "pubmedqa", {"1": layouts.pubmedqa_item(1)})
    with pytest.raises(
        DataError, match=r"nowhere: no such file or folder\. The recipe specifies this path for 'pubmedqa'.*: get https"
    ):
        locate_source("pubmedqa", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains none of ori_pqal\.json"):
        locate_source("pubmedqa", tmp_path / "empty")


def test_an_unknown_source_gets_a_near_match() -> None:
    with pytest.raises(DataError, match=r"'pubmed-qa'.*Did you mean 'pubmedqa'\?"):
        locate_source("pubmed-qa")


def test_a_download_is_checked_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: str
) -> None:
    original = (tmp_path / "site" / "ori_pqal.json").read_bytes()
    published(monkeypatch, f"{publisher}/ori_pqal.json", hashlib.sha256(original).hexdigest())
    folder = locate_source("pubmedqa")
    assert folder == tmp_path / "cache" / "data" / "pubmedqa"
    assert [file.name for file in folder.iterdir()] == ["ori_pqal.json"]
    assert (folder / "ori_pqal.json").read_bytes() == original
    assert locate_source("pubmedqa") == folder
    assert Publisher.hits == 1


@pytest.mark.parametrize(
    ("address", "checksum", "message"),
    [
        ("/ori_pqal.json", "0" * 64, r"isn't the expected file \(SHA-256 [0-9a-f]{64}, expected 0000"),
        ("/short", None, r"was cut off after 9 of 1,000 bytes"),
        ("/missing.json", None, r"can't be fetched \(File not found\)|can't be fetched \(Not Found\)"),
        ("/slow", None, r"can't be fetched \(timed out\)"),
    ],
)
def test_a_bad_download_leaves_nothing_and_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: str, address: str, checksum: str | None, message: str
) -> None:
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.5)
    published(monkeypatch, publisher + address, checksum)
    with pytest.raises(DataError, match=message) as caught:
        locate_source("pubmedqa")
    folder = tmp_path / "cache" / "data" / "pubmedqa"
    assert publisher + address in str(caught.value)
    assert f"put the files into {folder}" in str(caught.value)
    assert list(folder.iterdir()) == []


def zipped(path: Path, commit: str, files: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> str:
    """A zip as GitHub makes it of a commit; returns the address under the publisher."""
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in files.items():
            archive.writestr(f"MedQuAD-{commit}/{name}", data)
    return f"/{path.name}"


def test_a_zip_is_known_by_the_files_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: str) -> None:
    files = {"1_A_QA/1.xml": b"<a/>", "1_A_QA/2.xml": b"<b/>", "readme.txt": b"old"}
    for name, data in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(data)
    known = contents_sha256(tmp_path / "own")

    def source(address: str) -> None:
        download = Download(publisher + address, "MedQuAD-1234567.zip", contents_sha256=known)
        monkeypatch.setitem(SOURCES, "medquad", dataclasses.replace(SOURCES["medquad"], download=(download,)))

    site = tmp_path / "site"
    changed = (
        files | {"1_A_QA/2.xml": b"<c/>"},
        files | {"1_A_QA/3.xml": b"<c/>"},
        {"1_A_QA/1.xml": b"<a/>"},
        {"1_A_QA/1.xml": b"<b/>", "1_A_QA/2.xml": b"<a/>"},
    )
    for number, other in enumerate(changed):
        source(zipped(site / f"{number}.zip", "abc", other))
        with pytest.raises(DataError, match=r"contains other files than expected \(SHA-256 [0-9a-f]{64}, expected"):
            locate_source("medquad")
    source("/ori_pqal.json")
    with pytest.raises(DataError, match="isn't the publisher's zip"):
        locate_source("medquad")
    assert list((tmp_path / "cache" / "data" / "medquad").iterdir()) == []
    source(zipped(site / "same.zip", "def", dict(reversed(files.items())) | {"readme.txt": b"new"}, zipfile.ZIP_STORED))
    assert [file.name for file in locate_source("medquad").iterdir()] == ["MedQuAD-1234567.zip"]


def test_of_several_files_all_are_kept_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: str) -> None:
    (tmp_path / "site" / "TREC-2017-1.xml").write_text("<a/>")
    good = Download(f"{publisher}/TREC-2017-1.xml", "TREC-2017-1.xml")
    for bad in (Download(f"{publisher}/none", "TREC-2017-2.xml"), dataclasses.replace(good, sha256="0" * 64)):
        monkeypatch.setitem(SOURCES, "liveqa", dataclasses.replace(SOURCES["liveqa"], download=(good, bad)))
        with pytest.raises(DataError):
            locate_source("liveqa")
        assert list((tmp_path / "cache" / "data" / "liveqa").iterdir()) == []


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "http://127.0.0.1:9/ori_pqal.json")
    with pytest.raises(DataError, match="can't be fetched"):
        locate_source("pubmedqa")


@pytest.mark.parametrize("variable", ["MEDITUNE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_means_no_request(monkeypatch: pytest.MonkeyPatch, publisher: str, variable: str) -> None:
    published(monkeypatch, f"{publisher}/ori_pqal.json")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError, match=f"downloads are turned off by {variable}"):
        locate_source("pubmedqa")
    monkeypatch.setenv(variable, "0")
    with pytest.raises(DataError, match="downloads are turned off"):
        locate_source("pubmedqa", download=False)
    assert Publisher.hits == 0
    assert locate_source("pubmedqa").is_dir()


@pytest.mark.parametrize(("name", "said"), [("mimic", "physionet.org"), ("wikitext-2", "wikitext-2-raw-v1")])
def test_what_cannot_be_downloaded_says_how_to_get_it(name: str, said: str) -> None:
    with pytest.raises(DataError, match="no public download") as caught:
        locate_source(name)
    assert said in str(caught.value)


def test_the_packaged_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = layouts.pubmedqa(tmp_path, {"1": layouts.pubmedqa_item(1)}, "synthetic_pqal.json")
    monkeypatch.setitem(SOURCES, "sample", dataclasses.replace(SOURCES["sample"], packaged=file))
    assert locate_source("sample") == file
    file.unlink()
    with pytest.raises(DataError, match="missing from this installation"):
        locate_source("sample")
