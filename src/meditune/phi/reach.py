"""How a person can be reached: phone and fax numbers, pagers, e-mail, web addresses, IP addresses.

Toll-free numbers and the pages of public bodies aren't a person's; they are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from meditune.phi.spans import Span

_BEFORE = 32
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .:]{0,2}\d{1,6})?"
_PHONE = re.compile(
    r"(?<![\w.,/+-])(?:\+?1[-. ]?)?(?:\(\d{3}\)[ ]?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"
    + _EXTENSION
    + r"|(?<![\w.,/])\+\d{1,3}(?:[-. ]?\(?\d{1,5}\)?){2,5}(?!\w)"
)
_SHORT = re.compile(
    r"(?<![\w.,/+-])(?:[2-9]\d{2}[-.]\d{4}(?![\w.-])"
    + _EXTENSION
    + r"|\d{10}(?!\w)|\d{1,2}-?\d{3,5}(?![\w/.%-])|0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}(?!\w))"
)
_CALL = re.compile(
    r"(?<![a-z])(?:(?P<fax>fax|facsimile)|phone|telephone|tel|cell|mobile|pager|pgr|beeper|page|paged at|call|called|"
    r"calling|callback|call back|dial|extension|ext|number|contact|reach(?:ed|able)?|home|work|text|voicemail)"
    r"(?: (?:number|no\.?|him|her|me|us|them|at|on|is|was|line|phone|#|id)){0,3}[ \t.:#(]{0,4}$"
)
_FAX = re.compile(r"(?<![a-z])(?:fax|facsimile)(?: (?:number|no\.?|is|at|to|#)){0,2}[ \t.:#]{0,4}$")
_FREE = re.compile(r"(?:\+?1[-. ]?)?\(?(?:800|888|877|866|855|844|833|822)\)?[-. ]")
_DIRECT = frozenset(["pager", "pgr", "beeper", "extension", "ext", "page"])
_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}[ ]?(?:@|\(at\)|\[at\])[ ]?"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,12}(?![\w@])"
)
_URL = re.compile(
    r"(?<![\w@.])(?:https?://|ftp://|www\.)[^\s<>\"'\])}]{3,500}"
    r"|(?<![\w@.-])(?:[a-z0-9-]{1,63}\.){1,4}(?:com|net|org|io|me|us|info|co|edu|gov|health|uk|de|"
    r"fr)/[^\s<>\"'\])}]{1,300}"
)
_PUBLIC = re.compile(r"(?:https?://|ftp://)?(?:[a-z0-9-]{1,63}\.){1,6}(?:gov|org|edu|int|mil|nhs\.uk|ac\.uk)(?:[/:]|$)")
_OWN = re.compile(
    r"~|@|mychart|portal|/users?/|profile|/(?:patients?|members?|accounts?)/\w*\d|(?:id|user|patient|mrn|name)="
)
"""In an address that may lead to a person's own page even where a public body keeps it."""
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]{6,39}(?![\w:]))(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:])")
_CLOSING = ".,;:!?"


def find(text: str, low: str) -> Iterator[Span]:
    """Ways to reach a person in `text`; `low` is the text in small letters, character for character."""
    yield from _phones(text, low)
    if "@" in text or "(at)" in low or "[at]" in low:
        for found in _EMAIL.finditer(text):
            yield Span(found.start(), found.end(), "email")
    for found in _URL.finditer(low):
        url = found[0].rstrip(_CLOSING)
        if not _PUBLIC.match(url) or _OWN.search(url):
            yield Span(found.start(), found.start() + len(url), "url")
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            if _is_ip(found[0]) and not low[max(0, found.start() - 10) : found.start()].rstrip().endswith(
                ("version", "v.")
            ):
                yield Span(found.start(), found.end(), "ip")


def _phones(text: str, low: str) -> Iterator[Span]:
    for found in _PHONE.finditer(text):
        if not _FREE.match(found[0]) and sum(map(str.isdecimal, found[0])) >= 8:
            fax = _FAX.search(low[max(0, found.start() - _BEFORE) : found.start()])
            yield Span(found.start(), found.end(), "fax" if fax else "phone")
    for found in _SHORT.finditer(text):
        label = _CALL.search(low[max(0, found.start() - _BEFORE) : found.start()])
        if label is None:
            continue
        length = sum(map(str.isdecimal, found[0]))
        if length >= 7 or (length >= 3 and label[0].split()[0].strip(".:#(") in _DIRECT):
            yield Span(found.start(), found.end(), "fax" if label["fax"] else "phone")


def _is_ip(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True
