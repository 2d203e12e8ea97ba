"""`meditune drift`, `meditune update` and `meditune learn`: watch requests, import research, ask experts."""

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
    from meditune.operate.drift.drift_detection import CheckResult
    from meditune.operate.literature.literature_update import Report

app = typer.Typer(
    help="Detect changes in a service's questions and answers.\n\nGuide: docs/how-to/detect-drift.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[
    str,
    typer.Argument(metavar="STORE|FILE", help="A server's --store, or a JSON Lines file with one question per line."),
]
ReferenceFile = Annotated[Path, typer.Option("--reference", help="The file that `meditune drift fit` wrote.")]
Embedding = Annotated[str | None, typer.Option(metavar="MODEL", help="Embedding model; the reference's by default.")]
StateFile = Annotated[
    Path | None,
    typer.Option(
        "--state", help="File with the position to resume from. A store has one next to the reference by default."
    ),
]


@app.command()
def fit(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REFERENCE", help="File for the reference.")],
    last: Annotated[int | None, typer.Option(min=1, help="Use only this many of the latest requests.")] = None,
    embedding: Embedding = None,
    seed: Annotated[int, typer.Option(help="Seed of the split into a half to fit and a half to calibrate.")] = 17,
) -> None:
    """Learn the reference for later checks from normal requests.

    Example: `meditune drift fit store --output drift/reference`.

    Guide: docs/how-to/detect-drift.md.
    """
    from meditune.operate.drift import reference
    from meditune.operate.drift.drift_detection import RequestSource, fit_reference

    fitted = reference.save(fit_reference(RequestSource(source), last, embedding, seed), output)
    typer.echo(f"Reference of {fitted.about['requests']:,} requests: {output.resolve()}")
    typer.echo(f"Watched: {', '.join(fitted.signals)}")
    for remark in fitted.about["remarks"]:
        typer.echo(f"Note: {remark}", err=True)


@app.command()
def check(
    source: Source,
    reference: ReferenceFile,
    state: StateFile = None,
    false_alarms: Annotated[
        float, typer.Option(min=1e-6, help="Tolerated false alarms per 10,000 requests, over all signals.")
    ] = 0.1,
    min_severity: Annotated[
        str, typer.Option(help="Smallest change that is an alert: slight, small, medium or large.")
    ] = "small",
    embedding: Embedding = None,
    canary: Annotated[
        Path | None, typer.Option(help="Results of `meditune drift canary`; an alert there counts, too.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the evidence to this HTML file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    notify: Annotated[
        bool, typer.Option("--notify", help="Send alerts to the channels set by environment variables.")
    ] = False,
    link: Annotated[str, typer.Option(help="Link in the alerts; the path of --page by default.")] = "",
) -> None:
    """Compare new requests with a reference; exit code 6 means an open alert.

    Example: `meditune drift check store --reference drift/reference --page drift.html`.

    Guide: docs/how-to/detect-drift.md.
    """
    from meditune.operate.drift import canaries, drift_report
    from meditune.operate.drift.alerts import SEVERITIES, Policy
    from meditune.operate.drift.drift_detection import RequestSource
    from meditune.operate.drift.drift_detection import check as check_drift
    from meditune.operate.drift.drift_watcher import state_of
    from meditune.operate.drift.reference import load

    if min_severity not in SEVERITIES:
        raise DataError(f"--min-severity {min_severity}: use one of {', '.join(SEVERITIES)}.")
    requests, known = RequestSource(source), load(reference)
    place = state or (state_of(reference) if requests.is_store else None)
    level = next(each for each in SEVERITIES if each == min_severity)
    found = check_drift(requests, known, place, Policy(false_alarms=false_alarms, min_severity=level), embedding)
    verdict = canaries.verdict(canary) if canary else None
    if page:
        drift_report.write(found, verdict, page)
    result = drift_report.as_dict(found) | {"canary": verdict}
    if json:
        from json import dumps

        typer.echo(dumps(result, ensure_ascii=False, indent=2))
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
    questions: Annotated[
        Path, typer.Argument(metavar="CANARIES", help="JSON Lines file of questions with known answers.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RESULTS", help="Append the results to this file.")],
    url: Annotated[str, typer.Option(envvar="MEDITUNE_URL", help="Address of the server.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a server questions with known answers; exit code 6 means it got worse.

    The environment variable MEDITUNE_KEY holds the server's key.

    Example: `meditune drift canary canaries.jsonl --output drift/canaries.jsonl`.

    Guide: docs/how-to/detect-drift.md#canaries.
    """
    from meditune.operate.drift import canaries

    run = canaries.ask(canaries.read(questions), url)
    canaries.append_run(run, output)
    verdict = canaries.verdict(output)
    for line in canaries.lines(verdict):
        typer.echo(line)
    if verdict["alert"]:
        raise DriftError(f"Canaries: {verdict['message']}")


@app.command()
def status(reference: ReferenceFile) -> None:
    """List alerts that were sent and alerts that couldn't be sent.

    Example: `meditune drift status --reference drift/reference`.

    Guide: docs/how-to/detect-drift.md#alerts.
    """
    from meditune.operate.drift.drift_watcher import outbox_of
    from meditune.operate.drift.notifications import Outbox

    for line in Outbox(outbox_of(reference)).lines():
        typer.echo(line)


def _notify(result: CheckResult, verdict: dict[str, object] | None, reference: Path, link: str) -> None:
    from meditune.operate.drift import notifications
    from meditune.operate.drift.drift_watcher import outbox_of

    known = notifications.from_environment()
    messages = notifications.messages(result.monitor.all_alerts, verdict, link)
    for problem in notifications.Outbox(outbox_of(reference)).send(messages, known):
        typer.echo(f"Note: {problem}", err=True)


def _refuse(result: CheckResult, verdict: dict[str, object] | None) -> None:
    """Raise DriftError, which names every open alert."""
    reasons = [f"{alert.signal} ({alert.severity}): {alert.message}" for alert in result.monitor.alerts()]
    if verdict and verdict["alert"]:
        reasons.append(f"canaries: {verdict['message']}")
    if reasons:
        raise DriftError("Drift: " + " ".join(reasons))


MAX_PRINTED = 10
"""Number of retracted articles, and of queued items, that are printed"""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def update(
    library: Annotated[Path, typer.Argument(metavar="LIBRARY", help="Folder for articles, pairs and lists.")],
    query: Annotated[
        list[str] | None, typer.Option(metavar="QUERY", help="A PubMed query, in the syntax of its site. Repeatable.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="On the first update, import only changes since this date (2026-01-31)."),
    ] = None,
    update_files: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="MEDLINE's update files (pubmedYYnNNNN.xml.gz, each with its .md5)."),
    ] = None,
    first_file: Annotated[str | None, typer.Option(metavar="FILE", help="Start with this update file.")] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER", help="Folder of guidelines: text, Markdown, HTML, PDF, DOCX. Repeatable."
        ),
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="The index to update. It is built if it doesn't exist.")
    ] = None,
    email: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", envvar="MEDITUNE_CONTACT", help="Your contact address, which NCBI asks for."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            envvar="MEDITUNE_STORE",
            help="Flag stored answers of this server that cite retracted articles.",
        ),
    ] = None,
    test_items: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Test items to exclude from the pairs, besides PubMedQA's: RUN/data/test.jsonl. Repeatable.",
        ),
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="Embedding model for a new index.")] = None,
    eutils_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Another address of NCBI's E-utilities.")
    ] = None,
) -> None:
    """Import new research from PubMed, MEDLINE and folders.

    The command checks new and corrected articles and adds them to the index. It removes retracted articles from the
    index and lists them in LIBRARY/retracted.jsonl. Structured abstracts become training pairs in LIBRARY/pairs.jsonl,
    without test items.

    Repeat an interrupted command to resume it. Later calls import only what has changed. With your own key in the
    environment variable NCBI_API_KEY, NCBI allows 10 requests per second instead of 3.

    Example: `meditune update literature --query "asthma[mh]" --index library`.

    Guide: docs/how-to/operate.md#new-research.
    """
    from meditune.operate.literature import literature_update
    from meditune.operate.literature.pubmed_client import URL
    from meditune.retrieve import collections

    if since and not _DATE.fullmatch(since):
        raise DataError(f"--since {since}: write the date as in 2026-01-31.")
    options = literature_update.UpdateOptions(
        queries=tuple(query or ()),
        since=since,
        files=update_files,
        first=first_file,
        documents=tuple(map(collections.documents, documents or ())),
        index=index,
        embedding=embedding,
        email=email,
        eutils=eutils_url or URL,
        store=store,
        tests=tuple(test_items or ()),
    )
    report = literature_update.update(library, options)
    for line in lines(report, library):
        typer.echo(line)
    for failure in report.failures[:-1]:
        typer.secho(f"Error: {failure}", fg="red", err=True)
    if report.failures:
        raise report.failures[-1]


def lines(report: Report, library: Path) -> list[str]:
    """Return what an update did, in lines for the terminal."""
    return [
        *_update_messages(report),
        *_retracted(report),
        *_library(report, library),
        *_index(report),
        *_pairs(report, library),
    ]


def _update_messages(report: Report) -> list[str]:
    messages = [f"PubMed, {term}: {counted(count, 'article')} added or revised." for term, count in report.read.items()]
    if report.files:
        span = report.files[0] if len(report.files) == 1 else f"{report.files[0]} to {report.files[-1]}"
        messages.append(f"Update files applied: {len(report.files):,} ({span}).")
    done = ", ".join(f"{count:,} {what}" for what, count in report.counts.most_common() if what != "out" and count)
    if done:
        messages.append(f"Articles: {done}.")
    for reason, count in report.left_out.most_common():
        messages.append(f"Left out: {count:,} {reason}")
    for reason, count in report.set_aside.most_common():
        messages.append(f"Set aside: {count:,} {reason}")
    return messages


def _retracted(report: Report) -> list[str]:
    messages = [
        f"RETRACTED: PMID {row['pmid']}"
        + (f" (notice: PMID {row['notice']})" if row["notice"] else "")
        + (f": {row['title']}" if row["title"] else "")
        for row in report.retracted[:MAX_PRINTED]
    ]
    more = len(report.retracted) - MAX_PRINTED
    messages += [f"... and {more:,} more"] if more > 0 else []
    if report.flagged:
        answers = len({flag.answer for flag in report.flagged})
        messages.append(f"FLAGGED: {counted(answers, 'stored answer')} cited retracted articles; see flagged.jsonl.")
        messages += [flag.sentence for flag in report.flagged[:MAX_PRINTED]]
    return messages


def _library(report: Report, library: Path) -> list[str]:
    counts = report.library
    return [
        f"Library: {library.resolve()}, {counted(counts['there'], 'valid article')}, {counts['retracted']:,} retracted."
    ]


def _index(report: Report) -> list[str]:
    if report.index is None:
        return []
    manifest, changes = report.index
    return [
        *(f"Not indexed of {name}: {n:,} {why}" for name, some in changes.left_out.items() for why, n in some.items()),
        f"Index: {counted(manifest.passages, 'passage')} of {counted(manifest.documents, 'document')}; "
        f"{changes.added:,} new, {changes.changed:,} changed, {changes.removed:,} removed.",
    ]


def _pairs(report: Report, library: Path) -> list[str]:
    if report.pairs is None:
        return []
    pairs, file = report.pairs, library / "pairs.jsonl"
    kept_out = f"; {len(pairs.kept_out):,} excluded as test items" if pairs.kept_out else ""
    if not pairs.examples:
        return [f"Pairs: none{kept_out}. {library / 'README.md'} explains why."]
    decisions = ", ".join(f"{count:,} {name}" for name, count in pairs.decisions.most_common())
    return [
        f"Pairs: {len(pairs.examples):,} in {file} (decisions: {decisions}){kept_out}.",
        f"Train on them: --set 'data.sources=[{{name: own, path: {file.resolve()}}}]'",
    ]


learn_app = typer.Typer(
    help="Choose items for experts to judge, and train on their judgements.\n\nGuide: docs/how-to/active-learning.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


Campaign = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `meditune learn queue` wrote.")]


@learn_app.command()
def queue(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="STORE|FILE...", help="A server's --store, files of rows, or folders of runs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the annotation set.")],
    budget: Annotated[int, typer.Option(min=1, help="Maximum number of items to choose.")] = 50,
    strategy: Annotated[
        str,
        typer.Option(help="Strategy: mix, random, uncertainty, disagreement, diversity, feedback or novelty."),
    ] = "mix",
    training_data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|RUN",
            help="Training data of the model. Its questions aren't chosen; unlike items come first. Repeatable.",
        ),
    ] = None,
    earlier_queue: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="An earlier queue, whose items aren't chosen again. Repeatable."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Let this model decide each item; several may disagree. Repeatable."),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Stored decisions or samples of an evaluation. Repeatable."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Number of answers to sample from each --model.")] = 0,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="Show stored answers with their passages from this index.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(metavar="MODEL", help="Embedding model.")] = None,
    raters: Annotated[
        int | None, typer.Option(min=1, help="Number of experts who share the work; by default each judges all.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Number of experts who judge each item; 2 by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed that orders items with equal scores.")] = 17,
    json: Annotated[bool, typer.Option("--json", help="Print the chosen items as one JSON object.")] = False,
) -> None:
    """Choose the answers and rows that experts should judge next.

    The command writes an annotation set for `meditune annotate serve`, with the reasons for each item.

    Example: `meditune learn queue store --budget 50 --output queue`.

    Guide: docs/how-to/active-learning.md.
    """
    from meditune.operate.active_learning import annotation_queue

    options = annotation_queue.QueueOptions(
        budget=budget,
        strategy=strategy,
        known=tuple(training_data or ()),
        done=tuple(earlier_queue or ()),
        models=tuple(model or ()),
        predictions=tuple(predictions or ()),
        samples=samples,
        index=index,
        embedding=embedding,
        raters=raters,
        overlap=overlap,
        seed=seed,
    )
    found = annotation_queue.queue(sources, output, options)
    if json:
        typer.echo(as_json(found, output))
        return
    for line in queue_lines(found, MAX_PRINTED):
        typer.echo(line)
    typer.echo(f"Annotation set: {output.resolve()}. Start the page for experts: meditune annotate serve {output}")
    for remark in found.remarks:
        typer.echo(f"Note: {remark}", err=True)


@learn_app.command()
def rows(
    folder: Campaign,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="JSON Lines file for the training rows.")
    ],
    exclude_rater: Annotated[
        list[str] | None, typer.Option(metavar="RATER", help="Exclude this rater, by name or code. Repeatable.")
    ] = None,
) -> None:
    """Write experts' judgements as training rows for a recipe's source `own`.

    Example: `meditune learn rows queue --output rows.jsonl`.

    Guide: docs/how-to/active-learning.md.
    """
    from meditune.operate.active_learning.annotation_queue import write

    found = write(folder, output, exclude_rater or ())
    typer.echo(f"{len(found.rows)} rows: {output.resolve()}")
    for why, count in found.left_out.items():
        typer.echo(f"Left out: {count}, {why}.")
    typer.echo(f"Train with them: --set 'data.sources=[..., {{name: own, path: {output}}}]'")


CHARACTERS = 100


def queue_lines(queued: Queued, max_items: int) -> Iterator[str]:
    """Yield how many items were chosen and why, and the first `max_items` with their reasons."""
    yield f"{len(queued.chosen)} of {queued.pool:,} chosen."
    counts = Counter(name for each in queued.chosen for name in each.reasons)
    yield "Reasons: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "."
    for number, each in enumerate(queued.chosen[:max_items], start=1):
        asked = f" (asked {each.candidate.times_asked} times)" if each.candidate.times_asked > 1 else ""
        yield f"{number}. {_cut(each.candidate.example.question)}{asked}"
        yield f"   {'; '.join(each.reasons.values())}"
    if len(queued.chosen) > max_items:
        yield f"... and {len(queued.chosen) - max_items} more."


def as_json(queued: Queued, folder: Path) -> str:
    """Return a JSON object with `folder`, `pool`, `chosen` and `remarks`."""
    content = {
        "folder": str(folder.resolve()),
        "pool": queued.pool,
        "chosen": [as_dict(each) for each in queued.chosen],
        "remarks": queued.remarks,
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def as_dict(chosen: Chosen) -> dict[str, Any]:
    """Return a chosen item's id, question, asked, score and reasons."""
    return {
        "id": chosen.candidate.id,
        "question": chosen.candidate.example.question,
        "asked": chosen.candidate.times_asked,
        "score": round(chosen.score, 3),
        "reasons": dict(chosen.reasons),
    }


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CHARACTERS else line[: CHARACTERS - 1].rstrip() + "…"
