"""The training stage of a run: pre-flight, training with checkpoints, and the finished model."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meditune.data.splits import Splits
from meditune.errors import MedituneError
from meditune.files import full_disk_said, read_json, read_jsonl, replacing_folder, write_json, write_jsonl
from meditune.models.load import LoadedModel
from meditune.models.quantized import TRAINING
from meditune.models.quiet import quiet_transformers
from meditune.models.rows import Row
from meditune.models.strategies import is_adapter, make_trainable, merged, parameter_counts
from meditune.progress import clock
from meditune.prompts import save_format
from meditune.recipe import Recipe, TrainSpec, plain
from meditune.train.encode import lengths, marked
from meditune.train.ewc import EWC, estimate
from meditune.train.optimizer import STATE_BYTES
from meditune.train.penalties import L2SP, Penalty, StartingPoint
from meditune.train.plan import Plan, plan
from meditune.train.sft import Step, probe, train

CHECKPOINT = "checkpoint"


def fine_tune(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train `loaded` by the recipe's strategy, leave the result in `folder/model`, and return the facts of report.json.

    A checkpoint lies in `folder/checkpoint` while training goes on; the same call takes it up again. `loaded.model` is
    changed in place and holds the tuned weights afterwards.
    """
    started = time.monotonic()
    planned = plan(loaded, splits, recipe, folder)
    model = make_trainable(loaded.model, recipe.model, recipe.seed)
    trainable, parameters = parameter_counts(model)
    counts = {"trainable_parameters": trainable, "parameters": parameters}
    _preflight(planned, counts, recipe, loaded)
    rows = [*planned.rows, *planned.pool]
    speed = probe(model, loaded.pad_id, rows, planned.weights, recipe.train, loaded.frozen)
    left = clock(planned.tokens / speed)
    memory = peak_memory_gb() + trainable * STATE_BYTES / 1e9
    print(f"About {left} at {speed:,.0f} tokens/s; {memory:.1f} GB of memory.", file=sys.stderr)
    write_json(folder / "tokens.json", {"train": lengths(planned.rows)})
    log = _train_with_checkpoints(model, loaded, planned, recipe, folder)
    write_jsonl(folder / "training.jsonl", (asdict(step) for step in log))
    seconds = sum(step.seconds for step in log)
    facts = {
        "strategy": recipe.model.strategy,
        "quantize": recipe.model.quantize,
        **planned.facts(),
        **counts,
        "tokens_per_s": round(sum(step.tokens for step in log) / seconds, 1),
        "supervised_tokens": sum(step.supervised_tokens for step in log),
        "peak_rss_gb": round(peak_memory_gb(), 2),
        "seconds": round(seconds, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
        "epochs": recipe.train.epochs,
        "steps": len(planned.steps),
        "final_loss": log[-1].loss,
    }
    loaded.model = save_model(model, loaded, recipe, facts, folder / "model")
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    return facts


def save_model(model: Any, loaded: LoadedModel, recipe: Recipe, facts: dict[str, Any], folder: Path) -> Any:
    """Write the adapter or the whole model with tokenizer, prompt format and stop settings.

    Returns the model as it is measured.
    """
    from meditune.train.card import model_card

    base = Path(model.peft_config["default"].base_model_name_or_path) if is_adapter(model) else None
    if base and base.is_dir():
        # A path that is relative to where the run was started would lead nowhere from elsewhere.
        model.peft_config["default"].base_model_name_or_path = str(base.resolve())
    with full_disk_said(folder), replacing_folder(folder) as partial, quiet_transformers():
        model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        save_format(recipe.prompt, partial)
        generation = model.generation_config
        generation.eos_token_id = loaded.tokenizer.eos_token_id
        generation.pad_token_id = loaded.pad_id
        generation.save_pretrained(partial)
        write_json(partial / TRAINING, facts)
        (partial / "README.md").write_text(model_card(recipe, facts, None), encoding="utf-8")
    return merged(model)


def peak_memory_gb() -> float:
    """The largest resident memory of this process so far, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _penalties(model: Any, loaded: LoadedModel, pool: Sequence[Row], spec: TrainSpec) -> list[Penalty]:
    """The penalties that the recipe asks for; `model` must be where training starts."""
    found: list[Penalty] = []
    if spec.l2_sp or spec.ewc.strength:
        start = StartingPoint(model)
        if spec.l2_sp:
            found.append(L2SP(start, spec.l2_sp))
        if spec.ewc.strength:
            fisher = estimate(model, loaded.pad_id, pool[: spec.ewc.samples], loaded.frozen, start)
            found.append(EWC(start, fisher, spec.ewc.strength))
    return found


def _train_with_checkpoints(model: Any, loaded: LoadedModel, planned: Plan, recipe: Recipe, folder: Path) -> list[Step]:
    from safetensors.torch import load_file, save_file

    place = folder / CHECKPOINT
    log: list[Step] = []
    resume = None
    if (place / "state.json").is_file():
        state = read_json(place / "state.json")
        if state["recipe"] != _what_training_depends_on(recipe):
            raise MedituneError(
                f"{place} is a checkpoint of other training settings. Take the old settings, or remove that folder to "
                "start training again."
            )
        log = [Step(**row) for row in read_jsonl(place / "training.jsonl")]
        resume = (len(log), load_file(place / "optimizer.safetensors"))
        print(f"Going on with training after step {len(log)}.", file=sys.stderr)

    def checkpoint(_: int, tensors: dict[str, Any]) -> None:
        with full_disk_said(place), replacing_folder(place) as partial:
            save_file({key: value.contiguous() for key, value in tensors.items()}, partial / "optimizer.safetensors")
            write_jsonl(partial / "training.jsonl", (asdict(step) for step in log))
            write_json(partial / "state.json", {"recipe": _what_training_depends_on(recipe)})

    steps = train(
        *(model, loaded.pad_id, planned.rows, planned.weights, recipe.train, recipe.seed, loaded.frozen),
        *(resume, checkpoint, planned.mix, planned.replay),
        _penalties(model, loaded, planned.pool, recipe.train),
    )
    try:
        for step in steps:
            log.append(step)
    except FloatingPointError as error:
        raise MedituneError(f"Training broke down. {error}") from error
    return log


def _what_training_depends_on(recipe: Recipe) -> dict[str, Any]:
    values = plain(recipe)
    return {key: values[key] for key in ("seed", "model", "data", "prompt", "train")}


def _preflight(planned: Plan, counts: dict[str, int], recipe: Recipe, loaded: LoadedModel) -> None:
    tokens, share = planned.fitted, counts["trainable_parameters"] / counts["parameters"]
    report = [
        f"Training on {tokens.rows} examples, {tokens.tokens:,} tokens an epoch, {tokens.supervised_tokens:,} of them "
        f"trained on; longest row {tokens.longest}.",
        f"{tokens.shortened} contexts shortened at their beginning, {tokens.cut} answers cut, {tokens.dropped} "
        f"examples left out, to fit {recipe.prompt.max_tokens} tokens.",
        f"{counts['trainable_parameters']:,} of {counts['parameters']:,} parameters are trained ({share:.1%}); "
        f"{len(planned.steps)} steps, {planned.tokens:,} tokens in all.",
        "One example; what is trained on stands between « »:",
        *(f"    {line}" for line in marked(planned.rows[0], loaded.tokenizer).splitlines()),
        *planned.lines(loaded.tokenizer),
    ]
    print("\n".join(report), file=sys.stderr)
