"""Out-of-fold decisions: calibration without a dev split, from models that didn't see the items."""

import json
from collections import Counter
from contextlib import contextmanager

import pytest

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.data.example import Example, Passage, read_examples
from meditune.data.splits import Splits
from meditune.errors import DataError, RecipeError, Stopped
from meditune.evaluate.weights_backend import Scoring
from meditune.models.load import load
from meditune.out_of_fold import folds
from meditune.run_folder import run_behind
from meditune.train import finetune
from meditune.train.finetune import fine_tune
from meditune.train.trainer import epoch_steps, plan_steps
from tests import tiny
from tests.commands import meditune, read_rows

FOLDED = {
    "data__dev_share": "0",
    "data__sources__0__limit": "60",
    "evaluate__calibrate": "temperature",
    "evaluate__calibration_folds": "3",
    "evaluate__answers": "3",
    "evaluate__general_tokens": "0",
    "evaluate__choices": "0",
}


@pytest.fixture(scope="module")
def folder(place):
    place.run("run", **FOLDED).ok()
    return place.folder / "run"


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_every_training_item_is_decided_once_and_nothing_of_the_folds_remains(folder):
    train = read_examples(folder / "data" / "train.jsonl")
    decided = [(example.id, example.decision) for example in train if example.decision]
    for model in ("base", "tuned"):
        rows = read_rows(folder / "predictions" / f"{model}-dev_decision.jsonl")
        assert [(row["id"], row["reference"]) for row in rows] == decided
        (fit,) = read_rows(folder / "predictions" / f"{model}-calibration.jsonl")
        assert fit["items"] == len(decided)
        assert "calibrated_ece" in report_of(folder)[model]
    assert not read_rows(folder / "data" / "dev.jsonl")
    assert not (folder / "folds").exists()


def test_a_fold_is_decided_by_a_model_that_was_trained_without_it(place, folder):
    recipe = load_recipe(str(folder / "recipe.yaml")).recipe
    train = read_examples(folder / "data" / "train.jsonl")
    rows = {row["id"]: row for row in read_rows(folder / "predictions" / "tuned-dev_decision.jsonl")}
    held = folds(train, 3, recipe.seed)[1]
    others = [example for example in train if example.id not in {each.id for each in held}]
    own = place.folder / "by-hand"
    own.mkdir()
    loaded = load(str(place.base), recipe.model)
    # As many steps as the model that is trained on all items.
    steps = len(plan_steps(len(train), recipe.train, recipe.seed))
    epochs = steps / epoch_steps(len(others), recipe.train)
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})})
    fine_tune(loaded, Splits(others, [], [], ""), longer, own)
    assert len(read_rows(own / "training.jsonl")) == steps
    scored = Scoring(loaded.encoder(recipe.prompt), held, []).predictions(loaded, None, "By hand").decision
    for row in scored:
        assert rows[row["id"]]["logits"] == pytest.approx(row["logits"], abs=1e-3)


@contextmanager
def stopped_in(training, step):
    """Inside the block the user stops the n-th training after this step."""
    real, begun = finetune.train, []

    def stopping(*given, **named):
        begun.append(None)
        for done in real(*given, **named):
            yield done
            if len(begun) == training and done.step == step:
                raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "train", stopping)
        yield


def test_a_stopped_cross_validation_goes_on_and_ends_the_same(place, folder):
    stopped = place.folder / "stopped"
    with stopped_in(training=3, step=2):
        assert place.run("stopped", **FOLDED).code == 130
    assert {path.name for path in (stopped / "folds").iterdir()} == {"1.jsonl", "2"}
    first = (stopped / "folds" / "1.jsonl").stat().st_mtime_ns
    with stopped_in(training=2, step=1):
        assert place.run("stopped", **FOLDED).code == 130
    assert (stopped / "folds" / "1.jsonl").stat().st_mtime_ns == first
    place.run("stopped", **FOLDED).ok()
    kept = [read_rows(each / "predictions" / "tuned-dev_decision.jsonl") for each in (folder, stopped)]
    assert kept[0] == kept[1]
    assert not (stopped / "folds").exists()


def test_folds_that_a_killed_run_left_behind_are_removed(place, folder):
    (folder / "folds").mkdir()
    (folder / "folds" / "1.jsonl").touch()
    place.run("run", **FOLDED).ok()
    assert not (folder / "folds").exists()


def test_a_trained_run_is_evaluated_with_the_decisions_of_its_folds(place, folder):
    settings = place.settings(**FOLDED)
    meditune("evaluate", folder, "--recipe", "quickstart", "-o", place.folder / "again", *settings).ok()
    figures = json.loads((place.folder / "again" / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures == pytest.approx(report_of(folder)["tuned"])


def test_a_run_without_folds_cant_be_calibrated_on_what_it_was_trained_on(place):
    plain = {"data__dev_share": "0", "data__sources__0__limit": "60"}
    words = place.settings(**plain)
    meditune("train", "quickstart", "-o", place.folder / "plain", *words).ok()
    words = place.settings(**FOLDED)
    result = meditune("evaluate", place.folder / "plain", "--recipe", "quickstart", "-o", place.folder / "no", *words)
    result.refused(3, "was trained on 48 of the 48 items", "evaluate.calibrate to none")
    words = place.settings(**plain | {"data__dev_share": "0.3", "evaluate__calibrate": "temperature"})
    result = meditune("evaluate", place.folder / "plain", "--recipe", "quickstart", "-o", place.folder / "dev", *words)
    result.refused(3, "was trained on 14 of the 14 items")


def test_a_base_that_knows_the_items_cant_be_calibrated_on_them(place, folder):
    words = place.settings(**FOLDED | {"model__base": str(folder / "model")})
    result = meditune("run", "quickstart", "-o", place.folder / "further", *words)
    result.refused(3, "was trained on 48 of the 48 items")
    assert not (place.folder / "further" / "model").exists()


def examples(count, decisions=("yes", "yes", "no"), alike=()):
    made = []
    for number in range(count):
        words = [
            f"{word}{number if number not in alike else 0}" for word in ("serum", "dose", "renal", "trial", "mean")
        ]
        text = " ".join(f"{first} {second}" for first in words for second in words) + f" site {number}"
        made.append(
            Example(
                id=f"x:{number}",
                source="x",
                group=str(number),
                question=f"Does {words[0]} lower {words[1]} in {words[2]} at site {number} after {words[4]}?",
                context=(Passage(text=text),),
                decision=decisions[number % len(decisions)],
            )
        )
    return made


def test_folds_are_about_equal_stratified_and_the_same_each_time():
    given = examples(90)
    divided = folds(given, 3, 17)
    assert sorted(example.id for held in divided for example in held) == sorted(example.id for example in given)
    for held in divided:
        assert Counter(example.decision for example in held) == {"yes": 20, "no": 10}
    assert folds(given, 3, 17) == divided
    assert folds(given, 3, 18) != divided


def test_similar_items_share_a_fold():
    divided = folds(examples(30, alike=(4, 11, 27)), 3, 17)
    assert sum({"x:4", "x:11", "x:27"} <= {example.id for example in held} for held in divided) == 1


def test_too_many_folds_are_refused():
    with pytest.raises(DataError, match="fewer folds"):
        folds(examples(2), 3, 17)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.dev_share=0", "evaluate.calibrate=prior"], "no dev split for evaluate.calibrate"),
        (["data.dev_share=0", "evaluate.split=dev"], "no dev split for evaluate.split dev"),
        (["data.dev_share=0", "train.dev.patience=2", "train.average_last=0"], "no dev split for train.dev"),
        (["evaluate.calibration_folds=3"], "no effect without evaluate.calibrate"),
        (["data.dev_share=0", "train.tasks=[claim]"], "no dev split for the correction of claims"),
        (["evaluate.calibration_folds=1", "evaluate.calibrate=prior"], "0 or at least 2"),
        (
            ["evaluate.calibration_folds=3", "evaluate.calibrate=prior", "train.tasks=[answer]"],
            "decision in train.tasks",
        ),
    ],
)
def test_settings_that_dont_fit_together_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", settings)


def test_the_run_behind_an_export_is_found(tmp_path):
    export = tmp_path / "run" / "export" / "openvino"
    export.mkdir(parents=True)
    (export / "export.json").write_text(json.dumps({"made_from": {"model": str(tmp_path / "run" / "model")}}))
    assert run_behind(export) == tmp_path / "run"


def test_items_that_training_leaves_out_arent_decided():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=64, answer_tokens=8))
    short, long = examples(2)
    long = long.model_copy(update={"question": "Does it help? " * 100})
    assert encoder.fitting([short, long], "decision") == [short]


def test_dev_decisions_may_be_measured_if_something_is_fitted_to_training_items():
    load_recipe("quickstart", ["evaluate.split=dev", "evaluate.calibrate=prior", "evaluate.calibration_folds=3"])
