"""The training stage of a run: pre-flight, training with checkpoints, and the finished model."""

from __future__ import annotations

import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meditune import distributed
from meditune.config.recipe import Recipe
from meditune.config.training_options import VIRTUAL, TrainSpec
from meditune.data import leakage
from meditune.data.prepare_pairs import stored_pairs
from meditune.data.splits import Splits
from meditune.errors import MedituneError, ModelError
from meditune.files import follow_umask, full_disk_message, replace_folder, write_json
from meditune.hardware import free_gpu_bytes
from meditune.models import torch_compile
from meditune.models.adapters import fuse_lora, is_adapter, make_trainable, merged, parameter_counts
from meditune.models.catalogue import START
from meditune.models.forward import takes_unpadded
from meditune.models.fsdp import copy_from_first, gather_weights, is_sharded, shard
from meditune.models.gpu_attention import has_flash_kernels
from meditune.models.load import LoadedModel, device, locate
from meditune.models.quantization import TRAINING
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import Row
from meditune.progress import clock
from meditune.prompts import save_format
from meditune.train import checkpoint
from meditune.train.dataset import lengths, marked
from meditune.train.early_stopping import DevMonitor, Measure, dev_loss, measured_on
from meditune.train.optimizer import state_bytes
from meditune.train.regularization import EWC, L2SP, Penalty, StartingPoint, estimate
from meditune.train.replay import EWC_ROWS, rehearsal_rows
from meditune.train.trackers import followed
from meditune.train.trainer import DivergenceError, Step, epoch_steps, parallel_mode, probe, train
from meditune.train.training_plan import Plan, plan, plan_pairs


@contextmanager
def fast_layers(model: Any, spec: TrainSpec, tokens: int, probe_chunk: Callable[[], object]) -> Iterator[bool]:
    """Inside the block, run the model's layers in their fastest form; yield whether the layers are compiled.

    `tokens` is the number of tokens that the whole training reads; `probe_chunk` computes the gradients of one batch.
    Raises ModelError if `train.compile` is on but compiling fails.
    """
    with ExitStack() as fast:
        fast.enter_context(fuse_lora(model))
        if _trains_fp32_beside_16_bits(model):
            fast.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
        yield spec.compile != "off" and _compiled(model, spec, tokens, probe_chunk, fast)


def _trains_fp32_beside_16_bits(model: Any) -> bool:
    """Return whether a 16-bit model's FP32 weights are trained on a GPU; products may then round inputs (TF32)."""
    weight = model.get_input_embeddings().weight
    trained = {each.dtype for each in model.parameters() if each.requires_grad}
    return bool(weight.is_cuda) and weight.dtype != torch.float32 and torch.float32 in trained


def _sized(model: Any, recipe: Recipe, parallel: str) -> Recipe:
    """Return the recipe; on a GPU, set batch size and gradient checkpointing if the recipe leaves them open."""
    spec = recipe.train
    if device() != "cuda" or not (spec.gradient_checkpointing is None or spec.micro_batch_tokens is None):
        return recipe
    from meditune.train.resource_plan import on_meta, planned_attention, sized

    # The plan counts the weights again, so add the memory that they already occupy.
    room = free_gpu_bytes(device()) + (torch.cuda.memory_allocated() if parallel != "fsdp" else 0)
    processes = distributed.world() if parallel == "fsdp" else 1
    attention = planned_attention(recipe.model, device(), has_flash_kernels(device()))
    planned = on_meta(model.config, recipe.model, model.dtype, attention)
    chosen = distributed.broadcast(sized(recipe, planned, room, processes)[0].train)
    recompute = "recomputed" if chosen.gradient_checkpointing else "stored"
    print(
        f"Batches of up to {chosen.batch_tokens:,} tokens, with activations {recompute} (train.micro_batch_tokens, "
        "train.gradient_checkpointing).",
        file=sys.stderr,
    )
    return recipe.model_copy(update={"train": chosen})


def check_compile(recipe: Recipe) -> None:
    """Raise ModelError if `train.compile` is on but certain to fail. This needs no loaded model."""
    if recipe.train.compile != "on":
        return
    quantized, virtual = recipe.model.quantize != "none", recipe.model.strategy in VIRTUAL
    if reason := torch_compile.why_unsupported(quantized, virtual, device() == "cpu"):
        raise _refused(reason)


def _refused(reason: str) -> ModelError:
    return ModelError(f"train.compile on: the layers can't be compiled. {reason} Set train.compile to off.")


def _compiled(model: Any, spec: TrainSpec, tokens: int, probe_chunk: Callable[[], object], fast: ExitStack) -> bool:
    # DPO and KTO compare likelihoods with those from before training, which were computed with uncompiled layers.
    if spec.compile == "auto" and (spec.objective != "sft" or not torch_compile.is_worthwhile(model, tokens)):
        return False
    from torch._dynamo.exc import TorchDynamoException

    reason = torch_compile.unsupported_reason(model)
    if reason is None:
        print("Compiling the layers (train.compile). This takes up to a minute the first time.", file=sys.stderr)
        try:
            fast.enter_context(torch_compile.compiled(model, probe_chunk))
            return True
        except TorchDynamoException as error:
            reason = torch_compile.failure(error)
    if spec.compile == "on":
        raise _refused(reason)
    print(f"Training without compiled layers, which is slower. {reason}", file=sys.stderr)
    return False


SHARED = {"ddp": "each with the complete model (DDP)", "fsdp": "each with a share of every weight (FSDP2)"}


def fine_tune(
    loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path, measure: Measure | None = None
) -> dict[str, Any]:
    """Train `loaded` in place, write the result to `folder/model`, and return facts for report.json.

    If there is a checkpoint in `folder/checkpoint`, the same call resumes from it. `measure` computes the metric of
    `train.dev`, and can be None if that metric is `loss`. All processes must call this with the same arguments; only
    the first process writes files.
    """
    started = time.monotonic()
    if device() == "cuda":
        # Measure the peak of training alone, and free memory that an evaluation has left reserved.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    parallel = parallel_mode(loaded.model, recipe)
    if parallel == "ddp" and recipe.model.quantize == "none":
        copy_from_first(loaded.model, device())
    elif parallel != "fsdp":
        loaded.model.to(device())
    recipe = _sized(loaded.model, recipe, parallel)
    dev = measured_on(splits.dev, recipe) if recipe.train.dev.is_on else []
    if dev and not measure:
        measure = dev_loss(dev, loaded.encoder(recipe.prompt), recipe)
    make_plan = plan if recipe.train.objective == "sft" else plan_pairs
    planned = make_plan(loaded, splits, recipe, folder)
    is_empty = next(loaded.model.parameters()).is_meta
    with torch.device("meta") if is_empty else nullcontext():
        model = make_trainable(loaded.model, recipe.model, recipe.seed)
    trainable, parameters = parameter_counts(model)
    counts = {"trainable_parameters": trainable, "parameters": parameters}
    _preflight(planned, counts, recipe, loaded)
    if parallel != "one":
        print(f"{distributed.world()} processes, {SHARED[parallel]} (train.parallel).", file=sys.stderr)
    if parallel == "fsdp":
        shard(model, device())
        # All processes must gather a sharded layer at the same time, so no process can compute an extra batch alone.
        loaded.frozen.forget()
    elif parallel == "ddp":
        for parameter in model.parameters():
            if parameter.requires_grad:
                # The rounding of a prefix's initial values depends on the machine.
                distributed.broadcast_tensor(parameter.data)
    if distributed.is_first():
        write_json(folder / "tokens.json", {"train": lengths(planned.rows)})
    penalties = _penalties(model, loaded, planned.pool, recipe.train)

    in_training = replace(loaded, model=model)
    # Without replay, the pool is used only by EWC, and `loss_of` may not support its rows.
    tried = replace(planned, rows=[*planned.rows, *planned.pool]) if planned.replay else planned

    def probe_chunk() -> float:
        return probe(in_training, tried, recipe.train)

    def probe_layouts() -> None:
        if takes_unpadded(model):
            probe(in_training, tried, recipe.train, padded=True)
        probe_chunk()

    if distributed.world() == 1:  # with more processes, each computes only the batches that it needs
        model.eval()
        loaded.frozen.fill(model, loaded.pad_id)
    with fast_layers(model, recipe.train, planned.tokens, probe_layouts) as are_compiled:
        if device() == "cuda":
            probe_chunk()  # load the kernels before the speed is measured
        speed = probe_chunk()
        left = clock((planned.tokens - checkpoint.tokens_read(folder / checkpoint.FOLDER)) / speed)
        state = trainable * state_bytes(recipe.train) / 1e9 / (distributed.world() if parallel == "fsdp" else 1)
        each = " in each process" if parallel != "one" else ""
        kind, peak = "memory", peak_memory_gb()
        if device() == "cuda":
            kind, peak = "GPU memory", torch.cuda.max_memory_reserved() / 1e9
        print(
            f"Estimated time left: {left} at {speed:,.0f} tokens/s; needs {peak + state:.1f} GB of {kind}{each}.",
            file=sys.stderr,
        )
        log, dev_monitor = _train_with_checkpoints(in_training, planned, recipe, folder, penalties, measure, len(dev))
    seconds = sum(step.seconds for step in log)
    facts = {
        "strategy": recipe.model.strategy,
        "objective": recipe.train.objective,
        "quantize": recipe.model.quantize,
        **planned.facts(len(log)),
        **counts,
        "tokens_per_s": round(sum(step.tokens for step in log) / seconds, 1),
        "supervised_tokens": sum(step.supervised_tokens for step in log),
        **peaks(),
        "seconds": round(seconds, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
        "epochs": log[-1].epoch,
        "steps": len(log),
        "final_loss": log[-1].loss,
        "compiled": are_compiled,
        **({} if parallel == "one" else {"processes": distributed.world(), "parallel": parallel}),
        **({"base_commit": loaded.commit} if loaded.commit else {}),
        **({"start": recipe.model.base} if (folder / START).is_dir() else {}),
        **({"dev": dev_monitor.facts(len(dev))} if dev_monitor else {}),
    }
    learnt = [*splits.train, *rehearsal_rows(recipe, planned.pool)]
    if recipe.train.objective != "sft":
        learnt = [pair.example() for pair in stored_pairs(folder).train]
    base = Path(locate(recipe.model.base))
    earlier = leakage.read_record(base) if base.is_dir() else None
    record = leakage.record(learnt, [earlier] if earlier else [])
    loaded.model = save_model(model, loaded, recipe, facts, folder / "model", record)
    if distributed.is_first():
        shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)
    distributed.barrier()
    return facts


def save_model(
    model: Any,
    loaded: LoadedModel,
    recipe: Recipe,
    facts: dict[str, Any],
    folder: Path,
    record: leakage.Record | None = None,
) -> Any:
    """Write the adapter or model to `folder`, with tokenizer, prompt format, training facts and model card.

    Return the model in the form for evaluation.
    """
    from meditune.train.model_card import model_card

    weights = gather_weights(model, trainable_only=is_adapter(model)) if is_sharded(model) else None
    if distributed.is_first():
        base = Path(model.peft_config["default"].base_model_name_or_path) if is_adapter(model) else None
        if base and base.is_dir():
            # A relative path would be wrong from any other working directory.
            model.peft_config["default"].base_model_name_or_path = str(base.resolve())
        elif base:
            # Pin the commit: the adapter fits only these weights, even if the hub's branch moves.
            model.peft_config["default"].revision = loaded.commit
        with full_disk_message(folder), replace_folder(folder) as partial, quiet_transformers():
            model.save_pretrained(partial, state_dict=weights)
            loaded.tokenizer.save_pretrained(partial)
            follow_umask(partial)
            save_format(recipe.prompt, partial)
            generation = model.generation_config
            generation.eos_token_id = loaded.tokenizer.eos_token_id
            generation.pad_token_id = loaded.pad_id
            generation.save_pretrained(partial)
            write_json(partial / TRAINING, facts)
            if record:
                write_json(partial / leakage.FILE_NAME, record)
            (partial / "README.md").write_text(model_card(recipe, facts, None), encoding="utf-8")
    return model if is_sharded(model) else merged(model)


def peaks() -> dict[str, float]:
    """Return this process's peak memory so far in 10^9 bytes: on the host, and on the GPU as reserved by PyTorch."""
    found = {"peak_rss_gb": round(peak_memory_gb(), 2)}
    if device() == "cuda":
        found["peak_gpu_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return found


def peak_memory_gb() -> float:
    """Return the largest resident memory of this process so far, in 10^9 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # The value of getrusage starts from the size of the parent process.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 / 1e9


def _penalties(model: Any, loaded: LoadedModel, pool: Sequence[Row], spec: TrainSpec) -> list[Penalty]:
    """Return the penalties in the recipe; `model` must still be at the starting point of training."""
    found: list[Penalty] = []
    if spec.l2_sp or spec.ewc.strength:
        start = StartingPoint(model)
        if spec.l2_sp:
            found.append(L2SP(start, spec.l2_sp))
        if spec.ewc.strength:
            fisher = estimate(model, loaded.pad_id, pool[:EWC_ROWS], loaded.frozen, start)
            found.append(EWC(start, fisher, spec.ewc.strength))
    return found


def _train_with_checkpoints(
    loaded: LoadedModel,
    planned: Plan,
    recipe: Recipe,
    folder: Path,
    penalties: Sequence[Penalty],
    measure: Measure | None,
    dev_examples: int,
) -> tuple[list[Step], DevMonitor | None]:
    place = folder / checkpoint.FOLDER
    resume = checkpoint.read(place, loaded.model, recipe)
    log = list(resume[0]) if resume else []

    def save(_: int, tensors: dict[str, Any]) -> None:
        checkpoint.write(place, log, tensors, recipe, is_sharded(loaded.model))

    dev_monitor = None
    if measure:
        metric_of = measure
        dev_monitor = DevMonitor(
            recipe.train.dev,
            lambda: distributed.broadcast(metric_of(loaded)),
            epoch_steps(planned.epoch_rows, recipe.train),
            {step.step: step.dev for step in log if step.dev is not None},
        )
        print(dev_monitor.announced(dev_examples), file=sys.stderr)
    steps = train(loaded, planned, recipe.train, recipe.seed, penalties, resume, save, dev_monitor)
    try:
        with followed(recipe, folder, log) as follow:
            for step in steps:
                log.append(step)
                follow(step)
    except DivergenceError as error:
        raise MedituneError(
            f"Training diverged at step {error.step}: {error.what}. Rows of that step: {', '.join(error.ids)}. "
            f"{place} contains the state before that step. If the hardware was at fault, run the same command to "
            "resume from there. Otherwise, check these rows, or lower train.learning_rate (now "
            f"{recipe.train.learning_rate:g}) and choose another --output."
        ) from error
    if dev_monitor:
        print(*dev_monitor.outcome(), sep="\n", file=sys.stderr)
    return log, dev_monitor


def _preflight(planned: Plan, counts: dict[str, int], recipe: Recipe, loaded: LoadedModel) -> None:
    tokens, share = planned.fitted, counts["trainable_parameters"] / counts["parameters"]
    report = [
        f"Training on {tokens.rows} {planned.unit}: {tokens.tokens:,} tokens in one pass, "
        f"{tokens.supervised_tokens:,} of them supervised; the longest row has {tokens.longest} tokens.",
        f"To fit {recipe.prompt.max_tokens} tokens: {tokens.shortened} contexts shortened, {tokens.cut} answers cut, "
        f"{tokens.dropped} {planned.unit} left out.",
        f"{counts['trainable_parameters']:,} of {counts['parameters']:,} parameters are trained ({share:.1%}); "
        f"{len(planned.steps)} steps, which read {planned.tokens:,} tokens in all.",
        *([template.described()] if (template := loaded.encoder(recipe.prompt).template) else []),
        planned.row_introduction,
        *(f"    {line}" for line in marked(planned.rows[0], loaded.tokenizer).splitlines()),
        *planned.lines(loaded.tokenizer),
    ]
    print("\n".join(report), file=sys.stderr)
