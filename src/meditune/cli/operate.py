"""The commands of `meditune drift`: parsing and printing. Heavy libraries are imported by what they call.

`meditune update`: new research is taken in. Heavy libraries are imported by what it calls.

The commands of `meditune learn`: parsing and printing. Heavy libraries are imported by what they call.

A queue in the terminal and as JSON.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meditune.errors import DataError, DriftError
from meditune.text import counted

if TYPE_CHECKING:
    from meditune.operate.active_learning.annotation_queue import Chosen, Queued
    from meditune.operate.drift.check import CheckResult
    from meditune.operate.literature.update import Report

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
    from meditune.operate.drift.check import RequestSource, fit_reference

    made = reference.save(fit_reference(RequestSource(where), last, embedding, seed), output)
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
    from meditune.operate.drift import canaries, drift_report
    from meditune.operate.drift import check as evidence
    from meditune.operate.drift.alerts import SEVERITIES, Policy
    from meditune.operate.drift.check import RequestSource
    from meditune.operate.drift.check import check as held
    from meditune.operate.drift.drift_watcher import state_of
    from meditune.operate.drift.reference import load

    if least not in SEVERITIES:
        raise DataError(f"--least {least}: one of {', '.join(SEVERITIES)}.")
    source, known = RequestSource(where), load(reference)
    place = state or (state_of(reference) if source.is_store else None)
    level = next(each for each in SEVERITIES if each == least)
    found = held(source, known, place, Policy(alarms=alarms, least=level), embedding, evidence.gather_evidence)
    verdict = canaries.verdict(canary) if canary else None
    if page:
        drift_report.write(found, verdict, page)
    said = drift_report.as_dict(found) | {"canary": verdict}
    if json:
        from json import dumps

        typer.echo(dumps(said, ensure_ascii=False, indent=2))
    else:
        for line in [*drift_report.lines(found), *(canaries.lines(verdict) if verdict else ())]:
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
    from meditune.operate.drift.drift_watcher import outbox_of
    from meditune.operate.drift.notifications import Outbox

    for line in Outbox(outbox_of(reference)).lines():
        typer.echo(line)


def _notify(found: CheckResult, verdict: dict[str, object] | None, reference: Path, link: str) -> None:
    from meditune.operate.drift import notifications
    from meditune.operate.drift.drift_watcher import outbox_of

    known = notifications.from_environment()
    messages = notifications.messages(found.monitor.all_alerts, verdict, link)
    for problem in notifications.Outbox(outbox_of(reference)).send(messages, known):
        typer.echo(f"Note: {problem}", err=True)


def _refuse(found: CheckResult, verdict: dict[str, object] | None) -> None:
    """Raise DriftError that names every open alert."""
    said = [f"{alert.signal} ({alert.severity}): {alert.said}" for alert in found.monitor.alerts()]
    if verdict and verdict["alert"]:
        said.append(f"canaries: {verdict['said']}")
    if said:
        raise DriftError("Drift: " + " ".join(said))


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
    from meditune.operate.literature.pubmed_client import URL
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


learn_app = typer.Typer(
    help="What experts should be asked next, and what they said as training rows.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


Campaign = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `meditune learn queue` made.")]


@learn_app.command()
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
    from meditune.operate.active_learning import annotation_queue
    from meditune.operate.active_learning.annotation_queue import Assignment

    wanted = annotation_queue.Wanted(
        budget=budget,
        strategy=strategy,
        known=tuple(known or ()),
        done=tuple(done or ()),
        models=tuple(ask or ()),
        predictions=tuple(predictions or ()),
        samples=samples,
        index=index,
        embedding=embedding,
        sharing=Assignment(raters, overlap),
        seed=seed,
    )
    found = annotation_queue.queue(places, output, wanted)
    if json:
        typer.echo(as_json(found, output))
        return
    for line in queue_lines(found, SHOWN):
        typer.echo(line)
    typer.echo(f"Annotation set: {output.resolve()}. Let experts judge it: meditune annotate serve {output}")
    for remark in found.remarks:
        typer.echo(f"Note: {remark}", err=True)


@learn_app.command()
def rows(
    folder: Campaign,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The training rows, JSON Lines.")],
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="RATER", help="Leave this rater out, by name or code.")
    ] = None,
) -> None:
    """Write what experts said as training rows, which a recipe's `own` source reads."""
    from meditune.operate.active_learning.annotation_queue import write

    found = write(folder, output, without or ())
    typer.echo(f"{len(found.rows)} rows: {output.resolve()}")
    for why, count in found.left_out.items():
        typer.echo(f"Left out: {count}, {why}.")
    typer.echo(f"Train with them: --set 'data.sources=[..., {{name: own, path: {output}}}]'")


CHARACTERS = 100


def queue_lines(found: Queued, most: int) -> Iterator[str]:
    """How many were chosen and why, and the first `most` with their reasons."""
    yield f"{len(found.chosen)} of {found.pool:,} chosen."
    counts = Counter(name for each in found.chosen for name in each.reasons)
    yield "Reasons: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "."
    for number, each in enumerate(found.chosen[:most], start=1):
        asked = f" (asked {each.candidate.asked} times)" if each.candidate.asked > 1 else ""
        yield f"{number}. {_cut(each.candidate.example.question)}{asked}"
        yield f"   {'; '.join(each.reasons.values())}"
    if len(found.chosen) > most:
        yield f"... and {len(found.chosen) - most} more."


def as_json(found: Queued, folder: Path) -> str:
    """One JSON object: `folder`, `pool`, `chosen`, `remarks`."""
    said = {
        "folder": str(folder.resolve()),
        "pool": found.pool,
        "chosen": [as_dict(each) for each in found.chosen],
        "remarks": found.remarks,
    }
    return json.dumps(said, ensure_ascii=False, indent=2)


def as_dict(chosen: Chosen) -> dict[str, Any]:
    """id, question, asked, score, reasons."""
    return {
        "id": chosen.candidate.id,
        "question": chosen.candidate.example.question,
        "asked": chosen.candidate.asked,
        "score": round(chosen.score, 3),
        "reasons": dict(chosen.reasons),
    }


def _cut(text: str) -> str:
    told = " ".join(text.split())
    return told if len(told) <= CHARACTERS else told[: CHARACTERS - 1].rstrip() + "…"
