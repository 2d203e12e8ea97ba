import errno
import os
import stat

import pytest

from meditune.errors import DataError, MedituneError
from meditune.files import read_json, read_jsonl, read_text, replacing, replacing_folder, write_json, write_jsonl


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"accuracy": 55.2})
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert read_json(path) == {"accuracy": 55.2}
    assert [item.name for item in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("private", [True, False])
def test_a_private_file_is_for_its_owner_from_the_first_byte_on(tmp_path, private):
    path = tmp_path / "answers.jsonl"
    path.write_text("earlier, for all")
    path.chmod(0o644)

    def rows():
        (partial,) = (item for item in tmp_path.iterdir() if item != path)
        modes.append(stat.S_IMODE(partial.stat().st_mode))
        yield {"id": 1}

    modes = []
    earlier = os.umask(0o022)
    try:
        write_jsonl(path, rows(), private)
    finally:
        os.umask(earlier)
    expected = 0o600 if private else 0o644
    assert [*modes, stat.S_IMODE(path.stat().st_mode)] == [expected, expected]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replacing_folder(folder) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing_folder(folder) as partial:
        (partial / "b").write_text("2")
        raise RuntimeError
    assert [item.name for item in folder.iterdir()] == ["a"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_can_not_be_replaced_stays(tmp_path):
    folder = tmp_path / "model"
    with replacing_folder(folder) as partial:
        (partial / "a").write_text("1")
    # Someone's clearing up takes the new folder away before it is renamed.
    with pytest.raises(FileNotFoundError), replacing_folder(folder) as partial:
        partial.rmdir()
    assert [item.name for item in folder.iterdir()] == ["a"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_said_with_the_file_and_the_space_left(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MedituneError, match=r"disk is full: .*out\.jsonl.*MB free"):
        write_jsonl(tmp_path / "out.jsonl", [{"id": 1}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reader", "place"),
    [
        ('{"a": 1,\n"b": ', read_json, "line 2"),
        ('{"a": 1}\n\n{"b"', read_jsonl, "line 3"),
        ('{"a": 1}\n[1]', read_jsonl, "line 2: expected a JSON object"),
    ],
)
def test_damaged_json_is_said_with_its_line(tmp_path, content, reader, place):
    path = tmp_path / "broken"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"broken, {place}"):
        reader(path)


def test_text_that_isnt_there_or_isnt_utf8(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "nothing")
    (tmp_path / "latin").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text at byte 1"):
        read_text(tmp_path / "latin")


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "marked.json") == [1]
