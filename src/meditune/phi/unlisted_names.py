"""Additional detection of identifiers that lack explicit context, in notes about one person. It works by exclusion.

Two capitalized words count as a name if they are neither ordinary English nor formed like a disease or drug. A listed
name counts, too, and so does an unlisted word next to a word for a person ("phlebotomist") or before a verb for a
person's action. The detector applies these rules only if it has already found an identifier of one person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from meditune.phi import name_words
from meditune.phi.dates import BEFORE_DAY, is_duration
from meditune.phi.fields import is_hl7
from meditune.phi.name_words import ALSO_NAMES, NEXT, TOKEN, is_eponym, is_medical, is_titled, plain, stem
from meditune.phi.spans import Span, View, word_list

_PERSONS = re.compile(
    r"(?<![a-z])(?:[a-z]{2,14}(?:ist|ian|tor|yer|ner|ker|der|mer|ger|ser|ver|wife|man|woman|mate|agent)|nurse|midwife|"
    r"aunt(?:ie)?|uncle|examiner|employee|agent|sister|brother|carer|tenant|parent|foster|master|mister|lady|boss|"
    r"clerk|aide|medic|tech|scribe|coach|judge|officer|sergeant|lieutenant|captain|colonel|bishop|imam|sister-in-law|"
    r"brother-in-law|attorney|solicitor|registrar|warden|in-law|named|"
    r"\d ?(?:yo|y/o|years? old)|signed|by|per|yours(?: \w+)?)[ \t\n,:(]{1,4}$"
)  # Words for a person directly before a name; most of these words are recognized by their endings
_SENTENCE = re.compile(r"(?:\A|[.!?:\n]|[-*•#|\t])[ \t\"“(]*$")
_DOSED = re.compile(r" ?\(?\d|['’]s? (?:sign|test|disease|syndrome)|-\w|\d")
_IN_YEARS = re.compile(r" \(\d{1,2}\)")  # An age: "her children Ana (7) and Tom (12)"
_ACTING = re.compile(
    r"(?:['’]s)?,? (?:(?:is|was|has|had|will|did|can|could|would|who|and I|kindly|also|then)(?!\w)|"
    r"[a-z]{3,}(?:ed|es|ts|ks|ns|ys)(?!\w))"
)
# Beginnings of names before a second capital, as in "McDonald"
_WRITTEN = re.compile(r"^(?:Ma?c|D[eiu]|L[ae]|Van|Fitz|[ODL]['’])(?=[A-Z])")
_ENDS = re.compile(r"[ \t]*(?:[,;.(\n]|$)|[ \t]{2,}")
_MONTHS = frozenset({"april", "may", "june"})
_SAYING = re.compile(
    r",? (?:says|said|states|stated|reports|reported|denies|denied|thinks|wants|feels|asked|asks|told|lives|lived|"
    r"called|calls|rang|phoned|agrees|agreed|declined|understands|visits|slept|walked|ate|sees|works)(?![a-z])"
)  # Verbs for actions of people, not of drugs or tests
_REPORTING = re.compile(r" (?:reports|states|denies|endorses|says|reported|stated|denied|endorsed)(?![a-z])")
_REPORTING_THINGS = frozenset({"bill", "case", "church", "court", "field", "law", "page", "sergeant", "constable"})
_INITIALED = re.compile(r"(?<![^\W_])(?<!\d )(?:[A-Z]\.[ ]?|[A-Z] ){1,3}$")
_INITIAL_AFTER = re.compile(r", ?[A-Z]\.(?:[ ]?[A-Z]\.)?(?![A-Za-z])")
_HEADS = word_list("heads")  # Words in names of places and institutions


def find(view: View) -> Iterator[Span]:
    """Yield the spans of names."""
    done = 0
    for token in TOKEN.finditer(view.text):
        if token.start() < done:
            continue
        found = _pair(view, token) or _single(view, token)
        if found:
            yield found
            done = found.end


@lru_cache(1 << 14)
def is_unlisted(word: str) -> bool:
    """Return True if a word is written like a name, and is neither English nor medical nor on another list."""
    low = plain(word)
    return (
        len(low) > 2
        and not name_words.is_ordinary(low)
        and low not in name_words.EPONYMS
        and low not in name_words.CITIES
        and low not in name_words.GENERIC
        and low not in _HEADS
        and (word.isupper() or all(is_titled(_WRITTEN.sub("", part)) for part in stem(word).split("-")))
        and not is_medical(low)
    )


# Words that never count as a town, although other English words can
_NO_TOWNS = name_words.GENERIC | name_words.EPONYMS | name_words.EPONYMOUS | _HEADS


def _pair(view: View, token: re.Match[str]) -> Span | None:
    """Return the span of a given name and surname if at least one of the two is a known name or an unlisted word."""
    low, end = plain(token[0]), token.end()
    first_known = low in name_words.GIVEN or low in name_words.WORD_NAMES
    if (name_words.is_other(low) and low not in _MONTHS) or (not first_known and _PERSONS.fullmatch(f"{low} ")):
        return None
    unknown = not first_known and not name_words.is_name(low) and not is_unlisted(token[0])
    if unknown and not _is_enclosed(view, token):
        return None
    last = None
    for _ in range(3):
        piece = NEXT.match(view.text, end)
        if piece is None or "\n" in piece[0]:
            break
        word = plain(piece[1])
        if len(word) > 1 and "." not in word:
            known = name_words.is_name(word) or (word in ALSO_NAMES and (first_known or is_unlisted(token[0])))
            closed = _ENDS.match(view.text, piece.end()) or _ACTING.match(view.text, piece.end())
            english = last is None and not name_words.is_other(word) and closed
            surname = english and is_titled(piece[1]) and word not in _HEADS and not is_medical(word)
            if not known and not is_unlisted(piece[1]) and not surname:
                break
            last = piece
        end = piece.start(1) + len(stem(piece[1]))
    if last is None:
        return None
    stop = last.start(1) + len(stem(last[1]))
    if (
        is_eponym(view, stop)
        or (plain(last[1]) in _HEADS and plain(last[1]) not in name_words.WORD_NAMES)
        or _is_called(view, stop)
    ):
        return None
    capitals = token[0].isupper() or last[1].isupper()
    if capitals and not (name_words.is_name(low) or name_words.is_name(plain(last[1]))):
        return None
    return Span(token.start(), stop, "name")


def _is_enclosed(view: View, token: re.Match[str]) -> bool:
    """Return True if a listed surname and then punctuation or a gap follow the word ("by Woody Hughes,")."""
    following = NEXT.match(view.text, token.end())
    if following is None or not is_titled(token[0]) or plain(token[0]) in _HEADS:
        return False
    return name_words.is_name(plain(following[1])) and bool(_ENDS.match(view.text, following.end()))


def _is_called(view: View, end: int) -> bool:
    """Return True if a word such as "Street" or "Hospital" follows, so that the words before it name a place."""
    following = NEXT.match(view.text, end)
    return bool(following and "\n" not in following[0] and plain(following[1]) in _HEADS)


def _single(view: View, token: re.Match[str]) -> Span | None:
    low, text = plain(token[0]), view.text
    end = token.start() + len(stem(token[0]))
    if (
        (_DOSED.match(text, end) and not _IN_YEARS.match(text, end))
        or token[0].isupper()
        or is_eponym(view, end)
        or _is_called(view, end)
    ):
        return None
    if name_words.is_other(low) or low in name_words.EPONYMS or low in name_words.CITIES:
        return None
    beside = bool(_PERSONS.search(view.before(token.start(), 24)))
    initials = _INITIALED.search(text, max(0, token.start() - 9), token.start())
    if initials and "." in initials[0] and (name_words.is_name(low) or is_unlisted(token[0])):
        return Span(initials.start(), end, "name")
    if (initial := _INITIAL_AFTER.match(text, end)) and (name_words.is_name(low) or is_unlisted(token[0])):
        return Span(token.start(), initial.end(), "name")
    inside = not _SENTENCE.search(text, max(0, token.start() - 6), token.start())
    if low in name_words.GIVEN or (name_words.is_name(low) and (inside or beside or _ACTING.match(text, token.end()))):
        return Span(token.start(), end, "name")
    if is_unlisted(token[0]) and (beside or _SAYING.match(text, end) or (_ACTING.match(text, end) and inside)):
        return Span(token.start(), end, "name")
    if low in name_words.WORD_NAMES and (
        (beside and inside) or (_REPORTING.match(text, end) and low not in _REPORTING_THINGS)
    ):
        return Span(token.start(), end, "name")
    return None


_NUMBERED = re.compile(r"(?:#|\bn(?:o|r|um)\.?|\bnumber|\bref(?:erence)?|\bids?|№)[ \t.:#]{0,4}$", re.IGNORECASE)
_GROUPS = re.compile(r"[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+){0,4}(?: \d{3,6}(?!\d)){0,3}")
_COUNTED = re.compile(
    r" ?(?:%|/|mg|mcg|g\b|ml|l\b|units?|iu|u\b|k\b|cells|copies|mm|cm|kg|cfu|steps|meq|dollars|patients|people|"
    r"colon|bpm|ng|pg|iu)"
)
_YEARS = re.compile(r"(?:19|20)\d\d(?:[-/](?:19|20)?\d\d)?|(?:19|20)\d\d-\d\d-\d\dT\d\d")
_TIMES = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d-(?:[01]\d|2[0-3])[0-5]\d")
_HL7_SIGNS = frozenset({"|", "^"})  # The fields of HL7 segments have their own rules
_FREE = re.compile(r"(?:1-)?8(?:00|88|77|66|55|44|33|22)[- ]")
_PUBLIC = re.compile(
    r"pmid|pmcid|doi|nct|isrctn|cpt|icd|grant|snomed|loinc|ndc|genbank|rs$|\bca[ -]?$|\$$|platelets?|count|copies|load"
)
_CLOSER_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_ABBREVIATED = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
_ANY_MONTH = rf"(?:{_CLOSER_MONTHS}|{_ABBREVIATED})"
_NTH = r"\d{1,2}(?:st|nd|rd|th)?"
_DATES = re.compile(
    rf"(?<![\w/.-])(?:{_NTH}[ ./-]{{0,2}}(?:of )?{_ANY_MONTH}\b\.?"
    r"(?:[ ,./-]{0,2}(?:(?:19|20)\d\d|['’]?\d\d(?![\d:])))?"
    rf"|{_ANY_MONTH}\.?[ ./-]{{1,2}}(?:the )?{_NTH}(?!\d|:\d)(?:[ ,./-]{{1,2}}(?:19|20)?\d\d(?![\d:]))?"
    rf"|(?:(?:19|20)\d\d[ ,./-]{{1,2}})?(?:{_CLOSER_MONTHS})(?![a-z]|['’ ][A-Z][a-z])(?:,? ['’]?\d\d(?!\d|:))?"
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
    r"(?=[,.;)\n]|$| (?:at|and|for|to|with|by|instead)\b)(?! (?:to|and) (?:the )?\d{1,2}\w\w (?:per)?centile)"
)
_SLASHED = re.compile(
    r"(?<![\w/.-])(?:0?[1-9]|[12]\d|3[01])/(?:0?[1-9]|[12]\d|3[01])(?![\w/%-]|\.\d)"
    r"(?=[ \t]*(?:[,;.)\n:]|$| (?:at|and|with|by|to|in|for|pm|am|@)))"
)
_SCORED = re.compile(
    r"(?<![a-z])(?:[a-z-]*(?:score|scale|power|strength|pain|murmur|gcs|apgars?|mmse|moca|grade|reflex\w*|"
    r"pulses?|of|is|was|balance|tinetti)|bp|\d)[ :=]{0,2}$"
)
_DENOMINATORS = frozenset({4, 5, 6, 10, 15, 28, 30})  # Maximum values of common scores
_PLACED = re.compile(
    r"(?<![A-Za-z])(?:[Ii]n|[Ff]rom|[Nn]ear|[Aa]t|[Oo]utside|[Tt]o|[Oo]f|[Aa]round|[Tt]own|[Cc]ity|"
    r"[Vv]illage|[Dd]ist\.|[Tt]ehsil|[Tt]aluk) "
    r"((?:[A-Z][a-z'’-]{2,20} ){0,2}[A-Z][a-z'’-]{2,20})(?![\w-])"
)
_AFTER_STREET = re.compile(
    r"(?:,[ \n]{1,2}|[ ]?\n)((?:[A-Z][a-z'’.-]{1,20} ){0,2}[A-Z][a-z'’-]{2,20})(?=[,.;)\n]|$| [A-Z]{2}\b)"
)
_COUNTY = re.compile(r"(?<![A-Za-z])(?:Co\.|County) [A-Z][a-z]{3,20}(?![a-z])")
_ENDINGS = (
    r"(?:Hospitals?|Infirmary|Clinics?|Hospice|Health(?:care)?|Rehab(?:ilitation)?|Surgery|Practice|Polyclinic|"
    r"Nursing (?:Home|Facility)|Care Home|Med(?:ical|\.)? (?:Cent(?:er|re)|Ctr|Cntr|Group|Practice|Associates|"
    r"Pavilion|Campus)|"
    r"(?:Health|Cancer|Surgical|Trauma|Imaging|Dialysis|Birth|Wellness|Heart|Day|Treatment|Memorial|Regional|"
    r"Children['’]s) Cent(?:er|re)|Memorial|General|Regional|NHS(?: Foundation)? Trust|Lodge|Manor|Pharmacy|"
    r"Laborator(?:y|ies)|Living|Senior Living|Villas?|Sanatorium|Pavilion|Institute|Urgent Care|Radiology|Imaging)"
)
_HOUSE = re.compile(
    rf"(?<![A-Za-z])((?:(?:[A-Z][A-Za-z'’.-]{{1,20}}|of|the|and|&) ){{0,4}}?[A-Z][A-Za-z'’.-]{{1,20}}) "
    rf"{_ENDINGS}(?![a-z]|[ -](?:[Nn]urse|exam)| (?:No|Number|ID)(?![a-z]))(?: of [A-Z][a-z]+)?"
)
_WHERE = frozenset({"in", "from", "near", "outside", "village", "dist.", "tehsil", "taluk"})
_SAINTS = frozenset({"st", "saint", "mt", "mount", "our"})
_NAMED_AFTER = name_words.CITIES | name_words.WORD_NAMES
_UNIT_OF = re.compile(r"\b([A-Z][a-z]{3,20}(?: [A-Z][a-z]{3,20})?|[A-Z]{3,5})(?:['’]s)? (?:ED|ER|ICU|OSH|A&E|ward)\b")


def find_in_single_person_note(view: View, careful: list[Span]) -> Iterator[Span]:
    """Yield further identifiers. `careful` contains the spans that the other, more careful finders found."""
    yield from find(view)
    yield from _numbers(view)
    yield from _dates(view)
    view = view.folded
    yield from _towns(view, careful)
    houses = [span for span in careful if span.kind == "hospital"]
    for house in _HOUSE.finditer(view.text):
        start = _start_of_site_name(house)
        if start is not None:
            houses.append(Span(start, house.end(), "hospital"))
    yield from houses
    yield from _shortened(view, houses)


def _numbers(view: View) -> Iterator[Span]:
    """Yield long numbers, and shorter numbers after "#" or "no."; counts, doses and public numbers are skipped."""
    done, in_hl7 = 0, is_hl7(view)
    for place, _ in view.digits:
        start = view.word_start(place)
        if place < done or (found := _GROUPS.match(view.text, start)) is None:
            continue
        done = max(found.end(), place + 1)
        value, before = found[0], view.before(start, 24)
        digits = sum(map(str.isdecimal, value))
        before_sign = view.text[start - 1 : start]
        if before_sign in _HL7_SIGNS and in_hl7:
            continue
        if _COUNTED.match(view.low, found.end()) or _PUBLIC.search(before) or _PUBLIC.search(value.lower()):
            continue
        if _YEARS.fullmatch(value) or _TIMES.fullmatch(value) or _FREE.match(value):
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
    yield from view.spans(_DAY_OF, "date", 1)
    yield from view.spans(_ORDINAL, "date", 1)
    for found in _SLASHED.finditer(view.text):
        first, last = map(int, found[0].split("/"))
        scored = _SCORED.search(view.before(found.start(), 16)) or (last in _DENOMINATORS and first <= last)
        scored = (
            scored
            or is_duration(view, found)
            or (last in {7, 12} and not BEFORE_DAY.search(view.before(found.start(), 16)))
        )
        if not scored and min(first, last) <= 12:
            yield Span(found.start(), found.end(), "date")


def _towns(view: View, careful: list[Span]) -> Iterator[Span]:
    for found in _PLACED.finditer(view.text):
        town = found[1]
        low = town.lower()
        each = town.split()
        strange = _is_strange_town(each[-1]) and all(
            is_unlisted(word) or plain(word) in _HEADS or plain(word) in name_words.WORD_NAMES for word in each[:-1]
        )
        preposition = found[0].split()[0].lower()
        named = (
            preposition == "from"
            and len(each) == 1
            and not _NO_TOWNS & {plain(town)}
            and not (name_words.is_other(plain(town)) or is_medical(plain(town)))
        )
        if low in name_words.CITIES or named or (strange and preposition in _WHERE):
            yield Span(*found.span(1), "city")
    yield from view.spans(_COUNTY, "city")
    for street in careful:
        town = _AFTER_STREET.match(view.text, street.end) if street.kind == "address" else None
        if town and town[1].lower() not in name_words.PLACES and (town[0][0] == "," or _is_unlisted_town(town[1])):
            yield Span(*town.span(1), "city")


def _is_strange_town(word: str) -> bool:
    """Return True if a word is on no list and isn't surely medical; towns may end like drugs ("Moate")."""
    low = plain(word)
    return is_unlisted(word) or (
        word.istitle()
        and len(low) > 4
        and not name_words.is_ordinary(low)
        and not name_words.is_surely_medical(low)
        and low not in _NO_TOWNS
    )


def _is_unlisted_town(town: str) -> bool:
    """Return True if the line after a street can be a town, and not the next heading or finding of the note."""
    return all(is_unlisted(word) or plain(word) in _HEADS for word in town.split())


def _start_of_site_name(house: re.Match[str]) -> int | None:
    """Return the position where a hospital's name begins; None if the words could describe any hospital."""
    for word in re.finditer(r"\S+", house[1]):
        low = word[0].lower().strip(".,")
        if low in _SAINTS:
            return house.start(1) + word.start()
        ordinary = low in name_words.GENERIC or name_words.is_other(low) or name_words.is_ordinary(low)
        if (not ordinary and is_unlisted(word[0])) or low in _NAMED_AFTER or name_words.is_name(low):
            return house.start(1) + word.start()
    return None


def _shortened(view: View, houses: list[Span]) -> Iterator[Span]:
    """Yield occurrences of the initials of known hospitals, and hospitals' names before a word such as "ICU"."""
    initials = set()
    for house in houses:
        large = [word[0] for word in view.text[house.start : house.end].split() if word[0].isupper()]
        if len(large) > 2:
            initials.add("".join(large))
    if initials:
        pattern = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(sorted(initials))})(?![A-Za-z])")
        yield from view.spans(pattern, "hospital")
    for found in _UNIT_OF.finditer(view.text):
        if all(is_unlisted(word) or word.lower() in name_words.CITIES for word in found[1].split()):
            yield Span(*found.span(1), "hospital")
