"""Measure evidence judges on claims that they didn't learn from, with intervals, false alarms and time.

    python benchmarks/judge.py words runs/evidence              # the detector, and a judge that `meditune run` made
    python benchmarks/judge.py runs/evidence --items 100 --json judge.json
    python benchmarks/judge.py qwen2.5-coder-1.5b --untuned     # a base model, asked in the same words
    python benchmarks/judge.py RUN/export/openvino RUN/export/openvino-int4 --sets scifact-dev --items 30

A judge is `words` (the detector that needs no model), the folder of a run that was trained on claims, or any model that
evaluate.faithfulness_model takes (NLI, minicheck:NAME, hhem:NAME, lettucedetect:NAME). MEDITUNE_DATA names the
folder with the sets:

- medhallu: true and hallucinated conclusions of abstracts (Pandit et al. 2025, arXiv:2502.14302), two classes;
- scifact-dev: claims and sentences of abstracts (Wadden et al. 2020), two classes;
- citations-test: citing statements and cited passages of Citation-Integrity, three classes;
- conclusions: authors' true conclusions of structured trial abstracts that no judge learns from (rct-abstracts), for
  the rate of true statements that a judge calls unsupported.

Longer sets are seeded samples. Models don't read claims of more than MOST_WORDS words, which may not fit into the
prompt. AUROC and the calibration error (ten bins) are those of supported against the other labels; macro-F1 is of all
three labels. If several judges are named, each later one is compared with the first: the share of claims that both call
supported or both don't, each at its own threshold, and the largest difference of the probability of support.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from meditune.config.data_options import PromptFormat
from meditune.data.example import CLAIM_LABELS, LABEL, Example, Passage
from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.data.sources import locate_own
from meditune.engines.evidence_judge import EvidenceJudge, TorchLabelModel, least_supported, load_support_model
from meditune.evaluate.metrics.decision import auroc, calibration_error
from meditune.evidence.lexical_detector import CALIBRATION, Sources, detect
from meditune.evidence.support_model import ClaimCorrection
from meditune.files import read_jsonl
from meditune.models.load import load
from meditune.statistics import bootstrap

SEED = 17
MOST_WORDS = 120
RESAMPLES = 1000
TWO = ("supported", "refuted")


@dataclass(frozen=True)
class Judged:
    """A claim with a judge's probability of support."""

    claim: Example
    supported: float
    label: str | None = None
    """The likeliest label, if the judge gives all labels probabilities"""


def medhallu(items: int) -> list[Example]:
    """Return both conclusions of `items` abstracts; the difficulty of an item is in `meta`."""
    rows = read_jsonl(Path(locate_own("medhallu/training_half.jsonl")))
    found = []
    for row in random.Random(SEED).sample(rows, min(items, len(rows))):
        for column, label in (("ground_truth", "supported"), ("hallucinated_answer", "refuted")):
            meta = {LABEL: label, CLAIM_LABELS: TWO, "difficulty": row["difficulty"]}
            found.append(_claim("medhallu", f"{row['pmid']}/{column}", row[column], row["contexts"], meta))
    return found


def conclusions(items: int) -> list[Example]:
    """Return authors' conclusions of trial abstracts, without those that are training items of PubMedQA."""
    rows = read_jsonl(Path(locate_own("rct-abstracts/abstracts.jsonl")))
    rows = [row for row in rows if not row["in_pqal_train"]]
    chosen = random.Random(SEED).sample(rows, min(items, len(rows)))
    return [
        _claim("conclusions", str(number), row["long_answer"], _texts(row), {LABEL: TWO[0]})
        for number, row in enumerate(chosen)
    ]


def _texts(row: dict[str, Any]) -> list[str]:
    return [each["text"] for each in row["contexts"]]


def own(source: str, path: str, items: int, **options: Any) -> list[Example]:
    """Return a seeded sample of a file of claims."""
    rows = list(user_files.read(locate_own(path), Rejects(), source=source, **options))
    return random.Random(SEED).sample(rows, min(items, len(rows)))


def _claim(source: str, id: str, text: str, evidence: Sequence[str], meta: dict[str, Any]) -> Example:
    context = tuple(Passage(text=each) for each in evidence)
    return Example(id=f"{source}:{id}", source=source, question=text, context=context, group=id, meta=meta)


def learnt(run: Path) -> set[str]:
    """Return the claims that a run, or the run of an export in its folder, was trained or fitted on."""
    files = [home / "data" / f"{name}.jsonl" for home in (run, run / "../..") for name in ("train", "dev")]
    return {row["question"] for file in files if file.is_file() for row in read_jsonl(file)}


SETS: dict[str, Callable[[int], list[Example]]] = {
    "medhallu": medhallu,
    "scifact-dev": lambda items: own(
        "scifact-dev", "scifact-pairs/dev.jsonl", 2 * items, labels={"not_entailment": "refuted"}
    ),
    "citations-test": lambda items: own("citations-test", "citation-integrity/test.jsonl", 2 * items),
    "conclusions": conclusions,
}
"""Each returns up to about `items` claims"""


def by_words(claims: Sequence[Example]) -> Iterator[Judged]:
    """Yield the detector's score of each claim."""
    for claim in claims:
        found = detect(claim.question, Sources([each.text for each in claim.context]))
        yield Judged(claim, found.score or 0.0)


def by_model(model: Any, claims: Sequence[Example]) -> Iterator[Judged]:
    """Yield a model's score of each claim: that of its least supported sentence, as in an evaluation of answers."""
    texts = [(each.question, tuple(text.text for text in each.context)) for each in claims]
    for claim, found in zip(claims, least_supported(model, texts, "Claims"), strict=True):
        if found.refuted is None:
            yield Judged(claim, found.score)
            continue
        unclear = 1 - found.score - found.refuted
        shares = {"supported": found.score, "refuted": found.refuted, "not_enough_information": unclear}
        yield Judged(claim, found.score, max(shares, key=shares.__getitem__))


def measured(judged: Sequence[Judged], threshold: float) -> dict[str, Any]:
    """Return a judge's metrics on a set.

    These are the AUROC and the calibration error of the probability of support, each with its 95% interval, the F1 of
    unsupported claims, and false alarms in percent of true claims.
    """
    references = [each.claim.label for each in judged]
    result: dict[str, Any] = {"claims": len(judged)}
    called = np.array([each.supported < threshold for each in judged])
    true = np.array([label == "supported" for label in references])
    result["false_alarms"] = 100 * float(called[true].mean())
    if true.all():
        return result
    rows = [
        {
            "id": each.claim.id,
            "reference": TWO[not is_true],
            "prediction": TWO[each.supported < 0.5],
            "logits": {TWO[0]: _logit(each.supported), TWO[1]: 0.0},
        }
        for each, is_true in zip(judged, true, strict=True)
    ]
    for name, statistics in (("auroc", auroc(rows)), ("calibration_error", calibration_error(rows))):
        (drawn,) = bootstrap([(statistics.figure, statistics.items)], RESAMPLES, SEED)
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        result |= {name: float(statistics.value()), f"{name}_95": [float(low), float(high)]}
    if all(each.label for each in judged) and len(set(references)) > len(TWO):
        result["macro_f1"] = 100 * float(f1_score(references, [each.label for each in judged], average="macro"))
    hits = int((called & ~true).sum())
    result["f1_unsupported"] = 2 * hits / (int(called.sum()) + int((~true).sum()))
    return result


def compared(one: Sequence[Judged], least: float, other: Sequence[Judged], other_least: float) -> dict[str, float]:
    """Return how far two judges agree on the claims that both read."""
    earlier = {each.claim.id: each.supported for each in one}
    pairs = [(earlier[each.claim.id], each.supported) for each in other if each.claim.id in earlier]
    return {
        "same_as_first": float(np.mean([(a >= least) == (b >= other_least) for a, b in pairs])),
        "largest_difference": max(abs(a - b) for a, b in pairs),
    }


def _logit(share: float) -> float:
    share = min(max(share, 1e-9), 1 - 1e-9)
    return float(np.log(share / (1 - share)))


def main() -> None:
    """Measure each judge on each set, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("judges", nargs="+", help="words, a run's folder, or a model's name")
    parser.add_argument("--items", type=int, default=150, help="size of each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="the sets to measure")
    parser.add_argument("--untuned", action="store_true", help="the names are base models to ask in the judge's words")
    parser.add_argument("--json", type=Path, help="file for all probabilities and figures")
    arguments = parser.parse_args()
    everything: dict[str, Any] = {}
    first: dict[str, tuple[list[Judged], float]] = {}
    for name in arguments.judges:
        model: Any = None
        if arguments.untuned:
            loaded = load(name)
            object.__setattr__(loaded, "form", PromptFormat())
            model = EvidenceJudge(TorchLabelModel(loaded), ClaimCorrection(), name)
        elif name != "words":
            model = load_support_model(name)
        known = learnt(Path(name))
        for title in arguments.sets:
            claims = [claim for claim in SETS[title](arguments.items) if claim.question not in known]
            if model:
                claims = [claim for claim in claims if len(claim.question.split()) <= MOST_WORDS]
            started = time.monotonic()
            judged = list(by_model(model, claims) if model else by_words(claims))
            seconds = time.monotonic() - started
            threshold = model.threshold if model else CALIBRATION["answer_threshold"]
            figures = measured(judged, threshold) | {"seconds_per_claim": seconds / len(claims)}
            if title == "medhallu":
                hard = [each for each in judged if each.claim.meta["difficulty"] == "hard"]
                figures |= {f"hard_{key}": value for key, value in measured(hard, threshold).items() if key != "claims"}
            if title in first:
                figures |= compared(*first[title], judged, threshold)
            first.setdefault(title, (judged, threshold))
            everything[f"{name}/{title}"] = figures | {
                "rows": [[each.claim.id, each.claim.label, each.supported] for each in judged]
            }
            shown = {
                key: value if isinstance(value, int) else np.round(value, 3).tolist() for key, value in figures.items()
            }
            print(f"{name} {title} {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything), encoding="utf-8")


if __name__ == "__main__":
    main()
