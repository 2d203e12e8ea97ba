"""Counts as dictionaries give them."""

import pytest

from meditune.readability import syllables

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
