"""The store of a server's keys, answers and feedback: a folder with an SQLite file, or a PostgreSQL database.

This module opens a store by its location.
"""

from __future__ import annotations

import os
from pathlib import Path

from meditune.errors import DataError
from meditune.store.database import FILE, Database, SQLiteDatabase
from meditune.store.postgresql import SCHEMES, Postgres, without_password

StoreLocation = str | Path
"""A folder, the SQLite file in it, or a PostgreSQL URL"""


def default_place() -> str:
    """Return the value of MEDITUNE_STORE, or by default a folder in the user's home directory."""
    return os.environ.get("MEDITUNE_STORE") or str(Path.home() / ".local" / "share" / "meditune")


def is_url(location: StoreLocation) -> bool:
    """Return whether the location is a database URL."""
    return str(location).startswith(SCHEMES)


def named(location: StoreLocation) -> str:
    """Return the location for display and logs: a URL without its password, or the path."""
    return without_password(str(location)) if is_url(location) else str(location)


def exists(location: StoreLocation) -> bool:
    """Return whether a folder contains a store. For a URL, return True; only `open_store` can check it."""
    return is_url(location) or (folder_of(location) / FILE).is_file()


def has_tables(location: StoreLocation) -> bool:
    """Return whether a store exists, including the tables of a database. Raises StoreError if it can't be used."""
    return Postgres(str(location), create=False).has_tables if is_url(location) else exists(location)


def folder_of(location: StoreLocation) -> Path:
    """Return a store's folder, given the folder or the SQLite file in it."""
    path = Path(location).expanduser()
    return path.parent if path.name == FILE else path


def open_store(location: StoreLocation) -> Database:
    """Open the store at this location; create it if it doesn't exist. Raises StoreError if it can't be used."""
    return Postgres(str(location)) if is_url(location) else SQLiteDatabase(folder_of(location))


def open_existing(location: StoreLocation) -> Database:
    """Open the store at this location. Raises DataError if there is none, and StoreError if it can't be used."""
    if not exists(location):
        raise DataError(f"There is no store in {location}. Specify a server's store with --store or MEDITUNE_STORE.")
    return open_store(location)
