"""What stands right before a name: "Dr.", "dictated by", "her husband", "Attending:"."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from meditune.phi.view import View


class Cue(IntEnum):
    """How surely a name follows; `cues.txt` says what each takes for one."""

    DOUBTFUL = 1
    FIELD = 2
    LIKELY = 3
    SURE = 4
    TITLE = 5


_AFTER_COLON = {"label": Cue.SURE, "field": Cue.FIELD}
_MOST_WORDS = 4
_FURTHEST = 44
_BETWEEN = " \t\n\r:(,#=-*_\"'“.;"
_ABBREVIATIONS = frozenset({"MS", "MR", "FR", "SR", "PT", "RN", "MD"})
"""In capitals these are as often a disease, a scan or a degree, unless a full stop and a name in capitals follow."""


def _read() -> tuple[dict[str, Cue], dict[str, Cue]]:
    plain: dict[str, Cue] = {}
    labels: dict[str, Cue] = {}
    for line in (Path(__file__).parent / "cues.txt").read_text(encoding="utf-8").splitlines():
        kind, _, phrases = line.partition(": ")
        if line.startswith("#"):
            continue
        kept, cue = (labels, _AFTER_COLON[kind]) if kind in _AFTER_COLON else (plain, Cue[kind.upper()])
        for phrase in phrases.split(" | "):
            kept[phrase] = max(cue, kept.get(phrase, cue))
    return plain, labels


_PLAIN, _LABELS = _read()


def before(view: View, place: int) -> Cue | None:
    """The longest cue that ends right before `place`."""
    text, low = view.text, view.low
    start = max(0, place - _FURTHEST)
    piece = low[start:place]
    head = piece.rstrip(_BETWEEN)
    between = piece[len(head) :]
    if not between or not head:
        return None
    words = [word.strip('(,:;["“') for word in head.split()[-_MOST_WORDS:]]
    known = _LABELS if ":" in between or "=" in between or "#" in between else _PLAIN
    ends_sentence = "." in between or ";" in between
    for number in range(len(words), 0, -1):
        phrase = " ".join(words[-number:])
        cue = known.get(phrase) or (known.get(phrase.rpartition("/")[2]) if number == 1 else None)
        if cue is None and known is _LABELS:
            cue = _as_field(_PLAIN.get(phrase))
        if cue is None:
            continue
        if cue is not Cue.TITLE:
            apart = ends_sentence or (cue is Cue.DOUBTFUL and "\n" in between)
            return None if apart and known is _PLAIN else cue
        written = text[start + len(head) - len(phrase) : start + len(head)]
        if written in _ABBREVIATIONS and not ("." in between and text[place : place + 2].isupper()):
            return None if "." in between else Cue.DOUBTFUL
        return cue
    if words[-1] != "by" or ends_sentence:
        return None
    return Cue.DOUBTFUL if known is _PLAIN else Cue.LIKELY


def _as_field(cue: Cue | None) -> Cue | None:
    """What a phrase says before a colon that is a cue without one."""
    if cue is None or cue is Cue.TITLE:
        return cue
    return Cue.FIELD if cue >= Cue.LIKELY else None
