"""MEDLINE's update files, from a folder or a server. Each file is applied once, in the order of the file numbers.

Every day, NLM publishes a file `pubmedYYnNNNN.xml.gz` with new, revised and deleted citations, and its MD5
(https://www.nlm.nih.gov/databases/download/pubmed_medline.html).
"""

from __future__ import annotations

import errno
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import disk_full, read_text
from meditune.operate.literature.article_library import LibraryUpdate
from meditune.operate.literature.pubmed_search import Eutils, StartedOverError
from meditune.progress import Progress
from meditune.retrieve.documents import pubmed_articles

URL = "https://ftp.ncbi.nlm.nih.gov/pubmed/updatefiles/"
FETCHED = "fetched"
"""Subfolder of the library for update files that are downloaded but not yet applied"""
MAX_MD5_MISMATCHES = 3
_NAME = re.compile(r"pubmed(\d\d)n(\d{4,6})\.xml\.gz")
_LINK = re.compile(r"""href\s*=\s*["']([^"'#?]+)["']""", re.IGNORECASE)
_MD5 = re.compile(r"\b([0-9a-fA-F]{32})\b")


@dataclass(frozen=True)
class UpdateFileFolder:
    """A folder of update files that another program downloads."""

    path: Path

    def names(self) -> list[str]:
        """Return the names of all files in the folder. Raises DataError if none is an update file."""
        if not self.path.is_dir():
            raise DataError(
                f"{self.path}: no such folder. Specify the folder or server URL that contains PubMed's update files."
            )
        names = [each.name for each in self.path.iterdir()]
        if not any(map(_NAME.fullmatch, names)):
            raise DataError(
                f"{self.path}: contains no file like pubmed26n1340.xml.gz. Check that it is the right folder, and "
                "that it is mounted."
            )
        return names

    def md5(self, name: str) -> str:
        """Return the published MD5 of a file. Raises DataError if it can't be found."""
        beside = self.path / f"{name}.md5"
        if not beside.is_file():
            raise DataError(
                f"{self.path / name}: cannot be checked, because {beside.name} is missing. Download that file too."
            )
        return _md5_in(read_text(beside), str(beside))

    def file(self, name: str, md5: str) -> Path:
        """Return the path of a file. Raises DataError if the file's MD5 isn't `md5`."""
        found = self.path / name
        if (actual := _md5(found)) != md5:
            raise DataError(
                f"{found}: the file's MD5 is {actual}, but the published MD5 is {md5}, so the file is incomplete or "
                "wrong. Download it again. All earlier files were applied."
            )
        return found


@dataclass(frozen=True)
class UpdateFileServer:
    """A server whose listing page links to the update files."""

    url: str
    http: Eutils
    fetched: Path

    def names(self) -> list[str]:
        """Return the names of all files that the page links to. Raises DataError if none is an update file."""
        page = self._content("")
        names = [unquote(each).rpartition("/")[2] for each in _LINK.findall(page)]
        if not any(map(_NAME.fullmatch, names)):
            raise DataError(f"{self.url}: no link to a file like pubmed26n1340.xml.gz. Check the address.")
        return names

    def md5(self, name: str) -> str:
        """Return the published MD5 of a file. Raises DataError if it can't be found."""
        return _md5_in(self._content(f"{name}.md5"), f"{self.url}{name}.md5")

    def file(self, name: str, md5: str) -> Path:
        """Download a file and return its path. Raises DataError if the MD5 is wrong in three attempts."""
        url, path = f"{self.url}{name}", self.fetched / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _md5(path) == md5:
            return path
        partial = path.with_name(f"{path.name}.part")
        actual = ""
        for _ in range(MAX_MD5_MISMATCHES):
            self.http.retry(lambda: self._resume(url, partial), url)
            actual = _md5(partial)
            if actual == md5:
                return partial.replace(path)
            partial.unlink()
        raise DataError(
            f"{url}: downloaded {MAX_MD5_MISMATCHES} times, but the file's MD5 is {actual} and the published MD5 is "
            f"{md5}. Run the same command later; if it fails again, report it to NLM (info@ncbi.nlm.nih.gov)."
        )

    def _resume(self, url: str, partial: Path) -> None:
        """Download the part of a file that `partial` lacks. Raises TransientError if the download is interrupted."""
        try:
            self._fetch(url, partial, partial.stat().st_size if partial.is_file() else 0)
        except StartedOverError:
            self._fetch(url, partial, 0)

    def _fetch(self, url: str, partial: Path, start: int) -> None:
        title, mode = f"Fetching {partial.stem}", "ab" if start else "wb"
        try:
            with (
                self.http.download(url, start) as (size, parts),
                Progress(title, size / 1e6 or None, "MB") as progress,
                partial.open(mode) as stream,
            ):
                progress.advance(start / 1e6)
                for part in parts:
                    stream.write(part)
                    progress.advance(len(part) / 1e6)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(partial) from error
            raise

    def _content(self, name: str) -> str:
        url = f"{self.url}{name}"
        return self.http.retry(lambda: self.http.content(url), url).decode(errors="replace")


def source_of(location: str, http: Eutils | None, library: Path) -> UpdateFileFolder | UpdateFileServer:
    """Return the server at a URL, or the folder at a path."""
    if http and "://" in location:
        return UpdateFileServer(f"{location.rstrip('/')}/", http, library / FETCHED)
    return UpdateFileFolder(Path(location).expanduser())


def apply_update_files(
    place: UpdateFileFolder | UpdateFileServer, update: LibraryUpdate, rejects: Rejects, begin: str | None = None
) -> None:
    """Apply, in order, every file that hasn't been applied yet; if `begin` is given, skip the files before it.

    Raises DataError if a file is damaged or a file number is missing. The next call resumes after the applied files.
    """
    if begin and not _NAME.fullmatch(begin):
        raise DataError(f"{begin!r} is not the name of an update file, such as pubmed26n1340.xml.gz.")
    library = update.library
    last = newest = max(library.files(), default="")
    for name in sorted(name for name in set(place.names()) if _NAME.fullmatch(name)):
        if name < (begin or "") or name <= newest:
            continue
        _refuse_gap(last, name, begin)
        md5 = place.md5(name)
        file, before = place.file(name, md5), update.counts.copy()
        with Progress(f"Applying {name}", file.stat().st_size / 1e6, "MB") as progress, library.transaction():
            update.all(pubmed_articles.pubmed_of_file(file, rejects, progress))
            library.reject(rejects.taken())
            library.applied(name, md5, dict(update.counts - before))
        if isinstance(place, UpdateFileServer):
            file.unlink()
        last = name


def _refuse_gap(before: str, name: str, begin: str | None) -> None:
    """Raise DataError if a file is missing between the files `before` and `name` of the same year."""
    current, last = _NAME.fullmatch(name), _NAME.fullmatch(before)
    if current is None or last is None or current[1] != last[1] or name == begin:
        return
    number, least = int(current[2]), int(last[2]) + 1
    if number > least:
        missing = f"pubmed{current[1]}n{least:0{len(current[2])}}.xml.gz"
        raise DataError(
            f"{missing} is missing: the last file applied is {before}, and the next one available is {name}. Files "
            f"are applied in order, so download the missing file, or continue without it: --first-file {name}."
        )


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _md5_in(text: str, source: str) -> str:
    """Return the MD5 in "MD5(pubmed26n1340.xml.gz)= 0123..." or "0123...  pubmed26n1340.xml.gz". Raises DataError."""
    found = _MD5.findall(text)
    if len(found) != 1:
        raise DataError(f"{source}: contains no MD5 ({text.strip()[:60]!r}). Download it again.")
    return str(found[0]).lower()
