"""Dates (all but a year alone) and ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi.spans import Span

_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:(?:19|20|21)\d\d)"
_EDGE, _END = r"(?<![\w/.,$-])", r"(?![\w/%-]|\.\d)"
_NUMERIC = re.compile(
    _EDGE
    + r"(?:"
    + "|".join(
        (
            rf"{_YEAR}([-/.]){_MONTH}\1{_DAY}(?=t\d\d)",
            rf"{_YEAR}([-/.]){_MONTH}\2{_DAY}{_END}",
            rf"{_MONTH}([-/.]){_DAY}\3{_YEAR}{_END}",
            rf"{_DAY}([-/.]){_MONTH}\4{_YEAR}{_END}",
            rf"{_MONTH}/{_DAY}/\d\d{_END}",
            rf"{_DAY}/{_MONTH}/\d\d{_END}",
            rf"{_MONTH}-{_DAY}-\d\d{_END}",
            rf"{_MONTH}/{_YEAR}{_END}",
        )
    )
    + r")"
)
_WORDED = re.compile(
    r"(?<![^\W_])(?:"
    + "|".join(
        (
            rf"{_DAY}(?:st|nd|rd|th)?(?: day)?(?: of)?[ -]?{_MONTHS}\b\.?,?"
            rf"(?:[ -]?{_YEAR}|[ -]?['’]?\d\d(?![\d:/%.-]))?",
            rf"{_MONTHS}\b\.?[ -]{_DAY}(?:st|nd|rd|th)?(?:(?: ?- ?| to | and ){_DAY}(?:st|nd|rd|th)?)?"
            rf"(?!\d|/\d|\.\d|%| ?(?:mg|mcg|ml|units|percent|years|patients|days|weeks|months))"
            rf"(?:,? ?{_YEAR}|,? ['’]\d\d)?",
            rf"{_MONTHS}\b\.?(?:,? (?:of )?|-|/){_YEAR}",
            rf"{_MONTHS}\b\.? ?['’]\d\d",
        )
    )
    + r")(?![^\W_])"
)
_ALONE = re.compile(
    r"(?<![^\W_])(?:in|last|next|since|until|till|this|early|late|mid|of|by|through|during|before|after|from|past)[ -]"
    r"(?:early |late |mid-?)?(January|February|March|April|May|June|July|August|September|October|November|December)"
    r"(?![^\W_]|['’ ][A-Z][a-z])"
)
_SHORT = re.compile(rf"(?<![\w/.,$%-]){_MONTH}[/]{_DAY}(?![\w/%-]|\.\d)")
_BEFORE_SHORT = re.compile(
    r"(?:(?<![a-z])(?:on|until|till|from|since|through|thru|between|dated?|drawn|collected|admitted|discharged|"
    r"scheduled|"
    r"by|ending|starting|started|beginning|after|before|cultures?|cx|ct|mri|cxr|echo|labs?|biopsy|surgery|"
    r"appointment|visit|d/c'?d|last|next|approximately|around|s/p|dob|born)|\(|^|\n[ \t-]{0,6}|"
    r"(?<!\d)\d{1,2}/\d{1,2}(?: ?-| to| and| through|,))[ \t:(]{0,2}$"
)
_AFTER_SHORT = re.compile(
    r"\s{0,3}(?:cups?|tsp|teaspoons?|tablespoons?|of\b|hours?|an? \w|years?|lit)|"
    r"\s{0,3}(?:(?:muscle |motor |grip )?(?:strength|power|motor)|systolic|diastolic|holosystolic|sem\b|murmur|pain|"
    r"in (?:the |all |both |bilateral|upper|lower)|throughout|bilateral|blood|bottles|positive|tablets?|doses?|sets|"
    r"cultures|lymph|nodes|scale|score|of (?:the|a|an|all)\b|ni?ml|ns\b|intensity|strength|ue|le|le?s\b|kg|mg|cm|inch)"
)
_ON_THE = re.compile(
    r"(?<![a-z])(?:on|since|until|by) the (\d{1,2}(?:st|nd|rd|th))(?![^\W_])"
    r"(?! (?:percentile|rib|week|day|month|year|floor|time|dose|cycle|edition|century|hospital|post|of the|toe|"
    r"finger|pod))"
)
_HOLIDAY = re.compile(
    r"(?<![^\W_])(?:Christmas(?: (?:Eve|Day))?|Thanksgiving(?: Day)?|Easter(?: Sunday)?|New Year['’]s(?: (?:Eve|Day))?|"
    r"(?:Fourth|4th) of July|Labor Day|Memorial Day|Halloween|Valentine['’]s Day|Hanukkah|Ramadan|Diwali|Passover)"
    r"(?![^\W_]|[ -](?:disease|factor|tree))"
)
_BIRTH = re.compile(
    r"(?<![a-z])(?:dob|d\.o\.b\.?|date of birth|birth ?date|admission date|discharge date|date(?: of \w{3,12})?)"
    r"[ \t]?[:#-][ \t]{0,10}((?:19|20)\d{6}|\d{6,8})(?!\w)"
)
_AGE = re.compile(
    r"(?<![\w.,/-])(9\d|1[01]\d|12[0-5])(?:[- ]?(?:years?|yrs?|y)[-./ ]{0,2}(?:old|of age|o\b|/o|o\.)|[- ]?(?:yo|y/o|"
    r"y\.o\.?)"
    r"(?!\w)|[- ]?years?[- ]olds?|(?=[mf](?![a-z0-9])[ ,]))"
)
_AGED = re.compile(
    r"(?<![a-z])(?:aged?(?: of)?|turn(?:ed|ing)?|age is)[ \t:=]{1,3}(9\d|1[01]\d|12[0-5])(?![\d.%/-]| ?(?:days?|d\b|"
    r"mo|w|h|min))"
)
_TENS = (
    r"(?:ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|one hundred(?:[- ](?:and[- ])?(?:one|two|"
    r"three|"
    r"four|five|six|seven|eight|nine|ten))?)"
)
_AGE_WORDED = re.compile(
    rf"(?<![a-z])({_TENS})[- ]?(?:years?|yrs?)[- ](?:old|of age)|(?<=in (?:his|her) )((?:mid[- ]|early |"
    rf"late )?90['’]?s)"
    r"|(?<![a-z])(nonagenarian|centenarian)(?!s)"
)


def find(text: str, low: str) -> Iterator[Span]:
    """Dates and ages of `text`; `low` is the text in small letters, character for character."""
    for found in _NUMERIC.finditer(low):
        yield Span(found.start(), found.end(), "date")
    for found in _WORDED.finditer(low):
        if _is_month(text, found):
            yield Span(found.start(), found.end() - (found[0][-1] in ".,"), "date")
    for pattern, target in ((_ALONE, text), (_ON_THE, low), (_BIRTH, low)):
        for found in pattern.finditer(target):
            yield Span(*found.span(1), "date")
    for found in _HOLIDAY.finditer(text):
        yield Span(found.start(), found.end(), "date")
    for found in _SHORT.finditer(low):
        before = low[max(0, found.start() - 20) : found.start()]
        if _BEFORE_SHORT.search(before) and not _AFTER_SHORT.match(low, found.end()):
            yield Span(found.start(), found.end(), "date")
    for pattern in (_AGE, _AGED, _AGE_WORDED):
        for found in pattern.finditer(low):
            group = found.lastindex or 0
            yield Span(*found.span(group), "age")


def _is_month(text: str, found: re.Match[str]) -> bool:
    """Not the verb in "may 5", "march 2" or "10 mar": those months count with a capital letter or a year."""
    written = text[found.start() : found.end()]
    month = re.search(r"[A-Za-z]{3,}", re.sub(r"\d(?:st|nd|rd|th)|day of|day| of ", " ", written))
    return bool(month and (month[0][0].isupper() or re.search(r"\d{4}", written)))
