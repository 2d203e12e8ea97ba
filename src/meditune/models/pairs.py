"""A pair of answers as one row: both are branches of their common prompt, which is read once."""

from __future__ import annotations

from collections.abc import Sequence

from meditune.data.preference.pair import Pair
from meditune.models.rows import Row, join
from meditune.prompts import Encoder, QuestionTooLongError


def rows_of_pairs(pairs: Sequence[Pair], encoder: Encoder) -> tuple[list[Row], list[Pair]]:
    """A row for each pair, the preferred answer its first branch, and the pairs that gave one, in the order of `pairs`.

    A pair is left out where its question alone is too long, or where its answers only differ in what had to be cut.
    """
    rows, kept = [], []
    for pair in pairs:
        try:
            encoded = encoder.alternatives(pair.example(), "answer", [pair.chosen, pair.rejected])
        except QuestionTooLongError:
            continue
        if encoded[0].target != encoded[1].target:
            rows.append(join(encoded))
            kept.append(pair)
    return rows, kept
