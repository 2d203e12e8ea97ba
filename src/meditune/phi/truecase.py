"""Capital letters for texts that have none, such as messages: "pt emily r. seen at mayo clinic, from houston".

The finders of names and places begin at capital letters. In a short text without any, the words that are on a list of
names or towns, or that follow such a word or "at", get a capital letter before the search. Positions stay the same.
"""

from __future__ import annotations

import re

from meditune.phi import name_words

_CAPITALS = re.compile(r"[A-Z]")
_WORD = re.compile(r"(?<![\w@.])[a-z][a-z'’-]{1,24}(?![\w@])")
_NEXT = re.compile(r" ([a-z](?:\.|(?=[,;:)?!]|['’]s| (?!(?:a|i) )[a-z]))|[a-z][a-z'’-]{2,24}(?![\w@]))")
_ENDS = re.compile(r"['’]s|[ ]?[,;:()?!.]|$| (?:\d|who|is|was|has|seen|age|aged|dob|mrn|in|from|at|w/|with)(?![a-z])")
_TOWN = re.compile(r"(?<![a-z])(?:in|from|near|to|at|our|of) (?=([a-z][a-z'’.-]+(?: [a-z][a-z'’-]+){0,2}))")
_SITE = re.compile(
    r"(?:(?<![a-z])(?:at|admitted to|visited|transferred to)|@) (?:(?:the|our|his|her) )?"
    r"((?:(?:st|mt)\. )?[a-z][a-z'’&-]+"
    r"(?: (?!(?:on|for|in|last|with|said|this|since|and|who|is|was)(?![a-z]))[a-z'’&-]+){0,3})"
)
_FACILITY = re.compile(
    r"(?<= )(?:hospital|clinic|medical(?: cent(?:er|re)| group)?|(?:oncology|cancer) center|med\.? (?:center|ctr|cntr)|"
    r"health ?care|health(?: center)?|memorial|general)(?![a-z])"
)
_LEADING = ("clinic", "hospital", "home", "least", "the ", "a ", "an ", "this ", "my ")
_BEFORE_NAME = re.compile(r"(?:, |(?<![a-z])(?:named|patient|pt|mr\.?|mrs\.?|dr\.?) )$")
_ABBREVIATIONS = frozenset(["ada", "ana", "ali", "dea", "mae", "sal", "may", "ace", "see"])
"""Given names that are more often abbreviations or other words in lowercase"""


def truecased(text: str) -> str:
    """Return the text with capital letters for likely names and places; unchanged if it has capital letters."""
    if _CAPITALS.search(text, 1):
        return text
    places: set[int] = set()
    places.update(_of_names(text))
    for found in _TOWN.finditer(text):
        words = found[1].split()
        for count in range(len(words), 0, -1):
            if " ".join(words[:count]).rstrip(".") in name_words.CITIES:
                places.update(_starts(text, found.start(1), len(" ".join(words[:count]))))
                break
    for found in _SITE.finditer(text):
        places.update(_starts(text, found.start(1), _length_of_site(found[1])))
    letters = list(text)
    for place in places:
        upper = letters[place].upper()
        letters[place] = upper if len(upper) == 1 else letters[place]
    return "".join(letters)


def _length_of_site(words: str) -> int:
    """Return the length of a place of care: up to "clinic" or a similar word, or two words that aren't both English."""
    if house := _FACILITY.search(words):
        return house.end()
    pair = " ".join(words.split()[:2])
    strange = [not name_words.is_ordinary(w) and not name_words.is_surely_medical(w) for w in pair.split()]
    if not any(strange) or pair.startswith(_LEADING):
        return 0
    return len(pair) if strange[-1] else len(pair.split()[0])


def _of_names(text: str) -> list[int]:
    """Return where the words of names begin: a listed given name, and the surname or initial after it."""
    places: list[int] = []
    for found in _WORD.finditer(text):
        low = found[0].removesuffix("'s").removesuffix("’s")
        if name_words.is_other(low) or low in _ABBREVIATIONS:
            continue
        following = _NEXT.match(text, found.end())
        if low not in name_words.GIVEN:
            introduced = low in name_words.WORD_NAMES and _BEFORE_NAME.search(
                text, max(0, found.start() - 10), found.start()
            )
            if not introduced or not following or not (following[1].endswith(".") or name_words.is_name(following[1])):
                continue
        places.append(found.start())
        if following is None:
            continue
        word = following[1].removesuffix("'s").removesuffix("’s")
        known = len(word.strip(".")) == 1 or name_words.is_name(word)
        strange = not name_words.is_ordinary(word) and not name_words.is_medical(word)
        closed = word in name_words.ALSO_NAMES and _ENDS.match(text, found.end() + 1 + len(word))
        if known or strange or closed:
            places.append(following.start(1))
    return places


def _starts(text: str, start: int, length: int) -> list[int]:
    return [start + found.start() for found in re.finditer(r"(?<![^ ])[a-z]", text[start : start + length])]
