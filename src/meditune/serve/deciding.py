"""Yes, no or maybe: whether a question asks for it, and what the model finds likeliest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meditune.data.example import DECISIONS
from meditune.engines.engine import Engine
from meditune.evaluate.metrics.confidence import probabilities
from meditune.serve.events import Decision

LEAST = 0.5
"""The probability that the likeliest must have"""
_ASKS = re.compile(
    r"^(?:(?:so|and|but|please|hi|hello|ok)\W+)*(?:is|are|was|were|does|do|did|can|could|should|will|would|has|have|may|might)"
    r"(?:n['’]t)?\s",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Correction:
    """What corrects a model's decisions (evaluate/calibration.py): logits / temperature + bias."""

    temperature: float = 1.0
    bias: Mapping[str, float] = field(default_factory=dict)


def asks_yes_or_no(question: str) -> bool:
    """Whether the last sentence of a question wants yes or no."""
    asked = re.split(r"(?<=[.!?])\s+", question.strip())[-1]
    return bool(_ASKS.match(asked)) and " or " not in asked.lower()


def decide(
    engine: Engine, prompt: Sequence[int], labels: Mapping[str, Sequence[int]], correction: Correction | None = None
) -> Decision:
    """The likeliest of yes, no and maybe after a prompt that ends in the decision's cue.

    `labels` are the words' tokens. Raises ModelError where the engine tells no likelihoods.
    """
    scored = engine.score(prompt, [labels[name] for name in DECISIONS])
    logits: dict[str, float] = {
        name: sum((each.logprob for each in tokens), 0.0) for name, tokens in zip(DECISIONS, scored, strict=True)
    }
    if correction:
        logits = {name: each / correction.temperature + correction.bias.get(name, 0.0) for name, each in logits.items()}
    found = probabilities(logits)
    best = max(found, key=lambda name: found[name])
    return Decision(best if found[best] >= LEAST else None, found, correction is not None)
