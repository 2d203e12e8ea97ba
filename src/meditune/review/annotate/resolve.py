"""From what raters said of a row to one decision, or to the reason why there is none yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.data.decisions import VERDICTS, Verdict
from meditune.review.annotate.key import Row
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


def resolve(rated: Rated[Row]) -> tuple[dict[str, Resolved], dict[str, str]]:
    """Decisions by item, and of items that were judged without one, why.

    The adjudicator's word is final, the latest where there are several; else more than half of the raters must agree.
    A changed text counts where it comes from those.
    """
    first, settled = _by_item(rated.first), _by_item(rated.settled)
    texts = {(note.item, note.rater, note.round): note for note in rated.notes if note.better.strip()}
    found: dict[str, Resolved] = {}
    undecided: dict[str, str] = {}
    for item in rated.set.items:
        last = sorted((rating for rating in settled[item] if rating.option), key=lambda rating: rating.time)[-1:]
        said = [rating for rating in first[item] if rating.option]
        if last:
            found[item] = _decided(rated, last, texts, ADJUDICATION)
        elif said:
            option, votes = Counter(rating.option for rating in said).most_common(1)[0]
            standing = [rating for rating in said if rating.option == option]
            changed = {" ".join(note.better.split()) for note in _texts(standing, texts, RATING)}
            if 2 * votes <= len(said):
                undecided[item] = TIED
            elif len(changed) > 1:
                undecided[item] = REWRITTEN
            else:
                found[item] = _decided(rated, standing, texts, RATING)
        elif first[item]:
            undecided[item] = CANNOT
    return found, undecided


def _by_item(ratings: Sequence[Rating]) -> dict[str, list[Rating]]:
    found: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        found[rating.item].append(rating)
    return found


def _texts(standing: Sequence[Rating], texts: dict[tuple[str, str, int], Note], round: int) -> list[Note]:
    return [
        texts[rating.item, rating.rater, round] for rating in standing if (rating.item, rating.rater, round) in texts
    ]


def _decided(
    rated: Rated[Row], standing: Sequence[Rating], texts: dict[tuple[str, str, int], Note], round: int
) -> Resolved:
    option = standing[0].option
    assert option is not None, "only ratings with an option stand for a verdict"
    changed = _texts(standing, texts, round)
    times = [rating.time for rating in standing] + [note.time for note in changed]
    return Resolved(
        VERDICTS[option - 1],
        changed[0].better.strip() if changed else "",
        tuple(rated.raters[rating.rater].code for rating in standing),
        round == ADJUDICATION,
        max(times),
    )
