import sys
import time

import pytest

from meditune import progress
from meditune.progress import Progress, clock, track


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
