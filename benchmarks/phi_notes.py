"""Invented clinical notes in the style of MIMIC's, with every identifier's place known.

Two halves: `tuning`, which the detector was made with, and `held_out`, whose templates and names (phi_held_out.py) were
written after the detector was done and never looked at to change it. No name, number or note is anybody's.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from meditune.phi.spans import Kind, Span

SLOT = re.compile(r"\{([a-z0-9_.]+)\}")


@dataclass(frozen=True)
class Note:
    """A note and its identifiers, in order."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Material:
    """What one half of the notes is made of."""

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
    """Fills templates for one note; who is who stays the same throughout it."""

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
        """The template with every slot filled."""
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
        """What stands in a slot, and its kind; None where it is no identifier."""
        who, _, form = slot.partition(".")
        if form:
            return self._name(who, form), "name"
        if slot in DISTRACTORS:
            return self.chance.choice(DISTRACTORS[slot]), None
        kind, make = MAKERS[slot]
        return make(self), kind

    def digits(self, shape: str) -> str:
        """`#` becomes a digit, `@` a capital letter; the first digit is never 0."""
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
        """A day in the year around the note's."""
        return self.day + timedelta(self.chance.randint(-200, 200))


def vin(writer: Writer) -> str:
    """A vehicle identification number with a right check digit."""
    signs = [writer.chance.choice(VIN_SIGNS) for _ in range(17)]
    total = sum(weight * VIN_VALUES[sign] for weight, sign in zip(VIN_WEIGHTS, signs, strict=True))
    signs[8] = "X" if total % 11 == 10 else str(total % 11)
    return "".join(signs)


def a_date(writer: Writer) -> str:
    """A date in one of the formats that notes have."""
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
    """ "3rd of March"."""
    day = writer.moved()
    ending = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return f"{day.day}{ending} of {MONTHS[day.month - 1]}"


def shaped(*shapes: str) -> Callable[[Writer], str]:
    """A number in one of these shapes."""
    return lambda writer: writer.digits(writer.chance.choice(shapes))


def chosen(name: str) -> Callable[[Writer], str]:
    """One of the material's hospitals, towns."""
    return lambda writer: writer.chance.choice(getattr(writer.material, name))


def address(writer: Writer) -> str:
    """Number and street, perhaps with a flat."""
    street = writer.chance.choice(writer.material.streets)
    flat = writer.chance.choice(("", "", ", Apt 4B", " Apt. 12", ", Unit 3", ", Suite 210"))
    return f"{writer.chance.randint(1, 9999)} {street}{flat}"


def email(writer: Writer) -> str:
    """Made of a name."""
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
TUNING = Material(
    headers=(
        "Admission Date:  {date}              Discharge Date:   {date}\n\nDate of Birth:  {date}             Sex:   {sex}\n\nService: {service}\n\nAttending: {d.full}, M.D.\n",
        "Name:  {p.comma}                     Unit No:   {mrn}\n\nAdmission Date:  {date}     Discharge Date:   {date}\n\nDate of Birth:  {date}     Sex:   {sex}\n\nService:  {service}\n",
        "Patient Name: {p.uppermiddle}\nMRN: {mrn}   DOB: {date}\nPCP: Dr. {d.last}\nAccount #: {account}\nDate of service: {date}\n",
        "{p.upper}   MRN {mrn}\n{hospital}\n{address}\n{town}, {state} {zip}\nTel: {phone}  Fax: {fax}\n\nRe: {p.full}\nSSN: {ssn}\n",
        "PATIENT: {p.full}\nMedical Record Number: {mrn}\nInsurance: Medicare, Member ID: {health_plan}\nReferring Physician: {d.full}, MD\n",
        "DISCHARGE SUMMARY\n\nPt name: {p.full}     Medical record #: {mrn}\nVisit number: {account}\nSurgeon: {d.middle}\nAssistant: {e.full}\n",
    ),
    paragraphs=(
        "History of Present Illness:\nMs. {p.last} is a {age} year-old woman with {disease} who presented to {hospital} on {date} with chest pain. Her {relation} {r.first} brought her in. {vitals}.\n",
        "HPI: {p.full} is a {old} year old man with h/o {disease}, transferred from {hospital} for further care. He lives in {town} with his {relation}, {r.full}. {score}.\n",
        "Brief Hospital Course:\nMr. {p.last} was admitted to the MICU. On {monthday} a {device} was placed. {drug} {dose} was started by Dr. {e.last}. On {date} he was seen by {d.full}, MD of neurology. {lab}.\n",
        "Past Medical History:\n1. {disease}\n2. {disease}, diagnosed in {year}\n3. s/p appendectomy {monthyear}\n4. Hypertension\n",
        "Social History: Retired teacher, moved from {town} in {year}. Lives alone. Emergency contact: {r.full} ({relation}), {phone}. Quit smoking in {year}.\n",
        "Family History: Father died of {disease} at {age}. Mother alive at {old} years old. Sister with breast cancer.\n",
        "Medications on Admission:\n1. {drug} {dose}\n2. {drug} {dose}\n3. Aspirin 81 mg PO daily\n4. {drug} {dose}\n",
        "Physical Exam:\n{vitals}\nGen: NAD, A&Ox3. CV: RRR, {score}. Neuro: CN II-XII intact, {score}, Babinski downgoing. Ext: no edema, Homans sign negative.\n",
        "Pertinent Results:\n{date} 07:10AM BLOOD {lab}\n{date} 05:20AM BLOOD {lab} {lab}\nCXR ({monthday}): no acute process. Echo {date}: EF 55%.\n",
        "Pacemaker: Medtronic, serial number {serial}, implanted {date}. ICD interrogated by {n.full}, RN.\n",
        "The case was discussed with Dr. {e.last} and Dr. {d.last}, who agreed. {p.last} tolerated the procedure well. A {device} remains.\n",
        "Social work: spoke with {r.first} {phone}, who can be reached by e-mail at {email}. Claim no. {other}. Policy number: {health_plan}.\n",
        "MVC: pt was the driver of a car, license plate {plate}, VIN {vin}; driver's license number {licence}. GCS 15 at the scene.\n",
        "Telehealth visit from IP address {ip}; portal {url}. Health plan beneficiary number {health_plan}.\n",
        "Please call Dr. {d.last} at {phone} or page {pager} with questions. Fax results to {fax}.\n",
        "Followup Instructions:\nProvider: {e.full}, MD Phone: {phone} Date/Time: {date} 10:30\nPlease follow up with Dr. {d.last} on {date} at {hospital}.\n",
        "Discharge Medications:\n1. {drug} {dose}\n2. {drug} {dose} for 1/2 of the week\n3. {drug} {dose}\n",
        "Pathology (accession # {other}, specimen received {date}): adenocarcinoma, Gleason 3+4. Reviewed by {e.full}.\n",
        "Pt seen and examined with resident. {disease} stable. Plan: continue {drug}, repeat {lab} in the AM. Barrett's esophagus surveillance in 3 years.\n",
        "NURSING: {p.first} was up to the chair, {relation} {r.first} at the bedside. {device} draining. Will continue to monitor.\n",
        "He was in his usual state of health until {month}, when he noted weakness. He saw his {specialty}, Dr. {e.last}, on the {ordinal}. MRI on {date} was read by {n.full}.\n",
        "Home address: {address}, {town}, {state} {zip}. Phone {phone}. International contact {abroad}.\n",
        "The patient's son {n.first} and daughter {r.first} were updated. Health care proxy: {r.full}, {phone}.\n",
        "Prescriber {d.full}, NPI {npi}, DEA {dea}. Certificate number {licence}.\n",
        "Patients with {disease} often do well. In studies of 200 patients between 2000 and 2005 survival was 80%.\n",
        "Hearing aid serial no. {serial}; insulin pump S/N {serial}. Last 4 of SSN on file. Bank account number {account}.\n",
    ),
    endings=(
        "Dictated By: {d.full}, M.D.\n\nD:  {date}  T:  {date}\nJob#:  {other}\n",
        "Electronically signed by {d.middle}, MD on {date}\n",
        "Completed by: {e.full} MD {date}\ncc: {d.full}, MD\n",
        "Signed electronically by: DR. {d.full}\non: MON {date} 5:33 PM\n",
        "{e.full}, RN\nReviewed by {d.initial}, PA-C\n",
        "Attending: {d.full}\nDictated: {date}\n",
    ),
    given=(
        "James Mary Wei Priya Ahmed Fatima Carlos Guadalupe Ngozi Kwame Yuki Hiroshi Olga Dmitri Siobhan Liam Thanh "
        "Linh Rosa "
        "Giuseppe Ingrid Björn Zofia Andrzej Leila Omar Aisha Noor Jorge Marisol Deepak Sunita Tariq Helen Robert "
        "Patricia Grace "
        "Mark Faith Hunter Dawn Rose Iwona Anselm Thandiwe Xochitl Nkechi Eoghan Saoirse Mehmet Ayşe Łukasz"
    ).split(),
    surnames=(
        "Smith Johnson Garcia Nguyen Chen Patel Khan Okafor Mensah Tanaka Yamamoto Petrov Ivanova O'Brien Murphy "
        "Tran Rossi "
        "Johansson Kowalski Nowak Hassan Ahmadi Hernandez Flores Sharma Gupta Wilson Parkinson Crohn Hodgkin Young "
        "Long White "
        "Brown King Bell Graves Addison Down Foley Zelazny Przybylski Adeyemi Mbatha Castellanos-Ruiz O'Shaughnessy "
        "MacAllister "
        "Fitzwilliam Yıldırım Vandenberg Featherstone Quispe Baptiste Haldorsen Iyengar Rice Price Rivers Stone"
    ).split(),
    hospitals=(
        *(
            "Beth Israel Deaconess Medical Center",
            "St. Brendan's Hospital",
            "Mercy Hospital",
            "Lakeview Medical Center",
        ),
        *(
            "Brigham and Women's Hospital",
            "Saint Agnes Medical Center",
            "Quincy Rehabilitation Center",
            "Elmwood Nursing Home",
        ),
        *("Mount Auburn Hospital", "Holy Cross Hospital", "Tufts Medical Center", "Norwood Clinic"),
    ),
    towns=(
        *("Springfield", "Dedham", "Boston", "Worcester", "Providence", "Chicopee"),
        *("Marblehead", "New Bedford", "Quincy"),
    ),
    streets=(
        "Main Street",
        "Elm St",
        "Commonwealth Avenue",
        "Oak Hill Road",
        "E. 5th Street",
        "Harbor View Dr",
        "Washington Blvd",
        "Maple Lane",
    ),
)


def notes(count: int, material: Material, seed: int = 17) -> list[Note]:
    """So many notes, the same for the same seed. Every kind of identifier comes among the first dozens."""
    chance = random.Random(seed)
    return [note(Writer(material, chance)) for _ in range(count)]


def note(writer: Writer) -> Note:
    """A header, some paragraphs, an ending."""
    material, chance = writer.material, writer.chance
    middle = chance.sample(material.paragraphs, chance.randint(6, min(12, len(material.paragraphs))))
    text, spans = "", []
    for template in (chance.choice(material.headers), *middle, chance.choice(material.endings)):
        piece = writer.fill(template)
        spans += [Span(span.start + len(text), span.end + len(text), span.kind) for span in piece.spans]
        text += piece.text + "\n"
    return Note(text, tuple(spans))
