import pytest

from meditune.phi.spans import placeholders


@pytest.mark.parametrize(
    ("bracket", "expected"),
    [
        ("[**2151-7-16**]", "[DATE]"),
        ("[**7-16**]", "[DATE]"),
        ("[**-1/2151**]", "[DATE]"),
        ("[**2151**]", "[DATE]"),
        ("[**Month (only) 547**]", "[DATE]"),
        ("[**Date range (1) 7610**]", "[DATE]"),
        ("[**Month/Day/Year 4**]", "[DATE]"),
        ("[**Year (4 digits) 2**]", "[DATE]"),
        ("[**Holiday 1**]", "[DATE]"),
        ("[**Hospital1 18**]", "[HOSPITAL]"),
        ("[**Hospital Unit Name 153**]", "[HOSPITAL]"),
        ("[**Hospital Ward Name 2**]", "[HOSPITAL]"),
        ("[**Wardname 5**]", "[HOSPITAL]"),
        ("[**Known lastname 1829**]", "[NAME]"),
        ("[**First Name8 (NamePattern2) **]", "[NAME]"),
        ("[**Last Name\n(STitle) 3**]", "[NAME]"),
        ("[**Name (NI) **]", "[NAME]"),
        ("[**Initials (NamePattern4) **]", "[NAME]"),
        ("[**Doctor Last Name **]", "[NAME]"),
        ("[**Dictator Info 1**]", "[NAME]"),
        ("[**Name Initial (PRE) **]", "[NAME]"),
        ("[**Location (un) 620**]", "[LOCATION]"),
        ("[**Street Address(2) 1**]", "[LOCATION]"),
        ("[**State/Zipcode 1**]", "[LOCATION]"),
        ("[**State 350**]", "[LOCATION]"),
        ("[**Country 9**]", "[LOCATION]"),
        ("[**University/College 1**]", "[LOCATION]"),
        ("[**PO Box 1**]", "[LOCATION]"),
        ("[**Telephone/Fax (1) 170**]", "[PHONE]"),
        ("[**Pager number 1**]", "[PHONE]"),
        ("[**E-mail address 1**]", "[CONTACT]"),
        ("[**Age over 90 **]", "[AGE]"),
        ("[**Medical Record Number **]", "[ID]"),
        ("[**MD Number(1) 1**]", "[ID]"),
        ("[**Numeric Identifier 1**]", "[ID]"),
        ("[**Clip Number (Radiology) 1**]", "[ID]"),
        ("[**12345678**]", "[ID]"),
        ("[** **]", "[OTHER]"),
        ("[**Ethnicity **]", "[OTHER]"),
    ],
)
def test_each_bracket_has_its_type(bracket: str, expected: str) -> None:
    assert placeholders(f"a {bracket} b") == f"a {expected} b"


def test_neighbours_and_unclosed_brackets() -> None:
    assert placeholders("[**First Name (un) **] [**Last Name (un) **], [**2-3**]") == "[NAME] [NAME], [DATE]"
    assert placeholders("[** never closed, [**Hospital1 18**]") == "[** never closed, [HOSPITAL]"
    assert placeholders("dose [2 mg] **now**") == "dose [2 mg] **now**"
