"""Titles are taken apart into topic, names and kind of question."""

import pytest

from meditune.retrieve.topics import read


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
