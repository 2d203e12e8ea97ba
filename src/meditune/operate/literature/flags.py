"""Answers that rest on what was retracted since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meditune.data import pubmedqa
from meditune.files import numbered_jsonl
from meditune.retrieve.passages.articles import SOURCE
from meditune.store.answers import Answers
from meditune.store.opening import Place, exists, open_store

FILE = "retracted.jsonl"
FLAGGED = "flagged.jsonl"


@dataclass(frozen=True)
class Flag:
    """An answer that cited a retracted article."""

    answer: str
    """Its id"""
    passage: str
    """The id of the passage that it cited, as it was stored"""
    pmid: str
    when: str
    """When the library learnt of the retraction"""
    notice: str
    """The notice's PubMed id, or empty"""

    @property
    def sentence(self) -> str:
        """For whoever looks after the answers."""
        by = f" (notice: PMID {self.notice})" if self.notice else ""
        return f"Answer {self.answer} cites PMID {self.pmid}, which is known as retracted since {self.when}{by}."


def flag(answers: Iterable[tuple[str, Sequence[str]]], retracted: Mapping[str, Mapping[str, str]]) -> Iterator[Flag]:
    """Each citation of a retracted article in stored answers, in their order.

    `answers` are pairs of an answer's id and the ids of the passages that it cited ("pubmed:PMID#NUMBER"); `retracted`
    is that of `read`. The same article among PubMedQA's contexts counts too.
    """
    for answer, passages in answers:
        for passage in dict.fromkeys(passages):
            source, _, place = passage.partition(":")
            found = retracted.get(place.partition("#")[0]) if source in (SOURCE, pubmedqa.SOURCE) else None
            if found is not None:
                yield Flag(answer, passage, found["pmid"], found["when"], found["notice"])


def of_store(store: Place) -> Iterator[tuple[str, Sequence[str]]]:
    """The answers that a server keeps, with the passages that they were given; none where it has kept none yet.

    Raises DataError where the store can't be used.
    """
    if not exists(store):
        return
    for row in Answers(open_store(store)).exported():
        yield str(row["id"]), row["facts"].get("passages") or []


def read(library: Path) -> dict[str, dict[str, str]]:
    """PubMed id -> its line in a library's retracted.jsonl. Raises DataError where there is none."""
    return {str(row["pmid"]): row for _, row in numbered_jsonl(library / FILE)}
