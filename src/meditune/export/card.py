"""The page that lies beside an exported model."""

from __future__ import annotations

from typing import Any

from meditune.limits import LIMITS


def text(facts: dict[str, Any], name: str) -> str:
    """Markdown: what it is, its limits, how it is used, and what the check found."""
    drift = facts["drift"]
    return "\n".join(
        [
            f"# A Meditune model for the {facts['engine']} engine ({facts['weights']})",
            "",
            f"**Limits.** {LIMITS}",
            "",
            "## Use",
            "",
            "    meditune serve FOLDER",
            "",
            "`prompt.json` is the prompt's format, `export.json` says what this was made from and with.",
            "",
            "## Checked against the model that it was made from",
            "",
            f"{drift['said']}",
            "",
            f"Made from {name}; tools: {', '.join(f'{tool} {version}' for tool, version in facts['tools'].items())}.",
            "",
        ]
    )
