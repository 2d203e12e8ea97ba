"""The model card that lies beside the adapter or the tuned model, in the hub's format."""

from __future__ import annotations

from typing import Any

from meditune.limits import LIMITS
from meditune.models.load import locate
from meditune.recipe import VIRTUAL, ModelSpec, Recipe

TITLES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "rslora": "rsLoRA",
    "ia3": "(IA)³",
    "prefix": "Prefix tuning",
    "prompt": "Prompt tuning",
    "full": "Full fine-tuning",
}


def model_card(recipe: Recipe, facts: dict[str, Any], report: dict[str, Any] | None) -> str:
    """Markdown with the hub's YAML head. `report` (report.json) adds the measured figures once they are there."""
    from meditune.models.catalogue import CATALOGUE

    entry = CATALOGUE.get(recipe.model.base)
    base = (entry.hub_id if entry else None) or recipe.model.base
    synthetic = bool(report and report["data"].get("synthetic"))
    full = recipe.model.strategy == "full"
    loader = "AutoModelForCausalLM" if full else "AutoPeftModelForCausalLM"
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {'transformers' if full else 'peft'}",
        "pipeline_tag: text-generation",
        "language: en",
        f"tags: [medical, {recipe.model.strategy}, meditune]",
        "---",
        "",
        f"# {recipe.name}: {recipe.model.base} tuned with Meditune",
        "",
        *([] if not synthetic else ["**Trained on invented studies to try the tool out. Not for any other use.**", ""]),
        f"**Limits.** {LIMITS}",
        "",
        *(["This folder holds the whole model, not an adapter.", ""] if full else []),
        "## Use",
        "",
        "```python",
        *(
            ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
            if full
            else ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        ),
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {loader}.from_pretrained("FOLDER")',
        f'prompt = tokenizer("{recipe.prompt.question_cue} Does exercise help people with back pain?\\n'
        f'{recipe.prompt.answer_cue}", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=96)[0], skip_special_tokens=True))",
        "```",
        "",
        f"The prompt format is in `prompt.json`; sources go before the question, a line each. The weights of the base "
        f"model were read from `{locate(recipe.model.base)}`.",
        "",
        "## Training",
        "",
        f"{facts['rows']:,} examples, {facts['epochs']:g} epochs, {facts['steps']} steps, "
        f"{facts['supervised_tokens']:,} answer tokens trained on, learning rate {recipe.train.learning_rate:g}, seed "
        f"{recipe.seed}.",
        "",
        f"{_what_was_trained(recipe.model)}: {facts['trainable_parameters']:,} of {facts['parameters']:,} parameters.",
        *_quantized(recipe.model),
        "",
    ]
    if report:
        lines += [f"## Measured on {report['data']['test_set']}", "", "| metric | base | tuned | 95 % interval |"]
        lines.append("|---|---|---|---|")
        for name, row in report["comparison"].items():
            low, high = row["ci95"]
            figures = f"{report['base'][name]:.3f} | {report['tuned'][name]:.3f} | {low:+.3f} to {high:+.3f}"
            lines.append(f"| {name} | {figures} |")
        lines += ["", "The interval is that of the difference, by paired bootstrap over the test items.", ""]
    return "\n".join(lines)


def _what_was_trained(spec: ModelSpec) -> str:
    """The strategy with the options that shape it."""
    options = []
    if spec.strategy in {"lora", "dora", "rslora"}:
        options.append(f"rank {spec.lora.r}")
    if spec.strategy in VIRTUAL:
        options.append(f"{spec.virtual_tokens} virtual tokens")
    if spec.top_layers:
        options.append(f"in the top {spec.top_layers} layers")
    return " ".join([TITLES[spec.strategy], *([f"({', '.join(options)})"] if options else [])])


def _quantized(spec: ModelSpec) -> list[str]:
    if spec.quantize == "none":
        return []
    return [
        f"The base model was frozen in {spec.quantize.upper()} (bitsandbytes), in training and in what was measured. "
        "The lines above put the adapter on the base model in full precision."
    ]
