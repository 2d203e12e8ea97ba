"""The interface of models that judge whether sources support a sentence, and the correction of a judge's logits.

The correction is fitted on the claims of the dev split and stored with the judge's weights.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from meditune.errors import ModelError
from meditune.evidence.lexical_detector import Span
from meditune.files import read_json, write_json

LEXICAL_DETECTOR = "lexical detector"
"""The name of what checks sentences if no judge was given"""


@dataclass(frozen=True)
class SupportQuestion:
    """A sentence of an answer, from `start` to `end`, and the sources that may support it."""

    sources: tuple[str, ...]
    question: str
    answer: str
    start: int
    end: int

    @property
    def sentence(self) -> str:
        """The text of the sentence."""
        return self.answer[self.start : self.end]


@dataclass(frozen=True)
class SupportScore:
    """A model's score for a sentence."""

    score: float
    """The probability that the sources support the sentence"""
    refuted: float | None = None
    """The probability that the sources refute the sentence; None if the model can't tell"""
    spans: tuple[Span, ...] = ()
    """Unsupported parts, with positions in the answer"""


class Support(Protocol):
    """A model that scores how strongly sources support sentences."""

    has_spans: bool
    refutes: bool
    """True if the model can tell that sources refute a sentence"""
    threshold: float
    """Minimum probability of support for a sentence to count as supported"""

    def score(self, asked: Sequence[SupportQuestion]) -> Iterator[SupportScore]:
        """Yield one score for each sentence, in order."""
        ...


@dataclass(frozen=True)
class ClaimVerdict:
    """A judge's verdict on whether passages support a statement."""

    supported: float
    """Probability that the passages support the statement"""
    refuted: float
    """Probability that the passages refute the statement; 0 if the judge can't tell, like the lexical detector"""
    unclear: float
    """Probability that the passages do neither; it includes refutation if the judge can't tell both apart"""
    sentence: str
    """The sentence of the passages that contains the largest share of the statement's words (rare words have more
    weight); empty if there is none. No judge says which sentence determined its verdict, so the sentence is always
    chosen by words, and a paraphrase can be missed."""


CLAIMS = "claims.json"
"""File with the correction, in the folder of a model that was trained on claims"""


@dataclass(frozen=True)
class ClaimCorrection:
    """The correction that turns a judge's logits into probabilities, with the threshold for support."""

    temperature: float = 1.0
    bias: dict[str, float] = field(default_factory=dict)
    """Label -> number added to the label's logit after division by the temperature; 0 for a missing label"""
    threshold: float = 0.5
    """Minimum probability of support for a statement to count as supported"""

    def logits(self, logits: Mapping[str, float]) -> dict[str, float]:
        """Return the corrected logits."""
        return {label: value / self.temperature + self.bias.get(label, 0.0) for label, value in logits.items()}

    def probabilities(self, logits: Mapping[str, float]) -> dict[str, float]:
        """Return the probability of each label in `logits`; some sources of claims use only two labels."""
        corrected = self.logits(logits)
        top = max(corrected.values())
        weights = {label: math.exp(value - top) for label, value in corrected.items()}
        total = sum(weights.values())
        return {label: weight / total for label, weight in weights.items()}

    def save(self, folder: Path) -> None:
        """Write the correction to a model's folder."""
        write_json(folder / CLAIMS, asdict(self))


def model_folder(name: str) -> Path:
    """Return the folder of a model; `name` is this folder or the folder of the model's run."""
    folder = Path(name).expanduser()
    return folder / "model" if (folder / "model").is_dir() else folder


def is_judge(name: str) -> bool:
    """Return whether `name` is the folder of a run or a model that was trained on claims."""
    return (model_folder(name) / CLAIMS).is_file()


def copy_correction(model: Path, derived: Path) -> None:
    """Copy the correction of a model, if it has one, into the folder of a model derived from it."""
    if (model / CLAIMS).is_file():
        shutil.copyfile(model / CLAIMS, derived / CLAIMS)


def load_correction(folder: Path) -> ClaimCorrection | None:
    """Return the correction in a model's folder; None if the model wasn't trained on claims.

    Raises ModelError if the file can't be read.
    """
    path = folder / CLAIMS
    if not path.is_file():
        return None
    try:
        return ClaimCorrection(**read_json(path))
    except TypeError as error:
        raise ModelError(f"{path} isn't a correction that this version of Meditune can read: {error}") from error
