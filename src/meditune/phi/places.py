"""Street addresses, towns, ZIP and postal codes, and the names of hospitals.

Safe Harbor lets states and countries stand, so they are left alone. Hospitals aren't among its identifiers; they are
found because a small one tells a town.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import words
from meditune.phi.spans import Span

_STREETS = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Way|Terrace|Terr?|Circle|Cir|"
    r"Parkway|Pkwy|Highway|Hwy|Square|Sq|Trail|Trl|Loop|Alley|Plaza|Crescent|Close|Turnpike|Pike|Row|Path|Run|Gardens|"
    r"Heights|Broadway)"
)
_WORD = r"[A-Z0-9][A-Za-z0-9.'’-]{0,24}"
_UNIT = r"(?:,?[ \n](?:Apt|Apartment|Unit|Suite|Ste|Floor|Fl|Room|Rm|Bldg|#)\.? ?#?[A-Za-z0-9-]{1,6})?"
_ADDRESS = re.compile(
    rf"(?<![\w.,/$-])\d{{1,5}}[A-Za-z]?(?:-\d{{1,4}})?[ ]{{1,2}}(?:[NSEW]\.? |North |South |East |West )?"
    rf"(?:{_WORD}[ ]){{1,4}}?{_STREETS}(?![A-Za-z'’])\.?(?: (?:N|S|E|W|NE|NW|SE|SW)(?![\w.]))?{_UNIT}"
    rf"|(?<![\w.,/$-])\d{{1,5}} (?:{_STREETS}) of the (?:{_WORD})"
)
_UPPER = re.compile(
    rf"(?<![\w.,/$-])\d{{1,5}} (?:[A-Z0-9.'-]{{2,20}} ){{1,3}}?{_STREETS.upper()}(?![A-Za-z])\.?(?i:{_UNIT})"
)
_LOWER = re.compile(
    r"(?<![\w.,/$-])\d{1,5} (?:[a-z]{3,20} ){1,2}(?:street|avenue|ave|road|rd|boulevard|blvd|lane)(?![a-z])"
)
_BOX = re.compile(
    r"(?<![^\W_])P\.? ?O\.? ?Box \d{1,6}|(?<![^\W_])(?:R\.?R\.?|Rural Route) ?#? ?\d{1,3},? Box \d{1,5}", re.IGNORECASE
)
_STATES = (
    "Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho|Illinois|"
    "Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|"
    "Montana|"
    "Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio|Oklahoma|Oregon|"
    "Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah|Vermont|Virginia|Washington|West "
    "Virginia|"
    "Wisconsin|Wyoming|District of Columbia"
)
_CODES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|"
    "PA|RI|"
    "SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC|PR"
)
_TOWN = r"(?:(?:St|Ft|Mt)\. )?[A-Z][A-Za-z'’-]{1,20}(?: [A-Z][A-Za-z'’-]{1,20}){0,2}"
_TOWN_STATE = re.compile(
    rf"(?<![^\W_])({_TOWN}),? {{1,2}}(?:{_STATES}|{_CODES})(?![\w'’-])(?:,? {{1,2}}(\d{{5}}(?:-\d{{4}})?)(?![\w-]))?"
)
_ZIP = re.compile(
    rf"(?<![^\W_])(?:{_STATES}|{_CODES}),? {{1,2}}(\d{{5}}(?:-\d{{4}})?)(?![\w-])"
    r"|(?<![^\W_])(?:[Zz][Ii][Pp](?: ?[Cc][Oo][Dd][Ee])?|"
    r"[Pp]ost(?:al)? ?[Cc]ode)[ \t]?[:#]?(?: is)?[ \t]{0,4}(\d{5}(?:-\d{4})?)(?![\w-])"
    r"|(?<![^\W_])((?:[A-Z]{1,2}\d{1,2}[A-Z]? \d[ABD-HJLNP-UW-Z]{2}|[ABCEGHJ-NPRSTVXY]\d[A-Z] \d[A-Z]\d))(?![^\W_])"
)
_IN = re.compile(r"(?<![A-Za-z])(?:in|from|of|near|to|at|outside|around|city|town)[ \t:]{1,3}$", re.IGNORECASE)
_LIVES = re.compile(
    r"(?<![a-z])(?:(?:lives?|living|lived|resid(?:es|ing|ent)|staying|works?|working|worked|grew up|raised|born|home|"
    r"house|"
    r"relocated|moved|native|apartment|retired)(?: (?:alone|with \w{2,12}(?: \w{2,12})?|here|there|back|currently|"
    r"out))?"
    r" (?:in|to|from|of|near|outside|at)|(?:transfer(?:red)?|presents|travel(?:l?ed|s)?|trip|flew|drove|came|visiting|"
    r"returned|arrived)(?: \w{2,12})? (?:from|to)|city|town|city of|birthplace|town of|"
    r"place of birth)[ \t]?[:]?[ \t]{1,3}$"
)
_CAPITAL = re.compile(r"(?<![^\W_])[A-Z][a-z]")
_TOWN_AT = re.compile(r"[A-Z][a-z'’-]{2,20}(?: (?:[A-Z][a-z'’-]{2,20}|Falls|City|Beach)){0,2}")
_HOUSE = (
    r"(?P<house>Hospital|Medical (?:Center|Centre)|Clinic|Infirmary|Health (?:Center|Centre|System)|"
    r"Healthcare(?: Center)?|"
    r"Nursing (?:Home|Center|Facility)|Rehab(?:ilitation)? (?:Center|Hospital|Facility)|Hospice|Medical Group|"
    r"Surgery Center|Surgical Center|Cancer (?:Center|Institute)|Urgent Care|Care Center|Dialysis Center|Manor|"
    r"Sanatorium)"
)
_HOUSE_WORDS = frozenset(re.findall(r"[a-z]{4,}", _HOUSE.lower()))
_LEADING_TEXT = (
    "the a an this that our his her their your my brief outside another other in at to from of for and or by on "
    "with all many most some each per i we you he she they it please call see after before during since if when "
    "while does do is was were are patient patients transferred admitted type types low national"
)
_LEADING = frozenset(_LEADING_TEXT.split())
_NAME = r"(?:St\.?|Saint|Mt\.?|Mount|[A-Z][A-Za-z'’.&-]{1,24})"
_HOSPITAL = re.compile(
    rf"(?<![^\W_])(?:{_NAME}(?: (?:of|the|and|&|for|de|la))?(?: the)? ){{1,5}}?{_HOUSE}(?![a-z-])"
    rf"(?: of (?:the )?{_NAME}(?: {_NAME}){{0,2}}| for {_NAME}(?: {_NAME}){{0,2}})?"
    rf"|(?<![^\W_])(?:Hospital|University) of (?:the )?{_NAME}(?: (?:of )?{_NAME}){{0,3}} (?:Hospital|Medical Center)"
)


def find(text: str, low: str) -> Iterator[Span]:
    """Places in `text`; `low` is the text in small letters, character for character."""
    for pattern, target in ((_ADDRESS, text), (_UPPER, text), (_LOWER, low), (_BOX, text)):
        for found in pattern.finditer(target):
            yield Span(found.start(), found.end(), "address")
    for found in _ZIP.finditer(text):
        yield Span(*found.span(found.lastindex or 0), "zip")
    yield from _towns(text, low)
    for found in _HOSPITAL.finditer(text):
        start = _start_of(found)
        if start is not None:
            yield Span(start, found.end(), "hospital")


def _towns(text: str, low: str) -> Iterator[Span]:
    for found in _TOWN_STATE.finditer(text):
        start, end = found.span(1)
        first = re.match(r"(?:In|From|Of|At|The|Near|To|Seen|Lives|Moved|Born|Address|City) ", found[1])
        start += first.end() if first else 0
        town = text[start:end].lower()
        comma = text[end : end + 1] == ","
        located = comma and _IN.search(text, max(0, start - 12), start)
        if town in words.CITIES or found[2] or (located and not set(town.split()) & words.PLACES):
            yield Span(start, end, "city")
    for found in _CAPITAL.finditer(text):
        if _LIVES.search(low, max(0, found.start() - 40), found.start()):
            town_at = _TOWN_AT.match(text, found.start())
            if town_at and _is_town(town_at[0].lower()):
                yield Span(town_at.start(), town_at.end(), "city")


def _is_town(low: str) -> bool:
    if low in words.CITIES:
        return True
    each = low.split()
    wrong = words.is_other(each[0]) or each[0] in words.GENERIC or each[0] in words.EPONYMS or words.PLACES & set(each)
    return not wrong and low not in _STATES.lower().split("|")


def _start_of(found: re.Match[str]) -> int | None:
    """Where a hospital's own name begins; None where all its words could be any hospital's."""
    ordinary = found["house"] not in {"Hospital", "Medical Center", "Medical Centre", "Nursing Home", "Infirmary"}
    start, telling = found.start(), False
    for word in re.finditer(r"\S+", found[0]):
        low = word[0].lower().strip(".,")
        if not telling and found.start() + word.start() == start and low in _LEADING:
            start = found.start() + word.end() + 1
        known = low in words.GENERIC or low in _LEADING or low in _HOUSE_WORDS
        telling |= not known and not (ordinary and words.is_ordinary(low) and low not in words.WORD_NAMES)
    return start if telling else None
