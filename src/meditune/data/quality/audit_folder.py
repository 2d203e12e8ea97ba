"""Stand-alone audits: run quality control on a recipe's data or a file, and write the findings to a folder.

A user's own file that doesn't fit into memory is streamed in batches. The single-row rules check each row once, on
request in several processes or on a Ray cluster. The checked rows are written to disk, and only about a hundred bytes
per row stay in memory. Rows that may be similar are read again for comparison.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meditune.config.data_options import DataSpec, PhiSpec, QualitySpec, SourceSpec
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data.deidentify import Findings, cleaner, deidentified, refuse_left_identifiers
from meditune.data.example import Example, Passage, Turn
from meditune.data.prepare import checked_rows, split_rows
from meditune.data.quality import deduplication, quality_filters
from meditune.data.quality.audit import EXAMPLES, Audit, Lengths, excerpt, facts
from meditune.data.quality.deduplication import Hashes, Keys, LazySelection, Marks, Rows
from meditune.data.quality.ledger import BATCH_ENTRIES, Ledger
from meditune.data.quality.ledger import FILE_NAME as LEDGER
from meditune.data.read_sources import YOURS, available, marked, print_changes, read_own, read_sources
from meditune.data.readers import user_files
from meditune.data.readers.tables import FORMATS, Rejects, text_bytes
from meditune.data.readers.user_files import SOURCE
from meditune.data.sources import locate_own
from meditune.data.splits import Splits
from meditune.errors import DataError, MedituneError, install_command
from meditune.files import replace_folder, write_json, write_jsonl
from meditune.progress import Progress, track


class Spool:
    """Rows stored as JSON, with their shingles, in an unnamed temporary file; each row takes 66 bytes of memory."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
        self._ends = array("q", [0])
        self._texts = array("q")
        self._keys = bytearray()
        self.fixed = bytearray()
        """For each row, 1 if the row stays regardless of findings"""
        self.changed = bytearray()
        """For each row, 1 if a rule changed the row"""

    def add(self, text: bytes, marks: Marks, fixed: bool, changed: bool) -> None:
        """Add a row: its JSON text, its marks, and its entries in `fixed` and `changed`."""
        shingles = marks.shingles.tobytes()
        self._file.write(text)
        self._file.write(shingles)
        self._texts.append(len(text))
        self._ends.append(self._ends[-1] + len(text) + len(shingles))
        self._keys += marks.content + marks.asked + marks.wording
        self.fixed.append(fixed)
        self.changed.append(changed)

    def example(self, row: int) -> Example:
        """Return the row with this index."""
        return Example.model_validate_json(os.pread(self._file.fileno(), self._texts[row], self._ends[row]))

    def keys(self) -> tuple[Keys, Keys, Keys]:
        """Return Marks.content, Marks.asked and Marks.wording of all rows."""
        self._file.flush()
        contents, asked, wordings = np.frombuffer(self._keys, "S16").reshape(-1, 3).T
        return contents, asked, wordings

    def rows(self, order: NDArray[np.int64]) -> Rows:
        """Return the rows with the indices `order` for comparison; each row is read from disk when it is accessed."""
        contents, _, wordings = self.keys()
        examples, shingles = (LazySelection(fetch, order) for fetch in (self.example, self._shingles))
        return Rows(contents[order], wordings[order], shingles, examples)

    def _shingles(self, row: int) -> Hashes:
        start = self._ends[row] + self._texts[row]
        return np.frombuffer(os.pread(self._file.fileno(), self._ends[row + 1] - start, start), np.uint64)


def write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write examples as Parquet, with `meta` as JSON text, because its keys may differ from row to row."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    nested = {
        field: pyarrow.list_(pyarrow.struct([(name, text) for name in model.model_fields]))
        for field, model in (("context", Passage), ("turns", Turn))
    }
    # A field that the schema lacks would be lost without an error, so the schema has all fields of an example.
    schema = pyarrow.schema([(name, nested.get(name, text)) for name in Example.model_fields])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := [
            row | {"meta": json.dumps(row["meta"], ensure_ascii=False)} for row in islice(rows, BATCH_ENTRIES)
        ]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


BATCH = 500
NOT_SPLIT = "the file was read as a stream, which checks and compares rows but makes no splits"


@dataclass
class BatchAudit:
    """The findings of the single-row rules in a batch of rows."""

    read: int
    phi: Findings
    rows: list[tuple[bytes, Marks, bool, bool]] = field(default_factory=list)
    """Remaining rows: (JSON, marks for comparison, True if the row always stays, True if a rule changed the row)"""
    entries: list[tuple[dict[str, str | None], dict[str, str] | None]] = field(default_factory=list)
    """(ledger row, example to show); only the first EXAMPLES entries of each rule have an example"""


def audit_batch(examples: list[Example], spec: QualitySpec, phi: PhiSpec) -> BatchAudit:
    """Return the findings of the single-row rules in a batch, after treating identifiers according to `phi`."""
    result = BatchAudit(len(examples), Findings(phi))
    found: Counter[str] = Counter()
    for example in deidentified(examples, phi, result.phi):
        stays = example.id in spec.keep
        after, entries = quality_filters.apply_rules(example, spec, stays)
        for entry in entries:
            found[entry.rule] += 1
            preview = excerpt(entry, example.id in result.phi.left_in) if found[entry.rule] <= EXAMPLES else None
            result.entries.append((entry.row(), preview))
        if after is not None:
            marks = deduplication.marks(after)
            result.rows.append((after.model_dump_json().encode(), marks, stays, after is not example))
    result.phi.forget_places()
    return result


def stream_folder(recipe: Recipe, folder: Path, name: Engine = "local", workers: int = 1) -> dict[str, Any]:
    """Audit the file that is the recipe's only source as a stream.

    The findings are written to `folder` atomically. Return the content of quality.json.
    """
    source, spec = source_of(recipe), recipe.data
    assert source.path is not None, "checked by source_of"
    rejects, changes = Rejects(cleaner(spec.phi)), Counter[str]()
    with replace_folder(folder) as partial_folder, engine_map(name, workers) as mapped:
        audit = Audit(spec.quality, (), Ledger(partial_folder))
        phi, spool = Findings(spec.phi), Spool(partial_folder)
        found = marked(read_own(source, rejects, changes), source)
        _check_rows(iter(lambda: list(islice(found, BATCH)), []), spec, mapped, audit, spool, phi)
        print_changes(source.name, changes)
        refuse_left_identifiers(user_files.SOURCE, spec.phi, phi, path=locate_own(source.path, source.citation))
        if phi.sentence(user_files.SOURCE) and spec.phi.action == "report":
            audit.hidden = None
        left = _without_duplicates(audit, spool, mapped, partial_folder)
        changed, gone = _repeated_questions(audit, spool, left)
        stayed = np.setdiff1d(left, np.array(sorted(gone), np.int64))
        lengths = Lengths()
        rows = (changed[row] if (row := int(at)) in changed else spool.example(row) for at in stayed)
        counted = lengths.counted(track(rows, "Writing rows", len(stayed), unit="rows"))
        records = (example.model_dump(mode="json") for example in counted)
        if Path(source.path).suffix.lower() == ".parquet":
            write_parquet(partial_folder / "rows.parquet", records)
        else:
            write_jsonl(partial_folder / "rows.jsonl", records)
        was_changed = np.frombuffer(bytes(spool.changed), np.uint8)[stayed].astype(bool)
        # A row that received the answer of a merged row has no ledger entry and isn't counted.
        moved = sorted(changed) if spec.quality.action("repeated_question") == "group" else []
        was_changed |= np.isin(stayed, np.array(moved, np.int64))
        quality = {
            "synthetic": False,
            "recipe": recipe.name,
            "sources": {
                user_files.SOURCE: {
                    "read": audit.read,
                    "licence": source.licence or YOURS,
                    **(+changes),
                    "rejected": rejects.counts().get(user_files.SOURCE, {}),
                }
            },
            "dropped": audit.dropped(),
            "lengths": lengths.facts(),
            "audit": audit.facts(audit.read - len(stayed), int(was_changed.sum())),
            "phi": phi.facts(),
            "unusable": _unusable(rejects),
            "stream": {"engine": name, "workers": workers, "rows": len(stayed)},
            "not_split": NOT_SPLIT,
        }
        write_json(partial_folder / "quality.json", quality)
        audit.ledger.write(partial_folder / LEDGER)
        rejects.write(partial_folder / "rejected.jsonl")
    return quality


def source_of(recipe: Recipe) -> SourceSpec:
    """Return the recipe's only source, which is a file. Raises MedituneError if the recipe can't be streamed."""
    sources = recipe.data.sources
    path = sources[0].path or ""
    if len(sources) != 1 or sources[0].name != SOURCE or not Path(path).suffix or user_files.is_hub_id(path):
        raise MedituneError(
            "Only one file of your own (.parquet, .jsonl, .csv) can be streamed, but this recipe has other sources. "
            "Omit --stream and --engine, or specify a file instead of the recipe."
        )
    if sources[0].limit is not None:
        raise MedituneError("Streaming always reads all rows. Omit data.sources.limit, or --stream and --engine.")
    return sources[0]


def _check_rows(
    batches: Iterable[list[Example]], spec: DataSpec, mapped: Map, audit: Audit, spool: Spool, phi: Findings
) -> None:
    """Apply the single-row rules, and add the remaining rows to the spool."""
    with Progress("Checking each row", None, "rows") as progress:
        for result in mapped(partial(audit_batch, spec=spec.quality, phi=spec.phi), batches):
            audit.read += result.read
            phi.join(result.phi)
            for entry, preview in result.entries:
                audit.note_row(entry, preview)
            for row in result.rows:
                spool.add(*row)
            progress.advance(result.read)
    if not audit.read:
        raise DataError("data.sources: no usable rows.")


def _without_duplicates(audit: Audit, spool: Spool, mapped: Map, folder: Path) -> NDArray[np.int64]:
    """Return the sorted indices of the spool's rows, without duplicates of earlier rows."""
    order = np.argsort(1 - np.frombuffer(bytes(spool.fixed), np.uint8), kind="stable")
    ranked = spool.rows(order)
    gone = audit.repeats(ranked.examples, deduplication.pairs_among(ranked, mapped, folder))
    return np.sort(np.delete(order, sorted(gone)))


def _repeated_questions(
    audit: Audit, spool: Spool, remaining: NDArray[np.int64]
) -> tuple[dict[int, Example], set[int]]:
    """Return the changed rows (by index in the spool) and the indices of dropped rows, like `Audit.asked_again`."""
    if audit.spec.action("repeated_question") == "off":
        return {}, set()
    found = deduplication.repeated_questions(spool.keys()[1][remaining])
    changed, gone = audit.asked_again(spool.rows(remaining).examples, found)
    return {int(remaining[at]): example for at, example in changed.items()}, {int(remaining[at]) for at in gone}


Engine = Literal["local", "ray"]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""A function that applies another function to each item, in order, like `map`"""
BATCHES_PER_WORKER = 2
"""Number of batches per worker that are in progress or queued; more batches would only take up memory"""


@contextmanager
def engine_map(name: Engine, workers: int) -> Iterator[Map]:
    """Yield a function like `map`, which applies a picklable function to batches and yields the results in order.

    With one local worker, the work is done in this process. Ray connects to the cluster at RAY_ADDRESS or starts one on
    this machine. Raises MedituneError if Ray isn't installed.
    """
    if name == "ray":
        with _ray(workers) as found:
            yield found
    elif workers == 1:
        yield map
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:

            def applied(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
                under_way = (pool.submit(function, item) for item in items)
                return _in_order(under_way, lambda future: future.result(), workers * BATCHES_PER_WORKER)

            try:
                yield applied
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _ray(workers: int) -> Iterator[Map]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MedituneError(f"--engine ray needs one more package: {install_command('scale')}.") from error
    elsewhere = os.environ.get("RAY_ADDRESS")
    own = {} if elsewhere else {"num_cpus": workers, "include_dashboard": False}
    ray.init(address=elsewhere, log_to_driver=False, logging_level="error", **own)
    slots = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    apply = ray.remote(lambda function, item: function(item))

    def applied(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        shared = ray.put(function)
        return _in_order((apply.remote(shared, item) for item in items), ray.get, slots * BATCHES_PER_WORKER)

    try:
        yield applied
    finally:
        ray.shutdown()


def _in_order(pending: Iterable[Any], result: Callable[[Any], Any], max_pending: int) -> Iterator[Any]:
    """Yield results in order; work is started on demand, at most `max_pending` items at a time."""
    waiting: deque[Any] = deque()
    for each in pending:
        waiting.append(each)
        if len(waiting) >= max_pending:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def _end_with_parent() -> None:
    """Exit this worker process when its parent process ends; otherwise, the worker would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


PAGE = "audit.html"
STREAM_BYTES = 100_000_000
"""Files with at least this much text are read as a stream, because their rows take about twenty times as much memory"""


def recipe_for(recipe_or_table: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe with this name or path; for a user's table, a recipe that reads it and splits by group."""
    if Path(recipe_or_table).suffix.lower() not in FORMATS:
        return load_recipe(recipe_or_table, overrides).recipe
    source = {"name": "own", "path": recipe_or_table}
    own = [
        f"name={Path(recipe_or_table).stem}",
        f"data.sources={json.dumps([source])}",
        "data.quality.rules.layout=mend",
    ]
    fixed = ["data.split=group", "data.fallback_to_sample=false"]
    return load_recipe("quickstart", [*own, *fixed, *overrides]).recipe


def audit_folder(
    recipe: Recipe, folder: Path, stream: bool | None = None, engine: Engine = "local", workers: int = 1
) -> dict[str, Any]:
    """Write quality.json, ledger.parquet and rejected.jsonl to `folder` atomically; return the content of quality.json.

    With `stream` or the engine ray, the rows needn't fit into memory. If `stream` is None, the engine and the file's
    size decide. Raises MedituneError if the folder contains something other than an audit, and DataError if no rows can
    be read.
    """
    is_audit = (folder / PAGE).is_file() or ((folder / LEDGER).is_file() and not (folder / "train.jsonl").is_file())
    if folder.exists() and any(folder.iterdir()) and not is_audit:
        raise MedituneError(
            f"{folder} already exists and contains something other than an audit. Choose another --output, or remove "
            "the folder."
        )
    if stream is None:
        stream = engine != "local" or _is_large(recipe)
    if stream:
        return stream_folder(recipe, folder, engine, workers)
    if engine != "local":
        raise MedituneError("--engine ray always reads the rows as a stream. Omit --no-stream.")
    if workers > 1:
        raise MedituneError("--workers needs a file that is read as a stream. Add --stream, or omit --workers.")
    spec, synthetic = available(recipe.data)
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    by_source, read = read_sources(spec, recipe.seed, rejects, phi)
    audit = checked_rows(spec, by_source, phi.left_in)
    problem = ""
    try:
        splits = audit.between(split_rows(spec, recipe.seed, audit, by_source))
    except DataError as error:
        problem = str(error)
        splits = Splits([example for examples in audit.remaining.values() for example in examples], [], [], "none")
    quality = {
        "synthetic": synthetic,
        "recipe": recipe.name,
        **facts(splits, read, audit.dropped()),
        "audit": audit.facts(),
        "phi": phi.facts(),
        "unusable": _unusable(rejects),
        "not_split": problem,
    }
    with replace_folder(folder) as partial:
        write_json(partial / "quality.json", quality)
        audit.ledger.write(partial / LEDGER)
        rejects.write(partial / "rejected.jsonl")
    return quality


def _unusable(rejects: Rejects) -> list[dict[str, Any]]:
    """Return `source`, `reason`, `rows` (number) and `first` (location, or "") of the rows that can't be used."""
    first = rejects.places(1)
    return [
        {"source": source, "reason": reason, "rows": count, "first": "".join(first.get((source, reason), []))}
        for source, reasons in rejects.counts().items()
        for reason, count in reasons.items()
    ]


def _is_large(recipe: Recipe) -> bool:
    """Return True, and print a note, if the recipe's only source is a user's file that is too large for memory."""
    sources = recipe.data.sources
    if len(sources) != 1 or sources[0].name != SOURCE or sources[0].limit is not None or not sources[0].path:
        return False
    path = Path(locate_own(sources[0].path, sources[0].citation))
    if not path.is_file():
        return False
    size = text_bytes(path)
    if size >= STREAM_BYTES:
        print(
            f"{path}: {size / 1e6:,.0f} MB of text, so the file is read as a stream: rows are checked, compared and "
            "written, but no splits are made. To read the file into memory anyway: --no-stream.",
            file=sys.stderr,
        )
    return size >= STREAM_BYTES
