"""`meditune serve --check`: what is unsafe in a configuration that others than its owner shall reach."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from meditune.assistant import triage
from meditune.errors import ModelError
from meditune.serve.http_server import LOCAL, Place
from meditune.serve.settings import Settings
from meditune.store.api_keys import Key
from meditune.store.database import FILE
from meditune.store.open_store import Place as StorePlace
from meditune.store.open_store import folder_of, is_url

Verdict = Literal["unsafe", "note", "good"]
LONG_KEPT_DAYS = 365
OLD_KEY_S = 365 * 86_400


@dataclass(frozen=True)
class Finding:
    """One thing about a configuration."""

    verdict: Verdict
    sentence: str


def findings(
    settings: Settings, place: Place, keys: Sequence[Key], store: StorePlace, now: float, classifier_error: str = ""
) -> list[Finding]:
    """Return everything there is to say about a configuration, what is unsafe first.

    `classifier_error` is the reason why triage's classifier can't be loaded, empty if it can.
    """
    order = {"unsafe": 0, "note": 1, "good": 2}
    every = [
        *_reach(settings, place, keys),
        *_limits(settings, place),
        *_triage(classifier_error),
        *_text(settings),
        *_files(store, place),
        *_keys(keys, settings, now),
    ]
    return sorted(every, key=lambda finding: order[finding.verdict])


def _reach(settings: Settings, place: Place, keys: Sequence[Key]) -> Iterator[Finding]:
    usable = [key for key in keys if key.state == "usable"]
    if not settings.keys_needed:
        if place.local and not place.proxies:
            yield Finding("note", "Nobody needs a key; only this machine's users reach the server.")
        else:
            yield Finding(
                "unsafe", f"{place.host} is reached from elsewhere and nobody needs a key: meditune keys create NAME."
            )
    elif not usable:
        yield Finding("unsafe", "Keys are needed and none is usable, so nobody gets in: meditune keys create NAME.")
    else:
        yield Finding("good", f"Every request needs a key; {len(usable)} usable.")
    if place.certificate:
        yield Finding("good", "Requests come over TLS.")
    elif place.proxies:
        yield Finding("note", f"TLS must end at the proxy ({place.proxies}); plain HTTP must be reachable by it alone.")
    elif not place.local:
        yield Finding(
            "unsafe",
            "Questions and keys travel unencrypted: give --certificate and --private-key, or put a proxy with TLS in "
            "front and name its address with --proxy.",
        )
    if "*" in settings.origins:
        yield Finding("unsafe", "Any site's pages may call the server: name the sites with --cors.")
    elif settings.origins:
        yield Finding("note", f"Pages of {', '.join(settings.origins)} may call the server.")
    if place.proxies.strip() == "*":
        yield Finding(
            "unsafe", "Anybody may claim to be a proxy and so to come from any address: name it with --proxy."
        )


def _limits(settings: Settings, place: Place) -> Iterator[Finding]:
    if settings.per_minute:
        yield Finding("good", f"A caller has {settings.per_minute} requests a minute, unless its key says otherwise.")
    else:
        verdict: Verdict = "note" if place.local and not place.proxies else "unsafe"
        yield Finding(verdict, "A caller may ask as often as it likes: set --per-minute.")
    if not settings.daily_tokens:
        yield Finding(
            "note", "A caller has no daily quota: --daily-tokens sets one, `meditune keys create` one of a key."
        )
    if settings.waiting > 20 * settings.at_once:
        yield Finding("note", f"{settings.waiting} may wait for {settings.at_once} places: the last ones wait long.")


def classifier_error() -> str:
    """Load triage's classifier, and return why that fails; empty if it works."""
    try:
        triage.load()
    except ModelError as error:
        return str(error)
    return ""


def _triage(error: str) -> Iterator[Finding]:
    if error:
        yield Finding("unsafe", f"Triage has rules alone, which miss most emergencies and harmful requests: {error}")
    else:
        yield Finding("good", "Triage has its rules and its classifier.")


def _text(settings: Settings) -> Iterator[Finding]:
    if settings.log_text:
        yield Finding("unsafe", "Questions stand in the log (--log-text). Masking misses some of what tells who asks.")
    else:
        yield Finding("good", "No question stands in the log.")
    if settings.bare_chat:
        yield Finding(
            "unsafe",
            "Chats reach the model without triage and come without limits, and every caller may use /v1/completions "
            "(--bare-chat).",
        )
    if settings.keep_text:
        yield Finding(
            "note", "Questions and answers are kept, masked (--keep-text): people must know, and may want them deleted."
        )
    if not settings.keep_days:
        yield Finding("unsafe", "What is kept is never deleted: set --keep-days.")
    elif settings.keep_days > LONG_KEPT_DAYS:
        yield Finding("note", f"What is kept is deleted only after {settings.keep_days:g} days.")


def _files(store: StorePlace, place: Place) -> Iterator[Finding]:
    if is_url(store):
        yield from _database(str(store))
    folder = [] if is_url(store) else [folder_of(store), folder_of(store) / FILE]
    for path in (*folder, place.private_key):
        if path is not None and path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("unsafe", f"Others on this machine may read {path}: chmod go= {path}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield Finding("unsafe", "The server runs as root: let it run as a user of its own (deploy/ shows how).")


def _database(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    mode = (parse_qs(parts.query).get("sslmode") or [os.environ.get("PGSSLMODE", "")])[0]
    if parts.hostname in (None, "", *LOCAL):
        yield Finding("note", "The store is a database on this machine.")
    elif mode in {"verify-full", "verify-ca"}:
        yield Finding("good", "The store is reached over TLS.")
    else:
        yield Finding(
            "unsafe", "Nothing makes sure that the store's database is reached over TLS: add ?sslmode=verify-full."
        )
    if parts.password and any(parts.password in word for word in sys.argv):
        yield Finding(
            "unsafe",
            "The database's password stands on the command line, where others on this machine see it: give the URL as "
            "MEDITUNE_STORE, or the password as PGPASSWORD or in ~/.pgpass.",
        )


def _keys(keys: Sequence[Key], settings: Settings, now: float) -> Iterator[Finding]:
    if not settings.bare_chat and not any("raw" in key.scopes and key.state == "usable" for key in keys):
        yield Finding("good", "Nobody reaches the model without triage: no key has the scope raw.")
    for key in keys:
        if key.state != "usable":
            continue
        if now - key.created > OLD_KEY_S and key.expires is None:
            yield Finding("note", f"The key {key.id} ({key.name}) is over a year old: meditune keys rotate {key.id}")
        if "raw" in key.scopes:
            yield Finding(
                "note",
                f"The key {key.id} ({key.name}) reaches the model without triage (scope raw): by /v1/completions, and "
                "by chats with guided_choice, response_format or a prompt in the model's own format. Give it to "
                "programs alone, not to what passes people's messages on.",
            )
        if "admin" in key.scopes:
            yield Finding("note", f"The key {key.id} ({key.name}) may delete anybody's answers (scope admin).")
