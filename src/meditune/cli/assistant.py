"""`meditune ask` and `meditune index`: answer a question; build, update and search an index of sources."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from typer import Argument, Option

from meditune.cli.options import (
    CrossEncoderName,
    Embedding,
    Group,
    Json,
    JudgeRun,
    JudgeThreshold,
    Overrides,
    Paths,
    Text,
    Texts,
    documented,
    resolve,
)
from meditune.cli.tables import console, print_json, print_lines, print_notes
from meditune.errors import DataError
from meditune.text import counted, excerpt

if TYPE_CHECKING:
    from meditune.assistant.events import Answer
    from meditune.retrieve.build_index import Changes
    from meditune.retrieve.collections import Collection
    from meditune.retrieve.hybrid_search import SearchResult
    from meditune.retrieve.index import Manifest


@documented('ask runs/quickstart "Does aspirin help with migraine?" --index library', "how-to/retrieve-and-cite.md")
def ask(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Run, model or export folder, catalogue name, Hugging Face id, or api:NAME."),
    ],
    question: Annotated[str, Argument(metavar="QUESTION", help="The question, in quotes.")],
    source: Annotated[Paths, Option("--source", help="Text file to base the answer on. Repeatable.")] = None,
    index: Annotated[Text, Option(metavar="INDEX", help="Answer from this index, and cite its passages.")] = None,
    k: Annotated[int | None, Option("-k", min=1, max=50, help="Number of passages to use; 5 by default.")] = None,
    source_filter: Annotated[
        Texts, Option(metavar="NAME", help="Use only passages from this source of the index. Repeatable.")
    ] = None,
    max_new_tokens: Annotated[int | None, Option(min=1, help="Maximum length of the answer in tokens.")] = None,
    style: Annotated[
        Literal["plain", "expert"],
        Option(
            help="Audience of the answer: plain (laypeople) or expert. The style affects which passages are used. It "
            "also affects the wording if the model was trained with a cue for plain language."
        ),
    ] = "plain",
    settings: Annotated[
        Texts,
        Option(
            "--api",
            metavar="KEY=VALUE",
            help="Set a recipe key under model.api, for example url=https://... Repeatable.",
        ),
    ] = None,
    judge: JudgeRun = None,
    judge_threshold: JudgeThreshold = None,
    cross_encoder: CrossEncoderName = None,
    json: Json = False,
) -> None:
    """Ask a model one question, with or without sources to cite."""
    from meditune.files import read_text

    if judge_threshold is not None and not judge:
        raise DataError("--judge-threshold is the threshold of a judge; name the judge with --judge.")
    named = resolve("quickstart", [f"model.api.{item}" for item in settings]) if settings else None
    api = named.recipe.model.api if named else None
    if index:
        if source:
            raise DataError(
                "Give --source or --index, not both. To add files to an index, run: "
                "meditune index update INDEX --documents NAME=FOLDER"
            )
        from meditune.assistant.assistant import AssistantSettings, load_assistant, open_index, triage_first
        from meditune.retrieve.storage import import_lancedb_without_pandas

        found, answer = triage_first(question, style)
        if answer is None:
            import_lancedb_without_pandas()
            limits = AssistantSettings(max_new_tokens=max_new_tokens) if max_new_tokens else None
            opened = open_index(index, cross_encoder) if cross_encoder else index
            assistant = load_assistant(model, opened, source_filter, limits, api, judge, judge_threshold)
            try:
                *_, last = assistant.ask(question, style=style, k=k, sources=source_filter, triaged=found)
            finally:
                assistant.writer.close()
            answer = cast("Answer", last)
        print_json(answer.as_dict(), None) if json else typer.echo(str(answer))
        return
    if judge:
        raise DataError("--judge checks an answer against the passages of an index; name the index with --index.")
    if cross_encoder:
        raise DataError("--cross-encoder scores the passages of an index; name the index with --index.")
    if k or source_filter:
        raise DataError("-k and --source-filter select passages of an index; name the index with --index.")
    from meditune.assistant.writers import ask_model
    from meditune.prompts import LIMITS

    sources = [read_text(path) for path in source or []]
    written = ask_model(model, question, sources, max_new_tokens, api, style)
    if json:
        print_json(asdict(written) | {"contradictory": written.contradictory, "limits": LIMITS}, None)
        return
    out = console()
    out.print(written.text or "(the model wrote nothing)")
    shares = ", ".join(f"{label} {share:.0%}" for label, share in written.probabilities.items())
    decision = written.decision or "neither yes, no nor maybe"
    out.print(f"\nAs a yes/no question: {decision}{f' ({shares})' if shares else ''}", style="dim")
    if written.contradictory:
        out.print("The written answer and the decision disagree, so trust neither.", style="yellow")
    if not sources:
        out.print("The answer comes from the model's memory alone. To add a source: --source FILE.", style="yellow")
    out.print(LIMITS, style="dim")


app = Group("index", "Build, update and search an index of citable texts.", "how-to/retrieve-and-cite.md")

EXCERPT_LINES = 6  # Maximum number of lines that a search prints for each passage
IndexLocation = Annotated[str, Argument(metavar="INDEX", help="The index: a folder or s3://BUCKET/PREFIX.")]
Sources = Annotated[
    Texts,
    Option(
        "--source", metavar="NAME[=PATH]", help="Data source: medquad, medquad-judged, pubmedqa or mimic. Repeatable."
    ),
]
Documents = Annotated[
    Texts,
    Option(
        "--documents",
        metavar="[NAME=]PATH",
        help="Folder of text, Markdown, HTML, PDF and DOCX files, or a CSV or JSON Lines file of questions and "
        "answers. Repeatable.",
    ),
]
Pubmed = Annotated[
    Texts,
    Option("--pubmed", metavar="FILE", help="PubMed file (.xml or .xml.gz), or a folder of such files. Repeatable."),
]


@app.command(example="--source pubmedqa --documents guidelines -o library")
def build(
    output: Annotated[
        str, Option("--output", "-o", metavar="INDEX", help="Where to write the index: a folder or s3://BUCKET/PREFIX.")
    ],
    recipe: Annotated[Text, Argument(metavar="[RECIPE]", help="Recipe whose sources to index.")] = None,
    source: Sources = None,
    documents: Documents = None,
    pubmed: Pubmed = None,
    embedding: Embedding = None,
    replace: Annotated[
        bool,
        Option(
            "--replace", help="Replace an existing index. Searches use the old index until the new one is complete."
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Build an index of the given sources. Repeat an interrupted command to resume it."""
    from meditune.models.sentence_encoder import DEFAULT, load_encoder
    from meditune.retrieve import collections
    from meditune.retrieve.build_index import build as make
    from meditune.retrieve.storage import index_storage

    if overrides and not recipe:
        raise DataError("--set changes a key of a recipe; name the recipe: meditune index build RECIPE.")
    sources = collections.of_recipe(recipe, overrides or ()) if recipe else []
    chosen = [*sources, *_collections(source, documents, pubmed)]
    manifest, changes = make(index_storage(output), chosen, load_encoder(embedding or DEFAULT), replace)
    _print_changes(manifest, changes, output)


@app.command(example="library --documents guidelines")
def update(
    index: IndexLocation,
    source: Sources = None,
    documents: Documents = None,
    pubmed: Pubmed = None,
    remove: Annotated[Texts, Option(metavar="SOURCE", help="Remove this source from the index. Repeatable.")] = None,
    embedding: Embedding = None,
) -> None:
    """Update an index: embed new and changed passages of its sources.

    The sources of the index are read again, and passages that are no longer in them are removed. Options such as
    --source select some of these sources or add new ones.
    """
    from meditune.models.sentence_encoder import load_encoder
    from meditune.retrieve.build_index import update as update_index
    from meditune.retrieve.index import read as read_manifest
    from meditune.retrieve.storage import index_storage

    storage = index_storage(index)
    name = embedding or read_manifest(storage).embedding["name"]
    manifest, changes = update_index(storage, _collections(source, documents, pubmed), load_encoder(name), remove or ())
    _print_changes(manifest, changes, index)


@app.command(example="library")
def stats(index: IndexLocation) -> None:
    """Print an index's sources, licences, embedding model and dates."""
    from meditune.retrieve.index import read as read_manifest
    from meditune.retrieve.storage import index_storage

    manifest = read_manifest(index_storage(index))
    for name, source in manifest.sources.items():
        marks = "  RESTRICTED: don't share this source" if source["restricted"] else ""
        licences = source["licences"]
        more = f" and {len(licences) - 3} more" if len(licences) > 3 else ""
        typer.echo(
            f"{name}: {counted(source['passages'], 'passage')} of {counted(source['documents'], 'document')} "
            f"({'; '.join(licences[:3])}{more}){marks}"
        )
    typer.echo(f"Total: {counted(manifest.passages, 'passage')} of {counted(manifest.documents, 'document')}")
    typer.echo(f"Embedding: {manifest.embedding['name']}, {manifest.embedding['dimension']} dimensions")
    typer.echo(f"Created: {manifest.created}, updated: {manifest.updated}")
    typer.echo(f"Content hash: {manifest.content}")


@app.command(example='library "metformin and kidney function" -k 3')
def search(
    index: IndexLocation,
    question: Annotated[str, Argument(metavar="QUESTION", help="The question or search words, in quotes.")],
    k: Annotated[int, Option("-k", min=1, max=1000, help="Maximum number of passages to print.")] = 5,
    source: Annotated[Texts, Option("--source", help="Search only this source. Repeatable.")] = None,
    since: Annotated[Text, Option(help="Earliest date of a passage, for example 2018, 2018-05 or 2018-05-17.")] = None,
    until: Annotated[Text, Option(help="Latest date of a passage, in the formats of --since.")] = None,
    mode: Annotated[
        str,
        Option(help="Search method: bm25 (words), vectors (meaning), fused (both) or hybrid (both, with reranking)."),
    ] = "hybrid",
    per_document: Annotated[int, Option(min=1, help="Maximum number of passages from one document.")] = 1,
    embedding: Embedding = None,
    cross_encoder: CrossEncoderName = None,
    json: Annotated[bool, Option("--json", help="Print a JSON object for each passage.")] = False,
) -> None:
    """Print the passages that best match a question."""
    from meditune.retrieve.index import Index

    if cross_encoder and mode != "hybrid":
        raise DataError(f"--cross-encoder scores passages again only with --mode hybrid, not with --mode {mode}.")
    filters = {"sources": source, "since": since, "until": until, "per_document": per_document}
    found = Index.open(index, embedding, cross_encoder).search(question, k, mode=mode, **filters)
    print_notes(found.remarks)
    if not json:
        print_lines(_hits(found))
        return
    for hit in found.hits:
        print_json(asdict(hit.passage) | {"score": hit.score, "words": hit.words, "meaning": hit.meaning}, None)


@app.command(example="s3://bucket/library")
def unlock(index: IndexLocation) -> None:
    """Unlock an index in object storage after the process that wrote it was killed."""
    from meditune.retrieve.storage import index_storage

    typer.echo(index_storage(index).unlock())


def _collections(sources: Texts, documents: Texts, pubmed: Texts) -> list[Collection]:
    from meditune.retrieve import collections

    return [
        *map(collections.collection_named, sources or ()),
        *map(collections.documents, documents or ()),
        *map(collections.pubmed_files, pubmed or ()),
    ]


def _print_changes(manifest: Manifest, changes: Changes, index: str) -> None:
    for source, reasons in changes.left_out.items():
        for reason, count in reasons.items():
            some = changes.locations.get((source, reason), [])
            more = ", ..." if count > len(some) else ""
            typer.echo(
                f"Left out of {source}: {counted(count, 'item')}: {reason}"
                + (f" ({', '.join(some)}{more})" if some else "")
            )
    for name in manifest.restricted:
        typer.echo(f"{name} is restricted: its licence forbids sharing this index or the passages in it.")
    typer.echo(
        f"{counted(manifest.passages, 'passage')} of {counted(manifest.documents, 'document')}: "
        f"{changes.added:,} new, {changes.changed:,} changed, {changes.removed:,} removed, "
        f"{changes.unchanged:,} unchanged."
    )
    location = index if "://" in index else Path(index).resolve()
    typer.echo(f'Index: {location}. Search it: meditune index search {shlex.quote(index)} "QUESTION"')


def _hits(result: SearchResult) -> Iterator[str]:
    if not result.hits:
        yield "Nothing was found. Use other words or fewer filters."
    for place, hit in enumerate(result.hits, start=1):
        passage = hit.passage
        facts = [passage.source, passage.date, passage.url, "restricted" if passage.restricted else ""]
        words = "not found by words" if hit.words is None else f"words {hit.words:.1f}"
        meaning = "not found by meaning" if hit.meaning is None else f"meaning {hit.meaning:.2f}"
        yield f"{place}. {passage.title or passage.document}" + (f" [{passage.section}]" if passage.section else "")
        yield f"   {' · '.join(filter(None, facts))}"
        yield f"   score {hit.score:.4f}: {words}, {meaning}"
        yield from excerpt(passage.text, "   ", EXCERPT_LINES)
        yield ""
