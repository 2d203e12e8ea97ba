"""Run the pipeline: the stages of a run in order, without those that are finished.

    prepare -> measure the base (-> prune it) -> train -> measure the tuned model -> compare and report

Every stage writes its result to the run's folder atomically, so the same command resumes where an earlier one stopped.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meditune import distributed, hosted_pipeline, retrieval_augmentation
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data import leakage, retrieved_passages
from meditune.data.example import Example
from meditune.data.prepare import Prepared, changed_files, prepare, stored_data, used_fallback
from meditune.data.prepare_pairs import prepare_pairs, stored_pairs
from meditune.data.reviewer_decisions import refuse_other
from meditune.engines.exported_model import is_exported, weights_state
from meditune.errors import DataError, MedituneError, ModelError
from meditune.evaluate.evaluator import API, ENGINE, WEIGHTS, Capabilities, Evaluator
from meditune.evaluate.predictions import path_of
from meditune.evaluate.suites.llm_judge import described_suites, refuse_unusable_judge, suite_remarks
from meditune.evaluate.suites.load_suites import check_suites, prepare_suites, stored_suites, suite_examples
from meditune.evidence.support_model import load_correction
from meditune.files import read_json, read_jsonl, write_json
from meditune.hosted_pipeline import Approve, refuse
from meditune.models.api_client import ApiModel, find_api_model
from meditune.models.catalogue import PRUNED, PRUNING
from meditune.out_of_fold import Fold, copy_out_of_fold, decide_out_of_fold, missing_folds, unseen_items
from meditune.prompts import load_format
from meditune.run_folder import (
    EVALUATION,
    RECIPE,
    RETRIEVED_FILES,
    STAGES,
    announce,
    lock_run,
    machine,
    note_data,
    refuse_unfinished,
    stage,
    training_data_of,
    versions,
)

if TYPE_CHECKING:
    from meditune.evaluate.weights_backend import WeightsBackend


BOTH = ("base", "tuned")


def run(recipe: Recipe, folder: Path, command: str, approve: Approve = refuse) -> dict[str, Any]:
    """Run or resume the whole pipeline in `folder`, and return the content of report.json.

    `approve` is called before anything is sent to an API. Raises MedituneError if the folder contains another run.
    """
    with _ready_to_tune(recipe, folder) as (recipe, data, remote, divided):
        hosted_pipeline.approve_judge(recipe, folder, BOTH, approve)
        if remote:
            hosted_pipeline.tune(remote, data, recipe, folder, approve, _evaluator(recipe, data, folder, API))
        else:
            _tune_here(recipe, data, folder, divided)
        hosted_pipeline.judge_suites(recipe, folder, BOTH)
        announce("compare and report")
        return report(folder, command)


class _Ready(NamedTuple):
    """The inputs of tuning, after all checks."""

    recipe: Recipe
    """The recipe with the base's prompt format"""
    data: Prepared
    remote: ApiModel | None
    """The base, if it is behind an API"""
    divided: list[Fold]
    """The folds for calibration that aren't decided yet"""


@contextmanager
def _ready_to_tune(recipe: Recipe, folder: Path) -> Iterator[_Ready]:
    """Lock the run, prepare and check its data, and yield the inputs of tuning."""
    from meditune.models.load import prompt_for
    from meditune.train import checkpoint
    from meditune.train.training_plan import check

    remote = find_api_model(recipe.model.base, recipe.model.api)
    if distributed.world() > 1:
        _refuse_several(recipe, remote)
    with distributed.only_first(lock_run(recipe, folder, recipe.model.base, to_tune=True)):
        data, divided = None, []
        if distributed.is_first():
            with stage(folder, "prepare"):
                data = prepared(recipe, folder)
            check(data.splits, recipe)
            unseen_items(recipe.model.base, data.splits, recipe)
            if (folder / "model" / "training.json").is_file():
                # A run that was killed just after it had saved the model leaves a checkpoint that nobody needs.
                shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)
            divided = missing_folds(data.splits, recipe, folder)
            for others, _ in divided:
                check(others, recipe)
        distributed.barrier()
        distributed.check_shared(folder / RECIPE)
        data = data or stored_data(folder / "data")
        if not remote:
            examples = chain(data.splits.train, data.splits.measured(recipe.evaluate.split))
            form = prompt_for(recipe.prompt, recipe.model.base, examples)
            recipe = recipe.model_copy(update={"prompt": form})
        yield _Ready(recipe, data, remote, divided)


def _refuse_several(recipe: Recipe, remote: ApiModel | None) -> None:
    """Raise MedituneError if several processes can't train this recipe together."""
    alone = "needs a single process. Run it without torchrun."
    if remote:
        raise MedituneError(f"{recipe.model.base} is trained behind an API, which {alone}")
    if recipe.train.objective != "sft":
        raise MedituneError(f"train.objective {recipe.train.objective} {alone}")
    if recipe.evaluate.calibration_folds:
        raise MedituneError(f"evaluate.calibration_folds {alone} Or set it to 0.")
    if recipe.model.prune.method != "none":
        raise MedituneError(
            "model.prune needs a single process. Prune with `meditune prune` first, then set model.base to the result."
        )


def _tune_here(recipe: Recipe, data: Prepared, folder: Path, divided: Sequence[Fold]) -> None:
    from meditune.evaluate.decision_calibration import dev_measure
    from meditune.evaluate.weights_backend import WeightsBackend
    from meditune.train.finetune import fine_tune
    from meditune.train.training_plan import starting_point

    evaluator = _evaluator(recipe, data, folder)
    trained = (folder / "model" / "training.json").is_file()
    loaded: Any = None
    if not (trained and evaluator.is_done("base")):
        loaded = _load(recipe, starting_point(recipe, folder))
        with stage(folder, "measure base"):
            evaluator.measure(WeightsBackend(loaded, recipe), "base")
    if not trained:
        if recipe.model.prune.method != "none":
            loaded = None  # free the memory for the copy that is pruned
        loaded = _pruned(recipe, data, folder) or loaded
        with stage(folder, "train"):
            fine_tune(loaded, data.splits, recipe, folder, dev_measure(loaded, data.splits.dev, recipe))
    if divided:
        loaded = None  # free the memory for the models of the folds
        _decide_out_of_fold(divided, data, recipe, folder)
    dev = [example for example in data.splits.dev if example.label]
    corrects = bool(dev) and "claim" in recipe.train.tasks and load_correction(folder / "model") is None
    if corrects or not evaluator.is_done("tuned"):
        if loaded is None or trained:
            loaded = _load(recipe, str(folder / "model"))
        backend = WeightsBackend(loaded, recipe)
        with stage(folder, "measure tuned"):
            evaluator.measure(backend, "tuned")
            if corrects:
                _correct_claims(backend, dev, folder)


def _decide_out_of_fold(divided: Sequence[Fold], data: Prepared, recipe: Recipe, folder: Path) -> None:
    from meditune.train.training_plan import starting_point

    is_pruned = recipe.model.prune.method != "none"
    start = str(folder / PRUNED) if is_pruned else starting_point(recipe, folder)
    items = unseen_items(recipe.model.base, data.splits, recipe)
    decide_out_of_fold(divided, recipe, folder, start, partial(_load, recipe), items)


def _correct_claims(backend: WeightsBackend, claims: Sequence[Example], folder: Path) -> None:
    """Fit an evidence judge's correction and threshold to dev claims, and store them with the weights."""
    from meditune.engines.evidence_judge import EvidenceJudge, TorchLabelModel, least_supported
    from meditune.evaluate.metrics.decision import fit_correction, fit_threshold, known_to_be_true
    from meditune.evaluate.predictions import write_once

    fitting = backend.encoder.fitting(claims, "claim")
    if len(fitting) < len(claims):
        print(
            f"{len(claims) - len(fitting)} of {len(claims)} dev claims are longer than prompt.max_tokens and aren't "
            "used to fit the judge's correction.",
            file=sys.stderr,
        )
    predictions = folder / "predictions"
    write_once(predictions, "tuned", "dev_claim", lambda: backend.rows("dev_claim", fitting, "Dev claims of tuned"))
    rows = read_jsonl(path_of(predictions, "tuned", "dev_claim"))
    correction, true = fit_correction(rows), known_to_be_true(rows)
    if true:
        # The threshold is used for answers, so the claims are judged like answers: sentence by sentence.
        judge = EvidenceJudge(TorchLabelModel(backend.loaded, backend.encoder), correction, folder.name)
        texts = [(each.question, tuple(one.text for one in each.context)) for each in fitting if each.id in true]
        support = [each.score for each in least_supported(judge, texts, "Threshold of the judge")]
        correction = replace(correction, threshold=fit_threshold(support))
    correction.save(folder / "model")


def _evaluator(
    recipe: Recipe, data: Prepared, folder: Path, can: Capabilities = WEIGHTS, model: str | None = None
) -> Evaluator:
    """Return the evaluator of the run, or of `model` if only that model is measured."""
    examples = data.splits.measured(recipe.evaluate.split)
    pairs = stored_pairs(folder).held_out if recipe.train.objective != "sft" else []
    retrieved = retrieval_augmentation.with_retrieved(recipe, examples, folder)
    suites = stored_suites(recipe, folder)
    is_decided = model is not None and path_of(folder / "predictions", "model", "dev_decision").is_file()
    to_fit = [] if is_decided else unseen_items(model or recipe.model.base, data.splits, recipe)
    return Evaluator(recipe, examples, folder / "predictions", pairs, to_fit, retrieved, can, suites)


def train(recipe: Recipe, folder: Path, approve: Approve = refuse) -> None:
    """Prepare the data and train without evaluating; several processes (distributed.py) train together."""
    with _ready_to_tune(recipe, folder) as (recipe, data, remote, divided):
        if remote:
            hosted_pipeline.tune(remote, data, recipe, folder, approve)
            return
        if not distributed.broadcast((folder / "model" / "training.json").is_file()):
            from meditune.evaluate.decision_calibration import dev_measure
            from meditune.train.finetune import fine_tune
            from meditune.train.training_plan import starting_point

            with distributed.only_first(stage(folder, "train")):
                start = starting_point(recipe, folder)
                with distributed.one_on_each_machine_first():
                    # Only the first process reads the weights. Their device is chosen once their size is known.
                    several = distributed.world() > 1 and recipe.model.quantize == "none"
                    on = ("cpu" if distributed.is_first() else "meta") if several else None
                    loaded = _pruned(recipe, data, folder) or _load(recipe, start, on=on)
                fine_tune(loaded, data.splits, recipe, folder, dev_measure(loaded, data.splits.dev, recipe))
                del loaded
        if divided:
            _decide_out_of_fold(divided, data, recipe, folder)


def _pruned(recipe: Recipe, data: Prepared, folder: Path) -> Any:
    """Prune the base model, and return the loaded result; None if the recipe doesn't prune."""
    if recipe.model.prune.method == "none":
        return None
    from meditune.export.pruned import prune
    from meditune.train.training_plan import starting_point

    with stage(folder, "prune"):
        for remark in prune(starting_point(recipe, folder), recipe, folder / PRUNED, data)["remarks"]:
            print(remark, file=sys.stderr)
    return _load(recipe, str(folder / PRUNED))


def evaluate(
    model: str, recipe: Recipe, folder: Path, approve: Approve = refuse, url: str | None = None
) -> dict[str, Any]:
    """Evaluate any model, in its own prompt format if it has one, and return the content of evaluation.json.

    With `url`, the model is measured on a vLLM server at this address (up to and including /v1), which serves the same
    model; `model` is then a local folder, for the tokenizer and the prompt format.
    """
    from meditune.evaluate.evaluator import coverage_remarks, unmeasured_ids
    from meditune.evaluate.faithfulness_and_similarity import grade
    from meditune.evaluate.metrics import summarize, summarize_references
    from meditune.evaluate.predictions import read, write_pubmedqa
    from meditune.evaluate.subgroups import subgroups
    from meditune.models.load import locate

    remote = find_api_model(model, recipe.model.api)
    if url and (remote or not Path(locate(model)).is_dir()):
        raise ModelError(
            f"--url: {model} must be a run or a model on this machine, for its tokenizer and prompt format. Name the "
            "folder of the model that the server serves."
        )
    with lock_run(recipe, folder, model):
        weights, place = weights_state(model), Path(model).expanduser()
        named = str(place.resolve()) if place.is_dir() else model
        state = {"model": named} | ({"weights": weights} if weights else {}) | ({"url": url} if url else {})
        if (folder / "predictions").exists() and (folder / EVALUATION).is_file():
            _refuse_other_model(read_json(folder / EVALUATION), state, folder)
        write_json(folder / EVALUATION, state)
        with stage(folder, "prepare"):
            data = prepared(recipe, folder, model)
        copy_out_of_fold(model, data.splits, recipe, folder)
        hosted_pipeline.approve_judge(recipe, folder, ["model"], approve)
        if remote:
            hosted_pipeline.measure(remote, data, recipe, folder, approve, _evaluator(recipe, data, folder, API, model))
        elif url or is_exported(model):
            _measure_engine(model, recipe, data, folder, url)
        else:
            _measure_here(model, recipe, data, folder)
        hosted_pipeline.judge_suites(recipe, folder, ["model"])
        suites = described_suites(folder, ["model"], recipe.evaluate.suite_judge)
        measured = data.splits.measured(recipe.evaluate.split)
        retrieved = retrieval_augmentation.with_retrieved(recipe, measured, folder)
        grade(folder / "predictions", "model", measured, recipe.evaluate, retrieved)
        if _is_official(data, recipe):
            write_pubmedqa(folder / "predictions", "model", measured)
        predictions = read(folder / "predictions", "model")
        test_set = data.splits.measured_name(recipe.evaluate.split)
        result = state | {
            "data": {"test_set": test_set, "sha256": data.sha256},
            "figures": summarize(predictions),
            "references": summarize_references(predictions),
            "remarks": [
                *unmeasured_ids(measured),
                *coverage_remarks(predictions, "model", measured, recipe),
                *suite_remarks(suites),
            ],
            "subgroups": subgroups([*measured, *suite_examples(recipe, folder)], None, predictions, recipe.seed),
            **({"suites": suites} if suites else {}),
            "leakage": read_json(folder / leakage.LEAKAGE_FILE_NAME),
            **_conditions({"model": predictions}, recipe, measured, folder),
        }
        write_json(folder / EVALUATION, result)
        return result


def _measure_here(model: str, recipe: Recipe, data: Prepared, folder: Path) -> None:
    from meditune.evaluate.weights_backend import WeightsBackend
    from meditune.models.forward import virtual_tokens
    from meditune.models.load import load, prompt_for, refuse_unreadable

    evaluator = _evaluator(recipe, data, folder, WEIGHTS, model)
    if not evaluator.is_done("model"):
        loaded = load(model, recipe.model)
        form = loaded.form or prompt_for(recipe.prompt, model, data.splits.measured(recipe.evaluate.split))
        if not evaluator.uses_lm_eval:
            refuse_unreadable(model, loaded.model.config, form, recipe, virtual_tokens(loaded.model))
        with stage(folder, "measure"):
            evaluator.measure(WeightsBackend(loaded, recipe, form), "model")


SERVER_REQUESTS = 32
"""Number of items that a server scores at the same time"""


def _measure_engine(model: str, recipe: Recipe, data: Prepared, folder: Path, url: str | None) -> None:
    """Evaluate an exported model with the engine that serves it, or a model on a server."""
    from meditune.engines.open_engine import open_engine
    from meditune.evaluate.backends import EngineBackend
    from meditune.models.load import locate, prompt_for

    evaluator = _evaluator(recipe, data, folder, ENGINE, model)
    if not evaluator.is_done("model"):
        place = Path(model).expanduser() if is_exported(model) else Path(locate(model))
        name, concurrency = ("vllm", SERVER_REQUESTS) if url else ("auto", 1)
        with closing(open_engine(str(place), name, SERVER_REQUESTS, url)) as engine, stage(folder, "measure"):
            examples = data.splits.measured(recipe.evaluate.split)
            form = load_format(place) or prompt_for(recipe.prompt, str(place), examples)
            evaluator.measure(EngineBackend(engine, form, concurrency), "model")


def report(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Compute report.json from the stored predictions, update the model card and render report.html.

    Raises DataError if the folder contains no finished run.
    """
    from meditune.evaluate.faithfulness_and_similarity import grade
    from meditune.evaluate.predictions import read, write_pubmedqa
    from meditune.evaluate.report import render
    from meditune.evaluate.summary import summary
    from meditune.review.results import of_run
    from meditune.train import model_card

    refuse_unfinished(folder)
    recipe = load_recipe(str(folder / RECIPE)).recipe
    if form := load_format(folder / "model"):
        recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"format": form.format})})
    training = read_json(folder / "model" / "training.json")
    data = stored_data(folder / "data")
    measured = data.splits.measured(recipe.evaluate.split)
    retrieved = retrieval_augmentation.with_retrieved(recipe, measured, folder)
    for name in BOTH:
        grade(folder / "predictions", name, measured, recipe.evaluate, retrieved)
        if _is_official(data, recipe):
            write_pubmedqa(folder / "predictions", name, measured)
    result = summary(recipe, data, training, folder / "predictions")
    both = {name: read(folder / "predictions", name) for name in BOTH}
    result |= _conditions(both, recipe, measured, folder)
    result["leakage"] = read_json(folder / leakage.LEAKAGE_FILE_NAME)
    result["stages"] = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
    if (folder / PRUNED / PRUNING).is_file():
        result["pruning"] = read_json(folder / PRUNED / PRUNING)
    if reviewed := of_run(folder):
        result["review"] = reviewed
    path = folder / "report.json"
    earlier: dict[str, Any] = {}
    with suppress(DataError):  # the file may be damaged, and is about to be replaced
        earlier = read_json(path) if path.is_file() else {}
    if command or not {"versions", "machine", "command"} <= earlier.keys():
        command = command or shlex.join(["meditune", "report", str(folder)])
        earlier = {"versions": versions(recipe), "machine": machine(), "command": command}
    result |= {key: earlier[key] for key in ("versions", "machine", "command")}
    write_json(path, result)
    hosted = find_api_model(str(folder / "model"), recipe.model.api)
    card = (model_card.hosted_model_card if hosted else model_card.model_card)(recipe, training, result)
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    render(folder)
    return result


def prepare_only(recipe: Recipe, folder: Path) -> Prepared:
    """Return the data in the run's folder, prepared now or earlier."""
    with lock_run(recipe, folder):
        return prepared(recipe, folder)


def prepared(recipe: Recipe, folder: Path, model: str | None = None) -> Prepared:
    """Return the run's data, prepared now or earlier, with preference pairs if the recipe needs them.

    If `model` is given, it is only measured, so the splits for training can be empty. Raises DataError if test items
    leaked: into the training data, their own prompts, or the training data of `model` (by default the recipe's base).
    Raises ModelError if the model that judges faithfulness is unavailable.
    """
    data = _data(recipe, folder, (recipe.evaluate if model else recipe).needed_splits)
    name = model or recipe.model.base
    checked = _leakage(recipe, data, name)
    remote = find_api_model(name, recipe.model.api)
    facts = retrieval_augmentation.retrieve_for_evaluation(recipe, data.splits, folder, remote.title if remote else "")
    if facts:
        checked = checked | {"index": facts["index"], "found": checked["found"] | facts["leaks"]}
    refuse_unusable_judge(recipe)
    suites = prepare_suites(recipe, folder)
    if suites:
        checked = checked | {"suites": check_suites(suites, data.splits, *training_data_of(name))}
    leakage.refuse(checked, recipe.evaluate.allow_leakage, folder)
    write_json(folder / leakage.LEAKAGE_FILE_NAME, checked)
    if recipe.evaluate.faithfulness_model != "none":
        from meditune.models.nli import check

        check(recipe.evaluate.faithfulness_model)
    if model is None:
        retrieval_augmentation.retrieve_for_training(recipe, data.splits, folder, remote.title if remote else "")
    if recipe.train.objective != "sft":
        prepare_pairs(recipe, data.splits, data.sha256, folder)
    return data


def _data(recipe: Recipe, folder: Path, needed: Collection[str]) -> Prepared:
    if (folder / "data" / "quality.json").is_file():
        data = stored_data(folder / "data")
        refuse_other(recipe.data.decisions, data.quality, folder)
        changed = changed_files(recipe.data, data)
        if not changed and not used_fallback(recipe.data, data):
            return data
        is_measured = any((folder / name).exists() for name in ("predictions", "checkpoint", "model"))
        if changed and is_measured:
            raise DataError(
                f"{', '.join(changed)} has changed since the data in {folder} were prepared. Choose another --output "
                "for the new rows, or restore the earlier version of the file."
            )
        if is_measured:
            print(
                f"{folder} was prepared with the SYNTHETIC sample because the real data were missing. The real data "
                "are available now; to use them, choose another --output.",
                file=sys.stderr,
            )
            return data
        if changed:
            print(f"{', '.join(changed)} has changed, so the data are prepared again.", file=sys.stderr)
        else:
            print("The real data are available now and replace the sample.", file=sys.stderr)
        for name in RETRIEVED_FILES:
            (folder / name).unlink(missing_ok=True)
    data = prepare(recipe, folder / "data", needed)
    note_data(recipe, folder, data.sha256)
    return data


def _conditions(models: dict[str, Any], recipe: Recipe, measured: list[Example], folder: Path) -> dict[str, Any]:
    """Return the keys `conditions` and `retrieval` of report.json and evaluation.json, if they were measured."""
    from meditune.evaluate.predictions import groups_of
    from meditune.evaluate.summary import conditions, retrieval

    items = {example.id: example for example in measured}
    found = conditions(models, recipe.evaluate.resamples, recipe.seed, groups_of(items))
    path = folder / retrieved_passages.RETRIEVED_FACTS
    searched = {"retrieval": retrieval(read_json(path))} if path.is_file() else {}
    return ({"conditions": found} if found else {}) | searched


def _leakage(recipe: Recipe, data: Prepared, model: str) -> dict[str, Any]:
    """Return the content of leakage.json: what was checked, and what was found."""
    split, checked = recipe.evaluate.split, data.quality["leakage"]
    if checked["split"] != split:
        checked = leakage.check(data.splits, split, model)
    checked["model"]["name"] = model
    return leakage.with_known_test_items(checked, *training_data_of(model), data.splits.measured(split))


def _is_official(data: Prepared, recipe: Recipe) -> bool:
    """Return whether the model is measured on PubMedQA's official test set."""
    return recipe.evaluate.split == "test" and "pubmedqa-official" in data.splits.test_set


def _load(recipe: Recipe, name: str, on: str | None = None) -> Any:
    """Load a model for tuning or evaluation; raise RecipeError if it doesn't accept rows of the recipe's length."""
    from meditune.models.load import load, refuse_unreadable

    loaded = load(name, recipe.model, on)
    refuse_unreadable(name, loaded.model.config, recipe.prompt, recipe)
    return loaded


def _refuse_other_model(stored: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
    """Raise MedituneError if `folder` contains predictions of another model, or of other weights or another server."""
    earlier, model, weights = stored["model"], state["model"], state.get("weights", {})
    # The earlier path can have been relative to another working directory, so the same weights are the same model.
    if model not in (earlier, str(Path(earlier).resolve())) and not (weights and stored.get("weights") == weights):
        raise MedituneError(f"{folder} contains the evaluation of another model. Choose another --output.")
    if "weights" in stored and stored["weights"] != weights:
        raise MedituneError(
            f"{folder} contains predictions from earlier weights of {model}. Choose another --output, or delete "
            f"{folder / 'predictions'} to evaluate the model again."
        )
    if stored.get("url") != state.get("url"):
        raise MedituneError(
            f"{folder} contains predictions of {model} {_where(stored)}, not {_where(state)}. Choose another --output."
        )


def _where(state: dict[str, Any]) -> str:
    return f"on the server at {state['url']}" if "url" in state else "in Meditune's own process"
