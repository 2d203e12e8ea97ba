"""What stands right before a name: "Dr.", "dictated by", "her husband", "Attending:"."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from meditune.phi.view import View


class Cue(IntEnum):
    """How surely a name follows; `cues.txt` says what each takes for one."""

    DOUBTFUL = 1
    LIKELY = 2
    SURE = 3
    TITLE = 4


_AFTER_COLON = {"label": Cue.SURE, "field": Cue.LIKELY}
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
    words = head.split()[-_MOST_WORDS:]
    known = _LABELS if ":" in between or "=" in between or "#" in between else _PLAIN
    ends_sentence = "." in between or ";" in between
    for number in range(len(words), 0, -1):
        phrase = " ".join(words[-number:])
        cue = known.get(phrase)
        if cue is None and known is _LABELS and number == 1:
            cue = _PLAIN.get(phrase)
            cue = None if cue is not Cue.TITLE else cue
        if cue is None:
            continue
        if number == 1:
            written = text[start + len(head) - len(phrase) : start + len(head)]
            stopped = "." in between and text[place : place + 2].isupper()
            if written in _ABBREVIATIONS and not stopped:
                return Cue.DOUBTFUL
        if cue is not Cue.TITLE and ends_sentence and known is _PLAIN:
            return None
        return cue
    by_someone = words and words[-1] == "by" and words[-2:-1] and words[-2].endswith("ed") and not ends_sentence
    return Cue.DOUBTFUL if by_someone and known is _PLAIN else None
