"""`meditune ask`. Heavy libraries are imported by what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from meditune.commands.options import resolve
from meditune.errors import DataError


def ask(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, model folder, catalogue name, hub id, or api:NAME.")
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="A text file that the answer may rest on. Repeatable.")
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="INDEX", help="Rest on what this index holds, and cite it."),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, max=50, help="So many passages of the index (5).")] = None,
    source_filter: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this source of the index. Repeatable.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    style: Annotated[
        Literal["plain", "expert"],
        typer.Option(help="For whom: which near passages are used, and which cue, if the model learnt both."),
    ] = "plain",
    settings: Annotated[
        list[str] | None,
        typer.Option("--api", metavar="KEY=VALUE", help="Change a key under model.api: url=https://... Repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Ask a model one question."""
    from meditune.ask import ask as answer
    from meditune.files import read_text
    from meditune.terminal.answers import print_answer, print_cited

    named = resolve("quickstart", [f"model.api.{item}" for item in settings]) if settings else None
    api = named.recipe.model.api if named else None
    if index:
        from meditune.answering import PASSAGES, open_answerer
        from meditune.retrieve.styles import chooser

        if source:
            raise DataError("--source and --index don't go together: put the file into the index (--documents FOLDER).")
        answerer = open_answerer(model, index, source_filter, max_new_tokens, api, style=style)
        print_cited(answerer.answer(question, k or PASSAGES, source_filter, chooser(style)), json)
        return
    if k or source_filter:
        raise DataError("-k and --source-filter choose among an index's passages: name the index with --index.")
    sources = [read_text(path) for path in source or []]
    print_answer(answer(model, question, sources, max_new_tokens, api, style), bool(sources), json)
