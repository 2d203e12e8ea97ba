"""A model's answer sentence by sentence while it is written: cited, checked, shown or kept back."""

from __future__ import annotations

from collections.abc import Iterator

from meditune.faithfulness.detect import placed
from meditune.retrieve.cited import CitedAnswer
from meditune.retrieve.citing import Citer, said_in
from meditune.serve.events import Citation, Sentence
from meditune.serve.safety.after import REASONS, kept_back
from meditune.serve.tracing import span


class Judging:
    """One answer on its way."""

    def __init__(self, begun: CitedAnswer | None, no_amounts: bool) -> None:
        """`begun` holds the passages, if any were searched; `no_amounts` leaves out sentences with a dose."""
        self.text = ""
        self.repeats = 0
        """Sentences that had been said before"""
        self._citer = Citer(begun.packed) if begun else None
        self._no_amounts = no_amounts
        self._taken = 0
        self._said: set[str] = set()

    def add(self, piece: str) -> Iterator[Sentence]:
        """What came next of the text, and the sentences that are finished by it."""
        self.text += piece
        finished = [text for _, text in placed(self.text)][:-1]
        for text in finished[self._taken :]:
            self._taken += 1
            if text.endswith("?"):
                continue
            if text in self._said:
                self.repeats += 1
                continue
            yield self._judged(text)

    def rest(self) -> Iterator[Sentence]:
        """The sentences that are left at the end; one that broke off isn't among them."""
        for text in said_in(self.text)[0]:
            if text not in self._said:
                yield self._judged(text)

    def _judged(self, text: str) -> Sentence:
        self._said.add(text)
        if self._citer is None:
            why = kept_back(text, supported=False, searched=False, no_amounts=self._no_amounts)
            return Sentence(text, (), False, why is None, REASONS[why] if why else "")
        with span("check") as made:
            borne = self._citer.judge(text)
            supported = bool(borne.places)
            made.set_attribute("meditune.supported", supported)
        why = kept_back(text, supported, searched=True, no_amounts=self._no_amounts)
        citations = tuple(Citation(place + 1, quote) for place, quote in zip(borne.places, borne.words, strict=True))
        return Sentence(text, citations, supported, why is None, REASONS[why] if why else "", round(borne.score, 4))
