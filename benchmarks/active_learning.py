"""Simulate how many labels each strategy of `meditune learn queue` needs, by hiding known labels and asking for them.

    MEDITUNE_DATA=DIR python benchmarks/active_learning.py -o active_learning.json --task pubmedqa,medquad --seeds 5
    python benchmarks/active_learning.py --show active_learning.json --plot docs/images/active-learning.png

PubMedQA: the 500 items of the official training half; test items are removed by id first. Each seed splits them into
five parts; each part is held out once, and the other 400 items are the pool. The learner is a logistic regression,
fitted anew in each round, on words at the end of the abstract (`--learner words`) or on the last hidden state of the
untuned base model at the decision (`--learner model`; a tuned model has seen the labels). MedQuAD: the type of 3,000
questions (15 types), with the regression on the sentence model's vectors and a third of the questions held out. Items
are selected with the product's own `choose`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from active_learning_tasks import TASKS, Fold, Task
from meditune.errors import DataError
from meditune.operate.active_learning.annotation_queue import choose
from meditune.operate.active_learning.candidates import Candidate

FIRST, BATCH, MOST, GOAL = 100, 25, 400, 250
STRATEGIES = ("random", "uncertainty", "disagreement", "diversity", "novelty", "mix")
COMMITTEE = 4
"""Number of heads fitted on resampled labels for `disagreement`; `mix` uses a single head"""
LEAST = 1e-4
"""Probability of a label that the head hasn't seen yet"""
DRAWS = 10_000
FIGURES = ("accuracy", "loss", "macro_f1")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Head:
    """A fitted logistic regression with probabilities for all labels."""

    fitted: Any
    labels: Sequence[str]

    def chances(self, features: Array) -> Array:
        """Return (n, labels) probabilities; each row sums to 1."""
        found = np.full((features.shape[0], len(self.labels)), LEAST)
        found[:, [self.labels.index(each) for each in self.fitted.classes_]] = self.fitted.predict_proba(features)
        return found / found.sum(axis=1, keepdims=True)


def fit(task: Task, fold: Fold, rows: Array) -> Head:
    """Return a head fitted on these rows."""
    from sklearn.linear_model import LogisticRegression

    return Head(LogisticRegression(C=task.c, max_iter=300).fit(fold.features[rows], task.y[rows]), task.labels)


def ask(strategy: str, task: Task, fold: Fold, known: Array, rng: np.random.Generator) -> Array:
    """Return the next BATCH rows of the pool."""
    pool = np.setdiff1d(fold.pool, known)
    heads = {"head": fit(task, fold, known)} if strategy not in ("random", "diversity", "novelty") else {}
    if strategy == "disagreement":
        for number in range(COMMITTEE):
            drawn = rng.choice(known, len(known))
            if len(set(task.y[drawn])) > 1:
                heads[f"resampled {number}"] = fit(task, fold, drawn)
    said = {name: head.chances(fold.features[pool]) for name, head in heads.items()}
    candidates = [
        Candidate(
            task.examples[row],
            probabilities={name: dict(zip(task.labels, each[n].tolist(), strict=True)) for name, each in said.items()},
        )
        for n, row in enumerate(pool)
    ]
    places = {task.examples[row].id: row for row in pool}
    chosen: list[int] = []
    # A strategy may find nothing to choose among the last rows.
    with suppress(DataError):
        vectors = {"vectors": task.vectors[pool], "known_vectors": task.vectors[known]}
        found = choose(candidates, BATCH, strategy, **vectors, seed=int(rng.integers(2**31)))
        chosen = [places[each.candidate.id] for each in found]
    rest = rng.permutation(np.setdiff1d(pool, chosen))[: BATCH - len(chosen)]
    return np.concatenate([np.array(chosen, dtype=int), rest])


def curve(strategy: str, task: Task, fold: Fold, seed: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """Yield the number of labels and the head's (held out, labels) probabilities for the held-out rows."""
    known = np.random.default_rng(seed).permutation(fold.pool)[:FIRST]
    rng = np.random.default_rng([*seed, 1])
    while True:
        yield len(known), fit(task, fold, known).chances(fold.features[fold.held_out])
        if len(known) >= MOST:
            return
        known = np.concatenate([known, ask(strategy, task, fold, known, rng)])


def simulate(
    task: Task, strategies: Sequence[str], seeds: Sequence[int], told: Callable[[str], None]
) -> dict[str, Any]:
    """Return strategy -> seed -> number of labels -> lists `row`, `loss` and `said`, an entry for each held-out row."""
    found: dict[str, Any] = {}
    for strategy in strategies:
        for seed in seeds:
            by_count: dict[int, dict[str, list[Any]]] = {}
            for number, fold in enumerate(task.folds(seed)):
                for count, chances in curve(strategy, task, fold, (seed, number)):
                    truth = np.array([task.labels.index(each) for each in task.y[fold.held_out]])
                    row = by_count.setdefault(count, {"row": [], "loss": [], "said": []})
                    row["row"] += fold.held_out.tolist()
                    row["said"] += chances.argmax(axis=1).tolist()
                    row["loss"] += (-np.log(chances[np.arange(len(truth)), truth])).round(5).tolist()
            found.setdefault(strategy, {})[seed] = by_count
        told(f"{task.name}: {strategy}")
    return found


def figures(task_y: Sequence[int], row: dict[str, list[Any]]) -> dict[str, float]:
    """Return the metrics on all held-out rows of a seed, in percent except the loss."""
    from sklearn.metrics import f1_score

    truth, said = np.array(task_y)[row["row"]], np.array(row["said"])
    return {
        "accuracy": 100 * float((truth == said).mean()),
        "loss": float(np.mean(row["loss"])),
        "macro_f1": 100 * float(f1_score(truth, said, average="macro", zero_division=0)),
    }


def summary(task: dict[str, Any]) -> dict[str, Any]:
    """Return `curve` (labels -> metric -> mean over seeds), `spread`, `needed` and `difference` for each strategy."""
    runs, y = task["runs"], task["y"]
    every = {
        strategy: {seed: {int(n): figures(y, row) for n, row in by.items()} for seed, by in seeds.items()}
        for strategy, seeds in runs.items()
    }
    found = {}
    for strategy, seeds in every.items():
        counts = sorted(next(iter(seeds.values())))
        found[strategy] = {
            "curve": {n: {f: float(np.mean([s[n][f] for s in seeds.values()])) for f in FIGURES} for n in counts},
            "spread": {n: {f: float(np.std([s[n][f] for s in seeds.values()], ddof=1)) if len(seeds) > 1 else 0.0
                           for f in FIGURES} for n in counts},
            "needed": {f: [_needed(of, every["random"][seed][MOST][f], f) for seed, of in seeds.items()]
                       for f in FIGURES},
            "difference": {f: _difference(runs, strategy, y, f) for f in ("accuracy", "loss")},
        }  # fmt: skip
    return found


def _needed(curve: dict[int, dict[str, float]], goal: float, figure: str) -> int | None:
    """Return the fewest labels at which a seed's curve is as good as MOST random labels; None if it never is."""
    good = [
        n
        for n, each in sorted(curve.items())
        if (each[figure] <= goal + 1e-3 if figure == "loss" else each[figure] >= goal)
    ]
    return good[0] if good else None


def _difference(runs: dict[str, Any], strategy: str, y: Sequence[int], figure: str) -> tuple[float, float, float]:
    """Return the metric at GOAL labels minus that at MOST random labels, with a 95 % bootstrap interval over items."""

    def per_item(seeds: dict[str, Any], count: int) -> dict[int, float]:
        gathered: dict[int, list[float]] = {}
        for by in seeds.values():
            row = by[str(count)] if str(count) in by else by[count]
            for place, said, loss in zip(row["row"], row["said"], row["loss"], strict=True):
                gathered.setdefault(place, []).append(loss if figure == "loss" else 100.0 * (said == y[place]))
        return {place: float(np.mean(values)) for place, values in gathered.items()}

    ours, theirs = per_item(runs[strategy], GOAL), per_item(runs["random"], MOST)
    apart = np.array([ours[place] - theirs[place] for place in ours])
    draws = np.random.default_rng(17).integers(len(apart), size=(DRAWS, len(apart)))
    means = apart[draws].mean(axis=1)
    return float(apart.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    for name, task in found.items():
        print(f"\n{name}: seeds {', '.join(next(iter(task['runs'].values())))}")
        print("| strategy | " + " | ".join(f"{n}" for n in (FIRST, 150, 200, GOAL, 300, MOST)) + " | needed (accuracy) "
              "| needed (loss) | accuracy at 250 minus random's at 400 | the same for loss |")  # fmt: skip
        print("|---|" + "---:|" * 10)
        for strategy, row in summary(task).items():
            cells = [
                f"{row['curve'][n]['accuracy']:.1f} / {row['curve'][n]['macro_f1']:.1f} / {row['curve'][n]['loss']:.3f}"
                for n in (FIRST, 150, 200, GOAL, 300, MOST)
            ]
            needed = [", ".join(str(n or f"over {MOST}") for n in row["needed"][f]) for f in ("accuracy", "loss")]
            apart = [f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in row["difference"].values()]
            print(f"| {strategy} | " + " | ".join([*cells, *needed, *apart]) + " |")


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy and loss by labels, with the standard deviation over seeds for `mix` and `random`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(5.2 * len(found), 7), squeeze=False, sharex=True)
    for column, (name, task) in enumerate(found.items()):
        rows = summary(task)
        for line, (kind, title) in enumerate((("accuracy", "accuracy in %"), ("loss", "loss in nats"))):
            place = axes[line][column]
            for strategy, row in rows.items():
                counts = sorted(row["curve"])
                values = np.array([row["curve"][n][kind] for n in counts])
                strong = strategy in ("random", "mix")
                style = {"color": "black", "linestyle": "--"} if strategy == "random" else {}
                (drawn,) = place.plot(counts, values, label=strategy, linewidth=2.2 if strong else 1.2, **style)
                if strong:
                    spread = np.array([row["spread"][n][kind] for n in counts])
                    place.fill_between(counts, values - spread, values + spread, color=drawn.get_color(), alpha=0.12)
            place.axhline(rows["random"]["curve"][MOST][kind], color="grey", linewidth=0.8)
            place.axvline(GOAL, color="grey", linewidth=0.8, linestyle=":")
            place.set_ylabel(title)
        axes[0][column].set_title(name)
        axes[1][column].set_xlabel("labels")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pubmedqa,medquad", help=f"comma-separated, from {', '.join(TASKS)}")
    parser.add_argument("--learner", default="model", choices=("words", "model"), help="features for PubMedQA")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were chosen with seeds from 1000 on")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument(
        "--cache", type=Path, default=Path("active_learning_cache"), help="folder for vectors and hidden states"
    )
    parser.add_argument("--show", nargs="+", type=Path, help="only print the tables of these files")
    parser.add_argument("--plot", type=Path, help="also draw the curves in this file")
    parser.add_argument("-o", "--output", type=Path, help="also write the results to this file")
    wanted = parser.parse_args()
    found: dict[str, Any] = {}
    for path in wanted.show or ():
        for name, task in json.loads(path.read_text()).items():
            there = found.setdefault(name, {"y": task["y"], "runs": {}})
            for strategy, seeds in task["runs"].items():
                there["runs"].setdefault(strategy, {}).update(seeds)
    if not wanted.show:
        for name in wanted.task.split(","):
            task = TASKS[name](wanted.cache, wanted.learner)
            seeds = range(wanted.first_seed, wanted.first_seed + wanted.seeds)
            runs = simulate(task, wanted.strategies.split(","), seeds, lambda line: print(line, flush=True))
            found[task.name] = {"y": [task.labels.index(each) for each in task.y], "runs": runs}
        found = json.loads(json.dumps(found))
    if wanted.output:
        wanted.output.write_text(json.dumps(found))
    show(found)
    if wanted.plot:
        plot(found, wanted.plot)


if __name__ == "__main__":
    main()
