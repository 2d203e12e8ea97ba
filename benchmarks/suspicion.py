"""Measure how high planted wrong rows rank when all rows are ordered by suspicion.

    MEDITUNE_DATA=... python benchmarks/suspicion.py

Answers of training and development rows are falsified in one way each, up to a hundred for each kind and source, and
all rows are ordered by suspicion. Not all other rows are correct, so those that rank above planted ones may be wrong,
too.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from meditune.config.data_options import DataSpec, SourceSpec
from meditune.config.recipe import Recipe
from meditune.config.training_options import CORRUPTIONS
from meditune.data.example import Example
from meditune.data.preference_pairs import corrupt
from meditune.data.prepare import prepare
from meditune.review.annotation_set import SIGNALS, suspicion

EACH = 100
SHARES = (0.01, 0.05, 0.1)
SEED = 17


def planted(rows: list[Example]) -> dict[tuple[str, str], dict[str, Example]]:
    """Return (source, kind) -> id -> the falsified row; no row is falsified twice."""
    chance = random.Random(SEED)
    found: dict[tuple[str, str], dict[str, Example]] = defaultdict(dict)
    by_source: dict[str, list[Example]] = defaultdict(list)
    for row in chance.sample(rows, len(rows)):
        if row.answer:
            by_source[row.source].append(row)
    for source, members in by_source.items():
        for place, row in enumerate(members):
            kind = CORRUPTIONS[place % len(CORRUPTIONS)]
            if len(found[source, kind]) == min(EACH, len(members) // 10):
                continue
            answer = corrupt(kind, row, members, chance)
            if answer:
                found[source, kind][row.id] = row.model_copy(update={"answer": answer})
    return found


def main() -> None:
    """Print for each source and kind the share among the most suspicious rows, and the area under the ROC curve."""
    recipe = Recipe(name="both", data=DataSpec(sources=[SourceSpec(name="medquad"), SourceSpec(name="pubmedqa")]))
    with tempfile.TemporaryDirectory() as folder:
        splits = prepare(recipe, Path(folder) / "data").splits
    rows = [*splits.train, *splits.dev]
    wrong = planted(rows)
    changed = {id: row for members in wrong.values() for id, row in members.items()}
    started = time.monotonic()
    suspected = suspicion([changed.get(row.id, row) for row in rows], SIGNALS)
    print(f"{len(rows):,} rows, {len(changed)} of them falsified; {time.monotonic() - started:.0f} s\n")
    print("| source | falsified by | rows | " + " | ".join(f"first {share:.0%}" for share in SHARES) + " | AUC |")
    print("|---|---|---|" + "---|" * (len(SHARES) + 1))
    for (source, kind), members in wrong.items():
        # Compare with rows of the same source, as `--stratify-by source` does.
        plain = [row.id for row in rows if row.source == source and row.id not in changed]
        scores = sorted((suspected[id].score for id in plain), reverse=True)
        above = [sum(score > suspected[id].score for score in scores) for id in members]
        ties = [sum(score == suspected[id].score for score in scores) for id in members]
        auc = 1 - sum(a + t / 2 for a, t in zip(above, ties, strict=True)) / (len(members) * len(scores))
        first = [sum(a + t / 2 < share * len(scores) for a, t in zip(above, ties, strict=True)) for share in SHARES]
        cells = " | ".join(f"{100 * hits / len(members):.0f}%" for hits in first)
        print(f"| {source} | {kind} | {len(members)} | {cells} | {auc:.2f} |")


if __name__ == "__main__":
    main()
