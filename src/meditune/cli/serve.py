"""`meditune serve`, `keys` and `answers`: parsing and printing. Heavy libraries are imported by what they call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meditune.errors import DataError, GateError

if TYPE_CHECKING:
    from meditune.operate.drift.drift_watcher import DriftWatcher
    from meditune.serve.http_server import Place
    from meditune.serve.service import Service
    from meditune.serve.settings import Settings
    from meditune.store.answers import Answers
    from meditune.store.api_keys import Keys

keys_app = typer.Typer(help="Who may ask a server.", no_args_is_help=True, rich_markup_mode=None)
answers_app = typer.Typer(
    help="Answers that a server keeps, with their feedback.", no_args_is_help=True, rich_markup_mode=None
)

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        envvar="MEDITUNE_STORE",
        help="Where keys, answers and feedback are kept: a folder, or postgresql://HOST/DATABASE.",
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="A key's id, as `meditune keys list` shows it.")]
PerMinute = Annotated[int | None, typer.Option(min=1, help="Requests a minute; else the server's own limit.")]
Quota = Annotated[int | None, typer.Option(min=1, help="Tokens a day; else the server's own quota.")]


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|REGISTRY", help="A run's folder, a registry, a model's folder, a catalogue name, a hub id."
        ),
    ],
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="Answers rest on what it holds, and cite it.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto takes the fastest that is installed and fits the model.")] = "auto",
    url: Annotated[
        str | None, typer.Option(help="With --engine vllm: the server that runs the model, up to /v1.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; else the folder's name.")] = None,
    host: Annotated[
        str, typer.Option(envvar="MEDITUNE_HOST", help="Where to listen; beyond this machine keys are needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, envvar="MEDITUNE_PORT", help="0 takes a free one.")] = 8000,
    store: Store = None,
    keys: Annotated[bool, typer.Option("--keys", help="Need a key on this machine, too.")] = False,
    open_to_all: Annotated[
        bool, typer.Option("--open", envvar="MEDITUNE_OPEN", help="Need no key, whoever reaches the server.")
    ] = False,
    per_minute: Annotated[
        int, typer.Option(min=0, envvar="MEDITUNE_PER_MINUTE", help="Requests a minute of one caller; 0: no limit.")
    ] = 0,
    daily_tokens: Annotated[
        int, typer.Option(min=0, envvar="MEDITUNE_DAILY_TOKENS", help="Tokens a day of one caller; 0: no quota.")
    ] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Requests that are answered at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused with 429.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for.")] = 1024,
    message_characters: Annotated[
        int, typer.Option(min=1, max=4000, help="Longest message of a person; longer ones are refused, after triage.")
    ] = 4000,
    context_characters: Annotated[int, typer.Option(min=0, help="System messages of one chat, together.")] = 100_000,
    history_characters: Annotated[int, typer.Option(min=0, help="Earlier turns of one chat, together.")] = 100_000,
    answer_seconds: Annotated[float, typer.Option(min=1, help="The longest that an answer may take.")] = 120.0,
    restarts: Annotated[
        int,
        typer.Option(
            min=0,
            envvar="MEDITUNE_RESTARTS",
            help="How often in a row a dead engine is restarted before the server ends with an error.",
        ),
    ] = 6,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A site whose pages may call. Repeatable.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="For TLS: the chain, PEM.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="... and its key.")] = None,
    proxy: Annotated[
        str,
        typer.Option(envvar="MEDITUNE_PROXY", help="Addresses of proxies in front, which end TLS: 10.0.0.2,10.0.0.3"),
    ] = "",
    bare_chat: Annotated[
        bool,
        typer.Option(
            "--bare-chat",
            help="Chats are the model's words alone, without triage and limits, and every caller has the scope raw.",
        ),
    ] = False,
    log_text: Annotated[bool, typer.Option("--log-text", help="Log questions, masked.")] = False,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", envvar="MEDITUNE_KEEP_TEXT", help="Keep questions and answers, masked.")
    ] = False,
    keep_days: Annotated[
        float,
        typer.Option(min=0, envvar="MEDITUNE_KEEP_DAYS", help="Delete what is kept after so many days; 0: never."),
    ] = 30.0,
    country: Annotated[
        str,
        typer.Option(envvar="MEDITUNE_COUNTRY", help="For emergency numbers: GB, US, DE ...; none: words for all."),
    ] = "",
    drift: Annotated[
        Path | None,
        typer.Option(
            metavar="REFERENCE",
            envvar="MEDITUNE_DRIFT",
            help="Watch for drift from what `meditune drift fit` wrote, and send alerts.",
        ),
    ] = None,
    drift_every: Annotated[float, typer.Option(min=1, help="Seconds between two looks for drift.")] = 60.0,
    public_url: Annotated[
        str, typer.Option(envvar="MEDITUNE_PUBLIC_URL", help="Where people reach this server; alerts link there.")
    ] = "",
    price: Annotated[
        str,
        typer.Option(
            metavar="READ,WRITTEN", envvar="MEDITUNE_PRICE", help="Of a million tokens, for the metrics: 0.15,0.60"
        ),
    ] = "",
    hourly: Annotated[
        float, typer.Option(min=0, envvar="MEDITUNE_HOURLY", help="What the machine costs an hour, for the metrics.")
    ] = 0.0,
    check: Annotated[bool, typer.Option("--check", help="Say what is unsafe in this configuration, and end.")] = False,
) -> None:
    """Serve a model: an OpenAI-compatible API, a chat page, answers that cite; until ctrl-C."""
    from meditune import observability
    from meditune.hardware import limit_malloc_arenas, release_memory
    from meditune.observability import set_up_logging
    from meditune.serve import http_server
    from meditune.serve.settings import Settings
    from meditune.store.open_store import default_place

    kept = store or default_place()
    place = http_server.Place(host, port, certificate, private_key, proxy)
    settings = Settings(
        answer_s=answer_seconds,
        restarts=restarts,
        at_once=at_once,
        waiting=waiting,
        most_new_tokens=max_new_tokens,
        message_characters=message_characters,
        context_characters=context_characters,
        history_characters=history_characters,
        per_minute=per_minute,
        daily_tokens=daily_tokens,
        origins=tuple(cors or ()),
        keys_needed=keys,
        bare_chat=bare_chat,
        log_text=log_text,
        keep_text=keep_text,
        keep_days=keep_days,
        prices=_prices(price),
        hourly=hourly,
    )
    if check:
        _print_check(settings, place, kept, open_to_all)
        return
    http_server.refuse_uninstalled()
    limit_malloc_arenas()
    from meditune.serve import startup

    known = _keys(kept)
    settings = startup.safe(settings, place, known, open_to_all)
    # The port is taken first: loading a model only to find it in use would waste minutes.
    sock = http_server.listening(place)
    set_up_logging()
    traced = observability.set_up_tracing()
    if said := startup.lockout(settings, known):
        typer.secho(said, fg="yellow", err=True)
    service = startup.open_service(startup.ServerOptions(model, index, engine, name, country, url), settings, kept)
    release_memory()
    watching = _watched(service, kept, drift, drift_every, public_url or place.address(sock.getsockname()[1]))
    try:
        http_server.run(
            service, place, sock, lambda address: _print_ready(service.served.name, service.engine.name, address)
        )
    finally:
        if watching:
            watching.stop()
        if traced:
            observability.shut_down_tracing()
    if service.broken_off:
        count = f"{service.broken_off} request{'s' if service.broken_off != 1 else ''}"
        typer.echo(f"Ended after waiting for {settings.ending_s:g} seconds. Broken off: {count}.")
    else:
        typer.echo("Ended: every answer that was begun is finished.")


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; for people, not checked.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="generate, embed, feedback (these three unless given), raw (the model without triage), expert, "
            "metrics, admin. Repeatable."
        ),
    ] = None,
    per_minute: PerMinute = None,
    daily_tokens: Quota = None,
    days: Annotated[float | None, typer.Option(min=0.01, help="It expires after so many days.")] = None,
    store: Store = None,
) -> None:
    """Make a key. It is shown once; only a hash of it is kept."""
    from meditune.store.api_keys import USUAL

    key, text = _keys(store).create(name, scope or USUAL, per_minute, daily_tokens, days)
    typer.echo(f"{key.id} ({key.name}): {', '.join(sorted(key.scopes))}. The key, which isn't shown again:", err=True)
    typer.echo(text)


@keys_app.command("list")
def show(store: Store = None) -> None:
    """All keys, without their secrets."""
    keys = _keys(store).all()
    if not keys:
        typer.echo("There are no keys. Make one: meditune keys create NAME", err=True)
    for key in keys:
        limits = [
            f"{key.per_minute} a minute" if key.per_minute else "",
            f"{key.daily_tokens:,} tokens a day" if key.daily_tokens else "",
        ]
        made = datetime.fromtimestamp(key.created).date()
        words = [key.id, key.state, str(made), key.name, ",".join(sorted(key.scopes)), *limits]
        typer.echo("  ".join(word for word in words if word))


@keys_app.command()
def rotate(
    id: KeyId,
    grace_hours: Annotated[float, typer.Option(min=0, help="The old secret works so long yet.")] = 24.0,
    store: Store = None,
) -> None:
    """Give a key a new secret. The old one works for some hours yet, so that clients can change over."""
    text = _keys(store).rotate(id, grace_hours)
    typer.echo(
        f"The old secret of {id} works for {grace_hours:g} hours yet. The new key, which isn't shown again:", err=True
    )
    typer.echo(text)


@keys_app.command()
def revoke(id: KeyId, store: Store = None) -> None:
    """End a key at once; running servers notice with the next request."""
    _keys(store).revoke(id)
    typer.echo(f"{id} is revoked.")


@answers_app.command()
def delete(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="An answer's id: ask-... or chatcmpl-...")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Everything that was asked with this key, by the key's id.")
    ] = None,
    store: Store = None,
) -> None:
    """Delete what is kept of an answer, or of all answers to a key's questions, with the feedback."""
    if (id is None) == (key is None):
        raise DataError("Name either an answer's ID or a key: meditune answers delete --key KEY.")
    if key:
        typer.echo(f"{_answers(store).delete_all_of(key)} answers to questions of {key} are deleted.")
        return
    if not _answers(store).delete(id or ""):
        raise DataError(f"There is no answer {id!r}: it was never kept, or is deleted already.")
    typer.echo(f"{id} is deleted.")


@answers_app.command()
def prune(
    days: Annotated[float, typer.Option(min=0, help="Delete what is older than so many days.")], store: Store = None
) -> None:
    """Delete what is older than so many days, with its feedback."""
    typer.echo(f"{_answers(store).prune(days)} answers deleted.")


@answers_app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A JSON Lines file.")], store: Store = None
) -> None:
    """Write every kept answer with its feedback, one JSON object a line, to a file for this user alone."""
    from meditune.files import write_jsonl

    typer.echo(f"{write_jsonl(output, _answers(store).exported(), private=True)} answers: {output.resolve()}")


def _watched(service: Service, store: str, reference: Path | None, every_s: float, address: str) -> DriftWatcher | None:
    """Drift watched beside the server, where it is wanted."""
    if reference is None:
        return None
    from meditune.operate.drift.drift_watcher import Wanted, watch

    link = f"{address.rstrip('/')}/admin#drift"
    told: Callable[[Mapping[str, Any]], None] = service.metrics.drifted
    if service.releases is not None:
        from meditune.operate.retraining.rollback import on_drift

        told = on_drift(service.releases.registry.folder, store, told)
    return watch(Wanted(store, reference, every_s, link), told)


def _prices(text: str) -> tuple[float, float]:
    if not text:
        return 0.0, 0.0
    try:
        read, written = map(float, text.split(","))
    except ValueError as error:
        raise DataError(f"--price {text}: write two numbers with a comma between them, as in 0.15,0.60.") from error
    return read, written


def _keys(store: str | None) -> Keys:
    from meditune.store.api_keys import Keys
    from meditune.store.open_store import default_place, open_store

    return Keys(open_store(store or default_place()))


def _answers(store: str | None) -> Answers:
    from meditune.store.answers import Answers
    from meditune.store.open_store import default_place, open_store

    return Answers(open_store(store or default_place()))


def _print_check(settings: Settings, place: Place, store: str, open_to_all: bool) -> None:
    from tempfile import TemporaryDirectory

    from meditune.serve.security_check import classifier_error, findings
    from meditune.serve.startup import safe
    from meditune.store.open_store import exists

    # Looking leaves no trace: without a store there are no keys.
    with TemporaryDirectory() as nowhere:
        known = _keys(store if exists(store) else nowhere)
        settings = safe(settings, place, known, open_to_all)
        made = known.all()
    found = findings(settings, place, made, store, time.time(), classifier_error())
    for finding in found:
        typer.echo(f"{finding.verdict:6}  {finding.sentence}")
    unsafe = sum(finding.verdict == "unsafe" for finding in found)
    if unsafe:
        raise GateError(f"{unsafe} of these are unsafe.")


def _print_ready(name: str, engine: str, address: str) -> None:
    typer.echo(
        f"{name} is served by {engine}. Ask here: {address} (for programs: {address}v1, described at {address}docs)"
    )
