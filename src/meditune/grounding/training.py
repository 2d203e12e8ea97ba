"""Training examples among passages that were found: their own one beside others, or others alone.

After RAFT (Zhang et al. 2024, arXiv:2403.10131): what bears on the question must be told from what only looks like it,
and since retrieval fails at times, a share of the examples must do without. Those keep their target: there is no
fourth decision to teach, and the model will be asked all the same.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

from meditune.data import retrieved
from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.files import write_jsonl
from meditune.grounding.searched import Document, Searched, own, searched
from meditune.progress import track
from meditune.recipe import Recipe


def find(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> None:
    """Leave the passages of a share of the training examples in the run's `folder`, unless they are there.

    Which examples these are, what they miss and in which order passages come follows from the seed. No passage is of a
    dev or test item, or of the example's own group but for its own one. `elsewhere` is who else gets to see them.
    """
    spec = recipe.train.retrieve
    path = folder / retrieved.TRAINING
    if not spec.share or path.is_file():
        return
    able = [example for example in splits.train if own(example, recipe.prompt, spec.words)]
    chance = random.Random(f"{recipe.seed}/retrieved")
    chosen = sorted(chance.sample(range(len(able)), round(spec.share * len(able))))
    alone = set(chance.sample(chosen, round(spec.missing * len(chosen))))
    place = searched(spec, splits.train, recipe.prompt, elsewhere)
    unseen = {example.group for example in (*splits.dev, *splits.test)}

    def rows() -> Any:
        for index in track(chosen, "Finding passages to train with", unit="examples"):
            example = able[index]
            yield _row(example, place, index not in alone, unseen, recipe)

    write_jsonl(path, rows())


def _row(example: Example, place: Searched, right: bool, unseen: Collection[str], recipe: Recipe) -> dict[str, Any]:
    spec = recipe.train.retrieve
    wanted = spec.passages - right
    others = place.search(example.question, wanted, {*unseen, example.group}) if wanted else []
    sections = own(example, recipe.prompt, spec.words)
    mine = Document(example.id, example.id, example.source, example.group, "", sections, 0.0)
    # The own passage is the last to be left out; of the others the best.
    passages = [each.stored(rank) for rank, each in enumerate([mine, *others] if right else others)]
    random.Random(f"{recipe.seed}/{example.id}").shuffle(passages)
    return {"id": example.id, "right": right, "passages": passages}
