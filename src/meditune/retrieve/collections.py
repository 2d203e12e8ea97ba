"""Collections: the sources from which an index is built, as named on the command line or in a recipe.

`meditune update` (operate/literature) maintains a library of articles. An index reads the whole library, or only the
articles that changed.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from meditune.config import shipped
from meditune.config.data_options import PhiSpec, SourceSpec
from meditune.data import sources
from meditune.data.deidentify import (
    Findings,
    IdentifierCounts,
    deidentify,
    indexed_identifiers,
    masking_command,
    search_command,
)
from meditune.data.example import Example
from meditune.data.read_sources import is_restricted, marked
from meditune.data.readers import medquad, mimic, pubmedqa, user_files
from meditune.data.readers.tables import FORMATS, Rejects, find_files
from meditune.errors import DataError
from meditune.phi.detector import engine
from meditune.retrieve.documents import pubmed_articles, text_files
from meditune.retrieve.documents.document import Document, Section

SOURCE = medquad.SOURCE
JUDGED = "medquad-judged"


def read_examples(reader: Any, path: Path, rejects: Rejects) -> Iterator[Document]:
    """Yield one document for each example that `reader`, a module in data/readers, finds in `path`.

    A document contains the example's answer, under a heading: the type of the question or, for MIMIC, the section of
    the discharge summary. PubMedQA's documents contain the abstract instead, without the conclusions, because these are
    the answers.
    """
    for example in reader.read(path, rejects):
        meta, is_mimic = example.meta, reader is mimic
        if reader is pubmedqa:
            sections = [Section(passage.text, passage.label.capitalize()) for passage in example.context]
        else:
            heading = str(meta["section"]).replace("-", " ") if is_mimic else str(meta["question_type"])
            sections = [Section(example.answer, heading)]
        yield Document(
            id=example.id,
            source=reader.SOURCE,
            sections=sections,
            title=f"Hospital stay {meta['hadm_id']}" if is_mimic else example.question,
            url=str(meta.get("url", "")),
            licence=reader.LICENCE,
            date=_date(meta),
            group=example.group,
            restricted=is_mimic,
        )


def _date(meta: Mapping[str, Any]) -> str:
    """Return the year or date in a row's `year`, as searches by date need it; "" if the row has none in this form."""
    date = str(meta.get("year") or "").strip().removesuffix(".0")
    return date if re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", date, re.ASCII) else ""


def read_judged(folder: Path, rejects: Rejects) -> Iterator[Document]:
    """Yield one document for each of MedQuAD's judged answers. Raises DataError if the folder has no such file.

    A document's id contains the AnswerID.
    """
    files = find_files(folder, [medquad.JUDGED_ANSWERS], "Specify the folder with MedQuAD's judged answers.")
    for name, question, url, text in medquad.judged_answers(files, JUDGED, rejects):
        yield Document(
            id=f"{JUDGED}:{name.removesuffix('.txt')}",
            source=JUDGED,
            sections=[Section(text)],
            title=question,
            url=url,
            licence=medquad.LICENCE,
        )


OWN = user_files.SOURCE
READ_OPTIONS = {"fields", "labels", "thoughts", "licence", "citation", "restricted"}
"""Keys of a recipe's source that a collection of the user's rows keeps, because they decide how rows are read"""
TITLE_CHARACTERS = 300  # Titles are embedded with each passage, and the embedding model reads 256 tokens
_ROW = re.compile(r"file://.*?([^/]+)#(row|id)=(.+)")


def read_own(
    path: str,
    options: Mapping[str, Any],
    rejects: Rejects,
    name: str = OWN,
    identifiers: IdentifierCounts | None = None,
) -> Iterator[Document]:
    """Yield one document for each usable row of the user's own file, or of a Hugging Face data set.

    A document has the same id and group as the row's example in a run. Its title is the question, and its text is the
    answer, followed by the passages of the context. Claims get no title, because they may be false. `options` are the
    READ_OPTIONS of a recipe's source, and `phi`, the recipe's handling of identifiers. Unusable rows go to `rejects`,
    and rows that repeat an earlier one of their group are counted there. If identifiers of people are left in the
    documents, they are counted in `identifiers`.
    """
    spec = SourceSpec(name=OWN, path=path, **{key: value for key, value in options.items() if key in READ_OPTIONS})
    read = user_files.read(
        path, rejects, source=name, fields=spec.fields or None, labels=spec.labels, thoughts=spec.thoughts
    )
    examples: Iterator[Example] = marked(read, spec)
    handling = PhiSpec(**(options.get("phi") or {}))
    if handling.action not in ("report", "off"):
        examples = iter(deidentify(list(examples), handling, Findings(handling)))
    seen: set[int] = set()
    for example in examples:
        meta = example.meta
        sections = [Section(example.answer), *(Section(passage.text, passage.label) for passage in example.context)]
        sections = [section for section in sections if section.text.strip()]
        if not sections:
            rejects.count_only(name, "no answer and no context")
            continue
        text = hash((example.group, example.question, *sections))
        if text in seen:
            rejects.count_only(name, "duplicate row")
            continue
        seen.add(text)
        if identifiers is not None and handling.action == "report":
            identifiers.add(indexed_identifiers(example, handling))
        address = str(meta.get("url") or "")
        yield Document(
            id=example.id,
            source=name,
            sections=sections,
            title="" if example.label else _shortened(example.question),
            url=address if address.startswith(("https://", "http://")) else _row_address(path, example.id, name),
            licence=str(meta.get("licence") or text_files.LICENCE),
            date=_date(meta),
            group=example.group,
            restricted=is_restricted(example),
        )


def _shortened(question: str) -> str:
    """Return a question of at most TITLE_CHARACTERS. It is cut between words unless these are very long."""
    question = " ".join(question.split())
    if len(question) <= TITLE_CHARACTERS:
        return question
    cut = question[: TITLE_CHARACTERS - len(" ...")]
    words = question[: len(cut) + 1].rpartition(" ")[0]
    return f"{words if 2 * len(words) > len(cut) else cut} ..."


def _row_address(path: str, identifier: str, name: str) -> str:
    """Return the file's address with the number of the row, or with the id that the row has in the file."""
    file, row = Path(path), identifier.removeprefix(f"{name}:")
    if not file.is_file():
        return f"https://huggingface.co/datasets/{path}"
    number = re.fullmatch(re.escape(file.stem) + r"-(\d+)", row)
    return f"{file.resolve().as_uri()}#{f'row={number[1]}' if number else f'id={quote(row)}'}"


def row_named(address: str) -> str:
    """Return "FILE, row NUMBER" or "FILE, id ID" for the address of a row in the user's file; "" for other addresses.

    The text doesn't contain the file's folder, so a server can show it to users.
    """
    found = _ROW.fullmatch(address)
    return f"{unquote(found[1])}, {found[2]} {unquote(found[3])}" if found else ""


KIND = "library"
FILE = "library.sqlite"
FORMAT = 1
SCHEMA = """
CREATE TABLE articles (
    pmid TEXT PRIMARY KEY,
    record TEXT,              -- JSON of Article; NULL if only a notice or a deletion mentioned it
    state TEXT NOT NULL,      -- one of State
    reason TEXT NOT NULL,
    said TEXT NOT NULL,       -- hash of the text, to find duplicates under other ids
    change INTEGER NOT NULL   -- which of the library's changes was the last to touch it
);
CREATE INDEX articles_change ON articles (change);
CREATE INDEX articles_said ON articles (said);
"""
CURRENT, RETRACTED, EXCLUDED = "there", "retracted", "out"
"""States of an article: current; retracted; left out for another reason (deleted, replaced, refused, no abstract)"""


def read_library(folder: Path, withdrawn: set[str], since: int = 0) -> Iterator[Document]:
    """Yield a document for each current article that changed after the library's change number `since`.

    Ids of documents that must no longer be found are added to `withdrawn`, and ids of current documents are removed
    from it. If an article is retracted, PubMedQA's document about the article is withdrawn, too.

    Raises DataError if the folder contains no library.
    """
    with closing(opened(folder)) as base:
        rows = base.execute("SELECT pmid, record, state FROM articles WHERE change > ? ORDER BY pmid", (since,))
        for pmid, record, state in rows:
            if state == CURRENT:
                document = pubmed_articles.ARTICLE.validate_json(record).document()
                withdrawn.discard(document.id)
                yield document
            else:
                withdrawn.add(f"{pubmed_articles.SOURCE}:{pmid}")
            if state == RETRACTED:
                withdrawn.add(f"{pubmedqa.SOURCE}:{pmid}")


def opened(folder: Path) -> sqlite3.Connection:
    """Open a library's database for reading. Raises DataError if it is missing, or this version can't read it."""
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"{folder}: contains no {FILE}. Specify a folder that `meditune update` maintains.")
    try:
        base = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
        found = base.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{file}: not a readable database of articles ({error}). Restore it from a backup, or start a new "
            "literature folder."
        ) from error
    if found != FORMAT:
        base.close()
        raise DataError(f"{file}: this file has format {found}, but this version of Meditune reads format {FORMAT}.")
    return base


NAMED: dict[str, Callable[[Path, Rejects], Iterator[Document]]] = {
    "medquad": partial(read_examples, medquad),
    JUDGED: read_judged,
    "pubmedqa": partial(read_examples, pubmedqa),
    "mimic": partial(read_examples, mimic),
}  # Collections that `--source` knows by name
_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Collection:
    """A source of documents."""

    kind: str  # A name in `NAMED`, "documents", "own", "pubmed" or "library"
    path: str = ""  # Empty if `find_library` is to find the path
    name: str = ""  # The name by which searches are narrowed; by default, the kind
    options: Mapping[str, Any] = field(default_factory=dict)  # For "own": the `options` of `read_own`

    @property
    def source(self) -> str:
        """The value of `source` in the collection's passages."""
        return self.name or self.kind

    @property
    def adds_only(self) -> bool:
        """True if the collection is only a part of its source, so that an update keeps the source's other documents.

        PubMed files and libraries are such collections.
        """
        return self.kind in (pubmed_articles.SOURCE, KIND)


@dataclass
class Reading:
    """Reads the documents of collections, and records what was left out or withdrawn."""

    collections: Sequence[Collection]
    rejects: Rejects = field(default_factory=Rejects)
    withdrawn: set[str] = field(default_factory=set)  # Ids of documents that PubMed's files or a library withdraw
    since: int = 0  # Number of a library change; only later changes are read
    asked: Sequence[Collection] = ()  # Libraries that are read only to learn which documents they withdraw
    identifiers: dict[str, IdentifierCounts] = field(default_factory=dict)  # Counts by source, of the user's own data
    files: dict[str, list[Path]] = field(default_factory=dict)  # Source -> files of a folder that contain identifiers

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all collections in turn. Raises DataError if a collection is missing.

        Libraries come last, because they have the latest information about an article, such as its retraction.
        """
        for collection in sorted(self.collections, key=lambda each: each.kind == KIND):
            yield from self._documents(collection)
        for collection in self.asked:
            deque(read_library(Path(collection.path), self.withdrawn), maxlen=0)

    def _documents(self, collection: Collection) -> Iterator[Document]:
        if collection.kind == text_files.SOURCE:
            files = text_files.read_files(Path(collection.path).expanduser(), self.rejects, collection.source)
            return self._searched(files, self.identifiers.setdefault(collection.source, IdentifierCounts()))
        if collection.kind == OWN:
            counts = self.identifiers.setdefault(collection.source, IdentifierCounts())
            return read_own(collection.path, collection.options, self.rejects, collection.source, counts)
        if collection.kind == pubmed_articles.SOURCE:
            return pubmed_articles.read(Path(collection.path).expanduser(), self.rejects, self.withdrawn)
        if collection.kind == KIND:
            return read_library(Path(collection.path), self.withdrawn, self.since)
        return NAMED[collection.kind](find_library(collection), self.rejects)

    def _searched(self, documents: Iterator[Document], counts: IdentifierCounts) -> Iterator[Document]:
        """Yield the documents, and count the identifiers of people in them."""
        find = engine("rules")
        for document in documents:
            texts = [part for section in document.sections for part in (section.heading, section.text)]
            spans = find("\n\n".join([document.title, *texts]), None)
            counts.add(spans)
            if spans:
                self.files.setdefault(document.source, []).append(Path(unquote(urlsplit(document.url).path)))
            yield document

    def warn_of_identifiers(self) -> None:
        """Print a warning for each source of the user's own whose documents contain identifiers of people."""
        for collection in self.collections:
            finding = self.identifiers.get(collection.source, IdentifierCounts()).sentence("documents")
            if finding:
                print(
                    f"\nWARNING: {collection.source}: {finding}. THEY ARE IN THE INDEX, so searches and answers can "
                    f"show them.\n  {self._advice(collection)}\n",
                    file=sys.stderr,
                )

    def _advice(self, collection: Collection) -> str:
        """Return lines that say where the identifiers in a collection's documents are, and how to mask them."""
        phi, files = collection.options.get("phi"), self.files.get(collection.source)
        lines = [f"They are in {_listed(files)}."] if files else []
        # `meditune data phi` reads no HTML, PDF or Word files.
        file = next((each for each in files or [Path(collection.path)] if each.suffix.lower() not in _PAGES), None)
        if file:
            lines.append(f"To see where they are: {search_command(_from_here(file), PhiSpec(**(phi or {})))}")
        if phi:
            lines.append("To mask them: set data.phi.action: mask in the recipe, then build the index with --replace.")
        elif file:
            lines.append(f"To mask them, index a masked copy: {masking_command(_from_here(file))}")
        else:
            lines.append(
                "To mask them, save the files as text, and index masked copies: meditune data phi FILE.txt --output "
                "MASKED.txt"
            )
        return "\n  ".join(lines)


MOST_FILES = 5  # Number of files that the warning about identifiers names
_PAGES = {".html", ".htm", *text_files.EXTRACTED}


def _listed(files: Sequence[Path]) -> str:
    named = [str(_from_here(file)) for file in files[:MOST_FILES]]
    return ", ".join(named) + (f" and {len(files) - MOST_FILES:,} more" if len(files) > MOST_FILES else "")


def _from_here(path: Path) -> Path:
    """Return the path relative to the current folder if the file is in this folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def collection_named(text: str) -> Collection:
    """Return the collection for `--source NAME` or `--source NAME=PATH`. Raises DataError if the name is unknown."""
    kind, _, path = text.partition("=")
    if kind not in NAMED:
        raise DataError(
            f"Unknown index source {kind!r}. Choose from {', '.join(NAMED)}; for your own files, use --documents "
            "FOLDER or --documents FILE; for PubMed's XML, use --pubmed FILE."
        )
    return Collection(kind, str(Path(path).expanduser().resolve()) if path else "")


def of_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> list[Collection]:
    """Return the collections for those sources of a recipe that can be indexed, and print which sources can't.

    `overrides` are KEY=VALUE strings. Raises DataError if none can, or if the user's own file is missing or lacks a
    column.
    """
    from meditune.config.load_recipe import is_data_file, load_recipe

    place = Path(name_or_path).expanduser()
    is_folder = place.is_dir() and name_or_path not in shipped() and not (place / "recipe.yaml").is_file()
    if is_data_file(place) or is_folder:
        kind = "folder" if place.is_dir() else "data file"
        raise DataError(f"{place} is a {kind}, not a recipe. Pass it with --documents {shlex.quote(str(place))}")
    spec = load_recipe(name_or_path, overrides).recipe.data
    chosen = []
    for source in spec.sources:
        if source.is_own:
            options = source.model_dump(mode="json", include=READ_OPTIONS, exclude_defaults=True)
            options["phi"] = spec.phi.model_dump(mode="json")
            chosen.append(_own(sources.locate_own(source.path or "", source.citation), source.name, options))
        elif source.name in NAMED:
            chosen.append(collection_named(f"{source.name}={source.path or ''}"))
    if not chosen:
        raise DataError(
            f"{name_or_path}: none of its sources ({', '.join(source.name for source in spec.sources)}) can be "
            f"indexed. Sources that can be indexed: {OWN}, {', '.join(NAMED)}."
        )
    for name in (source.name for source in spec.sources if not (source.is_own or source.name in NAMED)):
        print(f"Not indexed: {name} (only {OWN}, {', '.join(NAMED)} can be indexed)", file=sys.stderr)
    return chosen


def _own(path: str, name: str, options: Mapping[str, Any]) -> Collection:
    """Return the collection for the user's rows. Raises DataError if the file can't be read or lacks a column."""
    if Path(path).exists():
        path = str(Path(path).resolve())
        next(read_own(path, {**options, "phi": None}, Rejects(), name), None)
    return Collection(OWN, path, name, options)


def documents(text: str) -> Collection:
    """Return the collection for `--documents PATH` or `--documents NAME=PATH`, where PATH is a folder or a file.

    A file of rows, such as a CSV file, is read like a run's own data. Raises DataError if the name is invalid, or if
    PATH doesn't exist or contains nothing that can be read.
    """
    name, separator, path = text.partition("=")
    if separator and not Path(text).exists():
        if not _NAME.fullmatch(name) or name in (*NAMED, pubmed_articles.SOURCE):
            raise DataError(
                f"--documents {text}: {name!r} is not a valid collection name. Use up to 64 letters, digits, dots, "
                f"dashes and underscores. These names are reserved: {', '.join((*NAMED, pubmed_articles.SOURCE))}."
            )
    else:
        name, path = text_files.SOURCE, text
    place = Path(path).expanduser().resolve()
    if place.is_file() and place.suffix.lower() in FORMATS:
        return _own(str(place), name, {})
    text_files.readable_files(place)
    return Collection(text_files.SOURCE, str(place), "" if name == text_files.SOURCE else name)


def pubmed_files(text: str) -> Collection:
    """Return the collection for `--pubmed FILE` or `--pubmed FOLDER`."""
    return Collection(pubmed_articles.SOURCE, str(Path(text).expanduser().resolve()))


def library_in(folder: Path) -> Collection:
    """Return the collection for the library in a folder that `meditune update` maintains; its source is PubMed."""
    return Collection(KIND, str(folder.expanduser().resolve()), pubmed_articles.SOURCE)


def find_library(collection: Collection) -> Path:
    """Return the path of a collection whose kind is in `NAMED`. Raises DataError if its data is missing."""
    if collection.kind != JUDGED:
        return sources.locate_source(collection.kind, collection.path or None)
    data = os.environ.get(sources.DATA_VARIABLE)
    if collection.path or data:
        return Path(collection.path or Path(str(data)).expanduser() / JUDGED)
    raise DataError(
        f"No data for {JUDGED!r}: specify the folder with --source {JUDGED}=FOLDER, or put it into the folder that "
        f"{sources.DATA_VARIABLE} names."
    )
