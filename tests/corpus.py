"""A small corpus and a tiny embedding function, for the tests of index and search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meditune.models.sentence_encoder import EncoderIdentity, SentenceEncoder, Vectors

DIMENSION = 64
TEXTS = {
    "asthma.md": "# Asthma\n\nA disease of the airways.\n\n## Treatment\n\nInhaled steroids help most people.\n",
    "gout.md": "# Gout\n\nUric acid crystals inflame a joint.\n\n## Treatment\n\nColchicine calms an attack.\n",
    "lice.txt": "Head lice are insects. Combing with a fine comb removes them.",
    "burn.html": "<title>Burns</title><h2>First aid</h2><p>Cool the burn with running water.</p>",
}


def words_as_vectors(texts: Sequence[str]) -> Vectors:
    """Each word adds to a place of its own, so texts with common words are near."""
    made = np.zeros((len(texts), DIMENSION), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            made[row, int(hashlib.md5(word.strip(".,?").encode()).hexdigest(), 16) % DIMENSION] += 1.0
    return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-9)


TINY = SentenceEncoder(EncoderIdentity("tiny", DIMENSION, "tiny-1"), words_as_vectors)


class Counting:
    """The tiny encoder, which counts what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.encoder = SentenceEncoder(TINY.identity, self._embed)

    @property
    def passages(self) -> list[str]:
        """Those that aren't titles, which stand alone in a line."""
        return [text for text in self.texts if "\n" in text]

    def _embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        return words_as_vectors(texts)


def folder(path: Path, texts: dict[str, str] = TEXTS) -> Path:
    """The texts as files."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    return path


def article(pmid: int, title: str, abstract: str, year: str = "2020") -> str:
    """One PubmedArticle."""
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><Journal><JournalIssue><PubDate>'
        f"<Year>{year}</Year><Month>Feb</Month></PubDate></JournalIssue></Journal><ArticleTitle>{title}</ArticleTitle>"
        f'<Abstract><AbstractText Label="RESULTS">{abstract}</AbstractText></Abstract></Article></MedlineCitation>'
        "</PubmedArticle>"
    )


def articles(path: Path, *parts: str) -> Path:
    """A file of PubMed's."""
    path.write_text(f'<?xml version="1.0"?><PubmedArticleSet>{"".join(parts)}</PubmedArticleSet>', encoding="utf-8")
    return path
