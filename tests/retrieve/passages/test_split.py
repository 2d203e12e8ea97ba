"""Where prose is cut."""

from __future__ import annotations

import pytest

from meditune.retrieve.documents.document import MOST_CHARACTERS, MOST_WORDS, Document, Section, pieces


def prose(sentences: int) -> str:
    return " ".join(f"Sentence number {n} says something about the heart." for n in range(sentences))


@pytest.mark.parametrize("text", [prose(1), prose(100), "word " * 1000, "x" * 10_000, prose(3) + "\n\n- a\n- b\n" * 60])
def test_every_word_is_in_one_piece_in_order(text: str) -> None:
    made = list(pieces(text))
    assert "".join("".join(made).split()) == "".join(text.split())
    assert all(len(piece.split()) <= MOST_WORDS * 1.2 for piece in made)
    assert all(len(piece) <= MOST_CHARACTERS * 1.1 for piece in made)


def test_it_is_cut_between_sentences_and_the_last_piece_isnt_a_scrap() -> None:
    made = list(pieces(prose(41)))
    assert all(piece.startswith("Sentence") and piece.endswith(".") for piece in made)
    assert min(len(piece.split()) for piece in made) >= 25
    assert list(pieces(" \n ")) == []


def test_no_piece_goes_over_a_heading_and_ids_are_by_place() -> None:
    document = Document(
        "d:1", "d", [Section("Cold air hurts.", "Causes"), Section("Warm air helps.", "Care")], "Asthma"
    )
    made = list(document.passages())
    assert [(each.id, each.section, each.text) for each in made] == [
        ("d:1#0", "Causes", "Cold air hurts."),
        ("d:1#1", "Care", "Warm air helps."),
    ]
    assert made[0].searched == "Asthma\nCauses\nCold air hurts."
    assert made[0].digest == next(iter(document.passages())).digest != made[1].digest
