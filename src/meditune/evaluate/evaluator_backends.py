"""Evaluation of models behind an API and of exported models in an engine.

Items, files and fields are those of `evaluate.evaluator.Evaluator`. Rows from an API are stored as they arrive, so that
no request is paid for twice.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from meditune.config.data_options import PromptFormat, Task
from meditune.config.recipe import Recipe
from meditune.data.example import DECISIONS, Example
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.errors import DataError
from meditune.evaluate import safety_battery
from meditune.evaluate.evaluation_items import chosen_answers, decided_on, refuse_no_repeat, under_conditions
from meditune.evaluate.predictions import ANSWER, AnswerKind, DecisionKind, Kind, answer_row, once, path_of, written_row
from meditune.files import read_jsonl, write_jsonl
from meditune.models.api_client import ApiError, ApiModel, Chat, Client, of_chat
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, Encoded, Encoder, chat_messages

GRACE_SECONDS = 20.0
"""Time that a stopped evaluation waits for pending answers, because they are paid for"""

Asked = DecisionKind | AnswerKind | Literal["safety"]
WRITTEN: tuple[Asked, ...] = ("answer", *ANSWER.values(), "safety")
"""Kinds that need written answers, not decisions"""
TITLES: dict[Asked, str] = {
    "decision": "decisions",
    "dev_decision": "dev decisions",
    "closed": "closed-book decisions",
    "retrieved": "decisions with retrieved passages",
    "answer": "answers",
    "closed_answer": "closed-book answers",
    "retrieved_answer": "answers with retrieved passages",
    "safety": "answers to the safety battery",
}

Row = dict[str, Any]


class ApiEvaluator:
    """An evaluator of API models on the same items with the same prompt, which stores predictions on disk.

    An API doesn't return the likelihood of given text, so perplexity and forgetting aren't measured. The prompt always
    contains all retrieved passages. Until a kind is complete, its rows are in `NAME-KIND.jsonl.begun`.
    """

    def __init__(
        self,
        recipe: Recipe,
        examples: Sequence[Example],
        folder: Path,
        dev: Sequence[Example] = (),
        found: Sequence[Example] = (),
    ) -> None:
        if recipe.evaluate.protocol != "meditune":
            raise DataError(
                f"evaluate.protocol {recipe.evaluate.protocol} needs the likelihood of given text, which an API "
                "doesn't return. Set evaluate.protocol to meditune."
            )
        if examples:
            refuse_no_repeat(recipe.evaluate)
        self.spec, self.folder = recipe.evaluate, folder
        self.messages = {
            each.id: each for each in safety_battery.chosen_messages(recipe.evaluate.safety_messages, recipe.seed)
        }
        answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
        self.items: dict[Asked, list[Example]] = {}
        for kind, decided in decided_on(examples, dev, recipe.evaluate, found).items():
            self.items[kind] = decided
        if answered:
            self.items["answer"] = answered
        for condition, shown in under_conditions(answered, recipe.evaluate, found).items():
            self.items[ANSWER[condition]] = shown
        if self.messages:
            self.items["safety"] = [message.example() for message in self.messages.values()]

    @property
    def _written(self) -> bool:
        """Return True if the text of decisions is also evaluated."""
        return self.spec.written_decisions and "decision" in self.items

    def is_done(self, name: str) -> bool:
        """Return True if every kind of prediction of this model is stored."""
        kinds: list[Kind] = [*self.items, *(("written",) if self._written else ())]
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def tokens(self, model: ApiModel, form: PromptFormat) -> tuple[int, int]:
        """Return the estimated number of input tokens of one evaluation, and the maximum number of output tokens.

        Raises DataError if an item exceeds the model's context.
        """
        read = written = 0
        for kind, items in self.items.items():
            task: Task = "answer" if kind in WRITTEN else "decision"
            room = DECISION_TOKENS if task == "decision" else self.spec.max_new_tokens
            for example in items:
                length = of_chat(chat_messages(form, example, task, model.system))
                if length + room > model.spec.context_tokens:
                    raise DataError(
                        f"{example.id}: the question with its sources has about {length:,} tokens. With {room} tokens "
                        f"for the answer, it exceeds model.api.context_tokens={model.spec.context_tokens}."
                    )
                read, written = read + length, written + room
        return read, written

    def measure(self, client: Client, model: ApiModel, form: PromptFormat, name: str) -> None:
        """Request and store the predictions that don't exist yet."""
        chat = Chat(client, model.name)

        def decide(example: Example) -> Row:
            decided = chat.decide(chat_messages(form, example, "decision", model.system))
            row: Row = {"id": example.id, "reference": example.decision, "prediction": decided.prediction}
            row |= {"logits": decided.logits, "by": "likelihood"} if decided.logits else {"by": "word"}
            return row | ({"text": decided.text} if self._written else {})

        def write(example: Example) -> Row:
            text = chat.write(chat_messages(form, example, "answer", model.system), self.spec.max_new_tokens)
            return answer_row(example, text)

        def reply(example: Example) -> Row:
            text = chat.write(chat_messages(form, example, "answer", model.system), self.spec.max_new_tokens)
            return self.messages[example.id].row(text)

        ask: dict[Asked, Callable[[Example], Row]] = {**dict.fromkeys(WRITTEN, write), "safety": reply}
        for kind in self.items:
            self._once(client, model, name, kind, ask.get(kind, decide))
        if self._written:
            once(self.folder, name, "written", lambda: self._decisions_in_words(name))

    def _decisions_in_words(self, name: str) -> list[Row]:
        """Return the written decisions from the stored decisions' text, without new requests."""
        decisions = read_jsonl(path_of(self.folder, name, "decision"))
        return [written_row(row["id"], row["reference"], row["text"]) for row in decisions]

    def _once(self, client: Client, model: ApiModel, name: str, kind: Asked, ask: Callable[[Example], Row]) -> None:
        path, items = path_of(self.folder, name, kind), self.items[kind]
        if path.is_file():
            return
        begun = path.with_name(f"{path.name}.begun")
        rows = _kept(begun)
        left = [example for example in items if example.id not in rows]
        if rows and left:
            there = f"{len(rows)} of {len(items)} are done"
            print(f"Resuming the {TITLES[kind]} of {name}: {there}.", file=sys.stderr)
        with Progress(f"{TITLES[kind].capitalize()} of {name}", len(left), TITLES[kind]) as progress:

            def keep(row: Row) -> None:
                begun.parent.mkdir(parents=True, exist_ok=True)
                with begun.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows[row["id"]] = row
                progress.advance()

            _spread(ask, left, model.spec.concurrency, client, keep)
        if kind not in WRITTEN:
            _say_how_decided(TITLES[kind], name, list(rows.values()))
        write_jsonl(path, (rows[example.id] for example in items))
        begun.unlink(missing_ok=True)


def _spread(
    ask: Callable[[Example], Row], items: Sequence[Example], workers: int, client: Client, keep: Callable[[Row], None]
) -> None:
    """Request every item, `workers` at a time, and store each row when it arrives.

    The first error ends the run. Pending requests are still awaited and stored by the worker threads, because an
    interrupt by the user can stop this thread at any point.
    """
    changed = threading.Condition()
    under_way = 0
    refused: list[ApiError] = []

    def work(example: Example) -> None:
        nonlocal under_way
        with changed:
            if client.stopped.is_set():
                return
            under_way += 1
        try:
            row = ask(example)
            with changed:
                keep(row)
        except ApiError as error:
            client.stopped.set()
            refused.append(ApiError(f"{example.id}: {error}", error.status, error.said))
        except BaseException:
            client.stopped.set()
            raise
        finally:
            with changed:
                under_way -= 1
                changed.notify_all()

    pool = ThreadPoolExecutor(workers)
    try:
        for future in [pool.submit(work, example) for example in items]:
            future.result()
    except BaseException:
        client.stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        with changed:
            if under_way:
                print("\nWaiting for pending answers; press ctrl-C again to abandon them.", file=sys.stderr)
            changed.wait_for(lambda: under_way == 0, GRACE_SECONDS)
        raise
    pool.shutdown()
    if refused:
        raise refused[0]


def _kept(path: Path) -> dict[str, Row]:
    """Return the rows of an interrupted evaluation, and repair the file by removing a truncated line."""
    if not path.is_file():
        return {}
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    write_jsonl(path, rows.values())
    return rows


def _say_how_decided(title: str, name: str, rows: Sequence[Row]) -> None:
    by_word = sum(row.get("by") == "word" for row in rows)
    if by_word:
        print(
            f"{by_word} of {len(rows)} {title} of {name} are based on the written word, because the API returned no "
            "likelihoods; the calibration error can't be measured.",
            file=sys.stderr,
        )
    unclear = sum(row["prediction"] is None for row in rows)
    if unclear:
        print(
            f"{unclear} of {len(rows)} {title} of {name} are neither yes, no nor maybe, and count as wrong.",
            file=sys.stderr,
        )


class EngineEvaluator:
    """An evaluator of an exported model in its engine, which stores predictions on disk.

    It measures decisions by likelihood, the perplexity of given answers, and written answers. Forgetting, general
    knowledge and samples are measured on the model before export.
    """

    def __init__(self, recipe: Recipe, examples: Sequence[Example], folder: Path, dev: Sequence[Example] = ()) -> None:
        if recipe.evaluate.protocol != "meditune":
            raise DataError(
                "An exported model can be evaluated only with evaluate.protocol meditune. For the lm-eval protocol, "
                "evaluate the model that it was exported from, or point lm-eval to `meditune serve`."
            )
        refuse_no_repeat(recipe.evaluate)
        self.spec, self.folder = recipe.evaluate, folder
        self.conditions = decided_on(examples, dev, recipe.evaluate)
        self.answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
        self.messages = safety_battery.chosen_messages(recipe.evaluate.safety_messages, recipe.seed)

    def is_done(self, name: str) -> bool:
        """Return True if every kind of prediction of this model is stored."""
        kinds: list[Kind] = [*self.conditions]
        kinds += ["written"] if self._written else []
        kinds += ["likelihood", "answer"] if self.answered else []
        kinds += ["safety"] if self.messages else []
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def measure(self, engine: Engine, form: PromptFormat, name: str) -> None:
        """Compute and store the predictions that don't exist yet."""
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
        from meditune.evaluate.likelihood import scored_bytes

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
        texts = self._wrote(engine, prompts, DECISION_TOKENS, f"Written decisions of {name}")
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
        """Return the engine's greedy answer to each prompt, by the prompt's id."""
        written: dict[str, str] = {}
        with Progress(f"{label}, {engine.name}", len(prompts), "answers") as progress:
            for number, whole in generate_all(engine, [GenerationRequest(item.prompt, more) for item in prompts]):
                written[prompts[number].id] = whole.text.strip()
                progress.advance()
        return written
