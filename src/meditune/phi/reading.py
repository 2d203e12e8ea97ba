"""One name: the words it goes on with from where it begins, and whether they are a person's."""

from __future__ import annotations

import re

from meditune.phi import words
from meditune.phi.cues import Cue
from meditune.phi.shapes import FIRST, NEXT, plain, stem
from meditune.phi.spans import Span
from meditune.phi.view import View

ON_LISTS = words.EPONYMS | words.GIVEN | words.SURNAMES
"""Every name that is on a list."""
ALSO_NAMES = words.WORD_NAMES | words.EPONYMS
"""Words that are names, too, and names after which something is called."""
_MOST_WORDS = 4
_PARTICLES_TEXT = "van von de del la di da el al bin le du dos san ben abu st"
_PARTICLES = frozenset(_PARTICLES_TEXT.split())
_CAPITALS = re.compile(r"[A-Z]{2}")
_CLOSES = re.compile(r"[ \t]*(?:[.,;)(]|\n|$)")
_MONTHS = frozenset({"april", "may", "june", "august"})
_ABBREVIATION = re.compile(r"[a-z][A-Z]{2}|(?<![A-Za-z])[A-Z]{2,}-|-[a-z]+[A-Z]")
_FOLLOWING = re.compile(r"(?:['’]s?)?(?:[ \t-]{1,2}|[ \t]?\n[ \t]?(?=[a-z]))([A-Za-z]+)")
_ET_AL = re.compile(r",?\s{1,3}et al|\s{1,2}(?:\((?:19|20)\d\d|and colleagues)")


def name_at(view: View, place: int, cue: Cue) -> Span | None:
    """The name that begins at `place`, as far as the cue before it makes one likely."""
    pieces: list[str] = []
    end = place
    piece = FIRST.match(view.text, place)
    while piece and len(pieces) < _MOST_WORDS:
        written = piece[1]
        if not _goes_on(view, pieces, written, piece, cue):
            break
        pieces.append(plain(written))
        end = piece.start(1) + len(stem(written))
        if stem(written) != written:
            break
        piece = NEXT.match(view.text, end)
    whole = [piece for piece in pieces if len(piece) > 1 and "." not in piece]
    if not whole or not _is_enough(view.text[place:end], whole, cue):
        return None
    return Span(place, end, "name")


def _goes_on(view: View, pieces: list[str], written: str, piece: re.Match[str], cue: Cue) -> bool:
    """Whether the next word belongs to the name whose words so far are `pieces`."""
    low = plain(written)
    end = piece.start(1) + len(stem(written))
    following = view.text[end : end + 1]
    if len(low) == 1 or "." in low:
        return written.endswith(".") or following in {" ", "\n", ",", ""}
    first = not any(len(each) > 1 for each in pieces)
    surname = (bool(pieces) and low in words.SURNAMES) or (low in words.PLACES and first and _name_follows(view, end))
    if (
        words.is_other(low)
        and low not in _MONTHS
        and not surname
        and not (cue is Cue.TITLE and first and low in words.PLACES)
    ):
        return False
    wrapped = "\n" in piece[0] and not words.is_name(low)
    if pieces and (wrapped or (following in {":", "#"} and "\n" in piece[0])):
        return False
    if low in _MONTHS:
        return first and _name_follows(view, end)
    if cue is not Cue.TITLE and low in ON_LISTS and is_eponym(view, end):
        return False
    if surname or not words.is_ordinary(low) or low in _PARTICLES:
        return True
    if first:
        if cue is Cue.TITLE or (cue is Cue.SURE and (low in ALSO_NAMES or _name_follows(view, end))):
            return True
        return low in ALSO_NAMES and (bool(pieces) or _stands_out(view, written, end, cue))
    if low in words.WORD_NAMES or low in words.EPONYMS:
        return pieces[-1] not in words.SURNAMES or (len(pieces) == 1 and pieces[-1] in words.GIVEN)
    if cue >= Cue.SURE and len(pieces[-1]) == 1:
        return True
    return cue >= Cue.FIELD and len(pieces) == 1 and pieces[-1] not in words.SURNAMES and written.istitle()


def _stands_out(view: View, written: str, end: int, cue: Cue) -> bool:
    """Whether an English word with a capital is a name, by what follows it: another name, or no other capital."""
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
    return len(low) > 1 and (words.is_name(low) or not words.is_ordinary(low) or low in ALSO_NAMES)


def _is_enough(written: str, pieces: list[str], cue: Cue) -> bool:
    """Neither an abbreviation nor, where that is doubtful, a word on no list."""
    if cue >= Cue.SURE:
        return True
    listed = any(map(words.is_name, pieces))
    if _ABBREVIATION.search(written) and not listed:
        return False
    if written.isupper() and len(pieces) == 1:
        return listed and cue >= Cue.FIELD and len(written) > 5
    return listed or cue >= Cue.FIELD or (len(pieces) > 1 and not _CAPITALS.search(written))


def is_eponym(view: View, end: int) -> bool:
    """Whether what ends here is no person, since a disease, a test or a device follows, or it is a paper's author."""
    place = end
    for _ in range(_MOST_WORDS):
        following = _FOLLOWING.match(view.text, place)
        if following is None:
            break
        if following[1].lower() in words.EPONYMOUS:
            return True
        if not following[1][0].isupper():
            break
        place = following.end()
    return bool(_ET_AL.match(view.low, end))
