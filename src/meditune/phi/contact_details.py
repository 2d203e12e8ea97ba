"""Contact details of people: phone, fax and pager numbers, e-mail, web and IP addresses.

Toll-free numbers and pages of public bodies don't belong to a person and are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from meditune.config.data_options import Kind
from meditune.phi.spans import Span, View, word_list

_BEFORE = 32
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .:]{0,2}\d{1,6})?"
_PHONE = re.compile(
    r"(?:1[-. ]?)?(?:\(?\d{3}\)[-. ]?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"
    + _EXTENSION
    + r"|\d{3}/\d{3}/\d{4}(?![\w/-])|\d\d\)[ ]?\d{4,5}[- ]\d{4}(?![\w-])"
)
_NATIONAL = re.compile(
    r"\(0\d{1,4}\)[ ]?\d{3,4}[ -]?\d{3,4}(?!\w)"
    r"|0\d{1,4}[ -]\d{3,4}[ -]\d{3,4}(?:[ -]\d{2})?(?![\w-]|[.,/]\d)|0\d{2}(?:[ .-]\d\d){4}(?![\w-]|[.,/]\d)"
    r"|0\d(?:[ .]\d\d){4}(?![\w-]|[.,/]\d)|0\d{3,4} \d{5,6}(?![\w-]|[.,/]\d)|0\d{2,3}-\d{6,8}(?![\w-]|[.,/]\d)"
)
"""National formats with a trunk prefix: "(091) 555 208", "0412 555 607", "01 23 45 67 89", "01632 960417\""""
_ABROAD = re.compile(r"\+\d{1,3}(?:[-. ]?\(?\d{1,5}\)?){2,5}(?!\w)")
_SHORT = re.compile(
    r"[2-9]\d{2}[-.]\d{4}(?![\w.-])" + _EXTENSION + r"|0?\d{10}(?!\w)|0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}(?!\w)"
    r"|[6-9]\d\d(?:[ .]\d\d){3}(?![\w-])|[2-9]\d{3}[ -]\d{4}(?![\w-]|\.\d)|[2-9]\d{7}(?!\w)"
    r"|\d{1,2}[- ]?\d{3,5}(?![\w/%-]|\.\d)|\d{3}(?![\w/%-]|\.\d)"
)
_CALL = re.compile(
    r"(?<![a-z])(?:(?P<fax>fax|facsimile)|phone|telephone|tel|t/c|ph|hp|handphone|whatsapp|cell|"
    r"mob(?:ile)?|cellphone|gsm|sms|viber|telegram|signal|landline|hotline|switchboard|appeals|quer(?:y|ies)|enquiries|"
    r"tfno|tlf|cel(?:ular)?|m[oó]vil|handy|telefon|tél|pager|pgr|beeper|bleep|blp|dect|vocera|spectralink|"
    r"speed dial|page|paged at|call|ring|rang|called|calling|callback|call back|"
    r"dial|extension|ext|number|contact|reach(?:ed|able)?|home|work|text|voicemail)"
    r"(?: (?:number|num|no\.?|him|her|me|us|them|at|on|is|was|line|phone|#|id)){0,3}[ \t.:#(]{0,4}$"
)
_FAX = re.compile(r"(?<![a-z])(?:fax|facsimile)(?: (?:number|no\.?|is|at|to|#)){0,2}[ \t.:#]{0,4}$")
_FREE = re.compile(r"(?:\+?1[-. ]?)?\(?(?:800|888|877|866|855|844|833|822)\)?[-. ]")
_DIRECT = frozenset(
    ["pager", "pgr", "beeper", "extension", "ext", "page", "bleep", "blp", "dect", "vocera", "spectralink", "speed"]
)
_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}[ ]?(?:@|\(at\)|\[at\])[ ]?"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,12}(?![\w@])"
)
_URL = re.compile(
    r"(?<![\w@.])(?:https?://|ftp://|www\.)[^\s<>\"'\])}]{3,500}"
    r"|(?<![\w@.-])(?:[a-z0-9-]{1,63}\.){1,4}(?:com|net|org|io|me|us|info|co|edu|gov|health|uk|de|"
    r"fr)/[^\s<>\"'\])}]{1,300}"
)
_PUBLIC = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1)(?![\w.])"
    r"|(?:https?://|ftp://)?(?:[a-z0-9-]{1,63}\.){1,6}(?:gov|org|edu|int|mil|nhs\.uk|ac\.uk)(?:[/:]|$)|https?://snomed\."
)
_OWN = re.compile(
    r"~|@|mychart|portal|/users?/|profile|/(?:patients?|members?|accounts?)/\w*\d|(?:id|user|patient|mrn|name)="
)  # Parts of a web address that suggest a person's own page, even on a public body's site
_ACCOUNT = re.compile(r"mychart|portal|/(?:users?|patients?|members?|accounts?)/\w*\d")  # Surely a person's own page
_IPV4 = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]{6,39}(?![\w:]))(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:])")
_PERHAPS_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:")
_NO_IP = ("version", "v.", "(ec", " ec")
_FREE_MAIL = re.compile(
    r"@ ?(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|live|msn|icloud|me|mac|aol|gmx|web|proton|protonmail|"
    r"rediffmail|qq|163|mail)\.[a-z.]{2,6}$"
)
_DOMAINS = word_list("domains")
_CLOSING = ".,;:!?"


def find(view: View) -> Iterator[Span]:
    """Yield the spans of people's contact details."""
    yield from _phones(view)
    if view.has("@", "(at)", "[at]"):
        yield from view.spans(_EMAIL, "email")
    if view.has("://", "www.", *_DOMAINS):
        for found in _URL.finditer(view.low):
            url = found[0].rstrip(_CLOSING)
            if not _PUBLIC.match(url) or _OWN.search(url):
                yield Span(found.start(), found.start() + len(url), "url")
    yield from _addresses(view)


def is_own(view: View, span: Span) -> bool:
    """Return True if the form of an e-mail or web address shows that it belongs to one person."""
    written = view.low[span.start : span.end]
    if span.kind == "email":
        return bool(_FREE_MAIL.search(written))
    return span.kind == "url" and bool(_ACCOUNT.search(written))


def _addresses(view: View) -> Iterator[Span]:
    for start, end in view.digits:
        if end - start <= 3 and view.text[end : end + 1] == "." and view.text[start - 1 : start] not in {".", "-"}:
            found = _IPV4.match(view.text, start)
            if found and _is_ip(found[0]) and not view.before(start, 10).rstrip().endswith(_NO_IP):
                yield Span(start, found.end(), "ip")
    if _PERHAPS_IPV6.search(view.text):
        for found in _IPV6.finditer(view.text):
            if _is_ip(found[0]):
                yield Span(found.start(), found.end(), "ip")


def _phones(view: View) -> Iterator[Span]:
    text, done = view.text, 0
    for start, end in view.digits:
        if start < done:
            continue
        begin = start - 1 if text[start - 1 : start] in {"(", "+"} and start else start
        before = text[begin - 1 : begin] if begin else ""
        if before and (
            before.isalnum() or before in "_./+-" or (before == "," and text[begin - 2 : begin - 1].isdecimal())
        ):
            continue
        found = _ABROAD.match(text, begin) or (_PHONE.match(text, start) if end - start <= 3 else None)
        if found is None and text[start] == "0":
            found = _NATIONAL.match(text, begin)
        if found and sum(map(str.isdecimal, found[0])) >= 8:
            done = found.end()
            if not _FREE.match(text, start):
                kind: Kind = "fax" if _FAX.search(view.before(begin, _BEFORE)) else "phone"
                yield Span(begin, done, kind)
            continue
        short = _SHORT.match(text, start)
        label = _CALL.search(view.before(begin, _BEFORE)) if short else None
        if short and label:
            length = sum(map(str.isdecimal, short[0]))
            first = re.split(r"\W", label[0])[0]
            if length >= 7 or (first in _DIRECT and (length > 3 or first != "page")):
                done = short.end()
                yield Span(start, done, "fax" if label["fax"] else "phone")


def _is_ip(value: str) -> bool:
    """Return True if this is the address of a machine, not "any address" (0.0.0.0) or "this machine" (127.0.0.1)."""
    try:
        address = ip_address(value)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)
