"""Measure how the assistant's two styles change the passages of an answer, and how hard those passages are to read.

    python benchmarks/styles.py INDEX --questions 100

Build INDEX from MedQuAD and PubMedQA; MEDITUNE_DATA names the folder with both. No model writes answers: the metrics
describe the passages that a model would read, best first. "Found" is how often they include a passage of the question's
own document; styles must not lower it.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import numpy as np

from meditune.assistant.assistant import PASSAGES
from meditune.data.readers import medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.retrieve.context_packing import RESEARCH, chosen, grade
from meditune.retrieve.index import Index

SEED = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--questions", type=int, default=100)
    arguments = parser.parse_args()
    index = Index.open(arguments.index)
    folder = Path(os.environ["MEDITUNE_DATA"]).expanduser()
    print("| questions of | style | grade of the first | of all | research | passages | found |")
    print("|---|---|---|---|---|---|---|")
    for name, reader in (("medquad", medquad), ("pubmedqa", pubmedqa)):
        held = {document for document, _ in index.texts([name])}
        asked = [each for each in reader.read(folder / name, Rejects()) if each.id in held]
        sample = random.Random(SEED).sample(asked, min(arguments.questions, len(asked)))
        rows: dict[str, list[tuple[float, float, float, int, bool]]] = {}
        for each in sample:
            hits = index.search(each.question, 3 * PASSAGES).hits
            for style in ("none", "plain", "expert"):
                read = hits[:PASSAGES] if style == "none" else chosen(style, hits, PASSAGES)  # type: ignore[arg-type]
                grades = [grade(hit.passage.text) for hit in read]
                research = np.mean([hit.passage.source.startswith(RESEARCH) for hit in read])
                own = any(hit.passage.document == each.id for hit in read)
                rows.setdefault(style, []).append((grades[0], float(np.mean(grades)), float(research), len(read), own))
        for style, found in rows.items():
            first, every, research, passages, own = np.array(found, dtype=float).mean(axis=0)
            print(f"| {name} | {style} | {first:.1f} | {every:.1f} | {research:.0%} | {passages:.1f} | {own:.0%} |")


if __name__ == "__main__":
    main()
