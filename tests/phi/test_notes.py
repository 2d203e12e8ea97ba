"""How many identifiers of invented notes are found: benchmarks/phi.py, smaller."""

import sys
import time
from pathlib import Path

import pytest

from meditune import phi
from meditune.config.data_options import KINDS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from phi import STRUCTURED, measure
from phi_notes import HALVES, notes

TUNED = [half for half in HALVES if half != "held_out"]


@pytest.mark.parametrize(("halves", "structured", "name"), [(TUNED, 0.97, 0.96), (["held_out"], 0.91, 0.92)])
def test_identifiers_of_invented_notes_are_found_and_little_else(
    halves: list[str], structured: float, name: float
) -> None:
    made = [note for half in halves for note in notes(40, half)]
    assert {span.kind for note in made for span in note.spans} >= {*KINDS} - {"bracket"}
    measured = measure(made)
    assert measured.recall(*STRUCTURED) >= structured, measured.missed[:20]
    assert measured.recall("name") >= name, measured.missed[:20]
    assert measured.precision(*KINDS) >= 0.96, measured.wrong[:20]


@pytest.mark.parametrize("half", HALVES)
def test_the_places_of_the_notes_are_right(half: str) -> None:
    made = notes(5, half)
    assert made == notes(5, half)
    for note in made:
        assert all("{" not in note.text[span.start : span.end] and span.start < span.end for span in note.spans)
        dates = [note.text[span.start : span.end] for span in note.spans if span.kind == "date"]
        assert all(any(map(str.isalnum, date)) for date in dates)


@pytest.mark.parametrize(
    "part",
    [
        "1",
        " ",
        "[",
        "[**",
        "\n",
        "A",
        "Aa ",
        "Dr. ",
        "1-",
        "12/",
        "a@",
        "a:",
        "Smith, ",
        "seen at Aa ",
        "40-year-old, Aa ",
        "The Hospital ",
        ", MA",
        "12345 ",
    ],
)
def test_no_text_takes_out_of_proportion_long(part: str) -> None:
    def seconds(length: int) -> float:
        text = (part * length)[:length]
        started = time.process_time()
        phi.find(text)
        return time.process_time() - started

    seconds(1000)
    assert seconds(200_000) < 12 * max(seconds(50_000), 0.02)


def test_a_short_text_is_quick() -> None:
    text = "My name is Jane Doe, I was born on 3/14/1950. Does aspirin help with a headache?"
    phi.find(text)
    started = time.process_time()
    for _ in range(20):
        phi.mask(text)
    assert time.process_time() - started < 0.5
