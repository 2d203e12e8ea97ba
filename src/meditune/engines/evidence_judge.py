"""The evidence judge: a causal language model, tuned on claims, that decides whether passages support a statement.

The model is asked "Is it true that ...?". The probabilities of its answers yes, no and maybe are taken as those of
supported, refuted and unclear, after a correction that was fitted to development claims and is stored in `CLAIMS`.
Statements about the same passages share one pass over these passages. The model runs with torch, or as an OpenVINO
export without torch.

Evidence that doesn't fit into the prompt is read in several windows. For each window, the labels supported and refuted
get a score relative to unclear (a difference of logits). The highest score of each label, over all windows, counts. A
long statement is judged in parts. Its support is that of the least supported part, and its refutation that of the most
refuted part.

In evaluations (`EvidenceJudge.score`), a sentence is judged both alone and as a part of its answer, together with the
lexical detector.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from meditune.data.example import LABEL, LABELS, Example, Label, Passage
from meditune.engines.exported_model import EXPORT, read_exported_model
from meditune.engines.open_engine import exported_at
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.evidence import lexical_detector
from meditune.evidence.lexical_detector import Sentence, Sources, evidence, placed, sentence_logit
from meditune.evidence.support_model import (
    CLAIMS,
    LEXICAL_DETECTOR,
    ClaimCorrection,
    ClaimVerdict,
    Support,
    SupportQuestion,
    SupportScore,
    is_judge,
    load_correction,
    model_folder,
)
from meditune.progress import Progress
from meditune.prompts import Encoded, Encoder, load_format
from meditune.text import sentences

BATCH_TOKENS = 2048
FAILURES = (RuntimeError, IndexError)
"""The errors of torch and OpenVINO while a judge runs"""
JUDGED_SUPPORT = 0.85
"""Minimum probability of support with which a sentence of an answer may cite a passage. The judge's own threshold is
lower, because it was chosen to limit false alarms on true conclusions. With that threshold, about a third of the
sentences shown were unsupported (docs/experiments/faithfulness.md)."""
DOUBTED = -2.0
"""Log-odds of support below which the lexical detector's doubts count against a sentence. About 5% of the sentences in
authors' own conclusions are below this value."""
WRONG_NAME = 6.0
"""Penalty on a statement's log-odds of support if it has a misspelled word, or a drug that the sources don't mention.
Judges hardly notice such names."""
MAX_SUPPORT_WITH_WRONG_NAME = 0.25
"""Maximum probability of support for such a statement"""
UNCLEAR: Label = "not_enough_information"
BATCH_SENTENCES = 64
"""Number of sentences that are scored before the first score is returned"""


Evidence = tuple[str, ...]
"""The passages with which a claim is compared"""
Claim = tuple[str, Evidence]
"""A statement and the passages that may support it"""


class LabelModel(Protocol):
    """A model that computes logits for the labels of claims."""

    encoder: Encoder

    def logits(
        self, claims: Sequence[tuple[Encoded, Evidence]], wait_s: float = math.inf
    ) -> Iterator[tuple[Encoded, list[float]]]:
        """Yield each claim with the logits of its choices, in any order. Several threads may call this method.

        Raises TimeoutError if the model is busy with other claims for more than `wait_s` seconds.
        """


class EvidenceJudge:
    """A judge that decides whether passages support statements; it implements `evidence.support_model.Support`."""

    has_spans = False
    refutes = True
    citing_threshold = JUDGED_SUPPORT

    def __init__(self, model: LabelModel, correction: ClaimCorrection, name: str) -> None:
        """Prepare the judge; `name` is shown to users."""
        self.model, self.correction, self.name = model, correction, name
        self.threshold = correction.threshold

    def supports(
        self,
        statements: Sequence[str],
        passages: Sequence[str],
        wait_s: float = math.inf,
        question: str = "",  # noqa: ARG002
    ) -> list[ClaimVerdict]:
        """Return a verdict for each statement, in order. For texts longer than the prompt, see the module docstring.

        The judge doesn't read the `question` that the statements answer; some models of `SupportJudge` do.

        Raises TimeoutError if the judge is busy with other claims for more than `wait_s` seconds, and ModelError if it
        fails.
        """
        return self.verdicts([(statement, tuple(passages)) for statement in statements], wait_s)

    def verdicts(self, asked: Sequence[Claim], wait_s: float = math.inf) -> list[ClaimVerdict]:
        """Return a verdict for each statement and its passages, in order. Raises the same errors as `supports`."""
        return _verdicts(
            asked,
            lambda read: ((each["supported"], each["refuted"]) for each in self.probabilities(read, wait_s)),
        )

    def score(self, asked: Sequence[SupportQuestion]) -> Iterator[SupportScore]:
        """Yield the probabilities of support and refutation for each sentence of an answer, in order.

        A sentence can depend on the sentences around it. Therefore, its log-odds are averaged with those of the whole
        answer, unless the answer is too long to be judged at once. Because the judge overlooks many wrong numbers and
        sentences about other topics, strong doubts of the lexical detector lower the log-odds of support.
        """
        for start in range(0, len(asked), BATCH_SENTENCES):
            few = asked[start : start + BATCH_SENTENCES]
            texts = [(each.sentence, self._whole(each)) for each in few]
            pairs = zip(texts, few, strict=True)
            claims = list(dict.fromkeys((text, each.sources) for both, each in pairs for text in both))
            found = dict(zip(claims, self.probabilities(claims), strict=True))
            sources = {(each.sources, each.question): Sources(each.sources, each.question) for each in few}
            for (sentence, whole), each in zip(texts, few, strict=True):
                both = [found[text, each.sources] for text in (sentence, whole)]
                supported, refuted = (sum(_logit(one[label]) for one in both) / 2 for label in LABELS[:2])
                words = evidence(Sentence(sentence), sources[each.sources, each.question])
                doubts = min(0.0, sentence_logit(words) - DOUBTED) / 2
                support = _less_wrong_names(_sigmoid(supported + doubts), words)
                yield SupportScore(support, min(_sigmoid(refuted), 1 - support))

    def _whole(self, asked: SupportQuestion) -> str:
        """Return the sentence's answer, or the sentence itself if the answer has to be judged in parts."""
        answer = asked.answer.strip()
        return answer if len(_parts(self.model.encoder, answer)) == 1 else asked.sentence

    def probabilities(self, asked: Sequence[Claim], wait_s: float = math.inf) -> list[dict[str, float]]:
        """Return the probabilities of LABELS for each statement and its passages, in order.

        Raises TimeoutError and ModelError as `supports` does.
        """
        claims: list[tuple[Encoded, Evidence]] = []
        owners: list[int] = []
        encoder = self.model.encoder
        for number, (statement, passages) in enumerate(asked):
            for part in _parts(encoder, statement):
                for window in _windows(encoder, part, passages):
                    claims.append((encoder.supervised(_claim(str(len(owners)), part, window), "claim"), window))
                owners.append(number)
        strongest: dict[int, dict[str, float]] = {}
        for item, logits in self._logits(claims, wait_s):
            if not all(map(math.isfinite, logits)):
                raise ModelError(
                    f"The judge {self.name} computes logits that aren't finite; its weights may be damaged."
                )
            found = dict(zip(LABELS, logits, strict=True))
            relative: dict[str, float] = {label: value - found[UNCLEAR] for label, value in found.items()}
            before = strongest.get(int(item.id), relative)
            strongest[int(item.id)] = {label: max(value, before[label]) for label, value in relative.items()}
        result = [{"supported": 1.0, "refuted": 0.0} for _ in asked]
        for part_number, owner in enumerate(owners):
            shares, whole = self.correction.probabilities(strongest[part_number]), result[owner]
            whole["supported"] = min(whole["supported"], shares["supported"])
            whole["refuted"] = max(whole["refuted"], shares["refuted"])
        return [each | {UNCLEAR: max(0.0, 1 - each["supported"] - each["refuted"])} for each in result]

    def _logits(
        self, claims: Sequence[tuple[Encoded, Evidence]], wait_s: float
    ) -> Iterator[tuple[Encoded, list[float]]]:
        try:
            yield from self.model.logits(claims, wait_s)
        except FAILURES as error:
            raise ModelError(f"The judge {self.name} failed: {error}") from error


def least_supported(judge: Support, texts: Sequence[Claim], title: str) -> Iterator[SupportScore]:
    """Yield the score of each text's least supported sentence, as an evaluation does for an answer.

    `title` is shown beside the progress.
    """
    parts = [list(placed(text)) or [(0, text)] for text, _ in texts]
    asked = [
        SupportQuestion(passages, "", text, start, start + len(sentence))
        for (text, passages), places in zip(texts, parts, strict=True)
        for start, sentence in places
    ]
    with Progress(title, len(asked), "sentences") as progress:
        scores = judge.score(asked)
        for places in parts:
            found = [next(scores) for _ in places]
            progress.advance(len(found))
            yield min(found, key=lambda each: each.score)


def _less_wrong_names(supported: float, words: lexical_detector.Evidence) -> float:
    """Return the probability of support of a sentence, corrected if the sentence has a wrong name."""
    if not words.features["wrong_names"]:
        return supported
    return min(_sigmoid(_logit(supported) - WRONG_NAME), MAX_SUPPORT_WITH_WRONG_NAME)


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class TorchLabelModel:
    """A judge that runs with torch, in batches of many claims."""

    def __init__(self, loaded: Any, encoder: Encoder | None = None) -> None:
        """Use a loaded model (`models.load.LoadedModel`).

        Without an encoder, the model's own prompt format is used. Raises ModelError if it has none.
        """
        if encoder is None and loaded.form is None:
            raise ModelError(f"{loaded.name} has no prompt.json, so it wasn't trained on claims by Meditune.")
        self.loaded, self.encoder = loaded, encoder or loaded.encoder(loaded.form)
        # While a batch runs, the layers use faster matrix products, so only one batch may run at a time.
        self._lock = threading.Lock()

    def logits(
        self, claims: Sequence[tuple[Encoded, Evidence]], wait_s: float = math.inf
    ) -> Iterator[tuple[Encoded, list[float]]]:
        """See `LabelModel`. Adjacent claims with the same evidence share one pass over the evidence."""
        from meditune.models.forward import label_logits
        from meditune.models.inference import inference, tokens_per_pass
        from meditune.models.shared_prefix_batch import by_length, join

        rows = [join([item for item, _ in group]) for _, group in groupby(claims, key=lambda claim: claim[1])]
        loaded = self.loaded
        with _turn(self._lock, wait_s), inference(loaded.model):
            for indices in by_length(rows, tokens_per_pass(loaded.model, BATCH_TOKENS)):
                chosen = [rows[index] for index in indices]
                _, predicted = loaded.frozen.predict(loaded.model, chosen, loaded.pad_id, logits=False)
                items = [item for row in chosen for item in row.encoded]
                for item, hidden in zip(items, predicted.hidden, strict=True):
                    yield item, label_logits(loaded.model, hidden, item.choices).tolist()


class OpenvinoLabelModel:
    """A judge that runs as an OpenVINO export. It reads one claim at a time, and caches the most recent passages."""

    def __init__(self, folder: Path) -> None:
        """Open the export. Raises ModelError if it can't be used."""
        from meditune.engines.openvino_engine import Scorer

        form = load_format(folder)
        if form is None:
            raise ModelError(f"{folder} has no prompt.json. Export the judge again.")
        self.encoder = Encoder(PlainTokenizer(folder), form)
        self._scorer = Scorer(folder)
        self._lock = threading.Lock()

    def logits(
        self, claims: Sequence[tuple[Encoded, Evidence]], wait_s: float = math.inf
    ) -> Iterator[tuple[Encoded, list[float]]]:
        """See `LabelModel`."""
        latest = time.monotonic() + wait_s
        for item, _ in claims:
            with _turn(self._lock, latest - time.monotonic()):
                found = self._scorer.next_logits(item.prompt, item.choices)
            yield item, found


@contextmanager
def _turn(lock: threading.Lock, wait_s: float) -> Iterator[None]:
    """Hold the lock. Raises TimeoutError if it isn't free within `wait_s` seconds."""
    if not lock.acquire(timeout=min(max(wait_s, 0.0), threading.TIMEOUT_MAX)):
        raise TimeoutError("the judge is busy with other claims")
    try:
        yield
    finally:
        lock.release()


def load_judge(name: str) -> EvidenceJudge:
    """Return the judge in the folder of a run, a model or an OpenVINO export.

    If a run has an up-to-date OpenVINO export, the export is used.

    Raises ModelError if the folder contains no judge, or if the judge can't be used.
    """
    folder = model_folder(name)
    correction = load_correction(folder)
    if correction is None:
        raise ModelError(
            f"{name} contains no judge: {folder / CLAIMS} is missing. Train one with `meditune run evidence`, and "
            "specify its run. If the run was interrupted, the same command continues it."
        )
    exported = exported_at(Path(name).expanduser(), "auto", ("openvino",))
    if exported is None:
        from meditune.models.load import load

        run = folder.parent if folder.name == "model" else folder
        return EvidenceJudge(TorchLabelModel(load(name)), correction, run.resolve().name)
    found = read_exported_model(exported)
    if found.engine != "openvino":
        raise ModelError(
            f"{exported} is an export for the {found.engine} engine; a judge runs only from its own weights or from an "
            "OpenVINO export: meditune export RUN --to openvino"
        )
    correction = load_correction(exported) or correction
    return EvidenceJudge(OpenvinoLabelModel(exported), correction, f"{_named(exported)} (openvino {found.weights})")


def _named(exported: Path) -> str:
    """Return the name of an export's run: the folder that contains `export/openvino`, or the export's own folder."""
    home = exported.resolve()
    return home.parents[1].name if home.parent.name == "export" and (home.parents[1] / "model").is_dir() else home.name


class SupportJudge:
    """A judge that uses a model which wasn't trained on claims by Meditune, such as an NLI model."""

    def __init__(self, model: Support, name: str) -> None:
        """Prepare the judge; `name` is shown to users, and of a folder only its own name."""
        kind, colon, place = name.rpartition(":")
        folder = Path(place).expanduser()
        self.name = f"{kind}{colon}{folder.resolve().name}" if folder.is_dir() else name
        self._model, self.refutes = model, model.refutes
        self.threshold = self.citing_threshold = model.threshold
        self._lock = threading.Lock()

    def supports(
        self, statements: Sequence[str], passages: Sequence[str], wait_s: float = math.inf, question: str = ""
    ) -> list[ClaimVerdict]:
        """See `EvidenceJudge.supports`."""
        return self.verdicts([(statement, tuple(passages)) for statement in statements], wait_s, question)

    def verdicts(self, asked: Sequence[Claim], wait_s: float = math.inf, question: str = "") -> list[ClaimVerdict]:
        """See `EvidenceJudge.verdicts`."""
        return _verdicts(asked, lambda read: self._scores(read, wait_s, question))

    def _scores(self, read: Sequence[Claim], wait_s: float, question: str) -> list[tuple[float, float]]:
        questions = [SupportQuestion(passages, question, text, 0, len(text)) for text, passages in read]
        with _turn(self._lock, wait_s):
            try:
                return [(each.score, each.refuted or 0.0) for each in self._model.score(questions)]
            except FAILURES as error:
                raise ModelError(f"The judge {self.name} failed: {error}") from error


class LexicalJudge:
    """The lexical detector as a judge. It compares words, and can't tell what is refuted: `refuted` is always 0."""

    name = LEXICAL_DETECTOR

    def verdicts(self, asked: Sequence[Claim]) -> list[ClaimVerdict]:
        """See `EvidenceJudge.verdicts`."""

        def score(read: Sequence[Claim]) -> Iterator[tuple[float, float]]:
            for statement, passages in read:
                yield _sigmoid(sentence_logit(evidence(Sentence(statement), Sources(passages)))), 0.0

        return _verdicts(asked, score)


def _verdicts(
    asked: Sequence[Claim], score: Callable[[list[Claim]], Iterable[tuple[float, float]]]
) -> list[ClaimVerdict]:
    """Return a verdict for each claim. `score` returns the probabilities of support and of refutation.

    A claim without evidence isn't scored: its verdict is unclear. A wrong name makes a supported claim unclear.
    """
    read = [(statement, passages) for statement, passages in asked if any(map(str.strip, passages))]
    sources = {passages: Sources(passages) for _, passages in read}
    scores = iter(score(read) if read else ())
    verdicts = []
    for statement, passages in asked:
        if passages not in sources:
            verdicts.append(ClaimVerdict(0.0, 0.0, 1.0, ""))
            continue
        supported, refuted = next(scores)
        words = evidence(Sentence(statement), sources[passages])
        supported = _less_wrong_names(supported, words)
        verdicts.append(ClaimVerdict(supported, refuted, max(0.0, 1 - supported - refuted), words.closest_source))
    return verdicts


def open_judge(name: str, threshold: float | None = None, option: str = "--judge") -> EvidenceJudge | SupportJudge:
    """Return the judge with the name that the user gave with `option`: a judge, or a model of `models.nli`.

    `threshold` replaces its `citing_threshold`, if given. Raises ModelError if the judge can't be used.
    """
    judge: EvidenceJudge | SupportJudge
    if is_judge(name) or (Path(name).expanduser() / EXPORT).is_file():
        judge = load_judge(name)
    else:
        from meditune.models.nli import load_nli

        judge = SupportJudge(load_nli(name, option), name)
    if threshold is not None:
        judge.citing_threshold = threshold
        judge.name += f", threshold {threshold:g}"
    return judge


def load_support_model(name: str) -> Support:
    """Return the model that `evaluate.faithfulness_model` names; raise ModelError with advice if it is unavailable."""
    if is_judge(name):
        return load_judge(name)
    from meditune.models.nli import load_nli

    return load_nli(name)


def _claim(id: str, statement: str, passages: Sequence[str]) -> Example:
    context = tuple(Passage(text=text) for text in passages if text.strip())
    return Example(id=id, source="claim", question=statement, context=context, group=id, meta={LABEL: "supported"})


def _length(encoder: Encoder, statement: str, passages: Sequence[str] = ()) -> int:
    """Return the number of tokens in the complete prompt, even if it is too long for the model."""
    return len(encoder.prompt_ids(_claim("0", statement, passages), "claim"))


def _parts(encoder: Encoder, statement: str) -> list[str]:
    """Return a statement in parts that leave half of the prompt for the evidence; usually, there is only one part."""
    most = (_length(encoder, ".") + encoder.format.max_tokens) / 2

    def fits(texts: Sequence[str]) -> bool:
        return _length(encoder, texts[0]) <= most

    if fits([statement]):
        return [statement]
    return [piece for text in sentences(statement) for piece in _pieces(text, fits)]


def _windows(encoder: Encoder, statement: str, passages: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the passages in windows that fit into the prompt; usually, one window contains all passages."""

    def fits(texts: Sequence[str]) -> bool:
        return _length(encoder, statement, texts) < encoder.format.max_tokens

    if fits(passages):
        return [passages]
    windows: list[str] = []
    for text in (each for passage in passages for each in sentences(passage)):
        # A sentence that doesn't fit, such as a table without full stops, is read in pieces.
        for piece in _pieces(text, fits):
            wider = f"{windows[-1]} {piece}" if windows else piece
            if windows and fits([wider]):
                windows[-1] = wider
            else:
                windows.append(piece)
    return [(window,) for window in windows]


def _pieces(text: str, fits: Callable[[Sequence[str]], bool]) -> Iterator[str]:
    """Yield pieces of a text that fit.

    The text is halved, at a comma near the middle or else between words, until its pieces fit.
    """
    if len(text) < 2 or fits([text]):
        yield text
        return
    words = text.split()
    middle = len(words) // 2
    near = [n for n, word in enumerate(words, start=1) if word[-1] in ",;:" and abs(n - middle) <= len(words) // 4]
    cut = min(near, key=lambda n: abs(n - middle), default=middle)
    # Even a single word can be too long, such as a DNA sequence.
    word = len(text) // 2
    halves = (" ".join(words[:cut]), " ".join(words[cut:])) if len(words) > 1 else (text[:word], text[word:])
    for half in halves:
        yield from _pieces(half, fits)
