"""Opening a store by its location: a folder, or the URL of a PostgreSQL database."""

from __future__ import annotations

import os
from pathlib import Path

from meditune.store.database import FILE, Database, SQLiteDatabase
from meditune.store.postgresql import SCHEMES, Postgres, without_password

Place = str | Path
"""A folder, the SQLite file in it, or a URL"""


def default_place() -> str:
    """Return `$MEDITUNE_STORE`, or by default a folder in this user's home."""
    return os.environ.get("MEDITUNE_STORE") or str(Path.home() / ".local" / "share" / "meditune")


def is_url(place: Place) -> bool:
    """Return whether the location is a database URL."""
    return str(place).startswith(SCHEMES)


def named(place: Place) -> str:
    """Return the location as it may be displayed or logged: a URL without its password."""
    return without_password(str(place)) if is_url(place) else str(place)


def exists(place: Place) -> bool:
    """Return whether a folder contains a store; always True for a URL, which is only checked by opening it."""
    return is_url(place) or (folder_of(place) / FILE).is_file()


def folder_of(place: Place) -> Path:
    """Return the folder for a location that names the folder or the file in it."""
    path = Path(place).expanduser()
    return path.parent if path.name == FILE else path


def open_store(place: Place) -> Database:
    """Open the store at this location; create it if it doesn't exist. Raises StoreError if it can't be used."""
    return Postgres(str(place)) if is_url(place) else SQLiteDatabase(folder_of(place))
