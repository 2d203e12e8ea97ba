"""Numbers that identify a person: social security numbers, and numbers of records, insurance, accounts and devices.

A number is recognized by the words before it. Without such words, only numbers with a distinctive format are found,
such as social security, vehicle identification, DEA and card numbers, and hardware addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.config.data_options import Kind
from meditune.phi.name_words import is_ordinary
from meditune.phi.spans import Span, View, word_list

_BEFORE = 44  # Number of characters before a number that are searched for its label
_MIN_LENGTH = 4
_LONG = 6
# Kinds whose numbers often follow the label directly
_OFTEN_BARE = frozenset({"health_plan", "mrn", "account", "licence", "device", "vehicle"})
_NATIONAL = (
    r"nhs|nric|fin|nic|cnic|nicop|mykad|ic|hkid|aadhaa?r|aadhar|abha|pan|voter id|nino|ni|ppsn?|pps|nin|bvn|tin|sa id|"
    r"iqama|emirates id|civil id|qid|jmbg|embg|oib|emso|curp|rfc|ine|cpf|rg|cns|rut|run|dni|nie|nif|nuss|cc|cedula|"
    r"c[eé]dula|bsn|insz|pesel|cnp|egn|egk|amka|afm|taj|ahv|avs|svnr|sv|codice fiscale|cf|personnummer|pnr|fnr|"
    r"f[oø]dselsnummer|cpr|kennitala|hetu|isikukood|asmens kodas|personas kods|kimlik|tckn|t\.?c\.?(?: kimlik)?|"
    r"my ?number|rrn|teudat zehut|t\.?z\.?"
)
"""Names of national identity numbers in many countries"""
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
        r"mrn|emr|ehr|mr|med(?:ical)?\.? ?rec(?:ord)?s?|hosp(?:ital|\.)?|unit|chart|file|folder|dossier|card|nh[ci]|"
        r"chi|(?:patient|pt|hospital|medical record)(?: id)?|record|uhid|hn|opd|ipd|crn|urn?|x-?ray|"
        r"lab(?:oratory)?|census|"
        r"(?:hospital|clinic|patient|outpatient) reg(?:istration)?\.?",
    ),
    (
        "health_plan",
        r"(?:health )?(?:member|subscriber|beneficiary|insurance|plan|policy|group|payer|medicare|medicaid|hicn?|mbi|"
        r"medi-cal|tricare|aetna|cigna|humana|bcbs|blue cross(?: blue shield)?|kaiser|unitedhealth(?:care)?|claim|"
        r"ohip|phn|ramq|ihi|dva|ehic|kvnr|philhealth|nhif|cin|(?:pre-?)?auth(?:ori[sz]ation)?)"
        r"(?: (?:member|policy|subscriber|beneficiary|group|claim|id|cin|ref\.?))?",
    ),
    (
        "licence",
        r"(?:driver['’]?s?['’]? |medical |nursing |state |md |rn |physician |professional )?(?:licen[cs]e|lic\.?)|dea|"
        r"npi|(?<!/)dl|upin|(?:birth |death |board |marriage )?certificate|cert\.?|passport|reg(?:istration|d)?\.?|"
        r"provider|permit|prescriber|registry|gmc|nmc|hcpc|gphc|mcrn|ahpra|hpcsa|mdcn|prc|ptr|pin",
    ),
    (
        "account",
        r"acc(?:oun)?t\.?|billing|bank account|(?:credit|debit) card|iban|routing|visit|encounter|csn|fin|invoice|har|"
        r"guarantor",
    ),
    (
        "id",
        r"acc(?:ession)?|specimen|case|folio|incident|report|run|donation|bag|docket|ticket|"
        r"ref(?:erence)?\.?|tech(?:nician)?|microchip|chip|voucher|"
        r"police|crime|court|interpreter|locum|staff|volunteer|prison|prisoner|soldier|force|army|roll|matric|admission|"
        r"ward|clinic|call|donor|kit|"
        + _NATIONAL
        + r"|job|dictation|transcription|clip|order|requisition|employee|badge|student|service|inmate|"
        r"confirmation|tracking|barcode|national(?: id| insurance)?|"
        r"user ?name|login|user|id",
    ),
)
_MARK = r"(?:numbers?|num\.?|no\.?|nos\.?|nr\.?|n\.?[º°o]\.?|№|identifier|id|code|ref\.?|#)"
_IN_GROUPS = frozenset({"mrn", "ssn", "health_plan", "account", "id"})  # Kinds whose numbers may contain spaces
_LABEL = re.compile(
    r"(?<![a-z])(?=[a-z])(?:"
    + "|".join(f"(?P<{kind}>{words})" for kind, words in _LABELS)
    + rf")[ \t]?[(]?(?P<mark>(?:[ \t]?{_MARK}){{0,2}})[)]?(?P<colon>[ \t]?(?::|=|is|was|"
    rf"ending(?: in)?))?[\s#(]{{0,12}}$"
)
_STRONG = word_list("strong_labels")  # Labels that need neither "number" nor a colon before the number
_VALUE = re.compile(
    r"\d{8} \d ?[A-Z]{2}\d(?!\w)"
    r"|(?:[A-Z]{1,6} (?=\d))?(?:"
    r"\d{1,5}[A-Z]?(?:(?:[ -]| ?/ ?)\d{1,6}[A-Z]{0,2}(?![\w/%-]|[.,]\d)){1,7}"
    r"|[A-Za-z0-9]{1,120}(?:[-/.,_][A-Za-z0-9]{1,120}){0,5}(?:(?: \d{2,4}){1,3}(?![\d/.%-]))?)"
)
_SERIES = re.compile(r"(?<![^\W_])(?:[A-Za-z0-9]{1,8}[-/._]){1,4}$|(?<![^\W_])[A-Z]{1,6} $")
"""The first part of a number such as "OP/2022/11893" or "TNMC 68842\""""
_LIKE_DATE = re.compile(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}|\d{4}[/.-]\d{1,2}[/.-]\d{1,2}|\d+\.\d+")
_FRACTION = re.compile(r"(?:[A-Z]+ )?\d+/\d+")  # "in the control group 108/216"
_PUBLIC_NUMBER = re.compile(
    r"1?-?8(?:00|88|77|66|55|44|33|22)-\d{3}"
    r"|(?:NCT|ISRCTN|EudraCT|ChiCTR|ACTRN|UMIN|DRKS|CTRI|PACTR|IRCT|jRCT|KCT|TCTR|CRD|PMC)[-/\w]*\d",
    re.IGNORECASE,
)
"""A toll-free telephone number, or a number in a registry of trials or reviews"""
_YEAR = re.compile(r"(?:19|20)\d\d")
_FROM_DIGITS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("ssn", re.compile(r"\d{3}-\d{2}-\d{4}(?![\w-])")),
    ("account", re.compile(r"(?:\d{4}[ -]){3}\d{4}(?![\w-])")),
)
_FROM_LETTERS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("licence", re.compile(r"[ABFGMPR][A-Z]\d{7}(?![^\W_])")),
    ("id", re.compile(r"[STFGM]\d{7}[A-Z](?![^\W_])")),
    ("account", re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])")),
)
_SIN = re.compile(r"\d{3}[ -]\d{3}[ -]\d{3}(?![\w-]|[ ]\d)")
_SIN_LABEL = re.compile(r"(?<![a-z])(?:sin|social insurance)(?: (?:number|no\.?|is|#))?[ :#]{1,3}$")
_AADHAAR = re.compile(r"[2-9]\d{3}[ -]\d{4}[ -]\d{4}(?![\w-]|[ ]\d)")
_VERHOEFF = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)  # A digit's permutation, applied once more for each place
_NRIC_WEIGHTS = (2, 7, 6, 5, 4, 3, 2)
_HIDDEN_SSN = re.compile(r"[x*](?<![\w-].)[x*]{2}-[x*]{2}-\d{4}(?![\w-])")
_MAC = re.compile(r"[0-9A-Fa-f](?<![\w:-].)[0-9A-Fa-f](?:[:-][0-9A-Fa-f]{2}){5}(?![\w:-])")
_PERHAPS_MAC = re.compile(r"[:-][0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-]")
_SPECIMEN = re.compile(r"[A-Z](?<![\w-].)[A-Z]{0,2}\d{2}-\d{4,6}(?![\w-])")  # Specimen numbers of pathology: S12-34567
_UDI = re.compile(r"\(01\)\d{14}(?:\(\d\d\)[A-Za-z0-9]{2,20}){0,4}")
_VIN = re.compile(r"[A-HJ-NPR-Z0-9](?<![^\W_].)[A-HJ-NPR-Z0-9]{16}(?![^\W_])")
_VIN_LETTERS = ("", "AJ", "BKS", "CLT", "DMU", "ENV", "FW", "GPX", "HY", "RZ")
_VIN_VALUES = {letter: value for value, letters in enumerate(_VIN_LETTERS) for letter in letters}
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_PLATE = re.compile(
    r"(?<![a-z])(?:(?:number |licen[cs]e |car )?plates?(?![a-z])|rego|(?:licen[cs]e|car|vehicle|number) (?:tag|reg)|"
    r"reg(?= [a-z]{2}\d\d )|tail(?= n)|(?:vehicle|car|van|truck|lorry|taxi|bus|motorbike|motorcycle|scooter|cab)"
    r"(?: was| is|,)? (?:registered|reg\.?|registration|with plates?)(?: as| under)?|registered (?:as|under)|"
    r"registration)(?: (?:number|no\.?|#))?[ \t]?(?::|is|was|#)?[ \t]{0,3}"
    r"(?P<value>(?=[a-z -]{0,5}\d)[a-z0-9]{1,4}(?:[ -]?[a-z0-9]{1,5}){0,2})(?![^\W_])"
)
_IMPLANT = re.compile(r"holes?(?![a-z])|screw")  # Words after the "plate" of a surgeon
_LAST_FOUR = re.compile(
    r"last (?:four|4)(?: digits)?(?: of)?(?: (?:his|her|the|patient's))?(?: ssn| social[a-z ]{0,16})?[ :]{0,3}"
    r"(?:is |are |: ?)?(\d{4})(?!\d)"
)
_PUBLIC = re.compile(r"genbank|\bgeo\b|database|protein data|uniprot|clinicaltrials|registry|isrctn|\bnct|pmid|pmc|doi")
"""Words before a public number, such as that of a gene, a trial or a paper"""


def find(view: View) -> Iterator[Span]:
    """Yield the spans of numbers that identify a person."""
    yield from _by_shape(view)
    yield from _by_label(view)
    if view.has("plate", " tag", "reg", "tail n"):
        for found in _PLATE.finditer(view.low):
            words = found["value"].split()
            while words and words[-1].isalpha() and is_ordinary(words[-1]):
                words.pop()
            value = found["value"][: found["value"].rfind(words[-1]) + len(words[-1])] if words else ""
            end = found.start("value") + len(value)
            if (
                _PUBLIC_NUMBER.match(value)
                or _IMPLANT.search(view.low, found.start("value"), found.end() + 12)
                or any(map(is_ordinary, re.findall("[a-z]{2,}", view.text[found.start("value") : end])))
            ):
                continue
            if len(value) >= 5 or (len(value) >= _MIN_LENGTH and any(map(str.isalpha, value))):
                yield Span(found.start("value"), end, "vehicle")
    if view.has("last four", "last 4"):
        yield from view.spans(_LAST_FOUR, "ssn", 1, low=True)


def _by_shape(view: View) -> Iterator[Span]:
    text = view.text
    for start, end in view.digits:
        length = end - start
        if length in {3, 4} and text[end : end + 1] in {"-", " "} and not _continues(text, start):
            for kind, pattern in _FROM_DIGITS:
                if found := pattern.match(text, start):
                    yield Span(start, found.end(), kind)
            if length == 3 and (found := _SIN.match(text, start)) and _is_sin(found[0]):
                if _SIN_LABEL.search(view.before(start, 32)):
                    yield Span(start, found.end(), "ssn")
            elif length == 4 and (found := _AADHAAR.match(text, start)) and _is_aadhaar(found[0]):
                yield Span(start, found.end(), "id")
        if length in {2, 6, 7} or length > 13:
            begin = view.word_start(start, 3)
            if start - begin in {1, 2} and not _continues(text, begin):
                for kind, pattern in _FROM_LETTERS:
                    found = pattern.match(text, begin)
                    if found and (kind != "id" or _is_nric(found[0])):
                        yield Span(begin, found.end(), kind)
    if view.has("xx-xx-", "**-**-"):
        yield from view.spans(_HIDDEN_SSN, "ssn", low=True)
    if _PERHAPS_MAC.search(text):
        yield from view.spans(_MAC, "device")
    yield from view.spans(_SPECIMEN, "id")
    yield from view.spans(_UDI, "device")
    yield from (span for span in view.spans(_VIN, "vehicle") if _is_vin(text[span.start : span.end]))


def _is_nric(value: str) -> bool:
    """Return True if the last letter is the check letter of a Singapore NRIC or FIN number."""
    total = sum(int(digit) * weight for digit, weight in zip(value[1:8], _NRIC_WEIGHTS, strict=True))
    offset = {"T": 4, "G": 4, "M": 3}.get(value[0], 0)
    letters = "JZIHGFEDCBA" if value[0] in "ST" else "XWUTRQPNMLK" if value[0] in "FG" else "XWUTRQPNJLK"
    return letters[(total + offset) % 11] == value[8]


def _is_sin(value: str) -> bool:
    """Return True if the last of nine digits is the check digit of a Canadian social insurance number (Luhn)."""
    digits = [int(sign) for sign in value if sign.isdecimal()]
    return sum(digits[::2]) % 10 == -sum(digit * 2 - 9 * (digit > 4) for digit in digits[1::2]) % 10


def _is_aadhaar(value: str) -> bool:
    """Return True if the last of twelve digits is the check digit of an Indian Aadhaar number (Verhoeff)."""
    check = 0
    for place, sign in enumerate(reversed(re.sub(r"\D", "", value))):
        digit = int(sign)
        for _ in range(place % 8):
            digit = _VERHOEFF[digit]
        # The product in the dihedral group of order 10
        turned = check + digit if check < 5 else check - digit
        check = turned % 5 + 5 * ((check < 5) == (digit >= 5))
    return check == 0


def _by_label(view: View) -> Iterator[Span]:
    done = 0
    for place, _ in view.digits:
        if place < done:
            continue
        found, label = _labelled(view, place, done)
        if found is None or label is None:
            continue
        value = found[0]
        digits = sum(map(str.isdecimal, value))
        before = view.before(found.start(), _BEFORE)
        if _PUBLIC.search(before) or _PUBLIC_NUMBER.match(value) or _LIKE_DATE.fullmatch(value):
            continue
        kind = next(kind for kind, _ in _LABELS if label[kind])
        marked = bool(label["mark"].strip())
        if not marked and re.fullmatch(r"(?:[A-Z]{2,6} )?\d{1,3}/\d{1,3}", value):
            continue  # "Plan: VLCD 12/52", "PA 170/100"
        strong = marked or label[kind].split()[-1] in _STRONG
        mixed = digits >= _MIN_LENGTH and len(value) >= 8 and any(map(str.isalpha, value))
        long = (digits >= _LONG or mixed) and kind in _OFTEN_BARE and not _FRACTION.fullmatch(value)
        if not (strong or long or (label["colon"] and (digits > _MIN_LENGTH or mixed))):
            continue
        done = found.end()
        if " " in value and kind not in _IN_GROUPS:
            first, second = value.split(" ")[:2]
            value = f"{first} {second}" if first.isalpha() else first
        if marked or not _YEAR.fullmatch(value):
            yield Span(found.start(), found.start() + len(value), kind)


def _labelled(view: View, place: int, done: int) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    """Return the number around the digits at `place` and the label before it, or None."""
    start = max(view.word_start(place), done)
    series = _SERIES.search(view.text, max(done, start - 24), start)
    for begin in [start, series.start()] if series else [start]:
        found = _VALUE.match(view.text, begin)
        if found is None or found.end() <= place or len(found[0]) < _MIN_LENGTH:
            continue
        if sum(map(str.isdecimal, found[0])) < _MIN_LENGTH - 1:
            continue
        if label := _LABEL.search(view.before(begin, _BEFORE)):
            return found, label
    return None, None


def _continues(text: str, place: int) -> bool:
    """Return True if a letter, digit, hyphen or underscore is directly before `place`."""
    return bool(place) and (text[place - 1].isalnum() or text[place - 1] in "-_")


def _is_vin(value: str) -> bool:
    """Return True if the ninth character is the correct check digit of a VIN (49 CFR 565.15)."""
    total = sum(
        weight * (int(sign) if sign.isdecimal() else _VIN_VALUES[sign])
        for weight, sign in zip(_VIN_WEIGHTS, value, strict=True)
    )
    return value[8] == ("X" if total % 11 == 10 else str(total % 11)) and not value.isdecimal() and not value.isalpha()
