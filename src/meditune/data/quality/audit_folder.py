"""A stand-alone audit: the findings of quality control on a recipe's data or a file, written to a folder.

A user's own file can have more rows than fit into memory: it is then streamed in batches. Rules and comparisons are
those of audit.py, but the rows are stored on disk. Each row passes once through the single-row rules, in worker
processes if requested, and is then written to disk; about a hundred bytes per row stay in memory. Similar rows are read
again for comparison. The remaining rows are written as a file.
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
    """Rows as JSON with their shingles in an unnamed file; it uses 66 bytes of memory per row."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
        self._ends = array("q", [0])
        self._texts = array("q")
        self._keys = array("Q")
        self.kept = bytearray()
        """For each row, 1 if it stays regardless of findings"""
        self.changed = bytearray()
        """For each row, 1 if a rule changed it"""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: bytes, marks: Marks, kept: bool, changed: bool) -> None:
        """Add a row as JSON."""
        shingles = marks.shingles.tobytes()
        self._file.write(text)
        self._file.write(shingles)
        self._texts.append(len(text))
        self._ends.append(self._ends[-1] + len(text) + len(shingles))
        self._keys.extend([*marks.content, *marks.asked, *marks.wording])
        self.kept.append(kept)
        self.changed.append(changed)

    def text(self, row: int) -> bytes:
        """Return a row's JSON."""
        return os.pread(self._file.fileno(), self._texts[row], self._ends[row])

    def example(self, row: int) -> Example:
        """Return a row."""
        return Example.model_validate_json(self.text(row))

    def shingles(self, row: int) -> Hashes:
        """Return a row's shingles."""
        start = self._ends[row] + self._texts[row]
        return np.frombuffer(os.pread(self._file.fileno(), self._ends[row + 1] - start, start), np.uint64)

    def finish(self) -> None:
        """Finish writing, before the first read."""
        self._file.flush()

    def keys(self) -> tuple[Keys, Keys, Keys]:
        """Return Marks.content, Marks.asked and Marks.wording of all rows."""
        whole = np.frombuffer(self._keys, np.uint64).reshape(-1, 6)
        return whole[:, :2], whole[:, 2:4], whole[:, 4:]


class Spooled:
    """A spool's rows in a given order for comparison (duplicates.Rows)."""

    def __init__(self, spool: Spool, order: NDArray[np.int64]) -> None:
        contents, _, wordings = spool.keys()
        self.contents, self.wordings = contents[order], wordings[order]
        self.shingles: Sequence[Hashes] = LazySelection(_Fetched(spool, spool.shingles), order)
        self.examples: Sequence[Example] = LazySelection(_Fetched(spool, spool.example), order)
        self._spool, self._order = spool, order

    def questions(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Return the questions of these rows."""
        return (json.loads(self._spool.text(int(row)))["question"] for row in self._order[rows])


class _Fetched(Sequence[Any]):
    """The results of a function for each of a spool's rows, computed on access."""

    def __init__(self, spool: Spool, fetch: Callable[[int], Any]) -> None:
        self._spool, self._fetch = spool, fetch

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, row: Any) -> Any:
        return self._fetch(row)


TOGETHER = 1000
"""Number of rows written at a time"""


def write(
    folder: Path, kind: str, spool: Spool, rows: NDArray[np.int64], changed: dict[int, Example]
) -> dict[str, Counter[int]]:
    """Write these rows of a spool, with the `changed` ones replaced, as rows.parquet or rows.jsonl.

    Returns histograms of the number of words in questions, contexts and answers.
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
    """Write rows as Parquet, with `meta` as JSON because each row may have its own keys."""
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
"""Number of rows checked at a time"""
NOT_SPLIT = "read as a stream, which checks and compares rows but makes no splits"


class EveryRow:
    """A container of every row: a stream doesn't record which rows contain identifiers."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass
class BatchAudit:
    """The findings of the single-row rules in a batch of rows."""

    read: int
    phi: Findings
    rows: list[tuple[bytes, Marks, bool, bool]] = field(default_factory=list)
    """Remaining rows: JSON, marks for comparison, True if the row always stays, True if it was changed"""
    entries: list[tuple[dict[str, str | None], dict[str, str] | None]] = field(default_factory=list)
    """Ledger rows, with an example to show for the first ones of each rule"""


def audit_batch(examples: list[Example], spec: QualitySpec, phi: PhiSpec) -> BatchAudit:
    """Apply the single-row rules to a batch."""
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
    """Audit the recipe's one source, a file, write `folder` atomically, and return the content of quality.json.

    The folder contains quality.json, ledger.parquet, rejected.jsonl, and the remaining rows as rows.parquet or
    rows.jsonl, depending on the file's format. Raises MedituneError if the recipe's sources can't be streamed, and
    DataError if nothing can be read.
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
        # A row that received the answer of a merged row has no ledger entry and isn't counted.
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
    """Return the recipe's source if a stream can read it. Raises MedituneError for any other or several sources."""
    sources = recipe.data.sources
    if len(sources) != 1 or sources[0].name != user_files.SOURCE or not Path(sources[0].path or "").suffix:
        raise MedituneError(
            "Streaming reads one file of your own (.parquet, .jsonl, .csv), but this recipe has other sources. Drop "
            "--stream and --engine, or give the file."
        )
    if sources[0].limit is not None:
        raise MedituneError("Streaming reads all rows: drop data.sources.limit, or --stream and --engine.")
    return sources[0]


def _batches(source: SourceSpec, rejects: Rejects) -> Iterator[list[Example]]:
    assert source.path is not None, "source_of has looked"
    found = iter(marked(user_files.read(source.path, rejects, fields=source.fields or None), source))
    while batch := list(islice(found, BATCH)):
        yield batch


def _one_by_one(
    batches: Iterable[list[Example]], spec: DataSpec, mapped: Map, audit: Audit, spool: Spool, phi: Findings
) -> int:
    """Apply the single-row rules, add the remaining rows to the spool, and return the number of dropped rows."""
    with Progress("Checking each row", None, "rows") as progress:
        for looked in mapped(partial(audit_batch, spec=spec.quality, phi=spec.phi), batches):
            audit.read += looked.read
            phi.join(looked.phi)
            for entry, shown in looked.entries:
                audit.take(entry, shown)
            for row in looked.rows:
                spool.add(*row)
            progress.advance(looked.read)
    if not audit.read:
        raise DataError("data.sources: no usable rows.")
    spool.finish()
    return audit.read - len(spool)


def _compared(audit: Audit, spool: Spool, mapped: Map, folder: Path) -> NDArray[np.int64]:
    """Return the spool's rows without duplicates of earlier rows."""
    order = np.argsort(1 - np.frombuffer(bytes(spool.kept), np.uint8), kind="stable")
    ranked = Spooled(spool, order)
    gone = audit.repeats(ranked.examples, duplicates.pairs_among(ranked, mapped, folder))
    return np.sort(np.delete(order, sorted(gone)))


def _asked_again(audit: Audit, spool: Spool, left: NDArray[np.int64]) -> tuple[dict[int, Example], set[int]]:
    """Return the changed and dropped rows among those with a repeated question, by their place in the spool."""
    if audit.spec.rules.repeated_question == "off":
        return {}, set()
    found = duplicates.repeated_questions_among(spool.keys()[1][left])
    changed, gone = audit.asked_again(Spooled(spool, left).examples, found)
    return {int(left[at]): example for at, example in changed.items()}, {int(left[at]) for at in gone}


PAGE = "audit.html"
STREAM_BYTES = 100_000_000
"""Files with at least this much text are read as a stream: in memory they take about twenty times as much"""


def recipe_for(what: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of that name or file; for a user's own table, a recipe that reads it and splits by group."""
    if Path(what).suffix.lower() not in FORMATS:
        return load_recipe(what, overrides).recipe
    source = {"name": "own", "path": what}
    own = [f"name={Path(what).stem}", f"data.sources={json.dumps([source])}", "data.quality.rules.layout=mend"]
    fixed = ["data.split=group", "data.fallback_to_sample=false"]
    return load_recipe("quickstart", [*own, *fixed, *overrides]).recipe


def audit_folder(
    recipe: Recipe, folder: Path, stream: bool | None = None, engine: Name = "local", workers: int = 1
) -> dict[str, Any]:
    """Write quality.json, ledger.parquet and rejected.jsonl to `folder` atomically; return the content of quality.json.

    If there are too few rows to split, quality.json has the reason and no splits. With `stream` or another engine, the
    rows needn't fit into memory (`stream_folder`); with None, the file's size decides. Raises MedituneError if the
    folder contains something else, and DataError if nothing can be read.
    """
    if folder.exists() and any(folder.iterdir()) and not _is_audit(folder):
        raise MedituneError(
            f"{folder} already exists and contains something else. Choose another --output, or remove the folder."
        )
    if stream is None:
        stream = engine != "local" or _is_large(recipe)
    if stream:
        return stream_folder(recipe, folder, engine, workers)
    if engine != "local":
        raise MedituneError("--engine ray reads the rows as a stream: drop --no-stream.")
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
    """Return True if an audit wrote this folder, even if its page is missing."""
    return (folder / PAGE).is_file() or ((folder / LEDGER).is_file() and not (folder / "train.jsonl").is_file())


def _is_large(recipe: Recipe) -> bool:
    """Return True, and print a note, if the recipe's only source is a user's file too large for memory."""
    sources = recipe.data.sources
    path = Path(sources[0].path or "")
    if len(sources) != 1 or sources[0].name != SOURCE or sources[0].limit is not None or not path.is_file():
        return False
    size = text_bytes(path)
    if size >= STREAM_BYTES:
        print(
            f"{path}: {size / 1e6:,.0f} MB of text, so the file is read as a stream: rows are checked, compared and "
            "written, but no splits are made. To read the file into memory anyway: --no-stream.",
            file=sys.stderr,
        )
    return size >= STREAM_BYTES
