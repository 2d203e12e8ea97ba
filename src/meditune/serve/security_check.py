"""`meditune serve --check`: security findings about the configuration of a server that other people can reach."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args
from urllib.parse import parse_qs, urlsplit

from meditune.assistant import triage
from meditune.errors import MedituneError, ModelError
from meditune.serve.http_server import LOCAL, ListenConfig
from meditune.serve.settings import Settings
from meditune.store import StoreLocation, folder_of, is_url
from meditune.store.api_keys import Key
from meditune.store.database import FILE

Verdict = Literal["unsafe", "note", "good"]
MAX_KEEP_DAYS = 365
OLD_KEY_S = 365 * 86_400


@dataclass(frozen=True)
class Finding:
    """One finding about a configuration."""

    verdict: Verdict
    sentence: str


unsafe, note, good = (partial(Finding, verdict) for verdict in get_args(Verdict))


def findings(
    settings: Settings,
    config: ListenConfig,
    keys: Sequence[Key],
    store: StoreLocation,
    now: float,
    classifier_error: str = "",
) -> list[Finding]:
    """Return all findings about a configuration, the unsafe ones first.

    `classifier_error` is the reason why triage's classifier can't be loaded; empty if the classifier works.
    """
    every = [
        *_network_findings(settings, config, keys),
        *_limits(settings, config, keys),
        *_triage(classifier_error),
        *_text(settings),
        *_files(store, config),
        *_keys(keys, settings, now),
    ]
    return sorted(every, key=lambda finding: get_args(Verdict).index(finding.verdict))


def _network_findings(settings: Settings, config: ListenConfig, keys: Sequence[Key]) -> Iterator[Finding]:
    usable = [key for key in keys if key.state == "usable"]
    if not settings.keys_needed:
        if config.local and not config.proxies:
            yield note("No key is required, but only users of this machine can reach the server.")
        else:
            yield unsafe(
                f"Other machines can reach {config.host}, and no key is required. Create one: meditune keys create NAME"
            )
    elif not usable:
        yield unsafe(
            "Keys are required, but none is usable, so nobody can get in. Create one: meditune keys create NAME"
        )
    else:
        yield good(f"Every request requires a key. Usable keys: {len(usable)}.")
    tls_error = _tls_error(config)
    if tls_error:
        yield unsafe(f"The server can't start with these TLS options: {tls_error}")
    elif config.certificate:
        yield good("Requests are encrypted with TLS.")
    elif config.proxies:
        yield note(
            f"The proxy ({config.proxies}) must terminate TLS, and only the proxy may reach the plain HTTP port."
        )
    elif not config.local:
        yield unsafe(
            "Questions and keys are sent unencrypted. Set --certificate and --private-key, or put a TLS proxy in "
            "front of the server and set --proxy to the proxy's address."
        )
    if "*" in settings.origins:
        yield unsafe("Pages of any site can call the server. List the allowed sites with --cors.")
    elif settings.origins:
        yield note(f"Pages of {', '.join(settings.origins)} can call the server.")
    if config.proxies.strip() == "*":
        yield unsafe("Anyone can pose as a proxy and fake an address. Set --proxy to the proxy's own address.")


def _tls_error(config: ListenConfig) -> str:
    try:
        config.check_tls()
    except MedituneError as error:
        return str(error)
    return ""


def _limits(settings: Settings, config: ListenConfig, keys: Sequence[Key]) -> Iterator[Finding]:
    usable = [key for key in keys if key.state == "usable"]
    if settings.per_minute:
        yield good(f"A caller can send {settings.per_minute} requests a minute, unless the key sets another limit.")
    elif settings.keys_needed and usable and all(key.per_minute for key in usable):
        yield good("Every usable key has its own rate limit.")
    else:
        finding = note if config.local and not config.proxies else unsafe
        yield finding("Callers can send requests without a rate limit. Set --per-minute.")
    if not settings.daily_tokens:
        yield note(
            "Callers have no daily quota. Set a quota for all callers with --daily-tokens, or for one key with "
            "`meditune keys create`."
        )
    if settings.queue_size > 20 * settings.concurrency:
        yield note(
            f"{settings.queue_size} requests can wait while {settings.concurrency} are answered, so the last ones wait "
            "for a long time."
        )


def classifier_error() -> str:
    """Load triage's classifier, and return why loading failed; empty if it succeeded."""
    try:
        triage.load()
    except ModelError as error:
        return str(error)
    return ""


def _triage(error: str) -> Iterator[Finding]:
    if error:
        yield unsafe(f"Triage has no classifier, and rules alone miss most emergencies and harmful requests: {error}")
    else:
        yield good("Triage uses its rules and its classifier.")


def _text(settings: Settings) -> Iterator[Finding]:
    if settings.log_text:
        yield unsafe("Questions are logged (--log-text). Masking misses some of the details that identify people.")
    else:
        yield good("Questions aren't logged.")
    if settings.bare_chat:
        yield unsafe(
            "Chats reach the model without triage, answers come without the note on limits, and every caller can use "
            "/v1/completions (--raw-chat)."
        )
    if settings.keep_text:
        yield note(
            "Questions and answers are stored, with masking (--keep-text). Tell users, and delete data on request."
        )
    if not settings.keep_days:
        yield unsafe("Stored answers and feedback are never deleted. Set --keep-days.")
    elif settings.keep_days > MAX_KEEP_DAYS:
        yield note(f"Answers and feedback are stored for {settings.keep_days:g} days.")


def _files(store: StoreLocation, place: ListenConfig) -> Iterator[Finding]:
    if is_url(store):
        yield from _database(str(store))
    folder = [] if is_url(store) else [folder_of(store), folder_of(store) / FILE]
    for path in (*folder, place.private_key):
        if path is not None and path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield unsafe(f"Other users of this machine can read {path}. Run: chmod go= {path}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield unsafe("The server runs as root. Run it as a separate user (deploy/ has examples).")


def _database(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    # libpq also reads these values from the URL's options and from variables.
    host, mode = (
        parse_qs(parts.query).get(name, [given or os.environ.get(f"PG{name.upper()}", "")])[0]
        for name, given in (("host", parts.hostname), ("sslmode", None))
    )
    if host in ("", *LOCAL) or host.startswith("/"):
        yield note("The store is a database on this machine.")
    elif mode in {"verify-full", "verify-ca"}:
        yield good("The connection to the store uses TLS.")
    else:
        yield unsafe("The connection to the store's database might not use TLS. Add ?sslmode=verify-full to its URL.")
    if parts.password and any(parts.password in word for word in sys.argv):
        yield unsafe(
            "The database's password is on the command line, where other users of this machine can see it. Pass "
            "the URL in MEDITUNE_STORE, or the password in PGPASSWORD or ~/.pgpass."
        )


def _keys(keys: Sequence[Key], settings: Settings, now: float) -> Iterator[Finding]:
    if not settings.bare_chat and not any("raw" in key.scopes and key.state == "usable" for key in keys):
        yield good("Triage can't be bypassed: no key has the raw scope.")
    for key in keys:
        if key.state != "usable":
            continue
        if now - key.created > OLD_KEY_S and key.expires is None:
            yield note(f"The key {key.id} ({key.name}) is over a year old. Run: meditune keys rotate {key.id}")
        if "raw" in key.scopes:
            yield note(
                f"The key {key.id} ({key.name}) can bypass triage (scope raw): with /v1/completions, and with chats "
                "that have guided_choice, response_format or a prompt in the model's own format. Don't give it to "
                "programs that pass on people's messages."
            )
        if "admin" in key.scopes:
            more = " and delete anyone's answers" if "feedback" in key.scopes else ""
            yield note(f"The key {key.id} ({key.name}) can open /admin{more} (scope admin).")
