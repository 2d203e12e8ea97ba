"""Measure how well the detector of meditune.evidence separates true answers from deliberately falsified ones.

    python benchmarks/faithfulness.py          # the tables of docs/experiments/faithfulness.md
    python benchmarks/faithfulness.py --fit    # first fit src/meditune/evidence/calibration.json again
    python benchmarks/faithfulness.py --references quickstart   # the detector metrics of a recipe's reference answers
    python benchmarks/faithfulness.py --judge runs/evidence --items 50   # a judge beside the detector, on a sample

MEDITUNE_DATA names the folder with the publishers' pubmedqa and medquad. Only the 500 items of the publisher's training
set of PubMedQA are used: half for fitting and choosing thresholds, the other half for the tables.

An item's sources are its abstract and its question. There are four kinds of true answers:

- conclusions: the abstract's own conclusion, which isn't among the sources and paraphrases them.
- extracts: one or two sentences of the abstract's results, half of them without the text in parentheses.
- reworded: the same with simpler words, percent signs spelled out, clauses left out, "The study found that" before it.
- medquad: two sentences of a MedQuAD answer, reworded; the sources are the whole answer. Nothing was fitted on these.

Each true answer is falsified in one way: a number swapped, a negation added or removed, a direction reversed, a disease
or drug swapped for another one (found by MedQuAD's topics, not by the detector's own rules; half of the topics are for
fitting, the other half for the tables), a sentence replaced by another item's, or a sentence added.

`--judge` takes what evaluate.faithfulness_model takes: a judge's run or its export, or an NLI model. The score of an
answer is that of its worst sentence, as in an evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from meditune.config.load_recipe import load_recipe
from meditune.data.example import Example, Passage
from meditune.data.preference_pairs import corrupt
from meditune.data.prepare import prepare
from meditune.data.readers import medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.engines.evidence_judge import load_support_model
from meditune.evaluate.evaluator import chosen_answers
from meditune.evaluate.faithfulness_and_similarity import grade_faithfulness
from meditune.evaluate.metrics import METRICS, references_of
from meditune.evaluate.predictions import Predictions, answer_row
from meditune.evidence import lexical_detector
from meditune.evidence.lexical_detector import Evidence, Sentence, Sources, evidence
from meditune.evidence.support_model import Support, SupportQuestion
from meditune.progress import Progress
from meditune.statistics import draws
from meditune.text import sentences

KINDS = ("number", "negation", "direction", "name", "replaced", "added")
REFERENCES = ("conclusions", "extracts", "reworded", "medquad")
SEED = 17
RESAMPLES = 1000
ALARMS = 0.1
"""Share of the true answers of the harder kind that score below the threshold, in the half used for fitting"""
FOLLOWING = (
    "in_order known best length negation_turned directions_against directions_turned directions_unseen "
    "numbers_elsewhere number_replaced numbers_missing names replaced inserted"
)
PARAPHRASING = (
    "known known_below_20 known_below_40 known_below_60 best best_below_20 question_below_20 length rare rarest "
    "rare_among_unknown names numbers_missing numbers_elsewhere units directions_against directions_unseen negated "
    "denies_against"
)
OPENING = re.compile(
    r"^(?:However|Moreover|Furthermore|In addition|Overall|Therefore|Thus|Also|Finally|In contrast), (\w)"
)
PLAINER = {
    r"(\d) ?%": r"\1 percent",
    r"\bpatients\b": "people",
    r"\bphysicians\b": "doctors",
    r"\bdid not\b": "didn't",
    r"\b(?:demonstrated|revealed)\b": "found",
    r"\bsubjects\b": "participants",
    r"\bapproximately\b": "about",
    r"\butili[sz]ed\b": "used",
    r"\badministered\b": "given",
    r"\bindividuals\b": "people",
    r"\bvs\.?(?= )": "versus",
    r"\bprior to\b": "before",
    r"\bmajority\b": "most part",
    r"\bexamined\b": "looked at",
    r"\bobtained\b": "got",
    r"\btherapy\b": "treatment",
    r"\bsymptoms\b": "complaints",
    r"\bphysical\b": "bodily",
    r"\bassessed\b": "measured",
    r"\brespectively\b": "in that order",
    r"\bsuch as\b": "like",
    r"\boften\b": "frequently",
    r"\busually\b": "mostly",
    r"\bphysician\b": "doctor",
    r"\bcaused by\b": "due to",
    r"\bbegins?\b": "starts",
    r"\bpersons\b": "people",
}
"""Replacements that don't change the meaning"""
Topics = Mapping[str, Sequence[str]]
"""Semantic group -> names of diseases, or of drugs"""


@dataclass
class Answer:
    """A true or falsified answer, with the evidence found in it."""

    reference: str
    kind: str
    """How it was falsified; "true" if it wasn't"""
    text: str
    item: Example
    wrong: frozenset[int] = frozenset()
    """Numbers of the false sentences"""
    found: list[Evidence] = field(default_factory=list)
    score: float = 0.0
    sentence_scores: list[float] = field(default_factory=list)

    def false(self) -> list[Evidence]:
        """Return the evidence of the false sentences."""
        return [seen for number, seen in enumerate(self.found) if number in self.wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fit", action="store_true", help="fit calibration.json to the first half, then print the tables"
    )
    parser.add_argument(
        "--references",
        nargs="+",
        metavar=("RECIPE", "KEY=VALUE"),
        help="only print the detector metrics of this recipe's reference answers",
    )
    parser.add_argument("--judge", metavar="RUN", help="only compare this judge with the detector, on a sample")
    parser.add_argument("--items", type=int, default=50, help="items of PubMedQA and of MedQuAD for --judge")
    arguments = parser.parse_args()
    if arguments.references:
        print("\n".join(references(*arguments.references)))
        return
    root = Path(os.environ["MEDITUNE_DATA"]).expanduser()
    items, _ = pubmedqa.official_split(pubmedqa.read(root / "pubmedqa", Rejects()))
    items = sorted(items, key=lambda item: item.id)
    random.Random(SEED).shuffle(items)
    pairs = list(medquad.read(root / "medquad", Rejects()))
    topics = named(pairs, root / "medquad")
    first, second = items[: len(items) // 2], items[len(items) // 2 :]
    if arguments.fit:
        fit(judged(with_corruptions([*conclusions(first), *extracts(first)], half(topics, 0))))
    answers = with_corruptions([*conclusions(second), *extracts(second), *of_medquad(pairs)], half(topics, 1))
    if arguments.judge:
        model = load_support_model(arguments.judge)
        answers = judged(sampled(answers, arguments.items))
        print("\n".join(comparison(answers, by_judge(answers, model), model.threshold)))
        return
    print("\n".join(tables(judged(answers))))


def references(name: str, *settings: str) -> Iterator[str]:
    """Yield Markdown with the detector metrics of a recipe's reference answers, with bootstrap intervals."""
    recipe = load_recipe(name, settings).recipe
    with TemporaryDirectory() as folder:
        measured = prepare(recipe, Path(folder) / "data").splits.measured(recipe.evaluate.split)
    scored = chosen_answers(measured, recipe.evaluate.answers, recipe.seed)
    rows = [answer_row(example, example.answer) for example in scored]
    known = {each.id: each for each in scored}
    graded = grade_faithfulness(Predictions(answer=rows), known, recipe.evaluate, of_references=True)
    yield "| metric | reference answers | 95% interval |\n|---|---|---|"
    for key, found in references_of(Predictions(reference_faithfulness=list(graded or ()))).items():
        metric, drawn = METRICS[key], np.concatenate(list(draws(len(found.ids), 10 * RESAMPLES, recipe.seed)))
        low, high = np.nanpercentile(found.figure(drawn @ found.items), [2.5, 97.5])
        figures = [f"{each:.{metric.digits}f}" for each in (found.value(), low, high)]
        yield f"| {metric.title} | {figures[0]} | {figures[1]} to {figures[2]} |"
    yield f"\n{len(scored)} answers, {sum(len(sentences(example.answer)) for example in scored)} sentences."


def conclusions(items: Sequence[Example]) -> list[Answer]:
    """Return the abstracts' own conclusions."""
    return [Answer("conclusions", "true", item.answer, item) for item in items if item.answer]


def extracts(items: Sequence[Example]) -> list[Answer]:
    """Return sentences of the results (or else of the last section) of each abstract, unchanged and reworded."""
    found = []
    for item in items:
        passages = [each for each in item.context if re.search("RESULT|FINDING|OBSERV", each.label)]
        texts = [each.text for each in passages or item.context[-1:]]
        for reference in ("extracts", "reworded"):
            chance = random.Random(f"{SEED}/{reference}/{item.id}")
            text = extract(texts, chance)
            text = reworded(text, chance) if reference == "reworded" else text
            found += [Answer(reference, "true", text, item)] if text else []
    return found


def reworded(text: str, chance: random.Random) -> str:
    """Return the text in plainer words; half of the long clauses after a sentence's last comma are left out."""
    found = []
    for each in sentences(text):
        for pattern, plainer in PLAINER.items():
            each = re.sub(pattern, plainer, each)
        head, comma, rest = each.rpartition(", ")
        if comma and len(head.split()) >= 8 and len(rest.split()) >= 4 and chance.random() < 0.5:
            each = f"{head}."
        if chance.random() < 0.3 and not each[1:2].isupper():
            each = f"The study found that {each[:1].lower()}{each[1:]}"
        found.append(each)
    return " ".join(found)


def of_medquad(pairs: Sequence[Example], count: int = 250) -> list[Answer]:
    """Return sentences of long MedQuAD answers, one answer for each topic."""
    by_topic = {pair.group: pair for pair in pairs if 100 <= len(pair.answer.split()) <= 400}
    chosen = random.Random(SEED).sample(sorted(by_topic), count)
    found = []
    for pair in (by_topic[each] for each in chosen):
        item = pair.model_copy(update={"context": (Passage(text=pair.answer),)})
        chance = random.Random(f"{SEED}/medquad/{item.id}")
        text = reworded(extract([pair.answer], chance), chance)
        found += [Answer("medquad", "true", text, item)] if text else []
    return found


def extract(passages: Sequence[str], chance: random.Random) -> str:
    """Return up to two sentences in order, half of them without parentheses, all without an opening "However,"."""
    pool = [each for text in passages for each in sentences(" ".join(text.split()))]
    pool = [each for each in pool if 8 <= len(each.split()) <= 45 and each.endswith(".")]
    taken = [pool[index] for index in sorted(chance.sample(range(len(pool)), min(2, len(pool))))]
    shorter = [re.sub(r"\s*\([^()]*\)", "", each) if chance.random() < 0.5 else each for each in taken]
    return " ".join(OPENING.sub(lambda match: match[1].upper(), each) for each in shorter)


def with_corruptions(truths: Sequence[Answer], topics: Topics) -> list[Answer]:
    """Return each true answer and its corruptions."""
    answers = list(truths)
    for reference in REFERENCES:
        answers += corrupted([each for each in truths if each.reference == reference], topics)
    return answers


def judged(answers: list[Answer]) -> list[Answer]:
    """Return the answers with the detector's scores and the evidence in their sentences."""
    sources: dict[str, Sources] = {}
    for each in answers:
        known = sources.get(each.item.id) or Sources((p.text for p in each.item.context), each.item.question)
        sources[each.item.id] = known
        each.found = [evidence(Sentence(text), known) for _, text in lexical_detector.placed(each.text)]
        each.score = lexical_detector.detect(each.text, known).score or 0.0
        each.sentence_scores = [_chance(lexical_detector.sentence_logit(seen)) for seen in each.found]
    return answers


def sampled(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Return all answers of a seeded sample of `count` items of each source; a larger sample contains a smaller one."""
    chosen: set[str] = set()
    for source in sorted({each.item.source for each in answers}):
        ids = sorted({each.item.id for each in answers if each.item.source == source})
        random.Random(SEED).shuffle(ids)
        chosen.update(ids[:count])
    return [each for each in answers if each.item.id in chosen]


def by_judge(answers: Sequence[Answer], model: Support) -> list[Answer]:
    """Return the answers with the scores of a judge instead of the detector's.

    The judge reads the answers to an item one after another, because they share their sources.
    """
    order = sorted(range(len(answers)), key=lambda number: answers[number].item.id)
    asked, owners = [], []
    for number in order:
        each = answers[number]
        sources = tuple(passage.text for passage in each.item.context)
        for start, text in lexical_detector.placed(each.text):
            asked.append(SupportQuestion(sources, each.item.question, each.text, start, start + len(text)))
            owners.append(number)
    started = time.monotonic()
    supports: list[list[float]] = [[] for _ in answers]
    with Progress("Judge", len(asked), "sentences") as progress:
        for number, score in zip(owners, model.score(asked), strict=True):
            supports[number].append(score.score)
            progress.advance(1)
    print(f"{len(asked)} sentences, {(time.monotonic() - started) / len(asked):.2f} seconds each.\n")
    return [
        replace(each, score=min(found, default=0.0), sentence_scores=found)
        for each, found in zip(answers, supports, strict=True)
    ]


def corrupted(truths: Sequence[Answer], topics: Topics) -> Iterator[Answer]:
    """Yield every corruption that is possible for the answers."""
    items = [each.item.model_copy(update={"answer": each.text}) for each in truths]
    patterns = {
        group: re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b", re.I) for group, names in topics.items()
    }
    for truth, item in zip(truths, items, strict=True):
        chance = random.Random(f"{SEED}/{truth.reference}/{item.id}")
        mine = sentences(truth.text)
        for kind in KINDS:
            other = chance.choice([each for each in truths if each.item.group != item.group])
            strange = chance.choice(sentences(other.text))
            if kind == "number" or kind == "negation" or kind == "direction":
                text = corrupt(kind, item, items, chance)
            elif kind == "name":
                text = renamed(item, topics, patterns, chance)
            elif kind == "added":
                text = f"{truth.text} {strange}"
            elif len(mine) > 1:
                place = chance.randrange(len(mine))
                text = " ".join([*mine[:place], strange, *mine[place + 1 :]])
            else:
                continue
            if text and text != truth.text:
                wrong = frozenset(number for number, each in enumerate(sentences(text)) if each not in mine)
                yield Answer(truth.reference, kind, text, truth.item, wrong)


def renamed(
    item: Example, topics: Topics, patterns: Mapping[str, re.Pattern[str]], chance: random.Random
) -> str | None:
    """Return the answer with a disease or drug replaced by one that isn't in the sources; None if it names none."""
    known = " ".join([item.question, *(passage.text for passage in item.context)]).casefold()
    found = [(match, group) for group in sorted(patterns) for match in patterns[group].finditer(item.answer)]
    if not found:
        return None
    match, group = chance.choice(found)
    new = chance.choice([name for name in topics[group] if name not in known])
    new = new.capitalize() if match[0][0].isupper() else new
    return item.answer[: match.start()] + new + item.answer[match.end() :]


def named(pairs: Sequence[Example], folder: Path) -> Topics:
    """Return the topics of MedQuAD's pairs by semantic group; drugs are from the files whose answers were removed."""
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        if pair.meta["semantic_group"] == "Disorders":
            found["disease"].add(pair.meta["focus"])
    for file in sorted((*folder.glob("11_*/*.xml"), *folder.glob("12_*/*.xml"))):
        if focus := re.search(r"<Focus>(.*?)</Focus>", file.read_text(encoding="utf-8", errors="replace")):
            found["drug"].add(focus[1])
    plain = {
        group: {re.sub(r"\s*\(.*?\)", "", name).strip().casefold() for name in names} for group, names in found.items()
    }
    usable = re.compile(r"[a-z'-]{4,}(?: [a-z'-]+){0,2}")
    return {group: sorted(filter(usable.fullmatch, names)) for group, names in plain.items()}


def half(topics: Topics, which: int) -> Topics:
    """Return every second name of each group."""
    return {group: names[which::2] for group, names in topics.items()}


def fit(answers: Sequence[Answer]) -> None:
    """Fit three logistic regressions, choose two thresholds, write them to calibration.json, and use them."""
    found = [(each, number, seen) for each in answers for number, seen in enumerate(each.found)]
    fitted = lexical_detector.CALIBRATION
    for name, features, follows in (
        ("extractive_weights", FOLLOWING.split(), True),
        ("paraphrase_weights", PARAPHRASING.split(), False),
    ):
        rows = [
            (each, seen.features, number not in each.wrong) for each, number, seen in found if seen.follows is follows
        ]
        groups = [each.item.group for each, _, _ in rows]
        fitted[name] = _regression(features, [row for _, row, _ in rows], [true for _, _, true in rows], groups)
    logits = [[lexical_detector.sentence_logit(seen) for seen in each.found] for each in answers]
    true = [each.kind == "true" for each in answers]
    whole = [lexical_detector.answer_features(each) for each in logits]
    fitted["answer_weights"] = _regression(list(whole[0]), whole, true, [each.item.group for each in answers])
    fitted["answer_threshold"] = _limit(
        [(each.reference, lexical_detector.answer_logit(row)) for each, row in _true(answers, logits)]
    )
    fitted["sentence_threshold"] = _limit(
        [(each.reference, value) for each, row in _true(answers, logits) for value in row]
    )
    path = Path(lexical_detector.__file__).with_name("calibration.json")
    path.write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {path}\n")


def _true(answers: Sequence[Answer], logits: Sequence[list[float]]) -> Iterator[tuple[Answer, list[float]]]:
    """Return the true answers, with the log-odds of their sentences."""
    return ((each, row) for each, row in zip(answers, logits, strict=True) if each.kind == "true")


def _limit(scored: Sequence[tuple[str, float]]) -> float:
    """Return the score below which the share ALARMS of the true ones of the harder kind is, from kinds and log-odds."""
    kinds = {kind for kind, _ in scored}
    lowest = min(np.quantile([value for kind, value in scored if kind == each], ALARMS) for each in kinds)
    return round(float(1 / (1 + np.exp(-lowest))), 3)


def _regression(
    names: Sequence[str], rows: Sequence[Mapping[str, float]], true: Sequence[bool], groups: Sequence[str]
) -> dict[str, float]:
    """Return the coefficients and the intercept with balanced classes; cross-validation chooses the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    table = np.array([[row[name] for name in names] for row in rows])
    spread = table.std(axis=0) + 1e-9
    losses = {}
    for strength in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        model = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced")
        folds = GroupKFold(5, shuffle=True, random_state=SEED)
        scores = cross_val_score(model, table / spread, true, groups=groups, cv=folds, scoring="neg_log_loss")
        losses[strength] = round(float(-scores.mean()), 4)
    best = min(losses, key=lambda strength: losses[strength])
    model = LogisticRegression(C=best, max_iter=5000, class_weight="balanced").fit(table / spread, true)
    print(f"Cross-validated log loss of {len(rows)} rows by C: {losses}")
    found = dict(zip(names, (model.coef_[0] / spread).tolist(), strict=True))
    return {"intercept": round(float(model.intercept_[0]), 4)} | {
        name: round(value, 4) for name, value in found.items()
    }


def tables(answers: Sequence[Answer]) -> Iterator[str]:
    """Yield Markdown tables: AUROC, precision and recall by reference and corruption, false alarms, and spans."""
    threshold = lexical_detector.CALIBRATION["answer_threshold"]
    yield "| true answers | falsified by | answers | AUROC | 95% interval | precision | recall | true one higher |"
    yield "|---|---|---|---|---|---|---|---|"
    for reference, kind, true, false in _groups(answers):
        area, low, high = _interval(_areas(true, false))
        precision, recall = _precision_and_recall(true, false, threshold)
        figures = f"{area:.3f} | {low:.3f} to {high:.3f} | {precision} | {recall} | {_higher(true, false)}"
        yield f"| {reference} | {kind} | {len(false)} | {figures} |"
    yield "\n| true answers | answers | false alarms | 95% interval | sentences | reported as unsupported |"
    yield "|---|---|---|---|---|---|"
    for reference in REFERENCES:
        true = _of(answers, reference)
        alarms, low, high, unsupported = _alarms(true, threshold, lexical_detector.CALIBRATION["sentence_threshold"])
        said = sum(len(each.sentence_scores) for each in true)
        yield f"| {reference} | {len(true)} | {alarms} | {low:.1f} to {high:.1f} | {said} | {unsupported} |"
    yield f"\n| kind of span | true answers with one: {' | '.join(REFERENCES)} |"
    yield "|---|" + "---|" * len(REFERENCES)
    for kind in ("number", "unit", "name", "negation", "direction"):
        columns = [[any(map(_has(kind), each.found)) for each in _of(answers, name)] for name in REFERENCES]
        yield f"| {kind} | {' | '.join(map(_percent, columns))} |"
    yield f"\n| falsified by | false sentences with a span of that kind: {' | '.join(REFERENCES)} |"
    yield "|---|" + "---|" * len(REFERENCES)
    for kind in ("number", "negation", "direction", "name"):
        falsified = [[seen for each in _of(answers, name, kind) for seen in each.false()] for name in REFERENCES]
        yield f"| {kind} | {' | '.join(_percent([*map(_has(kind), column)]) for column in falsified)} |"


def comparison(answers: Sequence[Answer], others: Sequence[Answer], threshold: float) -> Iterator[str]:
    """Yield the first two tables for the detector's `answers`, and for the same answers with a judge's scores.

    `threshold` is the judge's, for sentences and answers alike. The draws are the same for both, so that the intervals
    of the differences are those of a paired bootstrap.
    """
    detector = lexical_detector.CALIBRATION
    yield (
        "| true answers | falsified by | answers | AUROC, detector (95% interval) | AUROC, judge (95% interval) | "
        "judge - detector (95% interval) | precision and recall, detector | judge | true one higher, detector | judge |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (reference, kind, true, false), (_, _, other_true, other_false) in zip(
        _groups(answers), _groups(others), strict=True
    ):
        areas, other_areas = _areas(true, false), _areas(other_true, other_false)
        columns = [
            *(f"{area:.3f} ({low:.3f} to {high:.3f})" for area, low, high in map(_interval, (areas, other_areas))),
            "{:+.3f} ({:+.3f} to {:+.3f})".format(*_interval(other_areas - areas)),
            " and ".join(_precision_and_recall(true, false, detector["answer_threshold"])),
            " and ".join(_precision_and_recall(other_true, other_false, threshold)),
            *(_higher(true, false), _higher(other_true, other_false)),
        ]
        yield f"| {reference} | {kind} | {len(false)} | {' | '.join(columns)} |"
    yield (
        "\n| true answers | answers | false alarms, detector (95% interval) | judge (95% interval) | sentences | "
        "reported as unsupported, detector | judge |"
    )
    yield "|---|---|---|---|---|---|---|"
    for reference in dict.fromkeys(each.reference for each in answers):
        true = _of(answers, reference)
        both = [
            _alarms(true, detector["answer_threshold"], detector["sentence_threshold"]),
            _alarms(_of(others, reference), threshold, threshold),
        ]
        alarms = " | ".join(f"{share} ({low:.1f} to {high:.1f})" for share, low, high, _ in both)
        said = sum(len(each.sentence_scores) for each in true)
        yield f"| {reference} | {len(true)} | {alarms} | {said} | {' | '.join(each[3] for each in both)} |"


def _groups(answers: Sequence[Answer]) -> Iterator[tuple[str, str, list[Answer], list[Answer]]]:
    """Yield the rows of the first table: names of the true answers and of the corruption, true and false answers."""
    for reference in REFERENCES:
        for kind, kinds in (*((each, (each,)) for each in KINDS), ("any", KINDS)):
            if false := _of(answers, reference, *kinds):
                yield reference, kind, _of(answers, reference), false
    for name, references in (("all of PubMedQA", REFERENCES[:3]), ("all", REFERENCES)):
        both = [each for each in answers if each.reference in references]
        false = [each for each in both if each.kind != "true"]
        yield name, "any", [each for each in both if each.kind == "true"], false


def _of(answers: Sequence[Answer], reference: str, *kinds: str) -> list[Answer]:
    """Return the answers of a reference that were falsified in one of these ways, or else the true ones."""
    return [each for each in answers if each.reference == reference and each.kind in (kinds or ("true",))]


def _has(kind: str) -> Callable[[Evidence], bool]:
    return lambda seen: any(span.kind == kind for span in seen.spans)


def _percent(said: Sequence[bool]) -> str:
    return f"{100 * np.mean(said):.1f}%"


def _precision_and_recall(true: Sequence[Answer], false: Sequence[Answer], threshold: float) -> tuple[str, str]:
    """Return both in percent, as if there were as many true answers as false ones."""
    caught = sum(each.score < threshold for each in false)
    # Weigh true and false answers alike, or precision would depend on the number of corruptions.
    alarms = np.mean([each.score < threshold for each in true]) * len(false)
    precision = f"{100 * caught / (caught + alarms):.0f}%" if caught + alarms else "–"
    return precision, f"{100 * caught / len(false):.0f}%"


def _higher(true: Sequence[Answer], false: Sequence[Answer]) -> str:
    """Return the share of false answers that score lower than their true answer; equal scores count half."""
    of = {(each.reference, each.item.id): each.score for each in true}
    pairs = [(of[each.reference, each.item.id], each.score) for each in false]
    return f"{100 * np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]):.0f}%"


def _alarms(true: Sequence[Answer], threshold: float, sentence_threshold: float) -> tuple[str, float, float, str]:
    """Return the share of true answers below the threshold with its 95% interval, and that of their sentences."""
    alarms = [each.score < threshold for each in true]
    below = [score < sentence_threshold for each in true for score in each.sentence_scores]
    return _percent(alarms), *_wilson(sum(alarms), len(alarms)), _percent(below)


def _areas(true: Sequence[Answer], false: Sequence[Answer]) -> Any:
    """Return AUROC, followed by its values in a bootstrap over items; the draws depend only on the items' number."""
    groups = sorted({each.item.group for each in (*true, *false)})
    number = {group: index for index, group in enumerate(groups)}
    scores = np.array([each.score for each in (*true, *false)])
    labels = np.array([True] * len(true) + [False] * len(false))
    owner = np.array([number[each.item.group] for each in (*true, *false)])
    draws = np.random.default_rng(SEED)
    figures = [_area(scores, labels, np.ones(len(scores)))]
    for _ in range(RESAMPLES):
        weight = draws.multinomial(len(groups), np.full(len(groups), 1 / len(groups)))[owner]
        figures.append(_area(scores, labels, weight))
    return np.array(figures)


def _interval(areas: Any) -> tuple[float, float, float]:
    """Return the first value, and the percentile interval of the others; draws without false answers are left out."""
    low, high = np.nanquantile(areas[1:], [0.025, 0.975])
    return float(areas[0]), float(low), float(high)


def _area(scores: Any, labels: Any, weight: Any) -> float:
    """Return the weighted share of pairs in which the true one scores higher; ties count half."""
    values, place = np.unique(scores, return_inverse=True)
    good = np.bincount(place, weight * labels, len(values))
    bad = np.bincount(place, weight * ~labels, len(values))
    below = np.cumsum(bad) - bad
    pairs = good.sum() * bad.sum()
    return float((good * (below + 0.5 * bad)).sum() / pairs) if pairs else float("nan")


def _chance(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def _wilson(successes: int, count: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(successes, count).proportion_ci(method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


if __name__ == "__main__":
    main()
