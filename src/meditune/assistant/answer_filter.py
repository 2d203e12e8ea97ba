"""The checks of each sentence that a model generated, before anyone sees it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from meditune.assistant.events import Citation, Sentence
from meditune.evidence.lexical_detector import placed
from meditune.evidence.lexical_features import kind_of
from meditune.observability import span
from meditune.retrieve.citations import CheckedBy, Citer, Judge, Unjudged, stated_sentences, words_of
from meditune.retrieve.context_packing import PackedPassage
from meditune.retrieve.prompt_injection import is_instruction

Kept = Literal["amount", "order", "reassurance", "no source"]
"""The reason why a sentence isn't shown"""
REASONS: dict[Kept, str] = {
    "amount": "names an amount of a medicine that can't be verified here",
    "order": "isn't about health",
    "reassurance": "says that no help is needed, but no source says so",
    "no source": "isn't supported by any passage found",
}
_ONES = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
_TENS = (
    "(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?"
)
_LARGE = "(?:hundred|thousand|million|billion)"
_NUMBER = (
    rf"(?:\.?\d+(?:[.,/⁄]\d+)*(?:(?:[km]|\s[km](?! (?:every|each|per|an?|daily)\b)|[\s-]?{_LARGE})\b)?"
    rf"|(?:{_ONES}|{_TENS})(?: {_LARGE})?"
    rf"|half(?: an? {_LARGE})?|(?:a|one) (?:{_LARGE}|quarter|third)|(?:a )?couple|(?:a )?few|several)"
)
_RANGE = rf"(?:{_NUMBER}\s*[x×]\s*)?{_NUMBER}(?:\s*(?:-|–|to|or)\s*{_NUMBER})?"
_LAB = r"\s*/\s*(?:[mdµμ]?l|lit(?:er|re))\b"
"""The rest of the unit of a laboratory value, such as "/l" in "5 mmol/l" """
_UNIT = (
    r"(?:mgs?|mcgs?|[µμu]gs?|(?:micro|milli)?gram(?:me)?s?|gm?s?|mls?|cc|millilit(?:er|re)s?|meq"
    rf"|(?:ng|nanogram(?:me)?s?|m?u(?!\.\s?s\b))(?!{_LAB}| per (?:[md]?l\b|(?:milli|deci)?lit))"
    rf"|mmol(?!{_LAB}|\s*/\s*mol\b| per (?:mol\b|l\b|lit))"
    r"|i\.?u|(?:international )?units?|drops?|tablets?|tabs?|pills?|capsules?|caplets?|gelcaps?|lozenges?|pastilles?"
    r"|suppositor(?:y|ies)|pessar(?:y|ies)|sachets?"
    r"|packets?(?! of (?:crisps|chips|biscuits|cookies|sweets|candy|cigarettes|noodles|gum|nuts))"
    r"|amp(?:o?u)les?|vials?|inhalations?|puffs?|sprays?"
    r"|patch(?:es)?|injections?|enemas?|wafers?|gummies|applicatorfuls?|dropperfuls?"
    r"|doses?|(?:tea|table|dessert)?spoon(?:ful)?s?|spoonsful|tsps?|tbsps?)\b"
)
_BETWEEN = (
    r"(?:[\s-]+(?:of|an?|the|these|those|your|more|extra|regular|adult|small|large|whole|full|level|strength))*[\s-]*"
)
_HOW_OFTEN = (
    rf"(?:(?:every|each) (?:{_RANGE}|other)?[\s-]*(?:hours?|hrs?|h|days?|weeks?|morning|evening|night)\b"
    rf"|(?:once|twice|{_RANGE}\s*(?:times|[x×])) (?:daily|weekly|(?:an?|per|each|every) (?:day|week|night))\b)"
)
_AMOUNT = re.compile(
    rf"(?<![\w.,]){_RANGE}{_BETWEEN}(?:{_UNIT}|(?:pumps?|squirts?|syringes?)\b)|(?<![\w.,]){_RANGE},? {_HOW_OFTEN}"
    rf"|\b(?:take|taking|give|giving|swallow|use|inject|have|chew|insert|suck|add)\b[^.]{{0,30}}?\b(?:an?|another)\s+{_UNIT}"
    rf"|\b(?:an?|another)\s+{_UNIT}[^.]{{0,40}}?{_HOW_OFTEN}",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    rf"(?<![\w.,]){_RANGE}{_BETWEEN}(?<=[\s-])(?P<drug>[a-z]{{4,}})\b"
    r"(?! (?:users?|patients?|adults|children|people|trials?|studies|groups?|arms?|cohorts?)\b)",
    re.IGNORECASE,
)
_QUANTITY = re.compile(rf"\b(?:{_NUMBER}|twice|double|triple|half)\b|\d", re.IGNORECASE)
_DOSING = re.compile(
    r"\b(?:take[ns]?|taking|took|give|given|giving|swallow\w*|inject\w*|doses?|dosage|dosing|maximum|max|limit|at once"
    r"|at (?:bedtime|night)|in the (?:morning|evening)|(?:per|a|each|every|in (?:one|a|24)) (?:day|hours?)|daily)\b",
    re.IGNORECASE,
)
_PERCENT = rf"(?<![\w.,]){_RANGE}\s*(?:%|per ?cent\b)"
_STRENGTH = re.compile(
    rf"{_PERCENT}(?: \w+){{0,3}}? (?:solution|cream|ointment|gel|lotion|drops|shampoo|spray|foam|saline|glucose)\b",
    re.IGNORECASE,
)
_CONCENTRATION = re.compile(
    rf"\b(?:solutions?|creams?|ointments?|gels?|lotions?|drops|shampoos?|sprays?|foams?|saline|strengths?|concentration)"
    rf"(?: \w+){{0,2}} {_PERCENT}"
    r"(?! (?:of|in) (?:\w+ ){0,3}(?:people|patients|adults|children|babies|women|men|cases|users|those|all)\b)"
    rf"|{_PERCENT} (?P<drug>[a-z]{{4,}})|(?P<drug_before>\b[a-z]{{4,}}) {_PERCENT}",
    re.IGNORECASE,
)
"""A percentage beside a preparation or a word that may be a medicine, unless it is a share of people"""
_MARKUP = str.maketrans("’‘", "''", "*_`")
_OFTEN = re.compile(rf"\b{_HOW_OFTEN}", re.IGNORECASE)
_REASSURES = re.compile(
    r"\b(?:no (?:need|reason) (?:to|for)|(?:(?:do|does|will) not|(?:do|does|wo)n'?t) (?:need|require|have to)(?: to)?"
    r"|needn'?t|need not|(?:not|isn'?t) necessary (?:to|for))[^\w:]+"
    r"(?:(?!wait|delay|stop|hesitat|appointment|referral)\w+[^\w:]+){0,3}?(?:see|call|go|worry|ambulance|doctor|hospital|emergency|medical|treatment)\b"
    r"|\b(?:doctor|ambulance|hospital|medical (?:care|attention|help)) (?:is|are)(?: not|n'?t) (?:needed|necessary)\b"
    r"(?![^.]*\bunless\b)"
    r"|\b(?:not|\w+n'?t) (?:(?!always|just|only)\w+ )?(?:a medical|an) emergency\b"
    r"|\b(?:nothing (?:serious|to worry)|sleep it off|will go away on its own)\b",
    re.IGNORECASE,
)


def names_amount(sentence: str) -> bool:
    """Return whether a sentence names an amount of a medicine ("500 mg", "two aspirin") or a strength ("1% cream")."""
    plain = _plain(sentence)
    if _AMOUNT.search(plain) or _STRENGTH.search(plain):
        return True
    return any(kind_of(match["drug"]) == "drug" for match in _COUNTED.finditer(plain))


def _names_dose(sentence: str) -> bool:
    """Return whether a sentence could state a dose or how often to take it, even without a medicine or a unit."""
    plain = _plain(sentence)
    stated = _QUANTITY.search(plain) and _DOSING.search(plain)
    return names_amount(sentence) or bool(stated or _OFTEN.search(plain)) or _names_concentration(plain)


def _names_concentration(plain: str) -> bool:
    """Return whether a sentence states a percentage that can be the strength of a medicine."""
    for match in _CONCENTRATION.finditer(plain):
        beside = match["drug"] or match["drug_before"]
        if not beside or kind_of(beside) == "drug":
            return True
    return False


def _plain(sentence: str) -> str:
    """Return a sentence without Markdown's emphasis, and with plain apostrophes and digits."""
    return unicodedata.normalize("NFKC", sentence).translate(_MARKUP)


def withheld(sentence: str, supported: bool, searched: bool, no_amounts: bool) -> Kept | None:
    """Return why a sentence must not be shown; None if it may be shown.

    `supported`: a passage supports the sentence; `searched`: an index was searched; `no_amounts`: the user asked for a
    dose, so the answer must not name amounts.
    """
    if is_instruction(sentence):
        return "order"
    if (no_amounts and _names_dose(sentence)) or (names_amount(sentence) and not supported):
        return "amount"
    if _REASSURES.search(_plain(sentence)) and not supported:
        return "reassurance"
    return "no source" if searched and not supported else None


SUPPORTED_SHARE = 0.5
"""The minimum share of supported sentences; an answer with fewer is withheld"""


class SentenceChecker:
    """Checks a model's answer sentence by sentence during generation. A repeated sentence isn't checked again."""

    def __init__(
        self, question: str, passages: Sequence[PackedPassage] | None, no_amounts: bool, judge: Judge | None = None
    ) -> None:
        """Start checking an answer to the question from these passages (None without an index).

        `no_amounts` withholds doses.
        """
        self.text = ""
        self.repeats = 0
        """The number of sentences that repeat an earlier one"""
        self._citer = None if passages is None else Citer(passages, judge, question=question)
        self._no_amounts = no_amounts
        self._finished = 0
        self._checked: dict[str, Sentence] = {}
        """The words of a sentence -> the checked sentence"""

    def add(self, text: str) -> Iterator[Sentence]:
        """Add the next piece of text, and yield the sentences that it completes."""
        self.text += text
        finished = [sentence for _, sentence in placed(self.text)][:-1]
        for sentence in finished[self._finished :]:
            self._finished += 1
            if sentence.endswith("?"):
                continue
            if words_of(sentence) in self._checked:
                self.repeats += 1
                continue
            yield self._check(sentence)

    def rest(self) -> Iterator[Sentence]:
        """Yield the remaining sentences at the end of the answer, except an incomplete last sentence."""
        for sentence in stated_sentences(self.text):
            if words_of(sentence) not in self._checked:
                yield self._check(sentence)

    @property
    def unjudged(self) -> Counter[Unjudged]:
        """Return the numbers of sentences that the judge didn't check, by reason."""
        return self._citer.unjudged if self._citer else Counter()

    def refusal(self) -> str:
        """Return why the complete answer must be withheld; empty if enough of it is supported, or without an index."""
        if self._citer is None:
            return ""
        sentences = stated_sentences(self.text)
        supported = sum(self._checked[words_of(each)].supported for each in sentences)
        if not sentences:
            return "The model wrote no answer."
        if supported < SUPPORTED_SHARE * len(sentences):
            some = f"support {supported or 'none'} of the {len(sentences)} sentences that the model wrote"
            if len(sentences) == 1:
                some = "don't support the sentence that the model wrote"
            return f"I'd rather not answer: the retrieved passages {some}."
        return ""

    def _check(self, text: str) -> Sentence:
        citations: tuple[Citation, ...] = ()
        score = 0.0
        checked_by: CheckedBy | Literal[""] = ""
        if self._citer is not None:
            with span("check") as trace_span:
                support = self._citer.judge(text)
                trace_span.set_attribute("meditune.supported", bool(support.places))
            quotes = zip(support.places, support.words, strict=True)
            citations = tuple(Citation(place + 1, quote) for place, quote in quotes)
            score, checked_by = round(support.score, 4), support.checked_by
        supported = bool(citations)
        reason = withheld(text, supported, searched=self._citer is not None, no_amounts=self._no_amounts)
        why = REASONS[reason] if reason else ""
        sentence = Sentence(text, citations, supported, reason is None, why, score, checked_by)
        self._checked[words_of(text)] = sentence
        return sentence
