"""`meditune status`, `drift`, `update` and `learn`: watch a service, import research, ask experts."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from meditune.cli.options import (
    Embedding,
    ExcludeRater,
    Group,
    Json,
    Overlap,
    Paths,
    Raters,
    Seed,
    Store,
    Text,
    Texts,
    documented,
)
from meditune.cli.tables import print_json, print_lines, print_notes
from meditune.errors import DataError, DriftError, install_command
from meditune.text import counted

if TYPE_CHECKING:
    from meditune.operate.label_queue import Queued
    from meditune.operate.literature.literature_update import Report

app = Group("drift", "Detect changes in a service's questions and answers.", "how-to/detect-drift.md")

Source = Annotated[str, Argument(metavar="STORE|FILE", help="A server's store, or a JSON Lines file of questions.")]
ReferenceFile = Annotated[Path, Option("--reference", help="Reference file that `meditune drift fit` wrote.")]
StateFile = Annotated[
    Path | None,
    Option(
        "--state",
        help="File that stores where the next check begins; with a store, the default is a file beside the reference.",
    ),
]


@app.command(example="store --output drift/reference")
def fit(
    source: Source,
    output: Annotated[Path, Option("--output", "-o", metavar="REFERENCE", help="File for the reference.")],
    last: Annotated[
        int | None, Option(min=1, help="Use only this many of the latest requests; by default, all.")
    ] = None,
    embedding: Embedding = None,
    seed: Annotated[int, Option(help="Seed of the random split into requests for fitting and for calibration.")] = 17,
) -> None:
    """Fit a reference to normal requests; later checks compare new requests with this reference."""
    from meditune.operate.drift import reference
    from meditune.operate.drift.drift_detection import RequestSource, fit_reference

    fitted = reference.save(fit_reference(RequestSource(source), last, embedding, seed), output)
    typer.echo(f"Reference fitted to {fitted.about['requests']:,} requests: {output.resolve()}")
    typer.echo(f"Signals: {', '.join(fitted.signals)}")
    print_notes(fitted.about["remarks"])


@app.command(example="store --reference drift/reference --page drift.html")
def check(
    source: Source,
    reference: ReferenceFile,
    state: StateFile = None,
    false_alarms: Annotated[
        float, Option(min=1e-6, help="Tolerated number of false alarms per 10,000 requests.")
    ] = 0.1,
    min_severity: Annotated[
        str, Option(help="Smallest severity that raises an alert: slight, small, medium or large.")
    ] = "small",
    embedding: Embedding = None,
    canary: Annotated[
        Path | None,
        Option(help="File with results of `meditune drift canary`; alerts in it have the same effect as drift alerts."),
    ] = None,
    page: Annotated[Path | None, Option(help="Also write the evidence to this HTML file.")] = None,
    json: Json = False,
    notify: Annotated[
        bool, Option("--notify", help="Send alerts to the channels that environment variables set.")
    ] = False,
    link: Annotated[str, Option(help="Link to put into alerts; by default, the path of --page.")] = "",
) -> None:
    """Compare new requests with a reference; exit code 6 means that an alert is open."""
    from meditune.operate.drift import canaries, drift_report, notifications
    from meditune.operate.drift.drift_detection import RequestSource
    from meditune.operate.drift.drift_detection import check as check_drift
    from meditune.operate.drift.drift_watcher import outbox_of, state_of
    from meditune.operate.drift.monitor import SEVERITIES, Policy
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
    if json:
        print_json(drift_report.as_dict(found) | {"canary": verdict})
    else:
        print_lines([*drift_report.lines(found), *(canaries.lines(verdict) if verdict else ())])
        if page:
            typer.echo(f"Evidence: {page.resolve()}")
    if notify:
        link = link or (str(page.resolve()) if page else "")
        messages = notifications.messages(found.monitor.all_alerts, verdict, link)
        print_notes(notifications.Outbox(outbox_of(reference)).send(messages, notifications.from_environment()))
    reasons = [f"{alert.signal} ({alert.severity}): {alert.message}" for alert in found.monitor.alerts()]
    if verdict and verdict["alert"]:
        reasons.append(f"canaries: {verdict['message']}")
    if reasons:
        raise DriftError("Drift: " + " ".join(reasons))


@app.command(example="canaries.jsonl --output drift/canaries.jsonl", page="how-to/detect-drift.md#canaries")
def canary(
    questions: Annotated[Path, Argument(metavar="CANARIES", help="JSON Lines file of questions with known answers.")],
    output: Annotated[Path, Option("--output", "-o", metavar="RESULTS", help="Append the results to this file.")],
    url: Annotated[str, Option(envvar="MEDITUNE_URL", help="Address of the server.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a server questions with known answers; exit code 6 means that the server's answers got worse.

    The command reads the server's API key from the environment variable MEDITUNE_KEY.
    """
    from meditune.operate.drift import canaries

    run = canaries.ask(canaries.read(questions), url)
    canaries.append_run(run, output)
    verdict = canaries.verdict(output)
    print_lines(canaries.lines(verdict))
    if verdict["alert"]:
        raise DriftError(f"Canaries: {verdict['message']}")


@app.command(example="--reference drift/reference", page="how-to/detect-drift.md#alerts")
def status(reference: ReferenceFile) -> None:
    """List the alerts that were sent, and those that couldn't be sent."""
    from meditune.operate.drift.drift_watcher import outbox_of
    from meditune.operate.drift.notifications import Outbox
    from meditune.operate.drift.reference import load

    load(reference)  # raises DataError if there is no such reference
    print_lines(Outbox(outbox_of(reference)).lines())


MAX_PRINTED = 10  # Maximum number of retracted articles, of flagged answers and of queued items that are printed
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@documented(
    'update literature --query "asthma[mh]" --index library --email you@example.org', "how-to/operate.md#new-research"
)
def update(
    library: Annotated[
        Path,
        Argument(metavar="LITERATURE", help="The literature folder, for the articles, training pairs and lists."),
    ],
    query: Annotated[Texts, Option(metavar="QUERY", help="Query in PubMed's own syntax. Repeatable.")] = None,
    since: Annotated[
        Text, Option(metavar="DATE", help="Import only changes since this date, for example 2026-01-31.")
    ] = None,
    update_files: Annotated[
        Text,
        Option(metavar="FOLDER|URL", help="Folder or URL that contains MEDLINE's update files and their .md5 files."),
    ] = None,
    first_file: Annotated[Text, Option(metavar="FILE", help="Name of the first update file to import.")] = None,
    documents: Annotated[
        Texts, Option(metavar="[NAME=]PATH", help="Documents to index, as for `index build`. Repeatable.")
    ] = None,
    index: Annotated[Text, Option(metavar="INDEX", help="Index to update; if it doesn't exist, it is built.")] = None,
    email: Annotated[
        Text, Option(metavar="ADDRESS", envvar="MEDITUNE_CONTACT", help="Your email address, which NCBI requires.")
    ] = None,
    store: Store = None,
    test_items: Annotated[
        Paths,
        Option(
            metavar="FILE",
            help="File of test items to exclude from the pairs. PubMedQA's test items are always excluded. Repeatable.",
        ),
    ] = None,
    embedding: Embedding = None,
    eutils_url: Annotated[
        Text, Option(metavar="URL", help="Address of the E-utilities API; by default, NCBI's.")
    ] = None,
) -> None:
    """Import new research from PubMed, MEDLINE and folders.

    New and corrected articles are added to the index. Retracted articles are removed from the index and listed in
    LITERATURE/retracted.jsonl. Structured abstracts, except test items, become training pairs in
    LITERATURE/pairs.jsonl. Later calls import only new and changed articles. Repeat an interrupted command to resume
    it. If the environment variable NCBI_API_KEY contains your key, NCBI allows 10 requests per second instead of 3.
    """
    from meditune.operate.literature import literature_update
    from meditune.operate.literature.pubmed_search import URL
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
    print_lines(_update_lines(report, library))
    for failure in report.failures[:-1]:
        typer.secho(f"Error: {failure}", fg="red", err=True)
    if report.failures:
        raise report.failures[-1]


def _update_lines(report: Report, library: Path) -> Iterator[str]:
    for term, count in report.read.items():
        yield f"PubMed, {term}: {counted(count, 'article')} added or revised."
    if report.files:
        span = report.files[0] if len(report.files) == 1 else f"{report.files[0]} to {report.files[-1]}"
        yield f"Update files applied: {len(report.files):,} ({span})."
    if done := ", ".join(f"{count:,} {what}" for what, count in report.counts.most_common() if what != "out" and count):
        yield f"Articles: {done}."
    for reason, count in report.left_out.most_common():
        yield f"Left out: {count:,} {reason}"
    for reason, count in report.set_aside.most_common():
        yield f"Set aside: {count:,} {reason}"
    for row in report.retracted[:MAX_PRINTED]:
        notice = f" (notice: PMID {row['notice']})" if row["notice"] else ""
        yield f"RETRACTED: PMID {row['pmid']}{notice}" + (f": {row['title']}" if row["title"] else "")
    if (more := len(report.retracted) - MAX_PRINTED) > 0:
        yield f"... and {more:,} more"
    if report.flagged:
        answers = len({flag.answer for flag in report.flagged})
        yield f"FLAGGED: {counted(answers, 'stored answer')} cited retracted articles; see flagged.jsonl."
        yield from (flag.sentence for flag in report.flagged[:MAX_PRINTED])
    there, retracted = report.library["there"], report.library["retracted"]
    yield f"Literature folder: {library.resolve()}, {counted(there, 'valid article')}, {retracted:,} retracted."
    if report.index:
        manifest, changes = report.index
        for name, some in changes.left_out.items():
            yield from (f"Not indexed from {name}: {count:,} {reason}" for reason, count in some.items())
        yield (
            f"Index: {counted(manifest.passages, 'passage')} of {counted(manifest.documents, 'document')}; "
            f"{changes.added:,} new, {changes.changed:,} changed, {changes.removed:,} removed."
        )
    if pairs := report.pairs:
        excluded = f"; {len(pairs.kept_out):,} excluded as test items" if pairs.kept_out else ""
        if not pairs.examples:
            yield f"Pairs: none{excluded}. {library / 'README.md'} explains why."
            return
        file = library / "pairs.jsonl"
        decisions = ", ".join(f"{count:,} {name}" for name, count in pairs.decisions.most_common())
        yield f"Pairs: {len(pairs.examples):,} in {file} (decisions: {decisions}){excluded}."
        yield f"Train on them: --set 'data.sources=[{{name: own, path: {file.resolve()}}}]'"


learn_app = Group("learn", "Choose items for experts to judge, and write training rows.", "how-to/active-learning.md")


QueueFolder = Annotated[Path, Argument(metavar="DIR", help="Folder that `meditune learn queue` wrote.")]


@learn_app.command(example="store --budget 50 --output queue")
def queue(
    sources: Annotated[
        list[str], Argument(metavar="STORE|FILE...", help="A server's store, data files, or run folders.")
    ],
    output: Annotated[Path, Option("--output", "-o", metavar="DIR", help="Folder of the annotation set.")],
    budget: Annotated[int, Option(min=1, help="Maximum number of items to choose.")] = 50,
    strategy: Annotated[
        str,
        Option(
            help="feedback: answers that users corrected or rated down, then random items; margin: then the answers "
            "with the least certain decisions; random: only random items."
        ),
    ] = "feedback",
    training_data: Annotated[
        Paths, Option(metavar="FILE|RUN", help="Leave out questions that occur in this training data. Repeatable.")
    ] = None,
    earlier_queue: Annotated[
        Paths, Option(metavar="DIR", help="Leave out items that this earlier queue contains. Repeatable.")
    ] = None,
    index: Annotated[
        Text, Option(metavar="INDEX", help="Show each stored answer with its passages from this index.")
    ] = None,
    raters: Raters = None,
    overlap: Overlap = None,
    seed: Seed = 17,
    json: Json = False,
) -> None:
    """Choose the answers and rows that experts should judge next, for `meditune annotate serve`."""
    from meditune.operate import label_queue

    options = label_queue.QueueOptions(
        budget=budget,
        strategy=strategy,
        known=tuple(training_data or ()),
        done=tuple(earlier_queue or ()),
        index=index,
        raters=raters,
        overlap=overlap,
        seed=seed,
    )
    found = label_queue.queue(sources, output, options)
    if json:
        chosen = [
            {
                "id": each.candidate.id,
                "question": each.candidate.example.question,
                "asked": each.candidate.times_asked,
                "score": round(each.score, 3),
                "reasons": dict(each.reasons),
            }
            for each in found.chosen
        ]
        print_json({"folder": str(output.resolve()), "pool": found.pool, "chosen": chosen, "remarks": found.remarks})
        return
    print_lines(_queue_lines(found))
    start = shlex.join(["meditune", "annotate", "serve", str(output)])
    typer.echo(f"Annotation set: {output.resolve()}. Start the page for experts: {start}")
    print_notes(found.remarks)


@learn_app.command(example="queue --output rows.jsonl")
def rows(
    folder: QueueFolder,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="JSON Lines file for the training rows.")],
    exclude_rater: ExcludeRater = None,
) -> None:
    """Write experts' judgements as training rows for a recipe's source `own`."""
    from meditune.operate.label_queue import write

    found = write(folder, output, exclude_rater or ())
    typer.echo(f"{len(found.rows)} rows: {output.resolve()}")
    for why, count in found.left_out.items():
        typer.echo(f"Left out: {count}, {why}.")
    typer.echo(f"Train with them: --set 'data.sources=[..., {{name: own, path: {output}}}]'")


def _queue_lines(queued: Queued) -> Iterator[str]:
    from meditune.operate.label_queue import REASON_TITLES

    yield f"Selected: {len(queued.chosen)} of {counted(queued.pool, 'candidate')}."
    counts = Counter(REASON_TITLES.get(name, name) for each in queued.chosen for name in each.reasons)
    yield "Reasons: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "."
    for number, each in enumerate(queued.chosen[:MAX_PRINTED], start=1):
        asked = f" (asked {each.candidate.times_asked} times)" if each.candidate.times_asked > 1 else ""
        yield f"{number}. {shorten(each.candidate.example.question, 100, placeholder='…')}{asked}"
        yield f"   {'; '.join(each.reasons.values())}"
    if len(queued.chosen) > MAX_PRINTED:
        yield f"... and {len(queued.chosen) - MAX_PRINTED} more."


@documented("status --store store --hours 1", "how-to/operate.md")
def service_status(
    store: Store = None,
    url: Annotated[
        Texts,
        Option(metavar="URL", help="Also show the server at this address, even if it isn't in the store. Repeatable."),
    ] = None,
    hours: Annotated[float, Option(min=0.1, help="Number of hours to look back.")] = 24.0,
    json: Json = False,
) -> None:
    """Show servers, versions, answers, feedback, drift and alerts.

    The command reads the servers' API key, which needs the scope `metrics`, from the environment variable MEDITUNE_KEY.
    """
    from meditune.store import default_place, open_existing
    from meditune.store.overview import overview

    found = overview(open_existing(store or default_place()), hours)
    addresses = [each["address"] for each in found["servers"] if each["alive"] and each.get("address")]
    running = {address: _live(address) for address in dict.fromkeys([*addresses, *(url or ())])}
    if json:
        print_json(found | {"live": running, "alerts": _alerts(found)})
        return
    print_lines(_lines(found, running))
    for sentence in _alerts(found):
        typer.secho(f"ALERT {sentence}", fg="red")


TIMEOUT_S = 5.0
MAX_VERSIONS = 5


def _live(address: str) -> dict[str, Any]:
    """Return a server's /metrics as name -> value, or `problem` -> reason. The API key is taken from MEDITUNE_KEY."""
    import httpx2

    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        return {"problem": f"reading metrics needs prometheus-client. Install it with: {install_command('serve')}"}

    key = os.environ.get("MEDITUNE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx2.get(f"{address.rstrip('/')}/metrics", headers=headers, timeout=TIMEOUT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return {"problem": f"no answer ({type(error).__name__})"}
    if response.status_code != 200:
        why = "set MEDITUNE_KEY to a key with the metrics scope" if response.status_code in (401, 403) else "no metrics"
        return {"problem": f"HTTP {response.status_code}: {why}"}
    try:
        samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    except ValueError:
        samples = []
    if not any(sample.name.startswith("meditune_") for sample in samples):
        return {"problem": "no Meditune server: /metrics has other content. Check the address"}
    sums: dict[str, float] = {}
    for sample in samples:
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        if sample.name == "meditune_requests_total" and sample.labels["status"].startswith("5"):
            sums["failed"] = sums.get("failed", 0.0) + sample.value
    return sums


def _alerts(overview: Mapping[str, Any]) -> list[str]:
    sentences = []
    for each in overview["drift"]:
        sentences += [f"Drift can't be checked: {each['problem']}"] if each.get("problem") else []
        sentences += [f"{alert['signal']} ({alert['severity']}): {alert['said']}" for alert in each.get("alerts", ())]
        sentences += each.get("unsent", ())
    for each in overview["servers"]:
        if not each["alive"]:
            name = each.get("address") or each["name"]
            sentences.append(f"{name} stopped unexpectedly; it was last seen {_format_time(each['time'])}.")
    for each in overview["updates"]:
        sentences += [f"Update of {each['folder']}: {failure}" for failure in each.get("failures", ())]
    return sentences


def _lines(overview: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines for an overview (`store.overview`) and `metrics`, a dict from server address to metrics."""
    span = f"{overview['hours']:g} hours" if overview["hours"] != 1 else "hour"
    yield f"Last {span}, until {_format_time(overview['time'])}"
    yield ""
    yield from _answers(overview)
    yield ""
    yield from _servers(overview, metrics)
    for each in overview["versions"][:MAX_VERSIONS]:
        index = f", index {each['index'][:12]}" if each["index"] else ""
        yield f"answered by   {each['model']}{index}: {each['answers']:,}, last {_format_time(each['last'])}"
    if not overview["drift"]:
        yield "drift         not watched (meditune serve RUN --drift REFERENCE)"
    for each in overview["drift"]:
        count = len(each.get("alerts", ()))
        alerts_open = counted(count, "open alert") if count else "no open alert"
        yield f"drift         {alerts_open} in {each.get('requests', 0):,} requests since {each['reference']}"
    if not overview["updates"]:
        yield "last update   none recorded (meditune update LITERATURE --store DIR)"
    for each in overview["updates"]:
        articles, gone = each.get("library", {}).get("there", 0), each["retracted"]
        yield f"last update   {_format_time(each['time'])}, {each['folder']}: {articles:,} articles, {gone} retracted"


def _answers(overview: Mapping[str, Any]) -> Iterator[str]:
    answers, feedback = overview["answers"], overview["feedback"]
    count, outcomes = answers["count"], answers["outcomes"]
    more = "" if answers["complete"] else " (only the latest)"
    yield f"answers       {count:,}{more}: " + ", ".join(
        f"{outcomes[name]:,} {name}{_share(outcomes[name], count)}" for name in outcomes
    )
    seconds, first = answers["seconds"], answers["first_token"]
    times = f"median {_s(seconds['p50'])}, 95th percentile {_s(seconds['p95'])}"
    yield f"time          {times}; first token {_s(first['p50'])}"
    tokens = answers["tokens"]
    yield f"tokens        {tokens['prompt']:,.0f} in prompts, {tokens['completion']:,.0f} in answers"
    unsupported = f"{answers['unsupported']:,.0f} of {answers['sentences']:,.0f} sentences"
    yield f"unsupported   {unsupported}{_share(answers['unsupported'], answers['sentences'])}"
    similarity = answers["retrieval"]
    if similarity["p50"] is not None:
        yield f"best passage  cosine similarity {similarity['p50']:.2f}, 10th percentile {similarity['p10']:.2f}"
    rated = feedback["up"] + feedback["down"]
    yield (
        f"feedback      {rated:,}: {feedback['up']:,} up, {feedback['down']:,} down; {feedback['corrections']:,} "
        f"corrections, {feedback['experts']:,} by experts"
    )


def _servers(overview: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not overview["servers"] and not metrics:
        yield "servers       none is running with this store"
    for each in overview["servers"]:
        state = "" if each["alive"] else f"  LOST, last seen {_format_time(each['time'])}"
        index = f", index {each['index'][:12]}" if each["index"] else ""
        yield (
            f"server        {each.get('address') or each['name']}  {each['model']} {each['version']} ({each['engine']})"
            f"{index}, since {_format_time(each['started'])}{state}"
        )
        if each.get("address") in metrics:
            yield from _metrics_of(metrics[each["address"]])
    for address in metrics:
        if address not in {each.get("address") for each in overview["servers"]}:
            yield f"server        {address}  (not in this store)"
            yield from _metrics_of(metrics[address])


def _metrics_of(sums: Mapping[str, Any]) -> Iterator[str]:
    if "problem" in sums:
        yield f"              {sums['problem']}"
        return
    took = sums.get("meditune_request_seconds_count", 0)
    mean = sums.get("meditune_request_seconds_sum", 0) / took if took else None
    yield (
        f"              {sums.get('meditune_requests_total', 0):,.0f} requests since start "
        f"({sums.get('failed', 0):,.0f} failed, {sums.get('meditune_refused_total', 0):,.0f} refused), "
        f"mean {_s(mean)}; {sums.get('meditune_running', 0):.0f} running, {sums.get('meditune_waiting', 0):.0f} waiting"
    )
    if cost := sums.get("meditune_cost_total"):
        yield f"              cost since start: {cost:,.2f}"


def _share(part: float, total: float) -> str:
    return f" ({100 * part / total:.1f}%)" if total else ""


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _format_time(time: float) -> str:
    return datetime.fromtimestamp(time).isoformat(" ", "seconds")
