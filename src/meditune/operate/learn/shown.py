"""A queue in the terminal and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditune.operate.learn.gather import Queued
from meditune.operate.learn.queue import Chosen

CHARACTERS = 100


def lines(found: Queued, most: int) -> Iterator[str]:
    """How many were chosen and why, and the first `most` with their reasons."""
    yield f"{len(found.chosen)} of {found.pool:,} chosen."
    counts = Counter(name for each in found.chosen for name in each.reasons)
    yield "Reasons: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "."
    for number, each in enumerate(found.chosen[:most], start=1):
        asked = f" (asked {each.candidate.asked} times)" if each.candidate.asked > 1 else ""
        yield f"{number}. {_cut(each.candidate.example.question)}{asked}"
        yield f"   {'; '.join(each.reasons.values())}"
    if len(found.chosen) > most:
        yield f"... and {len(found.chosen) - most} more."


def as_json(found: Queued, folder: Path) -> str:
    """One JSON object: `folder`, `pool`, `chosen`, `remarks`."""
    said = {
        "folder": str(folder.resolve()),
        "pool": found.pool,
        "chosen": [as_dict(each) for each in found.chosen],
        "remarks": found.remarks,
    }
    return json.dumps(said, ensure_ascii=False, indent=2)


def as_dict(chosen: Chosen) -> dict[str, Any]:
    """id, question, asked, score, reasons."""
    return {
        "id": chosen.candidate.id,
        "question": chosen.candidate.example.question,
        "asked": chosen.candidate.asked,
        "score": round(chosen.score, 3),
        "reasons": dict(chosen.reasons),
    }


def _cut(text: str) -> str:
    told = " ".join(text.split())
    return told if len(told) <= CHARACTERS else told[: CHARACTERS - 1].rstrip() + "…"
