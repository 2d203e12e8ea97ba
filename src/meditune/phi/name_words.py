"""Word lists and patterns for recognizing people's names.

The lists (in lowercase) contain words that are names, and words that only look like names. Patterns describe how names
are written: capitals, hyphens, apostrophes, initials and particles. Cues are words directly before a name: "Dr.",
"dictated by", "her husband", "Attending:". `name_at` returns the name that begins at a position in a text.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from meditune.evidence.lexical_features import rarity
from meditune.files import package_lines
from meditune.phi.spans import FIELD_KINDS, Span, View, field_names, folded, word_list

_FOLDER = Path(__file__).parent


def _words(file: str) -> frozenset[str]:
    return frozenset(word for line in package_lines(_FOLDER / file) for word in line.split())


WORD_NAMES = _words("word_names.txt")  # English words that count as names only next to a cue or a name
EPONYMS = _words("eponyms.txt")  # People after whom something is named
EPONYMOUS = _words("eponymous.txt")  # Words that follow an eponym: disease, sign, catheter, test
PLACES = _words("places.txt")  # States, countries, peoples and languages
GENERIC = _words("generic.txt")  # Words in the names of many hospitals
_OTHERS = _words("others.txt") | PLACES
GIVEN = _words("given.txt") - WORD_NAMES - PLACES  # Given names that have no other meaning
SURNAMES = _words("surnames.txt") - WORD_NAMES  # Surnames that are not English words
CITIES = frozenset(folded(line.lower()) for line in package_lines(_FOLDER / "cities.txt"))


def is_name(low: str) -> bool:
    """Return True if a word is on a list of names and is not an English word."""
    return low in GIVEN or low in SURNAMES


@lru_cache(maxsize=65536)
def is_ordinary(low: str) -> bool:
    """Return True if a word alone doesn't count as a name: it is on a list of other words, or common in English."""
    if low in _OTHERS or low in EPONYMOUS:
        return True
    return not is_name(low) and rarity(low) < 1


def is_other(low: str) -> bool:
    """Return True if a word is never a name: a heading, a specialty, a day, a pronoun, a country."""
    return low in _OTHERS


_MEDICAL = re.compile(
    r"(?:hyper|hypo|cardio|neuro|gastro|hepat|electro|echo|ultra|immuno|chemo|radio|osteo|arthro|angio|broncho|laparo|"
    r"endo|retro|peri|trans|poly|micro|anti|inter|intra|thrombo|ha?emo|nephro|lympho|pneumo|cranio|thorac|psych|derma|"
    r"ophthal|oto|sub|post|pre|non|bi(?=l)|staph|strep|pseudo|entero|cyto|spiro|tachy|brady|orth)\w+"
    r"|\w+(?:itis|osis|oma|emia|uria|pathy|plasty|tomy|scopy|graphy|gram|logy|logist|algia|penia|plegia|cillin|mycin|"
    r"floxacin|azole|olol|pril|sartan|statin|mab|nib|vir|pam|zine|caine|[dtp]ine|mine|lide|mide|zide|side|ride|ate|sone|"
    r"lone|rone|done|oxin|arin|phen|ium|ous|[^v]ic|ical|onal|eal|ular|ive|tion|sion|ment|ness|ary|ory|ings?|ed|ly|"
    r"ism|ity|ics|oid|opril|pine|prazole|ac|ase|coccus|ella|trophy|rhea|rrhoea|phagia|pnea|pnoea|cele|xia|sthesia|"
    r"metry|meter|scope|scan|able|ible|less|ful|tis|sis|therapy|therapist|cath|lyte|lytes|cyte|cytes|gen|tor|pathic)"
)  # Typical forms of words for diseases, drugs, findings and procedures
_ALSO_OF_NAMES = re.compile(r"(?:ings?|ed|ly|ary|ory|ity|ate|ment|ac|ella|ine|al|tor|ide|ton)$")


def is_medical(low: str) -> bool:
    """Return True if a word has a form that is typical of diseases, drugs, findings or procedures."""
    return bool(_MEDICAL.fullmatch(low))


def is_surely_medical(low: str) -> bool:
    """Return True if a word has a medical form, and is ordinary English or has no ending of names (as in "Ling")."""
    if not is_medical(low) or low.endswith(("side", "springs")):
        return False
    return is_ordinary(low) or not _ALSO_OF_NAMES.search(low)


_CAPITALS = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x1F00) if chr(code).isupper())
_SMALL = "a-z" + "".join(chr(code) for code in range(0xDF, 0x1F00) if chr(code).islower())
_MARKS = "[\u0300-\u036f]{0,3}"  # Combining marks, as in decomposed Unicode and in Yoruba
_CAPITAL = rf"[{_CAPITALS}]{_MARKS}"
_LETTER = rf"(?:[{_CAPITALS}{_SMALL}]{_MARKS})"
_PARTICLES = (
    r"(?:de la|de los|del|de|della|di|da|dos|do|du|van der|van den|van de|van|von|der|den|ten|ter|bin|ibn|le|la|st\.|y)"
)

WORD = (
    rf"(?:[DdLO]['’])?(?:al-|el-|van-|von-|ben-)?{_CAPITAL}{_LETTER}{{1,24}}"
    rf"(?:['’-](?:[DO]['’])?{_LETTER}{{2,24}}){{0,3}}"
)
INITIAL = rf"{_CAPITAL}\.(?:[ ]?{_CAPITAL}\.)?|{_CAPITAL}(?![^\W_]|['’.])"
TOKEN = re.compile(
    rf"[{_CAPITALS}](?<![^\W_].){_MARKS}(?:{_LETTER}{{1,24}}|"
    rf"['’]{_CAPITAL}{_LETTER}{{1,24}})(?:['’-](?:[DO]['’])?{_LETTER}{{2,24}}){{0,3}}(?![^\W_])"
)  # A word of a name
PIECE = re.compile(rf"{WORD}|{INITIAL}")  # A word of a name, or an initial
_FIELDS = word_list("other_fields").union(*map(field_names, FIELD_KINDS))


def _label(fields: frozenset[str]) -> str:
    names = "|".join(sorted(fields, key=len, reverse=True))
    return rf"(?=[^\W\d_][^\n:=]{{1,20}}[:=])(?i:{names})s?(?: (?:no\.?|number|name|code))?[ ]?[:=]"


LABEL = _label(_FIELDS)
"""The label of a field, which can follow a name in the same line: "Forename:\""""
_NO_LABEL = rf"(?!{_label(_FIELDS - WORD_NAMES)})"
"""Excludes labels, but not those that are also surnames: "Dr. Jane Ward: How are you?\""""
FIRST = re.compile(rf"{_NO_LABEL}(?:{_PARTICLES}[ ]){{0,2}}({WORD}|{INITIAL})")
NEXT = re.compile(
    rf"(?:[ \t]{{1,2}}|[ \t]?\n[ \t]{{0,8}}|(?<=\.)){_NO_LABEL}(?:{_PARTICLES}[ ]){{0,2}}({WORD}|{INITIAL})"
)
"""The next part of a name, including the space before it"""
BEFORE = re.compile(rf"(?<![^\W_])(?:{_PARTICLES}[ ]|(?:al|el|van|von|ben)-|(?:{INITIAL})[ ]?){{1,3}}$")
"""Particles and initials directly before a word"""
DEGREE = re.compile(
    r"(?:,[ ]?| )(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|R\.?N\.?|N\.?P\.?|P\.?A\.?(?:-C)?|ARNP|APRN|CRNA|CNM|LPN|LVN|LICSW|"
    r"LCSW|MSW|BSN|MSN|DNP|RPh|Pharm\.?D\.?|PT|DPT|OTR/?L?|OT|RD|LDN|RRT|SLP|DDS|DMD|DPM|MBBS|MPH|FACS|FACP|FRCS|CCC|"
    r"CNS|MBChB|MRCP|MRCGP|FRCA|FRACP|FRACGP|RGN|RMN|PGY-?\d|Esq\.?|Jr\.?|Sr\.?)(?![^\W_])"
)
_POSSESSIVE = re.compile(r"['’][sS]$")
_MARK = re.compile("[\u0300-\u036f]")


def stem(word: str) -> str:
    """Return the word without a possessive ending."""
    return _POSSESSIVE.sub("", word)


@lru_cache(1 << 14)
def plain(word: str) -> str:
    """Return the word in the form of the lists: in lowercase, without possessive ending or full stop.

    The lists have no accents. Words that aren't names on the lists keep them, in composed form.
    """
    low = unicodedata.normalize("NFC", stem(word).lower().strip("."))
    if low.isascii():
        return low
    bare = _MARK.sub("", folded(low))
    return bare if bare in ON_LISTS or bare in CITIES else low


def is_titled(word: str) -> bool:
    """Return True if exactly the first letter of each part is a capital; combining marks are ignored."""
    return _MARK.sub("", word).istitle()


class Cue(IntEnum):
    """How certain it is that a name follows; `cues.txt` explains the levels."""

    DOUBTFUL = 1
    FIELD = 2
    LIKELY = 3
    SURE = 4
    TITLE = 5


_AFTER_COLON = {"label": Cue.SURE, "field": Cue.FIELD}
_MAX_WORDS = 4
_MAX_DISTANCE = 44
_BETWEEN = " \t\n\r:(,#=-*_\"'“.;"
_ABBREVIATIONS = frozenset({"MS", "MR", "FR", "SR", "PT", "RN", "MD"})
"""Titles that in capitals often mean a disease, a scan or a degree, unless a full stop and capitals follow"""


def _read() -> tuple[dict[str, Cue], dict[str, Cue]]:
    plain: dict[str, Cue] = {}
    labels: dict[str, Cue] = {}
    for line in package_lines(_FOLDER / "cues.txt"):
        kind, _, phrases = line.partition(": ")
        cues, cue = (labels, _AFTER_COLON[kind]) if kind in _AFTER_COLON else (plain, Cue[kind.upper()])
        for phrase in phrases.split(" | "):
            cues[phrase] = max(cue, cues.get(phrase, cue))
    return plain, labels


_PLAIN, _LABELS = _read()


def before(view: View, place: int) -> Cue | None:
    """Return the level of the longest cue that ends directly before `place`, or None."""
    text, low = view.text, view.low
    start = max(0, place - _MAX_DISTANCE)
    piece = low[start:place]
    head = piece.rstrip(_BETWEEN)
    between = piece[len(head) :]
    if not between or not head.strip():
        return None
    words = [word.strip('(,:;["“') for word in head.split()[-_MAX_WORDS:]]
    known = _LABELS if ":" in between or "=" in between or "#" in between else _PLAIN
    is_patient = words[-1:] == ["pt"] and text[start + len(head) - 1] == "t"  # "Pt. Okoro", but not "seen by PT. Foley"
    ends_sentence = ("." in between and not is_patient) or ";" in between
    for number in range(len(words), 0, -1):
        phrase = " ".join(words[-number:])
        cue = known.get(phrase) or (known.get(phrase.rpartition("/")[2]) if number == 1 else None)
        if cue is None and known is _LABELS:
            # A phrase before a colon can be a cue that is listed without a colon.
            plain_cue = _PLAIN.get(phrase)
            weak = plain_cue is not None and plain_cue < Cue.LIKELY
            cue = plain_cue if plain_cue in (None, Cue.TITLE) else None if weak else Cue.FIELD
        if cue is None:
            continue
        if cue is not Cue.TITLE:
            apart = ends_sentence or (cue is Cue.DOUBTFUL and "\n" in between)
            return None if apart and known is _PLAIN else cue
        written = text[start + len(head) - len(phrase) : start + len(head)]
        if written in _ABBREVIATIONS and text[: start + len(head) - len(phrase)].endswith(", ") and "." in between:
            return None  # A state or degree: "Yazoo City, MS. CC: cough"
        if written in _ABBREVIATIONS and not ("." in between and text[place : place + 2].isupper()):
            return None if "." in between else Cue.DOUBTFUL
        return cue
    if words[-1] != "by" or ends_sentence:
        return None
    return Cue.DOUBTFUL if known is _PLAIN else Cue.LIKELY


ON_LISTS = EPONYMS | GIVEN | SURNAMES  # All names on the lists
ALSO_NAMES = WORD_NAMES | EPONYMS  # Words that are also names, and eponyms

_READING_PARTICLES = word_list("particles")
_READING_CAPITALS = re.compile(r"[A-Z]{2}")
_CLOSES = re.compile(r"[ \t]*(?:[.,;)(]|\n|$)")
_MONTHS = frozenset({"april", "may", "june", "august"})
_ABBREVIATION = re.compile(r"[a-z][A-Z]{2}|(?<![A-Za-z])[A-Z]{2,}-|-[a-z]+[A-Z]")
_PROFESSION = re.compile(r"\w+(?:ologist|iatrist|ician)s?")
_FOLLOWING = re.compile(rf"(?:['’]s?)?(?:[ \t-]{{1,2}}|[ \t]?\n[ \t]?(?=[a-z]))(?!{LABEL})([A-Za-z]+)")
_ET_AL = re.compile(r",?\s{1,3}et al|\s{1,2}(?:\((?:19|20)\d\d|and colleagues)")


def name_at(view: View, place: int, cue: Cue) -> Span | None:
    """Return the span of the name that begins at `place`, or None if the text isn't a name after this cue."""
    pieces: list[str] = []
    end = place
    piece = FIRST.match(view.text, place)
    while piece and len(pieces) < _MAX_WORDS:
        written = piece[1]
        if not _continues_name(view, pieces, written, piece, cue):
            break
        pieces.append(plain(written))
        end = piece.start(1) + len(stem(written))
        if stem(written) != written:
            break
        piece = NEXT.match(view.text, end)
    full_words = [piece for piece in pieces if len(piece) > 1 and "." not in piece]
    if not full_words or not _is_enough(view.text[place:end], full_words, cue):
        return None
    return Span(place, end, "name")


def _continues_name(view: View, pieces: list[str], written: str, piece: re.Match[str], cue: Cue) -> bool:
    """Return True if the next word belongs to the name whose words so far are in `pieces`."""
    low = plain(written)
    end = piece.start(1) + len(stem(written))
    following = view.text[end : end + 1]
    if len(low) == 1 or "." in low:
        return written.endswith(".") or following in {" ", "\n", ",", ""}
    first = not any(len(each) > 1 for each in pieces)
    surname = (bool(pieces) and low in SURNAMES) or (low in PLACES and first and _name_follows(view, end))
    if is_other(low) and low not in _MONTHS and not surname and not (cue is Cue.TITLE and first and low in PLACES):
        return False
    wrapped = "\n" in piece[0] and not is_name(low)
    if pieces and (wrapped or (following in {":", "#"} and "\n" in piece[0])):
        return False
    if low in _MONTHS:
        return first and _name_follows(view, end)
    if cue is not Cue.TITLE and (_PROFESSION.fullmatch(low) or (low in ON_LISTS and is_eponym(view, end))):
        return False
    if cue is Cue.FIELD and first and low in EPONYMS and low not in SURNAMES and _CLOSES.match(view.text, end):
        return False  # "Mother: Alzheimer."
    if surname or not is_ordinary(low) or low in _READING_PARTICLES:
        return True
    if first:
        if cue is Cue.TITLE or (cue is Cue.SURE and (low in ALSO_NAMES or _name_follows(view, end))):
            return True
        if is_titled(written) and _surname_follows(view, end):
            return True
        return low in ALSO_NAMES and (bool(pieces) or _is_name_by_context(view, written, end, cue))
    if low in WORD_NAMES or low in EPONYMS:
        return pieces[-1] not in SURNAMES or (len(pieces) == 1 and pieces[-1] in GIVEN)
    if cue >= Cue.SURE and len(pieces[-1]) == 1:
        return True
    return cue >= Cue.FIELD and len(pieces) == 1 and pieces[-1] not in SURNAMES and is_titled(written)


def _is_name_by_context(view: View, written: str, end: int, cue: Cue) -> bool:
    """Return True if a capitalized English word is a name, judged by what follows: a name, or no capitalized word."""
    if NEXT.match(view.text, end):
        return _name_follows(view, end)
    if cue is Cue.FIELD:
        return bool(_CLOSES.match(view.text, end)) and not written.isupper()
    return cue is Cue.LIKELY and not written.isupper()


def _name_follows(view: View, place: int) -> bool:
    piece = NEXT.match(view.text, place)
    if piece is None:
        return False
    low = plain(piece[1])
    return len(low) > 1 and (is_name(low) or not is_ordinary(low) or low in ALSO_NAMES)


def _surname_follows(view: View, place: int) -> bool:
    """Return True if a listed surname that isn't an eponym follows, as in "Blessing Okafor"."""
    piece = NEXT.match(view.text, place)
    if piece is None or "\n" in piece[0] or plain(piece[1]) in EPONYMS:
        return False
    return plain(piece[1]) in SURNAMES and not is_eponym(view, piece.start(1) + len(stem(piece[1])))


def _is_enough(written: str, pieces: list[str], cue: Cue) -> bool:
    """Return True unless the text may be only an abbreviation or, after a doubtful cue, an unlisted word."""
    if cue >= Cue.SURE:
        return True
    listed = any(map(is_name, pieces))
    if _ABBREVIATION.search(written) and not listed:
        return False
    if written.isupper() and len(pieces) == 1:
        return listed and cue >= Cue.FIELD and len(written) > 5
    return listed or cue >= Cue.FIELD or (len(pieces) > 1 and not _READING_CAPITALS.search(written))


def is_eponym(view: View, end: int) -> bool:
    """Return True if the name up to `end` is an eponym (a disease, test or device follows) or a paper's author."""
    place = end
    for _ in range(_MAX_WORDS):
        following = _FOLLOWING.match(view.text, place)
        if following is None:
            break
        if following[1].lower() in EPONYMOUS:
            return True
        if not following[1][0].isupper():
            break
        place = following.end()
    return bool(_ET_AL.match(view.low, end))
