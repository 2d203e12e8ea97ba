"""The passages for an answer: searching, packing into the prompt, and rejecting passages too far from the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meditune.assistant.writers import Writer
from meditune.errors import DataError
from meditune.models.catalogue import SENTENCE_MODEL
from meditune.retrieve.context_packing import Chooser, PackedPassage, pack
from meditune.retrieve.hybrid_search import SearchResult
from meditune.retrieve.index import Index

PASSAGES = 5
"""The number of passages to retrieve"""
CONTEXT_TOKENS = 768
"""The maximum number of tokens of passages and question"""
MIN_COSINE = {SENTENCE_MODEL.files["model.safetensors"]: 0.55}
"""By embedding space: the minimum cosine similarity of the nearest passage for a question to be answered"""


@dataclass(frozen=True)
class Retrieved:
    """The passages for an answer, or the reason why the question can't be answered from the index."""

    passages: tuple[PackedPassage, ...]
    """The passages that the model reads, the best first"""
    refusal: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retriever:
    """An index whose passages a writer reads."""

    index: Index
    writer: Writer
    max_tokens: int
    """The maximum number of tokens of a prompt"""
    nearest: float | None = None
    """The minimum cosine similarity of the nearest passage; None: the value measured for the embedding model"""

    def retrieve(
        self,
        question: str,
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> Retrieved:
        """Return the best k passages, only from `sources` if given, or why they are too far from the question.

        `choose` selects and orders k of the best 3 * k hits. Raises DataError if the question is empty or too long, or
        if passages must not be shown to the model.
        """
        refuse_restricted(self.index, sources, self.writer.third_party)
        searched = self.index.search(question, 3 * k if choose else k, sources=sources)
        found = replace(searched, hits=tuple(choose(searched.hits, k))) if choose else searched
        if self.writer.count(question, ()) >= self.max_tokens:
            raise DataError(
                f"The question is too long: with its passages, it must fit into {self.max_tokens} tokens. Shorten it."
            )
        packing = pack(
            found.hits,
            self.writer.form,
            self.writer.special_tokens,
            lambda texts: self.writer.count(question, texts),
            self.max_tokens,
        )
        remarks = (*found.remarks, *packing.remarks, *self._unmeasured())
        return Retrieved(packing.passages, self._refusal(searched, packing.passages), remarks)

    def _unmeasured(self) -> tuple[str, ...]:
        """Return a remark if no similarity limit was measured for the index's embedding model."""
        if self.nearest is not None or self.index.encoder.identity.space in MIN_COSINE:
            return ()
        return (
            f"No similarity limit was measured for the embedding model {self.index.encoder.identity.name}. Answers "
            "are withheld only if the passages don't support them, not if the passages are far from the question.",
        )

    def _refusal(self, result: SearchResult, passages: Sequence[PackedPassage]) -> str:
        if not passages:
            return "I can't answer this from the index: no relevant passages were found. Try asking in other words."
        least = MIN_COSINE.get(self.index.encoder.identity.space, -1.0) if self.nearest is None else self.nearest
        # A passage without a cosine isn't among the nearest in vector search, so it is further away than those.
        nearest = max((hit.meaning for hit in result.hits if hit.meaning is not None), default=-1.0)
        if nearest < least:
            return (
                "I can't answer this from the index: the passages found are too far from the question to base an "
                "answer on. Try asking in other words, or ask an expert."
            )
        return ""


def refuse_restricted(index: Index, sources: Sequence[str] | None, third_party: str) -> None:
    """Raise DataError if a third party would get passages whose licence forbids it."""
    restricted = [name for name in index.manifest.restricted if not sources or name in sources]
    if third_party and restricted:
        free = [name for name in index.manifest.sources if name not in index.manifest.restricted]
        others = f", or search only other sources: --source-filter {free[0]}" if free else ""
        raise DataError(
            f"Passages from {', '.join(restricted)} can't be sent to {third_party}: their licence forbids passing "
            f"them to third parties. Use a model that runs on this machine{others}."
        )
