"""`meditune review serve`: the page on this machine, or with a token in its address for others."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from meditune.errors import MedituneError
from meditune.review.disputes import Dispute, disputed
from meditune.review.ratingset import read_set
from meditune.review.store import Store
from meditune.review.tasks import RATE, Task

EVERYWHERE = {"0.0.0.0", "::"}
"""Addresses that mean each of this machine's; others reach it by its name."""


def serve(
    folder: Path,
    host: str,
    port: int,
    say: Callable[[str], None],
    disputes: Sequence[Dispute] | None = None,
    task: Task = RATE,
) -> None:
    """Serve the set in `folder` until the process is ended, or only its `disputes`; `say` is told the address.

    Anywhere but on the loopback, requests must bear a random token, which is part of that address. Raises DataError
    where there is no set, MedituneError where the port can't be had or nothing is disputed.
    """
    import uvicorn

    from meditune.review.server import LOCAL, Reviewing, app_for

    here = Reviewing(read_set(folder, task), Store(folder), disputes)
    if here.adjudicating and not here.disputes:
        raise MedituneError(f"No answer in {folder} was judged differently by two raters: there is nothing to settle.")
    listening = _bound(host, port)
    token = None if host in LOCAL else secrets.token_urlsafe(16)
    app = app_for(here, LOCAL if token is None else set(), token)
    named = socket.gethostname() if host in EVERYWHERE else host
    at = f"[{named}]" if ":" in named else named
    address = f"http://{at}:{listening.getsockname()[1]}/"
    say(f"Rate here: {address}#token={token}" if token else f"Rate here: {address}")
    if token:
        say(
            "Whoever has this address can read the questions and answers. It is plain HTTP: between machines, put it "
            "behind TLS or a VPN."
        )
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def in_dispute(folder: Path) -> list[Dispute]:
    """What the raters of a rating set disagree on; its key isn't read, so whoever settles it is as blind as they."""
    return disputed(read_set(folder, RATE).axes, Store(folder).ratings())


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        raise MedituneError(
            f"{host}:{port} can't be listened on ({error.strerror}). Choose another --host or --port; --port 0 takes a "
            "free one."
        ) from error
    return made
