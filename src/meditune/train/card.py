"""The model card that lies beside the adapter, in the hub's format."""

from __future__ import annotations

from typing import Any

from meditune.limits import LIMITS
from meditune.models.load import locate
from meditune.recipe import Recipe


def model_card(recipe: Recipe, facts: dict[str, Any], report: dict[str, Any] | None) -> str:
    """Markdown with the hub's YAML head. `report` (report.json) adds the measured figures once they are there."""
    from meditune.models.catalogue import CATALOGUE

    entry = CATALOGUE.get(recipe.model.base)
    base = (entry.hub_id if entry else None) or recipe.model.base
    synthetic = bool(report and report["data"].get("synthetic"))
    lines = [
        "---",
        f"base_model: {base}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "language: en",
        "tags: [medical, lora, meditune]",
        "---",
        "",
        f"# {recipe.name}: {recipe.model.base} tuned with Meditune",
        "",
        *([] if not synthetic else ["**Trained on invented studies to try the tool out. Not for any other use.**", ""]),
        f"**Limits.** {LIMITS}",
        "",
        "## Use",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")',
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
        f"{facts['supervised_tokens']:,} answer tokens trained on, learning rate {recipe.train.learning_rate:g}, LoRA "
        f"rank {recipe.model.lora.r} ({facts['trainable_parameters']:,} trained parameters), seed {recipe.seed}.",
        "",
        *_beside(facts),
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


def _beside(facts: dict[str, Any]) -> list[str]:
    """How sources were mixed and what was rehearsed, where anything was."""
    lines = []
    if "mix" in facts:
        mixed = ", ".join(f"{count:,} of {name}" for name, count in facts["mix"].items())
        lines += [f"Each epoch took rows from several sources: {mixed}.", ""]
    if "replay" in facts:
        replay = facts["replay"]
        what = {"self": "text that the base model wrote itself", "general": "WikiText-2", "medical": "MedQuAD"}
        lines += [
            f"Against forgetting, {replay['visits']:,} rows of {what[replay['source']]} were rehearsed beside them, "
            f"{replay['loss_share']:.0%} of the loss.",
            "",
        ]
    return lines
