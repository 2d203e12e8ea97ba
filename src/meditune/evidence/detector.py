"""The detector: which sentences of an answer its sources bear out, how surely, and what in them stands against it.

No model reads here. It is seen which words, numbers, names, negations and directions the sources share with a sentence,
not what is meant; so a claim that is told in quite other words scores low, and a false one in the source's words is
seen only where a number, a negation or a direction gives it away.

What there is to see of a sentence beside its sources: shares of words, mismatches, and where they are.

Each mismatch is a feature for the score and, where it can be pointed at, a span.

An answer's sentences and its sources, made ready for comparing.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from math import exp, log
from statistics import fmean
from typing import Literal

from meditune.evidence import calibration
from meditune.evidence.quantities import Number, Rate, is_supported_number, numbers, rates, shares
from meditune.evidence.words import (
    NEGATIVE,
    NULL_FINDING,
    Name,
    Token,
    defined,
    directions,
    information_weight,
    initials,
    names,
    rarity,
    stem,
    tokens,
)
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
                self.weights[token.stem] = max(self.weights.get(token.stem, 0.0), information_weight(token.text))
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
        said = [token for token in self.tokens if not token.is_number and information_weight(token.text)]
        before = [token for token in said if token.end <= start][-WINDOW:]
        after = [token for token in said if token.start >= end][:WINDOW]
        return {token.stem: information_weight(token.text) for token in (*before, *after)}


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


SpanKind = Literal["number", "unit", "name", "negation", "direction", "unsupported"]
CONTRADICTIONS: frozenset[SpanKind] = frozenset(("unit", "negation", "direction"))
"""Kinds of spans of which the sources say something else; number and name aren't among them, being only missing"""
FOLLOWS = 0.75
"""A sentence of which this share of words stands in a source's sentence in that order follows it word by word."""
LIKE = 0.6
"""A source's sentence is compared word by word where it has this share of the words, weighted."""
NEAR = 0.4
"""Two places tell of the same thing where this share of the words around one is around the other, weighted."""
SHORT = 8
"""A sentence of fewer words isn't likelier to be true for that."""
CLEAR = 0.5
"""Another place is clearly meant where its surroundings are alike by this much more."""


@dataclass(frozen=True)
class Span:
    """A place in a text that its sources don't bear out."""

    start: int
    end: int
    kind: SpanKind
    why: str
    source: str = ""
    """The sources' sentence that says something else there, if one was found."""


@dataclass
class Evidence:
    """Of one sentence: features for the score, spans (positions in the sentence), and the likest sentence."""

    features: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    likest: str = ""

    @property
    def follows(self) -> bool:
        """Whether it follows a source's sentence word by word."""
        return self.features["in_order"] >= FOLLOWS


def evidence(sentence: Sentence, sources: Sources) -> Evidence:
    """What speaks for and against a sentence."""
    found = Evidence()
    likest = max(sources.sentences, key=lambda each: sentence.share_in(each.weights), default=None)
    found.likest = likest.text if likest else ""
    _words(sentence, likest, sources, found)
    _numbers(sentence, sources, found)
    _names(sentence, sources, found)
    _negation(sentence, sources, found)
    _directions(sentence, sources, found)
    _rates(sentence, sources, found)
    _word_by_word(sentence, likest, found)
    return found


def _words(sentence: Sentence, likest: Sentence | None, sources: Sources, found: Evidence) -> None:
    """Weighted shares of its words: in all sources, in the likest sentence, in the question."""
    features = found.features
    features["known"] = sentence.share_in(sources.known)
    features["best"] = sentence.share_in(likest.weights) if likest else 0.0
    features["known_below_20"] = max(0.0, 0.2 - features["known"])
    features["known_below_40"] = max(0.0, 0.4 - features["known"])
    features["known_below_60"] = max(0.0, 0.6 - features["known"])
    features["best_below_20"] = max(0.0, 0.2 - features["best"])
    features["question_below_20"] = max(0.0, 0.2 - sentence.share_in(sources.question.weights))
    features["length"] = log(max(SHORT, len(sentence.tokens)))


def _numbers(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    missing = units = elsewhere = 0.0
    rates = [
        rate for rate in sentence.rates if rate.times and any(rate.agrees(each) for each, _, _ in sources.rates_about)
    ]
    for number in sentence.numbers:
        if any(rate.start <= number.start < rate.end for rate in rates):
            continue  # twice a day is every 12 hours; _rates sees whether of the same thing
        said = sentence.text[number.start : number.end]
        here = sentence.about(number.start, number.end)
        same = max((alike(here, there) for _, there in _places(sources, number, agreeing=True)), default=0.0)
        place, other = max(
            ((each, alike(here, there)) for each, there in _places(sources, number, agreeing=False)),
            key=lambda pair: pair[1],
            default=("", 0.0),
        )
        place = place if other >= NEAR else ""
        if is_supported_number(number, sources.numbers):
            if here:
                elsewhere += max(0.0, other - same) + 0.3 * (1 - same)
            if here and other - same > CLEAR:
                why = f"The sources say {said} of something else, and another number here."
                found.spans.append(Span(number.start, number.end, "number", why, place))
        elif any(number.same_value(each) and number.clashes(each) for each in sources.numbers):
            units += 1
            why = f"The sources have the number of {said} with another unit."
            found.spans.append(Span(number.start, number.end, "unit", why, place))
        else:
            missing += 1
            found.spans.append(Span(number.start, number.end, "number", f"No source has {said}.", place))
    found.features |= {
        "numbers_missing": min(missing, 2.0),
        "units": min(units, 1.0),
        "numbers_elsewhere": min(elsewhere, 2.0),
    }


def _places(sources: Sources, number: Number, agreeing: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Sentences of the sources with a number that bears this one out, or doesn't, and the words around that number."""
    for each, theirs, about in sources.numbers_about:
        if number.agrees(theirs) is agreeing:
            yield each.text, about


def _names(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    missing = rare = rarest = 0.0
    named = {name.start: name for name in names(sentence.text)}
    for token in sentence.tokens:
        if token.is_number or token.stem in sources.known:
            continue
        name = named.get(token.start)
        if name is None:
            much = rarity(token.text) if information_weight(token.text) > 0.1 else 0.0
            rarest, rare = max(rarest, much), rare + much**4
        elif not sources.has_name(name):
            missing += 1
            why = f"No source has the {name.kind} {name.text}."
            found.spans.append(Span(token.start, token.end, "name", why))
    found.features |= {"names": min(missing, 3.0), "rare": min(rare, 3.0), "rarest": rarest}
    found.features["rare_among_unknown"] = found.features["rare"] * (1 - found.features["known"])


def _negation(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    """Whether sentences with these words, some of them, deny something or find nothing as this one does."""
    denying, affirming = (
        max((sentence.share_in(each.weights) for each in sources.sentences if each.finds_nothing is said), default=0.0)
        for said in (True, False)
    )
    found.features["negated"] = float(sentence.negated)
    found.features["denies_against"] = float(sentence.finds_nothing) * max(0.0, affirming - denying)


def _directions(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    turned = unseen = against = 0.0
    for word in directions(sentence.text):
        here = sentence.about(word.start, word.end)
        same = opposite = 0.0
        place = ""
        for said, each, there in sources.directions_about:
            much = alike(here, there)
            if said == word.said:
                same = max(same, much)
            elif said == word.opposite and much > opposite:
                opposite, place = much, each.text
        clear = opposite >= NEAR and opposite - same > CLEAR / 2
        if not word.only_turned:
            unseen += word.said not in sources.known
        if clear or not word.only_turned:
            against += max(0.0, opposite - same)
        if clear:
            turned += 1
            why = f"A source says the opposite of “{sentence.text[word.start : word.end]}” about this."
            if not _marked(found, word.start, word.end):
                found.spans.append(Span(word.start, word.end, "direction", why, place))
    found.features |= {
        "directions_turned": min(turned, 2.0),
        "directions_unseen": min(unseen, 2.0),
        "directions_against": min(against, 2.0),
    }


def _word_by_word(sentence: Sentence, likest: Sentence | None, found: Evidence) -> None:
    """Where a sentence follows a source's: what stands in other words' place, and whether one denies the other."""
    features = found.features
    features |= dict.fromkeys(("in_order", "negation_turned", "number_replaced", "replaced", "inserted"), 0.0)
    if likest is None or features["best"] < LIKE:
        return
    features["number_replaced"] = features["units"]
    matcher = SequenceMatcher(None, sentence.stems, likest.stems, autojunk=False)
    features["in_order"] = sum(block.size for block in matcher.get_matching_blocks()) / max(1, len(sentence.stems))
    if sentence.negated != likest.negated:
        features["negation_turned"] = features["best"] * features["in_order"]
        said = NEGATIVE.search(sentence.text)
        start, end = said.span() if said else (0, len(sentence.text))
        why = "The source doesn't deny this." if said else "The source denies this."
        if found.follows:
            found.spans.append(Span(start, end, "negation", why, likest.text))
    for tag, start, end, first, last in matcher.get_opcodes():
        mine, theirs = sentence.tokens[start:end], likest.tokens[first:last]
        said_most = max((information_weight(token.text) for token in mine if not token.is_number), default=0.0)
        if tag == "replace":
            both_numbers = any(token.is_number for token in mine) and any(token.is_number for token in theirs)
            features["number_replaced"] += both_numbers
            if both_numbers and found.follows:
                _other_number(mine, theirs, likest, found)
            features["replaced"] += said_most * any(
                information_weight(each.text) for each in theirs if not each.is_number
            )
        elif tag == "delete":
            features["inserted"] += said_most


def _rates(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    """How often something is done, where the sources say another rate of it."""
    for rate in sentence.rates:
        here = sentence.about(rate.start, rate.end)
        same = other = 0.0
        place = ""
        for theirs, each, there in sources.rates_about:
            much = alike(here, there)
            if rate.agrees(theirs):
                same = max(same, much)
            elif much > other:
                other, place = much, each.text
        if other >= NEAR and other - same > (CLEAR if same else CLEAR / 2):
            found.features["units"] = 1.0
            if not _marked(found, rate.start, rate.end):
                why = f"The sources say another rate than “{sentence.text[rate.start : rate.end]}” of this."
                found.spans.append(Span(rate.start, rate.end, "unit", why, place))


def _marked(found: Evidence, start: int, end: int) -> bool:
    """Whether a span is there already."""
    return any(span.start < end and span.end > start for span in found.spans)


def _other_number(mine: Sequence[Token], theirs: Sequence[Token], likest: Sentence, found: Evidence) -> None:
    """A span for numbers that stand where the source has others, unless they have one already."""
    said = [token for token in mine if token.is_number]
    start, end = said[0].start, said[-1].end
    if not _marked(found, start, end):
        instead = ", ".join(token.text for token in theirs if token.is_number)
        found.spans.append(Span(start, end, "number", f"The source has {instead} here.", likest.text))


BROKEN_OFF = 30
"""Words from which on an answer that ends without a full stop is taken to be broken off"""
MOST = 12.0
"""Log-odds of a sentence, either way, beyond which nothing is learnt from it"""


@dataclass(frozen=True)
class SentenceVerdict:
    """One sentence of an answer."""

    start: int
    end: int
    score: float
    """The calibrated probability that the sources bear it out."""
    spans: tuple[Span, ...]
    """Positions in the answer"""

    @property
    def supported(self) -> bool:
        """Whether the score is above the one that a tenth or fewer of true sentences fall below."""
        return self.score >= calibration.SENTENCE


@dataclass(frozen=True)
class Verdict:
    """A whole answer."""

    score: float | None
    """The calibrated probability that the sources bear out all of it; None without a sentence to judge."""
    sentences: tuple[SentenceVerdict, ...]

    @property
    def faithful(self) -> bool:
        """Whether the score is above the one that a tenth or fewer of true answers fall below; True without one."""
        return self.score is None or self.score >= calibration.ANSWER

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of all sentences."""
        return tuple(span for each in self.sentences for span in each.spans)


def detect(answer: str, sources: Sources) -> Verdict:
    """Judge an answer. The scores' base rate is that of the set they were fitted on, half of it unfaithful."""
    judged = tuple(_judged(text, start, sources) for start, text in placed(_ended(answer)))
    if not judged:
        return Verdict(None, ())
    return Verdict(_sigmoid(answer_logit([_logit(each.score) for each in judged])), judged)


def placed(answer: str) -> Iterator[tuple[int, str]]:
    """The sentences of an answer that have a word or number, and where they start; a line's end ends one, too."""
    start = 0
    for line in answer.splitlines():
        for text in sentences(line):
            start = answer.index(text, start)
            if any(char.isalnum() for char in text):
                yield start, text
            start += len(text)


def _ended(answer: str) -> str:
    """The answer without its last word, where it is so long that it was probably broken off within that word."""
    whole = answer.rstrip()
    if whole and whole[-1].isalnum() and whole.count(" ") >= BROKEN_OFF:
        return whole.rpartition(" ")[0]
    return answer


def sentence_logit(found: Evidence) -> float:
    """The log-odds that the sources bear a sentence out, from -MOST to MOST."""
    form = calibration.FOLLOWING if found.follows else calibration.PARAPHRASING
    logit = sum(value * found.features.get(name, 1.0) for name, value in form.items())
    return max(-MOST, min(MOST, logit))


def answer_features(logits: list[float]) -> dict[str, float]:
    """What an answer's log-odds are made of, from those of its sentences."""
    return {
        "lowest": min(logits),
        "mean": fmean(logits),
        "sentences": log(len(logits)),
        "soft_lowest": log(fmean(exp(-each) for each in logits)),
    }


def answer_logit(logits: list[float]) -> float:
    """The log-odds that the sources bear out all of an answer."""
    form, features = calibration.WHOLE, answer_features(logits)
    return sum(value * features.get(name, 1.0) for name, value in form.items())


def _judged(text: str, start: int, sources: Sources) -> SentenceVerdict:
    found = evidence(Sentence(text), sources)
    score = _sigmoid(sentence_logit(found))
    spans = found.spans
    if not spans and score < calibration.SENTENCE:
        likest = found.likest if found.features["best"] > 0.2 else ""
        spans = [Span(0, len(text), "unsupported", _why(found), likest)]
    moved = (replace(span, start=start + span.start, end=start + span.end) for span in spans)
    return SentenceVerdict(start, start + len(text), score, tuple(sorted(moved, key=lambda span: span.start)))


def _why(found: Evidence) -> str:
    share = f"{100 * found.features['known']:.0f} %"
    if found.features["known"] < 0.6:
        return f"Few of its words are in the sources ({share}, by weight)."
    return f"Its words are in the sources ({share}, by weight), but no sentence of theirs says this with them."


def _sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))


def _logit(share: float) -> float:
    return log(share / (1 - share))
