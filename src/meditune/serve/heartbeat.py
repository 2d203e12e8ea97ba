"""A server's sign of life in the store, by which `meditune status` and /admin know all servers that share it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress

from meditune import __version__
from meditune.errors import MedituneError
from meditune.serve.logs import LOGGER
from meditune.serve.service import Service
from meditune.serve.storing import stored
from meditune.store.notes import Notes

EVERY_S = 30.0
FORGOTTEN_S = 7 * 86_400.0
"""A server that was lost so long ago is news no more"""


async def beating(service: Service) -> None:
    """Write it again and again; when cancelled, take it out: this server has ended as it should."""
    if service.answers is None:
        return
    notes, name = Notes(service.answers.base), f"server/{socket.gethostname()}:{os.getpid()}:{id(service):x}"
    in_trouble = cleared = False
    try:
        while True:
            try:
                if not cleared:
                    await stored(_clear, notes, service.address)
                    cleared = True
                await stored(notes.put, name, facts(service))
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.error("The store can't be written", extra={"why": str(error)})
                in_trouble = True
            await asyncio.sleep(EVERY_S)
    finally:
        with suppress(MedituneError):
            notes.remove(name)


def _clear(notes: Notes, address: str) -> None:
    """Take out servers of long ago, and one that was killed in this one's place."""
    for note in notes.all("server"):
        if time.time() - note.time > FORGOTTEN_S or (address and note.facts.get("address") == address):
            notes.remove(note.name)


def facts(service: Service) -> dict[str, object]:
    """What is told of a server."""
    served = service.served
    return {
        "address": service.address,
        "model": served.name,
        "version": served.version,
        "index": served.index,
        "engine": service.engine.name,
        "started": service.started,
        "running": service.admission.inside,
        "waiting": service.admission.waiting,
        "meditune": __version__,
    }
