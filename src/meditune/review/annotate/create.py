"""`meditune annotate create`: a set of rows to check, with known items among them."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meditune.data.decisions import fingerprint
from meditune.data.example import Example
from meditune.data.own import SOURCE as OWN
from meditune.data.restrictions import is_restricted
from meditune.data.sources import SOURCES
from meditune.evaluate.measured import groups_of
from meditune.files import holds, sha256
from meditune.review.annotate.choose import check_choice, chosen, stratum
from meditune.review.annotate.gold import Gold, plant, read_gold
from meditune.review.annotate.key import row_of
from meditune.review.annotate.rows import candidates
from meditune.review.annotate.suspicion import SIGNALS, Suspicion, flagged, suspicion
from meditune.review.ratingset import KEY, check_sharing, read_key_as, write_set
from meditune.review.tasks import VALIDATE

FORM = "verdict"


@dataclass(frozen=True)
class Wanted:
    """What a set is to hold, and who judges it."""

    rows: int = 100
    sample: str = "random"
    strata: str = "none"
    raters: int | None = None
    overlap: int | None = None
    """How many raters judge each row; two unless given"""
    shared: int = 0
    """Rows that all raters judge"""
    gold: Path | None = None
    planted: int = 0
    test: bool = False
    seed: int = 17
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What a set holds."""

    rows: int
    known: int
    restricted: int
    decided: int
    rejected: int


def create(source: str, folder: Path, wanted: Wanted) -> Made:
    """Leave a set in `folder`; `source` is a recipe, a run's folder or a table.

    Ids are drawn anew for each set. Known items go to every rater. Raises DataError where there is nothing to check,
    MedituneError where the folder holds something else.
    """
    check_choice(wanted.sample, wanted.strata)
    check_sharing(wanted.raters, wanted.overlap)
    found = candidates(source, wanted.overrides, wanted.test)
    gold_sha256 = sha256(wanted.gold) if wanted.gold and wanted.gold.is_file() else None
    asked = asdict(wanted) | {"gold": gold_sha256, "overrides": list(wanted.overrides)}
    made_from = {"source": source, "data": found.sha256, **asked}
    if not holds(folder, KEY, made_from):
        suspected = None
        if wanted.sample == "suspicious":
            suspected = suspicion(found.rows, SIGNALS | {"quality": flagged(found.noted)})
        rows = chosen(found.rows, wanted.rows, wanted.strata, wanted.seed, suspected)
        listed = [(row, _kept(row, wanted.strata, suspected)) for row in rows]
        shared = random.Random(f"{wanted.seed}/shared").sample(rows, min(wanted.shared, len(rows)))
        known = _known(wanted, found.rows, {row.id for row in rows})
        items, key, everyone = _written(listed, known, {row.id for row in shared}, Path(source).name)
        settings = {
            "task": VALIDATE.name,
            "axes": FORM,
            "raters": wanted.raters,
            "overlap": wanted.overlap or (min(2, wanted.raters) if wanted.raters else None),
            "everyone": everyone,
            "ranked": wanted.sample == "suspicious",
        }
        write_set(folder, settings, items, key, made_from)
    key_rows, _ = read_key_as(folder, row_of)
    restricted = {row.id for row in found.rows if is_restricted(row)}
    return Made(
        rows=sum(not row.known for row in key_rows.values()),
        known=sum(row.known for row in key_rows.values()),
        restricted=sum(row.example in restricted for row in key_rows.values()),
        decided=found.decided,
        rejected=found.rejected,
    )


def _known(wanted: Wanted, rows: Sequence[Example], taken: set[str]) -> list[Gold]:
    """The known items: those of a file, and planted ones."""
    known = read_gold(wanted.gold) if wanted.gold else []
    if wanted.planted:
        # A question that comes twice, with another answer, would give itself away.
        others = [row for row in rows if row.id not in taken]
        known += plant(others if len(others) > wanted.planted else rows, wanted.planted, wanted.seed)
    return known


def _kept(row: Example, strata: str, suspected: dict[str, Suspicion] | None) -> dict[str, Any]:
    """A row's part of the key."""
    suspected_of = suspected[row.id] if suspected else Suspicion()
    return {
        "origins": ["row"],
        "stratum": stratum(row, strata),
        "score": round(suspected_of.score, 3),
        "reasons": dict(suspected_of.reasons),
        "expected": [],
    }


def _written(
    listed: Sequence[tuple[Example, dict[str, Any]]], known: Sequence[Gold], shared: set[str], own: str
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """The items, with known ones at places that say nothing, the key to them, and the questions that go to everyone."""
    chance = secrets.SystemRandom()
    all_of_them = list(listed)
    for gold in known:
        kept = _kept(gold.example, "none", None) | {"origins": [gold.kind], "expected": list(gold.expected)}
        all_of_them.insert(chance.randrange(len(all_of_them) + 1), (gold.example, kept))
    items: list[dict[str, Any]] = []
    key: dict[str, Any] = {}
    everyone: list[str] = []
    for example, kept in all_of_them:
        id, asked = secrets.token_hex(6), secrets.token_hex(4)
        items.append({"id": id, "asked": asked, **_shown(example, own)})
        group = groups_of({example.id: example})[example.id]
        key[id] = {
            "example": example.id,
            "group": group,
            "source": example.source,
            "sha256": fingerprint(example),
            **kept,
        }
        if kept["expected"] or example.id in shared:
            everyone.append(asked)
    return items, key, everyone


def _shown(example: Example, own: str) -> dict[str, Any]:
    """What the page shows of a row; `own` is what rows of the user's own are said to come from."""
    named = str(example.meta.get("source") or example.source)
    title = SOURCES[named].title if named in SOURCES else own if named == OWN else named
    link = str(example.meta.get("url") or "")
    return {
        "question": example.question,
        "context": [passage.model_dump(mode="json") for passage in example.context],
        "answer": example.answer,
        "decision": example.decision or "",
        "source": title,
        "link": link if link.startswith(("https://", "http://")) else "",
    }
