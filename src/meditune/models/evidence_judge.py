"""A judge of evidence: a causal language model, tuned on claims, that decides whether passages support a statement.

The model reads the passages and is asked "Is it true that ...?". The probabilities of its answers yes, no and maybe are
those of supported, refuted and unclear, after a correction that was fitted on development claims (`CLAIMS`). All
statements about the same passages share one pass over them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from meditune.data.example import LABEL, LABELS, Example, Passage
from meditune.errors import ModelError
from meditune.evidence.detector import Sentence, Sources, evidence
from meditune.evidence.support_model import (
    CLAIMS,
    ClaimCorrection,
    ClaimVerdict,
    SupportQuestion,
    SupportScore,
    load_correction,
)
from meditune.models.forward import label_logits
from meditune.models.inference import inference, tokens_at_once
from meditune.models.load import LoadedModel, load
from meditune.models.shared_prefix_batch import by_length, join
from meditune.prompts import Encoded, Encoder, QuestionTooLongError
from meditune.text import sentences

BATCH_TOKENS = 2048


class EvidenceJudge:
    """A judge of statements by passages; it implements `models.nli.Support`."""

    has_spans = False

    def __init__(self, loaded: LoadedModel, correction: ClaimCorrection) -> None:
        if loaded.form is None:
            raise ModelError(f"{loaded.name} has no prompt.json, so it wasn't trained on claims by Meditune.")
        self.loaded, self.correction, self.name = loaded, correction, loaded.name
        self.threshold = correction.threshold
        self._encoder = loaded.encoder(loaded.form)
        # Faster products replace the layers' own while a batch runs, so batches can't overlap.
        self._lock = threading.Lock()

    def supports(self, statements: Sequence[str], passages: Sequence[str]) -> list[ClaimVerdict]:
        """Return a verdict for each statement, in order.

        Passages that don't fit into the prompt together are read in several windows; the window that supports a
        statement most decides.
        """
        return self._verdicts([(statement, tuple(passages)) for statement in statements])

    def score(self, asked: Sequence[SupportQuestion]) -> Iterator[SupportScore]:
        """Yield the probability of support for each sentence, in order."""
        for verdict in self._verdicts([(each.sentence, each.sources) for each in asked]):
            yield SupportScore(verdict.supported)

    def _verdicts(self, asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[ClaimVerdict]:
        encoded: list[Encoded] = []
        keys: list[tuple[str, ...]] = []
        for number, (statement, passages) in enumerate(asked):
            for window in _windows(self._encoder, statement, passages):
                encoded.append(_encoded(self._encoder, str(number), statement, window))
                keys.append(window)
        best: dict[int, dict[str, float]] = {}
        for item, logits in self._logits(encoded, keys):
            found = self.correction.probabilities(dict(zip(LABELS, logits, strict=True)))
            if found["supported"] >= best.get(int(item.id), {"supported": -1.0})["supported"]:
                best[int(item.id)] = found
        sources = {passages: Sources(passages) for passages in {passages for _, passages in asked}}
        return [
            ClaimVerdict(
                best[number]["supported"],
                best[number]["refuted"],
                best[number]["not_enough_information"],
                evidence(Sentence(statement), sources[passages]).likest,
            )
            for number, (statement, passages) in enumerate(asked)
        ]

    def _logits(
        self, encoded: Sequence[Encoded], keys: Sequence[tuple[str, ...]]
    ) -> Iterator[tuple[Encoded, list[float]]]:
        """Yield the logits of LABELS for each item; neighbours with the same key share the pass over their evidence."""
        pairs = zip(encoded, keys, strict=True)
        rows = [join([item for item, _ in group]) for _, group in groupby(pairs, key=lambda pair: pair[1])]
        loaded, head = self.loaded, self.loaded.model.get_output_embeddings()
        with self._lock, inference(loaded.model):
            for indices in by_length(rows, tokens_at_once(loaded.model, BATCH_TOKENS)):
                chosen = [rows[index] for index in indices]
                _, predicted = loaded.frozen.predict(loaded.model, chosen, loaded.pad_id, logits=False)
                items = [item for row in chosen for item in row.encoded]
                for item, hidden in zip(items, predicted.hidden, strict=True):
                    yield item, label_logits(head, hidden, item.choices).tolist()


def load_judge(name: str) -> EvidenceJudge:
    """Return the judge in a model's or run's folder. Raises ModelError if it can't be used."""
    loaded = load(name)
    correction = load_correction(model_folder(name))
    if correction is None:
        raise ModelError(
            f"{name} wasn't trained on claims. Make a judge with `meditune run evidence`, and name its run."
        )
    return EvidenceJudge(loaded, correction)


def model_folder(name: str) -> Path:
    """Return the folder of a model, also where `name` is its run's folder."""
    folder = Path(name).expanduser()
    return folder / "model" if (folder / "model").is_dir() else folder


def is_judge(name: str) -> bool:
    """Return whether this is the folder of a model or run that was trained on claims."""
    return (model_folder(name) / CLAIMS).is_file()


def _encoded(encoder: Encoder, id: str, statement: str, passages: Sequence[str]) -> Encoded:
    context = tuple(Passage(text=text) for text in passages if text.strip())
    example = Example(id=id, source="claim", question=statement, context=context, group=id, meta={LABEL: "supported"})
    return encoder.supervised(example, "claim")


def _windows(encoder: Encoder, statement: str, passages: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the passages in windows that fit into the prompt; usually one window with all of them."""
    try:
        if not _encoded(encoder, "0", statement, passages).dropped_sentences:
            return [passages]
    except QuestionTooLongError as error:
        raise ModelError(
            f"A statement of {len(statement.split())} words is too long for the judge's prompt."
        ) from error
    windows: list[list[str]] = [[]]
    for text in (each for passage in passages for each in sentences(passage)):
        wider = [*windows[-1], text]
        if windows[-1] and _encoded(encoder, "0", statement, [" ".join(wider)]).dropped_sentences:
            windows.append([text])
        else:
            windows[-1] = wider
    return [(" ".join(window),) for window in windows if window]
