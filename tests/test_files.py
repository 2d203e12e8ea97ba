"""Files and the machine they are on: written whole or not at all, progress, processors and memory."""

import errno
import mmap
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from meditune import hardware, progress
from meditune.errors import DataError, MedituneError
from meditune.files import read_json, read_jsonl, read_text, replace_file, replace_folder, write_json, write_jsonl
from meditune.progress import Progress, clock, track
from meditune.text import counted, sentences
from meditune.train import finetune


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"accuracy": 55.2})
    with pytest.raises(RuntimeError), replace_file(path) as stream:
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


def test_a_device_or_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(MedituneError, match="pipe isn't a regular file"):
        write_json(pipe, {})
    assert pipe.is_fifo()
    with pytest.raises(MedituneError, match="isn't a regular file"):
        write_json(Path("/dev/meditune.json"), {})


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replace_folder(folder) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(RuntimeError), replace_folder(folder) as partial:
        (partial / "b").write_text("2")
        raise RuntimeError
    assert [item.name for item in folder.iterdir()] == ["a"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_can_not_be_replaced_stays(tmp_path):
    folder = tmp_path / "model"
    with replace_folder(folder) as partial:
        (partial / "a").write_text("1")
    # Someone's clearing up takes the new folder away before it is renamed.
    with pytest.raises(FileNotFoundError), replace_folder(folder) as partial:
        partial.rmdir()
    assert [item.name for item in folder.iterdir()] == ["a"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_during_the_cleanup_leaves_nothing(tmp_path):
    script = """
import shutil, sys
from pathlib import Path
from meditune.files import replace_folder
remove, calls = shutil.rmtree, []
def interrupted(*args, **options):
    calls.append(args)
    if len(calls) == 1:
        raise KeyboardInterrupt
    remove(*args, **options)
shutil.rmtree = interrupted
with replace_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("half")
    raise KeyboardInterrupt
"""
    process = subprocess.run([sys.executable, "-c", script, tmp_path / "folder"], capture_output=True, text=True)
    assert "KeyboardInterrupt" in process.stderr
    assert not list(tmp_path.iterdir())


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


def test_short_work_shows_nothing(capsys):
    assert list(track(range(5), "Reading")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_long_work_shows_plain_lines_with_speed_where_output_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress("Training", 4, "tokens") as shown:
        for _ in range(4):
            time.sleep(0.01)
            shown.advance(note="loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("Training") and "tokens/s" in line and "loss 1.5" in line for line in lines)
    assert "50%" in lines[1]
    assert "left" in lines[1]
    assert "100%" in lines[3]
    assert "\r" not in "".join(lines)


def test_a_terminal_gets_a_bar_on_one_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("Training", 2) as shown:
        shown.advance()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "━" in text


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_line_fits_into_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = Progress("Training", 2_000_000, "tokens")
    shown.advance(1_000_000, "loss 1.234, 31% supervised, 2.1 GB")
    line = shown.line()
    assert len(line) < columns
    assert line.startswith("Training")
    assert ("━" in line and "GB" in line) == (columns == 200)


def test_times_read_like_a_clock():
    assert [clock(seconds) for seconds in (5, 75, 3725)] == ["0:05", "1:15", "1:02:05"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pain fell. Nobody died.", ["Pain fell.", "Nobody died."]),
        ("We used 2.5 mg vs. 5 mg (p < 0.05). It helped!", ["We used 2.5 mg vs. 5 mg (p < 0.05).", "It helped!"]),
        ("Dr. Who asked, e.g. Why? Because.", ["Dr. Who asked, e.g. Why?", "Because."]),
        ("no full stop", ["no full stop"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_no_word_is_lost():
    text = "A 'quoted end.' Then (bracketed.) More? Yes! 3 of 4 did. E. coli grew."
    assert " ".join(sentences(text)).split() == text.split()


def test_numbers_of_things():
    assert [counted(count, "document") for count in (0, 1, 2, 5122)] == [
        "0 documents",
        "1 document",
        "2 documents",
        "5,122 documents",
    ]


def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota, older = tmp_path / "cpu.max", (tmp_path / "cpu.cfs_quota_us", tmp_path / "cpu.cfs_period_us")
    monkeypatch.setattr(hardware, "_CPU_QUOTAS", ((quota,), older))
    whole = hardware.cores()
    quota.write_text("max 100000\n", encoding="ascii")
    assert hardware.cores() == whole
    quota.write_text("50000 100000\n", encoding="ascii")
    assert hardware.cores() == 1
    quota.unlink()
    for file, value in zip(older, (-1, 100_000), strict=True):
        file.write_text(f"{value}\n", encoding="ascii")
    assert hardware.cores() == whole
    older[0].write_text("50000\n", encoding="ascii")
    assert hardware.cores() == 1


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_MEMORY_LIMITS", ((limit, "memory.current", ("inactive_file", "active_file")),))
    total, free = hardware.memory_gb()
    assert 0 < free <= total
    limit.write_text("50000000\n", encoding="ascii")
    assert hardware.memory_gb() == (0.05, 0.05)
    (tmp_path / "memory.current").write_text("40000000\n", encoding="ascii")
    (tmp_path / "memory.stat").write_text(
        "anon 25000000\ninactive_file 10000000\nactive_file 5000000\n", encoding="ascii"
    )
    assert hardware.memory_gb() == (0.05, 0.025)
    limit.write_text("max\n", encoding="ascii")
    assert hardware.memory_gb()[0] == total


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_freed_memory_goes_back_to_the_system():
    said = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True).stdout.split()
    before, after = map(int, said)
    assert after < before - 10_000


FREED = """
import psutil
from meditune.hardware import limit_malloc_arenas, release_memory
limit_malloc_arenas()
kept = [bytearray(9_000) for _ in range(10_000)]
last = bytearray(9_000)
del kept
rss = lambda: psutil.Process().memory_info().rss // 1024
before = rss()
release_memory()
print(before, rss())
"""


def test_training_names_the_peak_of_the_gpu_beside_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finetune.peaks().keys() == {"peak_rss_gb"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 11_500_000_000)
    found = finetune.peaks()
    assert found["peak_gpu_gb"] == 11.5
    assert 0.1 < found["peak_rss_gb"] < 11.5


@pytest.mark.skipif(not hardware.MAPS.is_file(), reason="only Linux lists mapped files")
def test_the_memory_of_a_mapped_file_is_returned_and_its_bytes_stay(tmp_path):
    file = tmp_path / "weights with spaces.bin"
    file.write_bytes(bytes(range(256)) * 40_000)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) >= 0
        assert resident_kb(file) > 9_000
        hardware.release_file(file)
        assert resident_kb(file) < 1_000
        assert mapped[-256:] == bytes(range(256))


def resident_kb(file):
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(str(file)))
    return int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])
