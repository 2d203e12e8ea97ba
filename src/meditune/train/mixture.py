"""What a training reads of each source: rows and passes, and tokens, which rows alone don't tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meditune.models.rows import Row
from meditune.train.replay import Replay


@dataclass(frozen=True)
class Part:
    """One source's part in a training."""

    source: str
    rows: int
    """Different ones that there are"""
    visits: int
    """Rows that were read"""
    tokens: int
    """Read, those of prompts included"""
    supervised_tokens: int
    """Of these, trained on"""


def mixture(
    rows: Sequence[Row], sources: Sequence[str], steps: Sequence[Sequence[int]], replay: Replay | None
) -> list[Part]:
    """The parts of all sources in these steps, the largest first, and replay as a part of its own at the end.

    `sources` are the rows'. A training that ended early gives the steps that it did.
    """
    visited = [index for step in steps for index in step]
    parts = [
        _part(name, [row for row, source in zip(rows, sources, strict=True) if source == name], mine)
        for name in dict.fromkeys(sources)
        for mine in [[rows[index] for index in visited if sources[index] == name]]
    ]
    parts.sort(key=lambda part: -part.tokens)
    if replay:
        read = [replay.rows[index] for step in replay.steps[: len(steps)] for index in step]
        parts.append(_part(f"replay ({replay.spec.source})", replay.rows, read))
    return parts


def facts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """For training.json: each part with its passes over the source's rows and its shares of all tokens."""
    return [asdict(part) | _shares(part, parts) for part in parts]


def said(parts: Sequence[Part]) -> list[str]:
    """The parts in words, a line each."""
    return [
        f"{part.source}: {part.visits:,} rows ({shares['passes']:g} passes over its {part.rows:,}), {part.tokens:,} "
        f"tokens ({shares['token_share']:.0%}), {part.supervised_tokens:,} of them trained on "
        f"({shares['supervised_share']:.0%} of all that are)"
        for part in parts
        for shares in [_shares(part, parts)]
    ]


def _part(name: str, there: Sequence[Row], read: Sequence[Row]) -> Part:
    return Part(name, len(there), len(read), sum(map(len, read)), sum(len(row.targets) for row in read))


def _shares(part: Part, parts: Sequence[Part]) -> dict[str, float]:
    tokens, supervised = sum(each.tokens for each in parts), sum(each.supervised_tokens for each in parts)
    return {
        "passes": round(part.visits / part.rows, 2) if part.rows else 0.0,
        "token_share": round(part.tokens / tokens, 4) if tokens else 0.0,
        "supervised_share": round(part.supervised_tokens / supervised, 4) if supervised else 0.0,
    }
