"""Numbers that name a person: of records, insurance, accounts, licences, vehicles, devices; SSN.

A number is told by the words before it. Without any, only those with a shape of their own are found: social security
numbers, vehicle identification numbers, DEA numbers, card numbers, hardware addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi.spans import Kind, Span

_BEFORE = 56
"""Characters in which a number's label is looked for."""
_SHORTEST = 4
_LABELS: tuple[tuple[Kind, str], ...] = (
    ("ssn", r"ssn|ss|social security|soc\.? sec\.?"),
    ("vehicle", r"vin|vehicle identification|vehicle"),
    (
        "device",
        r"(?:device|generator|lead|implant|pump|pacemaker|icd|stent|unit|model) serial|serial|s/n|sn|device|implant|"
        r"pacemaker|generator|insulin pump|pump|udi|imei|mac address|lot",
    ),
    (
        "mrn",
        r"mrn|mr|med(?:ical)?\.? ?rec(?:ord)?s?|hospital|unit|chart|(?:patient|pt|hospital|medical record)(?: id)?|"
        r"record",
    ),
    (
        "health_plan",
        r"(?:health )?(?:member|subscriber|beneficiary|insurance|plan|policy|group|payer|medicare|medicaid|hicn?|mbi|"
        r"medi-cal|tricare|aetna|cigna|humana|bcbs|blue cross(?: blue shield)?|kaiser|unitedhealth(?:care)?|claim)"
        r"(?: (?:member|policy|subscriber|beneficiary|group|claim|id))?",
    ),
    (
        "licence",
        r"(?:driver['’]?s?['’]? |medical |nursing |state |md |rn |physician |professional )?(?:licen[cs]e|lic\.?)|"
        r"dea|npi|"
        r"dl|upin|(?:birth |death |board |marriage )?certificate|cert\.?|passport",
    ),
    (
        "account",
        r"acc(?:oun)?t\.?|billing|bank account|(?:credit|debit) card|iban|routing|visit|encounter|csn|fin|invoice|har|"
        r"guarantor",
    ),
    (
        "id",
        r"accession|specimen|job|dictation|transcription|clip|order|requisition|employee|badge|student|service|inmate|"
        r"confirmation|tracking|barcode|national(?: id| insurance)?|nhs|case|id",
    ),
)
_MARK = r"(?:numbers?|num\.?|no\.?|nr\.?|identifier|id|code|#)"
_LABEL = re.compile(
    r"(?<![a-z])(?:"
    + "|".join(f"(?P<{kind}>{words})" for kind, words in _LABELS)
    + rf")[ \t]?[(]?(?P<mark>(?:[ \t]?{_MARK}){{0,2}})[)]?(?P<colon>[ \t]?(?::|=|is|was|"
    rf"ending(?: in)?))?[\s#(]{{0,12}}$"
)
_STRONG_TEXT = (
    "ssn mrn dea npi vin csn fin iban hicn hic mbi passport acct acct. account upin udi imei serial s/n nhs id"
)
_STRONG = frozenset(_STRONG_TEXT.split())
"""Labels that need neither "number" nor a colon before the number."""
_VALUE = re.compile(r"(?<![^\W_])(?=[A-Za-z(-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9-]{2,31}(?:(?: \d{2,4}){1,3}(?![\d/.%-]))?")
_YEAR = re.compile(r"(?:19|20)\d\d")
_SHAPES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("ssn", re.compile(r"(?<![\w-])(?:\d{3}-\d{2}-\d{4}|[xX*]{3}-[xX*]{2}-\d{4})(?![\w-])")),
    ("licence", re.compile(r"(?<![^\W_])[ABFGMPR][A-Z]\d{7}(?![^\W_])")),
    ("device", re.compile(r"(?<![\w:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![\w:-])")),
    ("account", re.compile(r"(?<![\w-])(?:\d{4}[ -]){3}\d{4}(?![\w-])")),
    ("account", re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])")),
    ("device", re.compile(r"\(01\)\d{14}(?:\(\d\d\)[A-Za-z0-9]{2,20}){0,4}")),
)
_VIN = re.compile(r"(?<![^\W_])[A-HJ-NPR-Z0-9]{17}(?![^\W_])")
_VIN_VALUES = {
    letter: value
    for value, letters in enumerate(("", "AJ", "BKS", "CLT", "DMU", "ENV", "FW", "GPX", "HY", "RZ"))
    for letter in letters
}
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_PLATE = re.compile(
    r"(?<![a-z])(?:licen[cs]e |number |car |vehicle )?(?:plates?|tag)(?: (?:number|no\.?|#))?[ \t]?(?::|is|was|"
    r"#)?[ \t]{0,3}"
    r"(?P<value>(?=[a-z -]{0,5}\d)[a-z0-9]{1,4}(?:[ -]?[a-z0-9]{1,5}){0,2})(?![^\W_])"
)
_LAST_FOUR = re.compile(
    r"last (?:four|4)(?: digits)?(?: of)?(?: (?:his|her|the|patient's))?(?: ssn| social[a-z ]{0,16})?[ :]{0,3}(?:is |"
    r"are |: ?)?(\d{4})(?!\d)"
)
_PUBLIC = re.compile(r"genbank|\bgeo\b|database|protein data|uniprot|clinicaltrials|registry|isrctn|\bnct|pmid|pmc|doi")
"""Before a number that anyone may look up: of a gene, a trial, a paper."""


def find(text: str, low: str) -> Iterator[Span]:
    """Numbers of `text`; `low` is the text in small letters, character for character."""
    yield from _by_shape(text)
    yield from _by_label(text, low)
    for found in _PLATE.finditer(low):
        value = found["value"]
        if (len(value) >= _SHORTEST and any(map(str.isalpha, value))) or len(value) >= 5:
            yield Span(*found.span("value"), "vehicle")
    for found in _LAST_FOUR.finditer(low):
        yield Span(*found.span(1), "ssn")


def _by_shape(text: str) -> Iterator[Span]:
    for kind, pattern in _SHAPES:
        for found in pattern.finditer(text):
            yield Span(found.start(), found.end(), kind)
    for found in _VIN.finditer(text):
        if _is_vin(found[0]):
            yield Span(found.start(), found.end(), "vehicle")


def _by_label(text: str, low: str) -> Iterator[Span]:
    for found in _VALUE.finditer(text):
        start, end = found.span()
        digits = sum(map(str.isdecimal, found[0]))
        if digits < _SHORTEST - 1 or end - start < _SHORTEST:
            continue
        before = low[max(0, start - _BEFORE) : start]
        label = _LABEL.search(before)
        if label is None or _PUBLIC.search(before):
            continue
        kind = next(kind for kind, _ in _LABELS if label[kind])
        strong = bool(label["mark"].strip()) or label[kind].split()[-1] in _STRONG
        if not strong and not (label["colon"] and digits > _SHORTEST):
            continue
        value = found[0]
        if " " in value and kind not in {"mrn", "ssn", "health_plan", "account", "id"}:
            value = value.partition(" ")[0]
        if not _YEAR.fullmatch(value) or label["mark"].strip():
            yield Span(start, start + len(value), kind)


def _is_vin(value: str) -> bool:
    """Whether the ninth sign is the check digit (49 CFR 565.15)."""
    total = sum(
        weight * (int(sign) if sign.isdecimal() else _VIN_VALUES[sign])
        for weight, sign in zip(_VIN_WEIGHTS, value, strict=True)
    )
    return value[8] == ("X" if total % 11 == 10 else str(total % 11)) and not value.isdecimal() and not value.isalpha()
