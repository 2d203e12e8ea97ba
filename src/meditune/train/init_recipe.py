"""Write a recipe for a data file and a machine: inspect both, choose settings, and explain the choices in comments.

The settings come from the shipped recipe for the kind of machine (laptop, gpu-8gb, gpu-24gb, gpu-80gb). Settings that
depend on the data are derived here: columns, lengths, sizes of the splits, and number of epochs.
"""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from meditune.config.data_options import DataSpec, PromptFormat, SourceSpec
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.config.recipe_keys import flow
from meditune.config.training_options import ModelSpec
from meditune.data.example import DECISIONS, LABEL, Example
from meditune.data.readers import conversations, user_files
from meditune.data.readers.tables import LAYOUTS, Rejects, Row, rows
from meditune.data.sources import locate_own
from meditune.errors import DataError, RecipeError
from meditune.files import cache_folder, replace_file
from meditune.models.catalogue import CATALOGUE
from meditune.models.load import offline_reason, refuse_unreadable
from meditune.progress import clock
from meditune.train.machine_speed import Target, target_of
from meditune.train.resource_plan import Estimate, Measuring, config_of, estimate

MACHINES = {"laptop": None, "gpu-8gb": "rtx3070", "gpu-24gb": "rtx4090", "gpu-80gb": "a100-80gb"}
"""Shipped recipe for a kind of machine -> the GPU to predict for, if the recipe isn't for this machine; None: a CPU"""
MAX_ROW_TOKENS = {"laptop": 768, "gpu-8gb": 2048, "gpu-24gb": 4096, "gpu-80gb": 8192}
"""Shipped recipe for a kind of machine -> the maximum of prompt.max_tokens"""
SMALLER_BASES = ("qwen3-1.7b", "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m")
"""Bases for a GPU, in order of preference, if the recipe's own base doesn't fit or can't be downloaded"""
SECONDS_ON_CPU = 2 * 3600
"""Maximum seconds of training on a CPU; if training would take longer, a smaller base is chosen, then fewer rows"""
MAX_ROWS = 20_000  # maximum number of rows that are read
MAX_COUNTED = 2000  # maximum number of rows whose tokens a tokenizer counts
SECONDS_OF_WRITING = 600  # writing the answers of both models may always take this long
MIN_ANSWERS, MIN_WRITTEN = 20, 64  # to save time, at least this many answers of this many tokens are written
BYTES_PER_TOKEN = 3.6
"""Cautious estimate; PubMedQA's abstracts have a mean of 4.3 bytes per token in SmolLM2's and Qwen2.5's tokenizers"""
CUES = 24  # tokens that a prompt has in addition to the row's own texts
TEST_ITEMS = 500
"""Maximum size of test set and dev set; with 500 decisions, the 95% interval of an accuracy is about ±4 points"""
MIN_ROWS = 20
MIN_CONTEXT = 30  # mean characters of a column of contexts; columns of categories, such as evidence_level, have fewer
CONVERSATION = (
    "After an optional system message, a conversation must begin with the user; then the assistant and the user take "
    'turns: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}. '
    "Correct or add rows."
)


@dataclass(frozen=True)
class DataFacts:
    """The content of a data file."""

    path: Path
    kind: Literal["questions", "claims", "conversations"]
    fields: dict[str, str]  # field -> column, for the columns that the reader doesn't recognize by name
    rows: int  # number of usable rows among the rows that were read
    total: int  # number of usable rows in the file, estimated if it has more than MAX_ROWS rows
    answers: int
    contexts: int
    decisions: Counter[str]  # number of each decision, or of each claim label
    lengths: list[tuple[int, int]]  # tokens of each row, and of its answer; 0 without an answer
    rejected: list[str]  # why rows can't be used, most frequent reason first
    examples: list[Example]
    tokenizer: str = ""  # the base whose tokenizer counted the tokens; empty: estimated from the number of bytes

    @property
    def row_tokens(self) -> list[int]:
        """The tokens of each row, in ascending order."""
        return sorted(row for row, _ in self.lengths)

    @property
    def answer_tokens(self) -> list[int]:
        """The tokens of each answer, in ascending order."""
        return sorted(answer for _, answer in self.lengths if answer)

    @property
    def counted(self) -> str:
        """How many rows were counted, if the file has more, such as "2,000 counted rows"; else an empty text."""
        return f"{len(self.lengths):,} counted rows" if len(self.lengths) < self.total else ""

    @property
    def has_dialogues(self) -> bool:
        """Return True if a conversation has turns before its last question."""
        return any(turn.role == "assistant" for example in self.examples for turn in example.turns or ())

    def mean_tokens(self, most: int) -> float:
        """Return the mean number of tokens of a row, of which at most `most` are read."""
        return sum(min(row, most) for row, _ in self.lengths) / len(self.lengths)

    def fitting_answers(self, form: PromptFormat) -> float:
        """Return the share of the answers that aren't cut: what precedes an answer leaves it at least its own room.

        Without answers, nothing is cut, and the share is 1.
        """
        room = form.answer_tokens
        fits = [answer <= max(room, form.max_tokens - row + answer) for row, answer in self.lengths if answer]
        return sum(fits) / len(fits) if fits else 1.0

    def counted_by(self, base: str) -> DataFacts:
        """Return the facts with tokens that the base's tokenizer counted, if it is on this machine.

        Of more than MAX_COUNTED rows, only an evenly spaced sample is counted.
        """
        entry = CATALOGUE[base]
        if not entry.is_downloaded:
            return self
        from transformers import AutoTokenizer

        place = cache_folder("models") / base if entry.package else entry.hub_id
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError):
            return self

        def count(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else 0

        rows = len(self.examples)
        size = min(rows, MAX_COUNTED)
        sample = [self.examples[number * rows // size] for number in range(size)]
        return replace(self, lengths=_lengths(sample, count), tokenizer=base)

    def summary(self) -> list[str]:
        """Return the facts as sentences."""
        about = "about " if self.total > self.rows else ""
        has = [f"{self.answers:,} with an answer"] if self.kind == "questions" and self.answers else []
        labels = ", ".join(f"{name} {count:,}" for name, count in self.decisions.most_common())
        if labels:
            has.append(
                f"{self.decisions.total():,} with a {'label' if self.kind == 'claims' else 'decision'} ({labels})"
            )
        if self.kind == "questions" and self.contexts:
            has.append(f"{self.contexts:,} with a context")
        some = f". Of the first {self.rows:,}: " if about else ": "
        by = f"counted by the tokenizer of {self.tokenizer}"
        counted = by if self.tokenizer else "estimated from the number of bytes"
        found = f"{about}{self.total:,} {self.kind}{some if has else ''}{', '.join(has)}."
        lengths = [_at(self.row_tokens, share) for share in (0.5, 0.95, 1.0)]
        half, longest = "half of the rows", "the longest row"
        if self.counted:
            counted += f" in {len(self.lengths):,} of {about}{self.total:,} rows"
            half, longest = "half of these rows", "the longest of them"
        columns = ", ".join(f"{column} is the {field}" for field, column in self.fields.items())
        return [
            found[0].upper() + found[1:],
            *([f"Columns: {columns}. To choose others, add --field FIELD=COLUMN."] if columns else []),
            f"Tokens per row, {counted}: {half} have at most {lengths[0]:,}, 95% have at most {lengths[1]:,}, and "
            f"{longest} has {lengths[2]:,}.",
            *(f"Rows that can't be used: {reason}." for reason in self.rejected),
        ]


def inspect_data(path: Path, fields: Mapping[str, str] | None = None) -> DataFacts:
    """Return facts about a data file from its first MAX_ROWS rows. Raises DataError if the file can't be used."""
    if not path.exists():
        raise DataError(f"{path}: no such file. Specify a CSV, TSV, JSON, JSON Lines or Parquet file.")
    rejects = Rejects()
    reader = rows(path, user_files.SOURCE, rejects)
    found = list(itertools.islice(reader, MAX_ROWS))
    total = _total(path, found, reader) if len(found) == MAX_ROWS else len(found)
    fields = dict(fields or {}) or _further_columns(found)
    try:
        examples = list(user_files.from_rows(found, rejects, fields=fields, name=path.stem, place=str(path)))
    except DataError as error:
        if not found:
            raise
        raise DataError(f"{error} Specify the columns with --field question=COLUMN --field answer=COLUMN.") from error
    places = rejects.places(1)
    rejected = [
        f"{count:,} ({reason}; the first is {place[0]})"
        for reason, count in rejects.counts().get(user_files.SOURCE, {}).items()
        if (place := places.get((user_files.SOURCE, reason)))
    ]
    if len(examples) < MIN_ROWS:
        why = f" Rows that can't be used: {'; '.join(rejected)}." if rejected else ""
        columns = user_files.column_names(row for _, row in found)
        if conversations.holds_conversations(columns, fields, (), is_plain=False):
            advice = CONVERSATION
        else:
            advice = "Correct or add rows, or specify the right columns: --field answer=COLUMN."
        raise DataError(
            f"{path} has {len(examples)} usable rows, but training and testing need at least {MIN_ROWS}.{why} {advice}"
        )
    is_claim = LABEL in examples[0].meta
    return DataFacts(
        path=path,
        kind="claims" if is_claim else "conversations" if examples[0].turns is not None else "questions",
        fields=fields,
        rows=len(examples),
        total=round(total * len(examples) / len(found)),
        answers=sum(bool(example.answer) for example in examples),
        contexts=sum(bool(example.context) for example in examples),
        decisions=Counter(
            str(example.meta[LABEL]) if is_claim else str(example.decision)
            for example in examples
            if is_claim or example.decision
        ),
        lengths=_lengths(examples, _tokens),
        rejected=rejected[:3],
        examples=examples,
    )


def _total(path: Path, found: Sequence[Row], reader: Iterable[Row]) -> int:
    """Return the total number of rows in a file after its first rows were read; estimated for line-based formats."""
    kind = path.suffix.lower()
    if kind == ".json":
        return len(found) + sum(1 for _ in reader)
    if kind == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    with path.open("rb") as stream:
        lines = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return max(len(found), round(len(found) * lines / int(found[-1][0].rpartition(":")[2])))


def own_rows(spec: DataSpec) -> tuple[int, int] | None:
    """Return the numbers of training and test examples if all sources are files of the user's own, or None.

    The numbers are calculated from the files' rows, including rows that quality control will drop. For files with more
    than MAX_ROWS rows, the number of rows is estimated. Raises DataError if a file can't be read.
    """
    train = test = 0.0
    for source in spec.sources:
        if not source.is_own or not source.path:
            return None
        try:
            path = Path(locate_own(source.path, source.citation))
        except DataError:  # a plan can be made before the file is on this machine
            return None
        if not path.is_file():
            return None
        reader = rows(path, user_files.SOURCE, Rejects())
        found = list(itertools.islice(reader, MAX_ROWS))
        total = _total(path, found, reader) if len(found) == MAX_ROWS else len(found)
        total = min(total, source.limit or total)
        tested = spec.test_share if source.split is None else float(source.split == "test")
        developed = spec.dev_share if source.split is None else float(source.split == "dev")
        test += total * tested
        train += total * (1 - tested) * (1 - developed)
    return max(1, round(train)), max(1, round(test))


_WORDS = {
    "decision": r"decision|verdict|conclusion|label|outcome",
    "answer": r"answer|response|reply",
    "context": r"context|passage|abstract|evidence",
    "question": r"question|query|prompt",
}


def _further_columns(found: Sequence[Row]) -> dict[str, str]:
    """Return field -> column for columns that no reader recognizes by name.

    Columns are recognized by a word in their name. A column of decisions contains only decisions, and a column of
    contexts long texts; without an answer, the only column that contains only decisions is recognized without a name.
    """
    names = list(dict.fromkeys(str(column) for _, row in found for column in row))
    lower = {name.lower() for name in names}
    if {*LAYOUTS["claims"].guesses["claim"], *LAYOUTS["conversations"].guesses["messages"], "instruction"} & lower:
        return {}
    known = set(itertools.chain(*LAYOUTS["questions"].guesses.values()))
    chosen: dict[str, str] = {}
    for field, words in _WORDS.items():
        if lower & set(LAYOUTS["questions"].guesses[field]):
            continue
        free = [name for name in names if name.lower() not in known and name not in chosen.values()]
        fitting = [name for name in free if re.search(words, name, re.IGNORECASE)]
        if field == "decision":
            cells = {name: {user_files.cell(row.get(name)).lower() for _, row in found} - {""} for name in free}
            deciding = [name for name, values in cells.items() if len(values) > 1 and values <= set(DECISIONS)]
            fitting = [name for name in fitting if name in deciding]
            others = lower - {name.lower() for name in deciding}
            answers = LAYOUTS["questions"].guesses["answer"]
            if not fitting and not any(name in answers or re.search(_WORDS["answer"], name) for name in others):
                fitting = deciding
            fitting = fitting if len(fitting) == 1 else []
        if field == "context":
            fitting = [name for name in fitting if _mean_length(found, name) >= MIN_CONTEXT]
        if fitting:
            # Choose the column with the longest texts, so that question_type isn't mistaken for the question.
            chosen[field] = max(fitting, key=lambda name: _mean_length(found, name))
    return chosen


def _mean_length(found: Sequence[Row], name: str) -> float:
    """Return the mean number of characters of a column's cells in the first rows."""
    cells = [str(row.get(name) or "") for _, row in found[:200]]
    return sum(map(len, cells)) / len(cells)


def _tokens(text: str) -> int:
    return max(1, round(len(text.encode()) / BYTES_PER_TOKEN)) if text else 0


def _lengths(examples: Iterable[Example], count: Callable[[str], int]) -> list[tuple[int, int]]:
    """Return the tokens of each example, and of its answer."""
    lengths = []
    for example in examples:
        texts = [example.question, example.context_text, *(turn.text for turn in example.turns or ())]
        answer = count(example.answer)
        lengths.append((CUES + sum(map(count, texts)) + answer, answer))
    return lengths


def _at(values: Sequence[int], share: float) -> int:
    """Return the quantile at `share` of values in ascending order."""
    return values[min(len(values) - 1, int(share * len(values)))]


def machine_recipe(target: Target) -> str:
    """Return the name of the shipped recipe for this kind of machine."""
    if target.device == "cpu":
        return "laptop"
    return "gpu-80gb" if target.memory_gb >= 70 else "gpu-24gb" if target.memory_gb >= 22 else "gpu-8gb"


@dataclass(frozen=True)
class Initial:
    """A recipe for a data file and a machine."""

    recipe: Recipe
    machine: str  # the recipe that the machine's settings come from
    target: Target
    data: DataFacts
    prediction: Estimate
    seconds: float  # predicted time of training
    measuring: Measuring  # predicted time of measuring the base, and again of measuring the tuned model
    limit: int | None  # number of rows to use, if training on all rows would take too long
    passed_over: list[str]  # why better bases weren't chosen


def choose(data: DataFacts, machine: str | None = None) -> Initial:
    """Return a recipe for the data and for this machine, or for another kind of machine (a key of MACHINES).

    Raises RecipeError if none of the base models that are available here fits into the machine's memory.
    """
    if machine is not None and machine not in MACHINES:
        raise RecipeError(f"--machine: unknown kind of machine {machine!r}. Choose from {', '.join(MACHINES)}.")
    gpu = MACHINES[machine] if machine else None
    target = target_of(ModelSpec(), gpu)
    if machine is not None and (target.device == "cpu") != (gpu is None):
        raise RecipeError("--machine laptop: this machine has a GPU. Leave --machine out, or choose a kind with a GPU.")
    machine = machine or machine_recipe(target)
    own = load_recipe(machine).recipe.model.base
    candidates = [(machine, own), *((machine, base) for base in SMALLER_BASES if base != own)]
    if target.device == "cpu":
        candidates = [(machine, own), ("quickstart", load_recipe("quickstart").recipe.model.base)]
    passed_over: list[str] = []
    ways: list[str] = []
    for number, (shipped, base) in enumerate(candidates):
        entry = CATALOGUE[base]
        if offline_reason() and not entry.is_downloaded:
            passed_over.append(f"{base} isn't on this machine, and {offline_reason()} forbids downloads")
            ways.append(f"Unset {offline_reason()} to download a model.")
            continue
        counted = data.counted_by(base)
        recipe = _for_data(load_recipe(shipped).recipe, base, counted, machine)
        config = config_of(recipe.model)
        refuse_unreadable(base, config, recipe.prompt, recipe)
        prediction = estimate(recipe, config, target)
        if prediction.verdict == "no":
            passed_over.append(f"{base} would need {prediction.memory.total / 1e9:.1f} GB")
            ways.append("Free some memory, or choose another machine with --machine.")
            continue
        seconds = _training_seconds(recipe, counted, prediction)
        is_slow = target.device == "cpu" and seconds > SECONDS_ON_CPU
        if is_slow and number + 1 < len(candidates):
            passed_over.append(f"{base} would train for {clock(seconds)}")
            continue
        limit = None
        if is_slow:
            limit, recipe = _limited(load_recipe(shipped).recipe, base, counted, machine, prediction)
            seconds = _training_seconds(recipe, replace(counted, total=limit), prediction)
        recipe, measuring = _measured_in_time(recipe, counted, prediction, limit or data.total, seconds)
        return Initial(recipe, machine, target, counted, prediction, seconds, measuring, limit, passed_over)
    raise RecipeError(
        f"No base model can be trained on {target.name} with {target.memory_gb:.1f} GB of free memory: "
        f"{'; '.join(passed_over)}. {' '.join(dict.fromkeys(ways))}"
    )


def _for_data(shipped: Recipe, base: str, data: DataFacts, machine: str) -> Recipe:
    """Return the shipped recipe with this base, and with settings that are derived from the data."""
    longest = _round_up(max(128, _at(data.row_tokens, 0.98)), 64, MAX_ROW_TOKENS[machine])
    answer = _round_up(_at(data.answer_tokens, 0.95) if data.answer_tokens else 32, 16, longest // 2)
    tests, devs = (min(most, max(0.0001, round(TEST_ITEMS / data.total, 4))) for most in (0.2, 0.1))
    train_rows = data.total * (1 - tests)
    epochs = 3.0 if train_rows <= 2000 else 2.0 if train_rows <= 20_000 else 1.0
    # Use the largest of these batch sizes that gives at least a hundred steps, or 4 if none of them does.
    sizes = [size for size in (4, 8, 16) if size <= shipped.train.batch_size and train_rows * epochs / size >= 100]
    both = data.kind == "questions" and bool(data.decisions) and bool(data.answers)
    rare = min(data.decisions.values(), default=0) < 0.2 * data.decisions.total()
    changes: dict[str, dict[str, Any]] = {
        "model": {"base": base},
        "data": {
            "sources": [SourceSpec(name=user_files.SOURCE, path=str(data.path), fields=data.fields)],
            "quality": type(shipped.data.quality)(),
            "fallback_to_sample": False,
            "test_share": tests,
            "dev_share": devs,
        },
        "prompt": {
            "max_tokens": longest,
            "answer_tokens": max(32, answer),
            "context_head": shipped.prompt.context_head if data.contexts and data.kind == "questions" else 0.0,
        },
        "train": {
            "tasks": ["claim"] if data.kind == "claims" else ["decision", "answer"],
            "batch_size": max(sizes, default=4),
            "accumulation": 1,
            "epochs": epochs,
            "decision_share": shipped.train.decision_share if both else None,
            "class_balance": shipped.train.class_balance if rare else 0.0,
            "end_weight": 1.0,  # the shipped value was chosen for the length of PubMedQA's conclusions
        },
        "evaluate": {"max_new_tokens": max(32, min(answer, 256 if machine == "laptop" else 512))},
    }
    groups = {name: getattr(shipped, name).model_copy(update=values) for name, values in changes.items()}
    name = re.sub(r"[^\w.-]+", "-", data.path.stem).strip("-.") or "own"
    return shipped.model_copy(update={"name": name, "description": f"{base} tuned on {data.path.name}.", **groups})


def _round_up(value: float, step: int, most: int) -> int:
    return min(most, -(-int(value) // step) * step)


def _training_seconds(recipe: Recipe, data: DataFacts, prediction: Estimate) -> float:
    share = (1 - recipe.data.test_share) * (1 - recipe.data.dev_share)
    mean = data.mean_tokens(recipe.prompt.max_tokens)
    return prediction.seconds(round(data.total * share * recipe.train.epochs * mean))


def _limited(shipped: Recipe, base: str, data: DataFacts, machine: str, prediction: Estimate) -> tuple[int, Recipe]:
    """Return the size of a sample that trains in SECONDS_ON_CPU, and the recipe for a file with that many rows."""

    def sample(rows: int) -> tuple[Recipe, DataFacts]:
        part = replace(data, total=rows)
        return _for_data(shipped, base, part, machine), part

    sizes = range(MIN_ROWS, data.total)
    longer = bisect_right(sizes, SECONDS_ON_CPU, key=lambda rows: int(_training_seconds(*sample(rows), prediction)))
    limit = MIN_ROWS + max(0, longer - 1)
    recipe, _ = sample(limit)
    sources = [recipe.data.sources[0].model_copy(update={"limit": limit})]
    return limit, recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": sources})})


def _measured_in_time(
    recipe: Recipe, data: DataFacts, prediction: Estimate, rows: int, seconds: float
) -> tuple[Recipe, Measuring]:
    """Return the recipe and the time of measuring a model.

    If writing the answers of both models would take longer than training and than SECONDS_OF_WRITING, fewer answers
    are written, and then shorter ones.
    """
    items = round(rows * recipe.data.test_share)
    answers = round(items * data.answers / data.rows)
    spec = recipe.evaluate
    mean = data.mean_tokens(recipe.prompt.max_tokens)
    while True:
        measuring = prediction.measuring(recipe, items, mean, answers)
        count, length = min(spec.answers or answers, answers), spec.max_new_tokens
        if 2 * measuring.writing <= max(seconds, SECONDS_OF_WRITING) or (
            count <= MIN_ANSWERS and length <= MIN_WRITTEN
        ):
            return recipe, measuring
        if count > MIN_ANSWERS:
            spec = spec.model_copy(update={"answers": max(MIN_ANSWERS, count * 3 // 4)})
        else:
            spec = spec.model_copy(update={"max_new_tokens": max(MIN_WRITTEN, length * 3 // 4)})
        recipe = recipe.model_copy(update={"evaluate": spec})


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise RecipeError if `output` is a folder, or exists and may not be overwritten."""
    if output.is_dir():
        raise RecipeError(f"--output: {output} is a folder. Specify a file, such as --output {output / 'recipe.yaml'}.")
    if output.exists() and not overwrite:
        raise RecipeError(f"{output} already exists. Choose another --output, or add --force to overwrite it.")


def write(initial: Initial, output: Path) -> None:
    """Write the recipe, with the reasons for its settings as comments."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as stream:
        stream.writelines(f"{line}\n" for line in _text(initial, output))


def summary(initial: Initial) -> list[str]:
    """Return sentences about the data, the machine, and the choices."""
    recipe, memory = initial.recipe, initial.prediction.memory.total / 1e9
    free = "GB of free memory" if initial.target.device == "cpu" else "GB"
    return [
        *initial.data.summary(),
        f"Machine: {initial.target.name}, {initial.target.memory_gb:.1f} {free}; settings from the recipe "
        f"{initial.machine}.",
        *(f"Not chosen: {reason}." for reason in initial.passed_over),
        f"Base model: {recipe.model.base}, {CATALOGUE[recipe.model.base].title}. Memory for training: {memory:.1f} GB.",
        f"Predicted time of `meditune run`: {clock(initial.seconds + 2 * initial.measuring.total)}, of which "
        f"training: {clock(initial.seconds)}, evaluating the base model: {clock(initial.measuring.total)} "
        f"({clock(initial.measuring.writing)} of it for writing answers), and the tuned model: the same again. "
        f"{initial.target.rough}",
    ]


def next_steps(initial: Initial, output: Path) -> list[str]:
    """Return the commands to run next."""
    recipe, run = shlex.quote(str(output)), shlex.quote(f"runs/{initial.recipe.name}")
    return [
        f"meditune data audit {shlex.quote(str(initial.data.path))} --output {run}-audit",
        f"meditune run {recipe} --output {run}",
    ]


def _text(initial: Initial, output: Path) -> Iterable[str]:
    about = ["Written by `meditune init`. Every key can be changed: docs/reference/recipes.md lists all keys."]
    for line in about + summary(initial):
        yield from (f"# {part}" for part in textwrap.wrap(line, 110, break_long_words=False, break_on_hyphens=False))
    yield from ("# Check the data, then train and evaluate:", *(f"#   {line}" for line in next_steps(initial, output)))
    shown: list[str] = []
    for key, value, comment in _options(initial):
        *groups, name = key.split(".")
        for depth, group in enumerate(groups):
            if shown[: depth + 1] != groups[: depth + 1]:
                yield from ("", f"{group}:") if not depth else (f"{'  ' * depth}{group}:",)
        shown, indent = groups, "  " * len(groups)
        if comment:
            yield f"{indent}# {comment}"
        yield f"{indent}{name}: {flow(value)}"


def _options(initial: Initial) -> Iterable[tuple[str, Any, str]]:
    """Yield each key that the recipe sets, with its value and a comment."""
    recipe, data = initial.recipe, initial.data
    model, form, spec = recipe.model, recipe.prompt, recipe.train
    (source,), tests, devs = recipe.data.sources, recipe.data.test_share, recipe.data.dev_share
    yield from (("name", recipe.name, ""), ("description", recipe.description, ""), ("model.base", model.base, ""))
    if model.quantize != "none":
        needs = "The frozen base is stored in 4 bits, which needs bitsandbytes: pip install --editable '.[quantized]'"
        yield "model.quantize", model.quantize, needs
    if model.top_layers:
        once = "The layers below have the same output in every epoch, so their output is computed only once."
        yield "model.top_layers", model.top_layers, once
    yield "model.lora.r", model.lora.r, ""
    smallest = source.limit == MIN_ROWS
    size = "the smallest sample" if smallest else f"size of a sample that trains in about {clock(SECONDS_ON_CPU)}"
    sample = f"limit: {size}; a faster machine needs no limit."
    columns = "fields: field of an example -> your column." if source.fields else ""
    yield "data.sources", [source.model_dump(exclude_defaults=True)], sample if source.limit else columns
    items = round(data.total * tests)
    wide = f"About {items} test items; the 95% interval of an accuracy is about ±{100 / items**0.5:.0f} points."
    if source.limit or data.total * 0.2 > TEST_ITEMS:
        yield "data.dev_share", devs, f"About {TEST_ITEMS} test and dev items each, or fewer from a small sample."
        wide = ""
    yield "data.test_share", tests, wide
    yield "data.phi.action", "report", "Personal identifiers are only counted; mask replaces them with placeholders."
    yield "prompt.max_tokens", form.max_tokens, _long_rows(initial)
    if form.context_head:
        ends = "If a context is shortened, this share of its tokens is taken from its beginning, the rest from its end."
        yield "prompt.context_head", form.context_head, ends
    fits, counted = "", f" in {data.counted}" if data.counted else ""
    if data.answer_tokens:
        share = data.fitting_answers(form)
        many, cut = ("all answers", "") if share == 1 else (f"{share:.0%} of the answers", "; the others are cut")
        fits = f"Minimum room for an answer. A shorter prompt leaves more room, so {many}{counted} fit{cut}."
    yield "prompt.answer_tokens", form.answer_tokens, fits
    if data.kind == "claims":
        yield "train.tasks", ["claim"], ""
    read = (source.limit or data.total) * (1 - tests) * (1 - devs)
    steps = f"About {read * spec.epochs / spec.batch_size:,.0f} steps; an epoch has {read:,.0f} training rows."
    yield from (("train.batch_size", spec.batch_size, steps), ("train.accumulation", spec.accumulation, ""))
    yield "train.epochs", spec.epochs, ""
    compare = "To compare other values, add --set evaluate.split=dev; keep the test set for the final result."
    yield "train.learning_rate", spec.learning_rate, compare
    if spec.average_last:
        yield "train.average_last", spec.average_last, "The weights of this last share of the steps are averaged."
    if spec.decision_share:
        few = "A decision has few tokens, so without their own share of the loss, decisions are hardly learnt."
        yield "train.decision_share", spec.decision_share, few
    if spec.class_balance:
        rarest, count = data.decisions.most_common()[-1]
        rare = f"Rare decisions get a higher weight: {count / data.decisions.total():.0%} of decisions are {rarest}."
        yield "train.class_balance", spec.class_balance, rare
    spoken, items = recipe.evaluate, round((source.limit or data.total) * tests * data.answers / data.rows)
    if spoken.answers != EvaluateSpec().answers:
        fewer = (
            f"Number of test answers to measure, out of about {items}, so that writing doesn't take longer than "
            "training."
        )
        yield "evaluate.answers", spoken.answers, fewer
    enough = sum(count <= spoken.max_new_tokens for count in data.answer_tokens) / max(1, len(data.answer_tokens))
    ends = " Writing takes long, so longer answers end here." if enough < 1 else ""
    long = f"Long enough for {enough:.0%} of the answers{counted}.{ends}"
    yield "evaluate.max_new_tokens", spoken.max_new_tokens, long if data.answer_tokens else ""


def _long_rows(initial: Initial) -> str:
    """Return a comment about the rows that are longer than prompt.max_tokens."""
    data, form = initial.data, initial.recipe.prompt
    rows = data.counted or "rows"
    longer = sum(count > form.max_tokens for count in data.row_tokens) / len(data.row_tokens)
    if not longer:
        return f"Long enough for all {rows}."
    what = "earliest turns" if data.has_dialogues else "context" if data.contexts else ""
    cut = 100 - round(100 * data.fitting_answers(form)) if data.answers else 0
    ends = f"{cut}% of the answers are cut" if cut else ""
    if what:
        return f"{longer:.0%} of the {rows} are longer and lose part of their {what}{f'; {ends}' if ends else ''}."
    return f"{longer:.0%} of the {rows} are longer: {ends or 'they are shortened'}. A higher value trains more slowly."
