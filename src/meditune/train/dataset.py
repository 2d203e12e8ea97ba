"""Convert examples to training rows, weight the rows' supervised tokens, and count what was shortened or left out.

The module also decides which tasks an example can teach, and describes examples with retrieved passages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meditune.config.data_options import TASKS, Task
from meditune.config.training_options import TrainSpec
from meditune.data import retrieved_passages
from meditune.data.example import Example
from meditune.errors import DataError
from meditune.models.shared_prefix_batch import PROMPT, Row, join, rows_of, with_earlier_turns, with_prompt
from meditune.prompts import Encoded, Encoder, QuestionTooLongError


def retrieved_facts(rows: Sequence[Row], folder: Path) -> dict[str, int]:
    """Return counts of the examples that show retrieved passages; empty if the run doesn't train with passages.

    `examples` counts all of these examples, `right` those whose own passage was retrieved, and `left_out` the passages
    that didn't fit into the prompts.
    """
    path = folder / retrieved_passages.TRAINING
    if not path.is_file():
        return {}
    found = retrieved_passages.read(path)
    matching = [row for row in rows if row.encoded[0].id in found]
    return {
        "examples": len(matching),
        "right": sum(bool(found[row.encoded[0].id]["right"]) for row in matching),
        "left_out": sum(max(item.left_out for item in row.encoded) for row in matching),
    }


def retrieved_described(facts: dict[str, int]) -> str:
    """Return the counts of `retrieved_facts` in words."""
    without = facts["examples"] - facts["right"]
    room = f" {facts['left_out']} passages did not fit." if facts["left_out"] else ""
    missing = f"in {without}, the example's own passage is missing"
    return f"{facts['examples']} examples show retrieved passages; {missing}.{room}"


class TokenWeights:
    """The weight of every supervised token: 1, unless the recipe sets one of the following options.

    - `decision_share` s: of the loss of decisions and answers over the data set, all decision tokens together get the
      share s, and all answer tokens get the rest, regardless of the numbers of tokens.
    - `claim_share` c: all claims together get the share c of the loss over the data set, and decisions and answers get
      the rest.
    - `prompt_share` p: the tokens of the prompts get the share p of the total loss, and the tokens after the prompts
      get the rest.
    - `class_balance` b: a decision whose class has frequency f gets the weight f ** -b. These weights are scaled so
      that their mean over the examples stays 1. Claims aren't balanced.
    - `end_weight` e: the end token of an answer, whose id is `end_id`, has e times the weight of the answer's other
      tokens. At a position where some answers end and others continue, a fully trained model then multiplies the odds
      of ending by e.

    If sources are mixed, all of these options refer to the rows of an epoch. `repeats` maps an example's id to the
    number of times that its row occurs in an epoch (1 if the id is missing).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        rows: Sequence[Row],
        spec: TrainSpec,
        repeats: Mapping[str, float] = MappingProxyType({}),
        end_id: int | None = None,
    ) -> None:
        self.decisions = {example.id: example.decision for example in examples if example.decision}
        often = {example.id: repeats.get(example.id, 1.0) for example in examples}
        counts: defaultdict[str, float] = defaultdict(float)
        for identifier, label in self.decisions.items():
            counts[label] += often[identifier]
        total = sum(counts.values())
        raw = {label: (count / total) ** -spec.class_balance for label, count in counts.items()}
        balanced = sum(raw[label] * often[identifier] for identifier, label in self.decisions.items())
        self.by_class = {label: value / (balanced / total) for label, value in raw.items()}
        tokens: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            for item in row.encoded:
                taught = [*item.target, *(item.prompt[place] for place in item.earlier)]
                eased = (1 - spec.end_weight) * sum(token == end_id for token in taught) if _has_ends(item) else 0.0
                tokens[item.task] += (len(taught) - eased) * often[item.id]
        share = spec.decision_share
        self.by_task = {"decision": 1.0, "answer": 1.0, "claim": 1.0}
        if share is not None and tokens["decision"] and tokens["answer"]:
            every = tokens["decision"] + tokens["answer"]
            self.by_task |= {
                "decision": share * every / tokens["decision"],
                "answer": (1 - share) * every / tokens["answer"],
            }
        rest = tokens["decision"] + tokens["answer"]
        if spec.claim_share is not None and tokens["claim"] and rest:
            every = tokens["claim"] + rest
            others = (1 - spec.claim_share) * every / rest
            self.by_task = {task: others * weight for task, weight in self.by_task.items()}
            self.by_task["claim"] = spec.claim_share * every / tokens["claim"]

        prompt = sum(row.of.count(PROMPT) * often[row.encoded[0].id] for row in rows)
        self.end, self.end_id = spec.end_weight, end_id
        self.of_prompt = 0.0
        if prompt:
            self.by_task = {task: (1 - spec.prompt_share) * weight for task, weight in self.by_task.items()}
            self.of_prompt = spec.prompt_share * sum(tokens.values()) / prompt

    def of(self, row: Row) -> list[float]:
        """Return one weight for each of the row's targets."""
        weights = []
        for number, token in zip(row.of, row.targets, strict=True):
            if number == PROMPT:
                weights.append(self.of_prompt)
                continue
            item = row.encoded[number]
            weight = self.by_task[item.task]
            if item.task == "decision":
                weight *= self.by_class[self.decisions[item.id]]
            weights.append(weight * self.end if token == self.end_id and _has_ends(item) else weight)
        return weights


def _has_ends(item: Encoded) -> bool:
    """Return whether the item teaches an answer's end; end tokens in generated replay text count like all others."""
    return item.task == "answer" and bool(item.earlier or not item.answer_cut)


def supported_tasks(example: Example, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that the example can teach."""
    target = {"decision": example.decision, "answer": example.answer.strip(), "claim": example.label}
    return [task for task in tasks if target[task]]


def check_teaches(examples: Sequence[Example], tasks: Sequence[Task]) -> None:
    """Raise DataError if no example teaches any of the tasks. This needs no tokenizer, so it can run early."""
    if not any(supported_tasks(example, tasks) for example in examples):
        others = [task for task in TASKS if any(supported_tasks(example, [task]) for example in examples)]
        hint = f" To train on what they have, add --set 'train.tasks=[{others[0]}]'" if others else ""
        raise DataError(f"None of the {len(examples)} training examples has {task_names(tasks)} to learn from.{hint}")


def task_names(tasks: Sequence[Task]) -> str:
    """Return the tasks in words for a sentence, such as "an answer or a decision"."""
    names = {"answer": "an answer", "decision": "a decision", "claim": "a claim's label"}
    return " or ".join(names[task] for task in tasks)


@dataclass(frozen=True)
class TokenFacts:
    """Counts of rows and tokens after the examples were fitted into the token budget."""

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    shortened: int
    """Examples whose context lost sentences, or whose conversation lost its earliest turns."""
    cut: int
    """Answers that were cut off, so that their end token isn't trained on."""
    dropped: int
    """Examples left out because their question alone is too long, they teach none of the tasks, or the chat template
    rejects them."""


def encode(
    examples: Sequence[Example], encoder: Encoder, tasks: Sequence[Task], prompts: bool = False, split: str = "training"
) -> tuple[list[Row], TokenFacts]:
    """Return the training rows in the order of `examples`, and counts.

    Each example that teaches at least one task gives one row. A conversation teaches all its assistant turns, in
    several rows if they don't fit into one row. A conversation that the chat template rejects is left out. If `prompts`
    is true, the prompts are trained on, too. Raises DataError, which names the `split`, if nothing is left.
    """
    encoded: list[Encoded] = []
    usable = encoder.accepted(examples)
    dropped = len(examples) - len(usable)
    for example in usable:
        try:
            encodings = [item for task in supported_tasks(example, tasks) for item in encoder.trained(example, task)]
        except QuestionTooLongError:
            encodings = []
        dropped += not encodings
        encoded += encodings
    rows = [with_earlier_turns(part) for row in rows_of(encoded) for part in _fitting(row, encoder.format.max_tokens)]
    rows = [with_prompt(row) if prompts else row for row in rows]
    if not rows:
        raise DataError(
            f"None of the {len(examples)} {split} examples has {task_names(tasks)} that fits into "
            f"prompt.max_tokens={encoder.format.max_tokens}. Raise prompt.max_tokens."
        )
    return rows, token_facts(rows, dropped)


def _fitting(row: Row, max_tokens: int) -> list[Row]:
    """Return the row, or if it contains several replies and exceeds `max_tokens`, one row for each reply."""
    replies_only = len(row.encoded) > 1 and all(item.task == "answer" for item in row.encoded)
    return [join([item]) for item in row.encoded] if replies_only and len(row) > max_tokens else [row]


def token_facts(rows: Sequence[Row], dropped: int) -> TokenFacts:
    """Return the counts of `rows`; `dropped` is the number of examples that were left out."""
    return TokenFacts(
        rows=len(rows),
        tokens=sum(len(row) for row in rows),
        supervised_tokens=sum(len(row.targets) for row in rows),
        longest=max(len(row) for row in rows),
        shortened=sum(any(item.dropped_sentences or item.dropped_turns for item in row.encoded) for row in rows),
        cut=sum(item.answer_cut for row in rows for item in row.encoded),
        dropped=dropped,
    )


def lengths(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Return the numbers of tokens in each row's longest prompt and after its prompts, for the report's histograms."""
    return {
        "prompt": [max(len(item.prompt) for item in row.encoded) for row in rows],
        "target": [len(row.targets) - row.of.count(PROMPT) for row in rows],
    }


def marked(row: Row, tokenizer: Any) -> str:
    """Return the row's texts with the supervised parts between guillemets, for people to check before training."""
    parts = []
    for item in row.encoded:
        prompt = _marked_prompt(item, tokenizer)
        if PROMPT in row.of:
            learnt, cue = tokenizer.decode(row.tokens[: row.branch.count(0)]), item.prompt[row.branch.count(0) :]
            prompt = f"«{learnt}»{tokenizer.decode(cue)}"
        parts.append(f"{prompt}«{tokenizer.decode(item.target)}»")
    return "\n---\n".join(parts)


def _marked_prompt(item: Encoded, tokenizer: Any) -> str:
    """Return the prompt's text with earlier assistant turns between guillemets."""
    taught = set(item.earlier)
    text = ""
    for is_taught, group in groupby(range(len(item.prompt)), key=taught.__contains__):
        piece = tokenizer.decode([item.prompt[place] for place in group])
        text += f"«{piece}»" if is_taught else piece
    return text


def check_masks(rows: Sequence[Row]) -> None:
    """Raise DataError if a task in a row has no supervised tokens, or only an end token."""
    for row in rows:
        for number, item in enumerate(row.encoded):
            if len(item.target) < (1 if item.task == "claim" else 2) or number not in row.of:
                raise DataError(
                    f"{item.id}: no token of its {item.task} would be trained on. Check the example and "
                    "prompt.max_tokens."
                )
