"""Measure speed and memory on one GPU beside other libraries, with fresh weights of real models' shapes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --only training --shapes llama2-7b mistral-7b --engines meditune trainer
    python benchmarks/gpu.py --rehearse

Nothing is downloaded: weights and tokens are random, and examples have PubMedQA's lengths (a context and question of
250 to 420 tokens that a decision and an answer of 40 to 90 tokens share). Peers run where they are installed. A run
whose turn comes after --minutes is left out, and listed as left out; a run that fails is listed with its error. The
JSON file is written after every run. --rehearse does everything with tiny models on a CPU, to check the script; its
numbers mean nothing.

A peer first runs with --batch rows at once (four times as many for answers), then with twice as many as long as that
is faster. If the first number doesn't fit into memory, it is halved until it fits. The peer's fastest batch counts.

- training: LoRA in optimizer steps of 32 examples, for a few seconds after a first step that isn't counted. Meditune
  chooses its own sizes. A peer reads one row for the decision and one for the answer; Meditune reads their common
  prompt once. `trl` reads rows without padding where FlashAttention is installed, `liger` is the Trainer with Liger's
  kernels, in a process of its own. `meditune-compiled` compiles the layers, and `meditune-recomputed` recomputes
  activations. `peak_gb` is the memory that PyTorch reserved, `predicted_gb` what `meditune plan` predicts for the same
  sizes, without the CUDA context. `mfu` is the minimum of operations for the tokens read (cost.py) per second, as a
  share of `matrix_tflops`, the fastest BF16 product of this card now.
- likelihoods: 500 decisions, beside a plain transformers loop and lm-evaluation-harness.
- answers: 200 answers of 128 tokens, beside transformers' static cache and vLLM.
- loading: BF16 weights from files that were just written, as they are, in NF4 and in int8, beside transformers.
- agreement: FP32 log-likelihoods beside the plain loop's, and the loss of 50 BF16 steps beside a plain FP32 loop.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true", "TOKENIZERS_PARALLELISM": "false"}

from cost import cost_of, read_of_row, total
from memory import peak_gb, restart

SHAPES = ("smollm2-135m", "qwen2.5-coder-0.5b", "llama2-7b", "mistral-7b")
LARGE = ("llama2-7b", "mistral-7b")
COMPILED = ("smollm2-135m", "llama2-7b")
"""Shapes that are also trained with compiled layers; compiling takes up to a minute"""
INT8 = "llama2-7b"
"""The shape that is also trained on an int8 base"""
LOADED = "qwen2.5-coder-0.5b"
JOBS = {
    "likelihoods": "items_per_s",
    "answers": "tokens_per_s",
    "loading": "gb_per_s",
    "agreement": "",
    "training": "examples_per_s",
}
"""Jobs, and the name of their speed. The longest comes last, so that none takes the others' time."""
OWN: dict[str, dict[str, Any]] = {
    "meditune": {},
    "meditune-compiled": {"compile": "on"},
    "meditune-recomputed": {"gradient_checkpointing": True},
}
"""Meditune's engines, and their options in training"""
ENGINES = (*OWN, "transformers", "trainer", "trl", "liger", "lm-eval", "vllm")
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "liger_kernel", "lm_eval", "vllm", "meditune")
STEP = 32
"""Examples in an optimizer step"""
PAD, END = 0, 1
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    device: str
    shapes: tuple[str, ...]
    steps: int  # at most; the first is a warm-up
    seconds: float  # after which no step of training begins
    step: int
    decisions: int
    answers: int
    new_tokens: int
    curve: int
    batch: int


FULL = Size("cuda", SHAPES, 61, 3.0, STEP, 500, 200, 128, 50, 16)
TINY = Size("cpu", ("llama2-7b",), 2, 0.0, 2, 4, 4, 4, 7, 4)


def main(words: Sequence[str] | None = None) -> None:
    """Run the chosen jobs in this process, and print a line for each measurement and each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), help="jobs to run")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="models whose shapes are trained")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="engines to run")
    parser.add_argument("--batch", type=int, help="number of rows in a peer's first batch")
    parser.add_argument("--minutes", type=float, default=8.0, help="no run starts after this time")
    parser.add_argument("--rehearse", action="store_true", help="check the script on a CPU with tiny models")
    parser.add_argument("--json", type=Path, help="write all metrics to this file after every run")
    options = parser.parse_args(words)
    size = TINY if options.rehearse else FULL
    if options.shapes:
        size = replace(size, shapes=tuple(options.shapes))
    if options.batch:
        size = replace(size, batch=options.batch)
    import torch

    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU here. Use --rehearse to check the script on a CPU.")
    facts = about(size) | {"words": list(words if words is not None else sys.argv[1:])}
    bench = Bench(size, options.engines, time.monotonic() + 60 * options.minutes, facts, options.json)
    print(json.dumps({key: facts[key] for key in ("card", "driver", "versions")}))
    for job in options.only:
        bench.attempt(getattr(bench, job), job=job)
    bench.write()
    found = bench.found()
    for line in found["ratios"]:
        print(f"{line['what']}: {line['value']:.3g} (target {line['target']})")
    print(json.dumps(found))


def about(size: Size) -> dict[str, Any]:
    """Return card, driver, versions and the speed of BF16 products."""
    import torch

    versions: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    card, driver = platform.machine(), None
    if size.device == "cuda":
        card = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError):
            driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
    return {"card": card, "driver": driver, "versions": versions, "matrix_tflops": matrix_peak(size) / 1e12}


def matrix_peak(size: Size) -> float:
    """Return the operations per second of the fastest of thirty square BF16 products."""
    import torch

    # Processors without BF16 emulate it, far slower than the FP32 that Meditune trains in there.
    side, kinds = (8192, [torch.bfloat16]) if size.device == "cuda" else (256, [torch.bfloat16, torch.float32])
    best = math.inf
    for kind in kinds:
        one = torch.randn(side, side, device=size.device, dtype=kind)
        for _ in range(30):
            best = min(best, timed(size, partial(torch.matmul, one, one)))
    return 2 * side**3 / best


def timed(size: Size, work: Callable[[], object]) -> float:
    """Return the seconds that the work takes, until the device has finished it."""
    wait(size)
    started = time.perf_counter()
    work()
    wait(size)
    return time.perf_counter() - started


def wait(size: Size) -> None:
    """Return when the device has nothing left to do."""
    import torch

    if size.device == "cuda":
        torch.cuda.synchronize()


def restart_peak(size: Size) -> None:
    """Free what isn't used, also compiled code with its CUDA graphs, and measure the peak from here on."""
    import torch

    if size.device == "cuda":
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        restart()


def peak(size: Size) -> float:
    """Return the peak since `restart_peak` in 10^9 bytes: memory that PyTorch reserved, or of this process."""
    import torch

    return float(torch.cuda.max_memory_reserved() / 1e9) if size.device == "cuda" else peak_gb()


def recipe_of(shape: str, quantize: str) -> Any:
    """Return a recipe for LoRA on this base, which leaves its sizes to the plan."""
    from meditune.config.load_recipe import load_recipe

    sets = [f"model.base={shape}", f"model.quantize={quantize}", "model.top_layers=null", "prompt.max_tokens=512"]
    sets += ["train.gradient_checkpointing=null", "train.micro_batch_tokens=null", "train.compile=off"]
    sets += [f"train.batch_size={STEP}", "train.accumulation=1", "train.epochs=1", "train.average_last=0"]
    return load_recipe("quickstart", sets).recipe


def shape_of(recipe: Any, size: Size) -> Any:
    """Return the configuration of the recipe's base, tiny in a rehearsal."""
    from meditune.train.resource_plan import config_of

    config = config_of(recipe.model)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, None, END
    if size.device == "cpu":
        tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 500}
        config.update(tiny | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16})
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def fresh(recipe: Any, size: Size, dtype: Any) -> Any:
    """Return a model with random weights, quantized as the recipe says, as Meditune loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    from meditune.models import gpu_attention, inference

    name = gpu_attention.register() if size.device == "cuda" else inference.register()
    torch.manual_seed(0)
    with torch.device(size.device):
        model = AutoModelForCausalLM.from_config(shape_of(recipe, size), dtype=dtype, attn_implementation=name)
    return model if recipe.model.quantize == "none" else quantized(model, recipe.model.quantize == "nf4", dtype)


def quantized(model: Any, is_nf4: bool, dtype: Any) -> Any:
    """Return the model with NF4 or int8 layers, marked as transformers marks a model that it loads quantized."""
    import torch
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    from meditune.models.quantization import keep_trainable

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and layer is not head:
                shape = {"bias": False, "device": "meta"}
                if is_nf4:
                    small = Linear4bit(layer.in_features, layer.out_features, compute_dtype=dtype, **shape)
                    weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                else:
                    int8 = {"has_fp16_weights": False, "threshold": 6.0}
                    small = Linear8bitLt(layer.in_features, layer.out_features, **int8, **shape)
                    weight = Int8Params(layer.weight.data, requires_grad=False)
                small.weight, small.bias = weight._quantize(layer.weight.device), layer.bias
                setattr(parent, name, small)
    model.quantization_method = "bitsandbytes"
    setattr(model, "is_loaded_in_4bit" if is_nf4 else "is_loaded_in_8bit", True)
    keep_trainable(model)
    return model


def loaded_of(model: Any) -> Any:
    """Return the model as Meditune's functions take it."""
    from meditune.models.hidden_state_cache import HiddenStateCache
    from meditune.models.load import LoadedModel

    tokenizer = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)
    return LoadedModel("fresh", model, tokenizer, None, HiddenStateCache(model, 0))


def examples(count: int, vocabulary: int) -> list[list[Any]]:
    """Return pairs of a decision and an answer that share their prompt, always the same."""
    from meditune.prompts import Encoded

    chance = random.Random(17)

    def ids(least: int, most: int) -> list[int]:
        # Frequent and rare tokens, so that there is something to learn.
        length = chance.randint(least, most)
        return [2 + int((vocabulary - 3) * chance.random() ** 4) for _ in range(length)]

    found = []
    for number in range(count):
        prompt = ids(250, 420)
        decision = Encoded(str(number), "decision", [*prompt, *ids(8, 8), 5], [2 + number % 3])
        found.append([decision, Encoded(str(number), "answer", [*prompt, *ids(6, 6), 7], [*ids(40, 90), END])])
    return found


class OneForEach:
    """The weights of rows whose targets all count the same."""

    def of(self, row: Any) -> list[float]:
        """Return 1 for each target."""
        return [1.0] * len(row.targets)


class Steps:
    """The times at which optimizer steps ended. The first step is a warm-up."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.ends: list[float] = []

    def ended(self) -> bool:
        """Note the end of a step; return whether enough steps have been timed."""
        wait(self.size)
        self.ends.append(time.perf_counter())
        return len(self.ends) > 1 and self.seconds >= self.size.seconds

    @property
    def seconds(self) -> float:
        """The duration of all steps but the first."""
        return self.ends[-1] - self.ends[0]


@contextmanager
def adapted(base: Any, add: Callable[[], Any]) -> Iterator[Any]:
    """Inside the block, the base has the adapter that `add` creates; afterwards, it is as before, even after errors."""
    attention, model = base.config._attn_implementation, add()
    try:
        yield model
    finally:
        model.unload()
        base.gradient_checkpointing_disable()
        base.set_attn_implementation(attention)


@contextmanager
def failure_in(found: dict[str, Any]) -> Iterator[None]:
    """Record an error inside the block in `found`, so that the measurements after it go on."""
    try:
        yield
    except ImportError as error:
        found["left_out"] = f"{error.name} isn't installed"
    except Exception as error:  # noqa: BLE001 - a peer can raise any error, and the error is its result
        found["error"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


class Bench:
    """The measurements of one call."""

    def __init__(
        self, size: Size, engines: Sequence[str], end: float, facts: dict[str, Any], path: Path | None = None
    ) -> None:
        self.size, self.engines, self.end, self.facts, self.path = size, engines, end, facts, path
        self.runs: list[dict[str, Any]] = []

    def found(self) -> dict[str, Any]:
        """Return everything measured so far."""
        return self.facts | {"runs": self.runs, "ratios": ratios(self.runs)}

    def write(self) -> None:
        """Write everything measured so far to the file, if there is one."""
        if self.path:
            self.path.write_text(json.dumps(self.found(), indent=1) + "\n", encoding="utf-8")

    def add(self, found: dict[str, Any]) -> None:
        """Print a finished run, and write it to the file."""
        self.runs.append(found)
        print(json.dumps(found), flush=True)
        self.write()

    def attempt(self, work: Callable[[], object], **facts: Any) -> None:
        """Do the work, unless the time is over. If it fails outside a run, record that as a run of its own."""
        found = dict(facts)
        if time.monotonic() > self.end:
            found["left_out"] = "no time"
        else:
            with failure_in(found):
                work()
        if found != facts:
            self.add(found)

    @contextmanager
    def run(self, job: str, engine: str, **facts: Any) -> Iterator[dict[str, Any] | None]:
        """Record one measurement; None if the engine isn't wanted or the time is over. An error is recorded."""
        found = {"job": job, "engine": engine, **facts}
        if engine not in self.engines:
            yield None
            return
        if time.monotonic() > self.end:
            self.add(found | {"left_out": "no time"})
            yield None
            return
        restart_peak(self.size)
        started = time.monotonic()
        with failure_in(found):
            yield found
        found["peak_gb"] = peak(self.size)
        found["job_seconds"] = round(time.monotonic() - started, 1)
        self.add(found)

    def search(
        self, job: str, engine: str, first: int, most: int, measure: Callable[[dict[str, Any]], None], **facts: Any
    ) -> None:
        """Measure a peer with twice as many rows at once as long as that is faster, or with half until they fit."""
        batch, best = min(first, most), 0.0
        while 1 <= batch <= most:
            with self.run(job, engine, **facts, batch=batch) as found:
                if found is not None:
                    measure(found)
            if found is None:
                return
            speed = found.get(JOBS[job], 0.0)
            if not best and found.get("error", "").startswith("OutOfMemoryError"):
                batch, most = batch // 2, batch - 1
            elif speed > best:
                batch, best = 2 * batch, speed
            else:
                return

    def training(self) -> None:
        """Measure LoRA on each shape, in BF16, and in NF4 (one in int8, too) where it is large."""
        is_liger = list(self.engines) == ["liger"]
        for shape in self.size.shapes:
            kinds = ("none", "nf4") if shape in LARGE else ("none",)
            for quantize in (*kinds, "int8") if shape == INT8 and not is_liger else kinds:
                # Liger's kernels replace transformers' classes in the whole process.
                peers = ["liger"] if is_liger else ["trainer", "trl"] if quantize != "int8" else ["trainer"]
                work = partial(self.train_shape, shape, quantize, peers)
                self.attempt(work, job="training", shape=shape, quantize=quantize)
        if "liger" in self.engines and not is_liger:
            self.attempt(self.liger, job="training", engine="liger")

    def train_shape(self, shape: str, quantize: str, peers: Sequence[str]) -> None:
        """Measure LoRA on one base."""
        import torch

        recipe = recipe_of(shape, quantize)
        base = fresh(recipe, self.size, torch.bfloat16)
        pairs = examples(self.size.steps * self.size.step, base.config.vocab_size)
        facts = {"shape": shape, "quantize": quantize}
        for engine, options in OWN.items():
            if engine == "meditune" or (quantize == "none" and (shape in COMPILED or "compile" not in options)):
                with self.run("training", engine, **facts) as found:
                    if found is not None:
                        self.own_training(base, recipe, options, pairs, found)
        for engine in peers:
            measure = partial(self.peer_training, base, recipe, pairs)
            self.search("training", engine, self.size.batch, 2 * self.size.step, measure, **facts)

    def liger(self) -> None:
        """Measure Liger in a process of its own."""
        import tempfile

        import liger_kernel  # noqa: F401

        restart_peak(self.size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gpu.json"
            words = ["--only", "training", "--engines", "liger", "--shapes", *self.size.shapes, "--json", str(path)]
            words += ["--batch", str(self.size.batch), "--minutes", str((self.end - time.monotonic()) / 60)]
            words += ["--rehearse"] if self.size.device == "cpu" else []
            status = subprocess.run([sys.executable, __file__, *words], check=False).returncode
            if path.is_file():
                self.runs += json.loads(path.read_text(encoding="utf-8"))["runs"]
                self.write()
        if status:
            raise RuntimeError(f"Liger's process ended with status {status}.")

    def own_training(
        self, base: Any, recipe: Any, options: dict[str, Any], pairs: list[list[Any]], found: dict[str, Any]
    ) -> None:
        """Record the speed of Meditune's training loop with these options."""
        import torch

        from meditune.models.adapters import add_lora
        from meditune.models.shared_prefix_batch import join
        from meditune.train.finetune import fast_layers
        from meditune.train.resource_plan import on_meta, peak_of, sized, use_fused_attention
        from meditune.train.trainer import TrainingRows, plan_steps, train

        on_gpu = self.size.device == "cuda"
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=options)})
        planned = on_meta(base.config, recipe.model, torch.bfloat16, use_fused_attention())
        room = torch.cuda.get_device_properties(0).total_memory if on_gpu else 80e9
        recipe, batch = sized(recipe, planned, room)
        spec = recipe.train.model_copy(update={"batch_size": self.size.step})
        predicted = peak_of(planned, batch, recipe, on_gpu=True)
        rows, steps = [join(pair) for pair in pairs], Steps(self.size)
        with adapted(base, partial(add_lora, base, recipe.model.lora, recipe.seed)) as model:
            with torch.device(self.size.device):
                cost = cost_of(model)
            in_training = loaded_of(model)
            with fast_layers(model, spec, 0, lambda: None):
                for _ in train(in_training, TrainingRows(rows, OneForEach()), spec, recipe.seed):
                    if steps.ended():
                        break
        timed_steps = plan_steps(len(rows), spec, recipe.seed)[1 : len(steps.ends)]
        later = [rows[index] for step in timed_steps for index in step]
        read = total([read_of_row(row) for row in later])
        found |= {
            "examples_per_s": len(later) / steps.seconds,
            "tokens_per_s": read.tokens / steps.seconds,
            "mfu": cost.of(read) / steps.seconds / 1e12 / self.facts["matrix_tflops"],
            "batch_tokens": spec.batch_tokens,
            "checkpointing": bool(spec.gradient_checkpointing),
            # PyTorch doesn't count the CUDA context either.
            "predicted_gb": (predicted.total - predicted.process) / 1e9,
        }

    def peer_training(self, base: Any, recipe: Any, pairs: list[list[Any]], found: dict[str, Any]) -> None:
        """Record the speed of transformers' Trainer or TRL's."""
        import tempfile

        import torch
        from datasets import Dataset
        from peft import LoraConfig, get_peft_model
        from transformers import TrainerCallback

        from meditune.models.adapters import USUAL_TARGETS

        steps = Steps(self.size)

        class Watch(TrainerCallback):
            def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
                if steps.ended():
                    control.should_training_stop = True

        lora, batch = recipe.model.lora, found["batch"]
        adapter = LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules=USUAL_TARGETS)
        arguments = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": max(1, 2 * self.size.step // batch),
            "num_train_epochs": 1,
            "bf16": True,
            "use_cpu": self.size.device == "cpu",
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": False,
        }
        torch.manual_seed(0)
        with adapted(base, partial(get_peft_model, base, adapter)) as model, tempfile.TemporaryDirectory() as folder:
            base.set_attn_implementation("sdpa")
            data = Dataset.from_list(labelled(pairs))
            trainer = trainer_of(found["engine"], model, data, arguments | {"output_dir": folder})
            trainer.add_callback(Watch())
            trainer.train()
        rows = arguments["gradient_accumulation_steps"] * batch * (len(steps.ends) - 1)
        found["examples_per_s"] = rows / 2 / steps.seconds

    def likelihoods(self) -> None:
        """Measure the likelihoods of decisions."""
        import torch

        recipe = recipe_of("llama2-7b", "none")
        model = fresh(recipe, self.size, torch.bfloat16).eval()
        items = [pair[0] for pair in examples(self.size.decisions, model.config.vocab_size)]
        with self.run("likelihoods", "meditune") as found:
            if found is not None:
                own_likelihoods(model, items[:8])
                found["items_per_s"] = len(items) / timed(self.size, lambda: own_likelihoods(model, items))
        model.set_attn_implementation("sdpa")

        def measure(found: dict[str, Any]) -> None:
            batch = found["batch"]
            plain_likelihoods(model, items[:batch], batch)
            work = partial(plain_likelihoods, model, items, batch)
            found["items_per_s"] = len(items) / timed(self.size, work)

        self.search("likelihoods", "transformers", self.size.batch, len(items), measure)

        def measure_harness(found: dict[str, Any]) -> None:
            harness = harness_of(model, found["batch"])
            requests = [(("", ""), item.prompt, item.target) for item in items]
            harness._loglikelihood_tokens(requests[: found["batch"]], disable_tqdm=True)
            work = partial(harness._loglikelihood_tokens, requests, disable_tqdm=True)
            found["items_per_s"] = len(items) / timed(self.size, work)

        self.search("likelihoods", "lm-eval", self.size.batch, len(items), measure_harness)

    def answers(self) -> None:
        """Measure greedy answers of a fixed length."""
        new = self.size.new_tokens
        config, prompts = self._written_here(new)
        with self.run("answers", "vllm") as found:
            if found is not None:
                found["tokens_per_s"] = vllm_speed(config, prompts, new, self.size)

    def _written_here(self, new: int) -> tuple[Any, list[list[int]]]:
        """Measure the engines of this process, and return the model's configuration and the prompts."""
        import torch

        model = fresh(recipe_of("llama2-7b", "none"), self.size, torch.bfloat16).eval()
        prompts = [pair[1].prompt for pair in examples(self.size.answers, model.config.vocab_size)]
        with self.run("answers", "meditune") as found:
            if found is not None:
                own_answers(model, prompts[:2], 2)
                seconds = timed(self.size, lambda: own_answers(model, prompts, new))
                found["tokens_per_s"] = len(prompts) * new / seconds
        model.set_attn_implementation("sdpa")
        in_order = sorted(prompts, key=len)

        def measure(found: dict[str, Any]) -> None:
            # The prompts of medium length stand for all, because all of them take long.
            first = (len(prompts) - found["batch"]) // 2
            some = in_order[first : first + found["batch"]]
            # The first call compiles the decoding step for this batch.
            static_answers(model, some, new)
            found["tokens_per_s"] = len(some) * new / timed(self.size, partial(static_answers, model, some, new))

        self.search("answers", "transformers", 4 * self.size.batch, len(prompts), measure)
        return model.config, prompts

    def loading(self) -> None:
        """Measure loading a model from files, as they are and quantized."""
        import tempfile

        import torch

        with tempfile.TemporaryDirectory() as folder:
            model = fresh(recipe_of(LOADED, "none"), self.size, torch.bfloat16)
            model.save_pretrained(folder)
            word_tokenizer().save_pretrained(folder)
            del model
            gigabytes = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e9
            for quantize in ("none", "nf4", "int8"):
                for engine, load in (("meditune", own_load), ("transformers", plain_load)):
                    with self.run("loading", engine, shape=LOADED, quantize=quantize) as found:
                        if found is not None:
                            load(folder, quantize)
                            found["gb_per_s"] = gigabytes / timed(self.size, partial(load, folder, quantize))

    def agreement(self) -> None:
        """Compare FP32 log-likelihoods with the plain loop's, and the loss in BF16 with a plain FP32 loop's."""
        import torch

        recipe = recipe_of("smollm2-135m", "none")
        with self.run("agreement", "meditune", what="log-likelihoods in FP32", most=1e-4) as found:
            if found is not None:
                model = fresh(recipe, self.size, torch.float32).eval()
                items = [pair[1] for pair in examples(min(64, self.size.decisions), model.config.vocab_size)]
                ours = own_likelihoods(model, items)
                model.set_attn_implementation("sdpa")
                plain = plain_likelihoods(model, items, self.size.batch)
                found["largest_difference"] = max(abs(ours[key] - plain[key]) for key in ours)
                del model
        with self.run("agreement", "meditune", what="loss in BF16 beside FP32", most=0.01) as found:
            if found is not None:
                losses = [curve(recipe, self.size, dtype) for dtype in (torch.bfloat16, torch.float32)]
                windows = range(5, self.size.curve - 1, 5)
                means = [[mean(each[first : first + 5]) for first in windows] for each in losses]
                found["losses"] = losses
                found["largest_difference"] = max(abs(one / other - 1) for one, other in zip(*means, strict=True))


def labelled(pairs: list[list[Any]]) -> list[Row]:
    """Return a row for each task; labels are -100 where nothing is predicted."""
    return [
        {"input_ids": [*item.prompt, *item.target], "labels": [-100] * len(item.prompt) + item.target}
        for pair in pairs
        for item in pair
    ]


def trainer_of(engine: str, model: Any, data: Any, arguments: dict[str, Any]) -> Any:
    """Return transformers' Trainer, or TRL's with packed rows where FlashAttention is installed."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    class Pads:
        """What the collator asks of a tokenizer."""

        padding_side = "right"

        def pad(self, rows: list[Row], **_: Any) -> dict[str, Any]:
            import torch

            longest = max(len(row["input_ids"]) for row in rows)
            ids = [row["input_ids"] + [PAD] * (longest - len(row["input_ids"])) for row in rows]
            seen = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
            labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
            names = ("input_ids", "attention_mask", "labels")
            return {name: torch.tensor(part) for name, part in zip(names, (ids, seen, labels), strict=True)}

    if engine == "liger":
        import liger_kernel  # noqa: F401

        arguments |= {"use_liger_kernel": True}
    if engine == "trl":
        from importlib.util import find_spec

        from trl import SFTConfig, SFTTrainer

        has_flash = find_spec("flash_attn") is not None
        if has_flash:
            model.set_attn_implementation("flash_attention_2")
        ready = {"skip_prepare_dataset": True}
        config = SFTConfig(**arguments, max_length=512, packing=has_flash, dataset_kwargs=ready)
        given = {} if has_flash else {"data_collator": Pads().pad}
        return SFTTrainer(model, args=config, train_dataset=data, processing_class=word_tokenizer(), **given)
    collator = DataCollatorForSeq2Seq(word_tokenizer())
    return Trainer(model, args=TrainingArguments(**arguments), train_dataset=data, data_collator=collator)


def word_tokenizer() -> Any:
    """Return a tokenizer that libraries need for its padding only."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<pad>": PAD, "<end>": END, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def own_load(folder: str, quantize: Any) -> Any:
    """Return the model and tokenizer in the folder as Meditune loads them."""
    from meditune.config.training_options import ModelSpec
    from meditune.models.load import load

    return load(folder, ModelSpec(base=folder, quantize=quantize, dtype="bfloat16"))


def plain_load(folder: str, quantize: Any) -> Any:
    """Return the model and tokenizer in the folder as transformers loads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from meditune.models.load import device
    from meditune.models.quantization import loading_options

    options = {"dtype": torch.bfloat16, "device_map": device(), **loading_options(quantize, torch.bfloat16)}
    return AutoModelForCausalLM.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder)


def own_likelihoods(model: Any, items: list[Any]) -> dict[str, float]:
    """Return each item's log-likelihood by Meditune: of its answer, or of the first of three decisions."""
    from meditune.evaluate.likelihood import score
    from meditune.models.shared_prefix_batch import join

    found = score(loaded_of(model), [join([item]) for item in items], None, "Scoring", {"yes": 2, "no": 3, "maybe": 4})
    return {key: -each.nll for key, each in found.answers.items()} | {
        key: logits["yes"] for key, logits in found.decisions.items()
    }


def plain_likelihoods(model: Any, items: list[Any], batch: int) -> dict[str, float]:
    """Return each item's log-likelihood without its end token by a plain transformers loop, longest batches first."""
    import torch

    found = {}
    order = sorted(items, key=lambda item: -len(item.prompt) - len(item.target))
    with torch.inference_mode():
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            rows = [torch.tensor([*item.prompt, *item.target]) for item in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(model.device)
            lengths = torch.tensor([len(row) for row in rows], device=model.device)
            seen = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
            logits = model(input_ids=ids, attention_mask=seen.long(), use_cache=False).logits
            for index, item in enumerate(chosen):
                start, count = len(item.prompt), max(1, len(item.target) - (item.task == "answer"))
                each = logits[index, start - 1 : start - 1 + count].float().log_softmax(-1)
                found[item.id] = float(each.gather(1, ids[index, start : start + count, None]).sum())
    return found


def harness_of(model: Any, batch: int) -> Any:
    """Return lm-evaluation-harness's wrapper of a loaded model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=word_tokenizer(), batch_size=batch)


def own_answers(model: Any, prompts: list[list[int]], new: int) -> None:
    """Write answers with Meditune's decoder."""
    from meditune.models.generation import GreedyDecoder, batch_size
    from meditune.models.inference import inference

    with inference(model, small_batches=True):
        at_once = batch_size(max(map(len, prompts)), new, model)
        for _ in GreedyDecoder(model, prompts, new, (), PAD, at_once).texts():
            pass


def static_answers(model: Any, prompts: list[list[int]], new: int) -> None:
    """Write the answers of one batch with transformers' static cache."""
    import torch
    from transformers import GenerationConfig

    from meditune.models.generation import left_pad

    static = {"cache_implementation": "static"} if model.device.type == "cuda" else {}
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=new, min_new_tokens=new, eos_token_id=None, pad_token_id=PAD, **static
    )
    ids, mask = (part.to(model.device) for part in left_pad(prompts, PAD))
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)


def vllm_speed(config: Any, prompts: list[list[int]], new: int, size: Size) -> float:
    """Return vLLM's tokens per second on dummy weights of this shape."""
    import tempfile

    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        engine = LLM(folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=1024)
        settings = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        engine.generate(inputs[:2], settings)
        return len(prompts) * new / timed(size, lambda: engine.generate(inputs, settings))


def curve(recipe: Any, size: Size, dtype: Any) -> list[float]:
    """Return the loss of each step: by Meditune in BF16, or by a plain loop over separate rows in FP32."""
    import torch

    from meditune.models.adapters import add_lora
    from meditune.models.shared_prefix_batch import join
    from meditune.train.finetune import fast_layers
    from meditune.train.optimizer import learning_rate
    from meditune.train.trainer import TrainingRows, plan_steps, train

    count = 2 if size.device == "cpu" else 8
    model = fresh(recipe, size, torch.bfloat16)
    pairs = examples(count * size.curve, model.config.vocab_size)
    spec = recipe.train.model_copy(update={"batch_size": count, "learning_rate": 2e-3})
    model = add_lora(model, recipe.model.lora, recipe.seed).to(dtype)
    rows = [join(pair) for pair in pairs]
    if dtype == torch.bfloat16:
        with fast_layers(model, spec, 0, lambda: None):
            data = TrainingRows(rows, OneForEach())
            return [step.loss for step in train(loaded_of(model), data, spec, recipe.seed)]
    model.set_attn_implementation("sdpa")
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=spec.weight_decay)
    steps, losses = plan_steps(len(pairs), spec, recipe.seed), []
    for number, step in enumerate(steps):
        chosen = labelled([pairs[index] for index in step])
        supervised = sum(label != -100 for row in chosen for label in row["labels"])
        loss = 0.0
        for row in chosen:
            ids, labels = (torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1]
            part = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / supervised
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, len(steps), spec)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


def ratios(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return Meditune's results beside each peer's best, and the differences of `agreement`, with the targets."""
    found = []

    def add(what: str, value: float, target: str) -> None:
        found.append({"what": what, "value": value, "target": target})

    for own in runs:
        job, large = own["job"], own.get("shape") in LARGE
        if "largest_difference" in own:
            add(f"{job}, largest difference of {own['what']}", own["largest_difference"], f"at most {own['most']:g}")
        if own.get("engine") != "meditune" or (key := JOBS[job]) not in own:
            continue
        name = " ".join([job, *(own[part] for part in ("shape", "quantize") if part in own)])
        alike = [run for run in runs if key in run and job == run["job"]]
        alike = [run for run in alike if all(run.get(part) == own.get(part) for part in ("shape", "quantize"))]
        for engine in sorted({run["engine"] for run in alike} - {"meditune"}):
            best = max((run for run in alike if run["engine"] == engine), key=lambda run: run[key])
            speeds = {"training": "1.3" if large else "2", "likelihoods": "3", "answers": "4"}
            has_target = job in speeds and engine not in OWN and own.get("quantize") != "int8"
            target = "0.7" if engine == "vllm" else speeds.get(job)
            add(f"{name}, speed beside {engine}", own[key] / best[key], f"at least {target}" if has_target else "none")
            if job == "training":
                memory, most = own["peak_gb"] / best["peak_gb"], 0.8 if large else 1
                add(f"{name}, memory beside {engine}", memory, f"at most {most}" if has_target else "none")
        if large:
            add(f"{name}, share of the matrix peak", own["mfu"], "at least 0.5")
        if "predicted_gb" in own:
            add(f"{name}, predicted memory", own["predicted_gb"] / own["peak_gb"], "0.9 to 1.1")
    return found


if __name__ == "__main__":
    main()
