"""A closer look at a note on one person: what the careful finders leave for want of a word that vouches for it.

It is taken only where a number or a name was found already, so no paper or leaflet becomes one that holds identifiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import strangers, words
from meditune.phi.spans import Span
from meditune.phi.view import View

_NUMBERED = re.compile(r"(?:#|\bn(?:o|r|um)\.?|\bnumber|\bref(?:erence)?|\bids?|№)[ \t.:#]{0,4}$", re.IGNORECASE)
_GROUPS = re.compile(r"[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+){0,4}(?: \d{3,4}){0,3}")
_COUNTED = re.compile(
    r" ?(?:%|/|mg|mcg|g\b|ml|l\b|units?|iu|u\b|k\b|cells|copies|mm|cm|kg|cfu|steps|meq|dollars|patients|people|"
    r"colon|bpm|ng|pg|iu)"
)
_YEARS = re.compile(r"(?:19|20)\d\d(?:[-/](?:19|20)?\d\d)?")
_FREE = re.compile(r"(?:1-)?8(?:00|88|77|66|55|44|33|22)[- ]")
_PUBLIC = re.compile(
    r"pmid|pmcid|doi|nct|isrctn|cpt|icd|grant|snomed|loinc|ndc|genbank|rs$|\$$|platelets?|count|copies|load"
)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_ABBREVIATED = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
_ANY_MONTH = rf"(?:{_MONTHS}|{_ABBREVIATED})"
_NTH = r"\d{1,2}(?:st|nd|rd|th)?"
_DATES = re.compile(
    rf"(?<![\w/.-])(?:{_NTH}[ ./-]{{0,2}}(?:of )?{_ANY_MONTH}\b\.?"
    r"(?:[ ,./-]{0,2}(?:(?:19|20)\d\d|['’]?\d\d(?![\d:])))?"
    rf"|{_ANY_MONTH}\.?[ ./-]{{1,2}}(?:the )?{_NTH}(?!\d|:\d)(?:[ ,./-]{{1,2}}(?:19|20)?\d\d(?![\d:]))?"
    rf"|(?:(?:19|20)\d\d[ ,./-]{{1,2}})?(?:{_MONTHS})(?![a-z]|['’ ][A-Z][a-z])(?:,? ['’]?\d\d(?!\d|:))?"
    r"|(?:Jan|Feb|Apr|Aug|Sept?|Oct|Nov|Dec)\.?(?=[,;)\n]|\.?$|\. )"
    r"|(?:19|20)\d\d[/-](?:0[1-9]|1[0-2])"
    r"|(?:0?[1-9]|[12]\d|3[01])\.(?:0?[1-9]|1[0-2])\.(?:(?:19|20)\d\d|\d\d)\.?"
    r"|(?:0?[1-9]|1[0-2])[-.](?:19|20)\d\d"
    r"|(?i:(?:spring|summer|autumn|fall|winter) (?:of )?(?:19|20)\d\d))(?![\w/-])"
)
_DAY_OF = re.compile(
    r"(?i:\b(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?)\.?,? (?:the )?"
    r"(\d{1,2}(?:st|nd|rd|th|/\d{1,2}(?:/\d{2,4})?)|\d{1,2}(?=\s))(?![\w%])"
)
_ORDINAL = re.compile(
    r"(?i:\b(?:on|by|since|until|til|till|from|for|before|after|the|to) (?:the )?)(\d{1,2}(?:st|nd|rd|th))"
    r"(?=[,.;)\n]|$| (?:at|and|for|to|with|by|instead)\b)"
)
_SLASHED = re.compile(
    r"(?<![\w/.-])(?:0?[1-9]|[12]\d|3[01])/(?:0?[1-9]|[12]\d|3[01])(?![\w/%-]|\.\d)"
    r"(?=[ \t]*(?:[,;.)\n:]|$| (?:at|and|with|by|to|in|for|pm|am|@)))"
)
_SCORED = re.compile(
    r"(?<![a-z])(?:[a-z-]*(?:score|scale|power|strength|pain|murmur|gcs|apgars?|mmse|moca|grade|reflex\w*|"
    r"pulses?|of|is|was|balance|tinetti)|bp|\d)[ :=]{0,2}$"
)
_DENOMINATORS = frozenset({4, 5, 6, 10, 15, 28, 30})
"""What scores are out of."""
_PLACED = re.compile(
    r"(?<![A-Za-z])(?:[Ii]n|[Ff]rom|[Nn]ear|[Aa]t|[Oo]utside|[Tt]o|[Oo]f|[Aa]round|[Tt]own|[Cc]ity) "
    r"((?:[A-Z][a-z'’-]{2,20} ){0,2}[A-Z][a-z'’-]{2,20})(?![\w-])"
)
_AFTER_STREET = re.compile(r",[ \n]{1,2}((?:[A-Z][a-z'’.-]{1,20} ){0,2}[A-Z][a-z'’-]{2,20})(?=[,.;)\n]| [A-Z]{2}\b)")
_ENDINGS = (
    r"(?:Hospitals?|Infirmary|Clinics?|Hospice|Health(?:care)?|Rehab(?:ilitation)?|Surgery|Practice|Polyclinic|"
    r"Nursing (?:Home|Facility)|Care Home|Medical (?:Cent(?:er|re)|Group|Practice|Associates|Pavilion|Campus)|"
    r"(?:Health|Cancer|Surgical|Trauma|Imaging|Dialysis|Birth|Wellness|Heart|Day|Treatment|Memorial|Regional|"
    r"Children['’]s) Cent(?:er|re)|Memorial|General|Regional|NHS(?: Foundation)? Trust|Lodge|Manor|Pharmacy|"
    r"Laborator(?:y|ies)|Living|Senior Living|Villas?|Sanatorium|Pavilion|Institute|Urgent Care|Radiology|Imaging)"
)
_HOUSE = re.compile(
    rf"(?<![A-Za-z])((?:(?:[A-Z][A-Za-z'’.-]{{1,20}}|of|the|and|&) ){{0,4}}?[A-Z][A-Za-z'’.-]{{1,20}}) "
    rf"{_ENDINGS}(?![a-z]|[ -](?:[Nn]urse|exam))(?: of [A-Z][a-z]+)?"
)
_WHERE = frozenset({"in", "from", "near", "outside"})
_SAINTS = frozenset({"st", "saint", "mt", "mount", "our"})
_NAMED_AFTER = words.CITIES | words.WORD_NAMES
_UNIT_OF = re.compile(r"\b([A-Z][a-z]{3,20}(?: [A-Z][a-z]{3,20})?|[A-Z]{3,5})(?:['’]s)? (?:ED|ER|ICU|OSH|A&E|ward)\b")


def find(view: View, careful: list[Span]) -> Iterator[Span]:
    """What else there is beside what the `careful` finders found."""
    yield from strangers.find(view)
    yield from _numbers(view)
    yield from _dates(view)
    yield from _towns(view, careful)
    houses = [span for span in careful if span.kind == "hospital"]
    for house in _HOUSE.finditer(view.text):
        start = _telling(house)
        if start is not None:
            houses.append(Span(start, house.end(), "hospital"))
    yield from houses
    yield from _shortened(view, houses)


def _numbers(view: View) -> Iterator[Span]:
    """Long numbers, and shorter ones after "#" or "no.", that nothing says is a count, a dose or a public number."""
    done = 0
    for place, _ in view.digits:
        start = view.word_start(place)
        if place < done or (found := _GROUPS.match(view.text, start)) is None:
            continue
        done = max(found.end(), place + 1)
        value, before = found[0], view.before(start, 24)
        digits = sum(map(str.isdecimal, value))
        before_sign = view.text[start - 1 : start]
        if _COUNTED.match(view.low, found.end()) or _PUBLIC.search(before) or _PUBLIC.search(value.lower()):
            continue
        if _YEARS.fullmatch(value) or _FREE.match(value):
            continue
        if before_sign in {".", ",", "$", "/", "+"} or value[-3:] == "000":
            continue
        numbered = digits >= 4 and bool(_NUMBERED.search(before))
        bare = digits >= 6 and not re.search(r"\.\d", value)
        if numbered or bare or (digits >= 5 and digits < len(value) and value[0].isupper()):
            yield Span(start, found.end(), "id")


def _dates(view: View) -> Iterator[Span]:
    for found in _DATES.finditer(view.text):
        if found[0] not in {"May", "March"} or view.before(found.start(), 4).endswith((" in ", "nce ", " of ")):
            yield Span(found.start(), found.end(), "date")
    for pattern in (_DAY_OF, _ORDINAL):
        for found in pattern.finditer(view.text):
            yield Span(*found.span(1), "date")
    for found in _SLASHED.finditer(view.text):
        first, last = map(int, found[0].split("/"))
        scored = _SCORED.search(view.before(found.start(), 16)) or (last in _DENOMINATORS and first <= last)
        if not scored and min(first, last) <= 12:
            yield Span(found.start(), found.end(), "date")


def _towns(view: View, careful: list[Span]) -> Iterator[Span]:
    for found in _PLACED.finditer(view.text):
        town = found[1]
        low = town.lower()
        each = town.split()
        strange = strangers.is_strange(each[-1]) and all(map(strangers.is_part_of_place, each[:-1]))
        preposition = found[0].split()[0].lower()
        named = preposition == "from" and len(each) == 1 and strangers.is_perhaps_place(town)
        if low in words.CITIES or named or (strange and preposition in _WHERE):
            yield Span(*found.span(1), "city")
    for street in careful:
        town = _AFTER_STREET.match(view.text, street.end) if street.kind == "address" else None
        if town and town[1].lower() not in words.PLACES:
            yield Span(*town.span(1), "city")


def _telling(house: re.Match[str]) -> int | None:
    """Where the name of a hospital begins; None where any might be called so."""
    for word in re.finditer(r"\S+", house[1]):
        low = word[0].lower().strip(".,")
        if low in _SAINTS:
            return house.start(1) + word.start()
        ordinary = low in words.GENERIC or words.is_other(low) or words.is_ordinary(low)
        if (not ordinary and strangers.is_strange(word[0])) or low in _NAMED_AFTER or words.is_name(low):
            return house.start(1) + word.start()
    return None


def _shortened(view: View, houses: list[Span]) -> Iterator[Span]:
    """Where a hospital found is written by its initials or by the first word of its name alone, or by its ward."""
    initials = set()
    for house in houses:
        large = [word[0] for word in view.text[house.start : house.end].split() if word[0].isupper()]
        if len(large) > 2:
            initials.add("".join(large))
    if initials:
        for found in re.finditer(r"(?<![A-Za-z])(?:" + "|".join(sorted(initials)) + r")(?![A-Za-z])", view.text):
            yield Span(found.start(), found.end(), "hospital")
    for found in _UNIT_OF.finditer(view.text):
        if all(strangers.is_strange(word) or word.lower() in words.CITIES for word in found[1].split()):
            yield Span(*found.span(1), "hospital")
