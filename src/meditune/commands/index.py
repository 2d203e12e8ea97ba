"""`meditune index`: the commands around finding what sources say. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meditune.text import counted

if TYPE_CHECKING:
    from meditune.retrieve.build import Changes
    from meditune.retrieve.collections import Collection
    from meditune.retrieve.manifest import Manifest

app = typer.Typer(
    help="An index of medical texts, to search and to cite from.", no_args_is_help=True, rich_markup_mode=None
)

Where = Annotated[str, typer.Argument(metavar="INDEX", help="An index's folder, or s3://BUCKET/PLACE.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source", metavar="NAME[=PATH]", help="medquad, medquad-judged, pubmedqa or mimic; may be repeated."
    ),
]
Documents = Annotated[
    list[str] | None,
    typer.Option("--documents", metavar="[NAME=]FOLDER", help="Your own text, Markdown, HTML and PDF files."),
]
Pubmed = Annotated[
    list[str] | None, typer.Option("--pubmed", metavar="FILE", help="PubMed's XML, .xml or .xml.gz, or a folder of it.")
]
Embedding = Annotated[
    str | None,
    typer.Option(help="all-minilm-l6-v2, all-minilm-l6-v2-int8 (no torch), or a sentence-transformers model."),
]


@app.command()
def build(
    output: Annotated[str, typer.Option("--output", "-o", metavar="INDEX", help="A folder, or s3://BUCKET/PLACE.")],
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe, whose sources are taken.")] = None,
    source: Sources = None,
    documents: Documents = None,
    pubmed: Pubmed = None,
    embedding: Embedding = None,
    replace: Annotated[bool, typer.Option("--replace", help="Build anew what is there; searches go on.")] = False,
) -> None:
    """Build an index of the sources. The same command goes on where it was stopped."""
    from meditune.retrieve import collections
    from meditune.retrieve.build import build as make
    from meditune.retrieve.embedders import DEFAULT, embedder
    from meditune.retrieve.place import place

    chosen = [*(collections.of_recipe(recipe) if recipe else ()), *_collections(source, documents, pubmed)]
    made, changes = make(place(output), chosen, embedder(embedding or DEFAULT), replace)
    _print_changes(made, changes, output)


@app.command()
def update(
    index: Where,
    source: Sources = None,
    documents: Documents = None,
    pubmed: Pubmed = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="SOURCE", help="Take a source out of the index.")] = None,
    embedding: Embedding = None,
) -> None:
    """Read the sources again (all, unless some are named); only what changed is embedded."""
    from meditune.retrieve import manifest
    from meditune.retrieve.build import update as bring_up
    from meditune.retrieve.embedders import embedder
    from meditune.retrieve.place import place

    where = place(index)
    name = embedding or manifest.read(where).embedding["name"]
    made, changes = bring_up(where, _collections(source, documents, pubmed), embedder(name), remove or ())
    _print_changes(made, changes, index)


@app.command()
def stats(index: Where) -> None:
    """What is in an index, under which licences, and what made it."""
    from meditune.retrieve import manifest
    from meditune.retrieve.place import place

    said = manifest.read(place(index))
    for name, source in said.sources.items():
        marks = "  RESTRICTED: may not be passed on" if source["restricted"] else ""
        licences = source["licences"]
        more = f" and {len(licences) - 3} more" if len(licences) > 3 else ""
        typer.echo(
            f"{name}: {counted(source['passages'], 'passage')} of {counted(source['documents'], 'document')} "
            f"({'; '.join(licences[:3])}{more}){marks}"
        )
    typer.echo(f"Together: {counted(said.passages, 'passage')} of {counted(said.documents, 'document')}")
    typer.echo(f"Embedding: {said.embedding['name']}, {said.embedding['dimension']} numbers a vector")
    typer.echo(f"Created: {said.created}, updated: {said.updated}")
    typer.echo(f"Content: {said.content}")


@app.command()
def search(
    index: Where,
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="So many hits.")] = 5,
    source: Annotated[list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this date on: 2018, 2018-05 or 2018-05-17.")] = None,
    until: Annotated[str | None, typer.Option(help="Only up to this date.")] = None,
    mode: Annotated[
        str, typer.Option(help="hybrid, fused (no reranker), words (BM25) or meaning (vectors).")
    ] = "hybrid",
    per_document: Annotated[int, typer.Option(min=1, help="So many passages of one document.")] = 1,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="How much likeness to better hits counts.")] = 0.0,
    embedding: Embedding = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a hit.")] = False,
) -> None:
    """The passages that bear best on a question."""
    from meditune.retrieve.index import Index
    from meditune.retrieve.shown import as_json, as_text

    found = Index.open(index, embedding).search(
        question,
        k,
        sources=source,
        since=since,
        until=until,
        mode=mode,
        per_document=per_document,
        diversity=diversity,
    )
    for remark in found.remarks:
        typer.echo(f"Note: {remark}", err=True)
    for line in as_json(found) if json else as_text(found):
        typer.echo(line)


@app.command()
def unlock(index: Where) -> None:
    """Free an index in object storage that a killed process left locked."""
    from meditune.retrieve.place import place

    typer.echo(place(index).unlock())


def _collections(sources: list[str] | None, documents: list[str] | None, pubmed: list[str] | None) -> list[Collection]:
    from meditune.retrieve import collections

    return [
        *map(collections.named, sources or ()),
        *map(collections.documents, documents or ()),
        *map(collections.pubmed_files, pubmed or ()),
    ]


def _print_changes(made: Manifest, changes: Changes, index: str) -> None:
    for source, reasons in changes.left_out.items():
        for reason, count in reasons.items():
            some = changes.where.get((source, reason), [])
            more = ", ..." if count > len(some) else ""
            typer.echo(f"Left out of {source}: {count:,} {reason}" + (f" ({', '.join(some)}{more})" if some else ""))
    for name in made.restricted:
        typer.echo(f"{name} is restricted: its licence forbids passing this index, or passages of it, to others.")
    typer.echo(
        f"{counted(made.passages, 'passage')} of {counted(made.documents, 'document')}: "
        f"{changes.added:,} new, {changes.changed:,} changed, {changes.removed:,} removed, "
        f"{changes.kept:,} as they were."
    )
    where = index if "://" in index else Path(index).resolve()
    typer.echo(f'Index: {where}. Search it: meditune index search {index} "QUESTION"')
