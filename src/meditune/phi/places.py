"""Towns, and the names of hospitals, employers and schools.

Safe Harbor permits states and countries, so they are ignored. Hospitals aren't on Safe Harbor's list of identifiers,
either, but they are detected, because the name of a small hospital reveals the town.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.config.data_options import Kind
from meditune.phi import name_words
from meditune.phi.spans import Span, View, phrases, word_list
from meditune.phi.unlisted_names import is_unlisted

_STREET_ALONE = re.compile(
    r"(?:[NSEW]\. )?(?:[A-Z][a-z'’]{2,20} ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Parkway|Pkwy|"
    r"Terrace|Drive|Dr)(?![A-Za-z'’])"
)
_ON_STREET = frozenset(("on", "off", "at", "along", "near", "of", "street", "address"))
_STATE = rf"(?:{'|'.join(sorted(phrases('states') | phrases('state_codes')))})"
_STATE_NAMES = frozenset(name.lower() for name in phrases("states"))
_COUNTRY = rf"(?:{'|'.join(sorted(phrases('countries')))}|(?:Co\.|County) [A-Z][a-z]{{3,20}})"
TOWN = r"(?:(?:St|Ft|Mt)\. )?[A-Z][A-Za-z'’-]{1,20}(?: [A-Z][A-Za-z'’-]{1,20}){0,2}"
_TOWN_BEFORE = re.compile(rf"(?<![^\W_]){TOWN},?$")
_LAST_WORD = re.compile(r"(?<![^\W_])[A-Z][^\W\d_]{2,20}$")
_COMMA_COUNTRY = re.compile(rf",[ \n]{{1,2}}{_COUNTRY}(?![\w'’-])")
_COMMA_STATE = re.compile(rf",[ \n]{{1,2}}{_STATE}(?![\w'’-])")
STATE_BEFORE = re.compile(rf"(?<![^\W_]){_STATE},? {{1,2}}$")
_TOWN_AFTER = re.compile(rf"(?: \(| in |, )({TOWN})(?![^\W_]|[ ]?[:#]| [A-Z][a-z])")
_ZIP_AFTER = re.compile(r",?\s{1,2}\d{5}(?!\d)")
_HOME = word_list("home")
_OF_TOWN = (["resident"], ["residents"], ["native"], ["city"], ["town"], ["outside"], ["suburb"])
_LOCATIVES = frozenset(["in", "from", "of", "near", "to", "at", "outside", "around", "city", "town"])
# Words that show that a town follows, at most five words before "in", "from" or similar
_DWELLING = word_list("dwelling")
_NAMED_BY_WHAT_THEY_DO = phrases("services")
"""Ordinary words before these words describe the service ("Asthma Clinic") and don't identify the place"""
_OUR_LADY = re.compile(r"Our (?:Lady|Savior|Saviour)")
_NAMED_AFTER = name_words.WORD_NAMES | name_words.CITIES
_MAX_DISTANCE = 80
_LEADING_TOWN = re.compile(
    r"(?:In|From|Of|At|The|Near|To|Seen|Lives|Moved|Born|Address|City|Street|Avenue|Road|Apt)(?: |$)"
)
_CAPITAL = re.compile(r"[A-Z](?<![^\W_].)[a-z]")
_TOWN_AT = re.compile(r"[A-Z][a-z'’-]{2,20}(?: (?:[A-Z][a-z'’-]{2,20}|Falls|City|Beach)){0,2}")
_HOUSE = (
    r"(?P<house>Hospital|Medical (?:Center|Centre)|Clinic|Infirmary|Health (?:Center|Centre|System)|Healthcare(?: "
    r"Center)?|Nursing (?:Home|Center|Facility)|Rehab(?:ilitation)? (?:Center|Hospital|Facility)|Hospice|Medical Group|"
    r"Surgery Center|Surgical Center|Cancer (?:Center|Institute)|Urgent Care|Assisted Living|Care Home|Health Care "
    r"Center|Medical Associates|Family Practice|Family Medicine|Heart Institute|Eye Institute|Care Center|Dialysis "
    r"Center|Manor|Sanatorium|Polyclinic|(?:Health|Walk-in) Clinic|(?:Road|Street|Lane|Park|Hill|Green) Surgery|"
    r"(?:Orthopa?edics?|Cardiology|Pa?ediatrics?|Dermatology|Oncology|Neurology|Urology|Dental) "
    r"(?:Associates|Partners|Specialists|Group))"
)
_HOUSE_WORDS = frozenset(re.findall(r"[a-z]{4,}", _HOUSE.lower()))
_LEADING = word_list("leading")
_NAME = r"(?:St\.?|Saint|Mt\.?|Mount|[A-Z][A-Za-z'’.&-]{1,24})"
_HOUSE_AT = re.compile(
    rf"{_HOUSE}(?![a-z-]| (?:No|Number|ID)(?![a-z]))"
    rf"(?: of (?:the )?{_NAME}(?: {_NAME}){{0,2}}| for {_NAME}(?: {_NAME}){{0,2}})?"
)
_NAME_BEFORE = re.compile(rf"(?<![^\W_])(?:{_NAME}(?: (?:of|the|and|&|for|de|la))?(?: the)? ){{1,5}}$")


def find(view: View) -> Iterator[Span]:
    """Yield the spans of places."""
    yield from _towns(view)
    for house in _HOUSE_AT.finditer(view.text):
        begin = max(0, house.start() - _MAX_DISTANCE)
        name = _NAME_BEFORE.search(view.text, begin, house.start())
        start = _start_of(view.text, name.start() if name else house.start(), house)
        if start is not None:
            yield Span(start, house.end(), "hospital")
            town = _TOWN_AFTER.match(view.text, house.end())
            if town and is_town(town[1].lower(), sure=town[0][0] != " " or town[0][1] == "("):
                yield Span(*town.span(1), "city")


def _towns(view: View) -> Iterator[Span]:
    text = view.text
    for state in _COMMA_STATE.finditer(text):
        yield from town_before(view, state.start(), bool(_ZIP_AFTER.match(text, state.end())))
    for start, end in view.digits:
        if end - start == 5 and (code := STATE_BEFORE.search(text, max(0, start - 24), start)):
            yield from town_before(view, end_before(text, code.start()), True)
    for found in _CAPITAL.finditer(text):
        before = view.before(found.start(), 44).split() if text[found.start() - 1 : found.start()].isspace() else []
        if not before or before[-1].strip(":") not in _LOCATIVES | _ON_STREET:
            continue
        if before[-1] in _ON_STREET and (street := _STREET_ALONE.match(text, found.start())):
            yield Span(street.start(), street.end(), "address")
            continue
        town = _TOWN_AT.match(text, found.start())
        if town and (
            town[0].lower() in name_words.CITIES
            or (is_residence(before) and is_town(town[0].lower(), not _HOME.isdisjoint(before)))
        ):
            yield Span(town.start(), town.end(), "city")


def end_before(text: str, place: int) -> int:
    """Return the end of the text before `place`, without the spaces, commas and line breaks there."""
    while place and text[place - 1] in " ,\n":
        place -= 1
    return place


def town_before(view: View, end: int, sure: bool) -> Iterator[Span]:
    """Yield the span of the town that ends at `end`; with `sure`, the text after it shows that a town is there."""
    found = _TOWN_BEFORE.search(view.text, max(0, end - 48), end)
    if found is None:
        return
    start = found.start()
    first = _LEADING_TOWN.match(found[0])
    start += first.end() if first else 0
    town = view.text[start:end].lower()
    known = [town.split(" ", skipped)[-1] for skipped in range(3)]
    for skipped, name in enumerate(known):
        if name in name_words.CITIES:
            yield Span(end - len(name), end, "city")
            return
        if skipped >= town.count(" "):
            break
    before = view.before(start, 12).split()
    located = bool(before) and before[-1].strip(":") in _LOCATIVES
    if view.text[end : end + 4].strip(" ,").startswith("ID") and (not located or "," not in view.text[end : end + 2]):
        return
    if (sure or located) and not set(town.split()) & name_words.PLACES and not name_words.is_other(town):
        yield Span(start, end, "city")


def is_residence(before: list[str]) -> bool:
    """Return True if the preceding words end in a phrase such as "lives in" or "came here from"."""
    if before[-1] == "near":
        return True
    if before[-1] == "of":
        return before[-2:-1] in _OF_TOWN
    return any(word.strip(",:()") in _DWELLING for word in before[-6:])


def is_town(low: str, sure: bool) -> bool:
    """Return True if this may be a town. An English word counts only if the context is `sure` to name a place."""
    if low in name_words.CITIES:
        return True
    each = low.split()
    if len(each) == 1 and name_words.is_ordinary(low) and not sure:
        return False
    wrong = (
        name_words.is_other(each[0])
        or each[0] in name_words.GENERIC
        or each[0] in name_words.EPONYMS
        or name_words.PLACES & set(each)
    )
    return not wrong and low not in _STATE_NAMES


def _start_of(text: str, begin: int, house: re.Match[str]) -> int | None:
    """Return the position where a hospital's own name begins; None if the words could describe any hospital."""
    ordinary = house["house"] in _NAMED_BY_WHAT_THEY_DO
    start, telling = begin, False
    for word in re.finditer(r"\S+", text[begin : house.end()]):
        low = word[0].lower().strip(".,")
        if not telling and begin + word.start() == start and low in _LEADING and not _OUR_LADY.match(text, start):
            start = begin + word.end() + 1
        known = low in name_words.GENERIC or low in _LEADING or low in _HOUSE_WORDS
        telling |= not known and not (ordinary and name_words.is_ordinary(low) and low not in _NAMED_AFTER)
    return start if telling else None


_SITE_WORD = (
    r"(?:(?:St|Ste|Mt|Ft|Dr|Med|Ctr|Cntr|Cent|Hosp|Univ|Gen|Mem|Reg|Natl)\."
    r"|[A-Z][A-Za-z0-9&-]*(?:['’][A-Za-z]+|['’](?= ))?"
    r"|\d{1,3}(?:st|nd|rd|th)(?= [A-Za-z]))"
)
_KIND = (
    r"(?:clinics?|hospitals?|offices?|branch|facility|practice|(?:medical |health |cancer |care |surgery |dialysis )?"
    r"(?:center|centre)|campus|location|site|infirmary|hospice|pharmacy|lab|health system|nursing home|rehab|avenue|"
    r"street|ER|ED|ICU)"
)
_SITE = re.compile(
    rf"{_SITE_WORD}(?:(?: (?:(?:of|and|for|at|de|la|del|the) ){{1,2}}| & |[ -]){_SITE_WORD}){{0,6}}"
    rf"(?: {_KIND}(?: {_KIND})?(?![A-Za-z]))?"
)
_START = re.compile(r"(?<=[ (@/])(?:[A-Z](?<![^\W_].)|\d{1,3}(?:st|nd|rd|th) [a-z])")
_ARTICLE = r"(?: ?(?:the|our|his|her|their|a local|local|nearby))? ?$"
_AT = re.compile(
    r"(?<![a-z])(?:"
    + "|".join(map(re.escape, sorted(word_list("care"))))
    + r")(?![a-z])[^.;?!\n]{0,60}(?: at|@)"
    + _ARTICLE
)
_TO = re.compile(
    r"(?<![a-z])(?:admitted|readmitted|transferred|transfer|referred|sent|presented|presents|presenting|brought|came|went|"
    r"taken|rushed|admission|visits?|airlifted|discharged|released|back|return(?:ed|s)?|moved)"
    r"(?: (?:him|her|them|over|in|recently|directly|urgently|back|here))?"
    r"(?: from [^.;,\n]{2,40})? (?:to|into|from)"
    + _ARTICLE
    + r"|(?<![a-z])(?:visited|visits|visiting|attends|attended)"
    + _ARTICLE
    + r"|(?<![a-z])(?:(?:records?|notes?|letter|referral|report|results|transfer|admission|specialist|doctor|physician|"
    r"provider|team|surgeon|staff|discharged?) from)" + _ARTICLE
)
_INTRODUCING = word_list("introducing")  # Words that can be directly before a place of care
_BARE_AT = re.compile(r"(?:(?<![a-z])at|@)" + _ARTICLE)
_IN = re.compile(r"(?<![a-z])(?:in|from|to|at|near|into|@)" + _ARTICLE)
_OUR = re.compile(r"(?<![a-z])our ?$")
_CARE_WORDS = word_list("care_sites")
_FACILITIES = word_list("facilities")
_NAMING = word_list("naming")
"""General words that name a hospital: "City Hospital", "Memorial Hospital\""""
_DIRECTIONS = frozenset(["north", "south", "east", "west"])
_SAINTS = frozenset(["st", "saint", "mt", "mount"])
_WARDS = word_list("wards")
_FOR = re.compile(r"(?<!hospital)(?<!center)(?<!centre)(?<!institute)(?<!clinic) for ", re.IGNORECASE)
_PUBLIC = re.compile(r"national institutes?|nih|u\.?s\.? |american |centers for|food and")
_STUDY_AFTER = re.compile(
    r"['’]?s? (?:trials?|study|studies|guidelines?|criteria|scores?|protocol|recommendations?|levels?)(?![a-z])"
)
_TOWN_AFTER_SITE = re.compile(
    r"(?: \(| in |, | - )(?:downtown )?([A-Z][a-z'’-]{2,20}(?: [A-Z][a-z'’-]{2,20}){0,2}|NYC|LA|SF|DC)"
    r"(?![\w:#-]|\s*[:#]| [A-Z][a-z])"
)


_ORGANIZATION = r"[A-Z][\w'’&-]{1,20}(?: (?:(?:of|and|the|&) )?[A-Z][\w'’&-]{1,20}){0,4}"
_EMPLOYER = re.compile(
    r"(?<![A-Za-z])(?:[Ww]ork(?:s|ed|ing)? (?:at|for)|[Ee]mployed (?:by|at)|[Ee]mployer:?|EMPLOYER:?|[Aa]ttends|"
    rf"(?:[Ss]tudent|[Tt]eacher|[Pp]upil) at|[Ss]chool:) (?:the )?(?P<name>{_ORGANIZATION})"
)
_SCHOOL = re.compile(
    r"(?<![^\W_])(?P<name>(?:[A-Z][a-z'’.]{1,20} ){1,4}?(?:Primary|Elementary|Middle|High|Secondary|Grammar|Public|"
    r"Junior|Nursery) Schools?)(?![a-z])"
)


def find_organizations(view: View) -> Iterator[Span]:
    """Yield employers and schools, and towns before a country."""
    for country in _COMMA_COUNTRY.finditer(view.text):
        word = _LAST_WORD.search(view.text, max(0, country.start() - 24), country.start())
        yield from town_before(view, country.start(), bool(word and is_unlisted(word[0])))
    for pattern in (_EMPLOYER, _SCHOOL):
        for found in pattern.finditer(view.text):
            words = found["name"].split()
            if words != ["NHS"] and _can_be_name(words, after_to=True) and not _PUBLIC.match(found["name"].lower()):
                yield Span(*found.span("name"), "organization")


def find_care_sites(view: View, is_record: bool) -> Iterator[Span]:
    """Yield places of care. In a record of one person, "at" is enough as a cue. Texts in capitals aren't searched."""
    done = 0
    if view.text.isupper():
        return
    for found in _START.finditer(view.text):
        start = found.start()
        words = view.before(start, 16).split()
        if (
            start < done
            or not words
            or not (words[-1].lstrip("(") in _INTRODUCING or (is_record and words[-1].endswith((",", "("))))
        ):
            continue
        site = _SITE.match(view.text, start)
        if site is None or _STUDY_AFTER.match(view.text, site.end()):
            continue
        name = _FOR.split(site[0])[0]
        kind = _kind(name, view.before(start, 110), is_record)
        if kind is None:
            continue
        done = start + len(name)
        head, _, tail = name.rpartition(" ")
        if head and tail.islower():
            if head.lower() in name_words.CITIES:
                yield Span(start, start + len(head), "city")
                continue
            if _OUR.search(view.before(start, 8)) and not head[0].isdecimal():
                done = start + len(head)
        yield Span(start, done, kind)
        town = _TOWN_AFTER_SITE.match(view.text, done)
        if town and (
            town[1].isupper() or (town[1] != "Inc" and is_town(town[1].lower(), sure=not town[0].startswith(" in")))
        ):
            yield Span(*town.span(1), "city")
            done = town.end()


def _kind(site: str, before: str, is_record: bool) -> Kind | None:
    """Return the kind of this place, judged by the words before it; None if it isn't a place of care or a town."""
    words = [word.lower() for word in re.split(r"[ -]", site)]
    if site.lower() in name_words.CITIES or site == "NYC":
        beside = before.endswith((" (", ", ")) and is_record and not name_words.is_name(site.lower())
        return "city" if _IN.search(before) or _OUR.search(before) or beside else None
    if (
        words[0] in _WARDS
        or (site[0].isdecimal() and words[-1] not in _FACILITIES)
        or (site.isupper() and len(words) > 3)
        or _PUBLIC.match(site.lower())
        or site.lower() in name_words.PLACES
        or (words[0] == "dr." and words[-1] not in _FACILITIES)
    ):
        return None
    facility = words[-1] in _FACILITIES or not _CARE_WORDS.isdisjoint(words[1:])
    if _OUR.search(before) and words[-1] in _FACILITIES:
        known = " ".join(words[:-1]) in name_words.CITIES
        return None if _is_service(words) and not known else "hospital"
    after = _AT.search(before) or _TO.search(before)
    if facility and len(words) > 1 and (after or _IN.search(before)) and not _is_service(words):
        return "hospital" if is_record or after else None
    if not after and not (is_record and _BARE_AT.search(before)):
        return None
    return "hospital" if _can_be_name(site.split(), bool(_TO.search(before))) else None


def _is_service(words: list[str]) -> bool:
    """Return True if the words only describe what a clinic does, as in "Asthma Clinic"."""
    return all(
        word not in _NAMING
        and (
            word in _CARE_WORDS
            or word in name_words.GENERIC
            or (name_words.is_other(word) and word not in _DIRECTIONS | name_words.PLACES)
            or name_words.is_surely_medical(word)
        )
        for word in words
    )


def _can_be_name(written: list[str], after_to: bool) -> bool:
    """Return True if these capitalized words can be an institution's name; after "to", common words don't count."""
    for word in written:
        low = word.lower().strip(".")
        if low in _WARDS or low in name_words.GENERIC or name_words.is_other(low) or name_words.is_surely_medical(low):
            continue
        if low in name_words.EPONYMS and len(written) == 1:
            continue
        if word.isupper():
            if len(word) > 2:
                return True
            continue
        known = name_words.is_name(low) or low in name_words.CITIES or low in name_words.WORD_NAMES
        if known or is_unlisted(word) or low in _SAINTS or not after_to:
            return True
    return False
