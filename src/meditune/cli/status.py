"""`meditune status`: the state of a service, from its store and from the metrics of its running servers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from typer import Option

from meditune.cli.options import Json, Store, Texts, documented
from meditune.cli.tables import print_json, print_lines
from meditune.text import counted


@documented("meditune status --store store --hours 1", "Guide: docs/how-to/operate.md.")
def status(
    store: Store = None,
    url: Annotated[
        Texts, Option(metavar="URL", help="Another server to query, besides those in the store. Repeatable.")
    ] = None,
    hours: Annotated[float, Option(min=0.1, help="Look back this many hours.")] = 24.0,
    json: Json = False,
) -> None:
    """Show servers, versions, answers, feedback, drift and alerts.

    The environment variable MEDITUNE_KEY holds the API key for the servers; the key needs the `metrics` scope.
    """
    from meditune.errors import DataError
    from meditune.store import default_place, exists, open_store
    from meditune.store.overview import overview

    place = store or default_place()
    if not exists(place):
        raise DataError(f"There is no store in {place}. Give a server's --store, or set MEDITUNE_STORE.")
    found = overview(open_store(place), hours)
    addresses = [each["address"] for each in found["servers"] if each["alive"] and each.get("address")]
    running = {address: _live(address) for address in dict.fromkeys([*addresses, *(url or ())])}
    if json:
        print_json(found | {"live": running, "alerts": _alerts(found)})
        return
    print_lines(_lines(found, running))
    for sentence in _alerts(found):
        typer.secho(f"ALERT {sentence}", fg="red")


TIMEOUT_S = 5.0
MAX_PRINTED = 5


def _live(address: str) -> dict[str, Any]:
    """Return a server's /metrics as name to value, or `problem` with a reason; MEDITUNE_KEY holds the key."""
    import httpx2
    from prometheus_client.parser import text_string_to_metric_families

    key = os.environ.get("MEDITUNE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx2.get(f"{address.rstrip('/')}/metrics", headers=headers, timeout=TIMEOUT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return {"problem": f"no answer ({type(error).__name__})"}
    if response.status_code != 200:
        why = "set MEDITUNE_KEY to a key with the metrics scope" if response.status_code in (401, 403) else "no metrics"
        return {"problem": f"HTTP {response.status_code}: {why}"}
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name == "meditune_requests_total" and sample.labels["status"].startswith("5"):
                sums["failed"] = sums.get("failed", 0.0) + sample.value
    return sums


def _alerts(overview: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each problem that needs attention."""
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
    """Yield lines for an overview (`store.overview`) and for `metrics`, the servers' metrics by address."""
    span = f"{overview['hours']:g} hours" if overview["hours"] != 1 else "hour"
    yield f"Last {span}, until {_format_time(overview['time'])}"
    yield ""
    yield from _answers(overview)
    yield ""
    yield from _servers(overview, metrics)
    for each in overview["versions"][:MAX_PRINTED]:
        index = f", index {each['index'][:12]}" if each["index"] else ""
        yield f"answered by   {each['model']}{index}: {each['answers']:,}, last {_format_time(each['last'])}"
    if not overview["drift"]:
        yield "drift         not watched (meditune serve RUN --drift REFERENCE)"
    for each in overview["drift"]:
        count = len(each.get("alerts", ()))
        alerts_open = counted(count, "open alert") if count else "no open alert"
        yield f"drift         {alerts_open} in {each.get('requests', 0):,} requests since {each['reference']}"
    if not overview["updates"]:
        yield "last update   none recorded (meditune update LIBRARY --store DIR)"
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
    return f" ({100 * part / total:.1f} %)" if total else ""


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _format_time(time: float) -> str:
    return datetime.fromtimestamp(time).isoformat(" ", "seconds")
