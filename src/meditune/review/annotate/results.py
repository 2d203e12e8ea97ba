"""`meditune annotate results`: verdicts, how far raters agree, who rates carelessly, and what is still open."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import meditune
from meditune.data.decisions import VERDICTS
from meditune.data.example import DECISIONS
from meditune.files import write_json
from meditune.review.annotate.checked import ENOUGH, LEAST, Careful, Checked, read_checked
from meditune.review.annotate.key import Row
from meditune.review.annotate.resolve import Resolved, resolve, resolve_decisions
from meditune.review.axes import DECISION, VERDICT
from meditune.review.common import agreement, disputes, seconds, unfinished
from meditune.review.rated import Rated
from meditune.shares import wilson

NAME = "results.json"


def write_results(folder: Path, without: Sequence[str] = (), without_careless: bool = False) -> dict[str, Any]:
    """The results, stored as results.json in the set's folder too; docs/annotate.md describes them."""
    found = results(read_checked(folder, without, without_careless))
    write_json(folder / NAME, found)
    return found


def results(checked: Checked) -> dict[str, Any]:
    """The content of results.json. Known items count nowhere but in `raters`."""
    rated = checked.rated
    decided, undecided = resolve(rated)
    rows = {id: row for id, row in rated.key.items() if not row.known}
    of_rows = {id: each for id, each in decided.items() if id in rows}
    axis = VERDICT
    said = [rating for rating in rated.first if rating.item in rows and rating.axis == axis.name]
    settled = {rating.item for rating in rated.settled}
    return {
        "meditune": meditune.__version__,
        "sample": rated.made_from["sample"],
        "rows": len(rows),
        "judged": len({rating.item for rating in said}),
        "ratings": len(said),
        "ratings_by_verdict": _counts(axis.label(r.option).lower() for r in said if r.option),
        "cannot": sum(rating.option is None for rating in said),
        "rows_by_verdict": _counts(each.verdict for each in of_rows.values()),
        "changed": sum(bool(each.answer) for each in of_rows.values()),
        "by_one_rater": sum(len(each.raters) == 1 and not each.settled for each in of_rows.values()),
        "correct": _share(of_rows, rows, {}),
        "kinds": {
            kind: _share(of_rows, rows, {"stratum": kind})
            for kind in sorted({row.stratum for row in rows.values()} - {""})
        },
        "sources": {
            name: _share(of_rows, rows, {"source": name}) for name in sorted({row.source for row in rows.values()})
        },
        "suspicions": _suspicions(of_rows, rows),
        "seconds_per_row": seconds(said),
        "agreement": agreement(axis, said, rated),
        **_decisions(rated, rows),
        "raters": [_rater(each, checked) for each in checked.careful],
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


def _decisions(rated: Rated[Row], rows: Mapping[str, Row]) -> dict[str, Any]:
    """Of sets that ask for decisions: how many rows got which, and the agreement on them."""
    if rated.set.axis(DECISION.name) is None:
        return {}
    labelled, undecided = resolve_decisions(rated)
    given: Counter[str] = Counter(each.decision or "neither" for id, each in labelled.items() if id in rows)
    said = [rating for rating in rated.first if rating.item in rows and rating.axis == DECISION.name]
    names: tuple[str, ...] = (*DECISIONS, "neither")
    named = {each: given[each] for each in names}
    return {
        "decisions": named | {"undecided": sum(id in rows for id in undecided)},
        "agreement_on_decisions": agreement(DECISION, said, rated),
    }


def _counts(verdicts: Any) -> dict[str, int]:
    counted = Counter(verdicts)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def _share(decided: Mapping[str, Resolved], rows: Mapping[str, Row], wanted: Mapping[str, str]) -> dict[str, Any]:
    """Of the decided rows of a kind: how many there are, and which share is correct as it stands, in percent."""
    chosen = [
        each for id, each in decided.items() if all(getattr(rows[id], name) == value for name, value in wanted.items())
    ]
    right = sum(each.verdict == "correct" and not each.answer for each in chosen)
    return {
        "decided": len(chosen),
        "percent": 100 * right / len(chosen) if chosen else None,
        "ci95": wilson(right, len(chosen)) if chosen else None,
    }


def _suspicions(decided: Mapping[str, Resolved], rows: Mapping[str, Row]) -> dict[str, dict[str, int]]:
    """Signal -> rows it noticed, how many of them are decided, and how many of those aren't correct as they stand."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for id, row in rows.items():
        for name in row.reasons:
            found[name]["rows"] += 1
            if id in decided:
                found[name]["decided"] += 1
                found[name]["faulty"] += decided[id].verdict != "correct" or bool(decided[id].answer)
    return {name: {key: count[key] for key in ("rows", "decided", "faulty")} for name, count in sorted(found.items())}


def _rater(careful: Careful, checked: Checked) -> dict[str, Any]:
    return {
        "code": careful.rater.code,
        "name": careful.rater.name,
        "known_judged": careful.judged,
        "known_right": careful.right,
        "careless": careful.careless,
        "left_out": careful.rater in checked.left_out,
    }


def _remarks(checked: Checked) -> list[str]:
    """What one must know before one believes the figures."""
    remarks = unfinished(checked.rated)
    if checked.rated.made_from["sample"] == "suspicious":
        remarks.append("The rows are the most suspicious ones: the share of correct ones isn't that of the data.")
    for each in checked.careful:
        if each.careless and each.rater not in checked.left_out:
            remarks.append(
                f"{each.rater.name} ({each.rater.code}) judged {each.right} of {each.judged} known items right, less "
                f"than {LEAST:.0%}. Talk to them, or leave them out: --without {each.rater.code}."
            )
    if checked.left_out:
        remarks.append("Left out: " + ", ".join(f"{rater.name} ({rater.code})" for rater in checked.left_out) + ".")
    if any(row.known for row in checked.rated.key.values()):
        few = [each.rater.code for each in checked.careful if each.judged < ENOUGH]
        if few:
            remarks.append(f"Too few known items to tell whether they rate with care: {', '.join(few)}.")
    return remarks
