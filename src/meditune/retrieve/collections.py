"""What an index is built from, as the command line or a recipe names it."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from meditune.data import locate
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.retrieve.passages import articles, files, library, medquad, mimic, pubmed
from meditune.retrieve.passages.passage import Document

NAMED = {
    "medquad": medquad.read,
    medquad.JUDGED: medquad.read_judged,
    "pubmedqa": pubmed.read_contexts,
    "mimic": mimic.read,
}
"""Collections that `--source` knows by name"""
_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Collection:
    """One source of documents."""

    kind: str
    """A name of `NAMED`, "documents", "pubmed" or "library" """
    path: str = ""
    """Where it is; empty where `locate` finds it"""
    name: str = ""
    """By which searches may be narrowed to it; the kind unless given"""

    @property
    def source(self) -> str:
        """Its passages' `source`."""
        return self.name or self.kind

    @property
    def adds_only(self) -> bool:
        """Whether what it doesn't hold may stay in the index: PubMed's files, and changes of a library, are parts."""
        return self.kind in (articles.SOURCE, library.KIND)

    def as_dict(self) -> dict[str, str]:
        """For the manifest."""
        return asdict(self)


@dataclass
class Reading:
    """Documents being read, with what was left out and what was withdrawn on the way."""

    collections: Sequence[Collection]
    rejects: Rejects = field(default_factory=Rejects)
    withdrawn: set[str] = field(default_factory=set)
    """Ids of documents that PubMed's files or a library take back"""
    since: int = 0
    """Of libraries, only what a later change has touched is read"""
    asked: Sequence[Collection] = ()
    """Libraries that are asked only for what they take back"""

    def documents(self) -> Iterator[Document]:
        """Those of all collections in turn. Raises DataError where one can't be found.

        Libraries come last: what they say of an article, that it is retracted for instance, is the newest.
        """
        for collection in sorted(self.collections, key=lambda each: each.kind == library.KIND):
            yield from self._documents(collection)
        for collection in self.asked:
            deque(library.read(Path(collection.path), self.withdrawn), maxlen=0)

    def _documents(self, collection: Collection) -> Iterator[Document]:
        if collection.kind == files.SOURCE:
            return files.read(Path(collection.path).expanduser(), self.rejects, collection.source)
        if collection.kind == articles.SOURCE:
            return pubmed.read(Path(collection.path).expanduser(), self.rejects, self.withdrawn)
        if collection.kind == library.KIND:
            return library.read(Path(collection.path), self.withdrawn, self.since)
        return NAMED[collection.kind](found(collection), self.rejects)


def named(text: str) -> Collection:
    """`NAME` or `NAME=PATH` of `--source`. Raises DataError where there is no such source."""
    kind, _, path = text.partition("=")
    if kind not in NAMED:
        raise DataError(
            f"No source for an index is called {kind!r}. There are {', '.join(NAMED)}; for your own files use "
            "--documents FOLDER, for PubMed's XML --pubmed FILE."
        )
    return Collection(kind, str(Path(path).expanduser().resolve()) if path else "")


def of_recipe(name_or_path: str) -> list[Collection]:
    """The sources of a recipe's data that can be indexed. Raises DataError where there are none."""
    from meditune.recipes.loading import load_recipe

    sources = load_recipe(name_or_path).recipe.data.sources
    chosen = [named(f"{source.name}={source.path or ''}") for source in sources if source.name in NAMED]
    if not chosen:
        raise DataError(
            f"{name_or_path}: none of its sources ({', '.join(source.name for source in sources)}) can be indexed; "
            f"those that can are {', '.join(NAMED)}."
        )
    return chosen


def documents(text: str) -> Collection:
    """`FOLDER` or `NAME=FOLDER` of `--documents`. Raises DataError where the name isn't one."""
    name, separator, path = text.partition("=")
    if separator and not Path(text).exists():
        if not _NAME.fullmatch(name) or name in (*NAMED, articles.SOURCE):
            raise DataError(
                f"--documents {text}: {name!r} can't name a collection. Use up to 64 letters, digits, dots, dashes and "
                f"underscores, and none of {', '.join((*NAMED, articles.SOURCE))}."
            )
        return Collection(files.SOURCE, str(Path(path).expanduser().resolve()), name)
    return Collection(files.SOURCE, str(Path(text).expanduser().resolve()))


def pubmed_files(text: str) -> Collection:
    """The file or folder of `--pubmed`."""
    return Collection(articles.SOURCE, str(Path(text).expanduser().resolve()))


def library_in(folder: Path) -> Collection:
    """The library that `meditune update` keeps in a folder; its passages are PubMed's."""
    return Collection(library.KIND, str(folder.expanduser().resolve()), articles.SOURCE)


def found(collection: Collection) -> Path:
    """Where a named collection is. Raises DataError where it isn't anywhere."""
    if collection.kind == medquad.JUDGED:
        return _judged(collection)
    return locate.locate(collection.kind, collection.path or None)


def _judged(collection: Collection) -> Path:
    data = os.environ.get(locate.DATA_VARIABLE)
    if collection.path or data:
        return Path(collection.path or Path(str(data)).expanduser() / medquad.JUDGED)
    raise DataError(
        f"No data for {medquad.JUDGED!r}: name the folder with --source {medquad.JUDGED}=FOLDER, or put it into the "
        f"folder that {locate.DATA_VARIABLE} names."
    )
