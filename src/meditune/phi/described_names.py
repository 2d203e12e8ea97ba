"""Names with initials ("Anna K., seen today", "Dr. A.", "K.L., 55F"), and names beside a description of the person.

Short queries and messages introduce a patient this way: "a 60-year-old man with asthma, Xiomar Vasko, admitted to ...".
The words before and after then show that unlisted words are a name. Lists of a paper's authors are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import name_words
from meditune.phi.name_words import WORD, is_eponym, plain
from meditune.phi.spans import Span, View

_NEITHER = name_words.EPONYMS | name_words.CITIES
_INITIAL = re.compile(
    r"[ ](?P<initial>[A-Z](?:\.(?:[ ]?[A-Z]\.)?)?)"
    r"(?=['’]s(?![a-z])|[,;:)?!\]]|[ \n]+[a-z@(&/]|[ \n]+\d|\.?\s*$|\.?[ \n])"
)
"""The initial of a surname after a given name: "Anna K., seen today", "Anna K seen today\""""
_AFTER_BARE_INITIAL = re.compile(r"['’]s|[,;:)?!]|[ \n]+(?:[a-z]{2,}|w/|@|\d|\()|\s*$")
_INTRODUCED = re.compile(
    r"(?:[,(:] ?|(?<![A-Za-z])(?:named|name|patients?|pts?|like|for|of|by|to|is|male|female|man|woman|boy|girl|[mf]|"
    r"y/?o|regarding|re|with|and|child|infant|adult|client) )$",
    re.IGNORECASE,
)
_SURELY_INTRODUCED = re.compile(
    r"(?<![A-Za-z])(?:named|name:?|patients? like|pts? like|case of|case like|similar to|for|of|pt|patient) $",
    re.IGNORECASE,
)
_CARED_FOR = re.compile(
    r"[,;(?)]|['’]s| (?:seen|treated|evaluated|admitted|who|from|diagnosed|presented|\d|was|is|w/|with|at|dx)(?![a-z])"
)
_AUTHOR_BEFORE = re.compile(r"[A-Z][a-z]+ [A-Z]{1,2}\.?(?:, | and |; )$")
_AUTHOR_AFTER = re.compile(r"\.?(?:, | and |; )[A-Z][a-z'’-]+ [A-Z]{1,2}[.,;]|\.?,? et al")
"""Neighbors in a list of a paper's authors: "Smith J, Allan K\""""
_LETTERED_TEXT = (
    "vitamin hepatitis type group grade class stage factor protein influenza child phase part section table figure "
    "plan appendix schedule category level medicare pugh route"
)
_LETTERED = frozenset(_LETTERED_TEXT.split())
"""Words that a letter follows: "hepatitis B.\""""
_TITLES = frozenset(["dr", "mr", "mrs", "ms", "miss", "prof"])
_ONE_INITIAL = re.compile(r"[A-Z](?<=[a-z.] .)(?:\.|(?=['’]s|[ ,;:?)]|$))(?![A-Za-z.])")
_INITIALS = re.compile(r"[A-Z](?<![\w.].)\.[ ]?(?:[A-Z]\.[ ]?)?[A-Z]\.(?![A-Za-z])")
_AGE_AFTER = re.compile(r",? ?\(?(?:an? )?\d{1,3}[- ]?(?:y|yo|y/o|m|f|year|m/o|months?)(?![a-z])")
_CALLED_PATIENT = re.compile(r"(?<![a-z])(?:patient|pt\.?|initials)(?: is| are|:)? $")
_STATED_INITIALS = re.compile(r"(?<![a-z])initials(?: are|:)? ([a-z]\.?[ ]?[a-z]\.?)(?![a-z])")
_PERSON_TEXT = (
    "male female man woman boy girl patient pt child infant newborn teen teenager adult gentleman lady adolescent "
    "toddler client veteran athlete named m f yo y/o y.o year-old years-old old"
)
_NOUNS = frozenset(_PERSON_TEXT.split())
_PERSON = frozenset([*_NOUNS, "like", "to", "of", "in", "for", "by", "with", "regarding", "about", "re:"])
"""Words before a name"""
_SAID_TO_BE = re.compile(
    r"(?<![a-z])(?:named|similar to|case of|patients? like|case like|man|woman|boy|girl|gentleman|lady) $"
)
_BEFORE_PAIR = re.compile(
    r"\d ?(?:y/?o|yrs?|y\.o\.|years? old)?,? ?(?:[a-z]+ )?(?:[mf]|male|female) \(?$|(?<![a-z])(?:regarding|re:|wife of|"
    r"husband of|mother of|father of|daughter of|son of|care of|letter for|visit of) $"
)
"""Words before two unlisted words that are a name"""
_AGED = re.compile(r"\d[- ]?(?:year|yr|month|week|day|yo|y/o|y\.o)[^.;?!\n]*, $")
"""An age earlier in the sentence, and a comma before the name: "a 52-year-old man with asthma, Xiomar Vasko, ...\""""
_REST = re.compile(
    rf"(?P<last>(?:[ ][A-Z]\.?)?[ ](?:{WORD}))?"
    r"(?:[,;?)]|[ ](?:\(|w/|c/o|who|whose|is|was|has|had|seen|with|from|at|on|in|asks|asked|presents|presented|needs|"
    r"reports)(?![a-z])|: )"
)
_CARE_FOLLOWS = re.compile(
    r",?[ (]{0,2}(?:who|whose|(?:was |is |were |last |currently |recently |being )*(?:seen|treated|evaluated|admitted|"
    r"diagnosed|presented|presenting|hospitali[sz]ed|discharged|referred|visited|followed|examined|living|residing|under|"
    r"at|from|in|on|with|born|dob|mrn)(?![a-z])|\d)"
)


def initials(view: View) -> Iterator[Span]:
    """Yield initials that stand for a name: after a title, before an age, after "patient" or "initials"."""
    for found in _ONE_INITIAL.finditer(view.text):
        words = view.before(found.start(), 8).split()
        if words and words[-1].lstrip("(").rstrip(".") in _TITLES:
            yield Span(found.start(), found.end(), "name")
    for found in _INITIALS.finditer(view.text):
        if _AGE_AFTER.match(view.low, found.end()) or _CALLED_PATIENT.search(view.before(found.start(), 16)):
            yield Span(found.start(), found.end(), "name")
    if view.has("initials"):
        for found in _STATED_INITIALS.finditer(view.low):
            if view.text[found.start(1)].isupper():
                yield Span(*found.span(1), "name")


def with_initial(view: View, token: re.Match[str], name: Span | None) -> Span | None:
    """Return the name and the initial of a surname after it; `name` is the name that ends with `token`, if known.

    A word that isn't on a list of given names must be introduced: ", Xiomar K.,", "a patient named Xiomar K.".
    """
    text, low = view.text, plain(token[0])
    initial = _INITIAL.match(text, token.end())
    if initial is None or name_words.is_other(low) or token[0].isupper():
        return None
    stopped = "." in initial["initial"]
    if not stopped and (initial["initial"] in {"A", "I"} or not _AFTER_BARE_INITIAL.match(text, initial.end())):
        return None
    before = text[max(0, token.start() - 28) : token.start()]
    if _AUTHOR_BEFORE.search(before) or _AUTHOR_AFTER.match(text, initial.end()):
        return None
    known = name is not None or low in name_words.GIVEN
    if not known and not _is_introduced(view, token, initial, before):
        return None
    return Span(name.start if name else token.start(), initial.end("initial"), "name")


def _is_introduced(view: View, token: re.Match[str], initial: re.Match[str], before: str) -> bool:
    """Return True if the words around this word and its initial show that it is a given name."""
    low = plain(token[0])
    if not _INTRODUCED.search(before) or not token[0].istitle() or low in _LETTERED:
        return False
    if low in name_words.WORD_NAMES or low in name_words.SURNAMES:
        return True
    stopped = "." in initial["initial"] and low not in _NEITHER
    surely = bool(_CARED_FOR.match(view.text, initial.end())) and bool(_SURELY_INTRODUCED.search(before))
    if not name_words.is_ordinary(low):
        return stopped or surely
    closed = bool(_CARED_FOR.match(view.text, initial.end()))
    return stopped and closed and (surely or _is_aged(view, token.start()))


def beside_description(view: View, token: re.Match[str]) -> Span | None:
    """Return the name that follows a description of a person: "a 60-year-old man, Xiomar Vasko, seen ..."."""
    start = token.start()
    before = view.before(start, 28)
    words = before.split()
    last_word = words[-1] if words else ""
    after_comma = before.endswith(", ")
    if not token[0].istitle() or not (after_comma or last_word in _PERSON or last_word == "("):
        return None
    rest = _REST.match(view.text, token.end())
    if rest is None:
        return None
    pieces = [plain(word) for word in [token[0], *(rest["last"] or "").split()] if len(plain(word)) > 1]
    strange = sum(not name_words.is_ordinary(word) and not name_words.is_surely_medical(word) for word in pieces)
    if not strange or any(name_words.is_other(word) or word in name_words.GENERIC for word in pieces):
        return None
    is_pair = len(pieces) > 1 and strange == len(pieces)
    if last_word in {"patient", "pt"}:
        likely = len(pieces) > 1
    else:
        likely = (last_word.strip(",") in _NOUNS and after_comma) or bool(_SAID_TO_BE.search(before))
    likely = likely or (is_pair and _is_pair_of_person(view, start, before, rest))
    end = rest.end("last") if rest["last"] else token.end()
    if not likely or is_eponym(view, end) or (len(pieces) == 1 and pieces[0] in _NEITHER):
        return None
    return Span(start, end, "name")


def _is_pair_of_person(view: View, start: int, before: str, rest: re.Match[str]) -> bool:
    """Return True if two unlisted words at `start` are a name, judged by the words before and after."""
    if _BEFORE_PAIR.search(before) or view.text[rest.end() - 4 : rest.end()] == " who":
        return True
    return _is_aged(view, start) and bool(_CARE_FOLLOWS.match(view.low, rest.end() - 1))


def _is_aged(view: View, place: int) -> bool:
    """Return True if an age is mentioned before, in the same sentence, and a comma is directly before `place`."""
    return view.text[place - 2 : place] == ", " and bool(_AGED.search(view.low, max(0, place - 240), place))
