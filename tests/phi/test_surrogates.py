"""Invented identifiers: consistent, of the same shape, not to be undone without the secret."""

import re
from datetime import date

import pytest

from meditune import phi
from meditune.errors import DataError
from meditune.phi.surrogates import Surrogates, shift_date, surrogate_secret

KEY = b"0123456789abcdef"


def replaced(text: str, group: str = "1", key: bytes = KEY) -> str:
    return Surrogates(key, group).replaced_in({"": text}, {"": phi.find(text)})[""]


def test_the_same_person_has_the_same_invented_name_in_all_of_a_patients_texts() -> None:
    first = replaced("Ms. Iwona Zelazny was seen by Dr. Okonkwo.")
    second = replaced("Ms. ZELAZNY was well.")
    surname = re.match(r"Ms\. \w+ (\w+) was seen", first)
    assert surname
    assert second == f"Ms. {surname[1].upper()} was well."
    assert not {"Iwona", "Zelazny", "Okonkwo"} & set(re.findall(r"\w+", first))
    assert replaced("Ms. Iwona Zelazny was seen by Dr. Okonkwo.") == first


def test_other_groups_and_other_secrets_give_other_surrogates() -> None:
    text = "Dr. Okonkwo, MRN: 44711234, 3/14/2012"
    assert len({replaced(text), replaced(text, group="2"), replaced(text, key=b"fedcba9876543210")}) == 3


def test_dates_move_together_and_keep_their_format() -> None:
    moved = replaced("Admitted 3/14/2012, discharged 2012-03-21.")
    found = re.search(r"Admitted (\d+)/(\d+)/(\d{4}), discharged (\d{4})-(\d\d)-(\d\d)\.", moved)
    assert found
    month, day, year, *iso = map(int, found.groups())
    assert (date(*iso) - date(year, month, day)).days == 7
    assert (date(*iso) - date(2012, 3, 21)).days % 7 == 0
    assert moved != "Admitted 3/14/2012, discharged 2012-03-21."


def days_between(text: str, day_first: bool) -> list[int]:
    numbers = re.findall(r"(\d+)/(\d+)/(\d{4})", text)
    first, *rest = [date(int(c), *(map(int, (b, a) if day_first else (a, b)))) for a, b, c in numbers]
    return [(each - first).days for each in rest]


@pytest.mark.parametrize(
    ("text", "day_first"),
    [
        ("Seen 03/04/2023, again 25/04/2023 and 02/05/2023.", True),
        ("Seen 03/04/2023, again 04/25/2023 and 05/02/2023.", False),
        ("Seen 03/04/2023, again 05/06/2023.", False),
    ],
)
def test_intervals_stay_where_day_or_month_comes_first(text: str, day_first: bool) -> None:
    for number in range(20):
        assert days_between(replaced(text, group=str(number)), day_first) == days_between(text, day_first)


@pytest.mark.parametrize(
    ("written", "later"),
    [
        ("3/14/2012", "3/24/2012"),
        ("03/04/12", "03/14/12"),
        ("2012-12-25", "2013-01-04"),
        ("25.12.2012", "4.1.2013"),
        ("14-MAR-1950", "24-MAR-1950"),
        ("March 25, 2012", "April 4, 2012"),
        ("Mar 25th", "Apr 4th"),
        ("22nd of March, 2012", "1st of April, 2012"),
        ("March 3-5", "March 13-15"),
        ("March 12 and 14", "March 22 and 24"),
        ("14-15 March 2023", "24-25 March 2023"),
        ("12 and 21 May", "22 and 31 May"),
        ("20th to 22nd December 2023", "30th December 2023 to 1st January 2024"),
        ("March 21-22, 2023", "March 31, 2023-April 1, 2023"),
        ("March 2012", "March 2012"),
        ("March", "March"),
        ("3/25", "4/4"),
        ("3/2012", "3/2012"),
        ("20120314", "20120324"),
        ("Christmas", None),
        ("2/31/2012", None),
    ],
)
def test_a_date_ten_days_later(written: str, later: str | None) -> None:
    assert shift_date(written, 10) == later


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("SSN 123-45-6789", r"SSN \d{3}-\d\d-\d{4}"),
        ("MRN: AB-4471123", r"MRN: [A-Z]{2}-\d{7}"),
        ("Call 617-555-0123 x42.", r"Call \d{3}-\d{3}-\d{4} x\d\d\."),
        ("write to iwona.z@example.com", r"write to [a-z]+@example\.org"),
        ("from 10.4.4.12 today", r"from 192\.0\.2\.\d+ today"),
        ("A 93-year-old man", "A 90-year-old man"),
        ("He moved to 12 Elm Street, Apt 4.", r"He moved to \d\d [A-Z][a-z]+ Street, Apt \d\."),
        ("42 Avenue of the Americas", r"\d\d [A-Z][a-z]+ Avenue"),
        ("100 Court Street", r"\d{3} [A-Z][a-z]+ Street"),
        ("12 St James Street, Apt 4B", r"\d\d [A-Z][a-z]+ Street, Apt \dB"),
        ("9 St. Mary's Road", r"\d [A-Z][a-z]+ Road"),
        ("Mr. Doe lives on Harrow Lane.", r"Mr\. [A-Z][a-z]+ lives on [A-Z][a-z]+ Lane\."),
        ("Mr. Doe was seen at Larkmere on 3/4/2021.", r"Mr\. \w+ was seen at [A-Z][a-z]+ Hospital on \d+/\d+/\d{4}\."),
        ("Mr. Doe works at Hartwell Textile Mills.", r"Mr\. \w+ works at [A-Z][a-z]+ Company\."),
        ("He came from St. Joseph Hospital of Orange.", r"He came from [A-Z][a-z]+ Hospital"),
        ("Mr. Doe was seen at Children's Hospital of Oakland.", r"Mr\. \w+ was seen at [A-Z][a-z]+ Hospital"),
    ],
)
def test_a_surrogate_has_the_shape_of_what_it_replaces(text: str, shape: str) -> None:
    made = replaced(text)
    assert re.fullmatch(shape, made), made
    assert made != text
    assert not {"Harrow", "Larkmere", "Americas"} & set(re.findall(r"\w+", made))


def test_the_secret_is_this_machines_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    monkeypatch.delenv("MEDITUNE_PHI_SECRET", raising=False)
    first = surrogate_secret()
    assert surrogate_secret() == first
    assert len(first) >= 32
    assert (tmp_path / "phi" / "secret").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "a secret of the clinic")
    assert surrogate_secret() == b"a secret of the clinic"
    monkeypatch.setenv("MEDITUNE_PHI_SECRET", "short")
    with pytest.raises(
        DataError, match="MEDITUNE_PHI_SECRET: the secret for surrogates must have at least 16 characters"
    ):
        surrogate_secret()
