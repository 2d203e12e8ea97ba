"""What an index is: `index.json`, which names the table and its version, and says what is in it and what made it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any

from meditune import __version__
from meditune.errors import DataError, ModelError
from meditune.retrieve import tables
from meditune.retrieve.collections import Collection
from meditune.retrieve.embedders import Identity
from meditune.retrieve.place import MANIFEST, Place

TABLE = "passages-"
"""... and a number: the name of a table"""


@dataclass(frozen=True)
class Manifest:
    """The keys of `index.json`; readers of other programs may rely on them."""

    format: int
    table: str
    version: int
    """The table's version that is in use"""
    passages: int
    documents: int
    content: str
    """SHA-256 over all passages' ids and digests, in order of id"""
    embedding: dict[str, Any]
    """`name`, `dimension`, `space` (a hash of the weights)"""
    sources: dict[str, dict[str, Any]]
    """For each: `passages`, `documents`, `licences`, `restricted`"""
    collections: list[dict[str, str]]
    """What an update without arguments reads again"""
    created: str
    updated: str
    versions: dict[str, str]
    knowledge: str = ""
    """The file of what the reranker knows; empty in an index of before"""
    words: str = ""
    """The file of what BM25 is searched by; empty in a large index, and in one of before, where LanceDB is asked"""

    @property
    def restricted(self) -> list[str]:
        """Sources whose licence forbids passing them on."""
        return [name for name, source in self.sources.items() if source["restricted"]]

    def check_embedder(self, identity: Identity, place: Place) -> None:
        """Raise ModelError where questions would be embedded otherwise than the index was."""
        mine = (self.embedding["space"], self.embedding["dimension"])
        if mine != (identity.space, identity.dimension):
            raise ModelError(
                f"{place.name} was built with the embedding model {self.embedding['name']} "
                f"({self.embedding['dimension']} numbers a vector), and {identity.name} ({identity.dimension}) isn't "
                "the same: their vectors can't be compared. Use that model (--embedding), or build the index anew "
                "with this one (--replace)."
            )

    def write(self, place: Place) -> None:
        """Switch the index to this."""
        place.write(MANIFEST, asdict(self))


def read(place: Place) -> Manifest:
    """That of the index. Raises DataError where there is none, or one that this version can't read."""
    value = place.read(MANIFEST)
    if value is None:
        raise DataError(f"{place.name}: no index here. Build one with `meditune index build -o {place.name}`.")
    if value.get("format") != tables.FORMAT:
        raise DataError(
            f"{place.name}: an index in format {value.get('format')!r}, and this version of Meditune reads "
            f"{tables.FORMAT}. Build it again with --replace."
        )
    try:
        return Manifest(**value)
    except TypeError as error:
        raise DataError(
            f"{place.name}/{MANIFEST} is damaged ({error}). Build the index again with --replace."
        ) from error


def tables_of(place: Place, there: Sequence[str]) -> tuple[str | None, str]:
    """The table in use (None without one), and the one that a build fills: the next, which may have been begun.

    Where the manifest can't be read, a table that isn't among `there` is filled, since any of them may be damaged.
    """
    try:
        value = place.read(MANIFEST)
    except DataError:
        return None, _after(there)
    if value is None:
        return None, _after([])
    name = str(value.get("table"))
    return name, _after([name])


def _after(names: Sequence[str]) -> str:
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(TABLE + r"(\d{1,9})", name))]
    return f"{TABLE}{max(numbers, default=0) + 1}"


def describe(
    table: Any, name: str, collections: Sequence[Collection], identity: Identity, before: Manifest | None
) -> Manifest:
    """The manifest of the table as it is now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    digests: list[str] = []
    sources: dict[str, dict[str, Any]] = {}
    documents: dict[str, set[bytes]] = {}
    for batch in tables.scan(table, ["id", "document", "source", "licence", "restricted", tables.DIGEST]):
        for row in batch.to_pylist():
            digests.append(f"{row['id']} {row[tables.DIGEST]}")
            said = sources.setdefault(
                row["source"], {"passages": 0, "documents": 0, "licences": set(), "restricted": False}
            )
            said["passages"] += 1
            said["licences"].add(row["licence"])
            said["restricted"] |= row["restricted"]
            documents.setdefault(row["source"], set()).add(
                hashlib.blake2b(row["document"].encode(), digest_size=8).digest()
            )
    for source, said in sources.items():
        said["documents"] = len(documents[source])
        # PubMed's publishers each word their claim; a few show what kinds there are.
        said["licences"] = sorted(said["licences"])[:20]
    return Manifest(
        format=tables.FORMAT,
        table=name,
        version=table.version,
        passages=len(digests),
        documents=sum(said["documents"] for said in sources.values()),
        content=hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
        embedding=before.embedding if before else identity.as_dict(),
        sources=dict(sorted(sources.items())),
        collections=[each.as_dict() for each in collections],
        created=before.created if before else now,
        updated=now,
        versions={"meditune": __version__, "lancedb": installed("lancedb")},
    )
