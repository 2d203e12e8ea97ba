"""Pairs for the tests of preference tuning."""

from meditune.data.preference.pairs import Pair
from tests.models.test_forward import EXAMPLES

REJECTED = ("The drug does not help.", "Exercise was not measured in this study of hearts.", "Diet helps with sleep.")
PAIRS = [
    Pair(
        id=f"{example.id}/own",
        question=example.question,
        context=example.context,
        chosen=example.answer,
        rejected=rejected,
        group=example.group,
        kind="own",
    )
    for example, rejected in zip(EXAMPLES, REJECTED, strict=True)
]
