"""Simulate which strategy of choosing items for experts saves labels, on the training half of PubMedQA.

    python benchmarks/label_queue.py runs/evidence-more qwen2.5-coder-0.5b smollm2-135m --output runs/label-queue

A model reads each of the 500 items once; the result is cached. The classifier is a logistic regression (the head) on
the model's hidden state at the decision and on the log-probabilities of the three decisions. The model must not have
been trained on these items. Each seed splits the items into fifths and holds out each fifth once; the other 400 items
are the pool. The simulation starts with FIRST random labels. Each round adds BATCH labels that a strategy selects,
chooses the strength of regularization by cross-validation on the labelled items, and fits the head anew:

- random: the next items in a random order;
- margin: the items with the smallest difference between the two highest probabilities;
- committee: the items on which heads fitted on bootstrap samples disagree most, by the mean Kullback-Leibler divergence
  from their average (McCallum and Nigam 1998).

The intervals of differences are from a bootstrap over held-out items and seeds, and the p-values of each table are
corrected by Holm's procedure. With all 400 labels, the strategies are equal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from meditune.data.example import DECISIONS, Example
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import locate_source
from meditune.evaluate.metrics.decision import macro_f1
from meditune.statistics import LEVEL, RESAMPLES, bootstrap, holm, two_level

FIRST, BATCH, MOST, GOAL = 100, 25, 400, 250
BUDGETS = range(FIRST, MOST + 1, BATCH)
STRATEGIES = ("random", "margin", "committee")
PARTS, INNER_PARTS = 5, 5
COMMITTEE = 8
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Values of scikit-learn's C to choose from; a lower value is a stronger regularization"""
LEAST = 1e-4
"""Probability of a decision that no labelled item has"""
DIGITS = {"accuracy": 1, "macro-F1": 1, "macro-F1, fixed share": 1, "AUC": 3, "log loss": 3}
"""Metrics of decisions, with the number of digits"""

Array = NDArray[Any]
Side = tuple[Callable[[Array], Array], Array]
"""A metric as a function of sums of per-item statistics, and these statistics"""


def training_half() -> tuple[list[Example], Array]:
    """Return the 500 items of PubMedQA's official training half, and their decisions as indices of DECISIONS."""
    folder = locate_source("pubmedqa")
    items, _ = pubmedqa.official_split(pubmedqa.read(folder, Rejects()), pubmedqa.ground_truth(folder))
    return items, np.array([DECISIONS.index(str(each.decision)) for each in items])


def states_of(name: str, items: Sequence[Example], cache: Path) -> tuple[Array, Array]:
    """Return the model's (N, size) hidden states at the decision, and the decisions' (N, 3) log-probabilities."""
    path = cache / f"{Path(name).name}-states.npz"
    if not path.is_file():
        import torch

        from ideas import hidden_states
        from meditune.config.load_recipe import load_recipe
        from meditune.models.forward import label_logits
        from meditune.models.load import load

        recipe, loaded = load_recipe("laptop-large").recipe, load(name)
        hidden = hidden_states(loaded, recipe, items)
        words = loaded.encoder(recipe.prompt).label_ids()
        with torch.inference_mode():
            logits = label_logits(loaded.model, torch.from_numpy(hidden), [words[each] for each in DECISIONS]).numpy()
        keep(path, ids=np.array([each.id for each in items]), hidden=hidden, log_likely=log_softmax(logits, axis=1))
    found = np.load(path)
    assert found["ids"].tolist() == [each.id for each in items], f"{path} is about other items; delete it"
    return found["hidden"], found["log_likely"]


def keep(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def features(states: tuple[Array, Array], known: Array) -> Array:
    """Return the head's inputs for all items, standardized on the `known` rows.

    Hidden states and log-probabilities have the same total variance, 1, so that the few log-probabilities count. The
    inputs are rotated to at most N dimensions, which makes fitting faster and changes no prediction.
    """
    scaled = []
    for block in states:
        spread = block[known].std(axis=0) + 1e-6
        scaled.append((block - block[known].mean(axis=0)) / spread / np.sqrt(block.shape[1]))
    left, size, _ = np.linalg.svd(np.hstack(scaled).astype(np.float64), full_matrices=False)
    return np.asarray(left * size)


def fit(inputs: Array, targets: Array, strength: float) -> LogisticRegression:
    """Return a head fitted to (N, K) target probabilities, which can be hard (one-hot) or soft."""
    rows, labels = np.nonzero(targets)
    head = LogisticRegression(C=strength, max_iter=1_000, tol=1e-3)
    head.fit(inputs[rows], labels, sample_weight=targets[rows, labels])
    return head


def chances(head: LogisticRegression, inputs: Array, labels: int = len(DECISIONS)) -> Array:
    """Return the (N, labels) probabilities."""
    found = np.full((len(inputs), labels), LEAST)
    found[:, head.classes_] = np.maximum(head.predict_proba(inputs), LEAST)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def cross_validated(inputs: Array, targets: Array, right: Array, seed: int) -> tuple[float, Array]:
    """Return the strength of regularization with the lowest log loss of the `right` labels on items held out in turn,
    and the (N, K) probabilities of these items.
    """
    found = np.zeros((len(STRENGTHS), *targets.shape))
    for fitted, held in StratifiedKFold(INNER_PARTS, shuffle=True, random_state=seed).split(inputs, right):
        for place, strength in enumerate(STRENGTHS):
            found[place, held] = chances(fit(inputs[fitted], targets[fitted], strength), inputs[held], targets.shape[1])
    best = int(np.log(found[:, np.arange(len(right)), right]).sum(axis=1).argmax())
    return STRENGTHS[best], found[best]


def ranked(strategy: str, inputs: Array, targets: Array, known: Array, rest: Array, strength: float) -> Array:
    """Return the unlabelled `rest` in the order in which the strategy selects it; `random` keeps its order."""
    if strategy == "margin":
        likely = np.sort(chances(fit(inputs[known], targets[known], strength), inputs[rest]), axis=1)
        rest = rest[np.argsort(likely[:, -1] - likely[:, -2], kind="stable")]
    if strategy == "committee":
        rng = np.random.default_rng(len(known))
        samples = [rng.choice(known, len(known)) for _ in range(COMMITTEE)]
        said = np.array([chances(fit(inputs[each], targets[each], strength), inputs[rest]) for each in samples])
        apart = (said * np.log(said / said.mean(axis=0))).sum(axis=2).mean(axis=0)
        rest = rest[np.argsort(-apart, kind="stable")]
    return rest


def curve(strategy: str, inputs: Array, right: Array, pool: Array, held: Array, seed: int) -> Iterator[Array]:
    """Yield the head's (held out, 3) probabilities for each of the BUDGETS."""
    order, targets = np.random.default_rng(seed).permutation(pool), np.eye(len(DECISIONS))[right]
    known, rest = order[:FIRST], order[FIRST:]
    while True:
        strength, _ = cross_validated(inputs[known], targets[known], right[known], seed)
        yield chances(fit(inputs[known], targets[known], strength), inputs[held])
        if not len(rest):
            return
        rest = ranked(strategy, inputs, targets, known, rest, strength)
        known, rest = np.concatenate([known, rest[:BATCH]]), rest[BATCH:]


def simulate(states: tuple[Array, Array], right: Array, seed: int) -> Array:
    """Return the (strategies, budgets, items, 3) probabilities of one seed, each item while it was held out."""
    found = np.zeros((len(STRATEGIES), len(BUDGETS), len(right), len(DECISIONS)))
    parts = StratifiedKFold(PARTS, shuffle=True, random_state=seed).split(right, right)
    for number, (pool, held) in enumerate(parts):
        inputs = features(states, pool)
        for place, strategy in enumerate(STRATEGIES):
            for budget, said in enumerate(curve(strategy, inputs, right, pool, held, PARTS * seed + number)):
                found[place, budget, held] = said
    return found


def auc(scores: Array, positive: Array, negative: Array) -> Side:
    """Return the area under the ROC curve of two lists of items; drawn items count as often as they were drawn."""
    one, other = scores[positive][:, None], scores[negative]
    wins = (one > other) + (one == other) / 2

    def figure(drawn: Array) -> Array:
        first, second = drawn[..., positive], drawn[..., negative]
        return np.asarray(((first @ wins) * second).sum(axis=-1) / (first.sum(axis=-1) * second.sum(axis=-1)))

    return figure, np.eye(len(scores))


def sides(said: Array, right: Array) -> list[Side]:
    """Return the metrics in DIGITS of (N, 3) probabilities.

    Heads differ in how often they answer no, which changes macro-F1. A fixed share removes this effect: as many items
    as are labelled no, those with the highest odds of no, get no, and all others yes. AUC is that of yes against no.
    """
    rows, odds = np.arange(len(right)), np.log(said[:, 1] / said[:, 0])

    def counted(decided: Array) -> Array:
        cells = np.zeros((len(right), len(DECISIONS) ** 2))
        cells[rows, len(DECISIONS) * right + decided] = 1
        return cells

    own, fixed = said.argmax(axis=1), (odds.argsort().argsort() >= (right != 1).sum()).astype(int)
    losses = np.stack([-np.log(said[rows, right]), np.ones(len(right))], axis=1)
    return [
        (lambda sums: 100 * sums[..., [0, 4, 8]].sum(axis=-1) / sums.sum(axis=-1), counted(own)),
        (macro_f1, counted(own)),
        (macro_f1, counted(fixed)),
        auc(-odds, np.flatnonzero(right == 0), np.flatnonzero(right == 1)),
        (lambda sums: sums[..., 0] / sums[..., 1], losses),
    ]


def measured(every: Sequence[Side], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the metrics in this shape, and their values on each draw of the items as (draws, *shape)."""
    values = np.array([figure(items.sum(axis=0)) for figure, items in every]).reshape(shape)
    return values, np.stack(bootstrap(every, RESAMPLES, seed=0), axis=1).reshape(-1, *shape)


def differences(
    contrasts: dict[Any, Array], values: Array, drawn: Array, items: int, metrics: dict[str, int]
) -> dict[Any, str]:
    """Return the mean of each metric's contrast over seeds, with its 95% interval and Holm's p-value; bold below 0.05.

    `values` is (seeds, K, metrics), `drawn` (draws, seeds, K, metrics), and a contrast has K weights. `metrics` has the
    number of digits of each metric. The p-values are corrected for all contrasts and metrics.
    """
    found = {}
    for title, weights in contrasts.items():
        seen, resampled = np.einsum("skm,k->sm", values, weights), np.einsum("bskm,k->bsm", drawn, weights)
        for place, metric in enumerate(metrics):
            found[title, metric] = two_level(seen[:, place], resampled[..., place], items, seed=0)
    shown, corrected = {}, holm({key: each.p() for key, each in found.items()})
    for key, each in found.items():
        low, high = each.ci95()
        digits = metrics[key[1]]
        text = f"{each.mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}), p {corrected[key]:.2f}"
        shown[key] = f"**{text}**" if corrected[key] < LEVEL else text
    return shown


def contrast(strategy: str, counts: Sequence[int], other: str, others: Sequence[int]) -> Array:
    """Return the weights of a difference between the means of two strategies over numbers of labels."""
    weights = np.zeros((len(STRATEGIES), len(BUDGETS)))
    weights[STRATEGIES.index(strategy), [BUDGETS.index(each) for each in counts]] += 1 / len(counts)
    weights[STRATEGIES.index(other), [BUDGETS.index(each) for each in others]] -= 1 / len(others)
    return weights.ravel()


def report(said: Array, right: Array) -> str:
    """Return the learning curves and the differences from random choice, from (seeds, strategies, budgets, N, 3)."""
    every = [side for one in said.reshape(-1, *said.shape[-2:]) for side in sides(one, right)]
    values, drawn = measured(every, (len(said), len(STRATEGIES) * len(BUDGETS), len(DIGITS)))
    means = values.mean(axis=0).reshape(len(STRATEGIES), len(BUDGETS), -1)
    refused = 100 * (said.argmax(axis=-1) == DECISIONS.index("no")).mean(axis=(0, 3))
    lines = [f"{' / '.join(DIGITS)} / share of no", ""]
    lines += [f"| strategy | {' | '.join(map(str, BUDGETS))} |", "|---" * (len(BUDGETS) + 1) + "|"]
    for strategy, rows, shares in zip(STRATEGIES, means, refused, strict=True):
        cells = [[f"{v:.{d}f}" for v, d in zip(row, DIGITS.values(), strict=True)] for row in rows]
        shown = [" / ".join([*cell, f"{share:.0f}"]) for cell, share in zip(cells, shares, strict=True)]
        lines.append(f"| {strategy} | {' | '.join(shown)} |")
    middle, others = BUDGETS[1:-1], STRATEGIES[1:]
    families: dict[str, dict[Any, Array]] = {
        f"mean over {middle[0]} to {middle[-1]} labels, minus random": {
            each: contrast(each, middle, "random", middle) for each in others
        },
        "with each number of labels, minus random": {
            f"{each}, {count}": contrast(each, [count], "random", [count]) for each in others for count in middle
        },
        f"{GOAL} labels minus {MOST} random labels": {
            each: contrast(each, [GOAL], "random", [MOST]) for each in STRATEGIES
        },
        f"{MOST} labels minus {FIRST} labels": {"random": contrast("random", [MOST], "random", [FIRST])},
    }
    for family, contrasts in families.items():
        found = differences(contrasts, values, drawn, len(right), DIGITS)
        lines += ["", f"| {family} | {' | '.join(DIGITS)} |", "|---" * (len(DIGITS) + 1) + "|"]
        lines += [f"| {title} | {' | '.join(found[title, each] for each in DIGITS)} |" for title in contrasts]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a base model, or a run that didn't read PubMedQA")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/label-queue"), help="folder for cached results")
    options = parser.parse_args()
    items, right = training_half()
    for name in options.models:
        states, every = states_of(name, items, options.output), []
        for seed in range(options.seeds):
            path = options.output / f"{Path(name).name}-simulated-{seed}.npz"
            if not path.is_file():
                keep(path, said=simulate(states, right, seed))
                print(path, file=sys.stderr, flush=True)
            every.append(np.load(path)["said"])
        print(f"\n## {Path(name).name}, {options.seeds} seeds\n\n{report(np.stack(every), right)}", flush=True)


if __name__ == "__main__":
    main()
