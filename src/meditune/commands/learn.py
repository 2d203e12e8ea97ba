"""The commands of `meditune learn`: parsing and printing. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="What experts should be asked next, and what they said as training rows.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SHOWN = 10
"""So many of the chosen are shown, with their reasons"""
Campaign = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `meditune learn queue` made.")]


@app.command()
def queue(
    places: Annotated[
        list[str],
        typer.Argument(metavar="STORE|FILE...", help="A server's --store, and files of rows (or a run's folder)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The annotation set's folder.")],
    budget: Annotated[int, typer.Option(min=1, help="So many are asked at most.")] = 50,
    strategy: Annotated[
        str, typer.Option(help="mix, random, uncertainty, disagreement, diversity, feedback or novelty.")
    ] = "mix",
    known: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|RUN",
            help="What the model was trained on: it isn't asked, and what is far from it goes first.",
        ),
    ] = None,
    done: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="An earlier queue; not asked again. Repeatable.")
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Let this model decide on each; several may disagree. Repeatable."),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Decisions or samples that an evaluation stored. Repeatable."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Answers that each asked model writes by chance.")] = 0,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="Show stored answers with the passages they rest on.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(metavar="MODEL", help="The embedding model.")] = None,
    raters: Annotated[
        int | None, typer.Option(min=1, help="So many experts share the work; else each judges all.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(min=1, help="So many of them judge each; two unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Settles what is equal.")] = 17,
    json: Annotated[bool, typer.Option("--json", help="One JSON object with all that was chosen.")] = False,
) -> None:
    """Choose which answers and rows go to experts next, with reasons, as a set for `meditune annotate serve`."""
    from meditune.operate.learn import gather, shown
    from meditune.operate.learn.campaign import Sharing

    wanted = gather.Wanted(
        budget=budget,
        strategy=strategy,
        known=tuple(known or ()),
        done=tuple(done or ()),
        models=tuple(ask or ()),
        predictions=tuple(predictions or ()),
        samples=samples,
        index=index,
        embedding=embedding,
        sharing=Sharing(raters, overlap),
        seed=seed,
    )
    found = gather.queue(places, output, wanted)
    if json:
        typer.echo(shown.as_json(found, output))
        return
    for line in shown.lines(found, SHOWN):
        typer.echo(line)
    typer.echo(f"Annotation set: {output.resolve()}. Let experts judge it: meditune annotate serve {output}")
    for remark in found.remarks:
        typer.echo(f"Note: {remark}", err=True)


@app.command()
def rows(
    folder: Campaign,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The training rows, JSON Lines.")],
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="RATER", help="Leave this rater out, by name or code.")
    ] = None,
) -> None:
    """Write what experts said as training rows, which a recipe's `own` source reads."""
    from meditune.operate.learn.labelled import write

    found = write(folder, output, without or ())
    typer.echo(f"{len(found.rows)} rows: {output.resolve()}")
    for why, count in found.left_out.items():
        typer.echo(f"Left out: {count}, {why}.")
    typer.echo(f"Train with them: --set 'data.sources=[..., {{name: own, path: {output}}}]'")
