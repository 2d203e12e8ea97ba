"""Make the tables of docs/experiments: strategies, precision and memory, forgetting, pruning. Each row is one run.

    python benchmarks/tables.py --table strategies --output runs/tables
    python benchmarks/tables.py --table forgetting --output runs/tables --rows none ewc-100
    python benchmarks/tables.py --table pruning --output runs/tables --dry-run

Rows are measured on development data, because settings are chosen by them; the test questions aren't used. A row is
`meditune run quickstart` with the row's settings, in a separate process and in OUTPUT/ROW; rows that two tables share
run once. After an interruption, the same command resumes. If a row fails, its error is printed, and the other rows
continue. OUTPUT/TABLE.md is written after each row.

The untuned model is measured once (`meditune evaluate`, in OUTPUT/base...) for all rows that measure it alike. Its
predictions are copied into each run's folder before the run, which then doesn't compute them. Peaks are therefore
those of training for every row.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.errors import MedituneError
from meditune.evaluate.report.before_after import rows as metric_rows
from meditune.evaluate.report.formatting import duration

RECIPE = "quickstart"
MODEL = "smollm2-135m"
SHARED = (
    f"model.base={MODEL}",
    "evaluate.split=dev",
    "data.dev_share=0.3",
    "data.fallback_to_sample=false",
    "evaluate.answers=60",
    "evaluate.technical_tokens=10000",
)
FORGETTING = ("model.top_layers=null", "train.learning_rate=1e-3")
"""All layers and a high learning rate, because the quickstart itself forgets too little to measure prevention"""
MEASURED_BY = ("model.dtype", "model.attention", "model.quantize")
"""Keys that change the untuned model's results; rows that differ in them need separate base measurements"""


@dataclass(frozen=True)
class Row:
    """One line of a table: a run, or with `prune` a call of `meditune prune`."""

    title: str
    settings: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()
    gpu: bool = False
    """Whether the row needs a GPU"""


ROWS = {
    "lora": Row("LoRA, top 15 layers (quickstart)"),
    "lora-all": Row("LoRA, all layers", ("model.top_layers=null",)),
    "dora": Row("DoRA", ("model.strategy=dora",)),
    # With this alpha, rank 16 has LoRA's scale of 2; the scale then falls with the square root of the rank.
    "rslora": Row("rsLoRA, rank 64", ("model.strategy=rslora", "model.lora.r=64", "model.lora.alpha=8")),
    "ia3": Row("(IA)³, 5e-3", ("model.strategy=ia3", "train.learning_rate=5e-3")),
    "prefix": Row("prefix, 1e-2", ("model.strategy=prefix", "model.top_layers=null", "train.learning_rate=1e-2")),
    "prompt": Row("prompt, 3e-2", ("model.strategy=prompt", "model.top_layers=null", "train.learning_rate=3e-2")),
    "lora-nf4": Row("LoRA on NF4", ("model.quantize=nf4",)),
    "lora-int8": Row("LoRA on INT8", ("model.quantize=int8",)),
    "full": Row("full, 3e-5", ("model.strategy=full", "model.top_layers=null", "train.learning_rate=3e-5")),
    "full-top5": Row(
        "full, top 5 layers, 3e-5", ("model.strategy=full", "model.top_layers=5", "train.learning_rate=3e-5")
    ),
    "float32": Row("FP32", ("model.dtype=float32",)),
    "float16": Row("FP16", ("model.dtype=float16",), gpu=True),
    "checkpointing": Row("gradient checkpointing", ("train.gradient_checkpointing=true",)),
    "adamw8bit": Row("AdamW, 8 bits", ("train.optimizer=adamw8bit",)),
    "adafactor": Row("Adafactor", ("train.optimizer=adafactor",)),
    "full-adamw8bit": Row(
        "full, AdamW, 8 bits",
        ("model.strategy=full", "model.top_layers=null", "train.learning_rate=3e-5", "train.optimizer=adamw8bit"),
    ),
    "full-adafactor": Row(
        "full, Adafactor",
        ("model.strategy=full", "model.top_layers=null", "train.learning_rate=3e-5", "train.optimizer=adafactor"),
    ),
    "cosine": Row("cosine schedule", ("train.schedule=cosine",)),
    "constant": Row("constant schedule", ("train.schedule=constant",)),
    "sdpa": Row("PyTorch's attention", ("model.attention=sdpa",)),
    "none": Row("no protection", FORGETTING),
    "low-rate": Row("learning rate 1e-4", (FORGETTING[0], "train.learning_rate=1e-4")),
    "replay-general": Row(
        "replay, WikiText-2 valid.txt", (*FORGETTING, "train.replay.share=0.2", "train.replay.source=general")
    ),
    "replay-medical": Row("replay, MedQuAD", (*FORGETTING, "train.replay.share=0.2", "train.replay.source=medical")),
    "replay-self": Row("replay, self-written", (*FORGETTING, "train.replay.share=0.2", "train.replay.source=self")),
    # Strengths around the point at which an unrestrained run's penalty equals the gain from tuning, about one nat of
    # loss: after 42 such steps, half of the Fisher-weighted square of the change was 0.012, and half of the square 58.
    "ewc-100": Row("EWC, 100", (*FORGETTING, "train.ewc.strength=100", "train.replay.source=general")),
    "ewc-1000": Row("EWC, 1,000", (*FORGETTING, "train.ewc.strength=1000", "train.replay.source=general")),
    "l2-sp-1e-3": Row("L2-SP, 1e-3", (*FORGETTING, "train.l2_sp=1e-3")),
    "l2-sp-1e-2": Row("L2-SP, 1e-2", (*FORGETTING, "train.l2_sp=1e-2")),
    "prune-magnitude": Row("half of the weights by magnitude", prune=("--method", "magnitude", "--sparsity", "0.5")),
    "prune-wanda": Row("half of the weights by Wanda", prune=("--method", "wanda", "--sparsity", "0.5")),
    "prune-2-of-4": Row("two of four weights by Wanda", prune=("--method", "wanda", "--pattern", "2-of-4")),
    "prune-layers": Row("6 of 30 layers", prune=("--layers", "6")),
    "wanda-tuned": Row("half of the weights by Wanda, then tuned", ("model.prune.method=wanda",)),
    "layers-tuned": Row("6 of 30 layers removed, then tuned", ("model.prune={method: layers, layers: 6}",)),
}
TABLES = {
    "strategies": (
        *("lora", "lora-all", "dora", "rslora", "ia3", "prefix", "prompt"),
        *("lora-nf4", "lora-int8", "full", "full-top5"),
    ),
    "precision": (
        *("lora", "float32", "float16", "checkpointing", "sdpa", "adamw8bit", "adafactor", "cosine", "constant"),
        *("full", "full-adamw8bit", "full-adafactor"),
    ),
    "forgetting": (
        "none",
        "low-rate",
        "replay-general",
        "replay-medical",
        "replay-self",
        "ewc-100",
        "ewc-1000",
        "l2-sp-1e-3",
        "l2-sp-1e-2",
    ),
    "pruning": (
        *("prune-magnitude", "prune-wanda", "prune-2-of-4", "prune-layers"),
        *("lora", "wanda-tuned", "layers-tuned"),
    ),
}
METRICS = ("accuracy", "macro_f1", "perplexity", "rougeL", "general_perplexity", "technical_perplexity")


class FailedError(Exception):
    """Raised if a command of a row fails; the message names the command and the log of its output."""


def main() -> int:
    """Run the rows of a table, print it, and return 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/tables"), help="folder of the runs and the table")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these rows of the table, for example none ewc-100"
    )
    parser.add_argument(
        "--extra", action="append", default=[], metavar="KEY=VALUE", help="a recipe setting for every row"
    )
    parser.add_argument("--dry-run", action="store_true", help="check the settings and print the commands")
    options = parser.parse_args()
    names = [name for name in TABLES[options.table] if name in (options.rows or TABLES[options.table])]
    unknown = set(options.rows or ()) - set(names)
    if unknown:
        parser.error(
            f"table {options.table} has no row {', '.join(sorted(unknown))}. "
            f"Its rows are {', '.join(TABLES[options.table])}."
        )
    if not has_gpu():
        for name in [name for name in names if ROWS[name].gpu]:
            names.remove(name)
            print(f"{name}: skipped, because it needs a GPU.")
    jobs = [Job(name, ROWS[name], options.output, tuple(options.extra)) for name in names]
    for job in jobs:
        job.check()
    if options.dry_run:
        for job in jobs:
            print(f"# {job.name}", *(shlex.join(words) for words in job.commands()), sep="\n")
        return 0
    return measured(jobs, options.output / f"{options.table}.md")


def measured(jobs: Sequence[Job], table: Path) -> int:
    failed = 0
    for number, job in enumerate(jobs, 1):
        head = f"[{number}/{len(jobs)}] {job.name}"
        if job.is_done():
            print(f"{head}: already done", flush=True)
            continue
        print(f"{head}: running, output in {job.log}", flush=True)
        started = time.monotonic()
        try:
            job.run()
        except FailedError as error:
            failed += 1
            print(f"{head}: FAILED. {error}", flush=True)
        else:
            print(f"{head}: done in {duration(time.monotonic() - started)}", flush=True)
        table.write_text(markdown(jobs), encoding="utf-8")
    table.write_text(markdown(jobs), encoding="utf-8")
    print(f"\n{markdown(jobs)}\nTable: {table}")
    return int(failed > 0)


@dataclass(frozen=True)
class Job:
    """A row and the folder in which it runs."""

    name: str
    row: Row
    output: Path
    extra: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def log(self) -> Path:
        return self.output / f"{self.name}.log"

    @property
    def base(self) -> Path:
        """Return the folder of the untuned model's measurement for this row."""
        return self.output / "-".join(["base", *(word.partition("=")[2] for word in self.measured_by())])

    def measured_by(self) -> tuple[str, ...]:
        return tuple(word for word in self.row.settings if word.partition("=")[0] in MEASURED_BY)

    def settings(self) -> tuple[str, ...]:
        return (*SHARED, *self.row.settings, *self.extra)

    def recipe(self) -> Recipe:
        """Return the row's recipe. Raise RecipeError, which lists every problem of the settings."""
        return load_recipe(RECIPE, self.settings()).recipe

    def check(self) -> None:
        try:
            self.recipe()
        except MedituneError as error:
            raise SystemExit(f"{self.name}: {error}") from error

    def commands(self) -> Iterator[list[str]]:
        """Yield the commands in order; the run gets the base's predictions before the last one."""
        if self.row.prune:
            yield command("prune", MODEL, *self.row.prune, "--recipe", RECIPE, settings=self.settings(), to=self.folder)
            return
        base = (*SHARED, *self.measured_by(), *self.extra)
        yield command("evaluate", MODEL, "--recipe", RECIPE, settings=base, to=self.base)
        yield command("data", "prepare", RECIPE, settings=self.settings(), to=self.folder)
        yield command("run", RECIPE, settings=self.settings(), to=self.folder)

    def is_done(self) -> bool:
        """Return whether the row has a result with these settings; `meditune run` refuses other settings."""
        if self.row.prune:
            return False  # `meditune prune` recognizes its own finished work, and refuses that of other settings.
        if not (self.folder / "report.json").is_file():
            return False
        return load_recipe(str(self.folder / "recipe.yaml")).recipe == self.recipe()

    def run(self) -> None:
        """Run the row's commands. Raise FailedError if one fails."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        *before, last = self.commands()
        for words in before:
            call(words, self.log)
        if not self.row.prune:
            self.lend()
        call(last, self.log)

    def lend(self) -> None:
        """Copy the base's predictions to the run's folder, which uses them. Raise FailedError if the data differ."""
        theirs = json.loads((self.base / "evaluation.json").read_text(encoding="utf-8"))["data"]["sha256"]
        if f"# data sha256: {theirs}\n" not in (self.folder / "recipe.yaml").read_text(encoding="utf-8"):
            raise FailedError(
                f"{self.folder} and {self.base} hold different data. Remove both folders, and run this command again."
            )
        place = self.folder / "predictions"
        place.mkdir(exist_ok=True)
        for path in sorted((self.base / "predictions").glob("model-*.jsonl")):
            target = place / path.name.replace("model-", "base-", 1)
            if not target.exists():
                partial = place / f".{target.name}.{os.getpid()}.partial"
                shutil.copyfile(path, partial)
                partial.replace(target)

    def result(self) -> dict[str, Any] | None:
        """Return the content of report.json or pruning.json; None if the row isn't finished."""
        path = self.folder / ("pruning.json" if self.row.prune else "report.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def command(*words: str, settings: Sequence[str], to: Path) -> list[str]:
    options = [option for setting in settings for option in ("--set", setting)]
    return [sys.executable, "-m", "meditune", *words, *options, "--output", str(to)]


def call(words: Sequence[str], log: Path) -> None:
    """Run a command and append its output to `log`. Raise FailedError with the last line of the output."""
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        code = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise FailedError(f"`meditune {words[3]}` exited with code {code}: {last} The full output is in {log}.")


def has_gpu() -> bool:
    from meditune.hardware import gpu

    return gpu() is not None


def markdown(jobs: Sequence[Job]) -> str:
    """Return the tables of the runs and of the prunings, with data, machine and versions."""
    runs = [job for job in jobs if not job.row.prune]
    prunings = [job for job in jobs if job.row.prune]
    parts = [table for table in (run_table(runs), prune_table(prunings)) if table]
    return "\n\n".join(parts) + "\n"


HEAD = (
    *("setting", "accuracy", "macro-F1", "perplexity", "ROUGE-L", "general perplexity", "technical perplexity"),
    *("trained parameters", "training tokens/s", "peak GB", "training minutes"),
)


def run_table(jobs: Sequence[Job]) -> str:
    """Return a line for each run, with the base's metrics where they differ from those of the previous finished run."""
    lines, shown = [], None
    reports = [(job, job.result()) for job in jobs]
    for job, report in reports:
        if report is None:
            lines.append([job.row.title, "not finished", *[""] * (len(HEAD) - 2)])
            continue
        found = {row.metric.name: row for row in metric_rows(report) if row.compared}
        base = [found[name].base if name in found else "" for name in METRICS]
        before = ["" if base == shown or not figure else f"{figure} → " for figure in base]
        shown = base
        cells = [
            f"{figure}{found[name].tuned} {found[name].mark}" if name in found else "not measured"
            for name, figure in zip(METRICS, before, strict=True)
        ]
        training = report["training"]
        cells += [f"{training['trainable_parameters']:,}", f"{training['tokens_per_s']:,.0f}"]
        cells += [f"{training.get('peak_gpu_gb', training['peak_rss_gb']):.1f}", f"{training['wall_seconds'] / 60:.1f}"]
        lines.append([job.row.title, *cells])
    made = next((report for _, report in reports if report), None)
    return table(HEAD, lines, f"\n\n{made_with(made)}" if made else "") if jobs else ""


def made_with(report: dict[str, Any]) -> str:
    data, machine = report["data"], report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    texts = "".join(
        f"{kind} text of Python {edition['python']}, SHA-256 {edition['sha256'][:12]}; "
        for kind, edition in report.get("texts", {}).items()
    )
    return (
        f"{report['base_model']}, {data['train']} training examples, measured on {data['test_set']} with "
        f"{report['items']['answer']} answers, seed {report['seed']}, data {data['sha256'][:12]}; {texts}"
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores; {versions}."
    )


def prune_table(jobs: Sequence[Job]) -> str:
    """Return a line for each pruning, before → after."""
    found = [(job, job.result()) for job in jobs]
    texts = next((list(facts["perplexity"]["before"]) for _, facts in found if facts), [])
    head = [
        "pruned",
        *(f"perplexity, {text}" for text in texts),
        "layers",
        "parameters",
        "not zero, %",
        "MB",
        "tokens/s",
    ]
    lines = []
    for job, facts in found:
        if facts is None:
            lines.append([job.row.title, "not finished", *[""] * (len(head) - 2)])
            continue
        perplexity = [
            change({when: figures[text] for when, figures in facts["perplexity"].items()}, "{:.2f}".format)
            for text in texts
        ]
        lines.append(
            [
                job.row.title,
                *perplexity,
                change(facts["layers"], str),
                change(facts["parameters"], "{:,}".format),
                change(facts["nonzero_share"], lambda share: f"{100 * share:.1f}"),
                change(facts["bytes"], lambda size: f"{size / 1e6:,.0f}"),
                change(facts["tokens_per_s"], "{:,.0f}".format),
            ]
        )
    return table(head, lines) if jobs else ""


def change(figure: dict[str, Any], said: Callable[[Any], str]) -> str:
    before, after = said(figure["before"]), said(figure["after"])
    return before if before == after else f"{before} → {after}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], below: str = "") -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + below


if __name__ == "__main__":
    sys.exit(main())
