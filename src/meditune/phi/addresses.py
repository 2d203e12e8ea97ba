"""Street addresses and postal codes of many countries, and towns next to them, searched without accents."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import name_words
from meditune.phi.places import STATE_BEFORE, TOWN, end_before, is_town, town_before
from meditune.phi.spans import Span, View
from meditune.phi.unlisted_names import is_unlisted

_STREETS = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Way|Terrace|Terr?|Circle|Cir|"
    r"Parkway|Pkwy|Highway|Hwy|Square|Sq|Trail|Trl|Loop|Alley|Plaza|Crescent|Cres|Close|Turnpike|Pike|Row|Path|Run|"
    r"Gardens|Heights|Broadway|Parade|Pde|Grove|Mews|Hill|Croft|Quay|Wharf|Esplanade|Concourse|Nagar|Colony|Marg|Layout|"
    r"Enclave|Vihar)"
)
_WORD = r"[A-Z0-9][A-Za-z0-9.'’-]{0,24}"
_UNIT = r"(?:,?[ \n](?:Apt|Apartment|Unit|Suite|Ste|Floor|Fl|Room|Rm|Bldg|#)\.? ?#?[A-Za-z0-9-]{1,6})?"
_ADDRESS = re.compile(
    rf"\d{{1,5}}[A-Za-z]?(?:[-/]\d{{1,4}})?[ ]{{1,2}}(?:[NSEW]\.? |North |South |East |West )?"
    rf"(?:{_WORD}[ ]){{1,4}}?{_STREETS}(?: {_STREETS})?(?![A-Za-z'’])\.?(?: (?:N|S|E|W|NE|NW|SE|SW)(?![\w.]))?{_UNIT}"
    rf"|\d{{1,5}} {_STREETS} of the {_WORD}"
    rf"|\d{{1,3}}(?:st|nd|rd|th) (?:Cross |Main )?(?:Street|St|Avenue|Ave|Road|Rd|Cross|Main)(?![A-Za-z'’])"
    rf"(?: (?:NE|NW|SE|SW)(?!\w))?"
    rf"|\d{{1,5}} (?:[NSEW]\.? )?(?:{_WORD}[ ]){{1,3}}?(?:Apt|Unit|Suite|Ste)\.? ?#?\d[\w-]{{0,4}}(?!\w)"
    rf"|\d{{1,5}} (?!(?:MM|CM|MG|MCG|ML|KG|UNITS?|DAYS?|WEEKS?|MONTHS?|YEARS?|HOURS?)[ .])"
    rf"(?:[A-Z0-9.'-]{{2,20}} ){{1,3}}?{_STREETS.upper()}(?![A-Za-z])\.?(?i:{_UNIT})"
    r"|\d{1,5} (?:Route|Rte\.?|Highway|Hwy|County Road|State Road) \d{1,4}[A-Z]?(?: (?:North|South|East|West|"
    r"[NSEW])(?![a-z]))?"
    + _UNIT
    + r"|\d{1,5} (?:[a-z]{3,20} ){1,2}(?:street|avenue|ave|road|rd|boulevard|blvd|lane)(?![a-z])"
)
_DOOR = re.compile(
    r"(?<![^\W_])(?:Flat|Unit|Apt|Plot|House|Villa|Block|Blk|Lot|Door|Old|New|H\.?)? ?(?:No\.? ?)?(?<=[A-Za-z. ])$"
)
"""What can be before the first number of an address: "Flat ", "H. No. \""""
_AFTER_DOOR = re.compile(
    rf"\d[\w/-]{{0,7}},? (?:(?:Lot |No\.? |New No\.? )?\d[\w/-]{{0,7}},? )?(?:{_WORD}[ ]){{1,4}}?{_STREETS}"
    r"(?![A-Za-z'’])\.?"
    rf"|\d[\w/-]{{0,7}}, (?:The )?(?:{_WORD} ){{0,2}}{_WORD}(?=,)"
    r"|\d[\w/-]{0,7},? Sector \d{1,3}(?:-?[A-Z])?(?!\w)"
)
_PARTICLES = r"(?:(?:de|du|des|la|le|les|del|della|dei|di|da|das|do|dos|y|el|los|las|na|[ld]['’]) ?){0,3}"
_NAME = rf"{_PARTICLES}{_WORD}(?:[ -](?:{_PARTICLES})?[A-Z][\w'’.-]{{0,24}}){{0,3}}"
_TYPES = (
    r"(?:[Rr]ue|[Aa]venue|[Bb]oulevard|[Cc]hemin|[Ii]mpasse|[Aa]llee|[Qq]uai|[Cc]ours|[Pp]lace|[Vv]ia|[Vv]iale|[Pp]iazza|"
    r"[Cc]orso|[Cc]alle|[Aa]venida|[Aa]vda\.?|Av\.|[Pp]aseo|[Cc]arrera|[Cc]arrer|[Rr]ua|[Tt]ravessa|[Ll]argo|[Pp]raca|"
    r"[Uu]l\.|[Uu]lica|[Aa]leja|[Jj]alan|Jl\.|Heol|Ffordd|Strada|Bulevardul)"
)
_TYPE_FIRST = re.compile(
    rf"(?<![^\W_]){_TYPES} (?:{_NAME},? (?:n[o.º°]{{0,2}} ?)?\d{{1,4}}(?:/\d{{1,4}}|[A-Za-z])?(?![\w.])|"
    rf"(?<=rue ){_NAME})"
)
_NUMBER_FIRST = re.compile(rf"\d{{1,4}}(?:[ ]?(?:bis|ter)|[A-Za-z])?,? {_TYPES} {_NAME}")
_COMPOUND = re.compile(
    r"(?<![^\W_])(?:[A-Z][a-z'’-]{1,20}[ -]){0,2}?(?:[A-Z][a-z]{1,24}(?:stras+e|str\.|gasse|weg|platz|allee|damm|ufer|"
    r"gade|gatan|gata|vagen|vej|veien|vegen|straat|laan|gracht|plein|dijk|kade|singel|katu|gasse)|"
    r"[A-Z][a-z]{1,24} (?:utca|ut|ulica|trg|Stras+e|Sokak|Sok\.|Caddesi|Cad\.)) \d{1,4}"
    r"(?:[/-]\d{1,3}| ?[a-z](?![\w]))?(?![\w.])"
)
_LOCALITY = re.compile(
    r"(?<![^\W_])(?:(?:Brgy\.?|Barangay|Purok) [A-Z][a-z]+(?: [A-Z][a-z]+)?|[A-Z][a-z]{2,20} (?:Nagar|Vihar|Puram|Marg)"
    r"(?![a-z])|(?:RR|R\.R\.) ?#?\d{1,3}(?:, (?:Site|Box|Comp) \d{1,4}){1,2}|RD \d{1,2}(?=, [A-Z][a-z]{3}))"
)
_PERHAPS_ABROAD = re.compile(
    r"stras|str\.|gasse|weg |platz|allee|damm |ufer |ga[dt][ea]|v[ae][gj]|veien|straat|laan |gracht|plein|dijk|kade |"
    r"singel|katu|utca| ut |ulica|ul\.|trg|sok|cad|rue |avenue|boulevard|chemin|impasse|quai|cours |place |via|piazza|"
    r"corso|calle|avda|av\.|paseo|carrer|rua |travessa|largo |praca|aleja|jalan|jl\.|heol|ffordd|strada|bulev|brgy|"
    r"barangay|purok|nagar|vihar|puram|marg|r\.?[rd]\.? ?#?\d"
)
_BOX = re.compile(r"(?:p\.? ?o\.? ?box|(?:r\.?r\.?|rural route) ?#? ?\d{1,3},? box) $")
_ZIP = re.compile(r"\d{5}(?:-\d{4})?(?![\w-])")
_ZIP_LABEL = re.compile(
    r"(?<![a-z])(?:zip(?: ?code)?|post(?:al)? ?code|pin(?: ?code)?|cep|plz|eircode)[ \t]?[:#]?(?: is)?[ \t]{0,4}$"
)
_LABELLED_CODE = re.compile(r"(?:\d{5}-\d{3}|\d{6}|\d{3} \d{3}|\d{4,5}(?:-\d{4})?)(?![^\W_]|\.\d)")
_POSTCODE = re.compile(
    r"(?:[A-Z]{1,2}\d{1,2}[A-Z]? \d[ABD-HJLNP-UW-Z]{2}|[ABCEGHJ-NPRSTVXY]\d[A-Z][ -]\d[A-Z]\d|"
    r"[AC-FHKNPRTV-Y]\d[\dW] (?=[A-Z]{0,3}\d)(?=\d{0,3}[A-Z])[A-Z0-9]{4})(?![^\W_])"
)
"""Postal codes of the United Kingdom, Canada and Ireland"""
_PROVINCE_BEFORE = re.compile(r",? \(?(?:AB|BC|MB|NB|NL|NS|NT|NU|ON|PE|PEI|QC|SK|YT)\)?$")
_TOWN_AFTER = re.compile(rf"(?: \(| in | a |, |;)({TOWN})(?![^\W_]|[ ]?[:#/]| [A-Z][a-z])")
_TOWN_BELOW = re.compile(rf",?[ ]?\n[ \t]{{0,8}}({TOWN})(?![^\W_]|[ ]?[:#]| [A-Z][a-z])")
_CODE_AND_TOWN = re.compile(
    r"(?P<code>(?:\d{2}-\d{3}|\d{3} \d{2}|\d{4} [A-Z]{2}|\d{4,5}(?:-\d{3})?)) "
    r"(?P<town>[A-Z][a-z'’]{2,20}(?:[ -](?:am |an der |del? |la |sur )?[A-Z][a-z'’]{1,20}){0,2})(?![a-z])"
)
_CODE_AND_TOWN_AFTER = re.compile(rf"[, \n]{{1,3}}(?:[A-Z]{{1,2}}-)?{_CODE_AND_TOWN.pattern}")
_BEFORE_CODE = re.compile(r"(?:^|[\n,>(;:]|(?<![A-Za-z])[A-Z]{1,2}-| - ) ?$")
_YEAR = re.compile(r"(?:19|20)\d\d(?!\d)")
_TOWN_BEFORE_CODE = r"(?P<town>[A-Z][A-Za-z'’-]{2,20}(?: [A-Z][A-Za-z'’-]{1,20}){0,2})"
_AUSTRALIAN_CODE = re.compile(r"\d{4}(?!\w)")
_BEFORE_AUSTRALIAN = re.compile(rf"{_TOWN_BEFORE_CODE},? (?:NSW|VIC|Vic|QLD|Qld|SA|WA|TAS|Tas|ACT|NT),? $")
_INDIAN_CODE = re.compile(r"\d{6}(?!\w)|\d{3} \d{3}(?![\d ]\d|\w)")
_BEFORE_INDIAN = re.compile(rf"{_TOWN_BEFORE_CODE}(?: ?- ?|,? )$")
_SEGMENT = re.compile(r"(?:^|(?<=[\s(:>]))(?:(?:[A-Z0-9#][\w.'’/#-]*|of|the|an|na|y|de|la|le|del)(?: |$)){1,6}$")
_MEASURED = re.compile(
    r"\d ?(?:mg|mcg|ml|kg|g|mm|cm|units?|%|days?|weeks?|months?|years?|yrs?|[MF])(?![a-z])|\d[./-]\d+[./-]\d"
)
_MAX_SEGMENTS = 4


def find(view: View) -> Iterator[Span]:
    """Yield the spans of addresses, postal codes, and the towns beside them."""
    text = view.text
    if _PERHAPS_ABROAD.search(view.low):
        for pattern in (_TYPE_FIRST, _COMPOUND, _LOCALITY):
            for street in view.spans(pattern, "address"):
                yield street
                yield from _after_street(view, street.end)
    done = 0
    for start, end in view.digits:
        before = text[start - 1] if start else " "
        if before.isalpha() and end - start <= 2:
            begin = view.word_start(start, 3)
            if (code := _POSTCODE.match(text, begin)) and not (begin and text[begin - 1].isalnum()):
                yield Span(begin, code.end(), "zip")
                yield from _before_postcode(view, begin)
        if (before.isalnum() or before in "_.,/$") or (before == "-" and text[start - 2 : start - 1].islower()):
            continue
        if start < done:
            continue  # the number of a flat in an address
        for span in _at_number(view, start, end):
            yield span
            done = span.end if span.kind == "address" and span.start <= start else done


def _at_number(view: View, start: int, end: int) -> Iterator[Span]:
    text = view.text
    length = end - start
    if length > 3 and _ZIP_LABEL.search(view.before(start, 20)) and (code := _LABELLED_CODE.match(text, start)):
        yield Span(start, code.end(), "zip")
        return
    if length == 5 and STATE_BEFORE.search(text, max(0, start - 24), start) and (code := _ZIP.match(text, start)):
        yield Span(start, code.end(), "zip")
        return
    code_and_town = _CODE_AND_TOWN.match(text, start) if 1 < length < 6 and not _ADDRESS.match(text, start) else None
    if code_and_town and (town := _town_of(view, code_and_town)):
        yield Span(*code_and_town.span("code"), "zip")
        yield town
        yield from _segments_before(text, start)
        return
    if length in {3, 4, 6} and (beside := _town_with_code(text, start)):
        town_start, town_end, code_end = beside
        yield Span(start, code_end, "zip")
        yield Span(town_start, town_end, "city")
        yield from _segments_before(text, town_start)
        return
    if start and text[start - 1] == "-":
        return
    if length <= 5:
        door = _DOOR.search(text, max(0, start - 10), start)
        found = _ADDRESS.match(text, start) or _NUMBER_FIRST.match(text, start)
        if door and door[0].strip():
            found = max(
                filter(None, (found, _AFTER_DOOR.match(text, start))), key=lambda each: each.end(), default=None
            )
        if found:
            begin = door.start() if door and door[0].strip() else start
            yield Span(begin, found.end(), "address")
            yield from _after_street(view, found.end())
            return
    if box := _BOX.search(view.before(start, 26)):
        yield Span(start - len(box[0]), end, "address")


def _after_street(view: View, end: int) -> Iterator[Span]:
    """Yield the town, or the postal code and town, directly after a street that ends at `end`."""
    text = view.text
    town, below = _TOWN_AFTER.match(text, end), _TOWN_BELOW.match(text, end)
    if town and is_town(town[1].lower(), sure=True):
        yield Span(*town.span(1), "city")
    elif below and below[1].lower() in name_words.CITIES:
        yield Span(*below.span(1), "city")
    if found := _CODE_AND_TOWN_AFTER.match(text, end):
        yield Span(*found.span("code"), "zip")
        yield Span(*found.span("town"), "city")


def _town_of(view: View, found: re.Match[str]) -> Span | None:
    """Return the span of the town after a postal code, or None if the number is no postal code."""
    start = found.start()
    if not _BEFORE_CODE.search(view.text, max(0, start - 4), start):
        return None
    numbered = any(True for _ in _segments_before(view.text, start))
    if _YEAR.match(found["code"]) and not numbered:
        return None
    words = found["town"].split()
    for count in range(len(words), 0, -1):
        town = " ".join(words[:count])
        if town.lower() in name_words.CITIES and not (count == 1 and name_words.is_other(town.lower())):
            return Span(found.start("town"), found.start("town") + len(town), "city")
    return Span(*found.span("town"), "city") if numbered and is_unlisted(words[0]) else None


def _town_with_code(text: str, start: int) -> tuple[int, int, int] | None:
    """Return the start and end of a town and the end of the postal code after it, as in Australia and India."""
    begin = max(0, start - 48)
    code = _AUSTRALIAN_CODE.match(text, start)
    if code and (found := _BEFORE_AUSTRALIAN.search(text, begin, start)):
        return (*found.span("town"), code.end())
    code = _INDIAN_CODE.match(text, start)
    found = _BEFORE_INDIAN.search(text, begin, start) if code else None
    if code is None or found is None:
        return None
    words = found["town"].split()
    for skipped in range(len(words)):
        town = " ".join(words[skipped:])
        if town.lower() in name_words.CITIES:
            return found.end("town") - len(town), found.end("town"), code.end()
    return None


def _before_postcode(view: View, begin: int) -> Iterator[Span]:
    """Yield the town and the street before a postal code."""
    text = view.text
    end = end_before(text, begin)
    if province := _PROVINCE_BEFORE.search(text, max(0, end - 8), end):
        end = province.start()
    place = end
    for span in town_before(view, end, True):
        if is_town(text[span.start : span.end].lower(), sure=False):
            yield span
            place = span.start
    yield from _segments_before(text, place)


def _segments_before(text: str, end: int) -> Iterator[Span]:
    """Yield the span of up to four segments between commas before a town or postal code, from one with a number on."""
    first, place = None, end
    for _ in range(_MAX_SEGMENTS):
        stop = end_before(text, place)
        if stop == place or stop == 0:
            break
        begin = max(text.rfind(sign, max(0, stop - 50), stop) for sign in ",\n;:") + 1
        segment = _SEGMENT.search(text, begin or max(0, stop - 50), stop)
        if segment is None:
            break
        place = segment.start()
        if any(map(str.isdecimal, segment[0])) and not _MEASURED.search(segment[0]):
            first = place
        if text[place - 1 : place] not in {" ", "\n"} or segment.start() > begin + 1:
            break
    if first is not None:
        yield Span(first, end_before(text, end), "address")
