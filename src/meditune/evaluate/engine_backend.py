"""The evaluator's back end for an exported model in its engine.

It measures decisions by likelihood, the perplexity of given answers, and written answers. Forgetting, general knowledge
and samples are measured on the model before export.
"""

from __future__ import annotations

from collections.abc import Sequence

from meditune.config.data_options import PromptFormat, Task
from meditune.data.example import DECISIONS, Example
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.evaluate.evaluator import Backend, KeepScore, KeepText
from meditune.progress import Progress
from meditune.prompts import Encoder


class EngineBackend(Backend):
    """A model in an engine, prompted in `form`."""

    def __init__(self, engine: Engine, form: PromptFormat) -> None:
        self.engine, self.encoder = engine, Encoder(engine.tokenizer, form)

    def accepted(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See Backend."""
        return self.encoder.accepted(examples)

    def score(
        self, decision_examples: Sequence[Example], answer_examples: Sequence[Example], label: str, keep: KeepScore
    ) -> None:
        """Score one decision or answer at a time."""
        from meditune.evaluate.likelihood import scored_bytes

        labels = self.encoder.label_ids() if decision_examples else {}
        with Progress(
            f"{label}, {self.engine.name}", len(decision_examples) + len(answer_examples), "items"
        ) as progress:
            for example in decision_examples:
                prompt = self.encoder.supervised(example, "decision").prompt
                scored = self.engine.score(prompt, [[labels[each]] for each in DECISIONS])
                logits = {each: one[0].logprob for each, one in zip(DECISIONS, scored, strict=True)}
                prediction = max(logits, key=lambda each: logits[each])
                row = {"id": example.id, "reference": example.decision, "prediction": prediction, "logits": logits}
                keep("decision", row)
                progress.advance()
            for example in answer_examples:
                item = self.encoder.supervised(example, "answer")
                text = item.target if item.answer_cut else item.target[:-1]
                nll = -sum(one.logprob for one in self.engine.score(item.prompt, [text])[0])
                answer_bytes = len(example.answer.strip().encode())
                size = scored_bytes(self.engine.tokenizer, item) if item.answer_cut else answer_bytes
                keep("likelihood", {"id": example.id, "nll": nll, "tokens": len(text), "bytes": size})
                progress.advance()

    def write(self, examples: Sequence[Example], task: Task, max_new_tokens: int, label: str, keep: KeepText) -> None:
        """Generate the answers as the engine batches them."""
        prompts = [self.encoder.prompt(example, task) for example in examples]
        with Progress(f"{label}, {self.engine.name}", len(prompts), "answers") as progress:
            requests = [GenerationRequest(item.prompt, max_new_tokens) for item in prompts]
            for number, answer in generate_all(self.engine, requests):
                keep(prompts[number].id, answer.text.strip(), prompts[number].left_out)
                progress.advance()
