"""The model card of an adapter, a tuned model, or a model tuned through an API, in the hub's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import VIRTUAL, ModelSpec, Strategy
from meditune.data.leakage import described
from meditune.models.catalogue import CATALOGUE, PRUNED, BaseModel, public_name, split_revision
from meditune.models.load import locate
from meditune.prompts import LIMITS

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
    """Return Markdown with the hub's YAML front matter; `report` (report.json) adds the measured metrics."""
    entry = CATALOGUE.get(recipe.model.base)
    full = recipe.model.strategy == "full"
    of_preference = "rated answers" if facts.get("objective") == "kto" else "pairs of answers"
    unit = of_preference if "preference" in facts else "examples"
    front = [
        "---",
        f"base_model: {public_name(split_revision(recipe.model.base)[0])}",
        f"library_name: {'transformers' if full else 'peft'}",
        "pipeline_tag: text-generation",
        f"language: {json.dumps(recipe.data.quality.languages)}",
        f"tags: [medical, {recipe.model.strategy}, meditune]",
        "---",
    ]
    trained = [
        f"{_what_was_trained(recipe.model)}: {facts['trainable_parameters']:,} of {facts['parameters']:,} parameters.",
        *_pruned(recipe.model),
        *_quantized(recipe.model),
    ]
    return _markdown(
        "\n".join(front),
        f"# {recipe.name}: {recipe.model.base} tuned with Meditune",
        *warnings(report),
        *(["This folder contains the complete model, not an adapter."] if full else []),
        "## Use",
        *loading(recipe.prompt, recipe.model.strategy),
        f"The prompt format is in `prompt.json`; sources go before the question, one per line. The weights of the base "
        f"model were read from {_origin(recipe, facts)}{_carried(entry)}.",
        "## Training",
        f"{facts['rows']:,} {unit}, {facts['epochs']:g} epochs, {facts['steps']} steps, "
        f"{facts['supervised_tokens']:,} answer tokens trained on, learning rate {recipe.train.learning_rate:g}, seed "
        f"{recipe.seed}.",
        "\n".join(trained),
        *_optional_paragraphs(facts),
        *(measured(report) if report else []),
    )


def _markdown(*paragraphs: str) -> str:
    return "\n\n".join(paragraphs) + "\n"


def warnings(report: dict[str, Any] | None) -> list[str]:
    """Return a card's paragraphs about training on synthetic data, if it is known, and about the model's limits."""
    synthetic = ["**Trained on invented studies, only to try out the tool. Not for any other use.**"]
    return [*(synthetic if report and report["data"].get("synthetic") else []), f"**Limits.** {LIMITS}"]


def measured(report: dict[str, Any]) -> list[str]:
    """Return a card's paragraphs with the metrics of the base and the tuned model."""
    leaks = described(report["leakage"]) if report.get("leakage") else []
    loud = f"**Leakage: the model may have seen some test questions behind the metrics below.** {' '.join(leaks)}"
    table = ["| metric | base | tuned | 95% interval |", "|---|---|---|---|"]
    for name, row in report["comparison"].items():
        low, high = row["ci95"]
        figures = f"{report['base'][name]:.3f} | {report['tuned'][name]:.3f} | {low:+.3f} to {high:+.3f}"
        beside = row.get("references")
        title = f"{name} (reference answers: {beside['figure']:.3f})" if beside else name
        table.append(f"| {title} | {figures} |")
    return [
        f"## Measured on {report['data']['test_set']}",
        *([loud] if leaks else []),
        "\n".join(table),
        "The interval is that of the difference (tuned minus base), from a paired bootstrap over the test items.",
    ]


def _origin(recipe: Recipe, facts: dict[str, Any]) -> str:
    """Return the source of the base model's weights, as a phrase to be used in a sentence."""
    if "start" in facts:
        return f"`start` in the run's folder, which is the adapter `{facts['start']}` merged into its own base model"
    revision = f", commit `{facts['base_commit']}`" if facts.get("base_commit") else ""
    return f"`{locate(recipe.model.base)}`{revision}"


def _carried(entry: BaseModel | None) -> str:
    """Return a clause about a base from a Python package, whose weights differ slightly from the hub's; else empty."""
    if not (entry and entry.package):
        return ""
    names, file = ", ".join(entry.package.requirements), entry.package.pieces[0].rpartition("/")[2]
    return f", unpacked from the quantized `{file.partition('.part')[0]}` of {names}; the hub's weights differ slightly"


def loading(form: PromptFormat, strategy: Strategy) -> list[str]:
    """Return Markdown with Python code that asks the model in FOLDER without Meditune.

    FOLDER contains a complete model if the strategy is `full`, else an adapter.
    """
    question = f"{form.question_cue} Does exercise help people with back pain?\\n{form.plain_cue or form.answer_cue}"
    prompt = [f'prompt = tokenizer("{question}", return_tensors="pt")']
    if form.is_chat:
        prompt = [
            'messages = [{"role": "user", "content": "Does exercise help people with back pain?"}]',
            'settings = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}',
            "prompt = tokenizer.apply_chat_template(messages, **settings)",
        ]
    imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    loader, answer = "AutoPeftModelForCausalLM", ["ids = model.generate(**prompt, max_new_tokens=96)"]
    if strategy == "full":
        imports, loader = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], "AutoModelForCausalLM"
    if strategy in VIRTUAL:
        imports = ["import torch", *imports]
        answer = [
            'ids = prompt["input_ids"]',
            "while ids[0, -1] != tokenizer.eos_token_id and ids.shape[1] < 96 + prompt.input_ids.shape[1]:",
            "    with torch.no_grad():",
            "        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)",
        ]
    code = [
        "```python",
        *imports,
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {loader}.from_pretrained("FOLDER")',
        *prompt,
        *answer,
        "print(tokenizer.decode(ids[0], skip_special_tokens=True))",
        "```",
    ]
    note = "The loop replaces `model.generate`, which drops virtual tokens (peft 0.21, transformers 5.24)."
    return ["\n".join(code), *([note] if strategy in VIRTUAL else [])]


def _what_was_trained(spec: ModelSpec) -> str:
    """Return the strategy with its main options."""
    options = []
    if spec.strategy in {"lora", "dora", "rslora"}:
        options.append(f"rank {spec.lora.r}")
    if spec.strategy in VIRTUAL:
        options.append(f"{spec.virtual_tokens} virtual tokens")
    if spec.top_layers:
        options.append(f"in the top {spec.top_layers} layers")
    return " ".join([TITLES[spec.strategy], *([f"({', '.join(options)})"] if options else [])])


def _pruned(spec: ModelSpec) -> list[str]:
    if spec.prune.method == "none":
        return []
    only = f" The adapter fits only the pruned model, which is in the run's folder (`../{PRUNED}`)."
    return [f"The base model was pruned before it was tuned: {spec.prune.summary}.{only * (spec.strategy != 'full')}"]


def _quantized(spec: ModelSpec) -> list[str]:
    if spec.quantize == "none":
        return []
    return [
        f"The base model was quantized to {spec.quantize.upper()} (bitsandbytes) and frozen, in training and "
        "evaluation. The code above loads the adapter on the base model in full precision."
    ]


def _optional_paragraphs(facts: dict[str, Any]) -> Iterator[str]:
    """Yield paragraphs about the best state, preference pairs, mixing, retrieval and replay, if the run has them."""
    if facts.get("dev", {}).get("kept"):
        dev = facts["dev"]
        yield f"The weights are from step {dev['best_step']}, after which {dev['metric']} on the dev split was best."
    if "preference" in facts:
        pairs, method = facts["preference"], facts["objective"].upper()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in pairs["train"].items())
        learnt = "answers with thumbs up or down" if method == "KTO" else "pairs of a better and a worse answer"
        yield (
            f"Experimental: preference tuning with {method}, beta {pairs['beta']:g}, on {learnt} from "
            f"{pairs['source']} ({kinds})."
        )
    if "mix" in facts:
        mixed = ", ".join(f"{count:,} of {name}" for name, count in facts["mix"].items())
        yield f"Each epoch mixed rows by source: {mixed}."
    if len(facts.get("mixture", [])) > 1:
        read = ", ".join(f"{part['supervised_share']:.0%} {part['source']}" for part in facts["mixture"])
        yield f"Shares of all supervised tokens: {read}."
    if "retrieved" in facts:
        found = facts["retrieved"]
        yield (
            f"{found['examples']:,} of the {facts['rows']:,} examples showed retrieved passages; "
            f"for {found['right']:,} of these examples, the passages included the example's own."
        )
    if "replay" in facts:
        replay = facts["replay"]
        what = {"self": "text that the base model wrote itself", "general": "WikiText-2", "medical": "MedQuAD"}
        yield (
            f"To reduce forgetting, {replay['visits']:,} rows of {what[replay['source']]} were replayed with the "
            f"examples. They made up {replay['loss_share']:.0%} of the loss."
        )


def hosted_model_card(recipe: Recipe, training: dict[str, Any], report: dict[str, Any] | None) -> str:
    """Return the Markdown card of a model tuned through an API; `report` (report.json) adds the measured metrics."""
    billed = training.get("trained_tokens")
    counted = f", {billed:,} tokens as counted by the API" if billed else ""
    return _markdown(
        f"# {recipe.name}: {recipe.model.base} tuned with Meditune, through its API",
        *warnings(report),
        f"The model is `{training['model']}` at {recipe.model.api.url}. Its weights aren't in this folder, and the "
        "API's operator can retire the model. `api.json` contains the address and the name of the environment variable "
        "with the key; `prompt.json` contains the prompt format. To ask the model, run this in the run's folder:",
        '```bash\nmeditune ask . "Does exercise help people with back pain?"\n```',
        "## Training",
        f"{training['rows']:,} rows, {training['epochs']} epochs{counted}, job `{training['job']}`.",
        *(measured(report) if report else []),
    )
