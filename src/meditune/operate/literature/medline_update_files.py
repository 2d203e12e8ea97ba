"""MEDLINE's update files, each applied once and in order, out of a folder or from a server.

NLM puts out a file a day with new, revised and deleted citations, `pubmedYYnNNNN.xml.gz`, and beside it its MD5
(https://www.nlm.nih.gov/databases/download/pubmed_medline.html). They must be loaded in the order of their numbers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urljoin

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import read_text
from meditune.operate.literature.article_library import Library, LibraryUpdate
from meditune.operate.literature.pubmed_client import RateLimitedClient, download
from meditune.progress import Progress
from meditune.retrieve.documents import pubmed_articles

URL = "https://ftp.ncbi.nlm.nih.gov/pubmed/updatefiles/"
FETCHED = "fetched"
"""In the library's folder: update files that aren't applied yet"""
_NAME = re.compile(r"pubmed(\d\d)n(\d{4,6})\.xml\.gz")
_LINK = re.compile(r"""href\s*=\s*["']([^"'#?]+)["']""", re.IGNORECASE)
_MD5 = re.compile(r"\b([0-9a-fA-F]{32})\b")


class Place(Protocol):
    """Where update files are."""

    def names(self) -> list[str]:
        """The names of all files there. Raises DataError where it can't be looked at."""

    def md5(self, name: str) -> str:
        """What is published as a file's MD5. Raises DataError without one."""

    def file(self, name: str, md5: str) -> Path:
        """The file on this machine, with that MD5. Raises DataError where it has another one."""

    def done(self, name: str) -> None:
        """Let go of a file that was applied."""


@dataclass(frozen=True)
class Folder:
    """Files that somebody else fetches into a folder."""

    path: Path

    def names(self) -> list[str]:
        """The names of all files there."""
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder. Name the one with PubMed's update files, or a server's.")
        names = [each.name for each in self.path.iterdir()]
        if not any(map(_NAME.fullmatch, names)):
            raise DataError(
                f"{self.path}: no file like pubmed26n1340.xml.gz in it. Is it the right folder, and mounted?"
            )
        return names

    def md5(self, name: str) -> str:
        """What is published as a file's MD5."""
        beside = self.path / f"{name}.md5"
        if not beside.is_file():
            raise DataError(
                f"{self.path / name}: no {beside.name} beside it, by which it could be checked. Fetch that too."
            )
        return _md5_in(read_text(beside), str(beside))

    def file(self, name: str, md5: str) -> Path:
        """The file, with that MD5."""
        found = self.path / name
        with found.open("rb") as stream:
            is_this = hashlib.file_digest(stream, "md5").hexdigest()
        if is_this != md5:
            raise DataError(
                f"{found}: its MD5 is {is_this}, and {md5} was published: it isn't whole, or not what was meant. Fetch "
                "it again. The files before it are applied."
            )
        return found

    def done(self, name: str) -> None:
        """Nothing: the folder is its owner's."""


@dataclass(frozen=True)
class Server:
    """Files that are fetched from a server whose listing is a page with links."""

    url: str
    http: RateLimitedClient
    fetched: Path

    def names(self) -> list[str]:
        """The names of all files there."""
        page = self._content("")
        names = [unquote(each).rpartition("/")[2] for each in _LINK.findall(page)]
        if not any(map(_NAME.fullmatch, names)):
            raise DataError(f"{self._base}: no link to a file like pubmed26n1340.xml.gz there. Is the address right?")
        return names

    def md5(self, name: str) -> str:
        """What is published as a file's MD5."""
        return _md5_in(self._content(f"{name}.md5"), f"{self._base}{name}.md5")

    def file(self, name: str, md5: str) -> Path:
        """The file, fetched, with that MD5."""
        return download(self.http, f"{self._base}{name}", self.fetched / name, md5)

    def done(self, name: str) -> None:
        """Remove what was fetched."""
        (self.fetched / name).unlink(missing_ok=True)

    @property
    def _base(self) -> str:
        return self.url.rstrip("/") + "/"

    def _content(self, name: str) -> str:
        url = urljoin(self._base, name)
        return self.http.until_it_works(lambda: self.http.content(url), url).decode(errors="replace")


@dataclass
class UpdateFileImport:
    """One update's dealings with update files."""

    library: Library
    place: Place
    applying: LibraryUpdate
    rejects: Rejects

    def all(self, begin: str | None = None) -> list[str]:
        """Apply every file that isn't applied yet, from `begin` on if given; their names.

        Raises DataError at a file that is damaged or missing in the row of numbers. What was applied stays so, and the
        same call goes on behind it.
        """
        applied = self.library.files()
        there = sorted(name for name in set(self.place.names()) if _NAME.fullmatch(name))
        if begin and not _NAME.fullmatch(begin):
            raise DataError(f"{begin!r} is no update file's name. Write it like pubmed26n1340.xml.gz.")
        newest = max(applied, default="")
        taken: list[str] = []
        for name in there:
            if name < (begin or "") or name <= newest:
                continue
            _refuse_gap(max([*applied, *taken], default=""), name, begin)
            self._apply(name, self.place.md5(name))
            taken.append(name)
        return taken

    def _apply(self, name: str, md5: str) -> None:
        file = self.place.file(name, md5)
        before = self.applying.counts.copy()
        size = file.stat().st_size / 1e6
        with Progress(f"Applying {name}", size, "MB") as progress, self.library.together():
            self.applying.all(pubmed_articles.pubmed_of_file(file, self.rejects, progress))
            counts = self.applying.counts - before
            self.library.reject(self.rejects.taken())
            self.library.applied(name, md5, dict(counts))
        self.place.done(name)


def _refuse_gap(before: str, name: str, begin: str | None) -> None:
    """Raise DataError where a file is missing between the last one and this one, of the same year."""
    here, last = _NAME.fullmatch(name), _NAME.fullmatch(before)
    if here is None or last is None or here[1] != last[1] or name == begin:
        return
    number, least = int(here[2]), int(last[2]) + 1
    if number > least:
        missing = f"pubmed{here[1]}n{least:0{len(here[2])}}.xml.gz"
        raise DataError(
            f"{missing} is missing: {before} is the last one that was applied, and {name} the next one there. Files "
            f"are applied in order, so fetch it, or go on without it: --first {name}."
        )


def _md5_in(text: str, where: str) -> str:
    """The digest in "MD5(pubmed26n1340.xml.gz)= 0123..." or "0123...  pubmed26n1340.xml.gz". Raises DataError."""
    found = _MD5.findall(text)
    if len(found) != 1:
        raise DataError(f"{where}: no MD5 in it ({text.strip()[:60]!r}). Fetch it again.")
    return str(found[0]).lower()
