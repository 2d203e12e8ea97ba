"""Synthetic clinical notes in the style of MIMIC's, with the position of every identifier known.

There are six sorts of notes: `tuning` and four more that the detector was developed with, and `held_out`, whose
templates and names were written after the detector was finished. No name, number or note is from a real person.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from meditune.config.data_options import Kind
from meditune.phi.spans import Span

HALVES = ("tuning", "second", "third", "fourth", "fifth", "held_out")
SLOT = re.compile(r"\{([a-z0-9_.]+)\}")


@dataclass(frozen=True)
class Note:
    """A note and its identifiers, in order of position."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Material:
    """Templates and names of one sort of notes."""

    headers: Sequence[str]
    paragraphs: Sequence[str]
    endings: Sequence[str]
    given: Sequence[str]
    surnames: Sequence[str]
    hospitals: Sequence[str]
    towns: Sequence[str]
    streets: Sequence[str]


MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
VIN_SIGNS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"
VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
VIN_VALUES = {
    sign: value
    for value, signs in enumerate(("0", "1AJ", "2BKS", "3CLT", "4DMU", "5ENV", "6FW", "7GPX", "8HY", "9RZ"))
    for sign in signs
}


class Writer:
    """Fills the templates of one note; each person keeps the same name throughout the note."""

    def __init__(self, material: Material, chance: random.Random) -> None:
        self.chance, self.material = chance, material
        self.people = {
            who: (chance.choice(material.given), chance.choice(material.surnames)) for who in ("p", "d", "e", "r", "n")
        }
        # A relative often has the patient's surname.
        if chance.random() < 0.5:
            self.people["r"] = (self.people["r"][0], self.people["p"][1])
        self.day = date(chance.randint(1990, 2022), chance.randint(1, 12), chance.randint(1, 28))

    def fill(self, template: str) -> Note:
        """Return the template with every slot filled."""
        parts: list[str] = []
        spans: list[Span] = []
        length = done = 0
        for slot in SLOT.finditer(template):
            plain = template[done : slot.start()]
            value, kind = self.value(slot[1])
            length += len(plain)
            if kind:
                spans.append(Span(length, length + len(value), kind))
            parts += [plain, value]
            length += len(value)
            done = slot.end()
        return Note("".join([*parts, template[done:]]), tuple(spans))

    def value(self, slot: str) -> tuple[str, Kind | None]:
        """Return a slot's value and its kind; the kind is None if the value is no identifier."""
        who, _, form = slot.partition(".")
        if form:
            return self._name(who, form), "name"
        if slot in DISTRACTORS:
            return self.chance.choice(DISTRACTORS[slot]), None
        kind, make = MAKERS[slot]
        return make(self), kind

    def digits(self, shape: str) -> str:
        """Return the shape with `#` replaced by digits and `@` by capital letters; the first digit is never 0."""
        made = "".join(
            self.chance.choice(string.digits)
            if sign == "#"
            else self.chance.choice(string.ascii_uppercase)
            if sign == "@"
            else sign
            for sign in shape
        )
        return re.sub(r"\d", lambda found: found[0] if found[0] != "0" else "4", made, count=1)

    def _name(self, who: str, form: str) -> str:
        first, last = self.people[who]
        initial = self.chance.choice("ABCDEFGHJKLMNPRSTW")
        return {
            "last": last,
            "first": first,
            "full": f"{first} {last}",
            "middle": f"{first} {initial}. {last}",
            "comma": f"{last}, {first}",
            "upper": f"{last}, {first}".upper(),
            "uppermiddle": f"{last}, {first} {initial}".upper(),
            "lastupper": last.upper(),
            "initial": f"{first[0]}. {last}",
            "lower": f"{first} {last}".lower(),
        }[form]

    def moved(self) -> date:
        """Return a day at most 200 days from the note's."""
        return self.day + timedelta(self.chance.randint(-200, 200))


def vin(writer: Writer) -> str:
    """Return a vehicle identification number with a valid check digit."""
    signs = [writer.chance.choice(VIN_SIGNS) for _ in range(17)]
    total = sum(weight * VIN_VALUES[sign] for weight, sign in zip(VIN_WEIGHTS, signs, strict=True))
    signs[8] = "X" if total % 11 == 10 else str(total % 11)
    return "".join(signs)


def a_date(writer: Writer) -> str:
    """Return a date in one of the formats of clinical notes."""
    day = writer.moved()
    month = MONTHS[day.month - 1]
    return writer.chance.choice(
        (
            f"{day.month}/{day.day}/{day.year}",
            f"{day.month:02}/{day.day:02}/{day.year}",
            f"{day.month}/{day.day}/{day.year % 100:02}",
            f"{day:%Y-%m-%d}",
            f"{day.month}-{day.day}-{day.year}",
            f"{month} {day.day}, {day.year}",
            f"{month[:3]} {day.day}, {day.year}",
            f"{day.day} {month} {day.year}",
            f"{day.day:02}-{month[:3].upper()}-{day.year}",
            f"{day.day:02}-{month[:3]}-{day.year}",
            f"{month} {day.day}",
            f"{month} {day.year}",
        )
    )


def ordinal(writer: Writer) -> str:
    """Return a date such as "3rd of March"."""
    day = writer.moved()
    ending = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return f"{day.day}{ending} of {MONTHS[day.month - 1]}"


def shaped(*shapes: str) -> Callable[[Writer], str]:
    """Return a function that makes a number in one of these shapes."""
    return lambda writer: writer.digits(writer.chance.choice(shapes))


def chosen(name: str) -> Callable[[Writer], str]:
    """Return a function that picks one of the material's hospitals or towns."""
    return lambda writer: writer.chance.choice(getattr(writer.material, name))


def address(writer: Writer) -> str:
    """Return a street address, sometimes with a flat."""
    street = writer.chance.choice(writer.material.streets)
    flat = writer.chance.choice(("", "", ", Apt 4B", " Apt. 12", ", Unit 3", ", Suite 210"))
    return f"{writer.chance.randint(1, 9999)} {street}{flat}"


def email(writer: Writer) -> str:
    """Return an email address made from a name."""
    first, last = writer.people[writer.chance.choice("pdr")]
    local = writer.chance.choice((f"{first[0]}{last}", f"{first}.{last}", f"{last}{writer.chance.randint(1, 99)}"))
    plain = re.sub(r"[^a-z0-9.]", "", local.lower())
    return f"{plain or 'someone'}@{writer.chance.choice(('example.com', 'mail.example.org', 'clinic.example.net'))}"


MAKERS: Mapping[str, tuple[Kind, Callable[[Writer], str]]] = {
    "date": ("date", a_date),
    "ordinal": ("date", ordinal),
    "monthday": ("date", lambda writer: f"{writer.moved().month}/{writer.moved().day}"),
    "month": ("date", lambda writer: writer.chance.choice(MONTHS)),
    "monthyear": ("date", lambda writer: f"{writer.chance.choice(MONTHS)} {writer.day.year}"),
    "old": ("age", lambda writer: str(writer.chance.randint(90, 104))),
    "phone": (
        "phone",
        shaped("617-555-####", "(508) 555-####", "781.555.####", "+1 212 555 ####", "617-555-#### x###"),
    ),
    "abroad": ("phone", shaped("+44 20 7946 0###", "+33 1 70 18 ## ##", "+91 98765 4####")),
    "pager": ("phone", shaped("#####", "3####")),
    "fax": ("fax", shaped("617-555-####", "(508) 555-####", "781.555.####")),
    "email": ("email", email),
    "url": (
        "url",
        lambda writer: (
            writer.chance.choice(("https://portal.example.com/patient/", "www.example.com/people/"))
            + writer.digits("#####")
        ),
    ),
    "ip": ("ip", lambda writer: ".".join(str(writer.chance.randint(1, 254)) for _ in range(4))),
    "ssn": ("ssn", shaped("9##-##-####", "###-##-####")),
    "mrn": ("mrn", shaped("#######", "###-##-##", "@#######", "########")),
    "health_plan": ("health_plan", shaped("@@@#########", "#@@#-@@#-@@##", "##########", "@########")),
    "account": ("account", shaped("##########", "########", "@@-#######")),
    "licence": ("licence", shaped("@#######", "######", "##-#####")),
    "dea": ("licence", shaped("A@#######", "B@#######")),
    "npi": ("licence", shaped("1#########")),
    "plate": ("vehicle", shaped("#@@@##", "@@@ ####", "###-@@@", "#@@ @##")),
    "vin": ("vehicle", vin),
    "serial": ("device", shaped("@@@######", "@@@-######", "########", "@##-####-@")),
    "address": ("address", address),
    "street": ("address", lambda writer: writer.chance.choice(writer.material.streets)),
    "town": ("city", chosen("towns")),
    "zip": ("zip", shaped("0####", "#####", "0####-####")),
    "hospital": ("hospital", chosen("hospitals")),
    "other": ("id", shaped("##-#####", "#######", "@##-######")),
}
DISTRACTORS: Mapping[str, Sequence[str]] = {
    "age": [str(age) for age in range(18, 90)],
    "year": [str(year) for year in range(1975, 2023)],
    "drug": [
        "Metoprolol",
        "Lisinopril",
        "Coumadin",
        "Plavix",
        "Lipitor",
        "Zosyn",
        "Keppra",
        "Lasix",
        "Synthroid",
        "Augmentin",
    ],
    "disease": [
        *("Parkinson's disease", "Crohn's disease", "Hodgkin lymphoma", "Alzheimer's dementia", "Down syndrome"),
        *("Graves' disease", "Barrett's esophagus", "Bell's palsy", "Addison's disease", "Wegener's granulomatosis"),
        *("Cushing syndrome", "Guillain-Barre syndrome", "Wilson's disease", "Hashimoto's thyroiditis", "pneumonia"),
    ],
    "device": [
        "Foley catheter",
        "Swan-Ganz catheter",
        "Hickman line",
        "Jackson-Pratt drain",
        "Dobhoff tube",
        "PICC line",
    ],
    "score": [
        "5/5 strength",
        "2/6 systolic murmur",
        "pain 3/10",
        "GCS 15",
        "Apgar 8 and 9",
        "Glasgow Coma Scale 14",
        "MMSE 28/30",
    ],
    "lab": [
        "WBC-8.4",
        "Hgb-11.2*",
        "Na 138, K 4.1",
        "pH 7.35",
        "INR 2.3",
        "creatinine 1.2",
        "lactate 2.1",
        "BNP 1450",
        "TSH 2.4",
    ],
    "vitals": ["BP 120/80 HR 72 RR 16 O2 98% RA", "T 98.6 BP 134/77 P 88", "VS: 97.9 110/60 64 18 97% 2L NC"],
    "dose": ["500 mg PO BID", "25 mg PO daily", "10 units SC QHS", "1 tab PO q6h prn", "40 mg IV x1"],
    "sex": ["M", "F"],
    "state": ["MA", "NH", "RI", "CT", "NY", "ME", "VT"],
    "relation": ["wife", "husband", "daughter", "son", "sister", "brother", "mother", "father", "niece"],
    "service": ["MEDICINE", "SURGERY", "NEUROLOGY", "CARDIOTHORACIC", "ORTHOPAEDICS", "OBSTETRICS/GYNECOLOGY"],
    "specialty": ["cardiologist", "oncologist", "surgeon", "neurologist", "psychiatrist", "PCP"],
}


def material(half: str) -> Material:
    """Return the content of one of the files phi_*.txt: blocks that begin with "%%" and their kind."""
    text = (Path(__file__).parent / f"phi_{half}.txt").read_text(encoding="utf-8")
    blocks = [block.partition("\n")[::2] for block in text.split("\n%% ")[1:]]
    of_kind = {kind: [body for name, body in blocks if name == kind] for kind, _ in blocks}
    lists = {kind: of_kind[kind][0].split("\n") for kind in ("hospitals", "towns", "streets")}
    return Material(
        headers=[f"{body}\n" for body in of_kind["header"]],
        paragraphs=[f"{body}\n" for body in of_kind["paragraph"]],
        endings=[f"{body}\n" for body in of_kind["ending"]],
        given=of_kind["given"][0].split(),
        surnames=of_kind["surnames"][0].split(),
        hospitals=[each for each in lists["hospitals"] if each],
        towns=[each for each in lists["towns"] if each],
        streets=[each for each in lists["streets"] if each],
    )


def notes(count: int, half: str, seed: int = 17) -> list[Note]:
    """Return `count` notes, the same for the same seed. The first dozens have every kind of identifier."""
    chance = random.Random(seed)
    made_of = material(half)
    return [note(Writer(made_of, chance)) for _ in range(count)]


def note(writer: Writer) -> Note:
    """Return a note with a header, some paragraphs and an ending."""
    parts, chance = writer.material, writer.chance
    middle = chance.sample(parts.paragraphs, chance.randint(6, min(12, len(parts.paragraphs))))
    text: str = ""
    spans: list[Span] = []
    for template in (chance.choice(parts.headers), *middle, chance.choice(parts.endings)):
        piece = writer.fill(template)
        spans += [Span(span.start + len(text), span.end + len(text), span.kind) for span in piece.spans]
        text += piece.text + "\n"
    return Note(text, tuple(spans))
