"""The evaluator's back ends for models that aren't loaded in this process: models in an engine or behind an API.

With an engine, only decisions by likelihood, the perplexity of given answers, and written answers can be measured;
everything else is measured on the model before export. An API doesn't return the likelihood of given text, and the
prompts sent to it always contain all retrieved passages.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from meditune.config.data_options import PromptFormat, Task
from meditune.config.recipe import Recipe
from meditune.data.example import DECISIONS, Example
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.errors import DataError
from meditune.evaluate.evaluator import WRITTEN, Backend, Evaluator, KeepScore, KeepText, Row
from meditune.evaluate.predictions import decided_row
from meditune.models.api_client import ApiError, ApiModel, Chat, Client, of_chat
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, Encoder, chat_messages

GRACE_SECONDS = 20.0
"""How long a stopped evaluation waits for pending answers, which must be paid for in any case"""


class EngineBackend(Backend):
    """A model in an engine, with prompts in the format `form`.

    The engine scores up to `concurrency` items at the same time; this pays for a server, which batches them.
    """

    def __init__(self, engine: Engine, form: PromptFormat, concurrency: int = 1) -> None:
        self.engine, self.encoder, self.concurrency = engine, Encoder(engine.tokenizer, form), concurrency

    def accepted(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See Backend."""
        return self.encoder.accepted(examples)

    def decidable(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See Backend."""
        return self.encoder.fitting(examples, "decision")

    def score(
        self, decision_examples: Sequence[Example], answer_examples: Sequence[Example], label: str, keep: KeepScore
    ) -> None:
        """Score decisions and answers."""
        from meditune.evaluate.likelihood import scored_bytes

        labels = self.encoder.label_ids() if decision_examples else {}

        def decide(example: Example) -> Row:
            prompt = self.encoder.supervised(example, "decision").prompt
            scored = self.engine.score(prompt, [[labels[each]] for each in DECISIONS])
            logits: dict[str, float] = {each: one[0].logprob for each, one in zip(DECISIONS, scored, strict=True)}
            return decided_row(example.id, example.decision, logits)

        def measure(example: Example) -> Row:
            item = self.encoder.supervised(example, "answer")
            text = item.target if item.answer_cut else item.target[:-1]
            nll = -sum(one.logprob for one in self.engine.score(item.prompt, [text])[0])
            answer_bytes = len(example.answer.strip().encode())
            size = scored_bytes(self.engine.tokenizer, item) if item.answer_cut else answer_bytes
            return {"id": example.id, "nll": nll, "tokens": len(text), "bytes": size}

        count = len(decision_examples) + len(answer_examples)
        with Progress(f"{label}, {self.engine.name}", count, "items") as progress:
            pool = ThreadPoolExecutor(self.concurrency)
            try:
                for row in pool.map(decide, decision_examples):
                    keep("decision", row)
                    progress.advance()
                for row in pool.map(measure, answer_examples):
                    keep("likelihood", row)
                    progress.advance()
            finally:
                pool.shutdown(cancel_futures=True)

    def write(self, examples: Sequence[Example], task: Task, max_new_tokens: int, label: str, keep: KeepText) -> None:
        """Generate the answers in batches that the engine chooses."""
        prompts = [self.encoder.prompt(example, task) for example in examples]
        with Progress(f"{label}, {self.engine.name}", len(prompts), "answers") as progress:
            requests = [GenerationRequest(item.prompt, max_new_tokens) for item in prompts]
            for number, answer in generate_all(self.engine, requests):
                keep(prompts[number].id, answer.text.strip(), prompts[number].left_out)
                progress.advance()


class ApiBackend(Backend):
    """A model behind an API, with prompts in the format `form`."""

    def __init__(self, client: Client, model: ApiModel, form: PromptFormat, recipe: Recipe) -> None:
        self.client, self.model, self.form = client, model, form
        self.chat = Chat(client, model.name)
        self.keeps_text = recipe.evaluate.written_decisions

    def score(
        self, decision_examples: Sequence[Example], answer_examples: Sequence[Example], label: str, keep: KeepScore
    ) -> None:
        """Request the decisions."""
        assert not answer_examples, "an API returns no likelihoods of given text"

        def decide(example: Example) -> Callable[[], None]:
            found = self.chat.decide(chat_messages(self.form, example, "decision", self.model.system))
            row: dict[str, Any] = {"id": example.id, "reference": example.decision, "prediction": found.prediction}
            row |= {"logits": found.logits, "by": "likelihood"} if found.logits else {"by": "word"}
            return lambda: keep("decision", row | ({"text": found.text} if self.keeps_text else {}))

        request_all(self.client, decide, decision_examples, label, "decisions")

    def write(self, examples: Sequence[Example], task: Task, max_new_tokens: int, label: str, keep: KeepText) -> None:
        """Request the answers."""

        def write(example: Example) -> Callable[[], None]:
            text = self.chat.write(chat_messages(self.form, example, task, self.model.system), max_new_tokens)
            return lambda: keep(example.id, text, 0)

        request_all(self.client, write, examples, label, "answers")


def request_all(
    client: Client, ask: Callable[[Any], Callable[[], None]], items: Sequence[Any], label: str, unit: str
) -> None:
    """Call `ask` on several items concurrently, and call the functions that `ask` returns one at a time.

    The first error stops the run. Pending answers are then awaited. The worker threads store the answers, because an
    interrupt by the user can stop this thread at any point.
    """
    changed = threading.Condition()
    pending = 0
    refused: list[ApiError] = []
    stopped = client.stopped

    def work(item: Any) -> None:
        nonlocal pending
        with changed:
            if stopped.is_set():
                return
            pending += 1
        try:
            store = ask(item)
            with changed:
                store()
                progress.advance()
        except ApiError as error:
            stopped.set()
            refused.append(ApiError(f"{item.id}: {error}", error.status, error.reason))
        except BaseException:
            stopped.set()
            raise
        finally:
            with changed:
                pending -= 1
                changed.notify_all()

    with Progress(label, len(items), unit) as progress:
        pool = ThreadPoolExecutor(client.concurrency)
        try:
            for future in [pool.submit(copy_context().run, work, item) for item in items]:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            with changed:
                if pending:
                    print("\nWaiting for pending answers; press ctrl-C again to abandon them.", file=sys.stderr)
                changed.wait_for(lambda: pending == 0, GRACE_SECONDS)
            raise
        pool.shutdown()
    if refused:
        raise refused[0]


def estimate_tokens(evaluator: Evaluator, model: ApiModel, form: PromptFormat, limit: int) -> tuple[int, int, int]:
    """Return the number of requests of one evaluation, their estimated input tokens, and their maximum output tokens.

    Raises DataError if an item exceeds the model's context of `limit` tokens.
    """
    requests = read = written = 0
    for kind, items in evaluator.items.items():
        if kind == "written":
            continue  # these are the texts of the decisions and need no requests of their own
        task: Task = "answer" if kind in WRITTEN else "decision"
        room = DECISION_TOKENS if task == "decision" else evaluator.answer_tokens(kind)
        for example in items:
            length = of_chat(chat_messages(form, example, task, model.system))
            if length + room > limit:
                raise DataError(
                    f"{example.id}: the question with its sources has about {length:,} tokens. With {room} tokens "
                    f"for the answer, the request exceeds model.api.context_tokens={limit}."
                )
            requests, read, written = requests + 1, read + length, written + room
    return requests, read, written
