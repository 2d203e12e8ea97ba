"""The published formulas, with their published examples."""

import pytest

from meditune import readability
from meditune.readability import counted, flesch_kincaid, smog


def test_flesch_kincaid_gives_published_examples():
    # Both in Wikipedia, "Flesch-Kincaid readability tests": 13 words of 24 syllables are grade 11.3; a sentence of six
    # words of one syllable has the lowest grades that texts come to.
    assert flesch_kincaid(13, 1, 24) == pytest.approx(11.3, abs=0.05)
    found = counted("The cat sat on the mat.")
    assert (found.words, found.sentences, found.syllables) == (6, 1, 6)
    assert found.grade == pytest.approx(-1.45)


# McGraw's table, by which SMOG grades were looked up: polysyllables in 30 sentences, and the grade.
@pytest.mark.parametrize(
    ("polysyllables", "grade"), [(1, 4), (9, 6), (25, 8), (49, 10), (81, 12), (121, 14), (169, 16)]
)
def test_smog_agrees_with_the_published_table(polysyllables, grade):
    assert smog(polysyllables, 30) == pytest.approx(grade, abs=0.75)


def test_smog_is_mclaughlins_formula():
    assert smog(36, 30) == pytest.approx(3.1291 + 1.0430 * 6)
    assert smog(36, 30) == smog(72, 60)


def test_sentences_end_with_lines_too_and_bullets_are_no_words():
    found = counted("Signs of a stroke\n\n- Face drooping\n2. Weak arm\n* Slurred speech, e.g. at 9.30 a.m.")
    assert found.sentences == 4
    assert readability.words("well-known, don't 1,000 3.5 mg (COPD)") == [
        "well-known",
        "don't",
        "1,000",
        "3.5",
        "mg",
        "COPD",
    ]


def test_an_abbreviation_ends_no_sentence():
    assert counted("Dr. Who saw it. It was small.").sentences == 2


@pytest.mark.parametrize("text", ["", " \n", "...", "- \n-", "?!"])
def test_nothing_written_has_no_words(text):
    assert counted(text).words == 0


@pytest.mark.parametrize(("grade", "gap"), [(5, 1), (6, 0), (7.3, 0), (8, 0), (14.2, 6.2), (-2, 8)])
def test_distance_is_from_the_nearer_end_of_the_target(grade, gap):
    assert readability.outside(grade) == pytest.approx(gap)
