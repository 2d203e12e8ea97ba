"""Many jobs put to an engine at once, and their whole answers."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meditune.engines.engine import Engine, Finish, Job, Piece


@dataclass(frozen=True)
class Whole:
    """An answer that has ended."""

    text: str
    tokens: list[int]
    finish: Finish


def answers(engine: Engine, jobs: Sequence[Job]) -> Iterator[tuple[int, Whole]]:
    """Each job's number and its answer, as they end. Raises what broke one off; the others are cancelled then."""
    pieces: queue.SimpleQueue[tuple[int, Piece]] = queue.SimpleQueue()
    begun: dict[int, tuple[list[str], list[int]]] = {}
    running = []
    try:
        for number, job in enumerate(jobs):
            begun[number] = ([], [])
            running.append(engine.start(job, lambda piece, number=number: pieces.put((number, piece))))  # type: ignore[misc]
        while begun:
            number, piece = pieces.get()
            if piece.error:
                raise piece.error
            texts, tokens = begun[number]
            texts.append(piece.text)
            tokens += piece.tokens
            if piece.finish:
                del begun[number]
                yield number, Whole("".join(texts), tokens, piece.finish)
    finally:
        for number in begun:
            if number < len(running):
                running[number].cancel()
