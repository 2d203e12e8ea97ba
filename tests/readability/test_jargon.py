"""Which words count as jargon, and when they count as explained."""

import pytest

from meditune.readability import is_rare, is_term, terms


@pytest.mark.parametrize(
    "word", ["nephrolithiasis", "atorvastatin", "thrombocytopenia", "Pyelonephritis", "COPD", "UTIs", "cholecystectomy"]
)
def test_rare_words_of_medical_shape_are_terms(word):
    assert is_term(word)


@pytest.mark.parametrize(
    "word",
    ["cancer", "diabetes", "asthma", "doctor", "program", "telegram", "NOT", "the", "psychology", "HIV", "hyphen-ated",
     "120", "Johnson", "aroma", "diploma", "polygon"],
)  # fmt: skip
def test_familiar_and_other_words_are_none(word):
    assert not is_term(word)


@pytest.mark.parametrize(
    "text",
    [
        "You have nephrolithiasis (kidney stones).",
        "You have kidney stones (nephrolithiasis).",
        "Kidney stones, also called nephrolithiasis, hurt.",
        "Nephrolithiasis, also known as kidney stones, hurts.",
        "Nephrolithiasis means stones in the kidney.",
        "Nephrolithiasis is a disease with stones in the kidney.",
        "Nephrolithiasis, which is the name for stones in the kidney, hurts.",
        "Nephrolithiasis, a disease with stones in the kidney, hurts.",
        "It may be nephrolithiasis. We can treat that. Nephrolithiasis, or kidney stones, often comes back.",
    ],
)
def test_explanations_are_seen(text):
    assert terms(text) == {"nephrolithiasis": True}


@pytest.mark.parametrize(
    "text",
    [
        "You have nephrolithiasis.",
        "Nephrolithiasis is treated with surgery.",
        "Nephrolithiasis hurts (in most people).",
        "The patient, who has nephrolithiasis, should drink.",
    ],
)
def test_a_bare_term_is_unexplained(text):
    assert terms(text) == {"nephrolithiasis": False}


def test_a_term_counts_once():
    assert terms("COPD is bad. COPD kills. Dyspnea, too.") == {"COPD": False, "dyspnea": False}


def test_regular_forms_of_frequent_words_are_familiar():
    familiar = "doctor doctors doctor's stopped stopping happier carries hospital-like 1,000 walked swimming quickly"
    assert [word for word in familiar.split() if is_rare(word)] == []
    assert all(is_rare(word) for word in ("stenosis", "dyspnea", "acetaminophen", "prognosis", "non-stenotic"))
