"""Measuring a model as it is served: an exported one, by the engine that runs it.

The items, files and fields are those of `evaluate.stage.Measuring`. What is measured is what a served model is asked:
decisions by the likelihood of their words, the perplexity of given answers, and what it writes. Forgetting, general
knowledge and samples are measured on the model that was exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditune.data.example import DECISIONS, Example
from meditune.engines.engine import Engine, Job
from meditune.engines.together import answers
from meditune.errors import DataError
from meditune.evaluate.items import chosen_answers, decided_on, refuse_no_repeat
from meditune.evaluate.likelihood import scored_bytes
from meditune.evaluate.predictions import DecisionKind, Kind, answer_row, once, path_of, written_row
from meditune.evaluate.safety import battery
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, Encoded, Encoder
from meditune.recipe import PromptFormat, Recipe

Row = dict[str, Any]


class EngineMeasuring:
    """Measures an engine's model, and remembers on disk what is done."""

    def __init__(self, recipe: Recipe, examples: Sequence[Example], folder: Path, dev: Sequence[Example] = ()) -> None:
        if recipe.evaluate.protocol != "meditune":
            raise DataError(
                "An exported model is measured with evaluate.protocol meditune. For lm-eval's, measure the model that "
                "it was exported from, or let lm-eval ask `meditune serve`."
            )
        refuse_no_repeat(recipe.evaluate)
        self.spec, self.folder = recipe.evaluate, folder
        self.conditions = decided_on(examples, dev, recipe.evaluate)
        self.answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
        self.messages = battery.chosen(recipe.evaluate.safety_messages, recipe.seed)

    def is_done(self, name: str) -> bool:
        """Whether every kind of prediction of this model is stored already."""
        kinds: list[Kind] = [*self.conditions]
        kinds += ["written"] if self._written else []
        kinds += ["likelihood", "answer"] if self.answered else []
        kinds += ["safety"] if self.messages else []
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def measure(self, engine: Engine, form: PromptFormat, name: str) -> None:
        """Make the predictions that aren't there yet."""
        encoder = Encoder(engine.tokenizer, form)
        for kind in self.conditions:
            once(self.folder, name, kind, partial(self._decisions, engine, encoder, kind, name))
        if self.answered:
            once(self.folder, name, "likelihood", lambda: self._likelihoods(engine, encoder, name))
        if self._written:
            once(self.folder, name, "written", lambda: self._decisions_in_words(engine, encoder, name))
        if self.answered:
            once(self.folder, name, "answer", lambda: self._answers(engine, encoder, name))
        if self.messages:
            once(self.folder, name, "safety", lambda: self._safety(engine, encoder, name))

    @property
    def _written(self) -> bool:
        return self.spec.written_decisions and "decision" in self.conditions

    def _decisions(self, engine: Engine, encoder: Encoder, kind: DecisionKind, name: str) -> Iterator[Row]:
        labels = encoder.label_ids()
        examples = self.conditions[kind]
        with Progress(f"Decisions of {name} ({kind}), {engine.name}", len(examples), "decisions") as progress:
            for example in examples:
                prompt = encoder.supervised(example, "decision").prompt
                scored = engine.score(prompt, [[labels[label]] for label in DECISIONS])
                logits = {label: one[0].logprob for label, one in zip(DECISIONS, scored, strict=True)}
                said = max(logits, key=lambda label: logits[label])
                progress.advance()
                yield {"id": example.id, "reference": example.decision, "prediction": said, "logits": logits}

    def _likelihoods(self, engine: Engine, encoder: Encoder, name: str) -> Iterator[Row]:
        with Progress(f"Given answers, {name}, {engine.name}", len(self.answered), "answers") as progress:
            for example in self.answered:
                item = encoder.supervised(example, "answer")
                text = item.target if item.answer_cut else item.target[:-1]
                nll = -sum(one.logprob for one in engine.score(item.prompt, [text])[0])
                size = scored_bytes(engine.tokenizer, item) if item.answer_cut else len(example.answer.strip().encode())
                progress.advance()
                yield {"id": example.id, "nll": nll, "tokens": len(text), "bytes": size}

    def _decisions_in_words(self, engine: Engine, encoder: Encoder, name: str) -> list[Row]:
        examples = self.conditions["decision"]
        prompts = [encoder.prompt(example, "decision") for example in examples]
        texts = self._wrote(engine, prompts, DECISION_TOKENS, f"Decisions of {name} in words")
        return [written_row(example.id, example.decision, texts[example.id]) for example in examples]

    def _answers(self, engine: Engine, encoder: Encoder, name: str) -> list[Row]:
        prompts = [encoder.prompt(example, "answer") for example in self.answered]
        texts = self._wrote(engine, prompts, self.spec.max_new_tokens, f"Answers of {name}")
        return [answer_row(example, texts[example.id]) for example in self.answered]

    def _safety(self, engine: Engine, encoder: Encoder, name: str) -> list[Row]:
        prompts = [encoder.prompt(message.example(), "answer") for message in self.messages]
        texts = self._wrote(engine, prompts, self.spec.max_new_tokens, f"Safety battery, {name}")
        return [message.row(texts[message.id]) for message in self.messages]

    def _wrote(self, engine: Engine, prompts: Sequence[Encoded], more: int, label: str) -> dict[str, str]:
        """What the engine writes to each prompt, the likeliest, by the prompt's id."""
        written: dict[str, str] = {}
        with Progress(f"{label}, {engine.name}", len(prompts), "answers") as progress:
            for number, whole in answers(engine, [Job(item.prompt, more) for item in prompts]):
                written[prompts[number].id] = whole.text.strip()
                progress.advance()
        return written
