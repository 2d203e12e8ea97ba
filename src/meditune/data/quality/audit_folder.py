"""An audit on its own: what quality control finds in a recipe's data or in a file, as a folder.

An audit of more rows than fit into memory: a file of the user's own, read a batch at a time.

The rules, their order, and what compares rows are those of audit.py; what is different is where rows wait. Each passes
once through the rules that look at one row, in workers if there are any, and then lies on the disk; in memory are some
hundred bytes of each. Rows that look alike are read again to be compared.

Rows that wait on the disk: each can be had back by its number, and what compares them stays in memory.

The rows that an audit leaves, as a file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.config.data_options import DataSpec, PhiSpec, QualitySpec, SourceSpec
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data.deidentify import Findings, cleaner, deidentified, refuse_left_identifiers
from meditune.data.example import Example
from meditune.data.prepare import checked_rows, split_rows
from meditune.data.quality import duplicates, rules
from meditune.data.quality.audit import EXAMPLES, Audit, display_name, facts, histogram
from meditune.data.quality.duplicates import Keys, LazySelection, Marks
from meditune.data.quality.ledger import FILE_NAME as LEDGER
from meditune.data.quality.ledger import Ledger
from meditune.data.quality.minhash import Hashes
from meditune.data.quality.parallel_map import Map, Name, engine
from meditune.data.read_sources import YOURS, available, marked, read_sources
from meditune.data.readers import user_files
from meditune.data.readers.tables import FORMATS, Rejects, text_bytes
from meditune.data.readers.user_files import SOURCE
from meditune.data.splits import Splits
from meditune.errors import DataError, MedituneError
from meditune.files import replace_folder, write_json, write_jsonl
from meditune.progress import Progress, track


class Spool:
    """Rows as JSON with their shingles, in an unnamed file; in memory 66 bytes a row."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
        self._ends = array("q", [0])
        self._texts = array("q")
        self._keys = array("Q")
        self.kept = bytearray()
        """For each row, whether it is to stay whatever is found"""
        self.changed = bytearray()
        """For each row, whether a rule changed it"""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: bytes, marks: Marks, kept: bool, changed: bool) -> None:
        """Add a row, which is JSON."""
        shingles = marks.shingles.tobytes()
        self._file.write(text)
        self._file.write(shingles)
        self._texts.append(len(text))
        self._ends.append(self._ends[-1] + len(text) + len(shingles))
        self._keys.extend([*marks.content, *marks.asked, *marks.wording])
        self.kept.append(kept)
        self.changed.append(changed)

    def text(self, row: int) -> bytes:
        """A row's JSON."""
        return os.pread(self._file.fileno(), self._texts[row], self._ends[row])

    def example(self, row: int) -> Example:
        """A row."""
        return Example.model_validate_json(self.text(row))

    def shingles(self, row: int) -> Hashes:
        """A row's shingles."""
        start = self._ends[row] + self._texts[row]
        return np.frombuffer(os.pread(self._file.fileno(), self._ends[row + 1] - start, start), np.uint64)

    def finish(self) -> None:
        """Nothing more is added, and reading begins."""
        self._file.flush()

    def keys(self) -> tuple[Keys, Keys, Keys]:
        """Marks.content, Marks.asked and Marks.wording of all rows."""
        whole = np.frombuffer(self._keys, np.uint64).reshape(-1, 6)
        return whole[:, :2], whole[:, 2:4], whole[:, 4:]


class Spooled:
    """A spool's rows in an order of their own, to be compared (duplicates.Rows)."""

    def __init__(self, spool: Spool, order: NDArray[np.int64]) -> None:
        contents, _, wordings = spool.keys()
        self.contents, self.wordings = contents[order], wordings[order]
        self.shingles: Sequence[Hashes] = LazySelection(_Fetched(spool, spool.shingles), order)
        self.examples: Sequence[Example] = LazySelection(_Fetched(spool, spool.example), order)
        self._spool, self._order = spool, order

    def questions(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Those rows' questions."""
        return (json.loads(self._spool.text(int(row)))["question"] for row in self._order[rows])


class _Fetched(Sequence[Any]):
    """What a function finds for each of a spool's rows."""

    def __init__(self, spool: Spool, fetch: Callable[[int], Any]) -> None:
        self._spool, self._fetch = spool, fetch

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, row: Any) -> Any:
        return self._fetch(row)


TOGETHER = 1000
"""Rows that are written together."""


def write(
    folder: Path, kind: str, spool: Spool, rows: NDArray[np.int64], changed: dict[int, Example]
) -> dict[str, Counter[int]]:
    """Write those rows of a spool, `changed` in place of what is there, as rows.parquet, or else as rows.jsonl.

    Returns how often questions, contexts and answers have how many words.
    """
    words: dict[str, Counter[int]] = {"question": Counter(), "context": Counter(), "answer": Counter()}
    found = _counted(spool, rows, changed, words)
    if kind == ".parquet":
        _write_parquet(folder / "rows.parquet", found)
    else:
        write_jsonl(folder / "rows.jsonl", found)
    return words


def _counted(
    spool: Spool, rows: NDArray[np.int64], changed: dict[int, Example], words: dict[str, Counter[int]]
) -> Iterator[dict[str, Any]]:
    for row in track(rows, "Writing rows", unit="rows"):
        found = changed[int(row)].model_dump(mode="json") if int(row) in changed else json.loads(spool.text(int(row)))
        words["question"][len(found["question"].split())] += 1
        words["context"][sum(len(passage["text"].split()) for passage in found["context"])] += 1
        if found["answer"]:
            words["answer"][len(found["answer"].split())] += 1
        yield found


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """`meta` is JSON: each row may have keys of its own."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    passage = pyarrow.struct([("text", text), ("label", text)])
    kinds = {"context": pyarrow.list_(passage)}
    names = ("id", "source", "question", "context", "answer", "decision", "group", "meta")
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in names])
    waiting: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in rows:
            waiting.append(row | {"meta": json.dumps(row["meta"], ensure_ascii=False)})
            if len(waiting) == TOGETHER:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting = []
        writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))


BATCH = 500
"""Rows that are looked at together."""
NOT_SPLIT = "read as a stream, which looks at rows and compares them but makes no splits"


class EveryRow:
    """Holds whatever is asked for: which rows identifiers were found in isn't kept of a stream."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass
class BatchAudit:
    """What was found in a batch of rows, each by itself."""

    read: int
    phi: Findings
    rows: list[tuple[bytes, Marks, bool, bool]] = field(default_factory=list)
    """Of those that are left: JSON, what compares them, whether they stay whatever is found, whether they changed"""
    entries: list[tuple[dict[str, str | None], dict[str, str] | None]] = field(default_factory=list)
    """Rows of the ledger, and the first of each rule as they are shown"""


def audit_batch(examples: list[Example], spec: QualitySpec, phi: PhiSpec) -> BatchAudit:
    """Apply the rules that look at one row to a batch."""
    looked = BatchAudit(len(examples), Findings(phi))
    shown: Counter[str] = Counter()
    for example in deidentified(examples, phi, looked.phi):
        stays = example.id in spec.keep
        after, entries = rules.apply_rules(example, spec, stays)
        for entry in entries:
            shown[entry.rule] += 1
            example_of_it = (
                display_name(entry, example.id in looked.phi.left_in) if shown[entry.rule] <= EXAMPLES else None
            )
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
    with replace_folder(folder) as partial_folder, engine(name, workers) as mapped:
        audit = Audit(spec.quality, (), Ledger(partial_folder))
        phi, spool = Findings(spec.phi), Spool(partial_folder)
        dropped = _one_by_one(_batches(source, rejects), spec, mapped, audit, spool, phi)
        refuse_left_identifiers(user_files.SOURCE, spec.phi, phi)
        if phi.sentence(user_files.SOURCE) and spec.phi.action == "report":
            audit.hidden = EveryRow()
        left = _compared(audit, spool, mapped, partial_folder)
        changed, gone = _asked_again(audit, spool, left)
        stayed = np.setdiff1d(left, np.array(sorted(gone), np.int64))
        words = write(partial_folder, Path(source.path).suffix.lower(), spool, stayed, changed)
        early = np.frombuffer(bytes(spool.changed), np.uint8)[stayed].astype(bool)
        # A row that takes up another's answer has no entry of its own, and isn't counted.
        moved = sorted(changed) if spec.quality.rules.repeated_question == "group" else []
        late = np.isin(stayed, np.array(moved, np.int64))
        facts = audit.facts(dropped + len(spool) - len(stayed), int((early | late).sum()))
        quality = {
            "synthetic": False,
            "recipe": recipe.name,
            "sources": {
                user_files.SOURCE: {
                    "read": audit.read,
                    "licence": source.licence or YOURS,
                    "rejected": rejects.counts().get(user_files.SOURCE, {}),
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
    if len(sources) != 1 or sources[0].name != user_files.SOURCE or not Path(sources[0].path or "").suffix:
        raise MedituneError(
            "A stream reads one file of your own (.parquet, .jsonl, .csv); this recipe has other sources. Leave "
            "--stream and --engine out, or name the file."
        )
    if sources[0].limit is not None:
        raise MedituneError("A stream reads all rows: leave data.sources.limit out, or --stream and --engine.")
    return sources[0]


def _batches(source: SourceSpec, rejects: Rejects) -> Iterator[list[Example]]:
    assert source.path is not None, "source_of has looked"
    found = iter(marked(user_files.read(source.path, rejects, fields=source.fields or None), source))
    while batch := list(islice(found, BATCH)):
        yield batch


def _one_by_one(
    batches: Iterable[list[Example]], spec: DataSpec, mapped: Map, audit: Audit, spool: Spool, phi: Findings
) -> int:
    """The rules that look at one row, what they left in the spool; returns how many rows were dropped."""
    with Progress("Looking at each row", None, "rows") as progress:
        for looked in mapped(partial(audit_batch, spec=spec.quality, phi=spec.phi), batches):
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
    found = duplicates.repeated_questions_among(spool.keys()[1][left])
    changed, gone = audit.asked_again(Spooled(spool, left).examples, found)
    return {int(left[at]): example for at, example in changed.items()}, {int(left[at]) for at in gone}


PAGE = "audit.html"
STREAM_BYTES = 100_000_000
"""From this size of its text on, a file is read as a stream: in memory it would take some twenty times as much."""


def recipe_for(what: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of that name or file; for a table of the user's own, one that reads it and splits by group."""
    if Path(what).suffix.lower() not in FORMATS:
        return load_recipe(what, overrides).recipe
    source = {"name": "own", "path": what}
    own = [f"name={Path(what).stem}", f"data.sources={json.dumps([source])}", "data.quality.rules.layout=mend"]
    fixed = ["data.split=group", "data.fallback_to_sample=false"]
    return load_recipe("quickstart", [*own, *fixed, *overrides]).recipe


def audit_folder(
    recipe: Recipe, folder: Path, stream: bool | None = None, engine: Name = "local", workers: int = 1
) -> dict[str, Any]:
    """Leave quality.json, ledger.parquet and rejected.jsonl in `folder`, whole or not at all; returns the first.

    Where the rows are too few to be split, it says why and has no splits. With `stream`, or an engine, the rows needn't
    fit into memory (`stream_folder`); None leaves the choice to the file's size. Raises MedituneError where the folder
    holds something else, and DataError where nothing can be read.
    """
    if folder.exists() and any(folder.iterdir()) and not _is_audit(folder):
        raise MedituneError(
            f"{folder} is there already and holds something else. Choose another --output, or remove it."
        )
    if stream is None:
        stream = engine != "local" or _is_large(recipe)
    if stream:
        return stream_folder(recipe, folder, engine, workers)
    if engine != "local":
        raise MedituneError("--engine ray reads its rows as a stream: leave --no-stream out.")
    spec, synthetic = available(recipe.data)
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    by_source, read = read_sources(spec, recipe.seed, rejects, phi)
    audit = checked_rows(spec, by_source, phi.left_in)
    problem = ""
    try:
        splits = audit.between(split_rows(spec, recipe.seed, audit.left, by_source))
    except DataError as error:
        problem = str(error)
        splits = Splits([example for examples in audit.left.values() for example in examples], [], [], "none")
    quality = {
        "synthetic": synthetic,
        "recipe": recipe.name,
        **facts(splits, read, audit.dropped()),
        "audit": audit.facts(),
        "phi": phi.facts(),
        "not_split": problem,
    }
    with replace_folder(folder) as partial:
        write_json(partial / "quality.json", quality)
        audit.ledger.write(partial / LEDGER)
        rejects.write(partial / "rejected.jsonl")
    return quality


def _is_audit(folder: Path) -> bool:
    """Whether an audit left this, even if its page couldn't be drawn."""
    return (folder / PAGE).is_file() or ((folder / LEDGER).is_file() and not (folder / "train.jsonl").is_file())


def _is_large(recipe: Recipe) -> bool:
    """Whether the recipe's one source is a file of the user's own that had better be read as a stream; says so."""
    sources = recipe.data.sources
    path = Path(sources[0].path or "")
    if len(sources) != 1 or sources[0].name != SOURCE or sources[0].limit is not None or not path.is_file():
        return False
    size = text_bytes(path)
    if size >= STREAM_BYTES:
        print(
            f"{path}: {size / 1e6:,.0f} MB of text, so it is read as a stream: rows are looked at and compared, and "
            "what is left is written, but no splits are made. To read it into memory all the same: --no-stream.",
            file=sys.stderr,
        )
    return size >= STREAM_BYTES
