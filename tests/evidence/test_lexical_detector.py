"""What the detector sees in an answer: where, of what kind, and what the source says there."""

import os
import random
from pathlib import Path

import pytest

from meditune.data.preference_pairs import corrupt
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.evidence.lexical_detector import Sources, detect, placed

TEXTS = (
    "We gave aspirin or placebo to 1,200 adults for 3 weeks. Nobody was followed for long.",
    "Severe headaches increased in 30 adults (2.5 %). Aspirin did not lower blood pressure. The dose was 75 mg.",
)
SOURCES = Sources(TEXTS, "Does aspirin lower blood pressure?")


def spans(answer):
    return [(answer[span.start : span.end], span.kind) for span in detect(answer, SOURCES).spans]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Severe headaches increased in 30 adults.", []),
        ("Severe headaches increased in thirty adults (2.5 percent).", []),
        ("Aspirin doesn't lower blood pressure.", []),
        ("The dose was 0.075 g.", []),
        ("Severe headaches increased in 31 adults.", [("31", "number")]),
        ("Severe headaches decreased in 30 adults.", [("decreased", "direction")]),
        ("Severe headaches did not increase in 30 adults.", [("not", "negation")]),
        ("Aspirin lowers blood pressure.", [("Aspirin lowers blood pressure.", "negation")]),
        ("Ibuprofen did not lower blood pressure.", [("Ibuprofen", "name")]),
        ("The dose was 75 weeks.", [("75 weeks", "unit")]),
        ("Bananas cure colds in nearly every zoo.", [("Bananas cure colds in nearly every zoo.", "unsupported")]),
    ],
)
def test_spans(answer, expected):
    assert spans(answer) == expected


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("1,500 mg", "1500 mg"),
        ("4 g", "4000 mg"),
        ("2 mg/day", "2.0 mg/day"),
        ("7 days", "1 week"),
        ("25%", "25.4%"),
        ("13%", "12.5%"),
        ("12%", "12.5%"),
        ("12%", "12.0 percent"),
        ("p < 0.05", "p = 0.003"),
        ("p < 0.05", "p < 0.01"),
        ("p = .03", "p = 0.03"),
    ],
)
def test_a_number_in_another_form_is_no_error(stated, known):
    said = "In this trial, the treated adults with asthma had the value {} after the first month."
    assert detect(said.format(stated), Sources([said.format(known)])).spans == ()


@pytest.mark.parametrize(
    ("stated", "known"),
    [("30%", "25%"), ("25%", "25.6%"), ("4 mg", "4 g"), ("p < 0.12", "p < 0.01"), ("p < 0.01", "p = 0.03")],
)
def test_a_number_with_another_value_is_an_error(stated, known):
    said = "In this trial, the treated adults with asthma had the value {} after the first month."
    verdict = detect(said.format(stated), Sources([said.format(known)]))
    assert verdict.spans
    assert not verdict.faithful


def test_the_word_that_answers_a_question_is_no_negation():
    sources = Sources(["Antibiotics do not help against colds or the flu."])
    for answer in (
        "No, antibiotics do not help against colds or the flu.",
        "No. Antibiotics do not help against colds.",
    ):
        assert detect(answer, sources).spans == ()
    (span,) = detect("No, antibiotics help against colds or the flu.", sources).spans
    assert span.kind == "negation"


@pytest.mark.parametrize(
    ("condition", "abbreviation", "known"),
    [
        ("atrial fibrillation", "AF", True),
        ("a few weeks of illness", "AF", False),
        ("myocardial infarction", "MI", True),
        ("mild infections", "MI", False),
        ("chronic obstructive pulmonary disease", "COPD", True),
        ("old pain. Doctors agree", "OPD", False),
    ],
)
def test_an_abbreviation_needs_its_words_in_a_source(condition, abbreviation, known):
    sources = Sources([f"Beta blockers reduce the risk of death in adults with {condition}."])
    kinds = [
        span.kind for span in detect(f"Beta blockers reduce the risk of death with {abbreviation}.", sources).spans
    ]
    assert kinds == ([] if known else ["name"])


@pytest.mark.parametrize(
    ("source", "faithful", "false"),
    [
        ("Hepatitis C is treated with sofosbuvir for 12 weeks.", "Hepatitis C is treated with sofosbuvir.",
         "Hepatitis A is treated with sofosbuvir for 12 weeks."),
        ("Hepatitis A, B, and C can damage the liver.", "Hepatitis B can damage the liver.",
         "Hepatitis D can damage the liver."),
        ("Vitamin C deficiency causes scurvy.", "Scurvy is caused by vitamin-C deficiency.",
         "Vitamin A deficiency causes scurvy."),
        ("Haemophilia B is caused by a lack of clotting proteins.",
         "Hemophilia B is caused by a lack of clotting proteins.",
         "Hemophilia A is caused by a lack of clotting proteins."),
        ("Influenza A and I think also C cause an illness.", "Influenza A causes an illness.",
         "Influenza B causes an illness."),
        ("Type 2 diabetes can be treated with diet.", "Type II diabetes can be treated with diet.",
         "Type I diabetes can be treated with diet."),
        ("Stage IV cancer often spreads to the liver.", "A stage IV cancer often spreads to the liver.",
         "Stage I cancer often spreads to the liver."),
        ("Angiotensin II raises blood pressure directly.", "Angiotensin II raises blood pressure.",
         "Angiotensin I raises blood pressure directly."),
    ],
)  # fmt: skip
def test_a_letter_or_numeral_after_its_word_names_another_thing(source, faithful, false):
    sources = Sources([source])
    assert detect(faithful, sources).spans == ()
    (judged,) = detect(false, sources).sentences
    assert [span.kind for span in judged.spans] == ["name"]
    assert not judged.supported


@pytest.mark.parametrize(
    ("source", "faithful"),
    [
        ("hepatitis a spreads through contaminated food.", "Hepatitis A spreads through contaminated food."),
        ("vitamin d deficiency causes rickets.", "Vitamin D deficiency causes rickets."),
        ("Vitamins (A, D, E and K) are stored in fat.", "Vitamin D is stored in fat."),
        ("Influenza viruses A and B are contagious.", "Influenza B is contagious."),
        ("It is the risk factor that was found most often.", "It is the risk factor I found most often."),
    ],
)
def test_a_letter_after_its_word_is_found_in_other_spellings(source, faithful):
    assert detect(faithful, Sources([source])).spans == ()


def test_the_article_after_such_a_word_is_no_letter():
    sources = Sources(["I had hepatitis a few years ago, it is serious."])
    (judged,) = detect("Hepatitis A is serious.", sources).sentences
    assert [span.kind for span in judged.spans] == ["name"]


@pytest.mark.parametrize(
    ("source", "faithful", "false"),
    [
        ("Methotrexate is taken once a week.", "Methotrexate is taken once weekly.",
         "Methotrexate is taken once a day."),
        ("Children get paracetamol 15 mg/kg every 6 hours.", "Children get paracetamol 15 mg per kg every 6 hours.",
         "Children get paracetamol 15 mg every 6 hours."),
        ("Warfarin is contraindicated in pregnancy.", "In pregnancy warfarin is contraindicated.",
         "Warfarin is indicated in pregnancy."),
        ("Aspirin should be avoided in children under 16.", "Avoid using aspirin in children under 16.",
         "Aspirin should be used in children under 16."),
        ("Call for a fever above 38 C in a baby under 3 months.",
         "Call for a fever over 38 C in a baby below 3 months.",
         "Call for a fever below 38 C in a baby under 3 months."),
        ("Stop taking metformin before surgery.", "Before surgery stop taking metformin.",
         "Start taking metformin before surgery."),
        ("Stop taking metformin before surgery.", "Stop metformin before surgery.",
         "Continue taking metformin before surgery."),
        ("Allopurinol lowers uric acid in gout.", "In gout, allopurinol reduces uric acid.",
         "Allopurinol raises uric acid in gout."),
        ("Insulin lowers blood sugar.", "Insulin decreases blood sugar.", "Insulin increases blood sugar."),
        ("Vaccination prevents measles and its complications.", "Vaccination protects against measles.",
         "Vaccination causes measles and its complications."),
        ("Marfan syndrome is inherited in an autosomal dominant pattern.",
         "The pattern of Marfan syndrome is autosomal dominant.",
         "Marfan syndrome is inherited in an autosomal recessive pattern."),
        ("Hypothyroidism causes weight gain.", "Hypothyroidism can cause weight gain.",
         "Hypothyroidism causes weight loss."),
        ("Keep taking metformin before surgery.", "Continue taking metformin before surgery.",
         "Stop taking metformin before surgery."),
        ("Take 500 mg every 12 hours with food.", "Take 500 mg twice a day with food.",
         "Take 500 mg twice a week with food."),
        ("Take two tablets a day with food.", "Take 2 tablets per day with food.", "Take 2 tablets a week with food."),
        ("Take 10 mg/day with food.", "Take 10 mg daily with food.", "Take 10 mg twice a day with food."),
        ("Take iron once a week. Take zinc every day.", "Take zinc daily.", "Take iron daily."),
    ],
)  # fmt: skip
def test_another_rate_limit_or_advice_is_marked(source, faithful, false):
    sources = Sources([source])
    for answer in (source, faithful):
        (judged,) = detect(answer.split(". ")[0], sources).sentences
        assert (judged.supported, judged.spans) == (True, ()), answer
    (judged,) = detect(false, sources).sentences
    assert not judged.supported
    assert {span.kind for span in judged.spans} <= {"unit", "direction"}
    assert [span.source for span in judged.spans] == [source.split(". ")[0].removesuffix(".") + "."]


def test_the_last_word_of_a_long_answer_that_was_broken_off_is_not_judged():
    start = "Severe headaches increased in 30 adults. " * 6
    assert spans(f"{start}The dose was 7") == []
    assert spans(f"{start}The dose was 7.") == [("7", "number")]
    assert spans("The dose was 7") == [("7", "number")]


def test_a_span_says_what_the_source_says():
    (span,) = detect("Nobody knew. Severe headaches decreased in 30 adults.", SOURCES).spans
    assert span.source.startswith("Severe headaches increased in 30 adults")
    assert "opposite of “decreased”" in span.why


def test_scores_fall_with_what_is_wrong():
    true = detect("Severe headaches increased in 30 adults.", SOURCES)
    false = detect("Severe headaches decreased in 30 adults.", SOURCES)
    mixed = detect("Severe headaches increased in 30 adults. Severe headaches decreased in 30 adults.", SOURCES)
    assert true.faithful
    assert not false.faithful
    assert false.score < 0.1 < 0.9 < true.score
    assert [each.supported for each in mixed.sentences] == [True, False]
    assert mixed.score < true.score


def test_sentences_lie_where_they_stand_in_the_answer():
    answer = "  Nobody was followed. \n\nAspirin did  not lower blood pressure."
    found = detect(answer, SOURCES).sentences
    assert [answer[each.start : each.end] for each in found] == [
        "Nobody was followed.", "Aspirin did  not lower blood pressure.",
    ]  # fmt: skip


def test_the_numbers_and_bullets_of_a_list_are_no_sentences():
    claims = ["Aspirin did not lower blood pressure.", "Severe headaches increased in 30 adults."]
    plain = detect(" ".join(claims), SOURCES)
    for first, second in (("1. ", "2. "), ("1) ", "2) "), ("- ", "- "), ("  * ", "  * "), ("(a) ", "(b) ")):
        answer = f"{first}{claims[0]}\n{second}{claims[1]}"
        found = detect(answer, SOURCES)
        assert [answer[each.start : each.end] for each in found.sentences] == claims
        assert found.score == plain.score
    for answer, texts in {
        "How many died? 47.": ["How many died?", "47."],
        "12.": ["12."],
        "1. Rest. 2. Drink.\n3.": ["Rest.", "Drink."],
        "1. 1": ["1"],
    }.items():
        found = list(placed(answer))
        assert [text for _, text in found] == texts
        assert all(answer[start:].startswith(text) for start, text in found)
    assert list(placed("1. 1")) == [(3, "1")]
    assert [text for _, text in placed("2.5 mg helped. A. baumannii is a bacterium.\n-5 degrees")] == [
        "2.5 mg helped.", "A. baumannii is a bacterium.", "-5 degrees",
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["", " \n", "...", "?!"])
def test_nothing_said_has_no_score(answer):
    found = detect(answer, SOURCES)
    assert (found.score, found.sentences, found.faithful) == (None, (), True)


def test_without_sources_nothing_is_borne_out():
    found = detect("Aspirin helped 30 adults with gout.", Sources([]))
    assert not found.faithful
    assert {span.kind for span in found.spans} == {"name", "number"}


@pytest.mark.parametrize("answer", ["x" * 5000, "1" * 400, "no " * 2000, "½ µ ∆ 😀 Ω", "A. " * 500])
def test_odd_answers_are_judged_all_the_same(answer):
    assert 0 <= detect(answer, SOURCES).score <= 1


REAL = Path(os.environ.get("MEDITUNE_DATA", "nowhere")) / "pubmedqa"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="needs MEDITUNE_DATA with pubmedqa")
@pytest.mark.parametrize(
    ("kind", "higher", "lower"),
    [("other", 0.95, 0.025), ("direction", 0.28, 0.03), ("number", 0.38, 0.03), ("negation", 0.4, 0.18)],
)
def test_real_conclusions_are_clearly_above_their_corruptions_more_often_than_below(kind, higher, lower):
    """On the half of the items that the detector wasn't fitted on, as benchmarks/faithfulness.py parts them."""
    examples, _ = pubmedqa.official_split(pubmedqa.read(REAL, Rejects()))
    parted = sorted(examples, key=lambda example: example.id)
    random.Random(17).shuffle(parted)
    differences = []
    for example in parted[250:]:
        text = corrupt(kind, example, examples, random.Random(example.id))
        if text:
            sources = Sources((passage.text for passage in example.context), example.question)
            differences.append(detect(example.answer, sources).score - detect(text, sources).score)
    assert sum(each > 0.1 for each in differences) / len(differences) > higher
    assert sum(each < -0.1 for each in differences) / len(differences) < lower


@pytest.mark.parametrize(
    ("answer", "near"),
    [
        ("Allupurinol prevents gout.", "allopurinol"),
        ("Alopurinol prevents gout.", "allopurinol"),
        ("Allopurinol prevents gout.", None),
        ("Hypoglycemia was rare.", None),
        ("Hypoglycemic patients were rare.", None),
        ("Allopurinols prevent gout.", None),
    ],
)
def test_a_misspelled_name_is_not_supported_but_another_spelling_or_form_is(answer, near):
    sources = Sources(["Allopurinol lowers uric acid and prevents gout. Hypoglycaemia was rare in patients."])
    found = [span.why for span in detect(answer, sources).spans if span.kind == "name"]
    assert found == ([f"No source contains {answer.split()[0]}; the sources have {near}."] if near else [])
