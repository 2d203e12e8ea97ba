"""Compare how fast Meditune and transformers' `generate` with static batches write answers.

    python benchmarks/generation.py --model runs/quickstart --answers 200 --batch 1 4 8 16 32 --json metrics.json

Both continue the prompts of the quickstart's long answers, with the same weights, number format, threads and token
limit, by greedy decoding. Each side is a separate process. Meditune runs first and last, because a shared machine's
speed drifts, and the mean counts. `generate` gets its prompts sorted by length, which saves padding. `cpu` is CPU time,
which other programs disturb least; `wall` is wall-clock time. Peak GB is the most memory while writing, weights
included. Where answers differ from Meditune's, the benchmark prints how close the plain model's logits of the two
tokens at the first difference are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import Peaks


def main() -> None:
    """Run every side and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, model folder or run")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 8, 16, 32], help="batch sizes of generate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all metrics and tokens to this file")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run each side in a separate process, and print the comparison."""
    sides = [0, *options.batch, 0]
    runs = []
    for size in sides:
        done = subprocess.run([sys.executable, __file__, "--worker", str(size), *sys.argv[1:]], capture_output=True)
        if done.returncode:
            sys.exit(done.stderr.decode())
        runs.append({"batch": size} | json.loads(done.stdout.splitlines()[-1]))
        print(line(runs[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"command": sys.argv[1:], "runs": runs}) + "\n", encoding="utf-8")
    ours = [run for run in runs if not run["batch"]]
    theirs = [run for run in runs if run["batch"]]
    for clock in ("cpu", "wall"):
        mean = sum(run[clock] for run in ours) / len(ours)
        print(f"seconds ({clock}) / Meditune's:", {run["batch"]: round(run[clock] / mean, 2) for run in theirs})
    for run in theirs:
        differ = [index for index, tokens in run["tokens"].items() if tokens != ours[0]["tokens"][index]]
        gaps = apart(options, {index: (ours[0]["tokens"][index], run["tokens"][index]) for index in differ})
        same, most = len(run["tokens"]) - len(differ), f"{max(gaps):.2g}" if gaps else "0"
        print(
            f"batch {run['batch']}: {same} of {len(run['tokens'])} answers are the same; "
            f"logits differ by {most} at most"
        )


def line(run: dict[str, Any]) -> str:
    """Return one row of the table."""
    name = f"generate, batch {run['batch']}" if run["batch"] else "meditune"
    total = sum(map(len, run["tokens"].values()))
    peak = run["training_peak_gb"] or run["peak_gb"]
    return f"{name:<20} {run['cpu']:8.1f} s cpu  {run['wall']:8.1f} s wall  {total} tokens  {peak:.2f} GB"


def material(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Return the loaded model and the prompts of the answers."""
    import torch

    from meditune.config.load_recipe import load_recipe
    from meditune.config.training_options import ModelSpec
    from meditune.data.prepare import prepare
    from meditune.evaluate.evaluator import chosen_answers
    from meditune.models.load import load

    torch.set_num_threads(options.threads)
    recipe = load_recipe("quickstart", ["data.fallback_to_sample=true"]).recipe
    with tempfile.TemporaryDirectory() as name:
        examples = prepare(recipe, Path(name) / "data").splits.test
    attention = "auto" if options.worker == 0 else "sdpa"
    spec = ModelSpec.model_validate({"base": options.model, "dtype": options.dtype, "attention": attention})
    loaded = load(options.model, spec)
    encoder = loaded.encoder(loaded.form or recipe.prompt)
    chosen = chosen_answers(examples, options.answers, recipe.seed)
    return loaded, [encoder.prompt(example, "answer") for example in chosen]


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Return one side's seconds, memory and tokens."""
    loaded, prompts = material(options)
    peaks = Peaks()
    peaks.loaded()
    cpu, wall = time.process_time(), time.perf_counter()
    texts = [prompt.prompt for prompt in prompts]
    if options.worker:
        tokens = by_generate(loaded, texts, options.max_new_tokens, options.worker)
    else:
        tokens = ours(loaded, texts, options.max_new_tokens)
    clocks = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return clocks | peaks.figures() | {"tokens": tokens}


def ours(loaded: Any, texts: list[list[int]], more: int) -> dict[str, list[int]]:
    """Return Meditune's tokens by the prompt's number."""
    from meditune.models.generation import GreedyDecoder, batch_size
    from meditune.models.inference import inference

    ends, at_once = loaded.end_ids(), batch_size(max(map(len, texts)), more)
    with inference(loaded.model, small_batches=True):
        written = dict(GreedyDecoder(loaded.model, texts, more, ends, loaded.pad_id, at_once).texts())
    return {str(index): written[index] for index in range(len(texts))}


def by_generate(loaded: Any, texts: list[list[int]], more: int, size: int) -> dict[str, list[int]]:
    """Return the tokens that transformers writes in batches of `size`."""
    import torch
    from transformers import GenerationConfig

    from meditune.models.generation import left_pad

    end = loaded.tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=more, do_sample=False, eos_token_id=end, pad_token_id=loaded.pad_id)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    found = {}
    with torch.inference_mode():
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            tokens, mask = left_pad([texts[index] for index in chosen], loaded.pad_id)
            made = loaded.model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
            for index, row in zip(chosen, made[:, tokens.shape[1] :].tolist(), strict=True):
                found[index] = row[: row.index(end)] if end in row else row
    return {str(index): found[index] for index in range(len(texts))}


def apart(options: argparse.Namespace, pairs: dict[str, tuple[list[int], list[int]]]) -> list[float]:
    """Return the differences of the plain model's logits for the two tokens at which answers begin to differ."""
    if not pairs:
        return []
    import torch

    loaded, prompts = material(options)
    found = []
    for index, (one, other) in pairs.items():
        end = loaded.tokenizer.eos_token_id
        first, second = [*one, end], [*other, end]
        place = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        ids = torch.tensor([[*prompts[int(index)].prompt, *one[:place]]])
        with torch.inference_mode():
            logits = loaded.model(ids).logits[0, -1].float()
        found.append(abs(float(logits[first[place]] - logits[second[place]])))
    return found


if __name__ == "__main__":
    main()
