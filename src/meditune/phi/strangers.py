"""Names that no word vouches for, in a text that is one person's: by the lists, and by not being English or medical.

Two capitalized words in a row that are neither ordinary nor shaped like a disease or a drug are somebody's name; so is
one that the lists of names hold, or that stands beside a word for a person ("phlebotomist", "agent:") or a verb of
people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from meditune.phi import words
from meditune.phi.reading import ALSO_NAMES, is_eponym
from meditune.phi.shapes import NEXT, TOKEN, plain, stem
from meditune.phi.spans import Span
from meditune.phi.view import View

_MEDICAL = re.compile(
    r"(?:hyper|hypo|cardio|neuro|gastro|hepat|electro|echo|ultra|immuno|chemo|radio|osteo|arthro|angio|broncho|laparo|"
    r"endo|retro|peri|trans|poly|micro|anti|inter|intra|thrombo|ha?emo|nephro|lympho|pneumo|cranio|thorac|psych|derma|"
    r"ophthal|oto|sub|post|pre|non|bi(?=l)|staph|strep|pseudo|entero|cyto|spiro|tachy|brady|orth)\w+"
    r"|\w+(?:itis|osis|oma|emia|uria|pathy|plasty|tomy|scopy|graphy|gram|logy|logist|algia|penia|plegia|cillin|mycin|"
    r"floxacin|azole|olol|pril|sartan|statin|mab|nib|vir|pam|zine|caine|[dtp]ine|mine|lide|mide|zide|side|ride|ate|sone|"
    r"lone|rone|done|oxin|arin|phen|ium|ous|[^v]ic|ical|onal|eal|ular|ive|tion|sion|ment|ness|ary|ory|ings?|ed|ly|"
    r"ism|ity|ics|oid|opril|pine|prazole|ac|ase|coccus|ella|trophy|rhea|rrhoea|phagia|pnea|pnoea|cele|xia|sthesia|"
    r"metry|meter|scope|scan|able|ible|less|ful|tis|sis|therapy|therapist|cath|lyte|lytes|cyte|cytes|gen|tor|pathic)"
)
"""How diseases, drugs, findings and procedures are written."""
_PERSONS = re.compile(
    r"(?<![a-z])(?:[a-z]{2,14}(?:ist|ian|tor|yer|ner|ker|der|mer|ger|ser|ver|wife|man|woman|mate|agent)|nurse|"
    r"midwife|aunt(?:ie)?|uncle|examiner|employee|agent|sister|brother|carer|tenant|parent|foster|master|mister|"
    r"lady|boss|clerk|aide|medic|tech|scribe|coach|judge|officer|sergeant|lieutenant|captain|colonel|bishop|imam|"
    r"sister-in-law|brother-in-law|attorney|solicitor|registrar|warden|in-law|named|signed|by|per|"
    r"yours(?: \w+)?)[ \t\n,:(]{1,4}$"
)
"""Words for a person, by their endings, right before a name."""
_SENTENCE = re.compile(r"(?:\A|[.!?:\n]|[-*•#|\t])[ \t\"“(]*$")
_DOSED = re.compile(r" ?\(?\d|['’]s? (?:sign|test|disease|syndrome)|-\w|\d")
_ACTING = re.compile(
    r"(?:['’]s)?,? (?:(?:is|was|has|had|will|did|can|could|would|who|and I|kindly|also|then)(?!\w)|"
    r"[a-z]{3,}(?:ed|es|ts|ks|ns|ys)(?!\w))"
)
_WRITTEN = re.compile(r"^(?:Ma?c|D[eiu]|L[ae]|Van|Fitz|[ODL]['’])(?=[A-Z])")
"""What a name may have a second capital after."""
_ENDS = re.compile(r"[ \t]*(?:[,;.(\n]|$)|[ \t]{2,}")
_MONTHS = frozenset({"april", "may", "june"})
_SAYING = re.compile(
    r",? (?:says|said|states|stated|reports|reported|denies|denied|thinks|wants|feels|asked|asks|told|lives|lived|"
    r"called|calls|rang|phoned|agrees|agreed|declined|understands|visits|slept|walked|ate|sees|works)(?![a-z])"
)
"""What people do, and drugs and tests don't."""
_INITIALED = re.compile(r"(?<![^\W_])(?:[A-Z]\.[ ]?|[A-Z] ){1,3}$")
_INITIAL_AFTER = re.compile(r", ?[A-Z]\.(?:[ ]?[A-Z]\.)?(?![A-Za-z])")
_HEADS_TEXT = (
    "st saint mt mount north south east west new old fort port lake upper lower grand great hospital clinic street "
    "road avenue lane drive center centre house home ward unit medical health memorial general university college "
    "county city town school department service services"
)
_HEADS = frozenset(_HEADS_TEXT.split())
"""Words of places and of institutions."""


def find(view: View) -> Iterator[Span]:
    """Names."""
    done = 0
    for token in TOKEN.finditer(view.text):
        if token.start() < done:
            continue
        found = _pair(view, token) or _single(view, token)
        if found:
            yield found
            done = found.end


@lru_cache(1 << 14)
def is_strange(word: str) -> bool:
    """Whether a word, as written, is neither English nor medical nor a place's, nor on a list."""
    low = plain(word)
    return (
        len(low) > 2
        and not words.is_ordinary(low)
        and low not in words.EPONYMS
        and low not in words.CITIES
        and low not in words.GENERIC
        and low not in _HEADS
        and (word.isupper() or all(_WRITTEN.sub("", part).istitle() for part in stem(word).split("-")))
        and not _MEDICAL.fullmatch(low)
    )


def is_part_of_place(word: str) -> bool:
    """Whether a town's name may begin with the word: "Old", "Fort", or one that is strange."""
    return is_strange(word) or plain(word) in _HEADS or plain(word) in words.WORD_NAMES


def is_perhaps_place(word: str) -> bool:
    """Whether an English word may be a town's name: no specialty, ward, drug or eponym."""
    low = plain(word)
    return not (
        words.is_other(low)
        or low in words.GENERIC
        or low in words.EPONYMS
        or low in words.EPONYMOUS
        or low in _HEADS
        or _MEDICAL.fullmatch(low)
    )


def _pair(view: View, token: re.Match[str]) -> Span | None:
    """Given name and surname, whichever of them is known."""
    low, end = plain(token[0]), token.end()
    first_known = low in words.GIVEN or low in words.WORD_NAMES
    if (words.is_other(low) and low not in _MONTHS) or (not first_known and _PERSONS.fullmatch(f"{low} ")):
        return None
    unknown = not first_known and not words.is_name(low) and not is_strange(token[0])
    if unknown and not _is_enclosed(view, token):
        return None
    last = None
    for _ in range(3):
        piece = NEXT.match(view.text, end)
        if piece is None or "\n" in piece[0]:
            break
        word = plain(piece[1])
        if len(word) > 1 and "." not in word:
            known = words.is_name(word) or (word in ALSO_NAMES and (first_known or is_strange(token[0])))
            closed = _ENDS.match(view.text, piece.end()) or _ACTING.match(view.text, piece.end())
            english = last is None and not words.is_other(word) and closed
            surname = english and piece[1].istitle() and word not in _HEADS and not _MEDICAL.fullmatch(word)
            if not known and not is_strange(piece[1]) and not surname:
                break
            last = piece
        end = piece.start(1) + len(stem(piece[1]))
    if last is None:
        return None
    stop = last.start(1) + len(stem(last[1]))
    if (
        is_eponym(view, stop)
        or (plain(last[1]) in _HEADS and plain(last[1]) not in words.WORD_NAMES)
        or _is_called(view, stop)
    ):
        return None
    capitals = token[0].isupper() or last[1].isupper()
    if capitals and not (words.is_name(low) or words.is_name(plain(last[1]))):
        return None
    return Span(token.start(), stop, "name")


def _is_enclosed(view: View, token: re.Match[str]) -> bool:
    """Whether an English word and a listed surname stand between punctuation or small words: "by Woody Hughes, NP"."""
    following = NEXT.match(view.text, token.end())
    if following is None or not token[0].istitle() or plain(token[0]) in _HEADS:
        return False
    return words.is_name(plain(following[1])) and bool(_ENDS.match(view.text, following.end()))


def _is_called(view: View, end: int) -> bool:
    """Whether a street, a hospital or the like follows, whose name this is."""
    following = NEXT.match(view.text, end)
    return bool(following and "\n" not in following[0] and plain(following[1]) in _HEADS)


def _single(view: View, token: re.Match[str]) -> Span | None:
    low, text = plain(token[0]), view.text
    end = token.start() + len(stem(token[0]))
    if _DOSED.match(text, end) or token[0].isupper() or is_eponym(view, end) or _is_called(view, end):
        return None
    if words.is_other(low) or low in words.EPONYMS or low in words.CITIES:
        return None
    beside = bool(_PERSONS.search(view.before(token.start(), 24)))
    initials = _INITIALED.search(text, max(0, token.start() - 9), token.start())
    if initials and "." in initials[0] and (words.is_name(low) or is_strange(token[0])):
        return Span(initials.start(), end, "name")
    if (initial := _INITIAL_AFTER.match(text, end)) and (words.is_name(low) or is_strange(token[0])):
        return Span(token.start(), initial.end(), "name")
    inside = not _SENTENCE.search(text, max(0, token.start() - 6), token.start())
    if low in words.GIVEN or (words.is_name(low) and (inside or beside or _ACTING.match(text, token.end()))):
        return Span(token.start(), end, "name")
    if is_strange(token[0]) and (beside or _SAYING.match(text, end) or (_ACTING.match(text, end) and inside)):
        return Span(token.start(), end, "name")
    if low in words.WORD_NAMES and beside and inside:
        return Span(token.start(), end, "name")
    return None
