"""Names of people, by what stands beside them: titles, degrees, labels, relatives, verbs; then by lists of names.

A name that something vouches for is found again wherever else it stands in the text. Eponyms ("Parkinson's disease",
"Foley catheter") aren't people, unless a title says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import words
from meditune.phi.spans import Span

_CAPITALS = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x250) if chr(code).isupper())
_SMALL = "a-z" + "".join(chr(code) for code in range(0xDF, 0x250) if chr(code).islower())
_LETTER = rf"[{_CAPITALS}{_SMALL}]"
_WORD = (
    rf"(?:[DdL]['’])?(?:al-|el-|Al-|El-)?[{_CAPITALS}]{_LETTER}{{1,24}}(?:['’-]{_LETTER}{{2,24}}){{0,3}}"
    rf"|[OD]['’][{_CAPITALS}]{_LETTER}{{1,24}}"
)
_INITIAL = rf"(?:[{_CAPITALS}]\.(?:[ ]?[{_CAPITALS}]\.)?|[{_CAPITALS}](?![^\W_]|['’]))"
_PARTICLE = (
    r"(?:de la|de los|del|de|della|di|da|dos|do|du|van der|van den|van de|van|von|der|den|ten|ter|bin|ibn|le|la|st\.|y)"
)
_GAP = r"(?:[ \t]{1,2}|[ \t]?\n[ \t]{0,4})"
"""What may stand between two words of a name."""
_PART = rf"(?:(?:{_PARTICLE}[ ]){{0,2}}(?:{_WORD}|{_INITIAL}))"
_NAME = rf"{_PART}(?:{_GAP}{_PART}){{0,3}}"
_NAME_AT = re.compile(_NAME)
_TOKEN = re.compile(rf"(?<![^\W_])(?:{_WORD})(?![^\W_])")
_PIECE = re.compile(rf"{_WORD}|{_INITIAL}")

_TITLE = re.compile(
    r"(?<![^\W_])(?:(?:Dr|Drs|Mr|Mrs|Ms|Mx|Prof|Fr|Rev|Sr|Sra|Mme|DR|DRS|MR|MRS|MS)(?:\.|(?=[ \n]))|Doctor|Doctors|"
    r"Miss|"
    r"MISS|Professor|Mister|Nurse|Father|Rabbi|Sister(?= [A-Z][a-z]+ (?!of))|Pastor|Reverend|Sir|Dame|DOCTOR|Señora?)"
    r"(?:[ \t]{0,2}|[ \t]?\n[ \t]{0,8})(?=[^\W\d_])"
)
_WEAK_TITLES_TEXT = "father sister nurse miss sir fr doctor doctors ms professor mister"
_WEAK_TITLES = frozenset(_WEAK_TITLES_TEXT.split())
_TITLE_LOW = re.compile(
    r"(?<![^\W_])(?:dr|drs|mr|mrs|ms|prof)\.? ([a-z][a-z'-]{1,24})(?: ([a-z][a-z'-]{1,24}))?(?![^\W_])"
)
_DEGREES = (
    r"(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|R\.?N\.?|N\.?P\.?|P\.?A\.?(?:-C)?|ARNP|APRN|CRNA|CNM|LPN|LVN|LICSW|LCSW|MSW|BSN|"
    r"MSN|DNP|"
    r"RPh|Pharm\.?D\.?|PT|DPT|OTR/?L?|OT|RD|LDN|RRT|SLP|DDS|DMD|DPM|MBBS|MPH|FACS|FACP|FRCS|Esq\.?|Jr\.?|Sr\.?)"
)
_BEFORE_DEGREE = re.compile(rf"(?:{_PART}{_GAP}){{0,3}}{_PART}(?=,? ?{_DEGREES}(?![^\W_]))")
_DEGREE = re.compile(rf"(?:,[ ]?| ){_DEGREES}(?![^\W_])")
_STATES_TEXT = "MD PA"
_STATES = frozenset(_STATES_TEXT.split())

_LABELS_TEXT = (
    r"patient(?:['’]s)? name|pt(?:['’]s)? name|name of patient|name|patient|pt|attending(?: physician| md|"
    r" of record)?|surgeons?|"
    r"(?:first |second )?assistants?(?: surgeon)?|anesthesiologist|anesthetist|resident|fellow|intern|r\.?n\.?|nurse|"
    r"provider|pcp|"
    r"primary care (?:physician|provider|doctor)|(?:referring|ordering|admitting|discharging|consulting|primary|family|"
    r"requesting|responsible|treating|supervising) (?:physician|provider|md|doctor|clinician|nurse|surgeon)|"
    r"consultant|dictator|"
    r"cc|c\.c\.|copies to|copy to|attn|attention|emergency contact(?: name)?|next of kin|nok|contact(?: person| name)?|"
    r"(?:health ?care )?proxy|hcp|poa|power of attorney|guardian|spouse|mother|father|husband|wife|son|daughter|"
    r"brother|"
    r"sister|partner|caregiver|caretaker|care giver|interpreter|witness(?:ed)?|physician|doctor|radiologist|"
    r"pathologist|"
    r"technologist|technician|tech|sonographer|therapist|social worker|case manager|clinician|author|scribe|employer|"
    r"last name|"
    r"first name|middle name|maiden name|full name|legal name|preferred name|alias|aka|responsible party|insured|"
    r"subscriber|guarantor|from|to|re|signed|signature|dictated|reviewed|subject|client|member|parent|mom|dad"
)
_LABEL = re.compile(
    rf"(?<![^\W_])(?:{_LABELS_TEXT})(?:\([a-z]\)|"
    rf"\(s\))?[ \t]?(?:\([a-z /-]{{2,24}}\))?[:#=][ \t]{{0,12}}(?:\n[ \t]{{0,8}})?(?=[^\W\d_])"
)
_FAMILY_TEXT = (
    "mother father husband wife son daughter brother sister partner spouse from to re resident fellow intern "
    "nurse contact employer patient pt tech subject client member parent mom dad attention physician doctor "
    "reviewed"
)
_FAMILY = frozenset(_FAMILY_TEXT.split())
"""Labels that are followed by other things just as often: a word after them must not be an ordinary one."""
_BY = re.compile(
    r"(?<![^\W_])(?:(?:electronically |digitally |e-?)?(?:signed|dictated|transcribed|typed|reviewed|approved|"
    r"verified|interpreted|"
    r"read|reported|ordered|requested|performed|prepared|seen|examined|evaluated|entered|written|authenticated|"
    r"attested|"
    r"co-?signed|followed|referred|accompanied|staffed|assessed|taken|obtained|provided|brought in|brought|called|"
    r"paged|"
    r"witnessed|admitted|operated on|treated|managed|done|completed|scribed|recorded|documented|given|administered|"
    r"assisted|edited|finalized|confirmed|cared for|supervised)"
    r"(?: electronically| and signed| and approved| over the phone| today)? by|discussed (?:the (?:case|results?|"
    r"plan|findings) )?with|spoke (?:with|to)|spoken with|"
    r"discussed (?:this|plan|results) with|d/w|notified|contacted|informed|met with|"
    r"seeing|under the care of|in the care of|care of|c/o|on behalf of|named|known as|goes by|called|"
    r"prefers to be called|"
    r"my name is|i am|i['’]m|this is|introduced (?:her|him)self as|signed|attending|per|w/|surgeon|"
    r"followup with|follow-up with|follow up with|f/u with|appointment with|appt with|see|visit with|"
    r"dear|hi|hello|sincerely|regards|thanks|thank you|"
    r"(?:his|her|their|the patient['’]s|pt['’]s|my|patient['’]s) (?:\w{2,12} )?(?:wife|husband|son|daughter|mother|"
    r"father|brother|sister|"
    r"partner|spouse|girlfriend|boyfriend|fiance|fiancee|niece|nephew|aunt|uncle|cousin|friend|neighbor|neighbour|"
    r"granddaughter|grandson|grandmother|grandfather|guardian|proxy|roommate|son-in-law|daughter-in-law|stepson|"
    r"stepdaughter|caregiver|aide|pcp|cardiologist|oncologist|surgeon|neurologist|nephrologist|psychiatrist|therapist|"
    r"urologist|endocrinologist|rheumatologist|pulmonologist|dermatologist|obstetrician|pediatrician|midwife|dentist|"
    r"teacher|boss|"
    r"priest|lawyer|landlord|social worker|case manager|visiting nurse|primary care (?:physician|doctor|provider)|"
    r"doctor|"
    r"physician|nurse)(?: is| was|,|:| \(| named)?|"
    r"(?:wife|husband|son|daughter|mother|father|brother|sister|niece|nephew|pcp|hcp|proxy|cardiologist|oncologist|"
    r"surgeon|"
    r"neurologist|nephrologist|psychiatrist|urologist|rn|nurse|interpreter|translator|pharmacist|attending|fellow|"
    r"intern|resident|"
    r"guardian|caregiver|social worker|case manager|patient|pt)(?:,| \(|:| named| is| was)?)"
    r"(?:,?(?:[ \t]{1,2}|[ \t]?\n[ \t]{0,4})[(-]?|(?<=\())(?=[^\W\d_])"
)
_SURE = re.compile(
    r"(?:(?:electronically |digitally |e-?)?(?:signed|dictated|transcribed|typed|authenticated|attested|scribed) by|"
    r"goes by|"
    r"my name is|prefers to be called|introduced (?:her|him)self as)"
)
"""After these, a name may be an English word."""
_DOUBTFUL = re.compile(
    r"(?:called|known as|named|per|w/|see|seeing|this is|i am|i['’]m|hi|hello|thanks|thank you|regards|dear|signed|"
    r"attending|contacted|informed|patient|pt)[ ,:(]*$"
)
"""After these, only a name on the lists counts, or two words in a row that aren't ordinary."""
_IS_AGED = re.compile(
    rf"(?<![^\W_])({_NAME}),?{_GAP}?(?:(?:is|was) (?:an? |the )?|, ?an? |, )(?=(?:\d{{1,3}}|\[AGE\]|"
    rf"\[\*\*Age)[- ]?(?:years?|yrs?|y\.?o|y/o|yo)"
    r"|(?:very )?(?:pleasant|delightful|right-handed|unfortunate|elderly|lovely))"
)
_LAST_FIRST = re.compile(rf"(?<![^\W_])({_WORD}),[ ]?({_WORD}(?: {_INITIAL}| {_WORD})?)(?![^\W_])")
_SIGNED_LINE = re.compile(rf"^[ \t]*(?:--?|—|/s/|~)?[ \t]*({_NAME})[ \t]*(?:,[^\n]{{0,30}})?$", re.MULTILINE)
_VERBS_TEXT = (
    "is was has had reports reported states stated denies denied presented presents lives lived came will "
    "returned feels felt says said called notes noted did does can could would also went asked agreed agrees "
    "declined remains remained takes took works worked continues continued tolerated understands and who "
    "complains complained wants wanted needs tells told died arrived lost fell weighs smokes drinks requested "
    "expressed verbalized ambulated underwent received improved appears"
)
_VERBS = frozenset(_VERBS_TEXT.split())
_FOLLOWING = re.compile(r"(?:['’]s)?[ \t\n-]{1,3}([A-Za-z]+)")
_POSSESSIVE = re.compile(r"['’][sS]$")
_FIRST = re.compile(rf",[ ]?({_NAME})")
_SPOKEN_OF = re.compile(r"[ \t]([a-z]+)")
_NEXT_PIECE = re.compile(rf"[ \t]{{1,2}}(?:{_PARTICLE}[ ]){{0,2}}({_WORD}|{_INITIAL})")
_ET_AL = re.compile(r",?\s{1,3}et al|\s{1,2}(?:\((?:19|20)\d\d|and colleagues)")


def find(text: str, low: str) -> Iterator[Span]:
    """Names in `text`; `low` is the text in small letters, character for character."""
    certain = [
        *_titled(text, low),
        *_labelled(text, low),
        *_introduced(text, low),
        *_with_degree(text),
        *_placed(text, low),
    ]
    listed = list(_listed(text, low))
    yield from certain
    yield from listed
    yield from _again(text, low, [*certain, *listed])


def _titled(text: str, low: str) -> Iterator[Span]:
    for found in _TITLE.finditer(text):
        weak = low[found.start() : found.end()].strip(" .\n\t") in _WEAK_TITLES
        name = _name_at(text, found.end(), ordinary=not weak, titled=True)
        if name:
            yield name
            yield from _further(text, name.end)
    for found in _TITLE_LOW.finditer(text):
        first = found[1]
        if not words.is_other(first) and (words.is_name(first) or not words.is_ordinary(first)):
            second = found[2] or ""
            end = found.end(2) if second and words.is_name(second) else found.end(1)
            yield Span(found.start(1), end, "name")


def _further(text: str, end: int) -> Iterator[Span]:
    """After "Drs. Smith": "and Jones", "/Jones"."""
    while joint := re.compile(r"(?:, and |,? ?(?:and|&|or) |/|, )(?=[^\W\d_])").match(text, end):
        name = _name_at(text, joint.end(), ordinary=False)
        if not name:
            return
        yield name
        end = name.end


def _labelled(text: str, low: str) -> Iterator[Span]:
    for found in _LABEL.finditer(low):
        label = re.sub(r"\(.*|[:#=\s]+$", "", found[0]).strip()
        loose = label not in _FAMILY
        name = _name_at(text, found.end(), ordinary=loose)
        if name:
            name = _with_first(text, name)
            yield name
            yield from _further(text, name.end)
        elif loose:
            small = re.compile(r"[a-z][a-z'’-]{1,24}(?: [a-z][a-z'’-]{1,24}){0,2}").match(text, found.end())
            if small and any(map(words.is_name, small[0].split())) and not words.is_ordinary(small[0].split()[0]):
                yield Span(small.start(), small.end(), "name")


def _with_first(text: str, last: Span) -> Span:
    """ "Doe, Jane" where `last` is "Doe"; else `last`."""
    following = _FIRST.match(text, last.end)
    if following is None or re.fullmatch(_DEGREES, following[1]):
        return last
    first = _name_at(text, following.start(1), ordinary=False)
    return Span(last.start, first.end, "name") if first else last


def _introduced(text: str, low: str) -> Iterator[Span]:
    for found in _BY.finditer(low):
        name = _name_at(text, found.end(), ordinary=bool(_SURE.match(found[0])))
        if name and _is_likely(text, name, bool(_DOUBTFUL.match(found[0]))):
            yield name
            yield from _further(text, name.end)
        elif found[0].strip() in {"my name is", "named"} or found[0].startswith(
            ("i am", "i'm", "this is", "my name is")
        ):
            small = re.compile(r"[a-z][a-z'’-]{1,24}(?: [a-z][a-z'’-]{1,24})?").match(text, found.end())
            if small and words.is_name(small[0].split()[0]):
                length = len(small[0]) if words.is_name(small[0].split()[-1]) else len(small[0].split()[0])
                yield Span(small.start(), small.start() + length, "name")


def _is_likely(text: str, name: Span, doubtful: bool) -> bool:
    """Neither an abbreviation, nor, where that is doubtful, one lone word that is on no list."""
    pieces = [piece[0] for piece in _PIECE.finditer(text, name.start, name.end)]
    listed = [words.is_name(_bare(piece)) for piece in pieces]
    if any(listed):
        return True
    whole = [piece for piece in pieces if len(_bare(piece)) > 1]
    return not all(map(str.isupper, whole)) and (len(whole) > 1 or not doubtful)


def _with_degree(text: str) -> Iterator[Span]:
    for degree in _DEGREE.finditer(text):
        start = max(0, degree.start() - 60)
        name = re.compile(rf"(?:{_NAME})$").search(text[start : degree.start()])
        if name is None:
            continue
        spoken = name[0]
        low = spoken.lower()
        if degree[0].strip(" ,.") in _STATES and low in words.CITIES:
            continue
        yield from _trimmed(text, start + name.start(), start + name.end())


def _trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    """The last words of text[start:end] that can be a name, if any."""
    pieces = list(_PIECE.finditer(text, start, end))
    kept: list[re.Match[str]] = []
    for piece in reversed(pieces):
        low = _bare(piece[0])
        if words.is_other(low) or (words.is_ordinary(low) and low not in words.WORD_NAMES and len(low) > 2):
            break
        kept.insert(0, piece)
    if (
        kept
        and any(len(piece[0]) > 2 or not piece[0].isupper() for piece in kept)
        and any(len(_bare(piece[0])) > 1 for piece in kept)
    ):
        yield Span(kept[0].start(), kept[-1].end(), "name")


def _placed(text: str, low: str) -> Iterator[Span]:
    for found in _IS_AGED.finditer(text):
        yield from _trimmed(text, *found.span(1))
    for found in _LAST_FIRST.finditer(text):
        last, first = _bare(found[1]), _bare(found[2].split()[0])
        likely = words.is_name(last) or not words.is_ordinary(last)
        if first in words.GIVEN and likely and last not in words.CITIES and not _is_eponym(text, low, found.end()):
            yield Span(found.start(), found.end(), "name")
    for found in _SIGNED_LINE.finditer(text):
        pieces = [_bare(piece[0]) for piece in _PIECE.finditer(found[1])]
        if 2 <= len(pieces) <= 4 and any(map(words.is_name, pieces)) and not any(map(words.is_ordinary, pieces)):
            yield Span(*found.span(1), "name")


def _listed(text: str, low: str) -> Iterator[Span]:
    """A given name beside a surname, or before a verb."""
    for found in _TOKEN.finditer(text):
        first = _bare(found[0])
        sure = first in words.GIVEN
        if not sure and first not in words.WORD_NAMES:
            continue
        end = _end_of_surname(text, low, found.end(), sure)
        if end:
            yield Span(found.start(), end, "name")
        elif sure and first not in words.EPONYMS and first not in words.CITIES and first not in words.SURNAMES:
            following = _SPOKEN_OF.match(text, found.end())
            if following and following[1] in _VERBS:
                yield Span(found.start(), found.end(), "name")


def _end_of_surname(text: str, low: str, place: int, sure: bool) -> int | None:
    """The end of the surname after a given name that ends at `place`, whose being a name is sure or not."""
    end = None
    for piece in _further_pieces(text, place):
        word = _bare(piece[0])
        if len(word) == 1:
            continue
        if not _is_surname(word, sure) or _is_eponym(text, low, piece.end()):
            break
        end = piece.start() + len(_POSSESSIVE.sub("", piece[0]))
    return end


def _further_pieces(text: str, place: int) -> Iterator[re.Match[str]]:
    """The words of a name that goes on at `place`."""
    for _ in range(3):
        piece = _NEXT_PIECE.match(text, place)
        if piece is None:
            return
        whole = _PIECE.match(text, piece.start(1))
        if whole is None:
            return
        yield whole
        place = whole.end()


def _is_surname(low: str, sure: bool) -> bool:
    if low in words.SURNAMES:
        return True
    return sure and not words.is_ordinary(low) and low not in words.EPONYMS


def _again(text: str, low: str, found: list[Span]) -> Iterator[Span]:
    """The words of the found names wherever else they stand."""
    known = {
        piece[0]
        for span in found
        for piece in _PIECE.finditer(text, span.start, span.end)
        if len(_bare(piece[0])) > 2 and not words.is_other(_bare(piece[0]))
    }
    known |= {word.upper() for word in known} | {word.title() for word in known if word.isupper()}
    if not known:
        return
    for token in _TOKEN.finditer(text):
        word = _POSSESSIVE.sub("", token[0])
        if word not in known:
            continue
        # "Dr. Long" makes no "Long" at the start of a sentence a name.
        english = words.is_ordinary(word.lower()) or word.lower() in words.WORD_NAMES
        if english and not _beside_name(text, token, known):
            continue
        if not _is_eponym(text, low, token.start() + len(word)):
            yield Span(token.start(), token.start() + len(word), "name")


def _beside_name(text: str, token: re.Match[str], known: set[str]) -> bool:
    before = re.search(rf"({_WORD})[ ]$", text[max(0, token.start() - 27) : token.start()])
    after = re.compile(rf"[ ]({_WORD})").match(text, token.end())
    return any(side is not None and side[1] in known for side in (before, after))


def _name_at(text: str, place: int, *, ordinary: bool, titled: bool = False) -> Span | None:
    """The name that begins at `place`; with `ordinary` its first word may be an English word, such as Young."""
    found = _NAME_AT.match(text, place)
    if found is None:
        return None
    end = None
    start = place
    count = 0
    for piece in _PIECE.finditer(text, place, found.end()):
        word = _POSSESSIVE.sub("", piece[0])
        low = word.lower().strip(".")
        is_initial = len(low) == 1 or "." in word
        if not is_initial:
            if words.is_other(low) and not (
                titled and low in words.PLACES and not count and "\n" not in text[place : piece.start()]
            ):
                break
            plain = words.is_ordinary(low)
            if low in words.WORD_NAMES:
                plain = not ordinary and not count
            if plain and (count or not ordinary):
                break
            wrapped = "\n" in text[place : piece.start()]
            if count and (text[piece.end() : piece.end() + 1] in {":", "#"} or (wrapped and not words.is_name(low))):
                break
        if (
            end is not None
            and is_initial
            and word[-1] != "."
            and text[piece.end() : piece.end() + 1] not in {" ", "\n", ",", ""}
        ):
            break
        if not is_initial and not titled and low in words.EPONYMS and _is_eponym(text, text, piece.start() + len(word)):
            break
        end = piece.start() + len(word)
        count += 1 if not is_initial else 0
        if word != piece[0]:
            break
    if end is None or not count:
        return None
    return Span(start, end, "name")


def _is_eponym(text: str, low: str, end: int) -> bool:
    """Whether what ends here is no person, since a disease, a test or a device follows, or it is a paper's author."""
    following = _FOLLOWING.match(low, end)
    if following and following[1].lower() in words.EPONYMOUS:
        return True
    return bool(_ET_AL.match(low, end)) or bool(re.compile(r"-(?:[A-Za-z]+)").match(text, end))


def _bare(word: str) -> str:
    return _POSSESSIVE.sub("", word).lower().strip(".")
