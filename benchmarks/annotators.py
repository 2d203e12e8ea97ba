"""Measure whether annotators' labels improve decisions, by cross-validation on the training half of PubMedQA.

    python benchmarks/annotators.py runs/evidence-more --output runs/label-queue

For each item, PubMedQA publishes the label of an annotator who read the conclusion, too (`reasoning_free_pred`), the
label of one who didn't (`reasoning_required_pred`), and the final decision. Predictions are made only for items whose
labels of any kind the heads haven't seen, and are compared with the final decision. The classifier is the head of
label_queue.py, on the same cached states. Each seed gives ten folds. The variants are:

- hard: the head learns the final decisions;
- soft N: the head learns the final decision with N percent of an item's weight; each annotator's label gets half of the
  rest;
- refitted: P(maybe) is fitted to the head's own out-of-fold P(maybe), for comparison with the next row;
- disagreement: P(maybe) is fitted to the head's P(maybe) and to the output of a second head, which predicts whether the
  annotators disagree;
- disagreement as input: the second head's output is one more input of the head.

The last two columns are for decisions after a bias is added to log P(maybe): the one with which most out-of-fold
training items with the decision "maybe" are found without lowering the accuracy on the training items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from ideas import published_labels
from label_queue import (
    DIGITS,
    Array,
    Side,
    auc,
    chances,
    cross_validated,
    differences,
    features,
    fit,
    keep,
    measured,
    sides,
    states_of,
    training_half,
)
from meditune.data.example import DECISIONS, Example
from meditune.statistics import two_level

FIELDS = ("reasoning_required_pred", "reasoning_free_pred")
FOLDS = 10
SOFT = {"soft 75": 3 / 4, "soft 50": 1 / 2, "soft 33": 1 / 3}
"""Share of the final decision in a soft target"""
VARIANTS = ("hard", *SOFT, "refitted", "disagreement", "disagreement as input")
BIASES = np.linspace(0, 4, 81)
MAYBE = DECISIONS.index("maybe")
METRICS = DIGITS | {"AUC of maybe": 3, "biased: accuracy": 1, "biased: recall of maybe": 1}


def annotated(items: Sequence[Example]) -> Array:
    """Return the annotators' labels of training items as (N, 2) indices of DECISIONS."""
    published = published_labels()
    return np.array([[DECISIONS.index(published[each.group][field]) for field in FIELDS] for each in items])


def with_maybe(said: Array, likely: Array) -> Array:
    """Return the probabilities with another P(maybe); the ratio of yes to no stays."""
    others = said[:, :MAYBE] / said[:, :MAYBE].sum(axis=1, keepdims=True)
    return np.hstack([others * (1 - likely[:, None]), likely[:, None]])


def biased(said: Array, bias: float) -> Array:
    found = said * np.exp(bias * (np.arange(len(DECISIONS)) == MAYBE))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def best_bias(said: Array, right: Array) -> float:
    """Return the lowest bias with the highest recall of maybe among those that don't lower the accuracy."""
    decided = np.array([biased(said, bias).argmax(axis=1) for bias in BIASES])
    accuracy = (decided == right).mean(axis=1)
    recall = (decided[:, right == MAYBE] == MAYBE).mean(axis=1)
    return float(BIASES[np.where(accuracy >= accuracy[0], recall, -1).argmax()])


def predicted(inputs: Array, right: Array, labels: Array, fitted: Array, held: Array, seed: int) -> tuple[Array, Array]:
    """Return (2, variants, held out, 3) probabilities without and with the bias, and log-odds of disagreement."""
    known, asked, final = inputs[fitted], inputs[held], right[fitted]
    given, one_hot = labels[fitted], np.eye(len(DECISIONS))
    apart = (given[:, 0] != given[:, 1]).astype(int)

    def head(targets: Array, truth: Array, more: Sequence[Array] = (known[:, :0], asked[:, :0])) -> tuple[Array, Array]:
        """Return the probabilities of the known items, each out of fold, and of the items asked for."""
        inside, outside = np.hstack([known, more[0]]), np.hstack([asked, more[1]])
        strength, own = cross_validated(inside, targets, truth, seed)
        return own, chances(fit(inside, targets, strength), outside, targets.shape[1])

    found = {"hard": head(one_hot[final], final)}
    for name, share in SOFT.items():
        found[name] = head(share * one_hot[final] + (1 - share) * one_hot[given].mean(axis=1), final)
    maybe = [logit(each[:, MAYBE:]) for each in found["hard"]]
    doubt = [logit(each[:, 1:]) for each in head(np.eye(2)[apart], apart)]
    both = [np.hstack(each) for each in zip(maybe, doubt, strict=True)]
    for name, scores in (("refitted", maybe), ("disagreement", both)):
        second = LogisticRegression().fit(scores[0], final == MAYBE)
        own, said = (
            with_maybe(each, second.predict_proba(score)[:, 1])
            for each, score in zip(found["hard"], scores, strict=True)
        )
        found[name] = own, said
    scaled = [(each - doubt[0].mean()) / doubt[0].std() for each in doubt]
    found["disagreement as input"] = head(one_hot[final], final, scaled)
    plain = [found[name][1] for name in VARIANTS]
    shifted = [biased(found[name][1], best_bias(found[name][0], final)) for name in VARIANTS]
    return np.array([plain, shifted]), doubt[1][:, 0]


def metrics(plain: Array, shifted: Array, right: Array) -> list[Side]:
    """Return the METRICS of (N, 3) probabilities without and with the bias."""
    decided, maybe = shifted.argmax(axis=1), right == MAYBE
    recall = np.stack([(decided == MAYBE) & maybe, maybe], axis=1).astype(float)
    return [
        *sides(plain, right),
        auc(plain[:, MAYBE], np.flatnonzero(maybe), np.flatnonzero(~maybe)),
        sides(shifted, right)[0],
        (lambda sums: 100 * sums[..., 0] / sums[..., 1], recall),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a base model, or a run that didn't read PubMedQA")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/label-queue"), help="folder for cached results")
    options = parser.parse_args()
    items, right = training_half()
    labels = annotated(items)
    apart = labels[:, 0] != labels[:, 1]
    print(f"The annotators disagree on {apart.sum()} of {len(items)} items.")
    for name in options.models:
        states = states_of(name, items, options.output)
        every: list[Side] = []
        doubts: list[Side] = []
        for seed in range(options.seeds):
            path = options.output / f"{Path(name).name}-annotators-{seed}.npz"
            if not path.is_file():
                said, doubt = np.zeros((2, len(VARIANTS), len(items), len(DECISIONS))), np.zeros(len(items))
                for fitted, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(right, right):
                    inputs = features(states, fitted)
                    said[:, :, held], doubt[held] = predicted(inputs, right, labels, fitted, held, seed)
                keep(path, said=said, doubt=doubt)
                print(path, file=sys.stderr, flush=True)
            found = np.load(path)
            for plain, shifted in zip(*found["said"], strict=True):
                every += metrics(plain, shifted, right)
            doubts.append(auc(found["doubt"], np.flatnonzero(apart), np.flatnonzero(~apart)))
        shape = (options.seeds, len(VARIANTS), len(METRICS))
        values, drawn = measured(every, shape)
        contrasts = {
            each: np.eye(len(VARIANTS))[place] - np.eye(len(VARIANTS))[0] for place, each in enumerate(VARIANTS)
        }
        shown = differences({each: contrasts[each] for each in VARIANTS[1:]}, values, drawn, len(items), METRICS)
        print(f"\n## {Path(name).name}, {options.seeds} seeds\n")
        print(f"| targets | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|", sep="\n")
        for place, variant in enumerate(VARIANTS):
            means = zip(values[:, place].mean(axis=0), METRICS.items(), strict=True)
            cells = [f"{mean:.{digits}f} {shown.get((variant, each), '')}" for mean, (each, digits) in means]
            print(f"| {variant} | {' | '.join(cells)} |")
        values, drawn = measured(doubts, (options.seeds,))
        print(f"\nAUC of predicted disagreement: {values.mean():.3f}", two_level(values, drawn, len(items), 0).ci95())


if __name__ == "__main__":
    main()
