"""From what raters said of a row to one decision, or to the reason why there is none yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.data.decisions import VERDICTS, Verdict
from meditune.data.example import DECISIONS, Decision
from meditune.review.annotate.key import Row
from meditune.review.axes import DECISION, VERDICT, Axis
from meditune.review.rated import Rated
from meditune.review.store import ADJUDICATION, RATING, Note, Rating

TIED = "raters disagree"
REWRITTEN = "raters wrote different texts"
CANNOT = "nobody could judge"


@dataclass(frozen=True)
class Resolved:
    """What was decided about an item."""

    verdict: Verdict
    answer: str
    """What the row should say; empty where nobody who stands for the verdict changed it"""
    raters: tuple[str, ...]
    """Codes of those who stand for it"""
    settled: bool
    when: str


@dataclass(frozen=True)
class Labelled:
    """Which decision is right for an item."""

    decision: Decision | None
    """None where none of the three words is"""
    answer: str
    """What those wrote who stand for it; empty where nobody did, or they wrote different texts"""
    raters: tuple[str, ...]
    settled: bool
    when: str


def resolve(rated: Rated[Row]) -> tuple[dict[str, Resolved], dict[str, str]]:
    """Verdicts by item, and of items that were judged without one, why.

    The adjudicator's word is final, the latest where there are several; else more than half of the raters must agree.
    A changed text counts where it comes from those.
    """
    texts = _written(rated)
    found: dict[str, Resolved] = {}
    undecided: dict[str, str] = {}
    for item, (standing, why) in _standing(rated, VERDICT).items():
        changed = {" ".join(note.better.split()) for note in _texts(standing, texts)}
        if why:
            undecided[item] = why
        elif standing[0].round == RATING and len(changed) > 1:
            undecided[item] = REWRITTEN
        else:
            found[item] = _decided(rated, standing, texts)
    return found, undecided


def resolve_decisions(rated: Rated[Row]) -> tuple[dict[str, Labelled], dict[str, str]]:
    """What experts say is right, by item, in sets that ask for it, and of items without one, why; as `resolve`."""
    texts = _written(rated)
    found: dict[str, Labelled] = {}
    undecided: dict[str, str] = {}
    for item, (standing, why) in _standing(rated, DECISION).items():
        if why:
            undecided[item] = why
            continue
        option = standing[0].option or 0
        written = {" ".join(note.better.split()): note.better.strip() for note in _texts(standing, texts)}
        found[item] = Labelled(
            DECISIONS[option - 1] if option <= len(DECISIONS) else None,
            next(iter(written.values())) if len(written) == 1 else "",
            tuple(rated.raters[rating.rater].code for rating in standing),
            standing[0].round == ADJUDICATION,
            max(rating.time for rating in standing),
        )
    return found, undecided


def _standing(rated: Rated[Row], axis: Axis) -> dict[str, tuple[list[Rating], str]]:
    """Of each item that was judged on an axis the ratings that stand for what is decided, or none and why."""
    first, settled = _by_item(rated.first, axis), _by_item(rated.settled, axis)
    found: dict[str, tuple[list[Rating], str]] = {}
    for item in rated.set.items:
        last = sorted((rating for rating in settled[item] if rating.option), key=lambda rating: rating.time)[-1:]
        said = [rating for rating in first[item] if rating.option]
        if last:
            found[item] = last, ""
        elif said:
            option, votes = Counter(rating.option for rating in said).most_common(1)[0]
            standing = [rating for rating in said if rating.option == option]
            found[item] = (standing, "") if 2 * votes > len(said) else ([], TIED)
        elif first[item]:
            found[item] = [], CANNOT
    return found


def _by_item(ratings: Sequence[Rating], axis: Axis) -> dict[str, list[Rating]]:
    found: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        if rating.axis == axis.name:
            found[rating.item].append(rating)
    return found


def _written(rated: Rated[Row]) -> dict[tuple[str, str, int], Note]:
    return {(note.item, note.rater, note.round): note for note in rated.notes if note.better.strip()}


def _texts(standing: Sequence[Rating], texts: dict[tuple[str, str, int], Note]) -> list[Note]:
    places = [(rating.item, rating.rater, rating.round) for rating in standing]
    return [texts[place] for place in places if place in texts]


def _decided(rated: Rated[Row], standing: Sequence[Rating], texts: dict[tuple[str, str, int], Note]) -> Resolved:
    option = standing[0].option
    assert option is not None, "only ratings with an option stand for a verdict"
    changed = _texts(standing, texts)
    times = [rating.time for rating in standing] + [note.time for note in changed]
    return Resolved(
        VERDICTS[option - 1],
        changed[0].better.strip() if changed else "",
        tuple(rated.raters[rating.rater].code for rating in standing),
        standing[0].round == ADJUDICATION,
        max(times),
    )
