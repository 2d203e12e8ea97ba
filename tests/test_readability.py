"""The published formulas, with their published examples.

Which words count as jargon, and when they count as explained.

Counts as dictionaries give them.
"""

import time

import pytest

from meditune import readability
from meditune.readability import counted, flesch_kincaid, is_rare, is_term, smog, syllables, terms
from meditune.text import sentences


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


def test_a_term_that_is_repeated_hundreds_of_times_is_looked_up_once():
    started = time.monotonic()
    assert readability.terms("nephrolithiasis " * 400) == {"nephrolithiasis": False}
    assert time.monotonic() - started < 5


def test_an_abbreviation_ends_no_sentence():
    assert counted("Dr. Who saw it. It was small.").sentences == 2


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Rickets comes from a lack of vitamin D. It softens the bones.", "It softens the bones."),
        ("You may have hepatitis C. See a doctor.", "See a doctor."),
        ("The answer is no. Aspirin is safe.", "Aspirin is safe."),
        ("See table no. 5 first.", "See table no. 5 first."),
        ("It was described by J. Smith.", "It was described by J. Smith."),
        ("Robert F. Kennedy spoke.", "Robert F. Kennedy spoke."),
        ("No. Aspirin does not help.", "No. Aspirin does not help."),
    ],
)
def test_where_a_sentence_begins(text, last):
    assert sentences(text)[-1] == last


@pytest.mark.parametrize("text", ["", " \n", "...", "- \n-", "?!"])
def test_nothing_written_has_no_words(text):
    assert counted(text).words == 0


@pytest.mark.parametrize(("grade", "gap"), [(5, 1), (6, 0), (7.3, 0), (8, 0), (14.2, 6.2), (-2, 8)])
def test_distance_is_from_the_nearer_end_of_the_target(grade, gap):
    assert readability.outside(grade) == pytest.approx(gap)


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


DICTIONARY = {
    1: "ache brain breast bruised called cells clothes cough dose drug dye eye eyes faint friend gauze germs "
    "gland health heart joint knee league leagues life limbs lungs mouth nerve nose nurse phlegm pulse "
    "rash scalp screened shock sleep sneezed spleen stitched strain stroke throat through tongue vague "
    "voice walked weight wheezed wound years yeast",
    2: "abscess acid advice ankle anxious argue asthma basement biceps bladder bleeding blisters business "
    "cancer careful chronic colon doctor dosage enzyme fasting fatal fatigue fever fluid forearm glucose "
    "guideline headache healthy helpful hormone hundred illness lately lion liver measles measure "
    "movement mucus muscle nervous ocean onset patient people poem prostate protein quiet rabies region "
    "rhythm safely safety science seizure serum sinus something statement steroid stomach surgeon swollen "
    "symptom tablet thyroid tissue toothache treatment trial tumor urine vaccine vessel virus vision "
    "wheelchair",
    3: "abdomen allergy aorta apnea area arthritis atrial benefit biopsy bronchitis cardiac cartilage cereal "
    "clinical cyanide dementia element exercise genetic gradual heroin hospital idea infection influence "
    "injury insulin ischemic maternal medium nausea nuclear nucleus opioid oxygen pancreas period "
    "physician pneumonia psychosis radius reaction retina suicide surgery surgical therapy thrombosis "
    "vehicle vertigo violence vomiting",
    4: "adenoma anemia anesthesia anxiety bacteria cholesterol coronary creatinine diabetes diagnosis "
    "electrolyte embolism emergency epidemic epilepsy evaluate geriatric hypertension influenza "
    "intravenous meningitis metastasis myopia neurology obesity orthopedic paralysis pathology pediatric "
    "penicillin psoriasis radiation sarcoidosis society variety",
    5: "appendicitis cardiology esophageal fibromyalgia hallucination immunization metabolism myocardial "
    "osteopathy polymyalgia schizophrenia tachycardia toxicology tuberculosis",
    6: "acetaminophen cardiovascular osteoarthritis osteoporosis rehabilitation",
    7: "adenocarcinoma cardiomyopathy gastroenterology",
}


@pytest.mark.parametrize("count", DICTIONARY)
def test_words_have_the_syllables_that_dictionaries_give(count: int) -> None:
    wrong = {word: syllables(word) for word in DICTIONARY[count].split() if syllables(word) != count}
    assert not wrong


def test_abbreviations_are_spelled_and_numbers_read_digit_by_digit() -> None:
    assert [syllables(word) for word in ("MRI", "COPD", "AIDS", "UTIs", "WHO")] == [3, 4, 1, 3, 5]
    assert [syllables(word) for word in ("5", "20", "1.5", "7")] == [1, 3, 2, 2]


def test_parts_joined_by_hyphens_are_counted_apart() -> None:
    assert syllables("well-known") == 2
    assert syllables("follow-up") == 3
    assert syllables("non-steroidal") == 4


def test_a_word_has_one_syllable_at_least() -> None:
    assert {syllables(word) for word in ("mm", "pH", "x", "tsk", "'")} == {1}
