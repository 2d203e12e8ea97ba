"""An audit of more rows than fit into memory: a file of the user's own, read a batch at a time.

The rules, their order, and what compares rows are those of audit.py; what is different is where rows wait. Each passes
once through the rules that look at one row, in workers if there are any, and then lies on the disk; in memory are some
hundred bytes of each. Rows that look alike are read again to be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data import own
from meditune.data.deidentify import Findings, cleaner, judge, treated
from meditune.data.example import Example
from meditune.data.quality import duplicates, kept, rules
from meditune.data.quality.audit import EXAMPLES, Audit, shown_as
from meditune.data.quality.duplicates import Marks
from meditune.data.quality.engines import Map, Name, engine
from meditune.data.quality.facts import histogram
from meditune.data.quality.ledger import FILE_NAME as LEDGER
from meditune.data.quality.ledger import Ledger
from meditune.data.quality.spool import Spool, Spooled
from meditune.data.rejects import Rejects
from meditune.data.terms import YOURS, marked
from meditune.errors import DataError, MedituneError
from meditune.files import replacing_folder, write_json
from meditune.progress import Progress
from meditune.recipe import DataSpec, PhiSpec, QualitySpec, Recipe, SourceSpec

BATCH = 500
"""Rows that are looked at together."""
NOT_SPLIT = "read as a stream, which looks at rows and compares them but makes no splits"


class Everything:
    """Holds whatever is asked for: which rows identifiers were found in isn't kept of a stream."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass
class Looked:
    """What was found in a batch of rows, each by itself."""

    read: int
    phi: Findings
    rows: list[tuple[bytes, Marks, bool, bool]] = field(default_factory=list)
    """Of those that are left: JSON, what compares them, whether they stay whatever is found, whether they changed"""
    entries: list[tuple[dict[str, str | None], dict[str, str] | None]] = field(default_factory=list)
    """Rows of the ledger, and the first of each rule as they are shown"""


def look(examples: list[Example], spec: QualitySpec, phi: PhiSpec) -> Looked:
    """Apply the rules that look at one row to a batch."""
    looked = Looked(len(examples), Findings(phi))
    shown: Counter[str] = Counter()
    for example in treated(examples, phi, looked.phi):
        stays = example.id in spec.keep
        after, entries = rules.look(example, spec, stays)
        for entry in entries:
            shown[entry.rule] += 1
            example_of_it = shown_as(entry, example.id in looked.phi.left_in) if shown[entry.rule] <= EXAMPLES else None
            looked.entries.append((entry.row(), example_of_it))
        if after is not None:
            row = after.model_dump_json().encode(), duplicates.marks(after), stays, after is not example
            looked.rows.append(row)
    looked.phi.forget_places()
    return looked


def stream_folder(recipe: Recipe, folder: Path, name: Name = "local", workers: int = 1) -> dict[str, Any]:
    """Audit the recipe's one source, a file, into `folder`, whole or not at all; returns quality.json's content.

    The folder gets quality.json, ledger.parquet, rejected.jsonl, and the rows that are left as rows.parquet or
    rows.jsonl, whichever the file is. Raises MedituneError where the recipe has something else to read, and DataError
    where nothing can be read.
    """
    source, spec = source_of(recipe), recipe.data
    assert source.path is not None, "source_of has looked"
    rejects = Rejects(cleaner(spec.phi))
    with replacing_folder(folder) as partial_folder, engine(name, workers) as mapped:
        audit = Audit(spec.quality, (), Ledger(partial_folder))
        phi, spool = Findings(spec.phi), Spool(partial_folder)
        dropped = _one_by_one(_batches(source, rejects), spec, mapped, audit, spool, phi)
        judge(own.SOURCE, spec.phi, phi)
        if phi.sentence(own.SOURCE) and spec.phi.action == "report":
            audit.hidden = Everything()
        left = _compared(audit, spool, mapped, partial_folder)
        changed, gone = _asked_again(audit, spool, left)
        stayed = np.setdiff1d(left, np.array(sorted(gone), np.int64))
        words = kept.write(partial_folder, Path(source.path).suffix.lower(), spool, stayed, changed)
        early = np.frombuffer(bytes(spool.changed), np.uint8)[stayed].astype(bool)
        # A row that takes up another's answer has no entry of its own, and isn't counted.
        moved = sorted(changed) if spec.quality.rules.repeated_question == "group" else []
        late = np.isin(stayed, np.array(moved, np.int64))
        facts = audit.facts(dropped + len(spool) - len(stayed), int((early | late).sum()))
        quality = {
            "synthetic": False,
            "recipe": recipe.name,
            "sources": {
                own.SOURCE: {
                    "read": audit.read,
                    "licence": source.licence or YOURS,
                    "rejected": rejects.counts().get(own.SOURCE, {}),
                }
            },
            "dropped": audit.dropped(),
            "lengths": {part: {"words": histogram(counts)} for part, counts in words.items()},
            "audit": facts,
            "phi": phi.facts(),
            "stream": {"engine": name, "workers": workers, "rows": len(stayed)},
            "not_split": NOT_SPLIT,
        }
        write_json(partial_folder / "quality.json", quality)
        audit.ledger.write(partial_folder / LEDGER)
        rejects.write(partial_folder / "rejected.jsonl")
    return quality


def source_of(recipe: Recipe) -> SourceSpec:
    """The file that a stream can read. Raises MedituneError where the recipe has another source, or more."""
    sources = recipe.data.sources
    if len(sources) != 1 or sources[0].name != own.SOURCE or not Path(sources[0].path or "").suffix:
        raise MedituneError(
            "A stream reads one file of your own (.parquet, .jsonl, .csv); this recipe has other sources. Leave "
            "--stream and --engine out, or name the file."
        )
    if sources[0].limit is not None:
        raise MedituneError("A stream reads all rows: leave data.sources.limit out, or --stream and --engine.")
    return sources[0]


def _batches(source: SourceSpec, rejects: Rejects) -> Iterator[list[Example]]:
    assert source.path is not None, "source_of has looked"
    found = iter(marked(own.read(source.path, rejects, fields=source.fields or None), source))
    while batch := list(islice(found, BATCH)):
        yield batch


def _one_by_one(
    batches: Iterable[list[Example]], spec: DataSpec, mapped: Map, audit: Audit, spool: Spool, phi: Findings
) -> int:
    """The rules that look at one row, what they left in the spool; returns how many rows were dropped."""
    with Progress("Looking at each row", None, "rows") as progress:
        for looked in mapped(partial(look, spec=spec.quality, phi=spec.phi), batches):
            audit.read += looked.read
            phi.join(looked.phi)
            for entry, shown in looked.entries:
                audit.take(entry, shown)
            for row in looked.rows:
                spool.add(*row)
            progress.advance(looked.read)
    if not audit.read:
        raise DataError("data.sources: nothing usable was read.")
    spool.finish()
    return audit.read - len(spool)


def _compared(audit: Audit, spool: Spool, mapped: Map, folder: Path) -> NDArray[np.int64]:
    """The spool's rows without those of which an earlier one says the same."""
    order = np.argsort(1 - np.frombuffer(bytes(spool.kept), np.uint8), kind="stable")
    ranked = Spooled(spool, order)
    gone = audit.repeats(ranked.examples, duplicates.pairs_among(ranked, mapped, folder))
    return np.sort(np.delete(order, sorted(gone)))


def _asked_again(audit: Audit, spool: Spool, left: NDArray[np.int64]) -> tuple[dict[int, Example], set[int]]:
    """What becomes of rows whose question was asked before, by their place in the spool."""
    if audit.spec.rules.repeated_question == "off":
        return {}, set()
    found = duplicates.repeated_among(spool.keys()[1][left])
    changed, gone = audit.asked_again(Spooled(spool, left).examples, found)
    return {int(left[at]): example for at, example in changed.items()}, {int(left[at]) for at in gone}
