"""The tasks of `active_learning.py`: examples with hidden labels, the features of each example, and the splits."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditune.data.example import DECISIONS, Example
from meditune.data.readers import medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.progress import track

Array = np.ndarray[Any, Any]
END = 900
"""Number of characters at the end of an abstract, where its results are"""
MODEL, TOKENS = "smollm2-135m", 256
QUESTIONS, HELD_OUT, RARE = 3000, 1000, 5
PARTS = 5


@dataclass(frozen=True)
class Fold:
    """Rows to choose from, rows to measure on, and the features of all rows."""

    pool: Array
    held_out: Array
    features: Any


@dataclass(frozen=True)
class Task:
    """One simulation's data."""

    name: str
    examples: Sequence[Example]
    y: Array
    labels: Sequence[str]
    vectors: Array
    """(n, size) vectors of the questions, for diversity and novelty"""
    c: float
    """The head's regularisation, chosen by the loss at 400 random labels with seeds from 1000 on"""
    folds: Callable[[int], Iterator[Fold]]


def of_pubmedqa(cache: Path, learner: str) -> Task:
    """Return the task of PubMedQA's decisions in the official training half."""
    folder = Path(os.environ["MEDITUNE_DATA"]) / "pubmedqa"
    test = set(pubmedqa.ground_truth(folder))
    examples, _ = pubmedqa.official_split(pubmedqa.read(folder, Rejects()), test)
    assert not {each.group for each in examples} & test, "test items stay out"
    y = np.array([each.decision for each in examples])
    hidden = _hidden(cache / "pubmedqa-hidden.npy", examples) if learner == "model" else None
    ends = [f"{each.question} {' '.join(part.text for part in each.context)[-END:]}" for each in examples]

    def folds(seed: int) -> Iterator[Fold]:
        from sklearn.model_selection import StratifiedKFold

        for pool, held_out in StratifiedKFold(PARTS, shuffle=True, random_state=seed).split(y, y):
            yield Fold(pool, held_out, _words(ends, pool) if hidden is None else _scaled(hidden, pool))

    vectors = _vectors(cache / "pubmedqa-questions.npy", [each.question for each in examples])
    c = 1.0 if hidden is None else 0.001
    return Task(f"PubMedQA's decisions ({learner})", examples, y, DECISIONS, vectors, c, folds)


def of_medquad(cache: Path, _: str) -> Task:
    """Return the task of MedQuAD's question types that have at least RARE questions."""
    folder = Path(os.environ["MEDITUNE_DATA"]) / "medquad"
    every = list(medquad.read(folder, Rejects()))
    random.Random(0).shuffle(every)
    kinds = [str(each.meta["question_type"]) for each in every[:QUESTIONS]]
    kept = [place for place, kind in enumerate(kinds) if kinds.count(kind) >= RARE]
    examples, y = [every[place] for place in kept], np.array([kinds[place] for place in kept])
    vectors = _vectors(cache / "medquad-questions.npy", [each.question for each in examples])

    def folds(seed: int) -> Iterator[Fold]:
        order = np.random.default_rng(seed).permutation(len(y))
        yield Fold(np.sort(order[HELD_OUT:]), np.sort(order[:HELD_OUT]), vectors)

    return Task("MedQuAD's kinds of questions", examples, y, sorted(set(y.tolist())), vectors, 20.0, folds)


def _words(texts: Sequence[str], pool: Array) -> Any:
    """Return (n, words) TF-IDF features, with words and weights from the pool only."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(min_df=3, sublinear_tf=True).fit([texts[place] for place in pool])
    return fitted.transform(texts)


def _scaled(hidden: Array, pool: Array) -> Array:
    return (hidden - hidden[pool].mean(axis=0)) / (hidden[pool].std(axis=0) + 1e-6)


def _vectors(path: Path, texts: Sequence[str]) -> Array:
    from meditune.models.sentence_encoder import load_encoder

    return _cached(path, len(texts), lambda: load_encoder().encode(texts))


def _hidden(path: Path, examples: Sequence[Example]) -> Array:
    """Return the base model's (n, size) last hidden states at the decision's cue."""

    def make() -> Array:
        import torch

        from meditune.config.data_options import PromptFormat
        from meditune.models.load import load

        loaded = load(MODEL)
        encoder = loaded.encoder(PromptFormat(max_tokens=TOKENS, answer_tokens=16))
        found = []
        with torch.inference_mode():
            for example in track(examples, "Hidden states", unit="items"):
                ids = torch.tensor([encoder.prompt(example, "decision").prompt])
                states = loaded.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
                found.append(states[-1][0, -1].float().numpy())
        return np.array(found)

    return _cached(path, len(examples), make)


def _cached(path: Path, count: int, make: Callable[[], Array]) -> Array:
    if path.is_file() and len(found := np.load(path)) == count:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    made = make()
    np.save(path, made)
    return made


TASKS: dict[str, Callable[[Path, str], Task]] = {"pubmedqa": of_pubmedqa, "medquad": of_medquad}
