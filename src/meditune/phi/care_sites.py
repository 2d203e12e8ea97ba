"""Places of care, recognized by the words before them: "seen at Lakeview", "admitted to UXH", "our Dayton clinic".

In a text about one person, a capitalized name after such words is a place of care, whether or not the name says that it
is a hospital. Wards ("admitted to the ICU"), months and words of medicine aren't.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.config.data_options import Kind
from meditune.phi import name_words, places
from meditune.phi.spans import Span, View
from meditune.phi.unlisted_names import is_unlisted

_WORD = (
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
    rf"{_WORD}(?:(?: (?:(?:of|and|for|at|de|la|del|the) ){{1,2}}| & |[ -]){_WORD}){{0,6}}"
    rf"(?: {_KIND}(?: {_KIND})?(?![A-Za-z]))?"
)
_START = re.compile(r"(?<=[ (@/])(?:[A-Z](?<![^\W_].)|\d{1,3}(?:st|nd|rd|th) [a-z])")
_ARTICLE = r"(?: ?(?:the|our|his|her|their|a local|local|nearby))? ?$"
_CARE_TEXT = (
    "seen treated evaluated examined assessed admitted readmitted hospitalized hospitalised diagnosed dx'd dx’d dx "
    "consulted discharged visit visits visited visiting presented presents presenting presentation followed f/u "
    "follow-up followup operated underwent undergoing surgery procedure biopsy appointment appt checked check-up "
    "checkup care managed reviewed discussed delivered born registered scheduled works working worked employed "
    "attends attended record records notes note chart case stay received receives receiving dialysis therapy chemo "
    "chemotherapy treatment session done performed drawn taken scan mri ct labs test tests tested patient pt he she "
    "who male female consultation consult transferred referred provider physician doctor staff team hospitalization "
    "surgeon cardiologist oncologist nurse enrolled being cared seeing monitored screened vaccinated transplanted "
    "stabilized rehab recovering recovered placed implanted started initiated"
)
_AT = re.compile(
    r"(?<![a-z])(?:" + "|".join(map(re.escape, _CARE_TEXT.split())) + r")(?![a-z])[^.;?!\n]{0,60}(?: at|@)" + _ARTICLE
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
_INTRODUCING_TEXT = (
    "at @ to into from in near the our his her their local nearby visited visits visiting visit attends attended"
)
_INTRODUCING = frozenset(_INTRODUCING_TEXT.split())
"""The last word before a place of care"""
_BARE_AT = re.compile(r"(?:(?<![a-z])at|@)" + _ARTICLE)
_IN = re.compile(r"(?<![a-z])(?:in|from|to|at|near|into|@)" + _ARTICLE)
_OUR = re.compile(r"(?<![a-z])our ?$")
_HOUSE_WORDS_TEXT = (
    "hospital hospitals clinic clinics medical med med. center centre ctr cntr ctr. health healthcare infirmary "
    "hospice institute memorial general regional presbyterian methodist mercy oncology cancer children's childrens "
    "university office facility practice branch campus rehab system group associates pharmacy surgery urgent nursing "
    "manor pavilion"
)
_HOUSE_WORDS = frozenset(_HOUSE_WORDS_TEXT.split())
_FACILITIES_TEXT = (
    "hospital hospitals clinic clinics center centre ctr cntr ctr. infirmary hospice institute facility practice "
    "office branch campus pharmacy manor pavilion med medical health healthcare memorial general regional"
)
_FACILITIES = frozenset(_FACILITIES_TEXT.split())
_NAMING_TEXT = (
    "city county general memorial central community regional university royal national veterans children's childrens "
    "women's american base army district military provincial methodist presbyterian mercy valley metro"
)
_NAMING = frozenset(_NAMING_TEXT.split())
"""General words that name a hospital: "City Hospital", "Memorial Hospital\""""
_DIRECTIONS = frozenset(["north", "south", "east", "west"])
_SAINTS = frozenset(["st", "saint", "mt", "mount"])
_WARDS_TEXT = (
    "mom dad mum grandma grandpa icu ccu micu sicu nicu picu cvicu pacu hdu itu ed er a&e or opd osh snf ltac ltach "
    "alf ecf rehab gi gu ob obgyn gyn ent ortho neuro psych peds derm rheum onc heme cath ir it va pcp gp gps md np "
    "pa rn home hospital clinic office baseline risk bedside birth rest night school work present least time day week "
    "month year stage level dose age onset follow ekg ecg eeg emg mri ct cxr us pet tee tte lp bp hr rr bmi egfr a1c "
    "hba1c ldl hdl inr ef lvef map psa tsh cbc bmp cmp room bed floor ward unit step stepdown telemetry observation "
    "triage cpr acls aha acc ada cdc nice who fda nih kdigo gold asco nccn esc idsa uspstf medicare medicaid i ii iii "
    "iv"
)
_WARDS = frozenset(_WARDS_TEXT.split())
_FOR = re.compile(r"(?<!hospital)(?<!center)(?<!centre)(?<!institute)(?<!clinic) for ", re.IGNORECASE)
_PUBLIC = re.compile(r"national institutes?|nih|u\.?s\.? |american |centers for|food and")
_STUDY_AFTER = re.compile(
    r"['’]?s? (?:trials?|study|studies|guidelines?|criteria|scores?|protocol|recommendations?|levels?)(?![a-z])"
)
_TOWN_AFTER = re.compile(
    r"(?: \(| in |, | - )(?:downtown )?([A-Z][a-z'’-]{2,20}(?: [A-Z][a-z'’-]{2,20}){0,2}|NYC|LA|SF|DC)"
    r"(?![\w:#-]|\s*[:#]| [A-Z][a-z])"
)


def find(view: View, is_record: bool) -> Iterator[Span]:
    """Yield places of care; in a record, which names or numbers a person, "at" alone introduces one.

    A text in capitals has none, since every word would look like a name.
    """
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
        town = _TOWN_AFTER.match(view.text, done)
        if town and _is_town(town):
            yield Span(*town.span(1), "city")
            done = town.end()


def _is_town(found: re.Match[str]) -> bool:
    """Return True if the word after a place of care is its town: ", Dayton", "in Dayton", "(NYC)"."""
    if found[1].isupper():
        return True
    return found[1] != "Inc" and places.is_town(found[1].lower(), sure=not found[0].startswith(" in"))


def _kind(site: str, before: str, is_record: bool) -> Kind | None:
    """Return the kind of this place, judged by the words before it; None if it isn't one."""
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
    facility = words[-1] in _FACILITIES or not _HOUSE_WORDS.isdisjoint(words[1:])
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
    """Return True if the words say what a clinic does, such as "Asthma Clinic", and don't name it."""
    return all(
        word not in _NAMING
        and (
            word in _HOUSE_WORDS
            or word in name_words.GENERIC
            or (name_words.is_other(word) and word not in _DIRECTIONS | name_words.PLACES)
            or name_words.is_surely_medical(word)
        )
        for word in words
    )


def _can_be_name(written: list[str], after_to: bool) -> bool:
    """Return True if these capitalized words can be an institution's name; after "to", common words can't."""
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
