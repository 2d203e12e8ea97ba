"""Where a source's files are: the recipe's path, the user's data folder, the cache, or the publisher's site."""

from __future__ import annotations

import difflib
import errno
import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from meditune.data.archive import contents_sha256
from meditune.data.sources import SOURCES, Download, Source
from meditune.errors import DataError
from meditune.files import cache_folder, disk_full
from meditune.progress import Progress

DATA_VARIABLE = "MEDITUNE_DATA"
OFFLINE_VARIABLES = ("MEDITUNE_OFFLINE", "HF_HUB_OFFLINE")
TIMEOUT_SECONDS = 30.0
_CHUNK = 2**18


def locate(source_name: str, path: Path | str | None = None, download: bool = True) -> Path:
    """The folder (or file) of a source, downloaded first where it must be.

    Looked for in this order: `path` (nothing else then), `$MEDITUNE_DATA/NAME`, `NAME` in the cache (`$MEDITUNE_CACHE`
    or ~/.cache/meditune), the publisher's site. Raises DataError that says where to get it and where to put it.
    """
    source = known(source_name)
    if path is not None:
        return _given(source, Path(path).expanduser())
    if source.packaged is not None:
        if not source.packaged.is_file():
            raise DataError(f"{source.packaged} is missing from this installation. Install Meditune again.")
        return source.packaged
    places = _places(source)
    for place in places:
        if has_files(source, place):
            return place
    why = _why_no_download(source, download)
    if why:
        raise DataError(_not_found(source, places, why))
    _fetch(source, places)
    return places[-1]


def known(source_name: str) -> Source:
    """The source of that name. Raises DataError with near matches where there is none."""
    if source_name in SOURCES:
        return SOURCES[source_name]
    readable = [*(name for name, source in SOURCES.items() if source.reader), "own"]
    near = difflib.get_close_matches(source_name.lower(), readable, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"No data source is called {source_name!r}. There are {', '.join(readable)}.{hint}")


def has_files(source: Source, folder: Path) -> bool:
    """Whether one of the source's files is in the folder."""
    return folder.is_dir() and any(True for pattern in source.files for _ in folder.glob(pattern))


def offline() -> bool:
    """Whether the user forbids downloads: MEDITUNE_OFFLINE or HF_HUB_OFFLINE is 1, true, yes or on."""
    return any(os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"} for name in OFFLINE_VARIABLES)


def _fetch(source: Source, places: list[Path]) -> None:
    """Download a source's files to temporary names, check all of them, then rename: all are there, or none.

    Raises DataError, naming the URL and the places where the user may put the files instead.
    """
    folder = places[-1]
    partials = {folder / f".{each.filename}.{os.getpid()}.partial": each for each in source.download}
    download = source.download[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial, download in partials.items():
            if problem := _receive(download, partial):
                raise DataError(_not_found(source, places, f"{download.url} {problem}"))
        for partial, download in partials.items():
            partial.replace(folder / download.filename)
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and broken connections are OSErrors
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise disk_full(folder / download.filename) from error
        reason = getattr(error, "reason", None) or error
        raise DataError(_not_found(source, places, f"{download.url} can't be fetched ({reason})")) from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _receive(download: Download, partial: Path) -> str:
    """Write what the publisher sends to `partial`; returns what is wrong with it, empty where nothing is."""
    digest = hashlib.sha256()
    received = 0
    request = urllib.request.Request(download.url, headers={"User-Agent": "meditune"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer, partial.open("wb") as stream:
        length = int(answer.headers.get("Content-Length") or 0)
        with Progress(f"Downloading {download.filename}", length / 1e6 or None, "MB") as progress:
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                progress.advance(len(chunk) / 1e6)
    if length and received != length:
        return f"broke off at {received:,} of {length:,} bytes"
    if download.sha256 and digest.hexdigest() != download.sha256:
        return f"isn't the known file (SHA-256 {digest.hexdigest()}, expected {download.sha256})"
    if download.contents_sha256:
        try:
            found = contents_sha256(partial)
        except DataError as error:
            return f"isn't the publisher's zip: {error}"
        if found != download.contents_sha256:
            return f"holds other files than the known ones (SHA-256 {found}, expected {download.contents_sha256})"
    return ""


def _given(source: Source, path: Path) -> Path:
    if (path.exists() and not path.is_dir()) or has_files(source, path):
        return path
    state = f"none of {', '.join(source.files)} in it" if path.is_dir() else "no such file or folder"
    raise DataError(f"{path}: {state}. The recipe names it for {source.name!r}; {_how(source)}.")


def _places(source: Source) -> list[Path]:
    """Folders to look in; the last is the cache."""
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named).expanduser() / source.name] if named else []), cache_folder("data") / source.name]


def _why_no_download(source: Source, allowed: bool) -> str:
    if not source.download:
        return "it has no public download"
    if not allowed:
        return "downloads are turned off here"
    if offline():
        return f"downloads are forbidden by {' or '.join(name for name in OFFLINE_VARIABLES if os.environ.get(name))}"
    return ""


def _how(source: Source) -> str:
    if source.how:
        return source.how
    return f"get {' and '.join(each.url for each in source.download) or source.homepage}"


def _not_found(source: Source, places: list[Path], why: str) -> str:
    how = _how(source)
    return (
        f"No data for {source.name!r} in {' or '.join(str(place) for place in places)}, and {why}. "
        f"{how[0].upper()}{how[1:]} and put it into {places[-1]}, or point at your copy with {DATA_VARIABLE} or the "
        "recipe."
    )
