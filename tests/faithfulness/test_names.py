"""Names are known by their shape; ordinary words aren't taken for any."""

import pytest

from meditune.evidence.detector import Sources
from meditune.evidence.words import names


def found(text):
    return [(each.text, each.kind) for each in names(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We gave infliximab and aspirin.", [("infliximab", "drug"), ("aspirin", "drug")]),
        ("Gastritis, lymphoma and asthma.", [("Gastritis", "disease"), ("lymphoma", "disease"), ("asthma", "disease")]),
        ("It was gaucher disease.", [("gaucher", "disease")]),
        ("After colectomy the HDL-C fell.", [("colectomy", "procedure"), ("HDL", "abbreviation")]),
        ("They went to Lisbon.", [("Lisbon", "name")]),
        ("Promise, diploma, however, medicine, examine, results.", []),
        ("THIS IS A HEADING ABOUT PAIN", []),
    ],
)  # fmt: skip
def test_names_by_shape(text, expected):
    assert found(text) == expected


@pytest.mark.parametrize(
    ("source", "said", "known"),
    [
        ("Double balloon enteroscopy is safe.", "DBE is safe.", True),
        ("Enteroscopy is safe.", "DBE is safe.", False),
        ("The pull-through (TERPT) was done.", "TERPT was done.", True),
        ("Leukaemia and tumours.", "Leukemia.", True),
        ("Hypertension.", "Hypotension.", False),
    ],
)
def test_a_name_is_known_by_itself_its_letters_or_another_spelling(source, said, known):
    sources = Sources([source])
    assert all(sources.has_name(name) for name in names(said)) is known
