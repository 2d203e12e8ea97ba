"""False versions of true texts: another number, a changed negation, the opposite direction, or another answer.

They are the rejected answers of preference pairs, and the refuted claims beside supported ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from meditune.config.training_options import Corruption
from meditune.data.example import LABEL, Example
from meditune.data.readers.user_files import with_labels
from meditune.evidence.words import DIRECTION, NEGATABLE, NEGATED, NUMBER, OPPOSITE, value


def corrupt(kind: Corruption, example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Return the example's answer with one random corruption of this kind; None if there is nothing to corrupt.

    `others` are the examples from which the kind `other` takes an answer: one from another group with another text.
    """
    if kind == "other":
        return _another(example, others, rng)
    return {"number": _number, "negation": _negation, "direction": _direction}[kind](example, rng)


def _number(example: Example, rng: random.Random) -> str | None:
    """Replace one number by another from the sources or the answer, or by a multiple of itself."""
    text, found = example.answer, list(NUMBER.finditer(example.answer))
    if not found:
        return None
    match = rng.choice(found)
    number, decimals = match[0], _decimals(match[0])
    known = " ".join([text, *(passage.text for passage in example.context)])
    candidates = sorted(
        {each for each in NUMBER.findall(known) if _decimals(each) == decimals and value(each) != value(number)}
    )
    new = rng.choice(candidates) if candidates else f"{value(number) * rng.choice((2, 3)) or 1:.{decimals}f}"
    return _replaced(text, match, new)


def _negation(example: Example, rng: random.Random) -> str | None:
    """Remove one negation; if there is none, insert "not" after an auxiliary verb."""
    text, negated = example.answer, list(NEGATED.finditer(example.answer))
    if negated:
        match = rng.choice(negated)
        plain = match["plain"] or ("can" if len(match[0]) > 2 else "some")
        return _replaced(text, match, _cased(plain, match[0]))
    found = list(NEGATABLE.finditer(text))
    if not found:
        return None
    match = rng.choice(found)
    return _replaced(text, match, f"{match[0]}not" if match[0].lower() == "can" else f"{match[0]} not")


def _direction(example: Example, rng: random.Random) -> str | None:
    found = list(DIRECTION.finditer(example.answer))
    if not found:
        return None
    match = rng.choice(found)
    return _replaced(example.answer, match, _cased(OPPOSITE[match[0].lower()], match[0]))


def _another(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    own_answer = _plain(example.answer)
    for _ in range(20):
        other = rng.choice(others)
        if other.group != example.group and _plain(other.answer) != own_answer:
            return other.answer
    return None


def _replaced(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _cased(word: str, template: str) -> str:
    """Return the word with an initial capital if `template` has one."""
    return word[:1].upper() + word[1:] if template[:1].isupper() else word


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


CLAIM_CORRUPTIONS: tuple[tuple[Corruption, ...], ...] = (("direction", "negation"), ("number",))
"""Ways to make a false claim, in order of preference; which of several comes first is random"""


def with_corrupted_claims(claims: Sequence[Example], seed: int) -> list[Example]:
    """Return the claims with a refuted one after each supported one; supported ones that can't be changed are left out.

    Claims with other labels stay as they are.
    """
    found: list[Example] = []
    for claim in claims:
        if claim.label != "supported":
            found.append(claim)
            continue
        rng = random.Random(f"{seed}/{claim.id}")
        as_answer = claim.model_copy(update={"answer": claim.question})
        kinds = [kind for few in CLAIM_CORRUPTIONS for kind in rng.sample(few, len(few))]
        changed = (corrupt(kind, as_answer, [], rng) for kind in kinds)
        text = next((each for each in changed if each and each != claim.question), None)
        if text:
            meta = claim.meta | {LABEL: "refuted"}
            found += [claim, claim.model_copy(update={"id": f"{claim.id}/corrupted", "question": text, "meta": meta})]
    return with_labels(found)
