"""Splitting a message into clauses of plain words, and whether each clause describes something that is happening."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from meditune.files import package_table

HERE = Path(__file__).parent
MAX_CHARACTERS = 2_000
"""The number of characters to read from the beginning of a message"""
LAST_CHARACTERS = 2_000
"""The number of characters to read from the end of a longer message"""
_CONTRACTIONS = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"\b(?:can'?t|cannot)\b", "can not"),
        (r"\bwon'?t\b", "will not"),
        (r"\bain'?t\b", "is not"),
        (r"\b(do|does|did|is|are|was|were|have|has|had|would|could|should|need)n'?t\b", r"\1 not"),
        (r"\bi'?m\b", "i am"),
        (r"\bi'?ve\b", "i have"),
        (r"\b(he|she|it|that|what|who|there|here)'s\b", r"\1 is"),
        (r"\b(he|she|that|what)s\b", r"\1 is"),
        (r"\b(you|we|they)'re\b", r"\1 are"),
        (r"\b(you|we|they)'ve\b", r"\1 have"),
        (r"\bo\.?d\.?'e?d\b|\boded\b", "overdosed"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
        (r"'s\b", " is"),
        (r"\bu\b", "you"),
        (r"\bn\b", "and"),
        (r"\brn\b", "right now"),
        (r"\bgonna\b", "going to"),
        (r"\bwann?a\b", "want to"),
        (r"\bkil\b", "kill"),
        (r"\b(my|him|her|your|them) self\b", r"\1self"),
        (r"\btr(?:id|yed)\b", "tried"),
        (r"\bhlp\b", "help"),
    )
)
_NUMBERS = {
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60},
}
_COUNTED = re.compile(
    rf"\b({'|'.join(_NUMBERS)})(?=[ -]*(?:days?|weeks?|wks?|months?|years?|yrs?|hours?|hrs?|min(?:ute)?s?|pills?"
    r"|tablets?|capsules?|paracetamol|times)\b)"
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=[a-z])[.!?;](?=[a-z])|(?<=[?!])")
_CLAUSE = re.compile(r"\s*(?:[,:–]|\s-\s)?\s*\b(?:but|however|although|and then|and since)\b\s+|\s*—\s*|\.\.+\s*")
"""Boundaries after which time and person can change: "had one in 2010, but I ..." """
_BREAK = re.compile(
    r"\n|\s+(?=(?:and )?(?:now|today)\b\s+\w)"
    r"|\s+(?=(?:and|&) (?:i|my|he|she|his|her|it|we|our|they|am|is|are|has|have|can|feels?)\b)"
    r"|,\s+(?=(?:i|my|he|she|his|her|we|our|they)\b)"
    r"|,\s+(?=(?:what|which|how|why)\b)"
    r"|,\s+(?=(?:can|could|should|do|does|will|may|would|am|is|are) (?:i|he|she|we|they|it|my|his|her)\b)"
)
"""Places where a new statement may begin without a full stop: "I have a history of ... and I can't breathe" """
_HISTORY = re.compile(r"\b(?:family |medical |past )*history of(?: (?!and\b|with\b|who\b)[a-z/'-]+){1,4}")
_OWN = re.compile(r"(?:and |& )?(?:now |today )?(?:i|my|we|our)\b")
_THEN = re.compile(r"\b(?:was|were|had|did|could|would|went|came|got|fell|took|lost|\w{2,}ed)\b")
_NOW = re.compile(
    r"\b(?:am|is|are|has|have|can|do|does|will|wants?|feels?|hurts?|needs?|keeps?|looks?|sounds?|says|going to)\b"
)
WORD = re.compile(r"\d+(?:[.,/]\d+)*|[a-z]+")
_WORD_OR_STOP = re.compile(rf"{WORD.pattern}|[,:]")
_LISTED = re.compile(r"(?:\s*[\w'/-]+(?:\s+[\w'/-]+){0,3}\s*,){0,8}\s*(?:[\w'/-]+\s+){0,4}(?:or|nor)\b")
"""The rest of a list with "or": its items after a comma, of up to four words each"""
_NO_ITEM = re.compile(
    r"\b(?:throat|tongue|lips?|airway|my|i|he|she|it|we|they|this|today|now|tonight|since|after|sudden\w*|crush\w*|severe\w*|worst"
    r"|bad|terrible|intense|huge|massive|unable|trouble|seizures?|help|please|blue|unconscious|collapse|\d+)\b"
)
"""Words of an item that is more than the next one of a list of denied signs, such as a throat that closes"""
_OTHER_DENIAL = re.compile(
    r"\b(?:no|not|without|never)\b[^,:]*\b(?:allerg|histor|warning|medic|medication|injur|trauma|relief|before)"
)
_DENIES = re.compile(r"\bden(?:y|ies|ied)\b")


@dataclass(frozen=True)
class Clause:
    """A clause of a message."""

    text: str
    """The clause's words in lowercase, with single spaces"""
    place: int
    """The number of words before the clause"""
    happening: bool
    """True if the clause's words describe something that is happening"""
    stops: tuple[int, ...] = ()
    """The places in the text at which a denial ends: after a colon, or a comma that isn't part of a list of signs"""


def clauses(message: str, spelled: Callable[[str], str] = lambda word: word) -> list[Clause]:
    """Return the message's clauses. `spelled` corrects the spelling of a word."""
    text = plain(message)
    mourning = bool(phrase_pattern("death").search(text))
    found: list[Clause] = []
    place = 0
    for sentence in _SENTENCE.split(text):
        general, study = _general(sentence), bool(phrase_pattern("study").search(sentence))
        for part in _CLAUSE.split(sentence):
            stops, first = _stops(part), 0
            for happening, texts in groupby(_pieces(part, spelled, study, mourning), key=itemgetter(1)):
                words = " ".join(each for each, _ in texts).split()
                ends = tuple(len(" ".join(words[: stop - first])) for stop in stops if 0 < stop - first < len(words))
                found.append(Clause(" ".join(words), place, happening and not general, ends))
                place += len(words)
                first += len(words)
    return found


def _stops(part: str) -> list[int]:
    """Return the numbers of words after which a denial ends: 2 for "no rash, throat closing".

    A denial continues in a list with "or" or of short items ("no rash, fever or pain") and after "denies".
    """
    found, words = [], 0
    for match in _WORD_OR_STOP.finditer(part):
        if match[0] not in ",:":
            words += 1
        elif not _DENIES.search(part, 0, match.start()) and (match[0] == ":" or not _listed(part, match.start())):
            found.append(words)
    return found


def _listed(part: str, comma: int) -> bool:
    """Return whether the item after a comma continues a list with "or", or a list of at least three short items."""
    if _LISTED.match(part, comma + 1):
        return True
    before, after = re.split(r"[,:]", part[:comma]), re.split(r"[,:]", part[comma + 1 :])
    if _OTHER_DENIAL.search(part, 0, comma):
        return False
    earlier = len(before) > 1 and _is_item(before[-1]) and not phrase_pattern("denial").search(before[-1])
    return _is_item(after[0]) and (earlier or (len(after) > 1 and _is_item(after[1])))


def _is_item(text: str) -> bool:
    words = WORD.findall(text)
    return 0 < len(words) <= 3 and not _NO_ITEM.search(text) and not _NOW.search(text) and not _THEN.search(text)


def plain(message: str) -> str:
    """Return the message in lowercase, without invisible characters, contractions and spelled-out counts."""
    text = unicodedata.normalize("NFKC", readable_part(message))
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in {"Cf", "Cc"})
    text = re.sub(r"[^\S\n]+", " ", text)  # the patterns take quadratic time on long runs of spaces
    text = text.lower().replace("’", "'").replace("‘", "'").replace("`", "'")
    for pattern, put in _CONTRACTIONS:
        text = pattern.sub(put, text)
    text = _COUNTED.sub(lambda match: str(_NUMBERS[match[1]]), text)
    return re.sub(r"(?<=[a-z0-9])-(?=[a-z0-9])", " ", text)


def is_shortened(message: str) -> bool:
    """Return whether a message is so long that its middle isn't read."""
    return len(message) > MAX_CHARACTERS + LAST_CHARACTERS


def readable_part(message: str) -> str:
    """Return the part of a message that triage reads: the whole message, or its beginning and end."""
    return f"{message[:MAX_CHARACTERS]}\n{message[-LAST_CHARACTERS:]}" if is_shortened(message) else message


def windows(clauses: list[Clause], words: int) -> Iterator[list[Clause]]:
    """Yield the longest runs of clauses that all begin within `words` words; no run is inside another."""
    last = -1
    for first, clause in enumerate(clauses):
        end = first
        while end + 1 < len(clauses) and clauses[end + 1].place - clause.place < words:
            end += 1
        if end > last:
            last = end
            yield clauses[first : end + 1]


@cache
def phrase_pattern(name: str) -> re.Pattern[str]:
    """Return a pattern that matches any entry of a list in clause_cues.yaml as whole words."""
    return re.compile(rf"\b(?:{_alternatives(name)})\b")


def _alternatives(name: str) -> str:
    return "|".join(texts_of("clause_cues")[name])


@cache
def texts_of(name: str) -> Any:
    """Return the content of a YAML file of this package."""
    return package_table(HERE / f"{name}.yaml")


@cache
def _question() -> re.Pattern[str]:
    return re.compile(rf"^(?:(?:{_alternatives('before_asking')})\s+)*(?:{_alternatives('asking')})\b(?! not\b)")


def _pieces(part: str, spelled: Callable[[str], str], study: bool, bereaved: bool) -> Iterator[tuple[str, bool]]:
    """Yield the words between possible breaks, and whether they describe something that is happening."""
    long_ago = False
    for piece in _BREAK.split(_HISTORY.sub(r"\n\g<0>\n", part)):
        words = " ".join(spelled(word) for word in WORD.findall(piece))
        if not words:
            continue
        # in "in 2010 I fell and my leg was numb", the second half is still about 2010
        present = phrase_pattern("present").search(words)
        past = not present and phrase_pattern("past").search(words)
        long_ago = bool(past or (long_ago and _THEN.search(words) and not present and not _NOW.search(words)))
        studied = study and not (_OWN.match(piece) and not phrase_pattern("study").search(piece))
        yield words, not (studied or long_ago or _over(words, bereaved))


def _general(sentence: str) -> bool:
    """Return whether a sentence asks about a disease or people in general, instead of describing someone."""
    words = " ".join(WORD.findall(sentence))
    if phrase_pattern("anyone").search(words):
        return not phrase_pattern("what_to_do").search(words)
    about, person = phrase_pattern("about").search(words), phrase_pattern("person").search(words)
    if _question().match(words):
        somebody = phrase_pattern("somebody").search(phrase_pattern("asker").sub(" ", words))
        return bool(about and not somebody) or not person or bool(phrase_pattern("future").search(words))
    return sentence.rstrip().endswith("?") and bool(about) and not person


def _over(clause: str, bereaved: bool) -> bool:
    if phrase_pattern("present").search(clause) or phrase_pattern("of_oneself").search(clause):
        return False
    return bool(phrase_pattern("over").search(clause)) or (bereaved and not phrase_pattern("living").search(clause))
