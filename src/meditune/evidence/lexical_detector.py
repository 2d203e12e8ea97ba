"""The detector of unsupported claims, which scores how strongly the sources support each sentence of an answer.

The detector uses no model. It compares the words, numbers, names, negations and directions (such as "increase") of a
sentence with those of the sources, but not their meanings. A correct claim in different words therefore scores low, and
a false claim in the sources' words is detected only if a number, a negation or a direction differs. Each mismatch
changes a feature of the score, and some mismatches are also reported as spans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from meditune.evidence.lexical_features import (
    DEFINED,
    NEGATIVE,
    NULL_FINDING,
    STANDS_FOR,
    Name,
    Token,
    directions,
    names,
    rarity,
    stem,
    tokens,
)
from meditune.evidence.quantities import Number, is_supported_number, numbers, rates, shares
from meditune.files import read_json
from meditune.text import sentences

CALIBRATION: dict[str, Any] = read_json(Path(__file__).parent / "calibration.json")
"""Fitted weights for the log-odds of answers and sentences, and the thresholds below which these count as unsupported;
sentences that follow a source sentence almost word for word have their own weights.
`python benchmarks/faithfulness.py --fit` writes them."""
_YES_NO = re.compile(r"\W*(?:yes|no)\s*[,.;:!–—-]\s+", re.IGNORECASE)
"""The word that answers a yes/no question, before the sentence that says the same in full"""
_LIST_MARKER = re.compile(r"\s*(?:[-*•–]|\(?\d{1,2}[.)]|\(?[a-z]\))(?:\s+|$)")
WINDOW = 4
"""Number of content words on either side of a position that describe its context"""


class Sentence:
    """A sentence with its words, word weights, numbers and rates."""

    def __init__(self, text: str) -> None:
        self.text = text
        answered = _YES_NO.match(text)
        self.start = answered.end() if answered else 0
        """Start of the statement; a leading "No," neither negates the statement nor counts as one of its words"""
        self.tokens = [token for token in tokens(text) if token.start >= self.start]
        self.numbers = numbers(text)
        self.weights: dict[str, float] = {}
        for token in self.tokens:
            if not token.is_number:
                self.weights[token.stem] = max(self.weights.get(token.stem, 0.0), token.weight)
        self.total = sum(self.weights.values())
        self.rates = rates(text, self.numbers)
        self.stems = [token.stem for token in self.tokens]
        self.negated = len(NEGATIVE.findall(text, self.start)) % 2 == 1
        """True if the sentence has an odd number of negations"""
        self.finds_nothing = self.negated or NULL_FINDING.search(text, self.start) is not None
        """True if the sentence is negated or reports no difference, effect or association"""

    def share_in(self, known: Container[str]) -> float:
        """Return the weighted share of the sentence's words whose stems are in `known`."""
        # Summed in the sentence's order: the order of a set differs between processes and would change the last digits.
        return sum(value for each, value in self.weights.items() if each in known) / self.total if self.total else 0.0

    def numbers_in(self, part: Sequence[Token]) -> list[Number]:
        """Return the numbers with a token in a part of the sentence."""
        return [each for each in self.numbers if any(each.start <= token.start < each.end for token in part)]

    def about(self, start: int, end: int) -> dict[str, float]:
        """Return the stems and weights of the WINDOW content words before `start` and after `end`."""
        content = [token for token in self.tokens if not token.is_number and token.weight]
        before = [token for token in content if token.end <= start][-WINDOW:]
        after = [token for token in content if token.start >= end][:WINDOW]
        return {token.stem: token.weight for token in (*before, *after)}


class Sources:
    """The sources of an answer, prepared once for all answers that use them."""

    def __init__(self, passages: Iterable[str], question: str = "") -> None:
        """Prepare the passages. Words, names and numbers of the question count as known: an answer may repeat them."""
        texts = list(passages)
        self.sentences = [Sentence(each) for text in texts for each in sentences(text)]
        self.question = Sentence(question)
        joined = " ".join((*texts, question))
        both = (*self.sentences, self.question)
        self.known = {token.stem for each in both for token in each.tokens if token.of or not token.is_number}
        self.numbers = [number for each in both for number in each.numbers] + shares(joined)
        self.numbers_about = self._places(lambda each: each.numbers)
        self.directions_about = self._places(lambda each: directions(each.text))
        self.rates_about = self._places(lambda each: each.rates)
        self._rare = {token.text.lower() for each in both for token in each.tokens if _is_rare(token.text)}
        self._initials = [initials for each in both for initials in _initials(each.tokens)]
        self._phrases = [f" {' '.join(each.stems)} " for each in both]
        self._introduced = {match[1].casefold() for match in DEFINED.finditer(joined)}

    def _places(self, find: Callable[[Sentence], Iterable[Any]]) -> list[tuple[Any, Sentence, dict[str, float]]]:
        """Return each match of `find` in the sources' sentences, with its sentence and the words around the match."""
        return [(found, each, each.about(found.start, found.end)) for each in self.sentences for found in find(each)]

    def has_name(self, name: Name) -> bool:
        """Return whether the sources contain the name or the words that it abbreviates.

        The initials of consecutive words in a sentence count if the abbreviation has at least three letters.
        """
        if stem(name.text) in self.known or name.text.casefold() in self._introduced:
            return True
        if name.kind != "abbreviation":
            return False
        letters = re.sub(r"[^a-z]", "", name.text.lower().removesuffix("s"))
        meanings = (f" {' '.join(words)} " for words in STANDS_FOR.get(letters, ()))
        if any(words in phrase for words in meanings for phrase in self._phrases):
            return True
        return len(letters) > 2 and any(letters in initials for initials in self._initials)

    def nearly_spelled(self, word: str) -> str:
        """Return the rare word in the sources that `word` misspells with one or two typos; empty if there is none."""
        from rapidfuzz.distance import OSA

        if not _is_rare(word):
            return ""
        low, most = _american(word.lower()), 1 if len(word) < TWO_TYPO_LETTERS else 2
        distances = {each: OSA.distance(low, _american(each), score_cutoff=most) for each in sorted(self._rare)}
        near = min(distances, key=lambda each: distances[each], default="")
        return near if near and 0 < distances[near] <= most and not _same_root(_american(low), _american(near)) else ""


def _initials(words: Sequence[Token]) -> tuple[str, str]:
    """Return the initials of all words in lowercase, and those of the content words."""
    return (
        "".join(token.text[0].lower() for token in words),
        "".join(token.text[0].lower() for token in words if token.weight),
    )


def _is_rare(word: str) -> bool:
    """Return whether a word is long and uncommon, which is true of most names of drugs and diseases."""
    return len(word) >= MIN_TYPO_LETTERS and word.isalpha() and rarity(word) == 1


def _same_root(one: str, other: str) -> bool:
    """Return whether two words differ only in their endings, such as a noun and its plural or its adjective."""
    from rapidfuzz.distance import Prefix

    return Prefix.similarity(one, other) >= min(len(one), len(other)) - SUFFIX_LETTERS


def _american(word: str) -> str:
    """Return a lowercase word in a normalized spelling, the same for American and British English."""
    return re.sub("ae|oe", "e", word).replace("our", "or").replace("ph", "f").replace("is", "iz").replace("ys", "yz")


def _nearest(
    context: Mapping[str, float], places: Iterable[tuple[bool | None, Sentence, dict[str, float]]]
) -> tuple[float, float, str]:
    """Return the similarities of the nearest agreeing and disagreeing positions, and the disagreeing one's sentence.

    `places` contains for each position whether it agrees (None: ignore the position), the sentence it is in, and the
    words around it. A position's similarity is the weighted share of the words in `context` that also occur around it.
    """
    total = sum(context.values())
    same = other = 0.0
    sentence = ""
    for agrees, each, about in places:
        shared = sum(value for word, value in context.items() if word in about)
        similarity = shared / total if total else 0.0
        if agrees:
            same = max(same, similarity)
        elif agrees is not None and similarity > other:
            other, sentence = similarity, each.text
    return same, other, sentence


SpanKind = Literal["number", "unit", "name", "negation", "direction", "unsupported"]
CONTRADICTIONS: frozenset[SpanKind] = frozenset(("unit", "negation", "direction"))
"""Kinds of spans that contradict the sources; a number or name with a span is usually just missing from them"""
MIN_ORDERED_SHARE = 0.75
"""A sentence follows a source sentence almost word for word if at least this share of its words is there in the same
order."""
MIN_ALIGNED_SHARE = 0.6
"""Minimum weighted share of a sentence's words in a source sentence for a word-by-word comparison of both"""
MIN_CONTEXT_SIMILARITY = 0.4
"""A position is about the same thing as another one if at least this weighted share of its context occurs there too."""
MIN_TYPO_LETTERS, TWO_TYPO_LETTERS = 7, 9
"""Minimum number of letters of a word that is checked for one typo, and of a word that is checked for two"""
SUFFIX_LETTERS = 3
"""Number of final letters that are ignored when two words are compared as forms of the same word"""
SHORT = 8
"""Minimum of the length feature: shorter sentences count as having this many words."""
CLEAR_MARGIN = 0.5
"""A position is clearly the better match if its similarity is higher by more than this."""


@dataclass(frozen=True)
class Span:
    """A part of a text that its sources don't support."""

    start: int
    end: int
    kind: SpanKind
    why: str
    source: str = ""
    """The source sentence that says something different; empty if none was found."""


@dataclass
class Evidence:
    """The evidence on one sentence: features for the score, unsupported spans, and the most similar source sentence."""

    features: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    closest_source: str = ""

    @property
    def follows(self) -> bool:
        """Return whether the sentence follows a source sentence almost word for word."""
        return self.features["in_order"] >= MIN_ORDERED_SHARE


def evidence(sentence: Sentence, sources: Sources) -> Evidence:
    """Return the evidence for and against a sentence."""
    found = Evidence()
    closest = max(sources.sentences, key=lambda each: sentence.share_in(each.weights), default=None)
    found.closest_source = closest.text if closest else ""
    _words(sentence, closest, sources, found)
    _numbers(sentence, sources, found)
    _names(sentence, sources, found)
    _negation(sentence, sources, found)
    _directions(sentence, sources, found)
    _rates(sentence, sources, found)
    _word_by_word(sentence, closest, found)
    return found


def _words(sentence: Sentence, closest: Sentence | None, sources: Sources, found: Evidence) -> None:
    """Add the weighted shares of the sentence's words in all sources, in the closest sentence and in the question."""
    features = found.features
    features["known"] = sentence.share_in(sources.known)
    features["best"] = sentence.share_in(closest.weights) if closest else 0.0
    for percent in (20, 40, 60):
        features[f"known_below_{percent}"] = max(0.0, percent / 100 - features["known"])
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
            continue  # part of a rate of the sources ("every 12 hours" for "twice a day"), which _rates checks
        text = sentence.text[number.start : number.end]
        context = sentence.about(number.start, number.end)
        same, other, place = _nearest(
            context, ((number.agrees(each), at, about) for each, at, about in sources.numbers_about)
        )
        place = place if other >= MIN_CONTEXT_SIMILARITY else ""
        if is_supported_number(number, sources.numbers):
            if context:
                elsewhere += max(0.0, other - same) + 0.3 * (1 - same)
            if context and other - same > CLEAR_MARGIN:
                why = f"The sources give {text} for something else, and a different number here."
                found.spans.append(Span(number.start, number.end, "number", why, place))
        elif any(number.same_value(each) and number.has_another_unit_than(each) for each in sources.numbers):
            units += 1
            why = f"The sources have the number in {text} with a different unit."
            found.spans.append(Span(number.start, number.end, "unit", why, place))
        else:
            missing += 1
            found.spans.append(Span(number.start, number.end, "number", f"No source contains {text}.", place))
    found.features |= {
        "numbers_missing": min(missing, 2.0),
        "units": min(units, 1.0),
        "numbers_elsewhere": min(elsewhere, 2.0),
    }


def _names(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    """Add the features and spans for names.

    `wrong_names` counts the missing names that have no paraphrase: drugs and misspelled names. No regression uses it.
    """
    missing = wrong = rare = rarest = 0.0
    named = {name.start: name for name in names(sentence.text)}
    for token in sentence.tokens:
        if token.is_number or token.stem in sources.known:
            continue
        name = named.get(token.start)
        near = sources.nearly_spelled(token.text) if name is None else ""
        if token.of:
            missing += 1
            why = f"No source contains {token.of} {token.text}."
            found.spans.append(Span(token.start, token.end, "name", why))
        elif near:
            missing, wrong = missing + 1, wrong + 1
            why = f"No source contains {token.text}; the sources have {near}."
            found.spans.append(Span(token.start, token.end, "name", why))
        elif name is None:
            weight = rarity(token.text) if token.weight > 0.1 else 0.0
            rarest, rare = max(rarest, weight), rare + weight**4
        elif not sources.has_name(name):
            missing, wrong = missing + 1, wrong + (name.kind == "drug")
            why = f"No source contains the {name.kind} {name.text}."
            found.spans.append(Span(token.start, token.end, "name", why))
    found.features |= {"names": min(missing, 3.0), "rare": min(rare, 3.0), "rarest": rarest, "wrong_names": wrong}
    found.features["rare_among_unknown"] = found.features["rare"] * (1 - found.features["known"])


def _negation(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    """Add the features for negation.

    `denies_against` is how much more a sentence that denies something resembles affirming source sentences than denying
    ones.
    """
    denying, affirming = (
        max(
            (sentence.share_in(each.weights) for each in sources.sentences if each.finds_nothing is denies), default=0.0
        )
        for denies in (True, False)
    )
    found.features["negated"] = float(sentence.negated)
    found.features["denies_against"] = float(sentence.finds_nothing) * max(0.0, affirming - denying)


def _directions(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    turned = unseen = against = 0.0
    for word in directions(sentence.text):
        context = sentence.about(word.start, word.end)
        turns = {word.direction: True, word.opposite: False}
        same, opposite, place = _nearest(
            context, ((turns.get(each.direction), at, about) for each, at, about in sources.directions_about)
        )
        clear = opposite >= MIN_CONTEXT_SIMILARITY and opposite - same > CLEAR_MARGIN / 2
        if not word.only_turned:
            unseen += word.direction not in sources.known
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


def _word_by_word(sentence: Sentence, closest: Sentence | None, found: Evidence) -> None:
    """Add features and spans for words, numbers and negations that differ from the most similar source sentence."""
    features = found.features
    features |= dict.fromkeys(("in_order", "negation_turned", "number_replaced", "replaced", "inserted"), 0.0)
    if closest is None or features["best"] < MIN_ALIGNED_SHARE:
        return
    features["number_replaced"] = features["units"]
    matcher = SequenceMatcher(None, sentence.stems, closest.stems, autojunk=False)
    features["in_order"] = sum(block.size for block in matcher.get_matching_blocks()) / max(1, len(sentence.stems))
    if sentence.negated != closest.negated:
        features["negation_turned"] = features["best"] * features["in_order"]
        negation = NEGATIVE.search(sentence.text, sentence.start)
        start, end = negation.span() if negation else (0, len(sentence.text))
        why = "The source doesn't deny this." if negation else "The source denies this."
        if found.follows:
            found.spans.append(Span(start, end, "negation", why, closest.text))
    for tag, start, end, first, last in matcher.get_opcodes():
        own, source = sentence.tokens[start:end], closest.tokens[first:last]
        said_most = max((token.weight for token in own if not token.is_number), default=0.0)
        if tag == "replace":
            numbers_here = [token for token in own if token.is_number]
            both_numbers = numbers_here and any(token.is_number for token in source)
            if both_numbers and _agree(sentence.numbers_in(own), closest.numbers_in(source)):
                both_numbers = False
            features["number_replaced"] += bool(both_numbers)
            if both_numbers and found.follows and not _marked(found, numbers_here[0].start, numbers_here[-1].end):
                instead = ", ".join(token.text for token in source if token.is_number)
                why = f"The source has {instead} here."
                found.spans.append(Span(numbers_here[0].start, numbers_here[-1].end, "number", why, closest.text))
            features["replaced"] += said_most * any(each.weight for each in source if not each.is_number)
        elif tag == "delete":
            features["inserted"] += said_most


def _agree(stated: Sequence[Number], known: Sequence[Number]) -> bool:
    """Return whether there are stated numbers, and the known numbers support all of them."""
    return bool(stated) and all(is_supported_number(number, known) for number in stated)


def _rates(sentence: Sentence, sources: Sources, found: Evidence) -> None:
    """Add a span for each rate that differs from the sources' rate for the same thing."""
    for rate in sentence.rates:
        context = sentence.about(rate.start, rate.end)
        same, other, place = _nearest(
            context, ((rate.agrees(each), at, about) for each, at, about in sources.rates_about)
        )
        if other >= MIN_CONTEXT_SIMILARITY and other - same > (CLEAR_MARGIN if same else CLEAR_MARGIN / 2):
            found.features["units"] = 1.0
            if not _marked(found, rate.start, rate.end):
                why = f"The sources give a different rate for this than “{sentence.text[rate.start : rate.end]}”."
                found.spans.append(Span(rate.start, rate.end, "unit", why, place))


def _marked(found: Evidence, start: int, end: int) -> bool:
    """Return whether a span overlaps the characters from `start` to `end`."""
    return any(span.start < end and span.end > start for span in found.spans)


MIN_CUT_OFF_WORDS = 30
"""Minimum number of words at which an answer that ends in a letter or digit counts as cut off"""
MAX_LOG_ODDS = 12.0
"""Largest absolute log-odds of a sentence; larger values are clipped"""


@dataclass(frozen=True)
class SentenceVerdict:
    """The verdict on one sentence of an answer."""

    start: int
    end: int
    score: float
    """The calibrated probability that the sources support the sentence."""
    spans: tuple[Span, ...]
    """The unsupported parts of the sentence, with positions in the answer"""

    @property
    def supported(self) -> bool:
        """Return whether the score reaches the threshold, which at most a tenth of true sentences miss."""
        return bool(self.score >= CALIBRATION["sentence_threshold"])


@dataclass(frozen=True)
class Verdict:
    """The verdict on a complete answer."""

    score: float | None
    """The calibrated probability that the sources support all of the answer; None if it has no sentence to judge."""
    sentences: tuple[SentenceVerdict, ...]

    @property
    def faithful(self) -> bool:
        """Return True if the score is None or reaches the threshold, which at most a tenth of true answers miss."""
        return self.score is None or bool(self.score >= CALIBRATION["answer_threshold"])

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of all sentences."""
        return tuple(span for each in self.sentences for span in each.spans)


def detect(answer: str, sources: Sources) -> Verdict:
    """Return the verdict on an answer; scores are fitted with equal weight of faithful and unfaithful answers."""
    judged = tuple(_judged(text, start, sources) for start, text in placed(_ended(answer)))
    if not judged:
        return Verdict(None, ())
    return Verdict(_sigmoid(answer_logit([log(each.score / (1 - each.score)) for each in judged])), judged)


def placed(answer: str) -> Iterator[tuple[int, str]]:
    """Yield the start and the text of each sentence with a word or number; a line break also ends a sentence.

    The number or bullet of a list item doesn't count as a sentence or a part of one, but "12." as a whole answer does.
    """
    line_start, in_list = 0, False
    for line in answer.splitlines(keepends=True):
        start = line_start
        marker = _LIST_MARKER.match(line)
        if marker and (marker.end() < len(line) or in_list):
            start, in_list = line_start + marker.end(), True
        found = sentences(answer[start : line_start + len(line)])
        for number, text in enumerate(found, start=1):
            start = answer.index(text, start)
            is_marker = number < len(found) and _LIST_MARKER.fullmatch(text)
            if any(char.isalnum() for char in text) and not is_marker:
                yield start, text
            start += len(text)
        line_start += len(line)


def _ended(answer: str) -> str:
    """Return the answer, dropping the last word if the answer was probably cut off in the middle of that word."""
    stripped = answer.rstrip()
    if stripped and stripped[-1].isalnum() and stripped.count(" ") >= MIN_CUT_OFF_WORDS:
        return stripped.rpartition(" ")[0]
    return answer


def sentence_logit(found: Evidence) -> float:
    """Return the log-odds that the sources support a sentence, from -MAX_LOG_ODDS to MAX_LOG_ODDS."""
    form: dict[str, float] = CALIBRATION["extractive_weights" if found.follows else "paraphrase_weights"]
    logit = sum(value * found.features.get(name, 1.0) for name, value in form.items())
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, logit))


def answer_features(logits: list[float]) -> dict[str, float]:
    """Return the features for an answer's log-odds, computed from the log-odds of its sentences."""
    return {
        "lowest": min(logits),
        "mean": fmean(logits),
        "sentences": log(len(logits)),
        "soft_lowest": log(fmean(exp(-each) for each in logits)),
    }


def answer_logit(logits: list[float]) -> float:
    """Return the log-odds that the sources support all of the answer, from the log-odds of its sentences."""
    features = answer_features(logits)
    form: dict[str, float] = CALIBRATION["answer_weights"]
    return sum(value * features.get(name, 1.0) for name, value in form.items())


def _judged(text: str, start: int, sources: Sources) -> SentenceVerdict:
    found = evidence(Sentence(text), sources)
    score = _sigmoid(sentence_logit(found))
    spans = found.spans
    if not spans and score < CALIBRATION["sentence_threshold"]:
        closest = found.closest_source if found.features["best"] > 0.2 else ""
        share = f"{100 * found.features['known']:.0f}%"
        why = f"Its words are in the sources ({share}, by weight), but no source sentence says this."
        if found.features["known"] < 0.6:
            why = f"Few of its words are in the sources ({share}, by weight)."
        spans = [Span(0, len(text), "unsupported", why, closest)]
    moved = (replace(span, start=start + span.start, end=start + span.end) for span in spans)
    return SentenceVerdict(start, start + len(text), score, tuple(sorted(moved, key=lambda span: span.start)))


def _sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
