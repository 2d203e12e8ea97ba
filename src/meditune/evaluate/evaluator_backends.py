"""Measuring a model behind an API: decisions and answers, each kept as it comes, so that none is paid for twice.

Measuring a model as it is served: an exported one, by the engine that runs it.

The items, files and fields are those of `evaluate.stage.Measuring`. What is measured is what a served model is asked:
decisions by the likelihood of their words, the perplexity of given answers, and what it writes. Forgetting, general
knowledge and samples are measured on the model that was exported.
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
from meditune.evaluate.evaluator import chosen_answers, decided_on, refuse_no_repeat, under_conditions
from meditune.evaluate.likelihood import scored_bytes
from meditune.evaluate.predictions import ANSWER, AnswerKind, DecisionKind, Kind, answer_row, once, path_of, written_row
from meditune.files import read_jsonl, write_jsonl
from meditune.models.api_client import ApiError, ApiModel, Chat, Client, of_chat
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, Encoded, Encoder, chat_messages

GRACE_SECONDS = 20.0
"""So long a stopped measurement waits for the answers that are under way, because they are paid for."""

Asked = DecisionKind | AnswerKind | Literal["safety"]
WRITTEN: tuple[Asked, ...] = ("answer", *ANSWER.values(), "safety")
"""Asked for as written answers, not as decisions"""
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
    """Measures API models on the same items with the same prompt, and remembers on disk what is done.

    The items, files and fields are those of `evaluate.stage.Measuring`, but for what an API doesn't tell: no likelihood
    of given text, hence neither perplexity nor forgetting. Found passages are all shown. While a kind is being
    measured, its rows lie in `NAME-KIND.jsonl.begun`.
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
                "doesn't tell. Take meditune."
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
        """Whether the words of decisions are read, too."""
        return self.spec.written_decisions and "decision" in self.items

    def is_done(self, name: str) -> bool:
        """Whether every kind of prediction of this model is stored already."""
        kinds: list[Kind] = [*self.items, *(("written",) if self._written else ())]
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def tokens(self, model: ApiModel, form: PromptFormat) -> tuple[int, int]:
        """Estimated tokens that one measurement reads, and writes at most.

        Raises DataError where an item is longer than the model takes.
        """
        read = written = 0
        for kind, items in self.items.items():
            task: Task = "answer" if kind in WRITTEN else "decision"
            room = DECISION_TOKENS if task == "decision" else self.spec.max_new_tokens
            for example in items:
                length = of_chat(chat_messages(form, example, task, model.system))
                if length + room > model.spec.context_tokens:
                    raise DataError(
                        f"{example.id}: the question with its sources has about {length:,} tokens, and with "
                        f"{room} for the answer that is more than model.api.context_tokens={model.spec.context_tokens}."
                    )
                read, written = read + length, written + room
        return read, written

    def measure(self, client: Client, model: ApiModel, form: PromptFormat, name: str) -> None:
        """Ask for what isn't there yet."""
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
        """What the words say that came with the decisions; nothing is asked for again."""
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
            there = f"{len(rows)} of {len(items)} are there"
            print(f"Going on with the {TITLES[kind]} of {name}: {there}.", file=sys.stderr)
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
    """Ask for every item, so many at once, and keep each row as it comes.

    The first refusal ends it. Where it ends early, what is under way is still waited for and kept: by the threads that
    ask, because a stop by the user strikes this one anywhere.
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
                print("\nWaiting for the answers that are under way; ctrl-C again leaves them.", file=sys.stderr)
            changed.wait_for(lambda: under_way == 0, GRACE_SECONDS)
        raise
    pool.shutdown()
    if refused:
        raise refused[0]


def _kept(path: Path) -> dict[str, Row]:
    """Rows of a measurement that was stopped; a line that was cut off is left out, and the file mended."""
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
            f"{by_word} of {len(rows)} {title} of {name} rest on the word that was written, because the API told no "
            "likelihoods; the calibration error can't be measured.",
            file=sys.stderr,
        )
    unclear = sum(row["prediction"] is None for row in rows)
    if unclear:
        print(f"{unclear} of {len(rows)} {title} of {name} are none of yes, no and maybe: wrong.", file=sys.stderr)


class EngineEvaluator:
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
        self.messages = safety_battery.chosen_messages(recipe.evaluate.safety_messages, recipe.seed)

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
            for number, whole in generate_all(engine, [GenerationRequest(item.prompt, more) for item in prompts]):
                written[prompts[number].id] = whole.text.strip()
                progress.advance()
        return written
