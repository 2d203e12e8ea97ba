"""The kinds of what tells who a patient is: named in recipes, found by `phi`."""

from typing import Literal, get_args

Kind = Literal[
    "name",
    "date",
    "age",
    "phone",
    "fax",
    "email",
    "url",
    "ip",
    "ssn",
    "mrn",
    "health_plan",
    "account",
    "licence",
    "vehicle",
    "device",
    "address",
    "city",
    "zip",
    "hospital",
    "id",
    "bracket",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Safe Harbor's identifiers (45 CFR 164.514(b)(2)) as far as text has them, hospitals, and MIMIC's brackets."""
