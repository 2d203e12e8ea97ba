"""How often is compared by what it comes to, however it is told."""

import pytest

from meditune.evidence.quantities import numbers, rates


def found(text):
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
    assert [text[each.start : each.end] for each in found(text)] == expected


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
    (mine,), (theirs,) = found(said), found(source)
    assert mine.agrees(theirs) is expected
