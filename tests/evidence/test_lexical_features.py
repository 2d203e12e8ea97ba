"""Names are known by their shape; ordinary words aren't taken for any.

Numbers are compared by value and unit, as a reader would.

How often is compared by what it comes to, however it is told.
"""

import pytest

from meditune.evidence.lexical_detector import Sources
from meditune.evidence.lexical_features import names
from meditune.evidence.quantities import numbers, rates, shares


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


def numbers_found(text):
    return [(each.value, each.unit, text[each.start : each.end]) for each in numbers(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 %, 12.0 percent, twelve", [(12, "%", "12 %"), (12, "percent", "12.0 percent"), (12, "", "twelve")]),
        ("p<0.001 and P = .03", [(0.001, "p<", "0.001"), (0.03, "p=", ".03")]),
        ("5 mg/kg for 2-4 weeks", [(5, "mg", "5 mg/kg"), (2, "week", "2"), (4, "week", "4 weeks")]),
        ("1,200 women of 12 to 18 years", [(1200, "", "1,200"), (12, "year", "12"), (18, "year", "18 years")]),
        ("COX-2, B12, p53 and one of them", []),
        ("Seventy-five percent (95%CI)", [(75, "percent", "Seventy-five percent"), (95, "%", "95%")]),
        ("107.4±30.0 minutes", [(107.4, "", "107.4"), (30, "minute", "30.0 minutes")]),
        ("a 30-day, 2-fold rise", [(30, "day", "30-day"), (2, "fold", "2-fold")]),
    ],
)  # fmt: skip
def test_numbers_have_their_value_unit_and_place(text, expected):
    assert numbers_found(text) == expected


@pytest.mark.parametrize(
    ("said", "source", "expected"),
    [
        ("12 %", "12.0 percent", True),
        ("7 days", "1 week", True),
        ("250 µg", "0.25 mg", True),
        ("60 %", "59.6%", True),
        ("59.6 %", "60%", False),
        ("75%", "45 of 60 adults", True),
        ("twelve adults", "12 women", True),
        ("5 mg", "5 g", False),
        ("12 weeks", "12 days", False),
        ("15 mg per kg", "15 mg/kg", True),
        ("15 mg a kg", "15 mg kg(-1)", True),
        ("15 mg for each kilogram", "10-15 mg/kg/day", True),
        ("15 mg", "15 mg/kg", False),
        ("15 mg/kg", "15 mg", False),
        ("15 mg", "15 mg/dl", False),
        ("15 mg", "15 mg/h", False),
        ("15", "15 mg/kg", True),
        ("75 mg", "75 mg/day", True),
        ("75 mg daily", "75 mg/day", True),
        ("525 mg a week", "75 mg/day", True),
        ("75 mg weekly", "75 mg/day", False),
        ("75 mg/kg/dose", "75 mg/kg/day", False),
        ("2 g/l", "200 mg/dl", True),
        ("0.5 units", "0.5 units/kg", False),
        ("100 mg L-dopa", "100 mg", True),
        ("p < 0.05", "P = .03", True),
        ("p < 0.05", "p<0.001", True),
        ("p > 0.05", "p=0.03", False),
        ("p = 0.03", "p<0.05", False),
    ],
)
def test_what_bears_a_number_out(said, source, expected):
    (number,) = numbers(said)
    assert any(number.agrees(each) for each in (*numbers(source), *shares(source))) is expected


def rates_found(text):
    return rates(text, numbers(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("once a week, 3 times a day, twice daily", ["once a week", "3 times a day", "twice daily"]),
        ("10 mg twice a day, 2 g once daily", ["twice a day", "once daily"]),
        ("one tablet every other day or every 6 hours", ["every other day", "every 6 hours"]),
        ("75 mg/day for a week", ["75 mg/day"]),
        ("two tablets a day for 3 days, then none for a month", ["two tablets a day"]),
        ("one course for a week, after a month once more", []),
        ("daily life within 2 hours", ["daily"]),
    ],
)
def test_rates_lie_where_they_are_told(text, expected):
    assert [text[each.start : each.end] for each in rates_found(text)] == expected


@pytest.mark.parametrize(
    ("said", "source", "expected"),
    [
        ("once a day", "daily", True),
        ("daily", "three times a day", True),
        ("twice a day", "every 12 hours", True),
        ("every 8 hours", "three times daily", True),
        ("once a fortnight", "every 2 weeks", True),
        ("every day", "every hour", False),
        ("once a day", "once a week", False),
        ("twice a week", "once a week", False),
        ("twice a day", "75 mg a day", False),
        ("weekly", "75 mg/day", False),
        ("monthly", "every other month", False),
    ],
)
def test_what_bears_a_rate_out(said, source, expected):
    (mine,), (theirs,) = rates_found(said), rates_found(source)
    assert mine.agrees(theirs) is expected
