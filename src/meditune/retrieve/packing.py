"""Passages in the room that a prompt has for them: the best first, whole sentences only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from meditune.recipe import PromptFormat
from meditune.retrieve.search import Hit
from meditune.retrieve.untrusted import cleaned
from meditune.text import sentences


@dataclass(frozen=True)
class Packed:
    """A passage as the model reads it."""

    hit: Hit
    title: str
    """Cleaned, like the text"""
    text: str
    """Of the passage, so many whole sentences as there was room for"""
    left_out: int = 0
    """Sentences that found no room"""

    @property
    def shown(self) -> str:
        """What stands in the prompt: the text under its title, without which it may not say what it speaks of."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class Packing:
    """What of the hits is in the prompt."""

    passages: tuple[Packed, ...]
    remarks: tuple[str, ...] = ()
    """What was left out, and why"""


def pack(
    hits: Sequence[Hit],
    form: PromptFormat,
    special_tokens: Sequence[str],
    count: Callable[[Sequence[str]], int],
    room: int,
) -> Packing:
    """As many of the hits, in their order, as fit: `count` is how many tokens a prompt with these texts has.

    The first hit that doesn't fit whole is cut after a sentence; those after it are left out.
    """
    packed: list[Packed] = []
    remarks: list[str] = []
    for number, hit in enumerate(hits):
        clean = cleaned(hit.passage.text, form, special_tokens)
        title = cleaned(hit.passage.title, form, special_tokens)
        orders = len(clean.orders) + len(title.orders)
        if orders:
            remarks.append(
                f"{hit.passage.id}: {_sentences(orders)} that told the model what to do {_was(orders)} left out."
            )
        if not clean.text:
            continue
        fits = partial(_fits, count, room, [each.shown for each in packed])
        fitting = _fitting(hit, title.text, sentences(clean.text), fits)
        if fitting is not None:
            packed.append(fitting)
        if fitting is None or fitting.left_out:
            remarks += _no_room(fitting, len(hits) - number - (fitting is not None))
            break
    return Packing(tuple(packed), tuple(remarks))


def _fits(count: Callable[[Sequence[str]], int], room: int, before: Sequence[str], text: str) -> bool:
    return count([*before, text]) <= room


def _fitting(hit: Hit, title: str, whole: Sequence[str], fits: Callable[[str], bool]) -> Packed | None:
    """The most sentences from the beginning that fit, by halving; None where not even the first does."""
    low, high = 0, len(whole)
    if fits(Packed(hit, title, " ".join(whole)).shown):
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if middle < len(whole) and fits(Packed(hit, title, " ".join(whole[:middle])).shown):
            low = middle
        else:
            high = middle - 1
    return Packed(hit, title, " ".join(whole[:low]), len(whole) - low) if low else None


def _no_room(cut: Packed | None, others: int) -> list[str]:
    said = []
    if cut:
        said.append(f"the last {_sentences(cut.left_out)} of {cut.hit.passage.id}")
    if others:
        said.append(f"{others} further {'passage' if others == 1 else 'passages'}")
    return [f"There was no room in the prompt for {' and '.join(said)}."]


def _sentences(number: int) -> str:
    return f"{number} sentence" if number == 1 else f"{number} sentences"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
