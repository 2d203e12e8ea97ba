"""An answer's sentences and its sources, made ready for comparing."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from functools import cached_property

from meditune.faithfulness.names import Name, defined, initials
from meditune.faithfulness.numbers import numbers, shares
from meditune.faithfulness.rates import Rate, rates
from meditune.faithfulness.wording import NEGATIVE, NULL_FINDING, directions
from meditune.faithfulness.words import stem, tokens, weight
from meditune.text import sentences

WINDOW = 4
"""Words with a meaning on either side of a word that tell what it is about"""


class Sentence:
    """A sentence with its words, their weights and its numbers."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.numbers = numbers(text)
        self.weights: dict[str, float] = {}
        for token in self.tokens:
            if not token.is_number:
                self.weights[token.stem] = max(self.weights.get(token.stem, 0.0), weight(token.text))
        self.total = sum(self.weights.values())

    @cached_property
    def rates(self) -> list[Rate]:
        """How often things are done, in order."""
        return rates(self.text, self.numbers)

    @cached_property
    def stems(self) -> list[str]:
        """Of every token, in order."""
        return [token.stem for token in self.tokens]

    @cached_property
    def negated(self) -> bool:
        """Whether it denies something: an odd number of negations."""
        return len(NEGATIVE.findall(self.text)) % 2 == 1

    @cached_property
    def finds_nothing(self) -> bool:
        """Whether it denies something, or says that there is no difference, effect or association."""
        return self.negated or NULL_FINDING.search(self.text) is not None

    def share_in(self, known: Container[str]) -> float:
        """The weighted share of these words that are among the known stems."""
        # Summed in this sentence's order: a set's order differs from process to process, and with it the last digits.
        return sum(value for each, value in self.weights.items() if each in known) / self.total if self.total else 0.0

    def about(self, start: int, end: int) -> dict[str, float]:
        """Stems and weights of the words around a place in it."""
        said = [token for token in self.tokens if not token.is_number and weight(token.text)]
        before = [token for token in said if token.end <= start][-WINDOW:]
        after = [token for token in said if token.start >= end][:WINDOW]
        return {token.stem: weight(token.text) for token in (*before, *after)}


class Sources:
    """What an answer may rest on; made once for all answers to it."""

    def __init__(self, passages: Iterable[str], question: str = "") -> None:
        """The question's words, names and numbers count as known: an answer may repeat them."""
        texts = list(passages)
        self.sentences = [Sentence(each) for text in texts for each in sentences(text)]
        self.question = Sentence(question)
        whole = " ".join((*texts, question))
        both = (*self.sentences, self.question)
        self.known = {stem for each in both for stem in each.weights}
        self.numbers = [number for each in both for number in each.numbers] + shares(whole)
        self.numbers_about = [
            (each, number, each.about(number.start, number.end)) for each in self.sentences for number in each.numbers
        ]
        self.directions_about = [
            (direction.said, each, each.about(direction.start, direction.end))
            for each in self.sentences
            for direction in directions(each.text)
        ]
        self.rates_about = [
            (rate, each, each.about(rate.start, rate.end)) for each in self.sentences for rate in each.rates
        ]
        self._initials = initials(whole)
        self._introduced = {each.casefold() for each in defined(whole)}

    def has_name(self, name: Name) -> bool:
        """Whether the sources have the name; of an abbreviation, also words with its letters as initials in a row."""
        if stem(name.text) in self.known or name.text.casefold() in self._introduced:
            return True
        letters = re.sub(r"[^a-z]", "", name.text.lower().removesuffix("s"))
        return name.kind == "abbreviation" and len(letters) > 1 and letters in self._initials


def alike(mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The weighted share of the words around one place that are around another, too."""
    total = sum(mine.values())
    return sum(value for each, value in mine.items() if each in theirs) / total if total else 0.0
