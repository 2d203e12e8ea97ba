"""PubMed abstracts: articles in the XML of MEDLINE and efetch, and the contexts of PubMedQA.

Abstracts are under their publishers' copyright where these claim it; NLM's terms let them be indexed and shown with
their source (https://www.nlm.nih.gov/databases/download/terms_and_conditions.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meditune.data import pubmedqa
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.progress import Progress
from meditune.retrieve.passages import articles, records
from meditune.retrieve.passages.articles import SOURCE, Article
from meditune.retrieve.passages.passage import Document, Section

ENDINGS = (".xml", ".xml.gz")
RETRACTED = "retracted"


def read(path: Path, rejects: Rejects, deleted: set[str] | None = None) -> Iterator[Document]:
    """The articles that have an abstract, of one file or of every one under a folder; memory holds one at a time.

    The ids of articles that a file withdraws (DeleteCitation), and of those that are retracted, are added to `deleted`.
    A record that is malformed, and the end of a file that breaks off, are named in `rejects`, and the rest is read.
    Raises DataError where there are no files.
    """
    withdrawn: set[str] = deleted if deleted is not None else set()
    for file in files_of(path):
        for found in of_file(file, rejects):
            if isinstance(found, str):
                withdrawn.add(f"{SOURCE}:{found}")
            elif found.retraction:
                withdrawn.add(found.id)
                rejects.add(SOURCE, f"{file}, PMID {found.pmid}", RETRACTED, "")
            elif not found.parts:
                rejects.add(SOURCE, f"{file}, PMID {found.pmid}", "no abstract", "")
            else:
                withdrawn.discard(found.id)
                yield found.document()


def of_file(file: Path, rejects: Rejects, progress: Progress | None = None) -> Iterator[Article | str]:
    """Each article of a file, and the PubMed id of each one that it withdraws, in order. Others go to `rejects`."""
    for record in records.of_file(file, progress):
        yield from of_record(record, str(file), rejects)


def of_record(record: records.Record, file: str, rejects: Rejects) -> Iterator[Article | str]:
    """What a record holds: an article, or PubMed ids that are withdrawn; books are only counted."""
    if record.kind == records.BOOK:
        rejects.count_only(SOURCE, "a book, not an article")
        return
    found: Article | list[str] | str
    if record.problem:
        found = record.problem
    elif record.kind == records.DELETED:
        found = articles.deleted(record.xml)
    else:
        found = articles.parsed(record.xml)
    if isinstance(found, Article):
        yield found
    elif isinstance(found, list):
        yield from found
    else:
        pmid = f", PMID {record.pmid}" if record.pmid else ""
        rejects.add(SOURCE, f"{file}, line {record.line}{pmid}", found, record.xml[:500].decode(errors="replace"))


def files_of(path: Path) -> list[Path]:
    """`path`, or the XML files under it. Raises DataError where there are none."""
    if path.is_file() and path.name.endswith(ENDINGS):
        return [path]
    found = sorted(each for each in path.rglob("*.xml*") if each.name.endswith(ENDINGS)) if path.is_dir() else []
    if not found:
        raise DataError(f"{path}: no .xml or .xml.gz file. Point at files of PubMed's efetch or its yearly baseline.")
    return found


def read_contexts(path: Path, rejects: Rejects) -> Iterator[Document]:
    """The abstracts of PubMedQA's questions, without the conclusions, which answer them."""
    for example in pubmedqa.read(path, rejects):
        year = example.meta["year"]
        yield Document(
            id=example.id,
            source=pubmedqa.SOURCE,
            sections=[Section(passage.text, passage.label.capitalize()) for passage in example.context],
            title=example.question,
            url=str(example.meta["url"]),
            licence=pubmedqa.LICENCE,
            date=str(year or ""),
            group=example.group,
        )
