"""One update of a library: import literature, list retractions, update the index, and make training pairs.

If a step fails, the later ones still run with what is available: articles fetched before a server failed are indexed,
and retracted articles leave the index. Only changed articles are read and embedded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune import __version__
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError, MedituneError
from meditune.files import replace_file, write_json, write_jsonl
from meditune.models.sentence_encoder import DEFAULT, load_encoder
from meditune.operate.literature import abstract_questions, article_library
from meditune.operate.literature.abstract_questions import Pairs
from meditune.operate.literature.article_library import Flag, Library, LibraryUpdate
from meditune.operate.literature.medline_update_files import (
    FETCHED,
    UpdateFileFolder,
    UpdateFileImport,
    UpdateFileServer,
)
from meditune.operate.literature.pubmed_client import KEY_VARIABLE, URL, Eutils, RateLimitedClient, contact
from meditune.operate.literature.pubmed_search import LibrarySearch
from meditune.retrieve import build_index, collections, index, storage
from meditune.retrieve.build_index import Changes
from meditune.retrieve.collections import CURRENT, FILE, Collection
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.index import Manifest
from meditune.retrieve.storage import MANIFEST, IndexStorage, index_storage
from meditune.store.answers import Answers
from meditune.store.open_store import exists, open_store
from meditune.store.overview import Notes


def update_index(
    library: Library, place: IndexStorage, documents: Sequence[Collection], embedding: str | None
) -> tuple[Manifest, Changes] | None:
    """Update the index with the library and the documents, or build it; return None if it is current or there is
    nothing to index.

    Retracted and deleted articles are removed from the index, whatever their source. Raises DataError and ModelError
    like `build_index.update`.
    """
    change, collection = library.change(), collections.library_in(library.folder)
    if place.read(MANIFEST) is None:
        if not documents and not library.counts()[CURRENT]:
            return None
        manifest, changes = build_index.build(place, [collection, *documents], load_encoder(embedding or DEFAULT))
    else:
        before = index.read(place)
        registered = collection.as_dict() in before.collections
        since = library.indexed(place.name, before.content) if registered else 0
        if since == change and registered and not documents:
            return None
        model = load_encoder(embedding or before.embedding["name"])
        manifest, changes = build_index.update(place, [collection, *documents], model, since=since)
    library.is_indexed(place.name, manifest.content, change)
    return manifest, changes


def pmids(place: IndexStorage) -> set[str]:
    """Return the PubMed ids of the articles in an index, whatever their source; none if there is no index."""
    if place.read(MANIFEST) is None:
        return set()
    with storage.readable(place):
        table = storage.connect(place).open_table(index.read(place).table)
        documents = {name for batch in storage.scan(table, ["document"]) for name in batch["document"].to_pylist()}
    sources = (pubmed_articles.SOURCE, pubmedqa.SOURCE)
    return {name.partition(":")[2] for name in documents if name.partition(":")[0] in sources}


REJECTS_FILE = "rejects.jsonl"
REPORT_FILE = "update.json"
"""Report of the last update"""


@dataclass(frozen=True)
class UpdateOptions:
    """The options of an update, as given on the command line."""

    queries: tuple[str, ...] = ()
    since: str | None = None
    files: str | None = None
    """A folder, or a server's URL"""
    first: str | None = None
    documents: tuple[Collection, ...] = ()
    index: str | None = None
    embedding: str | None = None
    email: str | None = None
    eutils: str = URL
    store: str | None = None
    """Where a server keeps its answers: a folder, or a database URL"""
    tests: tuple[Path, ...] = ()
    """Files of evaluation items, in addition to PubMedQA's"""


@dataclass
class Report:
    """The result of an update."""

    read: dict[str, int] = field(default_factory=dict)
    """Number of articles found by each query"""
    files: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    retracted: list[dict[str, str]] = field(default_factory=list)
    """Retractions that this update learned of"""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Rejected records by reason"""
    library: dict[str, int] = field(default_factory=dict)
    flagged: list[Flag] = field(default_factory=list)
    """Stored answers that cite retracted articles"""
    index: tuple[Manifest, Changes] | None = None
    pairs: Pairs | None = None
    """None if nothing had changed"""
    failures: list[MedituneError] = field(default_factory=list)


def update(folder: Path, options: UpdateOptions) -> Report:
    """Update the library in a folder. The report lists steps that failed.

    Raises DataError before any change if the request is invalid or another update is running.
    """
    remote = bool(options.queries) or _is_server(options.files)
    email = contact(options.email) if remote else ""
    if not (options.queries or options.files or options.index or (folder / FILE).is_file()):
        raise DataError(
            "Nothing to import. Give --query or --update-files, and --index INDEX to make the articles searchable."
        )
    if options.documents and not options.index:
        raise DataError("--documents are added to an index. Name the index: --index INDEX.")
    report = Report()
    with article_library.opened(folder) as library:
        _attempt(report, lambda: _import_updates(library, options, email, report))
        report.library = library.counts()
        _attempt(report, lambda: _lists(library))
        if options.store:
            _attempt(report, lambda: _flags(library, options, report))
        if options.index:
            _attempt(report, lambda: _index(library, options, report))
        _attempt(report, lambda: _pairs(library, options, report))
        if options.store:
            _attempt(report, lambda: _note(folder, options, report))
        write_json(folder / REPORT_FILE, facts(report))
    return report


def facts(report: Report) -> dict[str, Any]:
    """Return the content of update.json, for programs that monitor updates."""
    manifest, changes = report.index or (None, None)
    return {
        "meditune": __version__,
        "when": article_library.now(),
        "read": report.read,
        "files": report.files,
        "counts": dict(report.counts),
        "left_out": dict(report.left_out),
        "set_aside": dict(report.set_aside),
        "retracted": report.retracted,
        "flagged": len({each.answer for each in report.flagged}),
        "library": report.library,
        "index": {"content": manifest.content, "passages": manifest.passages, "documents": manifest.documents}
        if manifest
        else None,
        "changes": {name: getattr(changes, name) for name in ("added", "changed", "removed")} if changes else None,
        "pairs": len(report.pairs.examples) if report.pairs else None,
        "failures": [str(failure) for failure in report.failures],
    }


def _attempt(report: Report, step: Callable[[], None]) -> None:
    try:
        step()
    except MedituneError as error:
        report.failures.append(error)


def _import_updates(library: Library, options: UpdateOptions, email: str, report: Report) -> None:
    rejects = Rejects()
    http = RateLimitedClient(email, os.environ.get(KEY_VARIABLE) or None) if email else None
    asked, from_files = LibraryUpdate(library, is_requested=True), LibraryUpdate(library, is_requested=False)
    try:
        # Files first, because their records are older.
        if options.files:
            _take_files(library, options, http, from_files, rejects, report)
        if options.queries and http:
            searching = LibrarySearch(library, Eutils(http, options.eutils), asked, rejects)
            for term in options.queries:
                report.read[term] = searching.query(term, options.since)
            held = pmids(index_storage(options.index)) if options.index else set()
            searching.retractions((library.pmids() | held) - {row["pmid"] for row in library.retracted()})
            searching.again()
    finally:
        if http:
            http.close()
        with library.transaction():
            library.reject(rejects.taken())
        report.counts = asked.counts + from_files.counts
        report.left_out = asked.left_out + from_files.left_out
        report.set_aside = Counter(
            {reason: count for reasons in rejects.counts().values() for reason, count in reasons.items()}
        )
        retracted = {*asked.retracted, *from_files.retracted}
        report.retracted = [row for row in library.retracted() if row["pmid"] in retracted]


def _take_files(
    library: Library,
    options: UpdateOptions,
    http: RateLimitedClient | None,
    library_update: LibraryUpdate,
    rejects: Rejects,
    report: Report,
) -> None:
    where = str(options.files)
    source = (
        UpdateFileServer(where, http, library.folder / FETCHED)
        if http and _is_server(where)
        else UpdateFileFolder(Path(where).expanduser())
    )
    before = library.files().keys()
    try:
        UpdateFileImport(library, source, library_update, rejects).all(options.first)
    finally:
        report.files = sorted(library.files().keys() - before)


def _lists(library: Library) -> None:
    """Write the lists of retracted articles and rejected records beside the database."""
    write_jsonl(library.folder / article_library.FILE, library.retracted())
    write_jsonl(library.folder / REJECTS_FILE, library.rejects())


def _flags(library: Library, options: UpdateOptions, report: Report) -> None:
    """Find the answers that cite retracted articles, and write the list."""
    known = {row["pmid"]: row for row in library.retracted()}
    rows = Answers(open_store(str(options.store))).exported() if exists(str(options.store)) else ()
    answers = ((str(row["id"]), row["facts"].get("passages") or []) for row in rows)
    report.flagged = list(article_library.flag(answers, known))
    write_jsonl(library.folder / article_library.FLAGGED, map(asdict, report.flagged))


def _note(folder: Path, options: UpdateOptions, report: Report) -> None:
    """Record in the server's store what was imported."""
    if exists(str(options.store)):
        counted = {"library": report.library, "retracted": len(report.retracted), "flagged": len(report.flagged)}
        failures = [str(failure) for failure in report.failures]
        content = report.index[0].content if report.index else ""
        facts = {"folder": str(folder.resolve()), "index": content, "failures": failures} | counted
        Notes(open_store(str(options.store))).put(f"update/{folder.resolve()}", facts)


def _index(library: Library, options: UpdateOptions, report: Report) -> None:
    report.index = update_index(library, index_storage(str(options.index)), options.documents, options.embedding)


def _pairs(library: Library, options: UpdateOptions, report: Report) -> None:
    """Make all pairs again if anything has changed; the rules compare pairs with each other."""
    made_from = {"change": library.change(), "tests": [str(path.resolve()) for path in options.tests]}
    if library.cursor("pairs") == made_from and (library.folder / abstract_questions.FILE).is_file():
        return
    pairs = abstract_questions.make_pairs(library.current_articles(), abstract_questions.tests(options.tests))
    abstract_questions.write(library.folder / abstract_questions.FILE, pairs.examples)
    if pairs.audit:
        write_json(library.folder / "quality.json", pairs.audit.facts())
        pairs.audit.ledger.write(library.folder / "ledger.parquet")
    with replace_file(library.folder / "README.md") as stream:
        stream.write(abstract_questions.card(pairs, library.counts(), library.sources()))
    with library.transaction():
        library.move("pairs", made_from)
    report.pairs = pairs


def _is_server(address: str | None) -> bool:
    return bool(address) and "://" in str(address)
