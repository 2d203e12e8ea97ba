"""What can be told of one row, texts put right without losing a word, and rows that say the same."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meditune.config.data_options import QualitySpec
from meditune.data.example import Example, Passage
from meditune.data.quality.deduplication import asked_key, by_threshold, keys, pairs, repeated_questions
from meditune.data.quality.quality_filters import (
    apply_rules,
    fix_encoding,
    fix_layout,
    foreign_language,
    is_english,
    is_medical,
    is_off_topic,
    is_question,
    is_truncated,
    question_text,
    without_boilerplate,
)
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects

ANSWER = (
    "Asthma is treated with inhaled medicine. A reliever opens the airways within minutes when breathing gets hard. "
    "A controller is taken every day and keeps the swelling down. Most people need both, and a plan for attacks. "
    "The plan says which medicine to take, how often, and when to call for help."
)


@cache
def medquad_rows(real_data: Path) -> list[Example]:
    """All answered pairs, read once."""
    return list(medquad.read(real_data / "medquad", Rejects()))


def example_row(number: int, **changes: Any) -> Example:
    """One good row of the user's own."""
    fields: dict[str, Any] = {
        "id": f"own:{number}",
        "source": "own",
        "question": "How is asthma treated?",
        "answer": ANSWER,
        "group": f"group-{number}",
    }
    return Example(**fields | changes)


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("What is asthma", True),
        ("Does it help?", True),
        ("i have had a cough for two weeks", True),
        ("please send information on gout", True),
        ("Asthma in children", False),
        ("Gout is caused by crystals in the joints.", False),
    ],
)
def test_questions(text, does):
    assert is_question(text) is does


@pytest.mark.parametrize(
    ("question", "answer", "medical"),
    [
        ("Does nephrolithiasis recur?", "Often, within five years.", True),
        ("How is the sprint won?", "The rider who waits behind the others until the last bend wins it.", False),
        ("Who was Thomas?", "Thomas was the captain of a ship that sailed around the world for spices.", False),
    ],
)
def test_medicine(question, answer, medical):
    assert is_medical(example_row(1, question=question, answer=answer)) is medical


@pytest.mark.parametrize(
    "answer",
    [
        "Most people get better. Some need to take a",
        "It is treated with rest,",
        "It may spread to other organs (such as the liver. Or lungs",
        "Rest helps. Medicine is needed when the pain goes on for more than two we",
        "Signs are:\n- A high fever.\n- A dry cough.\n- Pain in the",
        "It can happen at any age, such as…",
    ],
)
def test_answers_that_break_off(answer):
    assert is_truncated(answer)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        "Signs are:\n- fever\n- cough",
        "See a doctor. NIH: National Heart, Lung, and Blood Institute",
        "Yes",
        'It is called "wheezing."',
        "The dose is 5 mg (twice a day)",
        "",
    ],
)
def test_answers_that_are_whole(answer):
    assert not is_truncated(answer)


def test_an_answer_about_something_else():
    other = "Gout is caused by crystals of uric acid that build up in a joint, most often in the big toe."
    assert is_off_topic(example_row(1, answer=other))
    assert not is_off_topic(example_row(1))
    assert not is_off_topic(
        example_row(1, answer="This condition is treated with medicine that is inhaled twice daily.")
    )
    assert not is_off_topic(example_row(1, question="What is GERD?", answer=other, meta={"focus": "uric acid"}))
    assert not is_off_topic(example_row(1, answer="Rest."))


def test_with_a_context_the_answer_may_speak_of_that():
    told = "Budesonide lowered eosinophil counts in sputum without a change in spirometry or methacholine response."
    context = (Passage(text="We measured eosinophil counts, spirometry and methacholine response under budesonide."),)
    assert is_off_topic(example_row(1, answer=told))
    assert not is_off_topic(example_row(1, answer=told, context=context))


def test_languages():
    german = "Die Behandlung richtet sich nach der Ursache. Viele Betroffene erhalten zunächst Medikamente vom Arzt."
    assert is_english(ANSWER)
    assert not is_english(german)
    assert foreign_language(german, ["en"]) == "de"
    assert foreign_language(german, ["en", "de"]) == ""
    assert foreign_language("Tel. 1-844-633-5433, info@example.org", ["en"]) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "Chronic progressive external ophthalmoplegia (CPEO)",
        "Retinitis pigmentosa, macular degeneration, glaucoma, cataract",
        "Acetaminophen 500 mg; ibuprofen 400 mg; naproxen 250 mg",
        "Staphylococcus aureus, Streptococcus pyogenes, Escherichia coli, Klebsiella pneumoniae, Pseudomonas "
        "aeruginosa, Haemophilus influenzae, Neisseria meningitidis",
    ],
)
def test_english_names_of_diseases_drugs_and_species_are_no_other_language(answer):
    assert foreign_language(answer, ["en"]) == ""
    row = example_row(1, answer=answer)
    assert not [entry for entry in apply_rules(row, QualitySpec())[1] if entry.rule == "language"]


PAGE = "Key Points\nAsthma is common. Click here to read more. It can be treated.\nBack to top"


def words(text):
    return Counter(re.findall(r"\w+", text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The doctor gives\nmedicine every day.", "The doctor gives medicine every day."),
        ("Take:\naspirin\nibuprofen\nnaproxen", "Take:\naspirin\nibuprofen\nnaproxen"),
        ("Take one tablet\nby mouth\nevery day\nwith food", "Take one tablet by mouth every day with food"),
        ("It has three\nstages and\nlasts for\nyears", "It has three stages and lasts for years"),
        ("Look for:\na fever\nno appetite\nvitamin A", "Look for:\na fever\nno appetite\nvitamin A"),
        ("Take one of these with\nfood: rest,\nor ice", "Take one of these with food: rest, or ice"),
        ("It hurts .  Take rest , please.", "It hurts. Take rest, please."),
        ("Signs are:\n• fever\n• cough", "Signs are:\n- fever\n- cough"),
        ("Signs are:\n•\nfever\n•\ncough", "Signs are:\n- fever\n- cough"),
        ("Signs: - Fever. - Cough. - Pain.", "Signs:\n- Fever.\n- Cough.\n- Pain."),
        ("First.\n\n\n\nSecond.\xa0 Third.", "First.\n\nSecond. Third."),
        ("- one\n\n- two", "- one\n- two"),
        ("It is well-known - as we said - and safe.", "It is well-known - as we said - and safe."),
        ("Dose: 5 mg .5 ml", "Dose: 5 mg .5 ml"),
    ],
)
def test_layout(before, after):
    assert fix_layout(before) == after
    assert fix_layout(after) == after
    assert words(before) == words(after)


@pytest.mark.parametrize("question", ["What is (are) Gout ?", "What is (are) Gout? ?", "What is (are)  Gout??"])
def test_a_question_ends_with_one_mark(question):
    assert question_text(question) == "What is (are) Gout?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafÃ©", "café"),
        ("donâ€™t", "don’t"),
        ("5 Âµg", "5 µg"),
        ("a\u200bb\ufeff", "ab"),
        ("a\u200db \u0661\u200c\u0662 α\u200cβ д\u200dа", "ab \u0661\u0662 αβ да"),
        *((text, text) for text in ("نمی\u200cخواهم", "क्\u200dष", "👩\u200d⚕️", "🏳️\u200d🌈")),
        ("Größe “quoted” – ﬁne α≥β 治疗", "Größe “quoted” – ﬁne α≥β 治疗"),
        ("plain", "plain"),
    ],
)
def test_encoding(before, after):
    assert fix_encoding(before) == after


def test_words_of_a_page_go_and_are_named():
    left, gone = without_boilerplate(PAGE)
    assert left == "Asthma is common. It can be treated."
    assert sorted(gone) == ["Back to top", "Click here to read more.", "Key Points"]


@pytest.mark.parametrize(
    "line",
    [
        "- Share this list with your doctor and pharmacist.",
        "Start > 140/90 mmHg treatment with one drug",
        "See also a doctor if the fever lasts more than 3 days",
        "Go to the top hospital in your area",
        "- Read more slowly",
        "See also your doctor",
        "Home > clinic blood pressure by 5 mmHg: take 2 readings",
        "Share on X-ray findings with your doctor",
        "« Prenez un comprimé par jour »",
    ],
)
def test_advice_that_resembles_a_page_stays(line):
    assert without_boilerplate(f"Do this:\n{line}\nRest.") == (f"Do this:\n{line}\nRest.", [])


@pytest.mark.parametrize(
    "line",
    [
        "See also: Asthma in children",
        "- See also Asthma",
        "See also asthma",
        "See also: www.nih.gov",
        "Click here to read our full guide on asthma »",
        "Share on X",
        "Share on Reddit",
        "Home > Conditions > Type 2 diabetes",
        "Back to Top | Print",
        "Share this page",
        "Share on Facebook",
        "Share this article by e-mail",
        "Home > Health topics > Asthma",
        "Back to top of page",
        "Back to top ↑",
        "Read more about asthma",
        "Read more »",
        "More on asthma ›",
    ],
)
def test_links_of_a_page_go(line):
    assert without_boilerplate(f"Asthma is common.\n{line}") == ("Asthma is common.", [line])


@pytest.mark.parametrize(
    "table", ["Age | Dose\n1 | 5\n2 | 10", "Drug | Route | Form\nAspirin | oral | tablet", "Sodium | 140", "Yes | No"]
)
def test_a_table_stays_but_a_menu_goes(table):
    assert without_boilerplate(f"These are the doses.\n{table}") == (f"These are the doses.\n{table}", [])
    menu = "Home | About | Contact"
    assert without_boilerplate(f"{menu}\nThese are the doses.\n{table}\n\n{menu}")[1] == [menu, menu]


def test_an_answer_that_is_nothing_else_stays():
    assert without_boilerplate("Back to top") == ("Back to top", ["Back to top"])


@pytest.mark.real
def test_no_word_of_medquad_is_lost_by_its_layout(real_data):
    mended = 0
    for example in medquad_rows(real_data)[::16]:
        for before, after in (
            (example.question, question_text(example.question)),
            (example.answer, fix_layout(example.answer)),
        ):
            assert words(before) == words(after), example.id
            mended += before != after
    assert mended > 1_000


FORM = [
    example_row(
        100 + n, question=f"What are the treatments for {name} syndrome?", answer=f"{name} can be treated in {n} ways."
    )
    for n, name in enumerate(("Alba", "Bernt", "Corvin", "Dorsey", "Eltham", "Farrow"))
]


def found(*examples):
    return [(pair.first, pair.repeat, pair.exact) for pair in pairs(examples)]


def test_the_same_but_for_case_and_punctuation():
    again = example_row(2, question="HOW is asthma treated", answer=ANSWER.replace(",", "").upper())
    assert found(example_row(1), again) == [(0, 1, True)]


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace("Most people", "Many people").replace("gets hard", "is hard"),
        "In short: " + ANSWER,
        ANSWER.replace("A controller is taken every day and keeps the swelling down. ", ""),
        " ".join(reversed(ANSWER.split(". "))),
    ],
)
def test_nearly_the_same(answer):
    [pair] = pairs([example_row(1), example_row(2, question="how is asthma treatd?", answer=answer)])
    assert not pair.exact
    assert pair.alike >= 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": ANSWER.replace("within minutes", "within 5 minutes")},
        {"answer": ANSWER.replace("Most people need", "Most people do not need")},
        {"question": "How is asthma prevented?"},
        {"question": "How is eczema treated?"},
        {"decision": "no"},
        {"answer": "Gout is treated with rest, cold packs and pills against the pain."},
    ],
)
def test_other_facts_make_another_row(changes):
    assert found(example_row(1), example_row(2, **changes)) == []


SIGNS = [
    ("a base excess of +3 mmol/l", "a base excess of -3 mmol/l"),
    ("potassium < 3.5", "potassium > 3.5"),
    ("blood group A+", "blood group A-"),
    ("an INR of 2-3", "an INR of 2/3"),
    ("a dose of 3.5", "a dose of 3/5"),
    ("a change of 5", "a change of \N{MINUS SIGN}5"),
    ("a share <= 5", "a share >= 5"),
    ("a dose of .5", "a dose of 5"),
    ("a test for HIV+", "a test for HIV-"),
]


@pytest.mark.parametrize(("one", "other"), SIGNS)
def test_another_sign_makes_another_row(one, other):
    parts = {"question": "Is {} a reason to treat asthma?", "answer": ANSWER + " It is so at {}."}
    for name, text in parts.items():
        first, second = (example_row(n, **{name: text.format(sign)}) for n, sign in ((1, one), (2, other)))
        assert found(first, second) == [], name
    contexts = [(Passage(text=f"{ANSWER} Patients had {sign}."),) for sign in (one, other)]
    first, second = (example_row(n, context=context) for n, context in enumerate(contexts))
    assert found(first, second) == []
    assert asked_key(first) != asked_key(second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("IL-6 rose by 2-3% (p = 0.05).", "IL 6 rose, by 2–3 % - p=0.05"),
        ("Take 5-mg tablets and/or rest.", "take 5 mg tablets and or rest"),
        ("Good.<br/>Well.<p class='a'>5 mg", "Good. Well. 5 mg"),
        ("> Good -> well = rest", "Good well rest"),
        ("Take:\n-1 puff\n-2 pills", "Take:\n- 1 puff\n- 2 pills"),
        ("It is common.1 It is 50% curable.2", "It is common. 1 It is 50 % curable. 2"),
        ("Since 1/2/2020.", "Since 1-2-2020."),
    ],
)
def test_hyphens_dashes_and_markup_make_no_other_row(one, other):
    rows = [example_row(n, answer=f"{ANSWER} {text}") for n, text in enumerate((one, other))]
    assert found(*rows) == [(0, 1, True)]
    rows = [example_row(n, question=f"{text} How is asthma treated?") for n, text in enumerate((one, other))]
    assert [pair[:2] for pair in found(*rows)] == [(0, 1)]


def test_one_form_with_other_names_is_another_question():
    told = "There is no cure. Treatment is aimed at the symptoms, and a team of specialists takes part in it."
    first, second = (
        example_row(n, question=f"What are the treatments for {name} syndrome?", answer=f"{told} See {name}.")
        for n, name in ((1, "Bart"), (2, "Barth"))
    )
    assert found(first, second, *FORM) == []
    misspelt = first.model_copy(update={"id": "own:3", "question": first.question.replace("Bart", "Barrt")})
    assert found(first, misspelt, *FORM) == [(0, 1, False)]


def test_a_lower_threshold_finds_no_fewer():
    found_all = pairs(
        [example_row(1), example_row(2, answer=ANSWER.replace("Most people need both, and a plan for attacks. ", ""))]
    )
    counts = [each["pairs"] for each in by_threshold(found_all)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1


def test_questions_asked_again():
    asked = [
        example_row(1),
        example_row(2, answer="Rest."),
        example_row(3, question="Other?"),
        example_row(4, question="how IS asthma treated"),
    ]
    assert repeated_questions(keys(map(asked_key, asked))) == [(0, 1), (0, 3)]


@pytest.mark.real
def test_the_known_duplicates_of_medquad_are_found(real_data):
    examples = medquad_rows(real_data)
    exact = [pair for pair in pairs(examples) if pair.exact]
    plain = len(examples) - len({(each.question, each.answer) for each in examples})
    assert len(exact) >= plain >= 48
    gone = {pair.repeat for pair in exact}
    left = [example for index, example in enumerate(examples) if index not in gone]
    assert len(repeated_questions(keys(map(asked_key, left)))) >= 2_062 - len(exact)


@pytest.mark.real
def test_pubmedqa_and_liveqa_hardly_repeat_themselves(real_data):
    assert pairs(list(pubmedqa.read(real_data / "pubmedqa", Rejects()))) == []
    assert len(pairs(list(liveqa.read(real_data / "liveqa", Rejects())))) < 20
