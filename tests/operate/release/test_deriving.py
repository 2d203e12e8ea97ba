"""The recipe of a retraining says for whom new rows are."""

from pathlib import Path

import pytest

from meditune.config.load_recipe import save
from meditune.config.recipe import Recipe
from meditune.data.splits import Splits
from meditune.operate.retraining.retrain import derived

NONE = Splits([], [], [], "test")
PLAIN, EXPERT = {"name": "medquad", "style": "plain"}, {"name": "pubmedqa"}
OWN = {"name": "own", "path": "rows.jsonl", "style": "plain"}


@pytest.mark.parametrize(
    ("sources", "synthetic", "expected"),
    [
        ([PLAIN], False, [("medquad", "plain"), ("own", "plain")]),
        ([OWN], False, [("own", "plain")]),
        ([PLAIN, EXPERT], False, [("medquad", "plain"), ("pubmedqa", "expert"), ("own", "expert")]),
        ([PLAIN], True, [("sample", "plain"), ("own", "plain")]),
        ([EXPERT], False, [("pubmedqa", "expert"), ("own", "expert")]),
    ],
)
def test_new_rows_have_the_style_that_all_old_ones_had(tmp_path, sources, synthetic, expected):
    plain = any(source.get("style") for source in sources)
    said = {"data": {"sources": sources}, "prompt": {"plain_cue": "In plain words:"} if plain else {}}
    save(Recipe.model_validate({"name": "first", **said}), tmp_path / "recipe.yaml")
    made = derived(tmp_path, NONE, NONE, [Path("new.jsonl")], synthetic)
    assert [(source.name, source.style) for source in made.data.sources] == expected
