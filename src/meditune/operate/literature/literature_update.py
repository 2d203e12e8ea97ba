"""One update of a library: import literature, list retractions, update the index, and make training pairs.

If a step fails, the later steps still run with the available data: for example, articles fetched before a server
failed are indexed, and retracted articles are removed from the index. Indexing reads and embeds only changed articles.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune import __version__
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError, MedituneError
from meditune.files import replace_file, write_json, write_jsonl
from meditune.model_registry import utc_now
from meditune.models.sentence_encoder import DEFAULT, load_encoder
from meditune.operate.literature import abstract_questions, article_library, medline_update_files, pubmed_search
from meditune.operate.literature.abstract_questions import Pairs
from meditune.operate.literature.article_library import Library, LibraryUpdate
from meditune.retrieve import build_index, collections, index, storage
from meditune.retrieve.build_index import Changes
from meditune.retrieve.collections import CURRENT, FILE, Collection
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.index import Manifest
from meditune.retrieve.storage import MANIFEST, IndexStorage, index_storage
from meditune.store import exists, open_store
from meditune.store.answers import Answers
from meditune.store.overview import Notes


def update_index(
    library: Library, place: IndexStorage, documents: Sequence[Collection], embedding: str | None
) -> tuple[Manifest, Changes] | None:
    """Build or update the index from the library and the documents.

    Return the index's manifest and the changes, or None if there is nothing to do.
    """
    change, collection = library.change(), collections.library_in(library.folder)
    if place.read(MANIFEST) is None:
        if not documents and not library.counts()[CURRENT]:
            return None
        manifest, changes = build_index.build(place, [collection, *documents], load_encoder(embedding or DEFAULT))
    else:
        before = index.read(place)
        registered = collection in [collections.Collection(**each) for each in before.collections]
        since = library.indexed(place.name, before.content) if registered else 0
        if since == change and registered and not documents:
            return None
        model = load_encoder(embedding or before.embedding["name"])
        manifest, changes = build_index.update(place, [collection, *documents], model, since=since)
    library.is_indexed(place.name, manifest.content, change)
    return manifest, changes


def pmids(place: IndexStorage) -> set[str]:
    """Return the PubMed ids of the articles in an index, from PubMed and PubMedQA; empty if there is no index."""
    if place.read(MANIFEST) is None:
        return set()
    with storage.readable(place):
        table = storage.connect(place).open_table(index.read(place).table)
        documents = {name for batch in storage.scan(table, ["document"]) for name in batch["document"].to_pylist()}
    return {name.partition(":")[2] for name in documents if name.partition(":")[0] in PUBMED_SOURCES}


REJECTS_FILE = "rejects.jsonl"
PUBMED_SOURCES = (pubmed_articles.SOURCE, pubmedqa.SOURCE)
REPORT_FILE = "update.json"
RETRACTED_FILE, FLAGGED_FILE = "retracted.jsonl", "flagged.jsonl"


@dataclass(frozen=True)
class Flag:
    """A citation of a retracted article in an answer."""

    answer: str
    passage: str
    pmid: str
    when: str
    notice: str

    @property
    def sentence(self) -> str:
        """The flag as a sentence."""
        by = f" (notice: PMID {self.notice})" if self.notice else ""
        return (
            f"Answer {self.answer} cites PMID {self.pmid}, which has been known to be retracted since {self.when}{by}."
        )


def flag(answers: Iterable[tuple[str, Sequence[str]]], retracted: Mapping[str, Mapping[str, str]]) -> Iterator[Flag]:
    """Yield a flag for each citation of a retracted article, including citations of PubMedQA's contexts.

    `answers` contains pairs of an answer's id and the ids of the passages that it cites. `retracted` maps PubMed ids to
    rows of `Library.retracted`.
    """
    for answer, passages in answers:
        for passage in dict.fromkeys(passages):
            source, _, place = passage.partition(":")
            found = retracted.get(place.partition("#")[0]) if source in PUBMED_SOURCES else None
            if found is not None:
                yield Flag(answer, passage, found["pmid"], found["when"], found["notice"])


@dataclass(frozen=True)
class UpdateOptions:
    """The options of an update, as given on the command line."""

    queries: tuple[str, ...] = ()
    since: str | None = None
    files: str | None = None
    first: str | None = None
    documents: tuple[Collection, ...] = ()
    index: str | None = None
    embedding: str | None = None
    email: str | None = None
    eutils: str = pubmed_search.URL
    store: str | None = None
    tests: tuple[Path, ...] = ()
    """Files of evaluation items to exclude from training pairs, in addition to PubMedQA's items"""


@dataclass
class Report:
    """The result of an update."""

    read: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    retracted: list[dict[str, str]] = field(default_factory=list)
    set_aside: Counter[str] = field(default_factory=Counter)
    library: dict[str, int] = field(default_factory=dict)
    flagged: list[Flag] = field(default_factory=list)
    index: tuple[Manifest, Changes] | None = None
    pairs: Pairs | None = None
    """None if no pairs were made, because nothing had changed or the step failed"""
    failures: list[MedituneError] = field(default_factory=list)


def update(folder: Path, options: UpdateOptions) -> Report:
    """Update the library in a folder, and return a report, which includes the errors of failed steps.

    Raises DataError if the options are invalid.
    """
    _contact(options)
    if not (options.queries or options.files or options.index or (folder / FILE).is_file()):
        raise DataError(
            "Nothing to import. Use --query or --update-files, and --index INDEX to make the articles searchable."
        )
    if options.documents and not options.index:
        raise DataError("--documents adds documents to an index, so it needs --index INDEX.")
    if options.first and not options.files:
        raise DataError("--first-file selects an update file, so it needs --update-files FOLDER|URL.")
    if options.since and not options.queries:
        raise DataError("--since limits the articles that a query finds, so it needs --query QUERY.")
    report = Report()
    with article_library.opened(folder) as library:
        for step in (_import_updates, _lists, _index, _pairs, _note):
            try:
                step(library, options, report)
            except MedituneError as error:
                report.failures.append(error)
        write_json(folder / REPORT_FILE, facts(report))
    return report


def _contact(options: UpdateOptions) -> str:
    """Return the email address that NCBI's servers require, or "" if nothing is requested from them."""
    return pubmed_search.contact(options.email) if options.queries or "://" in (options.files or "") else ""


def facts(report: Report) -> dict[str, Any]:
    """Return the content of update.json, for programs that monitor updates."""
    manifest, changes = report.index or (None, None)
    index = manifest and {name: getattr(manifest, name) for name in ("content", "passages", "documents")}
    return {
        "meditune": __version__,
        "when": utc_now(),
        **{name: getattr(report, name) for name in ("read", "files", "counts", "left_out", "set_aside", "retracted")},
        "flagged": len({each.answer for each in report.flagged}),
        "library": report.library,
        "index": index,
        "changes": changes and {name: getattr(changes, name) for name in ("added", "changed", "removed")},
        "pairs": len(report.pairs.examples) if report.pairs else None,
        "failures": [str(failure) for failure in report.failures],
    }


def _import_updates(library: Library, options: UpdateOptions, report: Report) -> None:
    email = _contact(options)
    rejects, before = Rejects(), library.files().keys()
    http = pubmed_search.Eutils(email, os.environ.get(pubmed_search.KEY_VARIABLE), options.eutils) if email else None
    asked, from_files = LibraryUpdate(library, is_requested=True), LibraryUpdate(library, is_requested=False)
    try:
        # Update files come first, because their records are older than the search results.
        if options.files:
            source = medline_update_files.source_of(options.files, http, library.folder)
            medline_update_files.apply_update_files(source, from_files, rejects, options.first)
        if options.queries and http:
            searching = pubmed_search.LibrarySearch(library, http, asked, rejects)
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
        report.files = sorted(library.files().keys() - before)
        report.counts = asked.counts + from_files.counts
        report.left_out = asked.left_out + from_files.left_out
        for reasons in rejects.counts().values():
            report.set_aside.update(reasons)
        retracted = {*asked.retracted, *from_files.retracted}
        report.retracted = [row for row in library.retracted() if row["pmid"] in retracted]
        report.library = library.counts()


def _lists(library: Library, options: UpdateOptions, report: Report) -> None:
    """Write the lists of retracted articles, of rejected records, and of answers that cite retracted articles."""
    retracted = library.retracted()
    write_jsonl(library.folder / RETRACTED_FILE, retracted)
    write_jsonl(library.folder / REJECTS_FILE, library.rejects())
    if options.store:
        rows = Answers(open_store(options.store)).exported() if exists(options.store) else ()
        answers = ((str(row["id"]), row["facts"].get("passages") or []) for row in rows)
        report.flagged = list(flag(answers, {row["pmid"]: row for row in retracted}))
        write_jsonl(library.folder / FLAGGED_FILE, map(asdict, report.flagged))


def _note(library: Library, options: UpdateOptions, report: Report) -> None:
    if options.store and exists(options.store):
        folder = str(library.folder.resolve())
        facts = {
            "folder": folder,
            "index": report.index[0].content if report.index else "",
            "failures": [str(failure) for failure in report.failures],
            "library": report.library,
            "retracted": len(report.retracted),
            "flagged": len(report.flagged),
        }
        Notes(open_store(options.store)).put(f"update/{folder}", facts)


def _index(library: Library, options: UpdateOptions, report: Report) -> None:
    if options.index:
        report.index = update_index(library, index_storage(options.index), options.documents, options.embedding)


def _pairs(library: Library, options: UpdateOptions, report: Report) -> None:
    """Make all pairs again if the library or `tests` changed, because quality rules compare pairs with each other."""
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
