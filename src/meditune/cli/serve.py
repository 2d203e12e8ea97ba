"""`meditune serve`, `mcp`, `keys` and `answers`: serve a model, manage API keys and stored answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from meditune.cli.options import CrossEncoderName, Group, JudgeRun, JudgeThreshold, Store, Text, Texts, documented
from meditune.cli.tables import print_lines
from meditune.errors import DataError, GateError
from meditune.text import counted

if TYPE_CHECKING:
    from meditune.operate.drift.drift_watcher import DriftWatcher
    from meditune.serve.http_server import Extend, ListenConfig
    from meditune.serve.service import Service
    from meditune.serve.settings import Settings
    from meditune.store.answers import Answers
    from meditune.store.api_keys import Keys
    from meditune.store.database import Database

keys_app = Group("keys", "Create, list, rotate and revoke a server's API keys.", "how-to/serve.md#who-may-ask")
answers_app = Group(
    "answers", "Delete and export stored answers and feedback.", "how-to/serve.md#what-is-kept-and-what-is-logged"
)

KeyId = Annotated[str, Argument(metavar="ID", help="Id of a key, from `meditune keys list`.")]
PerMinute = Annotated[
    int | None, Option(min=1, help="Maximum number of requests per minute; by default, the server's limit.")
]
Quota = Annotated[int | None, Option(min=1, help="Maximum number of tokens per day; by default, the server's quota.")]


ServedModel = Annotated[
    str,
    Argument(
        metavar="RUN|REGISTRY", help="Folder of a run, registry or model; or a catalogue name or Hugging Face id."
    ),
]
IndexPlace = Annotated[Text, Option(metavar="INDEX", help="Answer from this index, and cite its passages.")]
EngineName = Annotated[
    str,
    Option(
        help="openvino, llamacpp, transformers, onnx, vllm, or auto (the run's fastest export; Meditune measures the "
        "speeds of the exports only once)."
    ),
]
EngineUrl = Annotated[Text, Option(help="With --engine vllm: address of the vLLM server, including /v1.")]
ModelName = Annotated[Text, Option(help="Name under which clients address the model; by default, the folder's name.")]
Host = Annotated[str, Option(envvar="MEDITUNE_HOST", help="Address to listen on. Other machines need an API key.")]
Port = Annotated[int, Option(min=0, max=65535, envvar="MEDITUNE_PORT", help="Port; 0 selects a free port.")]
RequireKey = Annotated[bool, Option("--require-key", help="Require an API key from callers on this machine, too.")]
AllowAnonymous = Annotated[
    bool,
    Option(
        "--allow-anonymous",
        envvar="MEDITUNE_OPEN",
        help="Serve other machines without an API key as long as no key exists.",
    ),
]
RatePerMinute = Annotated[
    int,
    Option(min=0, envvar="MEDITUNE_PER_MINUTE", help="Maximum number of requests per minute and caller; 0: no limit."),
]
DailyTokens = Annotated[
    int, Option(min=0, envvar="MEDITUNE_DAILY_TOKENS", help="Maximum number of tokens per day and caller; 0: no limit.")
]
MaxNewTokens = Annotated[int, Option(min=1, help="Maximum answer length that a request may ask for, in tokens.")]
MaxMessageCharacters = Annotated[
    int, Option(min=1, max=4000, help="Maximum length of a user's message in characters; longer messages are refused.")
]
Timeout = Annotated[float, Option(min=1, max=86_400, help="Maximum time for an answer, in seconds.")]
Certificate = Annotated[Path | None, Option(exists=True, dir_okay=False, help="PEM file of the TLS certificate chain.")]
PrivateKey = Annotated[Path | None, Option(exists=True, dir_okay=False, help="PEM file of the TLS private key.")]
Proxy = Annotated[
    str,
    Option(
        envvar="MEDITUNE_PROXY",
        help="IP addresses of trusted proxies that terminate TLS, for example 10.0.0.2,10.0.0.3.",
    ),
]
LogText = Annotated[bool, Option("--log-text", help="Log questions, with patient identifiers masked.")]
KeepText = Annotated[
    bool,
    Option(
        "--keep-text", envvar="MEDITUNE_KEEP_TEXT", help="Store questions and answers, with patient identifiers masked."
    ),
]
KeepDays = Annotated[
    float,
    Option(
        min=0,
        max=36_500,
        envvar="MEDITUNE_KEEP_DAYS",
        help="Number of days after which stored answers are deleted; 0: never.",
    ),
]
Country = Annotated[
    str, Option(envvar="MEDITUNE_COUNTRY", help="Country whose emergency numbers users see, for example GB, US or DE.")
]


@documented("serve runs/quickstart --index library", "how-to/serve.md")
def serve(
    model: ServedModel,
    index: IndexPlace = None,
    judge: JudgeRun = None,
    judge_threshold: JudgeThreshold = None,
    cross_encoder: CrossEncoderName = None,
    engine: EngineName = "auto",
    url: EngineUrl = None,
    name: ModelName = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    store: Store = None,
    require_key: RequireKey = False,
    allow_anonymous: AllowAnonymous = False,
    per_minute: RatePerMinute = 0,
    daily_tokens: DailyTokens = 0,
    concurrency: Annotated[int, Option(min=1, help="Maximum number of requests to answer at the same time.")] = 16,
    queue_size: Annotated[
        int, Option(min=0, help="Maximum number of waiting requests; further requests get status 429.")
    ] = 64,
    max_new_tokens: MaxNewTokens = 1024,
    max_message_characters: MaxMessageCharacters = 4000,
    max_context_characters: Annotated[
        int, Option(min=0, help="Maximum total length of a chat's system messages, in characters.")
    ] = 100_000,
    max_history_characters: Annotated[
        int, Option(min=0, help="Maximum total length of a chat's earlier turns, in characters.")
    ] = 100_000,
    timeout: Timeout = 120.0,
    max_restarts: Annotated[
        int,
        Option(
            min=0,
            envvar="MEDITUNE_RESTARTS",
            help="Maximum number of consecutive restarts of the engine after crashes.",
        ),
    ] = 6,
    cors: Annotated[
        Texts,
        Option(
            metavar="ORIGIN",
            help="Origin whose pages may call the server, such as https://example.org. Repeatable.",
        ),
    ] = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    proxy: Proxy = "",
    raw_chat: Annotated[
        bool,
        Option(
            "--raw-chat", help="Let all callers chat without safety triage and without the note on the model's limits."
        ),
    ] = False,
    log_text: LogText = False,
    keep_text: KeepText = False,
    keep_days: KeepDays = 30.0,
    country: Country = "",
    drift: Annotated[
        Path | None,
        Option(
            metavar="REFERENCE",
            envvar="MEDITUNE_DRIFT",
            help="Check for drift from this reference, which `meditune drift fit` wrote, and send alerts.",
        ),
    ] = None,
    drift_interval: Annotated[float, Option(min=1, help="Number of seconds between drift checks.")] = 60.0,
    public_url: Annotated[
        str, Option(envvar="MEDITUNE_PUBLIC_URL", help="Public address of the server, for links in alerts.")
    ] = "",
    price: Annotated[
        str,
        Option(
            metavar="INPUT,OUTPUT",
            envvar="MEDITUNE_PRICE",
            help="Prices per million input tokens and per million output tokens, for example 0.15,0.60.",
        ),
    ] = "",
    hourly_cost: Annotated[
        float,
        Option(min=0, envvar="MEDITUNE_HOURLY", help="Cost of the machine per hour, in the same currency as --price."),
    ] = 0.0,
    check: Annotated[
        bool,
        Option(
            "--check",
            help="Check whether these settings are safe, show which engine auto chooses, and exit without starting the "
            "server.",
        ),
    ] = False,
) -> None:
    """Serve a model: chat page, cited answers, OpenAI-compatible API. The server runs until you press ctrl-C."""
    from meditune.serve import http_server
    from meditune.serve.settings import Settings
    from meditune.store import default_place

    store_place = store or default_place()
    place = http_server.ListenConfig(host, port, certificate, private_key, proxy)
    settings = Settings(
        answer_s=timeout,
        restarts=max_restarts,
        concurrency=concurrency,
        queue_size=queue_size,
        max_new_tokens=max_new_tokens,
        message_characters=max_message_characters,
        context_characters=max_context_characters,
        history_characters=max_history_characters,
        per_minute=per_minute,
        daily_tokens=daily_tokens,
        origins=tuple(map(_origin, cors or ())),
        keys_needed=require_key,
        bare_chat=raw_chat,
        log_text=log_text,
        keep_text=keep_text,
        keep_days=keep_days,
        prices=_prices(price),
        hourly=hourly_cost,
    )
    if check:
        _print_check(settings, place, store_place, allow_anonymous, model if engine == "auto" else None)
        return
    options = (model, index, engine, name, country, url, judge, judge_threshold, cross_encoder)
    watched = partial(_watched, store_place, drift, drift_interval, public_url) if drift else None
    _serve(options, settings, place, store_place, allow_anonymous, watched)


_HTTP_ONLY = ("host", "port", "require_key", "allow_anonymous", "certificate", "private_key", "proxy")
"""Options of `meditune mcp` that have an effect only with --http"""


@documented("mcp runs/quickstart --index library", "how-to/use-from-mcp.md")
def mcp(
    context: typer.Context,
    model: ServedModel,
    index: IndexPlace = None,
    judge: JudgeRun = None,
    judge_threshold: JudgeThreshold = None,
    cross_encoder: CrossEncoderName = None,
    engine: EngineName = "auto",
    url: EngineUrl = None,
    name: ModelName = None,
    http: Annotated[
        bool, Option("--http", help="Serve over streamable HTTP at /mcp, together with the routes of `meditune serve`.")
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    store: Store = None,
    require_key: RequireKey = False,
    allow_anonymous: AllowAnonymous = False,
    per_minute: RatePerMinute = 0,
    daily_tokens: DailyTokens = 0,
    max_new_tokens: MaxNewTokens = 1024,
    max_message_characters: MaxMessageCharacters = 4000,
    timeout: Timeout = 120.0,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    proxy: Proxy = "",
    log_text: LogText = False,
    keep_text: KeepText = False,
    keep_days: KeepDays = 30.0,
    country: Country = "",
    evaluate: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also offer the tool evaluate, which writes its results to this folder."),
    ] = None,
    recipe: Annotated[
        Text,
        Option(
            help="With --evaluate: recipe of the evaluation; by default, a run's own recipe, and quickstart for other "
            "models."
        ),
    ] = None,
) -> None:
    """Serve a model to programs as the MCP tools `ask` and `search`.

    Without --http, the command communicates over stdin and stdout with the program that started it.
    """
    from meditune.serve import http_server
    from meditune.serve.settings import Settings
    from meditune.store import default_place

    if recipe and not evaluate:
        raise DataError("--recipe chooses the recipe of the tool evaluate. Add --evaluate DIR.")
    # Options from environment variables, such as MEDITUNE_HOST, may be meant for other servers on this machine.
    sources = {name: context.get_parameter_source(name) for name in _HTTP_ONLY}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given and not http:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DataError(f"{named} need{'' if len(given) > 1 else 's'} --http: over stdin and stdout, nothing listens.")
    http_server.refuse_uninstalled(mcp=True)
    store_place = store or default_place()
    settings = Settings(
        answer_s=timeout,
        max_new_tokens=max_new_tokens,
        message_characters=max_message_characters,
        per_minute=per_minute,
        daily_tokens=daily_tokens,
        # Over stdio, the caller is the user of this machine, who needs no key.
        keys_needed=require_key and http,
        log_text=log_text,
        keep_text=keep_text,
        keep_days=keep_days,
    )
    options = (model, index, engine, name, country, url, judge, judge_threshold, cross_encoder)
    from meditune.serve import mcp_tools

    evaluation = mcp_tools.evaluation_of(model, recipe, evaluate, url) if evaluate else None
    if http:
        place = http_server.ListenConfig(host, port, certificate, private_key, proxy)
        extend = partial(mcp_tools.add_endpoint, evaluation=evaluation)
        _serve(options, settings, place, store_place, allow_anonymous, extend=extend)
        return
    from meditune.observability import set_up_logging
    from meditune.serve.startup import ServerOptions, open_service

    set_up_logging()
    mcp_tools.run_stdio(lambda: open_service(ServerOptions(*options), settings, store_place), evaluation)


@keys_app.command(example='"Dr Lee" --scope generate --scope feedback --days 90')
def create(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the key's holder, for your own reference.")],
    scope: Annotated[
        Texts,
        Option(
            help="Permission: generate, embed and feedback (by default these three), raw (no triage), expert (feedback "
            "that overrides other people's), metrics or admin. Repeatable."
        ),
    ] = None,
    per_minute: PerMinute = None,
    daily_tokens: Quota = None,
    days: Annotated[
        float | None, Option(min=0.01, help="Number of days until the key expires; by default, it never expires.")
    ] = None,
    store: Store = None,
) -> None:
    """Create an API key and print it once; the store keeps only its hash."""
    from meditune.store.api_keys import USUAL

    key, text = _keys(store).create(name, scope or USUAL, per_minute, daily_tokens, days)
    typer.echo(
        f"{key.id} ({key.name}): {', '.join(sorted(key.scopes))}. This is the only time the key is shown:", err=True
    )
    typer.echo(text)


@keys_app.command("list", example="")
def show(store: Store = None) -> None:
    """List all keys, without their secrets."""
    keys = _existing_keys(store).all()
    if not keys:
        typer.echo("There are no keys. Create one: meditune keys create NAME", err=True)
    for key in keys:
        limits = [
            f"{key.per_minute} a minute" if key.per_minute else "",
            f"{key.daily_tokens:,} tokens a day" if key.daily_tokens else "",
        ]
        created = datetime.fromtimestamp(key.created).date()
        words = [key.id, key.state, str(created), key.name, ",".join(sorted(key.scopes)), *limits]
        typer.echo("  ".join(word for word in words if word))


@keys_app.command(example="ID --grace-hours 48")
def rotate(
    id: KeyId,
    grace_hours: Annotated[float, Option(min=0, help="Number of hours for which the old secret keeps working.")] = 24.0,
    store: Store = None,
) -> None:
    """Give a key a new secret. The old secret keeps working for a grace period (--grace-hours)."""
    text = _existing_keys(store).rotate(id, grace_hours)
    typer.echo(
        f"The old secret of {id} works for another {grace_hours:g} hours. This is the only time the new key is shown:",
        err=True,
    )
    typer.echo(text)


@keys_app.command(example="ID")
def revoke(id: KeyId, store: Store = None) -> None:
    """Revoke a key. Running servers refuse all further requests with the key."""
    _existing_keys(store).revoke(id)
    typer.echo(f"{id} is revoked.")


@answers_app.command(example="--key 1a2b3c4d")
def delete(
    id: Annotated[Text, Argument(metavar="[ID]", help="Id of an answer: ask-... or chatcmpl-...")] = None,
    key: Annotated[
        Text,
        Option(
            metavar="KEY_ID",
            help="Id of an API key, from `meditune keys list`; delete all answers to questions asked with this key, "
            "and all feedback given with it.",
        ),
    ] = None,
    store: Store = None,
) -> None:
    """Delete an answer, or all answers to questions asked with an API key, and the feedback on the deleted answers."""
    if (id is None) == (key is None):
        raise DataError("Give either an answer's id or a key's id: meditune answers delete --key KEY_ID.")
    if key:
        answers = _answers(store)
        count = answers.delete_all_of(key)
        if not count:
            _existing_keys(store).get(key)  # Raises DataError if there is no such key.
        typer.echo(f"{count} answers to questions asked with {key} were deleted.")
        return
    if not _answers(store).delete(id or ""):
        raise DataError(f"There is no answer {id!r}. It was never stored or is already deleted.")
    typer.echo(f"{id} was deleted.")


@answers_app.command(example="--days 30")
def prune(
    days: Annotated[float, Option(min=0, help="Delete answers older than this many days.")], store: Store = None
) -> None:
    """Delete old answers and the feedback on them."""
    typer.echo(f"{_answers(store).prune(days)} answers deleted.")


@answers_app.command(example="--output answers.jsonl")
def export(
    output: Annotated[Path, Option("--output", "-o", help="JSON Lines file to write.")],
    store: Store = None,
    index: Annotated[
        Text, Option(metavar="INDEX", help="Add the texts of each answer's first 3 passages, read from this index.")
    ] = None,
) -> None:
    """Export stored answers and the feedback on them to a file that only you can read."""
    from meditune.files import write_jsonl
    from meditune.store import default_place, named

    rows = _answers(store).exported()
    if index:
        from meditune.operate.retraining.new_training_data import passages_of
        from meditune.retrieve.index import Index

        opened = Index.open(index)
        rows = (row | {"context": passages_of(opened, row["facts"].get("passages") or [])} for row in rows)
    count = write_jsonl(output, rows, private=True)
    other = "" if count else " (another store: --store DIR)"
    typer.echo(f"{counted(count, 'answer')} in {named(store or default_place())}{other}. Written: {output.resolve()}")


def _serve(
    options: tuple[Any, ...],
    settings: Settings,
    place: ListenConfig,
    store: str,
    allow_anonymous: bool,
    watched: Callable[[Service, str], DriftWatcher] | None = None,
    extend: Extend | None = None,
) -> None:
    """Run the server until it is stopped. `options` are the values of the fields of ServerOptions."""
    from meditune import observability
    from meditune.hardware import limit_malloc_arenas, release_memory
    from meditune.serve import http_server

    http_server.refuse_uninstalled()
    place.check_tls()
    limit_malloc_arenas()
    from meditune.serve import startup

    known = _keys(store)
    settings = startup.safe(settings, place, known, allow_anonymous)
    # Open the port first: if it is in use, the error comes before the model is loaded, which takes minutes.
    sock = http_server.listening(place)
    observability.set_up_logging()
    traced = observability.set_up_tracing()
    if warning := startup.lockout(settings, known):
        typer.secho(warning, fg="yellow", err=True)
    service = startup.open_service(startup.ServerOptions(*options), settings, store)
    release_memory()
    watching = watched(service, place.address(sock.getsockname()[1])) if watched else None

    def ready(address: str) -> None:
        typer.echo(
            f"{service.served.name} is served by {service.engine.name}. Chat page: {address} (API: {address}v1, "
            f"described at {address}docs)"
        )
        if extend:
            typer.echo(f"Tools over MCP: {address}mcp")

    try:
        http_server.run(service, place, sock, ready, extend)
    finally:
        if watching:
            watching.stop()
        if traced:
            observability.shut_down_tracing()
    if service.aborted_requests:
        count = counted(service.aborted_requests, "request")
        typer.echo(f"Stopped after waiting {settings.ending_s:g} seconds. Aborted: {count}.")
    else:
        typer.echo("Stopped; all running answers were finished.")


def _watched(
    store: str, reference: Path, every_s: float, public_url: str, service: Service, address: str
) -> DriftWatcher:
    """Start the server's drift watcher, and return it."""
    from meditune.operate.drift.drift_watcher import WatcherOptions, watch
    from meditune.serve.version_router import RegistryService

    link = f"{(public_url or address).rstrip('/')}/admin#drift"
    report: Callable[[Mapping[str, Any]], None] = service.metrics.drifted
    if isinstance(service, RegistryService):
        from meditune.operate.retraining.rollback import on_drift

        report = on_drift(service.releases.registry.folder, store, report)
    return watch(WatcherOptions(store, reference, every_s, link), report)


def _origin(text: str) -> str:
    """Return an origin as browsers send it."""
    origin = text.rstrip("/").lower()
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
        raise DataError(f"--cors {text}: write a scheme and a host without a path, such as https://example.org.")
    return origin


def _prices(text: str) -> tuple[float, float]:
    if not text:
        return 0.0, 0.0
    try:
        read, written = map(float, text.split(","))
    except ValueError as error:
        raise DataError(f"--price {text}: write two numbers separated by a comma, as in 0.15,0.60.") from error
    return read, written


def _keys(store: str | None) -> Keys:
    """Open the keys in a store, which is created if it doesn't exist."""
    from meditune.store import default_place, open_store
    from meditune.store.api_keys import Keys

    return Keys(open_store(store or default_place()))


def _existing_keys(store: str | None) -> Keys:
    from meditune.store.api_keys import Keys

    return Keys(_existing(store))


def _answers(store: str | None) -> Answers:
    from meditune.store.answers import Answers

    return Answers(_existing(store))


def _existing(store: str | None) -> Database:
    from meditune.store import default_place, open_existing

    return open_existing(store or default_place())


def _print_check(settings: Settings, place: ListenConfig, store: str, allow_anonymous: bool, model: str | None) -> None:
    """Print whether the settings are safe, and which engine `auto` chooses for `model`, unless it is None."""
    from tempfile import TemporaryDirectory

    from meditune.engines.open_engine import choose_export
    from meditune.model_registry import is_registry
    from meditune.serve.security_check import classifier_error, findings
    from meditune.serve.startup import safe
    from meditune.store import has_tables

    # A check must not create a store; without a store there are no keys.
    with TemporaryDirectory() as empty_store:
        known = _keys(store if has_tables(store) else empty_store)
        settings = safe(settings, place, known, allow_anonymous)
        stored_keys = known.all()
    found = findings(settings, place, stored_keys, store, time.time(), classifier_error())
    print_lines(f"{finding.verdict:6}  {finding.sentence}" for finding in found)
    folder = Path(model).expanduser() if model else None
    if folder and not is_registry(folder):
        print_lines([str(choose_export(folder, concurrency=settings.concurrency))])
    if unsafe := sum(finding.verdict == "unsafe" for finding in found):
        raise GateError(f"{unsafe} of these settings are unsafe.")
