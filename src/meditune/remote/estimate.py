"""What a run would send and cost, and the question before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meditune.errors import MedituneError
from meditune.files import read_json, write_json
from meditune.models.api.model import ApiModel
from meditune.models.api.tokens import RULE
from meditune.train.api.job import FOLDER, State

APPROVED = "approved.json"

Approve = Callable[[str], None]
"""Shown the estimate; raises MedituneError where it isn't approved of."""


@dataclass(frozen=True)
class Estimate:
    """What is left to be sent; tokens are estimated."""

    rows: int = 0
    """Training rows to be uploaded."""
    training: int = 0
    """Over all epochs."""
    requests: int = 0
    read: int = 0
    written: int = 0
    """At most."""

    def text(self, model: ApiModel) -> str:
        """For people: what goes where, how much it is and what it costs."""
        spec = model.spec
        key = f"with the key in {spec.key_variable}" if spec.key_variable else "without a key"
        lines = [f"Sent to {spec.url}, {key}:"]
        prices: list[tuple[str, int, float | None, str]] = []
        if self.rows:
            lines.append(f"  {self.rows:,} training rows; about {self.training:,} tokens are trained on")
            prices.append(("training", self.training, spec.price_per_million_training_tokens, "training"))
        if self.requests:
            lines.append(
                f"  {self.requests:,} test prompts; about {self.read:,} tokens are read and at most {self.written:,} "
                "written"
            )
            prices.append(("reading", self.read, spec.price_per_million_input_tokens, "input"))
            prices.append(("writing", self.written, spec.price_per_million_output_tokens, "output"))
        known = [(label, tokens * price / 1e6) for label, tokens, price, _ in prices if price is not None]
        unknown = [f"model.api.price_per_million_{kind}_tokens" for _, _, price, kind in prices if price is None]
        if known:
            parts = ", ".join(f"{label} {cost:,.2f}" for label, cost in known)
            lines.append(f"Cost: about {sum(cost for _, cost in known):,.2f} ({parts}), in the prices' currency.")
        if unknown:
            what = "The rest of the cost is" if known else "The cost is"
            lines.append(f"{what} unknown: set {', '.join(unknown)} to what the provider asks.")
        lines.append(f"Tokens are an estimate: {RULE}.")
        return "\n".join(lines)


def refuse(text: str) -> None:
    """Approve of nothing."""
    raise MedituneError(
        f"Nothing was sent. Data would leave this machine, and it costs money:\n{text}\nTo agree, add --yes."
    )


def ask_once(estimate: Estimate, model: ApiModel, folder: Path, approve: Approve) -> None:
    """Ask, unless as much or more was approved of in this folder before, and no job has failed since."""
    what = {"model": model.name, "url": model.spec.url, "failed": len(State.of(folder).ended)}
    path = folder / FOLDER / APPROVED
    earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
    if what.items() <= earlier.items() and all(left <= earlier[name] for name, left in asdict(estimate).items()):
        return
    approve(estimate.text(model))
    write_json(path, what | asdict(estimate))
