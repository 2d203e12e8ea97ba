"""`meditune annotate import SET -o FILE`: what was decided, as the file that a recipe's data.decisions names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meditune.data.decisions import Decided, read_decisions
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.review.annotate.checked import read_checked
from meditune.review.annotate.resolve import resolve


@dataclass(frozen=True)
class Written:
    """What a decisions file got."""

    decided: int
    undecided: int
    others: int
    """Decisions of other sets that were in the file already, and stay"""


def write_decisions(folder: Path, path: Path, without: Sequence[str] = (), without_careless: bool = False) -> Written:
    """Write the set's decisions to `path`; those of other sets about other rows stay in it.

    Known items give none. Raises DataError where nothing was decided.
    """
    checked = read_checked(folder, without, without_careless)
    decided, undecided = resolve(checked.rated)
    of_set = checked.rated.set.shuffle
    found = {
        row.example: Decided(
            id=row.example,
            verdict=decided[id].verdict,
            answer=decided[id].answer,
            raters=decided[id].raters,
            settled=decided[id].settled,
            when=decided[id].when,
            sha256=row.sha256,
            set=of_set,
        )
        for id, row in checked.rated.key.items()
        if id in decided and not row.known
    }
    if not found:
        raise DataError(f"{folder}: nothing was decided yet. Let people check it: meditune annotate serve {folder}")
    earlier = read_decisions(path) if path.is_file() else {}
    kept = {id: each for id, each in earlier.items() if each.set != of_set and id not in found}
    write_jsonl(path, (each.model_dump(mode="json") for each in (kept | found).values()), private=True)
    open_ = sum(not checked.rated.key[id].known for id in undecided)
    return Written(len(found), open_, len(kept))
