"""Print median Flesch-Kincaid grades of published health texts, which the report compares a run's answers with.

MEDITUNE_DATA=DIR python benchmarks/reading_grades.py
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import median

from meditune.data.readers import liveqa, medquad
from meditune.data.readers.tables import Rejects
from meditune.readability import counted


def texts(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    items = json.loads((folder / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    found["PubMedQA conclusions"] = [item["LONG_ANSWER"] for item in items.values()]
    for example in medquad.read(folder / "medquad", Rejects()):
        found[f"MedQuAD {example.meta['collection']}"].append(example.answer)
    for example in liveqa.read(folder / "liveqa", Rejects()):
        if example.meta["split_hint"] == "test":
            found["LiveQA reference answers"] += example.references()
    return found


def main() -> None:
    for name, answers in texts(Path(os.environ["MEDITUNE_DATA"])).items():
        grades = [counts.grade for counts in map(counted, answers) if counts.words]
        print(f"{name:<32} {len(grades):>6,} texts, median grade {median(grades):.1f}")


if __name__ == "__main__":
    main()
