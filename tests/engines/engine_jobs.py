"""Jobs put to an engine as a server would, and their pieces."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from meditune.engines.engine import Engine, GenerationChunk, GenerationRequest

PATIENCE = 120
"""Seconds that one piece may take"""


def collect(pieces: queue.Queue[GenerationChunk]) -> list[GenerationChunk]:
    """All pieces up to the last one."""
    found = []
    while True:
        found.append(pieces.get(timeout=PATIENCE))
        if found[-1].finish or found[-1].error:
            return found


def together(engine: Engine, jobs: Sequence[GenerationRequest]) -> list[list[GenerationChunk]]:
    """The pieces of jobs that are started at the same time."""
    waiting: list[queue.Queue[GenerationChunk]] = [queue.Queue() for _ in jobs]
    for job, pieces in zip(jobs, waiting, strict=True):
        engine.start(job, pieces.put)
    return [collect(pieces) for pieces in waiting]


def ask(engine: Engine, job: GenerationRequest) -> list[GenerationChunk]:
    """The pieces of one job."""
    return together(engine, [job])[0]


def text(pieces: Sequence[GenerationChunk]) -> str:
    """What they say together."""
    return "".join(piece.text for piece in pieces)


def tokens(pieces: Sequence[GenerationChunk]) -> list[int]:
    """Their tokens."""
    return [token for piece in pieces for token in piece.tokens]
