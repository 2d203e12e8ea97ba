"""Try ideas for better answers on the training half of PubMedQA only; the test questions stay unseen.

    python benchmarks/ideas.py --recipe quickstart --ideas as-it-is with-conclusion long --seeds 1 2 --output runs/ideas
    python benchmarks/ideas.py --recipe quickstart --curve 42 84 167 335 --seeds 1 2 --output runs/ideas

Each seed splits the 500 labelled items anew into two thirds for training and one third for measuring, trains each idea,
and saves every prediction in a file in OUTPUT that is named after the idea, the seed and the settings. Existing files
are not computed again. Ideas are compared with the first idea, or with `--against`, on the same items, with intervals
from a bootstrap over items. `--curve` trains the ideas on each given number of labelled items.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import softmax

from meditune.data.example import DECISIONS, STYLE, Example, Passage
from meditune.evaluate.metrics import METRICS, statistics_of
from meditune.evaluate.predictions import Kind, Predictions, path_of
from meditune.files import read_json, read_jsonl
from meditune.statistics import Statistics, mean
from meditune.text import sentences

RESAMPLES = 1_000
SHARED = (
    *("data.dev_share=0.33", "data.fallback_to_sample=false", "evaluate.split=dev"),
    *("evaluate.similarity=false", "evaluate.choices=0"),
)
KINDS: tuple[Kind, ...] = ("decision", "likelihood", "answer", "general")
"""The kinds of predictions that are saved"""


@dataclasses.dataclass(frozen=True)
class Idea:
    """Settings that differ from the recipe's, and changes of the training rows."""

    settings: tuple[str, ...] = ()
    more: Callable[[Example], Sequence[Example]] = lambda _: ()
    """Returns additional training examples for an example"""
    fit: Literal["model", "head", "nothing"] = "model"
    """head: the model stays unchanged, and a classifier is fitted to its last hidden state"""
    beside: Callable[[Sequence[Example], Sequence[Example]], list[Example]] = lambda examples, _: list(examples)
    """Returns examples with context added from the training examples"""
    conclusions: bool = False
    """Measure decisions again after a conclusion: the model's own, and the authors' (an upper bound, because users'
    questions come without it)"""


def with_conclusion(example: Example) -> list[Example]:
    """Return the example with the conclusion added to its context, for the decision only."""
    context = (*example.context, Passage(text=example.answer, label="conclusion"))
    return [example.model_copy(update={"id": f"{example.id}#with-conclusion", "context": context, "answer": ""})]


def after_conclusion(example: Example, conclusion: str) -> Example:
    """Return the example with this conclusion added to its context, under its own id."""
    return with_conclusion(example.model_copy(update={"answer": conclusion}))[0].model_copy(update={"id": example.id})


def similar(examples: Sequence[Example], learnt: Sequence[Example]) -> list[Example]:
    """Return each example preceded by the most similar training example, answered (TF-IDF of questions and texts)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def text(example: Example) -> str:
        return " ".join([example.question, *(passage.text for passage in example.context)])

    words = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit([text(each) for each in learnt])
    near = (
        words.transform([text(each) for each in examples]) @ words.transform([text(each) for each in learnt]).T
    ).toarray()
    near[[[one.id == other.id for other in learnt] for one in examples]] = -1
    found = [learnt[place] for place in near.argmax(axis=1)]
    return [
        example.model_copy(
            update={
                "context": (
                    Passage(text=f"{other.question} {other.decision}. {other.answer}", label="similar"),
                    *example.context,
                )
            }
        )
        for example, other in zip(examples, found, strict=True)
    ]


def topics(example: Example) -> list[Example]:
    """Return an example whose answer is the abstract's MeSH terms, after a cue of its own."""
    changes = {"answer": "; ".join(example.meta["mesh"]), "decision": None, "meta": {STYLE: "plain"}}
    return [example.model_copy(update={"id": f"{example.id}#topics", **changes})] if example.meta["mesh"] else []


def annotators(example: Example) -> list[Example]:
    """Return the example with the decision of an annotator who disagreed with the final decision, if there is one.

    One annotator read the conclusion, too (`reasoning_free_pred`); the other didn't (`reasoning_required_pred`). Only
    training items are looked up.
    """
    given = published_labels()[example.id.partition(":")[2]]
    for field in ("reasoning_required_pred", "reasoning_free_pred"):
        if given[field] != example.decision:
            return [example.model_copy(update={"id": f"{example.id}#{field}", "decision": given[field], "answer": ""})]
    return []


@functools.cache
def published_labels() -> dict[str, Any]:
    """Return PubMedQA's labelled items, as published, by their PubMed id, without the official test items."""
    from meditune.data.readers.pubmedqa import ground_truth
    from meditune.data.sources import locate_own

    tested = ground_truth(Path(locate_own("pubmedqa")))
    items = read_json(Path(locate_own("pubmedqa/ori_pqal.json")))
    return {pmid: item for pmid, item in items.items() if pmid not in tested}


def artificial(example: Example) -> list[Example]:
    """Return up to three questions that the conclusion's sentences answer, made as PubMedQA's authors made theirs.

    A sentence's statement becomes a question with the answer yes, or no if it says "not". A positive statement also
    becomes a question with the opposite word and the answer no.
    """
    found = [asked for sentence in sentences(example.answer) for asked in questions_of(sentence)]
    return [
        example.model_copy(update={"id": f"{example.id}#{n}", "question": text, "decision": said, "answer": ""})
        for n, (text, said) in enumerate(found[:3])
    ]


STATED = re.compile(
    r"(?:(?:in conclusion|therefore|thus|however|overall|moreover|"
    r"(?:our|these|this|the) (?:results|data|findings|study) (?:suggests?|shows?|indicates?) that),? )?"
    r"(?P<of>[^,;:]{3,120}?) (?P<verb>is|are|was|were|may|might|can|could|should|does|do|did|has|have|will|would)"
    r"(?P<never> not)? (?P<rest>[^;:]{10,200})\.",
    re.IGNORECASE,
)
PAIRS = (
    *(("increased", "decreased"), ("increase", "decrease"), ("higher", "lower"), ("better", "worse")),
    *(("improved", "worsened"), ("improve", "worsen"), ("effective", "ineffective")),
    *(("safe", "unsafe"), ("positive", "negative"), ("high", "low"), ("greater", "smaller"), ("reduced", "raised")),
    *(("feasible", "impossible"), ("necessary", "unnecessary"), ("useful", "useless"), ("reduce", "raise")),
)
CONTRARIES = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
CONTRARY = re.compile(rf"\b({'|'.join(CONTRARIES)})\b", re.IGNORECASE)


NEGATION = re.compile(r"\b(?:not?|never|neither|nor|none|without|lack\w*|hardly|little)\b", re.IGNORECASE)


def questions_of(sentence: str) -> list[tuple[str, Literal["yes", "no"]]]:
    """Return a sentence's statement as questions with answers; empty if its form can't be turned into a question."""
    match = STATED.fullmatch(sentence.strip())
    if not match or NEGATION.search(match["of"]) or NEGATION.search(match["rest"]):
        return []
    of = match["of"][0].lower() + match["of"][1:] if match["of"][1:2].islower() else match["of"]
    start = f"{match['verb'].capitalize()} {of}"
    if match["never"]:
        return [(f"{start} {match['rest']}?", "no")]
    contrary = CONTRARY.sub(lambda word: CONTRARIES[word[0].lower()], match["rest"], count=1)
    asked: list[tuple[str, Literal["yes", "no"]]] = [(f"{start} {match['rest']}?", "yes")]
    return [*asked, (f"{start} {contrary}?", "no")] if contrary != match["rest"] else asked


# These settings are for the quickstart; --set overrides them.
IDEAS = {
    "as-it-is": Idea(),
    "untuned": Idea(fit="nothing"),
    "with-conclusion": Idea(("train.epochs=2",), with_conclusion, conclusions=True),
    "prompts-too": Idea(("train.prompt_share=0.5",)),
    "long": Idea(("prompt.max_tokens=768", "train.epochs=2")),
    "head": Idea(fit="head"),
    "artificial": Idea(("train.epochs=2",), artificial),
    "topics": Idea(('prompt.plain_cue="Topics:"',), topics),
    "consumers": Idea(
        (
            'data.sources=[{"name":"pubmedqa"},{"name":"medquad","limit":8000,"style":"plain"},'
            '{"name":"liveqa","style":"plain"}]',
            *("data.split=official", 'data.balance={"by":"reading_grade","cap":80,"sources":["medquad","liveqa"]}'),
            *('prompt.plain_cue="In plain words:"', "train.epochs=2"),
        )
    ),
    "annotators": Idea((), annotators),
    "trials": Idea(
        (
            'data.sources=[{"name":"pubmedqa"},{"name":"own/trials","path":"rct-abstracts/abstracts.jsonl","limit":335,'
            '"split":"train","fields":{"question":"title","context":"contexts","answer":"long_answer"}}]',
            "data.split=official",
        )
    ),
    "similar": Idea(("prompt.max_tokens=448", "prompt.context_head=0.45"), beside=similar),
    "rank-4": Idea(("model.lora.r=4", "model.lora.alpha=8")),
    "rank-64": Idea(("model.lora.r=64", "model.lora.alpha=128")),
    "attention": Idea(('model.lora.targets=["q_proj","k_proj","v_proj","o_proj"]',)),
    "all-layers": Idea(("model.top_layers=null", "train.learning_rate=4e-4")),
    "full": Idea(("model.strategy=full", "train.learning_rate=3e-5")),
}


def main() -> int:
    """Train and measure what has no result yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--ideas", nargs="+", default=["as-it-is"], choices=IDEAS, metavar="IDEA")
    parser.add_argument(
        "--curve",
        nargs="+",
        type=int,
        default=[],
        metavar="ITEMS",
        help="train on these numbers of items, for example 42 84",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe setting for all ideas"
    )
    parser.add_argument(
        "--against", nargs="+", type=Path, metavar="FILE", help="compare with these predictions, one file for each seed"
    )
    parser.add_argument("--keep", action="store_true", help="keep the trained models, too")
    parser.add_argument("--output", type=Path, default=Path("runs/ideas"))
    options = parser.parse_args()
    from meditune.config.load_recipe import load_recipe

    tried = {f"{name}-of-{count}": (name, count) for name in options.ideas for count in options.curve or [0]}
    found: dict[str, list[dict[str, Any]]] = {}
    if options.against:
        found["against"] = [json.loads(path.read_text(encoding="utf-8")) for path in options.against]
    for seed in options.seeds:
        for title, (name, count) in tried.items():
            idea = IDEAS[name]
            recipe = load_recipe(options.recipe, [*SHARED, f"seed={seed}", *idea.settings, *options.set]).recipe
            title = title.removesuffix("-of-0")
            digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:6]
            path = options.output / f"{recipe.name}-{title}-{seed}-{digest}.json"
            if not path.is_file() or (options.keep and not path.with_suffix("").is_dir()):
                keep(path, measured(recipe, idea, count, path.with_suffix(""), options.keep))
            print(path, file=sys.stderr)
            result = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(title, []).append(result)
            for whose, rows in result.get("read", {}).items():
                found.setdefault(f"{title}, {whose} read", []).append(
                    {**{key: result[key] for key in ("items", "seconds", "steps")}, "decision": rows}
                )
            print(table({each: found[each] for each in found if len(found[each]) == len(found[title])}), flush=True)
    return 0


def keep(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)


def measured(recipe: Any, idea: Idea, count: int, folder: Path, keep_model: bool) -> dict[str, Any]:
    """Train one idea on one split, and return its predictions for the held-out items."""
    from meditune.data.prepare import prepare
    from meditune.evaluate.evaluator import Evaluator
    from meditune.evaluate.weights_backend import WeightsBackend
    from meditune.models.load import load
    from meditune.train.finetune import fine_tune
    from meditune.train.training_plan import starting_point

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    splits = prepare(recipe, folder / "data").splits
    train = few(splits.train, count, recipe.seed) if count else list(splits.train)
    held = [each for each in splits.dev if each.source == "pubmedqa"]
    train, held = idea.beside(train, train), idea.beside(held, train)
    loaded = load(starting_point(recipe, folder), recipe.model)
    facts: dict[str, Any] = {"seconds": 0, "steps": 0}
    if idea.fit == "model":
        more = [other for each in train if each.decision and each.answer for other in idea.more(each)]
        facts = fine_tune(loaded, dataclasses.replace(splits, train=[*train, *more]), recipe, folder)
        loaded = load(str(folder / "model"), recipe.model)
    Evaluator(recipe, held, folder).measure(WeightsBackend(loaded, recipe), "model")
    paths = {kind: path_of(folder, "model", kind) for kind in KINDS}
    said = {kind: read_jsonl(path) for kind, path in paths.items() if path.is_file()}
    read: dict[str, list[dict[str, Any]]] = {}
    if idea.conclusions:
        written = {row["id"]: row["prediction"] for row in said["answer"]}
        drawn = {"its own conclusion": written, "the authors' conclusion": {each.id: each.answer for each in held}}
        for number, (whose, conclusions) in enumerate(drawn.items()):
            asked = [after_conclusion(each, conclusions[each.id]) for each in held if each.id in conclusions]
            alone = decisions_alone(recipe)
            Evaluator(alone, asked, folder / f"read-{number}").measure(WeightsBackend(loaded, alone), "model")
            read[whose] = read_jsonl(path_of(folder / f"read-{number}", "model", "decision"))
    if idea.fit == "head":
        said["decision"] = by_head(loaded, recipe, train, held)
    if not keep_model:
        shutil.rmtree(folder)
    return {
        "items": 0 if idea.fit == "nothing" else len(train),
        "seconds": facts["seconds"],
        "steps": facts["steps"],
        "read": read,
        **said,
    }


def decisions_alone(recipe: Any) -> Any:
    off = dict.fromkeys(("general_tokens", "technical_tokens", "choices", "safety_messages", "samples"), 0)
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=off)})


def by_head(loaded: Any, recipe: Any, train: Sequence[Example], held: Sequence[Example]) -> list[dict[str, Any]]:
    """Return decisions of a logistic regression whose penalty is chosen by cross-validation on the training items."""
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
    found = [dict(zip(head.classes_, map(float, said), strict=True)) for said in head.predict_log_proba(asked)]
    return [
        {
            "id": one.id,
            "reference": one.decision,
            "prediction": max(said, key=lambda label: said[label]),
            "logits": said,
        }
        for one, said in zip(held, found, strict=True)
    ]


def hidden_states(loaded: Any, recipe: Any, examples: Sequence[Example]) -> Any:
    """Return the (N, hidden size) states from which the decision is predicted."""
    from meditune.models.inference import batch_limit, inference
    from meditune.models.shared_prefix_batch import by_length, rows_of

    encoder = loaded.encoder(recipe.prompt)
    rows = rows_of([encoder.supervised(each, "decision") for each in examples])
    found: dict[int, Any] = {}
    with inference(loaded.model):
        for indices in by_length(rows, batch_limit(loaded.model, recipe.train.micro_batch_tokens)):
            batch, predicted = loaded.frozen.predict(loaded.model, [rows[index] for index in indices], loaded.pad_id)
            firsts = np.unique(batch.rows.numpy(), return_index=True)[1]
            for index, first in zip(indices, firsts, strict=True):
                found[index] = predicted.hidden[first].float().numpy()
    return np.stack([found[index] for index in range(len(rows))])


def few(train: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Return `count` of the examples, with each decision's share preserved."""
    order = random.Random(f"{seed}/few").sample(list(train), len(train))
    order.sort(key=lambda each: str(each.decision))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


DIGITS = {"auc": 3, "log_loss": 3} | {name: metric.digits for name, metric in METRICS.items()}
FIGURES = (
    *("accuracy", "macro_f1", "auc", "log_loss", "ece"),
    *("perplexity", "bleu", "rouge1", "rouge2", "rougeL", "length_ratio", "general_perplexity"),
)


def said_of(results: Sequence[dict[str, Any]]) -> dict[str, Statistics]:
    """Return the metrics over the items of several splits together."""

    def rows(kind: Kind) -> list[dict[str, Any]]:
        """Return the rows of all splits; empty if one of them lacks this kind."""
        if not all(kind in result for result in results):
            return []
        return [{**row, "id": f"{number}/{row['id']}"} for number, result in enumerate(results) for row in result[kind]]

    found = statistics_of(Predictions(**{kind: rows(kind) for kind in KINDS}))
    decided = rows("decision")
    ids = tuple(row["id"] for row in decided)
    logits = np.array([[row["logits"][label] for label in DECISIONS] for row in decided])
    right = np.array([DECISIONS.index(row["reference"]) for row in decided])
    likely = softmax(logits, axis=1)[np.arange(len(right)), right]
    found["log_loss"] = mean(ids, list(-np.log(likely + 1e-9)))
    # A metric of pairs of items has no sums over items, so count how often each item was drawn.
    found["auc"] = Statistics(ids, np.eye(len(ids)), lambda drawn: auc(right, logits[:, 0] - logits[:, 1], drawn))
    return {name: found[name] for name in FIGURES if name in found}


def auc(right: Any, order: Any, drawn: Any) -> Any:
    """Return the area under the ROC curve of yes against no, with items weighted by how often each was drawn."""
    from sklearn.metrics import roc_auc_score

    sure = right < 2
    areas = [
        roc_auc_score(right[sure] == 0, order[sure], sample_weight=each[sure])
        for each in drawn.reshape(-1, drawn.shape[-1])
    ]
    return np.reshape(areas, drawn.shape[:-1])


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a line for each idea with 95% intervals of its difference from the first one, bold if they exclude 0."""
    said = {title: said_of(results) for title, results in found.items()}
    first = next(iter(said))
    names = [name for name in FIGURES if any(name in each for each in said.values())]
    lines = [f"| idea | seeds | training items | {' | '.join(names)} | minutes |", "|---" * (len(names) + 4) + "|"]
    for title, figures in said.items():
        cells = [cell(name, figures.get(name), said[first].get(name) if title != first else None) for name in names]
        results = found[title]
        minutes = np.mean([result["seconds"] for result in results]) / 60
        lines.append(f"| {title} | {len(results)} | {results[0]['items']} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def cell(name: str, figure: Statistics | None, other: Statistics | None) -> str:
    """Return a metric with the interval of its difference from the other metric."""
    if figure is None:
        return ""
    digits = DIGITS[name]
    text = f"{figure.value():.{digits}f}"
    if other is None:
        return text
    if other.ids != figure.ids:
        return f"{text} (of other items)"
    # Draw an item that several splits held out together with all of its rows.
    items, place = np.unique([each.partition("/")[2] for each in figure.ids], return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(items), [1 / len(items)] * len(items), RESAMPLES)[:, place]
    deltas = figure.figure(drawn @ figure.items) - other.figure(drawn @ other.items)
    low, high = np.percentile(deltas, [2.5, 97.5])
    text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{text}**" if low > 0 or high < 0 else text


if __name__ == "__main__":
    sys.exit(main())
