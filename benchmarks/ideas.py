"""What might make a model answer better, tried on the training half of PubMedQA alone: the test questions stay unseen.

    python benchmarks/ideas.py --recipe quickstart --ideas as-it-is with-conclusion long --seeds 1 2 --output runs/ideas
    python benchmarks/ideas.py --recipe quickstart --curve 42 84 167 335 --seeds 1 2 --output runs/ideas

Each seed splits the 500 labelled items anew into two thirds that are learnt from and one third that is measured, trains
each idea, and keeps every prediction in OUTPUT/IDEA-SEED.json. What is there isn't made again. Ideas are compared with
the first one on the same items, with intervals from a bootstrap over items. `--curve` trains the recipe as it is on so
many of the labelled items.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from meditune.data.example import DECISIONS, Example, Passage

RESAMPLES = 1_000
SHARED = ("data.dev_share=0.33", "data.fallback_to_sample=false", "evaluate.split=dev")


@dataclasses.dataclass(frozen=True)
class Idea:
    """Settings that differ from the recipe's, and rows that are learnt from as well."""

    settings: tuple[str, ...] = ()
    more: Callable[[Example], Example] | None = None
    """What else an example teaches"""
    fit: Literal["model", "head", "nothing"] = "model"
    """head: the model stays as it is, and a classifier is fitted to its last hidden state"""


def with_conclusion(example: Example) -> Example:
    """The decision, read from abstract and conclusion."""
    context = (*example.context, Passage(text=example.answer, label="conclusion"))
    return example.model_copy(update={"id": f"{example.id}#with-conclusion", "context": context, "answer": ""})


IDEAS = {
    "as-it-is": Idea(),
    "untuned": Idea(fit="nothing"),
    "with-conclusion": Idea(("train.epochs=2",), with_conclusion),
    "prompts-too": Idea(("train.prompt_share=0.5",)),
    "long": Idea(("prompt.max_tokens=768", "train.epochs=2")),
    "head": Idea(fit="head"),
}


def main() -> int:
    """Train and measure what isn't there yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--ideas", nargs="+", default=["as-it-is"], choices=IDEAS, metavar="IDEA")
    parser.add_argument("--curve", nargs="+", type=int, default=[], metavar="ITEMS", help="learn from so many items")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    parser.add_argument("--output", type=Path, default=Path("runs/ideas"))
    options = parser.parse_args()
    tried = {f"{name}-of-{count}": (name, count) for name in options.ideas for count in options.curve or [0]}
    settings = hashlib.sha256("".join(options.set).encode()).hexdigest()[:6] if options.set else ""
    recipe = "-".join(filter(None, [Path(options.recipe).stem, settings]))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for title, (name, count) in tried.items():
            path = options.output / f"{recipe}-{title.removesuffix('-of-0')}-{seed}.json"
            if not path.is_file():
                keep(path, measured(options.recipe, IDEAS[name], count, seed, options.set, path.with_suffix("")))
            found.setdefault(title, []).append(json.loads(path.read_text(encoding="utf-8")))
            print(table({each: found[each] for each in found if len(found[each]) == len(found[title])}), flush=True)
    return 0


def keep(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)


def measured(
    recipe_name: str, idea: Idea, count: int, seed: int, settings: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Train one idea on one split, and what it then says of the items held out."""
    from meditune.data.prepare import prepare
    from meditune.evaluate.stage import Scoring
    from meditune.models.load import load
    from meditune.recipes.loading import load_recipe
    from meditune.train.stage import fine_tune
    from meditune.train.start import starting_point

    recipe = load_recipe(recipe_name, [*SHARED, f"seed={seed}", *settings, *idea.settings]).recipe
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    splits = prepare(recipe, folder / "data").splits
    train = few(splits.train, count, seed) if count else list(splits.train)
    loaded = load(starting_point(recipe, folder), recipe.model)
    scoring = Scoring(loaded.encoder(recipe.prompt), splits.dev, splits.dev)
    facts: dict[str, Any] = {"seconds": 0, "steps": 0}
    if idea.fit == "model":
        more = [idea.more(each) for each in train if idea.more and each.decision and each.answer]
        facts = fine_tune(loaded, dataclasses.replace(splits, train=[*train, *more]), recipe, folder)
        loaded = load(str(folder / "model"), recipe.model)
    said = scoring.predictions(loaded, recipe.evaluate.batch_tokens, "Held-out items")
    decided = by_head(loaded, recipe, train, splits.dev) if idea.fit == "head" else said.decision
    shutil.rmtree(folder)
    return {
        "items": 0 if idea.fit == "nothing" else len(train),
        "seconds": facts["seconds"],
        "steps": facts["steps"],
        "decision": decided,
        "likelihood": said.likelihood,
    }


def by_head(loaded: Any, recipe: Any, train: Sequence[Example], held: Sequence[Example]) -> list[dict[str, Any]]:
    """Decisions of a logistic regression, its strength chosen by cross-validation on the items learnt from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learnt, asked = (hidden_states(loaded, recipe, each) for each in (train, held))
    regression = LogisticRegression(max_iter=2_000)
    head = GridSearchCV(
        make_pipeline(StandardScaler(), regression),
        {"logisticregression__C": np.logspace(-5, 0, 8)},
        scoring="neg_log_loss",
    )
    head.fit(learnt, [each.decision for each in train])
    rows = zip(held, head.predict_log_proba(asked), strict=True)
    return [
        {"reference": one.decision, "logits": dict(zip(head.classes_, map(float, said), strict=True))}
        for one, said in rows
    ]


def hidden_states(loaded: Any, recipe: Any, examples: Sequence[Example]) -> Any:
    """(N, hidden size) what the decision would be predicted from."""
    from meditune.models.inference import inference
    from meditune.models.rows import by_length, rows_of

    encoder = loaded.encoder(recipe.prompt)
    rows = rows_of([encoder.supervised(each, "decision") for each in examples])
    found: dict[int, Any] = {}
    with inference(loaded.model):
        for indices in by_length(rows, recipe.evaluate.batch_tokens):
            batch, predicted = loaded.frozen.predict(loaded.model, [rows[index] for index in indices], loaded.pad_id)
            firsts = np.unique(batch.rows.numpy(), return_index=True)[1]
            for index, first in zip(indices, firsts, strict=True):
                found[index] = predicted.hidden[first].float().numpy()
    return np.stack([found[index] for index in range(len(rows))])


def few(train: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many of the examples, with each decision's share."""
    order = random.Random(f"{seed}/few").sample(list(train), len(train))
    order.sort(key=lambda each: str(each.decision))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


class Items:
    """What was said of the items of several splits, one after the other."""

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        rows = [row for result in results for row in result["decision"]]
        self.right = np.array([DECISIONS.index(row["reference"]) for row in rows])
        logits = np.array([[row["logits"][label] for label in DECISIONS] for row in rows])
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.probabilities = odds / odds.sum(axis=1, keepdims=True)
        self.order = logits[:, 0] - logits[:, 1]
        texts = [row for result in results for row in result["likelihood"]]
        self.nll = np.array([row["nll"] for row in texts])
        self.tokens = np.array([row["tokens"] for row in texts])

    def figures(self, at: Any, texts: Any) -> dict[str, float]:
        """Of the items at these places, and of the answers at those."""
        from sklearn.metrics import f1_score, roc_auc_score

        right, said = self.right[at], self.probabilities[at].argmax(axis=1)
        sure = right < 2
        likely = self.probabilities[at, right]
        return {
            "accuracy": 100 * float(np.mean(said == right)),
            "macro_f1": 100 * f1_score(right, said, average="macro", labels=[0, 1, 2], zero_division=0),
            "auc": roc_auc_score(right[sure] == 0, self.order[at][sure]),
            "log_loss": -float(np.mean(np.log(likely + 1e-9))),
            "perplexity": math.exp(self.nll[texts].sum() / self.tokens[texts].sum()),
        }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each idea, with 95 % intervals of its difference from the first one's."""
    items = {title: Items(results) for title, results in found.items()}
    first = next(iter(items.values()))
    draw = np.random.default_rng(0)
    count, texts = len(first.right), len(first.nll)
    samples = [(draw.integers(count, size=count), draw.integers(texts, size=texts)) for _ in range(RESAMPLES)]
    base = [first.figures(*sample) for sample in samples]
    names = list(base[0])
    lines = [f"| idea | seeds | items learnt | {' | '.join(names)} | minutes |", "|---" * (len(names) + 4) + "|"]
    for title, each in items.items():
        whole = each.figures(np.arange(count), np.arange(texts))
        cells = [f"{whole[name]:.{1 if whole[name] > 5 else 3}f}" for name in names]
        if each is not first:
            drawn = [each.figures(*sample) for sample in samples]
            for place, name in enumerate(names):
                low, high = np.percentile([a[name] - b[name] for a, b in zip(drawn, base, strict=True)], [2.5, 97.5])
                digits = 1 if whole[name] > 5 else 3
                cells[place] += f" ({low:+.{digits}f} to {high:+.{digits}f})"
        results = found[title]
        minutes = np.mean([result["seconds"] for result in results]) / 60
        name = title.removesuffix("-of-0")
        lines.append(f"| {name} | {len(results)} | {results[0]['items']} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
