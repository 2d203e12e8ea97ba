"""Dates (except a year alone) and ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import name_words
from meditune.phi.spans import Span, View, word_list

_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:(?:19|20|21)\d\d)"
_ROMAN = r"(?:i{1,3}|iv|vi{0,3}|ix|xi{0,2})"
_END = r"(?![\w/%]|-(?!\d{1,2}/\d)|\.\d)"  # A hyphen may be followed by the second date of a range
_NUMERIC = re.compile(
    "|".join(
        (
            rf"{_YEAR}([-/.]){_MONTH}\1{_DAY}(?:(?=t\d\d)|{_END})",
            rf"{_MONTH}([-/.]){_DAY}\2{_YEAR}{_END}",
            rf"{_DAY}([-/.]){_MONTH}\3{_YEAR}{_END}",
            rf"{_MONTH}/{_DAY}/\d\d{_END}",
            rf"{_DAY}/{_MONTH}/\d\d{_END}",
            rf"{_MONTH}-{_DAY}-\d\d{_END}",
            rf"{_MONTH}/{_YEAR}{_END}",
            rf"{_DAY}([-./]){_ROMAN}\4{_YEAR}{_END}",
        )
    )
)
_SHORT = re.compile(rf"{_MONTH}/{_DAY}{_END}")
_OF_BIRTH = re.compile(r"\d{1,2}( ?[-/.] ?| )\d{1,2}\1(?:\d{4}|\d\d)(?!\w)")
_BIRTH_LABEL = re.compile(
    r"(?<![a-z])(?:dob|d\.o\.b\.?|date of birth|birth ?date|born(?: on)?)[ \t]?[:#-]?[ \t]{0,10}$"
)
_DAY_MONTH = re.compile(
    rf"(?:{_DAY}(?:st|nd|rd|th)?(?: ?[-–/] ?| to | and )(?:the )?)?"
    rf"({_DAY}(?:st|nd|rd|th)?(?: day)?(?: of)?[ -]?{_MONTHS}(?:\b\.?,?|(?=(?:{_YEAR}|\d\d)(?!\w)))"
    rf"(?:[ -]?{_YEAR}|[ -]?['’]?\d\d(?![\d:/%.-]))?)"
    r"(?![^\W_])"
)
_MONTHS_ABROAD = rf"(?:{'|'.join(sorted(word_list('months'), key=len, reverse=True))})"
_DAY_MONTH_ABROAD = re.compile(
    rf"{_DAY}(?:\.|er|º|ª|°)?(?: ?(?:-|–|to|au|al|bis|a|y|e|und|et) ?{_DAY}\.?)? (?:de |di |d['’])?{_MONTHS_ABROAD}"
    rf"(?![^\W_])(?:\.?,? (?:del? )?{_YEAR})?"
)
_YEAR_MONTH_DAY = re.compile(rf"{_YEAR}[.,]? (?:{_MONTHS}|{_MONTHS_ABROAD})\.? {_DAY}(?:st|nd|rd|th)?(?![\w/%]|\.\d)")
_OF_EAST_ASIA = re.compile(r"(?:\d{4}[ ]?[年년][ ]?)?\d{1,2}[ ]?[月월](?:[ ]?\d{1,2}[ ]?[日일])?")
_ONES = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth"
_NTH = (
    rf"(?:(?:twenty|thirty)[ -]?(?:{_ONES})|{_ONES}|tenth|eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|"
    r"twentieth|thirtieth)"
)
_IN_WORDS = (
    r"(?:oh |o['’])?(?:[a-z]{2,7}teen|ten|eleven|twelve|(?:twenty|thirty|[a-z]{3,5}ty)(?:[ -][a-z]{3,5})?|[a-z]{3,5})"
)
_SPOKEN_YEAR = rf"(?:,? (?:nineteen (?:hundred(?: and)? )?|twenty |two thousand(?: and)? ?){_IN_WORDS}|,? {_YEAR})?"
_BEFORE_SPOKEN = re.compile(rf"(?<![a-z])(?:the )?{_NTH}(?P<of> (?:day )?of)? $")
_SPOKEN = re.compile(
    rf"{_MONTHS}\b(?P<nth>,? the {_NTH}|,? {_NTH}(?=,? (?:nineteen|twenty|two thousand|{_YEAR})(?!\w)))?"
    rf"{_SPOKEN_YEAR}(?![^\W_])"
)
_ORDINAL = re.compile(
    r"\d{1,2}(?:st|nd|rd|th)(?![^\W_])"
    r"(?! (?:percentile|rib|week|day|month|year|floor|time|dose|cycle|edition|century|hospital|post|of the|toe|"
    r"finger|pod))"
)
_BEFORE_ORDINAL = re.compile(
    r"(?<![a-z])(?:(?:on|since|until|by) the |"
    r"(?:mon|tues?|wed|thu(?:rs?)?|fri|(?:mon|tues|wednes|thurs|fri|satur|sun)day),? (?:the |\()?)$"
)
_DOTTED = re.compile(
    rf"{_DAY}\.{_MONTH}\.\d\d{_END}|{_MONTH}\.{_DAY}\.\d\d{_END}|{_DAY}\.{_MONTH}\.(?=[\s,;)]|$)(?!\s?\d)"
)
_BEFORE_DOTTED = re.compile(
    r"(?<![a-z])(?:on|from|since|until|till|by|am|dated?|dob|born|seen|admitted|discharged|reviewed|begins|"
    r"[a-z]{3,6}day)[ :,]{1,3}$"
)
_PERHAPS_MONTH = re.compile(r"[jfmasond](?<![^\W_].)(?:an|eb|ar|pr|ay|un|ul|ug|ep|ct|ov|ec)")
_MONTH_DAY = re.compile(
    rf"{_MONTHS}\b\.?(?:[ -]{_DAY}(?:st|nd|rd|th)?(?:(?: ?- ?| to | and ){_DAY}(?:st|nd|rd|th)?)?"
    r"(?!\d|/\d|\.\d|%| ?(?:mg|mcg|ml|units|percent|years|patients|days|weeks|months))"
    rf"(?:,? ?{_YEAR}|,? ['’]\d\d)?|(?:,? (?:of )?|-|/){_YEAR}| ?['’]\d\d)(?![^\W_])"
)
_BEFORE_SMALL_MONTH = re.compile(
    r"(?<![a-z])(?:lmp|edd|dob|born|since|until|till|seen|admitted|discharged|due|appt|visit|surgery|on)[ :]{1,2}$"
)
_ALONE = re.compile(
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"(?:Jan|Feb|Apr|Aug|Sept?|Oct|Nov|Dec)\b\.?(?= |,|;|\)|\n|$))"
    r"(?![^\W_]|['’ ][A-Z][a-z])"
)
_BEFORE_ALONE = re.compile(
    r"(?<![a-z])(?:in|last|next(?: [a-z]{3,12})?|since|until|till|this|early|late|mid|of|by|through|during|before|"
    r"after|from|past)[ -](?:early |late |mid-?)?$"
)
_BEFORE_SHORT = re.compile(
    r"(?:(?<![a-z])(?:on|until|till|from|since|through|thru|between|dated?|drawn|collected|admitted|discharged|"
    r"scheduled|by|ending|starting|started|beginning|after|before|cultures?|cx|ct|mri|cxr|echo|labs?|biopsy|surgery|"
    r"appointment|visit|d/c'?d|last|next|approximately|around|s/p|dob|born|hours of|morning of|night of|evening of|"
    r"week of|lmp|edd|srom|rounds?|list|handover|"
    r"[a-z]{3,12}ed|out|seen|done|given|begun|taken|mon|tues?|wed|thu(?:rs?)?|fri|sat|sun|[a-z]{3,6}day)|"
    r"\(|^|\n[ \t-]{0,6}|(?<!\d)(?:[01]\d|2[0-3])[0-5]\d(?: ?h(?:rs?)?)? |"
    r"(?<!\d)\d{1,2}/\d{1,2}(?: ?-| to| and| through|,))[ \t:(]{0,2}$"
)
_TIME = re.compile(
    r",? (?:at )?\d{1,2}:\d\d| (?:appt|appointment|visit|labs|surgery|biopsy|admission|discharge)(?![a-z])"
)
_SCORED = re.compile(
    r"(?<![a-z])(?:gcs|cytokeratin|ck|mmse|moca|scores?|scored|apgars?|pain|strength|scale|vision|acuity|ratio|"
    r"bottles|rating|index|of|is|was|at|phq-?9?|grade|bp|\()[ \t:=]{0,3}$"
)
_IN_BRITAIN = re.compile(r"(?<![\d/.])(?:\d{1,2}/52|(?:1[3-9]|2\d)/7)(?![\d/])")
BEFORE_DAY = re.compile(r"(?<![a-z])(?:on|dated?|dob|born|seen|adm|admitted|op|cath|reviewed|discharged)[ :]{1,3}$")
_BEFORE_DURATION = re.compile(
    r"(?<![a-z])(?:for|x|×|in|over|every|within|od|om|bd|bid|tds|tid|qds|qid|prn|mg|mcg|ml|g|tcu|rv|review|about)"
    r"[ ]{0,2}$"
)
_ACUITY = re.compile(r"(?<![a-z])(?:va|bcva|acuity|snellen|vision)(?![a-z])|6/(?:60|36)(?!\d)")
_AFTER_SHORT = re.compile(
    r"\s{0,3}(?:cups?|tsp|teaspoons?|tablespoons?|of\b|hours?|years?|lit)|"
    r"\s{0,3}(?:(?:muscle |motor |grip )?(?:strength|power|motor)|systolic|diastolic|holosystolic|sem\b|murmur|pain|"
    r"in (?:the |all |both |bilateral|upper|lower)|throughout|bilateral|blood|bottles|positive|tablets?|doses?|sets|"
    r"cultures|lymph|nodes|scale|score|of (?:the|a|an|all)\b|ni?ml|ns\b|intensity|strength|ue|le|le?s\b|kg|mg|cm|inch)"
)
_HOLIDAY = re.compile(
    r"(?:Christmas(?: (?:Eve|Day))?|Thanksgiving(?: Day)?|Easter(?: Sunday)?|New Year['’]s(?: (?:Eve|Day))?|"
    r"(?:Fourth|4th) of July|Labou?r Day|Boxing Day|Good Friday|Bonfire Night|(?:Canada|Australia|A(?:NZAC|nzac)|"
    r"Veterans|Columbus|Presidents['’]?|(?:Mother|Father)['’]s|St\.? Patrick['’]s) Day|(?:Chinese|Lunar) New Year|"
    r"Juneteenth|Yom Kippur|Rosh Hashanah|Eid (?:al|ul)-(?:Fitr|Adha)|Memorial Day|Halloween|Valentine['’]s Day|"
    r"Hanukkah|Ramadan|Diwali|Passover)"
    r"(?![^\W_]|[ -](?:disease|factor|tree))(?: (?:19|20)\d\d(?!\d))?"
)
_COMPACT = re.compile(r"(?:(?:19|20)\d{6}|\d{6,8})(?!\w)")
_DATE_LABEL = re.compile(
    r"(?<![a-z])(?:dob|d\.o\.b\.?|date of birth|birth ?date|admission date|discharge date|date(?: of \w{3,12})?)"
    r"[ \t]?[:#-][ \t]{0,10}$"
)
_OLDEST = 125
_YEARS_OLD = re.compile(
    r"[- ]?(?:(?:years?|yrs?|y)[-./ ]{0,2}(?:old|of age|o\b|/o|o\.)|(?:yo|y/o|y\.o\.?)(?!\w)|years?[- ]olds?|"
    r"yrs?(?= ?[-,;.)/|]))"
    r"|[mf](?![a-z0-9])(?:[ ,;:|/]|\)(?![a-z])|$|\n)"
)
_BEFORE_WARMTH = re.compile(r"(?:temp(?:erature)?|fever|tmax|(?<![a-z])(?:t|to|of|at|is|was))[ :=]{0,3}$")
_SEX_AFTER = re.compile(r" [mf](?:\s|,|$)")
_AGED = re.compile(r"(?<![a-z])(?:aged?(?: of)?|turn(?:ed|ing)?|age is)[ \t:=]{1,3}$")
_PERSON = re.compile(
    r"(?:(?<![a-z])(?:mother|father|mum|mom|dad|grand(?:mother|father|ma|pa|mum|dad)|nan|wife|husband|sister|brother|"
    r"aunt|uncle|partner|man|woman|lady|gentleman|patient|pt|widow(?:er)?)"
    r"|(?<![a-z])(?:mrs?|ms|miss)\.? (?:[a-z.]+ ){0,2}[a-z'’-]{2,}),? \(?$"
)  # Words for a person directly before an age between commas or in parentheses
_NAME_BEFORE_AGE = re.compile(
    r"(?<![^\W_])(?:(?P<relative>[a-z]{2,12}) )?(?P<first>[A-Z][^\W\d_]{1,20})(?: [A-Z][^\W\d_'’-]{1,24})?,? \(?$"
)
_RELATIVES = word_list("relatives")
_SHE_IS = re.compile(
    r"(?<![a-z])(?:she|he|mum|mom|mother|dad|father|gran|grandma|grandpa|grandmother|grandfather|nan|aunt|uncle|wife|"
    r"husband|who)(?:['’]s| is| was| just turned| will be| has turned)(?: now| already| nearly| almost)? $"
)
_AGE_ENDS = re.compile(r" ?[.;!?)](?!\d)|$| (?:now|yet|today|this|next|but)(?![a-z])")
_AGE_CLOSED = re.compile(r"[,)](?! ?\d)|[.;](?!\d)")
_IS_NUMBER = re.compile(r"(?<![a-z])(?:is|was|now|aged|turning)[ ]$")
_NOTHING_COUNTED = re.compile(r"(?:,? and (?:still|lives|has|is|very|in|was)|, (?:and|lives|still|widow|frail)|\.\s)")
_NO_AGE = re.compile(
    r"[\d%/-]|\.\d| ?(?:d(?:ays?)?|mo(?:nths?|s)?|w(?:ks?|eeks?)?|h(?:rs?|ours?)?|min(?:utes?|s)?)(?![a-z])"
)
_TENS = (
    r"(?:ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|one hundred(?:[- ](?:and[- ])?(?:one|two|"
    r"three|four|five|six|seven|eight|nine|ten))?)"
)
_AGE_WORDED = re.compile(
    rf"(?<![a-z])({_TENS})[- ]?(?:years?|yrs?)[- ](?:old|of age)|(?<=in (?:his|her) )((?:mid[- ]|early |"
    rf"late )?90['’]?s)"
    r"|(?<![a-z])(nonagenarian|centenarian)(?!s)"
)


def find(view: View) -> Iterator[Span]:
    """Yield the spans of dates and ages."""
    view = view.folded
    yield from _with_digits(view)
    if view.has("月", "월"):
        yield from view.spans(_OF_EAST_ASIA, "date")
    for month in _PERHAPS_MONTH.finditer(view.low):
        start = month.start()
        found = _MONTH_DAY.match(view.low, start)
        if found and (_is_month(view.text[start : found.end()]) or _BEFORE_SMALL_MONTH.search(view.before(start, 14))):
            yield Span(start, found.end(), "date")
        elif spoken := _spoken(view, start):
            yield spoken
        elif (alone := _ALONE.match(view.text, start)) and _BEFORE_ALONE.search(view.before(start, 24)):
            yield Span(start, alone.end(), "date")
    yield from view.spans(_HOLIDAY, "date")
    if view.has("ninety", "hundred", "90", "genarian", "centenarian"):
        for found in _AGE_WORDED.finditer(view.low):
            yield Span(*found.span(found.lastindex or 0), "age")


def _with_digits(view: View) -> Iterator[Span]:
    low, done = view.low, 0
    for start, end in view.digits:
        if start < done or (start and (low[start - 1].isalnum() or low[start - 1] in "_/.$")):
            continue
        length = end - start
        found = None
        if start > 1 and low[start - 1] == "," and low[start - 2].isdecimal():
            # A date in a table, or the rest of a number such as 1,420
            found = _NUMERIC.match(low, start) if length in {2, 4} else None
            if found is None or len(found[0]) < 8:
                continue
        elif length in {1, 2, 4}:
            found = (
                _NUMERIC.match(low, start)
                if low[end : end + 1] in {"-", "/", "."} and not _hyphen(low, start, done)
                else None
            )
            if found is None and length < 3 and _BIRTH_LABEL.search(view.before(start, 40)):
                found = _OF_BIRTH.match(low, start)
            if found is None and length < 3:
                day = _DAY_MONTH.match(low, start)
                if day and _is_month(view.text[day.start(1) : day.end()]):
                    found = day
                elif abroad := _DAY_MONTH_ABROAD.match(low, start):
                    found = abroad
                elif low[end : end + 1] == "/" and _is_short(view, start, done):
                    found = _SHORT.match(low, start)
                elif low[end : end + 1] == "." and _BEFORE_DOTTED.search(view.before(start, 16)):
                    found = _DOTTED.match(low, start)
                elif low[end : end + 2] in {"st", "nd", "rd", "th"} and _BEFORE_ORDINAL.search(view.before(start, 16)):
                    found = _ORDINAL.match(low, start)
            elif found is None:
                found = _YEAR_MONTH_DAY.match(low, start)
        elif length in {6, 7, 8} and _DATE_LABEL.search(view.before(start, 40)):
            found = _COMPACT.match(low, start)
        if found:
            done = found.end() - (found[0][-1] in ".,")
            yield Span(start, done, "date")
        elif length in {2, 3} and 89 < int(low[start:end]) <= _OLDEST and _is_age(view, start, end):
            yield Span(start, end, "age")


def _hyphen(low: str, start: int, date: int) -> bool:
    """Return True if the number is part of a hyphenated word, not of a range whose first date ended at `date`."""
    return start > 1 and low[start - 1] == "-" and low[start - 2].isalnum() and start - 1 != date


def _is_short(view: View, start: int, done: int) -> bool:
    """Return True if "3/14" is a date, judged by the surrounding text."""
    found = _SHORT.match(view.low, start)
    if view.before(start, 4).replace(" ", "").endswith("%("):
        return False
    if found is None or _hyphen(view.low, start, done) or _AFTER_SHORT.match(view.low, found.end()):
        return False
    if is_duration(view, found):
        return False
    before = view.before(start, 24)
    if found[0].endswith("/10") and "pain" in view.before(start, 60):
        return False
    if _BEFORE_SHORT.search(before) or _TIME.match(view.low, found.end()):
        return True
    # Fractions and scores hardly ever have a denominator above 12.
    return int(found[0].partition("/")[2]) > 12 and not _SCORED.search(before)


def is_duration(view: View, found: re.Match[str]) -> bool:
    """Return True for 3/7, 2/52 and 6/12 as days, weeks and months in British notes, and for visual acuities."""
    first, _, last = found[0].partition("/")
    if first == "6" and int(last) in {9, 12, 18, 24} and view.contains(_ACUITY):
        return True
    if int(last) not in {7, 12}:
        return False
    before = view.before(found.start(), 16)
    if view.contains(_IN_BRITAIN):
        return not BEFORE_DAY.search(before)
    return bool(_BEFORE_DURATION.search(before))


def _spoken(view: View, start: int) -> Span | None:
    """Return the span of a date in words around a month: "the twelfth of March", "March the twelfth"."""
    found = _SPOKEN.match(view.low, start)
    if found is None:
        return None
    before = _BEFORE_SPOKEN.search(view.before(start, 36))
    if before and (before["of"] or view.text[start].isupper()):
        return Span(start - len(before[0]), found.end(), "date")
    return Span(start, found.end(), "date") if found["nth"] else None


def _is_age(view: View, start: int, end: int) -> bool:
    if (found := _YEARS_OLD.match(view.low, end)) and view.text[start - 1 : start] != "-":
        return found[0][0] not in "mf" or not _BEFORE_WARMTH.search(view.before(start, 16))
    if _SEX_AFTER.match(view.low, end) and (start == 0 or re.search(r"[.;(|\n]\s?$", view.before(start, 2))):
        return True
    if _AGE_CLOSED.match(view.low, end) and view.text[start - 1] in " (" and _PERSON.search(view.before(start, 40)):
        return True
    if _AGE_CLOSED.match(view.low, end) and _is_after_name(view, start):
        return True
    if _AGE_ENDS.match(view.low, end) and _SHE_IS.search(view.before(start, 32)):
        return True
    before = view.before(start, 16)
    if _IS_NUMBER.search(before) and _NOTHING_COUNTED.match(view.low, end):
        return True
    return bool(_AGED.search(before)) and not _NO_AGE.match(view.low, end)


def _is_after_name(view: View, start: int) -> bool:
    """Return True if a listed given name, or a name after "uncle" or similar, is directly before the number."""
    found = _NAME_BEFORE_AGE.search(view.text, max(0, start - 64), start)
    if found is None:
        return False
    low = name_words.plain(found["first"])
    return low in name_words.GIVEN or (found["relative"] in _RELATIVES and not name_words.is_other(low))


def _is_month(written: str) -> bool:
    """Return False for words such as "may 5", "march 2" or "10 mar", unless they have a capital letter or a year."""
    month = re.search(r"[A-Za-z]{3,}", re.sub(r"\d(?:st|nd|rd|th)|day of|day| of ", " ", written))
    if month and len(month[0]) > 3 and month[0] != "march":
        return True
    return bool(month and (month[0][0].isupper() or re.search(r"\d{4}|[a-z] ?['’]?\d\d$", written)))
