"""Rows of tokens for a forward pass; in a row, the tasks of one example, or both answers of a pair, share their prompt.

    common start | branch 1 | branch 2 | padding

A mask hides the branches from each other, and every branch's positions continue from the common start. The results
equal those of separate rows (checked by a test), at little more than half the cost.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from meditune.data.preference_pairs import Pair
from meditune.prompts import Encoded, Encoder, QuestionTooLongError

PROMPT = -1
"""Value in `Row.of` for a target that is a token of the prompt itself"""


@dataclass(frozen=True)
class Row:
    """One or more tasks of one example, laid out for a forward pass."""

    tokens: list[int]
    positions: list[int]
    branch: list[int]
    """Each token's branch: 0 in the common start, then 1, 2, ...

    A token sees itself, and the earlier tokens of branch 0 and of its own branch.
    """
    predicted_by: list[int]
    """For each supervised target token, the index of the token whose output predicts it."""
    targets: list[int]
    of: list[int]
    """For each supervised target token, the index of its task in `encoded`, or PROMPT."""
    encoded: tuple[Encoded, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def join(encoded: Sequence[Encoded]) -> Row:
    """Return the tasks of one example as one row; a single task gives an ordinary row, which is causal."""
    common = _common_start([item.prompt for item in encoded])
    first = encoded[0].prompt
    row = Row(first[:common], list(range(common)), [0] * common, [], [], [], tuple(encoded))
    for number, item in enumerate(encoded):
        rest = item.prompt[common:]
        # The last target token is only predicted, never fed to the model.
        fed = [*rest, *item.target[:-1]]
        start = len(row.tokens)
        row.tokens.extend(fed)
        row.positions.extend(range(common, common + len(fed)))
        row.branch.extend([number + 1] * len(fed))
        first_target = start + len(rest) - 1
        for offset, target in enumerate(item.target):
            row.predicted_by.append(first_target + offset)
            row.targets.append(target)
            row.of.append(number)
    return row


def with_earlier_turns(row: Row) -> Row:
    """Return a conversation's row with its earlier assistant turns added as first targets; other rows unchanged."""
    earlier = row.encoded[0].earlier
    if not earlier or len(row.encoded) > 1:
        return row
    return replace(
        row,
        predicted_by=[*(place - 1 for place in earlier), *row.predicted_by],
        targets=[*(row.tokens[place] for place in earlier), *row.targets],
        of=[*[0] * len(earlier), *row.of],
    )


def with_prompt(row: Row) -> Row:
    """Return the row with the tokens of the common start as additional targets, which are marked as PROMPT in `of`."""
    common, taught = row.branch.count(0), set(row.predicted_by)
    places = [place for place in range(common - 1) if place not in taught]
    return replace(
        row,
        predicted_by=[*row.predicted_by, *places],
        targets=[*row.targets, *(row.tokens[place + 1] for place in places)],
        of=[*row.of, *[PROMPT] * len(places)],
    )


def rows_of(encoded: Sequence[Encoded]) -> list[Row]:
    """Return one row per example; an example's tasks must be adjacent."""
    return [join(list(group)) for _, group in groupby(encoded, key=lambda item: item.id)]


def windows(name: str, ids: Sequence[int], length: int, start: Sequence[int] = ()) -> list[Row]:
    """Return running text as rows of up to `length` tokens, each beginning with `start` (BOS).

    All tokens of a row except the first are targets.
    """
    rows = []
    for number, offset in enumerate(range(0, len(ids) - 1, length - len(start))):
        piece = [*start, *ids[offset : offset + length - len(start)]]
        if len(piece) > 1:
            rows.append(join([Encoded(f"{name}-{number}", "answer", piece[:1], piece[1:], answer_cut=True)]))
    return rows


def _common_start(prompts: Sequence[list[int]]) -> int:
    """Return the length of the prompts' common start, which never includes the last token of a prompt."""
    shortest = min(map(len, prompts)) - 1
    return next((n for n in range(shortest) if len({prompt[n] for prompt in prompts}) > 1), shortest)


@dataclass(frozen=True)
class Batch:
    """Padded rows as tensors, for B rows, T tokens in the longest row, and N supervised tokens in all rows."""

    tokens: torch.Tensor
    """(B, T) token ids"""
    positions: torch.Tensor
    """(B, T) position of each token"""
    branch: torch.Tensor
    """(B, T) number of each token's branch, as in a `Row`; -1 at padding"""
    rows: torch.Tensor
    """(N,) row of each supervised token"""
    columns: torch.Tensor
    """(N,) column of the token that predicts the supervised token"""
    targets: torch.Tensor
    """(N,) id of the supervised token"""
    real_tokens: int
    """Number of tokens that aren't padding"""

    @property
    def is_causal(self) -> bool:
        """Return whether every token sees all earlier tokens of its row, which is true if no row has two branches."""
        return bool(self.branch.max() <= 1)


def sees_of(branch: torch.Tensor) -> torch.Tensor:
    """Return a (B, T, T) mask from (B, T) branches; [b, i, j] is true if token i of row b sees token j."""
    length = branch.shape[1]
    causal = torch.ones((length, length), dtype=torch.bool, device=branch.device).tril()
    seen, seeing = branch[:, None, :], branch[:, :, None]
    return causal & (((seen == 0) & (seeing >= 0)) | (seen == seeing))


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Return the rows as one batch, padded with `pad_id` on the right."""
    length = max(len(row) for row in rows)
    tokens = torch.full((len(rows), length), pad_id, dtype=torch.long)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    branch = torch.full((len(rows), length), -1, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row.tokens)
        positions[index, : len(row)] = torch.tensor(row.positions)
        branch[index, : len(row)] = torch.tensor(row.branch)
    return Batch(
        tokens,
        positions,
        branch,
        torch.tensor([index for index, row in enumerate(rows) for _ in row.targets], dtype=torch.long),
        torch.tensor([column for row in rows for column in row.predicted_by], dtype=torch.long),
        torch.tensor([target for row in rows for target in row.targets], dtype=torch.long),
        sum(len(row) for row in rows),
    )


MIN_PADDING = 0.1
"""Share of padding in a batch above which `forward.predict` skips it, if the model's attention allows that"""


def by_length(rows: Sequence[Sized], max_tokens: int, longest: int | None = None) -> list[list[int]]:
    """Return batches of row indices, in which rows have similar lengths; the longest rows come first.

    A batch has at most `max_tokens` tokens including padding, or a single longer row. If padding is skipped, pass the
    length of the longest of all rows as `longest`. Then a batch with enough padding may have `max_tokens` tokens
    without padding, if it has at most twice as many with padding. As attention doesn't skip padding, such a batch
    computes at most as many attention scores as a batch of `max_tokens` tokens in rows of the length `longest`.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    batches: list[list[int]] = []
    real = 0
    for index in order:
        real += len(rows[index])
        if batches and _fits(len(batches[-1]) + 1, len(rows[batches[-1][0]]), real, max_tokens, longest):
            batches[-1].append(index)
        else:
            batches.append([index])
            real = len(rows[index])
    return batches


def _fits(count: int, length: int, real: int, max_tokens: int, longest: int | None) -> bool:
    size = count * length
    if longest is None or real >= (1 - MIN_PADDING) * size:
        return size <= max_tokens
    return real <= max_tokens and size <= 2 * max_tokens and size * length <= max_tokens * longest


def rows_of_pairs(pairs: Sequence[Pair], encoder: Encoder) -> tuple[list[Row], list[Pair]]:
    """Return a row for each pair that can be used, and the list of these pairs in the same order.

    The preferred answer is the first branch of a row. A pair is left out if its question is too long, or if its answers
    differ only in the part that was cut off.
    """
    rows, kept_pairs = [], []
    for pair in pairs:
        try:
            encoded = encoder.alternatives(pair.example(), "answer", list(pair.answers.values()))
        except QuestionTooLongError:
            continue
        if len(encoded) == 1 or encoded[0].target != encoded[1].target:
            rows.append(join(encoded))
            kept_pairs.append(pair)
    return rows, kept_pairs
