"""The commands of `meditune drift`: parsing and printing. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meditune.errors import DataError, DriftError

if TYPE_CHECKING:
    from meditune.operate.drift.checking import Checked

app = typer.Typer(
    help="Whether questions and answers are still what they were.", no_args_is_help=True, rich_markup_mode=None
)

Where = Annotated[
    str,
    typer.Argument(metavar="STORE|FILE", help="A server's --store, or a JSON Lines file with a question on each line."),
]
ReferenceFile = Annotated[Path, typer.Option("--reference", help="What `meditune drift fit` wrote.")]
Embedding = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The embedding model; by default the reference's.")
]
StateFile = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Where the next check goes on from. Of a store: beside the reference unless named; else none."
    ),
]


@app.command()
def fit(
    where: Where,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REFERENCE", help="The reference's file.")],
    last: Annotated[int | None, typer.Option(min=1, help="Only so many of the latest requests.")] = None,
    embedding: Embedding = None,
    seed: Annotated[int, typer.Option(help="Decides which half is learned from.")] = 17,
) -> None:
    """Learn what requests are like in a good time. Later ones are held against it."""
    from meditune.operate.drift import reference
    from meditune.operate.drift.checking import fitted
    from meditune.operate.drift.reading import Source

    made = reference.save(fitted(Source(where), last, embedding, seed), output)
    typer.echo(f"Reference of {made.about['requests']:,} requests: {output.resolve()}")
    typer.echo(f"Watched: {', '.join(made.signals)}")
    for remark in made.about["remarks"]:
        typer.echo(f"Note: {remark}", err=True)


@app.command()
def check(
    where: Where,
    reference: ReferenceFile,
    state: StateFile = None,
    alarms: Annotated[
        float, typer.Option(min=1e-6, help="False alarms put up with in 10,000 requests, of all signals together.")
    ] = 0.1,
    least: Annotated[str, typer.Option(help="slight, small, medium or large: smaller changes are no alert.")] = "small",
    embedding: Embedding = None,
    canary: Annotated[
        Path | None, typer.Option(help="Results of `meditune drift canary`; their verdict counts here, too.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the evidence to this HTML page.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
    notify: Annotated[
        bool, typer.Option("--notify", help="Send alerts to the channels that the environment names.")
    ] = False,
    link: Annotated[str, typer.Option(help="What alerts point to; by default the page's path.")] = "",
) -> None:
    """Hold new requests against a reference. Ends with code 6 where an alert is open."""
    from meditune.operate.drift import canaries, evidence, report
    from meditune.operate.drift import page as evidence_page
    from meditune.operate.drift.alerts import SEVERITIES, Policy
    from meditune.operate.drift.checking import check as held
    from meditune.operate.drift.reading import Source
    from meditune.operate.drift.reference import load
    from meditune.operate.drift.watching import state_of

    if least not in SEVERITIES:
        raise DataError(f"--least {least}: one of {', '.join(SEVERITIES)}.")
    source, known = Source(where), load(reference)
    place = state or (state_of(reference) if source.is_store else None)
    level = next(each for each in SEVERITIES if each == least)
    found = held(source, known, place, Policy(alarms=alarms, least=level), embedding, evidence.gather)
    verdict = canaries.verdict(canary) if canary else None
    if page:
        evidence_page.write(found, verdict, page)
    said = report.as_dict(found) | {"canary": verdict}
    if json:
        from json import dumps

        typer.echo(dumps(said, ensure_ascii=False, indent=2))
    else:
        for line in [*report.lines(found), *(canaries.lines(verdict) if verdict else ())]:
            typer.echo(line)
        if page:
            typer.echo(f"Evidence: {page.resolve()}")
    if notify:
        _notify(found, verdict, reference, link or (str(page.resolve()) if page else ""))
    _refuse(found, verdict)


@app.command()
def canary(
    questions: Annotated[Path, typer.Argument(metavar="CANARIES", help="Questions with known answers, JSON Lines.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RESULTS", help="Runs are added to this file.")],
    url: Annotated[str, typer.Option(envvar="MEDITUNE_URL", help="The server.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a server (its key: MEDITUNE_KEY) questions whose answers are known. Ends with code 6 when it got worse."""
    from meditune.operate.drift import canaries

    run = canaries.ask(canaries.read(questions), url)
    canaries.keep(run, output)
    verdict = canaries.verdict(output)
    for line in canaries.lines(verdict):
        typer.echo(line)
    if verdict["alert"]:
        raise DriftError(f"Canaries: {verdict['said']}")


@app.command()
def status(reference: ReferenceFile) -> None:
    """Which alerts were sent, and which couldn't be."""
    from meditune.operate.drift.outbox import Outbox
    from meditune.operate.drift.watching import outbox_of

    for line in Outbox(outbox_of(reference)).lines():
        typer.echo(line)


def _notify(found: Checked, verdict: dict[str, object] | None, reference: Path, link: str) -> None:
    from meditune.operate.drift import channels, outbox
    from meditune.operate.drift.watching import outbox_of

    known = channels.from_environment()
    messages = outbox.messages(found.monitor.all_alerts, verdict, link)
    for problem in outbox.Outbox(outbox_of(reference)).send(messages, known):
        typer.echo(f"Note: {problem}", err=True)


def _refuse(found: Checked, verdict: dict[str, object] | None) -> None:
    """Raise DriftError that names every open alert."""
    said = [f"{alert.signal} ({alert.severity}): {alert.said}" for alert in found.monitor.alerts()]
    if verdict and verdict["alert"]:
        said.append(f"canaries: {verdict['said']}")
    if said:
        raise DriftError("Drift: " + " ".join(said))
