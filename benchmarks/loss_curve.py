"""Compare Meditune's training loss, step by step, with a plain FP32 loop that begins from the same start.

    python benchmarks/loss_curve.py --model smollm2-135m --json curve.json --plot curve.png

Meditune trains as shipped: BF16 weights, grouped attention, shared prompts, batches by length, a chunked loss and FP32
masters, with the model's own recipe. The reference is as plain as possible: transformers' model in FP32 with peft's
LoRA, a row for each task, padding, all logits, PyTorch's cross-entropy and AdamW. Both begin with the same adapter and
read the same examples in the same order, with the same token weights and learning rates.

The relative difference of a step is |ours - reference| / reference. The loss varies much from batch to batch, so the
same difference is also reported for running means over the last five steps. The reference takes nearly all of the time.
It prints each step, and the files are updated after each step.

Needs `pip install -e .`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from material import FRESH, Material, lengths, material

RECIPES = {"smollm2-135m": "quickstart", "gemma3-270m": "gemma3-270m", FRESH: "gemma3-270m"}
WINDOW = 5
"""Number of steps in a running mean"""
ROWS_AT_ONCE = 4
"""Number of rows whose logits the reference holds at once; the gradient is that of the whole step"""


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RECIPES, default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="number of examples in a step")
    parser.add_argument("--max-tokens", type=int, default=256, help="length of the longest row")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a recipe setting for both, for example train.learning_rate=1e-4",
    )
    parser.add_argument("--json", type=Path, help="also write the curves to this file")
    parser.add_argument("--plot", type=Path, help="also draw the curves in this PNG file")
    options = parser.parse_args()
    try:
        compare(options)
    except ImportError as error:
        sys.exit(f"{error.name} isn't installed: pip install -e .")


def compare(options: argparse.Namespace) -> None:
    """Train both and print their differences."""
    from meditune.errors import MedituneError
    from meditune.files import write_json

    for file in filter(None, (options.json, options.plot)):
        file.parent.mkdir(parents=True, exist_ok=True)
    settings = [*lengths(options.max_tokens), f"train.batch_size={options.batch}", "model.lora.dropout=0"]
    try:
        given = material(
            options.model, options.steps * options.batch, [*settings, *options.set], RECIPES[options.model]
        )
    except MedituneError as error:
        sys.exit(" ".join(str(error).split()))
    if len(given.examples) < options.steps * options.batch:
        sys.exit(
            f"There are {len(given.examples)} training examples, too few for {options.steps} steps of {options.batch}. "
            "Use fewer steps (--steps), or set MEDITUNE_DATA to the folder of the publishers' data."
        )
    facts = {
        "command": sys.argv[1:],
        "recipe": given.recipe.model_dump(mode="json"),
        "data_sha256": given.data_sha256,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "meditune")},
    }
    reference = Reference(given, options.model)
    started = time.monotonic()
    ours = list(meditune(given, reference))
    print(f"Meditune took {time.monotonic() - started:.0f} s.\n\nstep  Meditune  reference  difference", flush=True)
    theirs: list[float] = []
    for number, loss in enumerate(reference.losses(), start=1):
        theirs.append(loss)
        print(f"{number:4}{ours[number - 1]:10.4f}{loss:11.4f}{apart(ours[number - 1], loss):12.3%}", flush=True)
        if options.json:
            found = facts | {"meditune": ours, "reference": theirs, "differences": differences(ours, theirs)}
            write_json(options.json, found)
    print()
    for name, each in differences(ours, theirs).items():
        print(f"{name}: {each['mean']:.3%} on average, {each['max']:.3%} at most")
    print(f"Total time: {time.monotonic() - started:.0f} s.")
    if options.plot:
        draw(ours, theirs, options.plot)


def apart(ours: float, reference: float) -> float:
    """Return the difference relative to the reference."""
    return abs(ours - reference) / abs(reference)


def running(losses: Sequence[float]) -> list[float]:
    """Return means over the last WINDOW steps, from step WINDOW on."""
    return [sum(losses[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(losses) + 1)]


def differences(ours: Sequence[float], reference: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return mean and largest relative differences of single steps and of running means, up to the reference's end."""
    pairs = {
        "relative difference of a step": (ours[: len(reference)], reference),
        f"of the mean of {WINDOW} steps": (running(ours[: len(reference)]), running(reference)),
    }
    found = {name: [apart(one, two) for one, two in zip(*both, strict=True)] for name, both in pairs.items()}
    return {name: {"mean": sum(each) / len(each), "max": max(each)} for name, each in found.items() if each}


def meditune(given: Material, reference: Reference) -> Iterator[float]:
    """Yield the loss of each of Meditune's training steps, after giving the initial adapter to the reference."""
    from meditune.models.adapters import add_lora
    from meditune.models.hidden_state_cache import HiddenStateCache, frozen_count
    from meditune.train.dataset import TokenWeights, encode
    from meditune.train.finetune import fast_layers
    from meditune.train.trainer import TrainingRows, probe, train

    recipe, loaded = given.recipe, given.loaded
    rows, _ = encode(given.examples, loaded.encoder(recipe.prompt), recipe.train.tasks)
    weights = TokenWeights(given.examples, rows, recipe.train)
    top = recipe.model.top_layers
    model = add_lora(loaded.model, recipe.model.lora, recipe.seed, top)
    reference.begin_with(model, [(row, weights.of(row)) for row in rows])
    in_training = replace(loaded, model=model, frozen=HiddenStateCache(model, frozen_count(model, top)))
    data = TrainingRows(rows, weights)

    def try_a_piece() -> float:
        return probe(in_training, data, recipe.train)

    with fast_layers(model, recipe.train, sum(map(len, rows)), try_a_piece):
        for step in train(in_training, data, recipe.train, recipe.seed):
            yield step.loss


class Reference:
    """The plain loop, which takes the initial adapter, token weights, order and learning rates from Meditune."""

    def __init__(self, given: Material, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from meditune.models.load import locate

        self.spec, self.seed, self.pad_id = given.recipe.train, given.recipe.seed, given.loaded.pad_id
        if name == FRESH:
            self.model = type(given.loaded.model)(given.loaded.model.config)
            self.model.load_state_dict(given.loaded.model.state_dict())
            self.model.set_attn_implementation("sdpa")
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                locate(given.base), dtype=torch.float32, attn_implementation="sdpa"
            )
        self.examples: list[list[tuple[list[int], list[int], list[float]]]] = []

    def begin_with(self, model: Any, rows: Sequence[tuple[Any, list[float]]]) -> None:
        """Copy an adapted model's adapter, and rows with a weight for each target."""
        from peft import get_peft_model

        first = {name: value.detach().float().clone() for name, value in model.named_parameters() if "lora_" in name}
        self.model = get_peft_model(self.model, model.peft_config["default"])
        mine = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if mine.keys() != first.keys():
            sys.exit(
                "The reference's adapter and Meditune's are on different layers, so their losses can't be compared."
            )
        for name, value in mine.items():
            value.data.copy_(first[name])
        for row, weights in rows:
            by_task = [[weight for weight, of in zip(weights, row.of, strict=True) if of == task] for task in {*row.of}]
            self.examples.append(
                [(item.prompt, item.target, mine) for item, mine in zip(row.encoded, by_task, strict=True)]
            )

    def losses(self) -> Iterator[float]:
        """Train, and yield each step's weighted mean cross-entropy of the predicted tokens, in nats."""
        import torch

        from meditune.train.optimizer import BETAS, EPSILON, learning_rate
        from meditune.train.trainer import plan_steps

        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        decay = self.spec.weight_decay
        optimizer = torch.optim.AdamW(trained, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=decay)
        self.model.train()
        steps = plan_steps(len(self.examples), self.spec, self.seed)
        for number, indices in enumerate(steps):
            rows = [row for index in indices for row in self.examples[index]]
            whole = sum(sum(weights) for _, _, weights in rows)
            total = 0.0
            optimizer.zero_grad()
            for start in range(0, len(rows), ROWS_AT_ONCE):
                loss = self.weighted_sum(rows[start : start + ROWS_AT_ONCE]) / whole
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, self.spec.max_grad_norm)
            optimizer.param_groups[0]["lr"] = learning_rate(number, len(steps), self.spec)
            optimizer.step()
            yield total

    def weighted_sum(self, rows: Sequence[tuple[list[int], list[int], list[float]]]) -> Any:
        """Return the sum of weight * cross-entropy over the rows' targets."""
        import torch

        length = max(len(prompt) + len(target) for prompt, target, _ in rows)
        tokens = torch.full((len(rows), length), self.pad_id)
        real, weight = torch.zeros((len(rows), length)), torch.zeros((len(rows), length))
        for index, (prompt, target, weights) in enumerate(rows):
            end = len(prompt) + len(target)
            tokens[index, :end] = torch.tensor(prompt + target)
            real[index, :end] = 1
            weight[index, len(prompt) : end] = torch.tensor(weights)
        logits = self.model(input_ids=tokens, attention_mask=real).logits
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        return (each * weight[:, 1:].flatten()).sum()


def draw(ours: Sequence[float], reference: Sequence[float], file: Path) -> None:
    """Draw both curves, and their differences below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = range(1, len(ours) + 1)
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(2, 1))
    above.plot(steps, reference, color="black", linewidth=2.5, label="plain loop, FP32")
    above.plot(steps, ours, color="tab:orange", linewidth=1.2, label="Meditune")
    above.set_ylabel("loss, nats")
    above.legend()
    single = [100 * apart(one, two) for one, two in zip(ours, reference, strict=True)]
    means = [100 * apart(one, two) for one, two in zip(running(ours), running(reference), strict=True)]
    below.plot(steps, single, color="tab:gray", linewidth=1, label="each step")
    below.plot(range(WINDOW, len(ours) + 1), means, color="tab:blue", label=f"mean of {WINDOW} steps")
    below.axhline(1, color="tab:red", linewidth=0.8, linestyle="dashed")
    below.set(xlabel="step", ylabel="difference, %", ylim=(0, None))
    below.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
