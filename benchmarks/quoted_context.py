"""Compare decisions and perplexity of a model with and without quoted context lines.

    MEDITUNE_DATA=... python benchmarks/quoted_context.py smollm2-135m --items 48

Items are sampled with a fixed seed from PubMedQA's training half; the official test set isn't used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from pathlib import Path

from meditune.config.data_options import PromptFormat
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.evaluate.likelihood import score
from meditune.evaluate.metrics.decision import probabilities
from meditune.models.load import load
from meditune.models.shared_prefix_batch import join

TOKENS = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=48)
    asked = parser.parse_args()
    folder = Path(os.environ["MEDITUNE_DATA"]) / "pubmedqa"
    test = set(json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8")))
    items = [each for each in pubmedqa.read(folder, Rejects()) if each.id.partition(":")[2] not in test]
    random.Random(17).shuffle(items)
    items = items[: asked.items]
    loaded = load(asked.model)
    for quoted in (False, True):
        encoder = loaded.encoder(PromptFormat(max_tokens=TOKENS, quoted=quoted))
        rows = [join([encoder.supervised(each, task) for task in ("decision", "answer")]) for each in items]
        measured = score(loaded, rows, max(map(len, rows)) * 2, f"quoted={quoted}", encoder.label_ids())
        likely = {name: probabilities(logits) for name, logits in measured.decisions.items()}
        right = sum(max(likely[each.id], key=likely[each.id].__getitem__) == each.decision for each in items)
        certain = sum(math.log(likely[each.id][str(each.decision)]) for each in items) / len(items)
        texts = measured.answers.values()
        perplexity = math.exp(sum(each.nll for each in texts) / sum(each.tokens for each in texts))
        print(
            f"quoted={quoted}: {right} of {len(items)} decisions right, their mean log-likelihood {certain:.3f}, "
            f"perplexity of the conclusions {perplexity:.2f}"
        )


if __name__ == "__main__":
    main()
