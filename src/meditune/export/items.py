"""What an exported model is checked on: questions with a decision and a long answer, of the training half."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from meditune.data import pubmedqa
from meditune.data.example import Example
from meditune.data.locate import locate
from meditune.data.prepare import stored
from meditune.data.rejects import Rejects
from meditune.data.sources import SOURCES
from meditune.errors import DataError

COUNT = 50
SEED = 17


def items(run: Path | None) -> list[Example]:
    """Fifty examples of a run's training data; without a run, of PubMedQA's training half.

    Where neither can be had they are those of the synthetic sample, and that is said. The test items stay untouched.
    """
    if run and (run / "data" / "quality.json").is_file():
        found = [
            example for example in stored(run / "data").splits.train if example.decision and example.answer.strip()
        ]
        if found:
            return _some(found)
    try:
        labelled = list(pubmedqa.read(locate(pubmedqa.SOURCE), Rejects()))
    except DataError:
        print("PubMedQA isn't here: the export is checked on Meditune's synthetic sample instead.", file=sys.stderr)
        reader = SOURCES["sample"].reader
        assert reader is not None
        return _some([example for example in reader(locate("sample"), Rejects()) if example.decision])
    return _some(pubmedqa.official_split(labelled)[0])


def _some(examples: list[Example]) -> list[Example]:
    chosen = sorted(examples, key=lambda example: example.id)
    return random.Random(SEED).sample(chosen, min(COUNT, len(chosen)))
