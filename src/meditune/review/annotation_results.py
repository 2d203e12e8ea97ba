"""Results of data checks: verdicts, agreement, careless raters, open disputes, and the decisions file.

Ratings of a row are resolved to one verdict, or to the reason why there is none. Known items reveal careless raters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meditune
from meditune.data.example import DECISIONS
from meditune.data.reviewer_decisions import VERDICTS, RowDecision, read_decisions
from meditune.errors import DataError
from meditune.files import write_json, write_jsonl
from meditune.review.agreement import Dispute
from meditune.review.rating_set import DECISION, VALIDATE, VERDICT, Axis, Origin
from meditune.review.ratings_store import ADJUDICATION, Rater, Rating
from meditune.review.results import RatedSet, agreement, disputes, in_dispute, read_rated, seconds, unfinished
from meditune.statistics import wilson

TIED = "raters disagree"
REWRITTEN = "raters wrote different texts"
CANNOT = "nobody could judge"


@dataclass(frozen=True)
class Resolved:
    """The resolved verdict on an item, or its resolved decision."""

    label: str | None
    """A verdict, or a decision (yes, no or maybe); None if raters chose "Neither" as the decision"""
    answer: str
    """The answer written by raters who chose this label; empty if there is none, or if answers differ"""
    raters: tuple[str, ...]
    settled: bool
    when: str


def resolve(rated: RatedSet, axis: Axis = VERDICT) -> tuple[dict[str, Resolved], dict[str, str]]:
    """Return the verdicts (or decisions) by item, and the reason for each judged item that has none.

    The latest adjudication is final; otherwise more than half of the raters must agree. A rater's text counts
    only if the rater's rating is among the deciding ratings.
    """
    labels: tuple[str, ...] = VERDICTS if axis is VERDICT else DECISIONS
    notes = {(note.item, note.rater, note.round): note for note in rated.notes if note.better.strip()}
    found: dict[str, Resolved] = {}
    undecided: dict[str, str] = {}
    for item, (standing, why) in _deciding_ratings(rated, axis).items():
        if why:
            undecided[item] = why
            continue
        places = [(rating.item, rating.rater, rating.round) for rating in standing]
        written = [notes[place] for place in places if place in notes]
        differ = len({" ".join(note.better.split()) for note in written}) > 1
        settled, option = standing[0].round == ADJUDICATION, standing[0].option or 0
        if axis is VERDICT and differ and not settled:
            undecided[item] = REWRITTEN
            continue
        found[item] = Resolved(
            labels[option - 1] if option <= len(labels) else None,
            written[0].better.strip() if written and not (differ and axis is DECISION) else "",
            tuple(rated.raters[rating.rater].code for rating in standing),
            settled,
            max([rating.time for rating in standing] + [note.time for note in written]),
        )
    return found, undecided


def _deciding_ratings(rated: RatedSet, axis: Axis) -> dict[str, tuple[list[Rating], str]]:
    """Return, for each item rated on an axis, the deciding ratings, or no ratings and the reason."""
    first: dict[str, list[Rating]] = defaultdict(list)
    for rating in rated.first:
        if rating.axis == axis.name:
            first[rating.item].append(rating)
    given = (rating for rating in rated.settled if rating.axis == axis.name and rating.option)
    final = {rating.item: rating for rating in sorted(given, key=lambda rating: rating.time)}
    found: dict[str, tuple[list[Rating], str]] = {}
    for item in rated.set.items:
        judged = [rating for rating in first[item] if rating.option]
        if item in final:
            found[item] = [final[item]], ""
        elif judged:
            option, votes = Counter(rating.option for rating in judged).most_common(1)[0]
            standing = [rating for rating in judged if rating.option == option]
            found[item] = (standing, "") if 2 * votes > len(judged) else ([], TIED)
        elif first[item]:
            found[item] = [], CANNOT
    return found


MIN_KNOWN_ITEMS = 4
MIN_ACCURACY = 0.7
"""Minimum share of known items that a careful rater gets right"""


@dataclass(frozen=True)
class RaterAccuracy:
    """The accuracy of one rater on the known items."""

    rater: Rater
    judged: int
    right: int

    @property
    def careless(self) -> bool:
        """Return whether the rater judged too many known items wrongly."""
        return self.judged >= MIN_KNOWN_ITEMS and self.right < MIN_ACCURACY * self.judged


@dataclass(frozen=True)
class CheckedRatings:
    """The ratings of a set, without the ratings of excluded raters."""

    rated: RatedSet
    accuracies: list[RaterAccuracy]
    """All raters, including excluded ones"""
    excluded: list[Rater]


def read_checked(folder: Path, excluded_raters: Sequence[str] = (), exclude_careless: bool = False) -> CheckedRatings:
    """Return the ratings in `folder` without excluded raters (names or codes). Raises DataError for unknown raters."""
    rated = read_rated(folder, VALIDATE)
    all_raters = [_accuracy(rated, rated.raters[id]) for id in dict.fromkeys(rating.rater for rating in rated.first)]
    left_out = {each.rater.id for each in all_raters if exclude_careless and each.careless}
    shown = {f"{each.rater.name} ({each.rater.code})": each.rater for each in all_raters}
    for name in excluded_raters:
        found = {
            rater.id
            for label, rater in shown.items()
            if name.casefold() in {text.casefold() for text in (rater.name, rater.code, label)}
        }
        if len(found) != 1:
            problem = f"{name!r} is one rater's name and another's code" if found else f"no rater {name!r}"
            raise DataError(f"{folder}: {problem}. Raters: {', '.join(shown) or 'nobody'}.")
        left_out |= found
    return CheckedRatings(
        rated.without(left_out), all_raters, [each for id, each in rated.raters.items() if id in left_out]
    )


def open_disputes(folder: Path, excluded_raters: Sequence[str], exclude_careless: bool) -> list[Dispute]:
    """Return the data rows on which raters disagree; known items need no adjudication."""
    rated = read_checked(folder, excluded_raters, exclude_careless).rated
    return [each for each in in_dispute(rated) if not rated.key[each.item].known]


def _accuracy(rated: RatedSet, rater: Rater) -> RaterAccuracy:
    known = [
        VERDICTS[rating.option - 1] in rated.key[rating.item].expected
        for rating in rated.first
        if rating.rater == rater.id and rating.axis == VERDICT.name
        if rating.option is not None and rated.key[rating.item].known
    ]
    return RaterAccuracy(rater, len(known), sum(known))


def write_results(folder: Path, excluded_raters: Sequence[str] = (), exclude_careless: bool = False) -> dict[str, Any]:
    """Store the results as results.json in the set's folder, and return them (see docs/how-to/check-data.md)."""
    found = results(read_checked(folder, excluded_raters, exclude_careless))
    write_json(folder / "results.json", found)
    return found


def results(checked: CheckedRatings) -> dict[str, Any]:
    """Return the content of results.json. Known items count only in `raters`."""
    rated = checked.rated
    decided, undecided = resolve(rated)
    rows = {id: row for id, row in rated.key.items() if not row.known}
    of_rows = {id: each for id, each in decided.items() if id in rows}
    ratings = [rating for rating in rated.first if rating.item in rows and rating.axis == VERDICT.name]
    open_items = undecided.keys() | resolve(rated, DECISION)[1].keys()
    settled = {rating.item for rating in rated.settled if rating.option} - open_items
    kinds = sorted({row.stratum for row in rows.values()} - {""})
    sources = sorted({row.source for row in rows.values()})
    return {
        "meditune": meditune.__version__,
        "sample": rated.made_from["sample"],
        "rows": len(rows),
        "judged": len({rating.item for rating in ratings}),
        "ratings": len(ratings),
        "ratings_by_verdict": _counts(VERDICT.label(r.option).lower() for r in ratings if r.option),
        "cannot": sum(rating.option is None for rating in ratings),
        "rows_by_verdict": _counts(each.label for each in of_rows.values()),
        "changed": sum(bool(each.answer) for each in of_rows.values()),
        "by_one_rater": sum(len(each.raters) == 1 and not each.settled for each in of_rows.values()),
        "correct": _share(of_rows.values()),
        "kinds": {kind: _share(each for id, each in of_rows.items() if rows[id].stratum == kind) for kind in kinds},
        "sources": {name: _share(each for id, each in of_rows.items() if rows[id].source == name) for name in sources},
        "suspicions": _suspicions(of_rows, rows),
        "seconds_per_row": seconds(ratings),
        "agreement": agreement(VERDICT, ratings, rated),
        **_decisions(rated, rows),
        "raters": [
            {
                "code": each.rater.code,
                "name": each.rater.name,
                "known_judged": each.judged,
                "known_right": each.right,
                "careless": each.careless,
                "left_out": each.rater in checked.excluded,
            }
            for each in checked.accuracies
        ],
        "undecided": [
            {"example": rows[id].example, "item": id, "why": why} for id, why in undecided.items() if id in rows
        ],
        "disputed": [
            {"example": rows[row["item"]].example, "settled": row["item"] in settled, **row}
            for row in disputes(rated)
            if row["item"] in rows
        ],
        "remarks": _remarks(checked),
    }


def _decisions(rated: RatedSet, rows: Mapping[str, Origin]) -> dict[str, Any]:
    if rated.set.axis(DECISION.name) is None:
        return {}
    labelled, undecided = resolve(rated, DECISION)
    given = Counter(each.label or "neither" for id, each in labelled.items() if id in rows)
    ratings = [rating for rating in rated.first if rating.item in rows and rating.axis == DECISION.name]
    counts = {name: given[name] for name in (*DECISIONS, "neither")}
    return {
        "decisions": counts | {"undecided": sum(id in rows for id in undecided)},
        "agreement_on_decisions": agreement(DECISION, ratings, rated),
    }


def _counts(verdicts: Any) -> dict[str, int]:
    counted = Counter(verdicts)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def _share(resolved: Iterable[Resolved]) -> dict[str, Any]:
    """Return the number of decided rows, and the percentage that is correct without changes."""
    correct = [each.label == "correct" and not each.answer for each in resolved]
    count, right = len(correct), sum(correct)
    percent, ci95 = (100 * right / count, wilson(right, count)) if count else (None, None)
    return {"decided": count, "percent": percent, "ci95": ci95}


def _suspicions(resolved: Mapping[str, Resolved], rows: Mapping[str, Origin]) -> dict[str, dict[str, int]]:
    """Return, for each signal, the number of rows that it flagged, and how many of them are decided and faulty."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for id, row in rows.items():
        for name in row.reasons:
            found[name]["rows"] += 1
            if id in resolved:
                found[name]["decided"] += 1
                found[name]["faulty"] += resolved[id].label != "correct" or bool(resolved[id].answer)
    return {name: {key: count[key] for key in ("rows", "decided", "faulty")} for name, count in sorted(found.items())}


def _remarks(checked: CheckedRatings) -> list[str]:
    remarks = unfinished(checked.rated)
    if checked.rated.made_from["sample"] == "suspicious":
        remarks.append(
            "The rows are the most suspicious ones, so the share of correct rows doesn't apply to all the data."
        )
    for each in checked.accuracies:
        if each.careless and each.rater not in checked.excluded:
            remarks.append(
                f"{each.rater.name} ({each.rater.code}) judged only {each.right} of {each.judged} known items "
                f"correctly, less than {MIN_ACCURACY:.0%}. Talk to this rater, or exclude the ratings: --exclude-rater "
                f"{each.rater.code}."
            )
    if checked.excluded:
        names = ", ".join(f"{rater.name} ({rater.code})" for rater in checked.excluded)
        remarks.append(f"Excluded raters: {names}.")
    few = ", ".join(each.rater.code for each in checked.accuracies if each.judged < MIN_KNOWN_ITEMS)
    if few and any(row.known for row in checked.rated.key.values()):
        remarks.append(f"Raters who judged too few known items to tell whether they are careful: {few}.")
    return remarks


@dataclass(frozen=True)
class WrittenDecisions:
    """The numbers of decisions in a decisions file that was written."""

    decided: int
    undecided: int
    from_other_sets: int


def write_decisions(
    folder: Path, path: Path, excluded_raters: Sequence[str] = (), exclude_careless: bool = False
) -> WrittenDecisions:
    """Write the decisions to `path`, and keep its decisions from other sets. Raises DataError if nothing is decided."""
    checked = read_checked(folder, excluded_raters, exclude_careless)
    decided, undecided = resolve(checked.rated)
    of_set = checked.rated.set.settings.shuffle
    found = {
        row.example: RowDecision.model_validate(
            {"id": row.example, "verdict": each.label, "answer": each.answer, "raters": each.raters}
            | {"settled": each.settled, "when": each.when, "sha256": row.sha256, "set": of_set}
        )
        for id, each in decided.items()
        if not (row := checked.rated.key[id]).known
    }
    if not found:
        raise DataError(
            f"{folder}: nothing was decided yet. Let raters check the set: meditune annotate serve {folder}"
        )
    earlier = read_decisions(path) if path.is_file() else {}
    others = {id: each for id, each in earlier.items() if each.set != of_set and id not in found}
    write_jsonl(path, (each.model_dump(mode="json") for each in (others | found).values()), private=True)
    open_ = sum(not checked.rated.key[id].known for id in undecided)
    return WrittenDecisions(len(found), open_, len(others))
