"""`meditune update`: new research is taken in. Heavy libraries are imported by what it calls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meditune.errors import DataError
from meditune.text import counted

if TYPE_CHECKING:
    from meditune.operate.literature.update import Report

SHOWN = 10
"""So many retracted articles are named."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def update(
    library: Annotated[Path, typer.Argument(metavar="LIBRARY", help="A folder that keeps articles, pairs and lists.")],
    query: Annotated[
        list[str] | None, typer.Option(metavar="QUERY", help="A PubMed query, as on its site. Repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="The first time, only what changed from 2026-01-31 on.")
    ] = None,
    files: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="MEDLINE's update files (pubmedYYnNNNN.xml.gz, .md5 beside them)."),
    ] = None,
    first: Annotated[str | None, typer.Option(metavar="FILE", help="Begin with this update file.")] = None,
    documents: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]FOLDER", help="Guidelines: text, Markdown, HTML, PDF files.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="The index to bring up to date; built where there is none.")
    ] = None,
    email: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", envvar="MEDITUNE_CONTACT", help="Where NCBI can write to you. It asks for that."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", envvar="MEDITUNE_STORE", help="Flag the server's answers that cite what is retracted."
        ),
    ] = None,
    tests: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Items to keep out of the pairs, beside PubMedQA's: RUN/data/test.jsonl."),
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="The embedding model, where the index is built.")] = None,
    eutils: Annotated[str | None, typer.Option(metavar="URL", help="Another address of the E-utilities.")] = None,
) -> None:
    """Take in new research: from PubMed by queries, from MEDLINE's update files, guidelines from a folder.

    New and corrected articles are checked and put into the index; retracted ones leave it and are listed in
    LIBRARY/retracted.jsonl. Structured abstracts become training pairs in LIBRARY/pairs.jsonl, test items kept out.

    The same command goes on where it was stopped, and later takes in only what has changed since. A key of your own in
    the variable NCBI_API_KEY allows 10 requests a second instead of 3.
    """
    from meditune.operate.literature import update as updating
    from meditune.operate.literature.eutils import URL
    from meditune.retrieve import collections

    if since and not _DATE.fullmatch(since):
        raise DataError(f"--since {since}: write the date like 2026-01-31.")
    wanted = updating.Wanted(
        queries=tuple(query or ()),
        since=since,
        files=files,
        first=first,
        documents=tuple(map(collections.documents, documents or ())),
        index=index,
        embedding=embedding,
        email=email,
        eutils=eutils or URL,
        store=store,
        tests=tuple(tests or ()),
    )
    report = updating.update(library, wanted)
    for line in lines(report, library):
        typer.echo(line)
    for failure in report.failures[:-1]:
        typer.secho(f"Error: {failure}", fg="red", err=True)
    if report.failures:
        raise report.failures[-1]


def lines(report: Report, library: Path) -> list[str]:
    """What an update did, in words."""
    return [*_taken(report), *_retracted(report), *_library(report, library), *_index(report), *_pairs(report, library)]


def _taken(report: Report) -> list[str]:
    said = [f"PubMed, {term}: {counted(count, 'article')} added or revised." for term, count in report.read.items()]
    if report.files:
        span = report.files[0] if len(report.files) == 1 else f"{report.files[0]} to {report.files[-1]}"
        said.append(f"Update files applied: {len(report.files):,} ({span}).")
    done = ", ".join(f"{count:,} {what}" for what, count in report.counts.most_common() if what != "out" and count)
    if done:
        said.append(f"Articles: {done}.")
    for reason, count in report.left_out.most_common():
        said.append(f"Left out: {count:,} {reason}")
    for reason, count in report.set_aside.most_common():
        said.append(f"Set aside: {count:,} {reason}")
    return said


def _retracted(report: Report) -> list[str]:
    said = [
        f"RETRACTED: PMID {row['pmid']}"
        + (f" (notice: PMID {row['notice']})" if row["notice"] else "")
        + (f": {row['title']}" if row["title"] else "")
        for row in report.retracted[:SHOWN]
    ]
    more = len(report.retracted) - SHOWN
    said += [f"... and {more:,} more"] if more > 0 else []
    if report.flagged:
        answers = len({flag.answer for flag in report.flagged})
        said.append(f"FLAGGED: {counted(answers, 'kept answer')} cited retracted articles; see flagged.jsonl.")
        said += [flag.sentence for flag in report.flagged[:SHOWN]]
    return said


def _library(report: Report, library: Path) -> list[str]:
    counts = report.library
    return [
        f"Library: {library.resolve()}, {counted(counts['there'], 'article')} in force, "
        f"{counts['retracted']:,} retracted."
    ]


def _index(report: Report) -> list[str]:
    if report.index is None:
        return []
    made, changes = report.index
    return [
        *(f"Not indexed of {name}: {n:,} {why}" for name, some in changes.left_out.items() for why, n in some.items()),
        f"Index: {counted(made.passages, 'passage')} of {counted(made.documents, 'document')}; {changes.added:,} new, "
        f"{changes.changed:,} changed, {changes.removed:,} removed.",
    ]


def _pairs(report: Report, library: Path) -> list[str]:
    if report.pairs is None:
        return []
    made, file = report.pairs, library / "pairs.jsonl"
    kept_out = f"; {len(made.kept_out):,} kept out as test items" if made.kept_out else ""
    if not made.examples:
        return [f"Pairs: none{kept_out}. {library / 'README.md'} says why."]
    decisions = ", ".join(f"{count:,} {name}" for name, count in made.decisions.most_common())
    return [
        f"Pairs: {len(made.examples):,} in {file} (decisions: {decisions}){kept_out}.",
        f"Train on them: --set 'data.sources=[{{name: own, path: {file.resolve()}}}]'",
    ]
