"""A store by its place: a folder, or a PostgreSQL database by its URL."""

from __future__ import annotations

import os
from pathlib import Path

from meditune.store.database import FILE, Database, SQLiteDatabase
from meditune.store.postgresql import SCHEMES, Postgres, without_password

Place = str | Path
"""A folder, the file in it, or a URL"""


def default_place() -> str:
    """`$MEDITUNE_STORE`, or a folder of this user's."""
    return os.environ.get("MEDITUNE_STORE") or str(Path.home() / ".local" / "share" / "meditune")


def is_url(place: Place) -> bool:
    """Whether it is a database's URL."""
    return str(place).startswith(SCHEMES)


def named(place: Place) -> str:
    """A place as it may be written down: a database's without its password."""
    return without_password(str(place)) if is_url(place) else str(place)


def exists(place: Place) -> bool:
    """Whether there is a store in a folder; a database is asked by opening it."""
    return is_url(place) or (folder_of(place) / FILE).is_file()


def folder_of(place: Place) -> Path:
    """The folder, where the file in it may be named, too."""
    path = Path(place).expanduser()
    return path.parent if path.name == FILE else path


def open_store(place: Place) -> Database:
    """The store there, made where there is none. Raises StoreError where it can't be used."""
    return Postgres(str(place)) if is_url(place) else SQLiteDatabase(folder_of(place))
