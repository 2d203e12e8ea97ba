"""Text that the base model itself writes before it is tuned, as replay that needs no other data.

After Huang et al. 2024, "Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal"
(arXiv:2403.01244). The text is sampled from the model's whole distribution (temperature 1, nothing cut off), so the
tuned model's loss on it is, but for a constant and in expectation, its Kullback-Leibler divergence from the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from meditune.models.continuing import sampled
from meditune.models.load import LoadedModel
from meditune.models.rows import Row, join
from meditune.progress import Progress
from meditune.prompts import Encoded
from meditune.train.mixing import endless

OPENINGS = (
    *("The history of the", "In recent years the", "She opened the door", "According to a new", "When the war ended"),
    *("The first time I", "It is well known", "There are three main", "He was born in", "The city lies on"),
    *("To make a good", "Once upon a time", "Scientists have found that", "The book tells the", "In mathematics, a"),
    *("My grandmother used to", "The company announced that", "During the summer of", "This film is about"),
    *("The government has decided", "Most people think that", "A computer program is", "The team won its"),
    *("Music has always been", "On the other hand", "The river flows through", "How does a plane"),
    *("The law requires that", "Birds that live in", "At the end of", "The teacher asked the", "Because of the rain"),
    *("The best way to", "In the next chapter", "Prices have risen since", "The old house was", "If you want to"),
)
BATCH = 64
"""Texts written at once"""


def write(loaded: LoadedModel, count: int, tokens: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` texts of at most `tokens` tokens: `id`, `text`, token ids of the opening (`prompt`) and rest (`target`).

    The openings are cut to the length of the shortest, so that a batch needs no padding. A text that the model ends
    early has its end token.
    """
    start = loaded.start_ids()
    openings = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPENINGS]
    length = min(map(len, openings))
    order = endless(len(openings), f"{seed}/openings")
    torch.manual_seed(seed)
    with Progress("The base model writes", count, "texts") as progress:
        for first in range(0, count, BATCH):
            prompts = [[*start, *openings[index][:length]] for index in islice(order, min(BATCH, count - first))]
            targets = sampled(loaded, prompts, tokens - len(prompts[0]))
            for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True), start=first):
                text = loaded.tokenizer.decode([*prompt, *target], skip_special_tokens=True)
                yield {"id": f"self-{number}", "text": text, "prompt": prompt, "target": target}
            progress.advance(len(prompts))


def row(written: dict[str, Any]) -> Row:
    """A training row of one of `write`'s texts: only what the model wrote is trained on, not its opening."""
    return join([Encoded(written["id"], "answer", written["prompt"], written["target"], answer_cut=True)])
