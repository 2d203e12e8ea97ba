"""`meditune status`: parsing and printing."""

from __future__ import annotations

from typing import Annotated

import typer


def status(
    store: Annotated[
        str | None, typer.Option(metavar="DIR|URL", envvar="MEDITUNE_STORE", help="The servers' store.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A server to ask besides those that the store knows. Repeatable."),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.1, help="Of the last so many hours.")] = 24.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """How a service does: servers, versions, answers, times, feedback, drift, the last update, alerts.

    Servers are asked with the key in MEDITUNE_KEY, which needs the scope metrics.
    """
    from meditune.errors import DataError
    from meditune.operate.status import alerts, lines, live
    from meditune.store.opening import default_place, exists, open_store
    from meditune.store.overview import overview

    place = store or default_place()
    if not exists(place):
        raise DataError(f"There is no store in {place}. Name a server's --store, or set MEDITUNE_STORE.")
    found = overview(open_store(place), hours)
    addresses = [each["address"] for each in found["servers"] if each["alive"] and each.get("address")]
    told = {address: live(address) for address in dict.fromkeys([*addresses, *(url or ())])}
    if json:
        from json import dumps

        typer.echo(dumps(found | {"live": told, "alerts": alerts(found)}, ensure_ascii=False, indent=2))
        return
    for line in lines(found, told):
        typer.echo(line)
    for sentence in alerts(found):
        typer.secho(f"ALERT {sentence}", fg="red")
