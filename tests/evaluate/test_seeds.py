"""Several seeds as a distribution of before and after: intervals hold the variance of seeds and of items."""

import numpy as np
import pytest

from meditune.cli.metrics_tables import print_seeds
from meditune.config import load_recipe as writing
from meditune.config.load_recipe import load_recipe
from meditune.errors import DataError
from meditune.evaluate.compare import over_seeds
from meditune.files import write_json, write_jsonl
from meditune.statistics import two_level


def finished(folder, seed, base, tuned, *settings):
    """A run that decided item i rightly where base[i] and tuned[i] say so."""
    recipe = load_recipe("quickstart", [f"seed={seed}", *settings])
    (folder / "predictions").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(writing.show(recipe), encoding="utf-8")
    write_json(folder / "report.json", {"seed": seed})
    for name, rights in (("base", base), ("tuned", tuned)):
        rows = [
            {"id": str(n), "reference": "yes", "prediction": "yes" if right else "no"} for n, right in enumerate(rights)
        ]
        write_jsonl(folder / "predictions" / f"{name}-decision.jsonl", rows)
    return folder


def first(share, count=200):
    return [n < share * count for n in range(count)]


@pytest.fixture
def three(tmp_path):
    gains = {1: 0.5, 2: 0.54, 3: 0.52}
    return [finished(tmp_path / str(seed), seed, first(0.4), first(gain)) for seed, gain in gains.items()]


def test_the_spread_over_seeds_is_told(three):
    found = over_seeds(three, 1000)
    accuracy = found["metrics"]["accuracy"]
    assert found["seeds"] == [1, 2, 3]
    assert accuracy["delta"] == pytest.approx([10, 14, 12])
    assert (accuracy["mean"], accuracy["sd"]) == pytest.approx((12, 2))
    assert accuracy["range"] == pytest.approx([10, 14])
    assert (accuracy["better"], accuracy["agree"], accuracy["items"]) == (True, 3, 200)


def test_the_interval_holds_the_items_variance_too(three):
    """All seeds answer the same questions: the same gain on 24 of 200 items has a standard error of 2.3 points."""
    accuracy = over_seeds(three, 4000)["metrics"]["accuracy"]
    of_items = 100 * (0.12 * 0.88 / 200) ** 0.5
    assert accuracy["se"] == pytest.approx((of_items**2 + 2**2 / 3) ** 0.5, rel=0.1)
    assert accuracy["seed_share"] == pytest.approx(2**2 / 3 / accuracy["se"] ** 2)
    assert accuracy["ci95"][0] < 12 - 1.96 * of_items
    assert 2 < accuracy["df"] < 199


def test_p_is_corrected_for_the_number_of_metrics(three):
    rows = over_seeds(three, 1000)["metrics"]
    assert len(rows) > 2
    least = min(row["p"] for row in rows.values())
    assert min(row["p_holm"] for row in rows.values()) == pytest.approx(min(1, len(rows) * least))


def test_the_terminal_says_what_few_seeds_cannot_tell(three, capsys):
    print_seeds(over_seeds(three, 500))
    said = " ".join(capsys.readouterr().out.split())
    assert "two-level bootstrap" in said
    assert "3 seeds show whether the mean difference" in said
    assert "with 2 degrees of freedom" in said
    assert "can't show how far one more seed may deviate" in said


def test_detector_metrics_are_held_to_the_references(tmp_path, three):
    def graded(marked):
        span = {"start": 0, "end": 4, "kind": "direction", "why": "", "source": ""}
        return [
            {"id": str(n), "score": 0.9, "by": "words", "spans": [span] if n in marked else [],
             "sentences": [{"start": 0, "end": 9, "score": 0.5, "supported": True}]}
            for n in range(200)
        ]  # fmt: skip

    def metric(references):
        for folder in three:
            for name, marked in (("base", range(2)), ("tuned", range(24))):
                place = folder / "predictions"
                write_jsonl(place / f"{name}-faithfulness.jsonl", graded(marked))
                write_jsonl(place / f"{name}-reference_faithfulness.jsonl", graded(references))
        return over_seeds(three, 1000)["metrics"]["contradictions"]

    within, beyond = metric(range(150, 168)), metric(range(150, 154))
    assert (within["better"], within["difference"], within["references"]["figure"]) == (None, False, 9.0)
    assert (beyond["better"], beyond["references"]["of"], beyond["references"]["figure"]) == (False, "tuned", 2.0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_items", "of_both"),
    [(0.0, 1.0, 0.2), (0.07, 1.0, 0.5), (0.3, 1.0, 0.5), (1.0, 0.3, 0.3)],
    ids=["items dominate", "alike", "seeds weigh more", "seeds dominate"],
)
def test_the_interval_covers_the_mean_as_often_as_it_says(seeds, of_seeds, of_items, of_both):
    """400 simulated sets of runs on the same 150 items, with known variances of seeds, items and both together."""
    source, sets, items = np.random.default_rng(5), 400, 150
    weights = source.multinomial(items, np.full(items, 1 / items), size=300) / items
    effects = of_seeds * source.normal(size=(sets, 1, seeds)) + of_items * source.normal(size=(sets, items, 1))
    each = 0.4 + effects + of_both * source.normal(size=(sets, items, seeds))
    drawn = np.einsum("bi,sir->sbr", weights, each, optimize=True)
    estimates = [two_level(one.mean(axis=0), draws, items, 1) for one, draws in zip(each, drawn, strict=True)]
    covered = np.mean([low <= 0.4 <= high for low, high in (found.ci95() for found in estimates)])
    assert 0.85 <= covered <= 0.995


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path):
    one = finished(tmp_path / "1", 1, first(0.4), first(0.5))
    with pytest.raises(DataError, match=r"differ in more than their seed: train\.epochs"):
        over_seeds([one, finished(tmp_path / "2", 2, first(0.4), first(0.5), "train.epochs=1")])
    with pytest.raises(DataError, match="same seed"):
        over_seeds([one, finished(tmp_path / "3", 1, first(0.4), first(0.5))])
    with pytest.raises(DataError, match="two or more"):
        over_seeds([one])
