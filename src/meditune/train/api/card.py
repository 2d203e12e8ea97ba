"""The card of a model that was tuned through an API."""

from __future__ import annotations

from typing import Any

from meditune.limits import LIMITS
from meditune.recipe import Recipe


def model_card(recipe: Recipe, training: dict[str, Any], report: dict[str, Any] | None) -> str:
    """Markdown. `report` (report.json) adds the measured figures once they are there."""
    synthetic = bool(report and report["data"].get("synthetic"))
    billed = training.get("trained_tokens")
    counted = f", {billed:,} tokens by the API's count" if billed else ""
    lines = [
        f"# {recipe.name}: {recipe.model.base} tuned with Meditune, through its API",
        "",
        *([] if not synthetic else ["**Trained on invented studies to try the tool out. Not for any other use.**", ""]),
        f"**Limits.** {LIMITS}",
        "",
        f"The model is `{training['model']}` at {recipe.model.api.url}; its weights aren't here, and who runs that API "
        "can retire it. `api.json` says where it is and which environment variable holds the key, `prompt.json` how it "
        "was asked. In the folder of its run:",
        "",
        "```bash",
        'meditune ask . "Does exercise help people with back pain?"',
        "```",
        "",
        "## Training",
        "",
        f"{training['rows']:,} rows, {training['epochs']} epochs{counted}, job `{training['job']}`.",
        "",
    ]
    if report:
        from meditune.train.card import measured

        lines += measured(report)
    return "\n".join(lines)
