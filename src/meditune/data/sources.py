"""The known data sources, the terms of their licences, and the lookup and download of their files."""

from __future__ import annotations

import difflib
import errno
import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from meditune.data.example import Example
from meditune.data.readers import claims, evidence_inference, liveqa, medquad, mimic, plain_language, pubmedqa
from meditune.data.readers.medquad import contents_sha256
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import is_hub_id
from meditune.errors import DataError
from meditune.files import cache_folder, disk_full, package_table
from meditune.http_client import switched_on
from meditune.progress import Progress

Reader = Callable[[Path, Rejects], Iterator[Example]]


@dataclass(frozen=True)
class Download:
    """A file to download."""

    url: str
    filename: str
    sha256: str | None = None
    """SHA-256 of the file's bytes; if neither this nor `contents_sha256` is given, only the length is checked"""
    contents_sha256: str | None = None
    """SHA-256 of the XML files in a zip (`medquad.contents_sha256`), because GitHub may change the compression"""


@dataclass(frozen=True)
class Source:
    """A data set that a recipe can name."""

    name: str
    title: str
    files: tuple[str, ...]
    """Names or patterns of files in the source's folder; the source is available if one of these files exists"""
    licence: str
    reader: Reader | None
    """Turns the files into Examples; None for plain text"""
    homepage: str = ""
    download: tuple[Download, ...] = ()
    """Files to download. All files are checked before the first is renamed, so a partial download is never used"""
    how: str = ""
    """How to get the files if they can't be downloaded automatically"""
    citation: str = ""
    restricted: bool = False
    """True if the licence forbids sharing rows (`data/read_sources.py`)"""
    packaged: Path | None = None
    limits: str = ""
    """Limitations of the data, for the dataset card"""
    personal_data: str = ""
    """The people whom the data are about, for the dataset card"""


READERS: dict[str, tuple[Reader | None, str]] = {
    "pubmedqa": (pubmedqa.read, pubmedqa.LICENCE),
    "medquad": (medquad.read, medquad.LICENCE),
    "liveqa": (liveqa.read, liveqa.LICENCE),
    "mimic": (mimic.read, mimic.LICENCE),
    evidence_inference.SOURCE: (evidence_inference.read, evidence_inference.LICENCE),
    claims.SCIFACT: (claims.read_scifact, claims.LICENCES[claims.SCIFACT]),
    claims.HEALTHVER: (claims.read_healthver, claims.LICENCES[claims.HEALTHVER]),
    claims.CITATION_INTEGRITY: (claims.read_citation_integrity, claims.LICENCES[claims.CITATION_INTEGRITY]),
    claims.NLI4CT: (claims.read_nli4ct, claims.LICENCES[claims.NLI4CT]),
    claims.MEDHALLU: (claims.read_medhallu, claims.LICENCES[claims.MEDHALLU]),
    plain_language.COCHRANE: (plain_language.read_cochrane, plain_language.LICENCES[plain_language.COCHRANE]),
    plain_language.PLABA: (plain_language.read_plaba, plain_language.LICENCES[plain_language.PLABA]),
    plain_language.MEDIQA: (plain_language.read_mediqa, plain_language.LICENCES[plain_language.MEDIQA]),
    "wikitext-2": (None, "CC BY-SA 4.0"),
    "sample": (pubmedqa.read_synthetic, pubmedqa.SYNTHETIC_LICENCE),
}
"""Source -> (reader, licence); sources.yaml contains the other fields"""


_TABLE = package_table(Path(__file__).with_name("sources.yaml"))
SOURCES: dict[str, Source] = {
    name: Source(
        name=name, reader=reader, licence=licence, packaged=pubmedqa.FILE if name == "sample" else None, **_TABLE[name]
    )
    for name, (reader, licence) in READERS.items()
}
NO_ADVICE = "This summarizes the licence texts. It is not legal advice."


@dataclass(frozen=True)
class Licence:
    """A licence and its requirements for sharing data."""

    hub: str
    """Name on the Hugging Face hub; `other` if the hub has no name for the licence"""
    link: str
    attribution: bool = False
    notice: bool = False
    share_alike: bool = False
    non_commercial: bool = False
    no_derivatives: bool = False
    no_sharing: bool = False


_LICENCES = package_table(Path(__file__).with_name("licences.yaml"))
_CREATIVE_COMMONS = re.compile(r"cc[- ]by((?:[- ](?:nc|sa|nd))*)(?:[- ]([1-4]\.\d))?")


def licence_named(text: str) -> Licence | None:
    """Return the licence that a text names ("CC BY 4.0", "cc-by-sa-4.0", "MIT"), or None."""
    name = " ".join(text.casefold().split())
    for row in _LICENCES:
        if re.fullmatch(row["pattern"], name):
            return Licence(**{key: value for key, value in row.items() if key != "pattern"})
    found = _CREATIVE_COMMONS.fullmatch(name)
    if not found:
        return None
    parts, version = re.findall("nc|sa|nd", found[1]), found[2] or "4.0"
    short = "-".join(["by", *parts])
    return Licence(
        f"cc-{short}-{version}",
        f"https://creativecommons.org/licenses/{short}/{version}/",
        attribution=True,
        share_alike="sa" in parts,
        non_commercial="nc" in parts,
        no_derivatives="nd" in parts,
    )


def hub_names(texts: Iterable[str]) -> list[str]:
    """Return the hub's names for the licences, without repetitions; `unknown` for an unknown licence."""
    found = map(licence_named, texts)
    return list(dict.fromkeys(licence.hub if licence else "unknown" for licence in found))


def licence_requirements(terms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return sentences on what the `licences` in `terms` require of anyone who shares a set made from these sources."""
    named = [(source, text, licence_named(text)) for source, row in terms.items() for text in row["licences"]]
    lines = []
    for trait, sentence in (
        ("no_sharing", "Rows may only be shared with people who have signed the agreement: {}."),
        ("notice", "The copyright notice and the licence text must stay with the data: {}."),
        ("attribution", "The authors and the licence must be named, and changes must be indicated: {}."),
        ("non_commercial", "The data may not be used commercially: {}."),
        ("no_derivatives", "Changed versions may not be shared; splits and cleaned rows may count as such: {}."),
        ("share_alike", "Anything derived from the data must be shared under the same licence (share-alike): {}."),
    ):
        if affected := [f"{source} ({text})" for source, text, licence in named if getattr(licence, trait, False)]:
            lines.append(sentence.format(", ".join(affected)))
    share_alike = {licence.hub for _, _, licence in named if licence and licence.share_alike}
    non_commercial = {licence.hub for _, _, licence in named if licence and licence.non_commercial} - share_alike
    if len(share_alike) > 1 or (share_alike and non_commercial):
        both = " and ".join([*sorted(share_alike), *sorted(non_commercial)])
        lines.append(
            f"No single licence covers the mixed set: {both} require different licences, so keep the rows apart."
        )
    unknown = ", ".join(f"{source} ({text})" for source, text, licence in named if licence is None)
    if unknown:
        lines.append(f"Meditune doesn't know these licences; check whether and how the rows may be shared: {unknown}.")
    return lines


DATA_VARIABLE = "MEDITUNE_DATA"
OFFLINE_VARIABLES = ("MEDITUNE_OFFLINE", "HF_HUB_OFFLINE")
TIMEOUT_SECONDS = 30.0
_CHUNK = 2**18


def locate_source(source_name: str, path: Path | str | None = None, download: bool = True) -> Path:
    """Return the folder (or file) of a source, and download it if necessary.

    If `path` is given, nothing else is searched. Otherwise, the order is `$MEDITUNE_DATA/NAME`, `NAME` in the cache,
    and the publisher's site. If no files are found, raises DataError that says where to get the files and where to put
    them.
    """
    source = known_source(source_name)
    if path is not None:
        given = Path(path).expanduser()
        if (given.exists() and not given.is_dir()) or has_files(source, given):
            return given
        state = f"contains none of {', '.join(source.files)}" if given.is_dir() else "no such file or folder"
        raise DataError(
            f"{given}: {state}. The recipe specifies this path for {source.name!r}. To get the files: {_how(source)}."
        )
    if source.packaged is not None:
        if not source.packaged.is_file():
            raise DataError(f"{source.packaged} is missing from this installation. Reinstall Meditune.")
        return source.packaged
    places = data_places(source.name)
    for place in places:
        if has_files(source, place):
            return place
    if not source.download:
        raise DataError(_not_found(source, places, "the source has no public download"))
    if not download or offline():
        by = " or ".join(filter(switched_on, OFFLINE_VARIABLES)) if download else ""
        raise DataError(_not_found(source, places, f"downloads are turned off{f' by {by}' if by else ''}"))
    _fetch(source, places)
    return places[-1]


def known_source(source_name: str) -> Source:
    """Return the source of that name. Raises DataError with the nearest match if there is none."""
    if source_name in SOURCES:
        return SOURCES[source_name]
    readable = [*(name for name, source in SOURCES.items() if source.reader), "own", "own/NAME"]
    near = difflib.get_close_matches(source_name.lower(), readable, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"There is no data source {source_name!r}. Choose from {', '.join(readable)}.{hint}")


def has_files(source: Source, folder: Path) -> bool:
    """Return True if the folder contains one of the source's files."""
    return folder.is_dir() and any(True for pattern in source.files for _ in folder.glob(pattern))


def offline() -> bool:
    """Return True if downloads are turned off: MEDITUNE_OFFLINE or HF_HUB_OFFLINE is 1, true, yes or on."""
    return bool(switched_on(*OFFLINE_VARIABLES))


def _fetch(source: Source, places: list[Path]) -> None:
    """Download a source's files under temporary names, and check all of them before renaming any."""
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
    """Download a file to `partial`; return the problem with the download, or an empty string."""
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
        return f"was cut off after {received:,} of {length:,} bytes"
    if download.sha256 and digest.hexdigest() != download.sha256:
        return f"isn't the expected file (SHA-256 {digest.hexdigest()}, expected {download.sha256})"
    if download.contents_sha256:
        try:
            found = contents_sha256(partial)
        except DataError as error:
            return f"isn't the publisher's zip: {error}"
        if found != download.contents_sha256:
            return f"contains other files than expected (SHA-256 {found}, expected {download.contents_sha256})"
    return ""


def data_places(name: str) -> list[Path]:
    """Return the folders to search for data of that name; the last one is the cache."""
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named).expanduser() / name] if named else []), cache_folder("data") / name]


RELATIVE_HINT = f" A relative path is also searched for in ${DATA_VARIABLE}."


def locate_own(path: str, citation: str | None = None) -> str:
    """Return the path of a user's own file, which can be relative to the current folder or to MEDITUNE_DATA.

    A hub id is returned unchanged. Raises DataError, with the citation, if a path with a file extension doesn't exist.
    """
    given = Path(path).expanduser()
    named = os.environ.get(DATA_VARIABLE)
    places = [given] if given.is_absolute() or not named else [given, Path(named).expanduser() / given]
    found = next((place for place in places if place.exists()), None)
    if found is None and given.suffix and not is_hub_id(path):
        source = f" Its source: {citation}." if citation else ""
        hint = "" if named or given.is_absolute() else RELATIVE_HINT
        raise DataError(f"No file {' or '.join(map(str, places))}.{source}{hint}")
    return str(found or path)


def _how(source: Source) -> str:
    return source.how or f"get {' and '.join(each.url for each in source.download) or source.homepage}"


def _not_found(source: Source, places: list[Path], reason: str) -> str:
    how = _how(source)
    return (
        f"No data for {source.name!r} in {' or '.join(str(place) for place in places)}, and {reason}. "
        f"{how[0].upper()}{how[1:]} and put the files into {places[-1]}, or specify the path of your copy in "
        f"{DATA_VARIABLE} or the recipe."
    )
