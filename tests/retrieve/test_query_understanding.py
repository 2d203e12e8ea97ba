"""What a rambling message asks is found in it.

Topics are found by any of their names and spellings, and ordinary words aren't taken for them.

Titles are taken apart into topic, names and kind of question.
"""

import pytest

from meditune.retrieve.query_understanding import query_focus
from meditune.retrieve.topics import Synonyms, of_medquad, read

KNOWN = Synonyms(
    read(title).names
    for title in [
        "What is (are) Fibromyalgia ?",
        "What are the treatments for Chronic pain ?",
        "What is (are) Rheumatoid arthritis ? (Also called: RA)",
        "What are the side effects or risks of Methotrexate ?",
        "How to prevent Shingles ?",
    ]
)
RAMBLING = (
    "General health\n"
    "Hello doctor, I hope this finds you well. My mother is 71 and has worked in a bakery all her life, and my brother "
    "moved to Ohio last year. She was told that she has rheumatiod arthritis and takes methotrexate every Monday. "
    "Is there anything that would ease the swelling in the morning? Thank you very much and God bless."
)


def test_a_story_is_left_out_and_a_misspelled_disease_is_found():
    asked = query_focus(RAMBLING, KNOWN)
    assert asked.mentions[0].topic == "rheumatoid arthritis"
    assert "ease the swelling" in asked.query
    assert "rheumatoid arthritis" in asked.query
    for story in ("bakery", "Ohio", "Hello", "God bless", "General health"):
        assert story not in asked.query


def test_a_subject_that_says_something_is_searched_for():
    asked = query_focus("Shingles\nMy father had it twice. How can I avoid catching it from him?", KNOWN)
    assert (asked.mentions[0].topic, asked.kinds[0]) == ("shingles", "prevention")
    assert asked.query.startswith("Shingles")
    assert "twice" not in asked.query


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What treatments are there for fibromyalgia?", "treatment"),
        ("how would a doctor diagnose fibromyalgia", "exams and tests"),
        ("Did I get fibromyalgia from my mother's genes, is it hereditary?", "inheritance"),
        ("does methotrexate have side effects", "side effects"),
        ("Fibromyalgia", "information"),
        ("what is the life expectancy with rheumatoid arthritis?", "outlook"),
    ],
)
def test_kinds_of_question(question, kind):
    assert query_focus(question, KNOWN).kinds[0] == kind


def test_what_is_asked_about_counts_more_than_what_is_told():
    asked = query_focus("I have had chronic pain since March. Could fibromyalgia be the reason?", KNOWN)
    assert [mention.topic for mention in asked.mentions] == ["fibromyalgia", "chronic pain"]


@pytest.mark.parametrize("question", ["", "   ", "Hello!", "???", "xyzzy plugh", "Thanks\n\n"])
def test_messages_without_a_question_do_no_harm(question):
    asked = query_focus(question, KNOWN)
    assert (asked.mentions, asked.kinds) == ((), ("information",))
    assert asked.query.split() == question.split() or asked.query in question


TITLES = [
    "What are the symptoms of Klippel-Trenaunay syndrome ?",
    "What is (are) Diabetes ? (Also called: Sugar disease)",
    "What is (are) Diabetes - type 2 ?",
    "What are the treatments for Deep Vein Thrombosis (DVT) ?",
    "What is (are) Normal Pressure Hydrocephalus ?",
    "How should Gabapentin be used and what is the dosage ?",
    "How to prevent Shingles ? (Also called: Herpes zoster)",
]


@pytest.fixture(scope="module")
def synonyms() -> Synonyms:
    return Synonyms(read(title).names for title in TITLES)


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("my granddaughter has Klippel-Tranaunay syndrome", "klippel-trenaunay syndrome"),
        ("is gabamentine safe for me", "gabapentin"),
        ("how long does herpes zoster last", "shingles"),
        ("what to eat with sugar disease", "diabetes"),
        ("I was told it is a dvt", "deep vein thrombosis (dvt)"),
        ("my father has nph and walks badly", "normal pressure hydrocephalus"),
        ("I have type 2 diabetes", "diabetes - type 2"),
        ("the shingle vaccine", "shingles"),
    ],
)
def test_topics_are_found_by_other_names_slips_initials_and_turned_round(synonyms, text, topic):
    assert [mention.topic for mention in synonyms.find(text)] == [topic]


def test_the_longest_name_counts_and_what_it_holds_does_not(synonyms):
    found = synonyms.find("Is diabetes type 2 like diabetes?")
    assert [mention.topic for mention in found] == ["diabetes - type 2", "diabetes"]


@pytest.mark.parametrize("text", ["", "the weather is fine", "She single-handedly sang", "12345 ?!", "diabolic things"])
def test_ordinary_words_are_no_topics(synonyms, text):
    assert synonyms.find(text) == []
    assert synonyms.corrected(text) == text


def test_only_slips_are_corrected(synonyms):
    assert synonyms.corrected("Gabamentine helps, doctor says") == "gabapentin helps, doctor says"


def test_other_names_are_added_once_and_few(synonyms):
    assert synonyms.expand("How to prevent shingles?").splitlines()[1:] == ["herpes zoster"]
    assert synonyms.expand("nothing known") == "nothing known"
    many = Synonyms([["lupus", *(f"lupus{letter * 3}a" for letter in "bcdfghjklmnpq")]])
    assert len(many.expand("lupus", max_synonyms=3).splitlines()) == 4


def test_two_topics_of_one_name_are_both_named():
    found = Synonyms([["nephronophthisis", "NPH"], ["Normal Pressure Hydrocephalus"]]).find("NPH")
    assert found[0].topics == {"nephronophthisis", "normal pressure hydrocephalus"}


def test_medquad_gives_names_also_of_documents_without_answers(tmp_path):
    def write(name: str, focus: str, synonym: str, concept: str) -> None:
        (tmp_path / name).write_text(
            f"<Document><Focus>{focus}</Focus><CUI>{concept}</CUI><Synonym>{synonym}</Synonym>"
            "<QAPairs><QAPair pid='1'><Question>What?</Question><Answer></Answer></QAPair></QAPairs></Document>",
            encoding="utf-8",
        )

    write("1.xml", "Common variable immunodeficiency", "CVID", "C1")
    write("2.xml", "Common variable immune deficiency", "late-onset immunoglobulin deficiency", "C1")
    write("3.xml", "Rickets", "Osteomalacia in children", "C2")
    (tmp_path / "4.xml").write_text("<Document><Focus>cut off", encoding="utf-8")
    names = {group[0]: set(group[1:]) for group in of_medquad(tmp_path)}
    assert names["Rickets"] == {"Osteomalacia in children"}
    assert {"CVID", "Common variable immunodeficiency"} <= names["Common variable immune deficiency"]
    assert Synonyms(of_medquad(tmp_path)).find("I have CVID")


@pytest.mark.parametrize(
    ("title", "topic", "kind"),
    [
        ("What are the symptoms of Deep Vein Thrombosis ?", "Deep Vein Thrombosis", "symptoms"),
        ("what research (or clinical trials) is being done for Rickets ?", "Rickets", "research"),
        ("Is Alzheimer disease inherited ?", "Alzheimer disease", "inheritance"),
        ("How should Gabapentin be used and what is the dosage ?", "Gabapentin", "dosage"),
        ("Who should get Gabapentin and why is it prescribed ?", "Gabapentin", "usage"),
        ("Do you have information about Toddler Health", "Toddler Health", "information"),
        ("Chapter 3: Asthma in adults", "Chapter 3: Asthma in adults", ""),
        ("", "", ""),
    ],
)
def test_topic_and_kind(title, topic, kind):
    assert (read(title).topic, read(title).kind) == (topic, kind)


def test_other_names():
    title = "What causes Shingles ? (Also called: Herpes zoster; Zoster)"
    assert read(title).names == ("Shingles", "Herpes zoster", "Zoster")
