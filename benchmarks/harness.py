"""Compare Meditune's protocol lm-eval with lm-evaluation-harness: agreement of the answers, and speed.

    python -m venv lm-eval-venv && lm-eval-venv/bin/pip install lm-eval==0.4.13 torch transformers accelerate
    python benchmarks/harness.py --lm-eval-python lm-eval-venv/bin/python --json metrics.json
    python benchmarks/harness.py --suite medmcqa --items 100

Both score PubMedQA's official 500 test questions with the same model, number format and threads, or with --suite a
sample of a medical suite, by letters and by full options with the harness's prompts. Each side is a
separate process with the model loaded. The sides take turns on --piece items, so that drift of a shared machine affects
all alike. The timed part goes from texts to scores: tokenizing, the forward passes, choosing. `cpu` is CPU time, which
other programs on the machine disturb least; `wall` is wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TASKS = Path(__file__).resolve().parent.parent / "integrations" / "lm-eval"
FILE = "meditune_pubmedqa.jsonl"
CHOICES = ("yes", "no", "maybe")
Scorer = Callable[[list[int]], tuple[list[list[float]], float, float]]


def main() -> None:
    """Measure both sides and print agreement and speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name or folder")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--batch", nargs="+", default=["1", "4", "8"], help="batch sizes of the harness, or auto")
    parser.add_argument("--suite", choices=("medqa", "medmcqa", "mmlu-medical"), help="a suite instead of PubMedQA")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--piece", type=int, default=50, help="number of items in a turn")
    parser.add_argument(
        "--timed", type=int, default=500, help="number of items that every batch size except the first scores"
    )
    parser.add_argument("--lm-eval-python", default=sys.executable, help="interpreter that has lm-eval")
    parser.add_argument("--json", type=Path, help="also write all metrics and scores to this file")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measure all number formats one after the other."""
    found: dict[str, Any] = {"command": sys.argv[1:], "model": options.model, "formats": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = suite_rows(folder, options) if options.suite else exported(folder, options.items)
        for dtype in options.dtypes:
            sides = ["meditune", *(f"lm-eval-{size}" for size in options.batch)]
            results = turns(sides, dtype, folder, len(rows), options)
            found["formats"][dtype] = {side: told(result, rows) for side, result in results.items()}
            show(dtype, results, rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def exported(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the first `count` official test items, and write them to `folder` as the file that the task reads."""
    from meditune.config.load_recipe import load_recipe
    from meditune.data.prepare import prepare

    sys.path.insert(0, str(TASKS))
    from export import rows as rows_of

    prepare(load_recipe("quickstart").recipe, folder / "data")
    rows = rows_of(folder, "test")[:count]
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def suite_rows(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a sample of a suite's items, and write them to `folder` as examples."""
    from meditune.config.recipe import SuiteSpec
    from meditune.data.readers.tables import Rejects
    from meditune.evaluate.suites.load_suites import read_suite
    from meditune.evaluate.suites.suite_readers import CORRECT

    items = read_suite(SuiteSpec(name=options.suite, limit=options.items), 17, Rejects())[0]
    (folder / FILE).write_text("".join(f"{item.model_dump_json()}\n" for item in items), encoding="utf-8")
    return [{"right": item.meta[CORRECT]} for item in items]


def turns(
    sides: list[str], dtype: str, folder: Path, count: int, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Return every side's scores and seconds, from processes that take turns."""
    workers = {side: started(side, dtype, folder, options) for side in sides}
    results: dict[str, dict[str, Any]] = {side: {"scores": [], "cpu": 0.0, "wall": 0.0} for side in sides}
    for first in range(0, count, options.piece):
        piece = list(range(first, min(first + options.piece, count)))
        for side in sides:
            if side not in sides[:2] and first >= options.timed:
                continue
            answer = asked(workers[side], piece)
            results[side]["scores"] += answer["scores"]
            for clock in ("cpu", "wall"):
                results[side][clock] += answer[clock]
            print(f"{dtype} {side} {piece[-1] + 1}/{count}", file=sys.stderr, flush=True)
    for worker in workers.values():
        assert worker.stdin
        worker.stdin.close()
        worker.wait()
    return results


def started(side: str, dtype: str, folder: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Return a side's process after a warm-up."""
    from meditune.models.load import locate

    python = options.lm_eval_python if side != "meditune" else sys.executable
    place = locate(options.model)
    away = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    worker = subprocess.Popen(
        [python, str(Path(__file__).resolve()), "--worker", side, place, dtype, str(TASKS), options.suite or ""],
        cwd=folder,
        env=os.environ | away,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    asked(worker, [0, 1])  # warm
    return worker


def asked(worker: subprocess.Popen[str], piece: list[int]) -> dict[str, Any]:
    """Return a process's scores for these items."""
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(json.dumps(piece) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith('{"scores"'):
            answer: dict[str, Any] = json.loads(line)
            return answer
    sys.exit(f"{' '.join(map(str, worker.args))} ended early. Its error is printed above.")  # type: ignore[union-attr, arg-type]


def work(side: str, place: str, dtype: str, tasks: str, suite: str) -> None:
    """Read lists of item numbers from standard input, a line each, and print scores and seconds."""
    batch = side.split("-")[-1]
    if suite:
        scorer = _suite_by_meditune(place, dtype, suite) if side == "meditune" else _suite(place, dtype, batch)
    else:
        scorer = _meditune(place, dtype) if side == "meditune" else _harness(place, dtype, batch, tasks)
    for line in sys.stdin:
        scores, cpu, wall = scorer(json.loads(line))
        print(json.dumps({"scores": scores, "cpu": cpu, "wall": wall}), flush=True)


def _meditune(place: str, dtype: str) -> Scorer:
    from meditune.config.training_options import ModelSpec
    from meditune.data.example import Example, Passage
    from meditune.evaluate import likelihood
    from meditune.models.load import load

    loaded = load(place, ModelSpec.model_validate({"base": place, "dtype": dtype}))
    rows = [json.loads(line) for line in Path(FILE).read_text(encoding="utf-8").splitlines()]
    examples = [
        Example(
            id=row["id"],
            source="pubmedqa",
            question=row["QUESTION"],
            context=tuple(Passage(text=text) for text in row["CONTEXTS"]),
            decision=row["final_decision"],
            group=row["id"],
        )
        for row in rows
    ]

    def score(piece: list[int]) -> tuple[list[list[float]], float, float]:
        with _Clocks() as clocks:
            chosen = [examples[index] for index in piece]
            made = list(likelihood.decisions(loaded, chosen, None, "Scoring"))
        return [[row["logits"][choice] for choice in CHOICES] for row in made], clocks.cpu, clocks.wall

    return score


def _harness(place: str, dtype: str, batch: str, tasks: str) -> Scorer:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    size = int(batch) if batch.isdigit() else batch
    model = HFLM(pretrained=place, dtype=dtype, batch_size=size, device="cpu")
    manager = TaskManager(include_path=tasks)
    clocks = _Clocks()
    plain = model.loglikelihood

    def timed(*arguments: Any, **more: Any) -> Any:
        with clocks:
            return plain(*arguments, **more)

    model.loglikelihood = timed
    name = "meditune_pubmedqa"

    def score(piece: list[int]) -> tuple[list[list[float]], float, float]:
        found = lm_eval.simple_evaluate(
            model=model, tasks=[name], task_manager=manager, samples={name: piece}, bootstrap_iters=0
        )
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        assert [sample["doc_id"] for sample in samples] == piece
        return (
            [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples],
            clocks.cpu,
            clocks.wall,
        )

    return score


def _suite_items() -> list[Any]:
    from meditune.data.example import Example

    return [Example.model_validate_json(line) for line in Path(FILE).read_text(encoding="utf-8").splitlines()]


def _suite_by_meditune(place: str, dtype: str, suite: Any) -> Scorer:
    from meditune.config.data_options import PromptFormat
    from meditune.config.training_options import ModelSpec
    from meditune.evaluate.predictions import suite_kind
    from meditune.evaluate.suites.multiple_choice_scoring import score_suite
    from meditune.models.load import load

    loaded = load(place, ModelSpec.model_validate({"base": place, "dtype": dtype}))
    items, encoder = _suite_items(), loaded.encoder(PromptFormat())

    def score(piece: list[int]) -> tuple[list[list[float]], float, float]:
        with _Clocks() as clocks:
            chosen = [items[index] for index in piece]
            made = list(score_suite(loaded, encoder, suite_kind(suite), chosen, None, "Scoring"))
        return [[*row["letters"], *row["options"]] for row in made], clocks.cpu, clocks.wall

    return score


def _suite(place: str, dtype: str, batch: str) -> Scorer:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from meditune.data.example import CHOICES as OPTIONS
    from meditune.evaluate.suites.multiple_choice_scoring import letters_prompt, options_prompt

    model = HFLM(pretrained=place, dtype=dtype, batch_size=int(batch) if batch.isdigit() else batch, device="cpu")
    items = _suite_items()

    def score(piece: list[int]) -> tuple[list[list[float]], float, float]:
        with _Clocks() as clocks:
            found: list[list[float]] = [[] for _ in piece]
            # The harness scores each task by itself: first all letters, then all options.
            for is_by_letter in (True, False):
                asked, owners = [], []
                for owner, item in enumerate(items[index] for index in piece):
                    options = item.meta[OPTIONS]
                    prompt = letters_prompt(item) if is_by_letter else options_prompt(item)
                    for text in "ABCD"[: len(options)] if is_by_letter else options:
                        asked.append(Instance("loglikelihood", {}, (prompt, f" {text}"), len(asked)))
                        owners.append(owner)
                for owner, (likelihood, _) in zip(owners, model.loglikelihood(asked, disable_tqdm=True), strict=True):
                    found[owner].append(float(likelihood))
        return found, clocks.cpu, clocks.wall

    return score


class _Clocks:
    """A context manager that measures CPU and wall-clock seconds."""

    cpu = wall = 0.0

    def __enter__(self) -> _Clocks:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self._cpu, time.perf_counter() - self._wall


def choices(result: dict[str, Any]) -> Iterator[int]:
    """Return the choice for each item, in a suite by letters; of equal scores the first wins, as in the harness."""
    parts = (scores[: len(scores) // 2] if len(scores) > len(CHOICES) else scores for scores in result["scores"])
    return (scores.index(max(scores)) for scores in parts)


def told(result: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one side's scores with its metrics."""
    right = sum(chosen == _right(row) for chosen, row in zip(choices(result), rows, strict=False))
    items = len(result["scores"])
    return result | {"items": items, "accuracy": 100 * right / items}


def _right(row: dict[str, Any]) -> int:
    return row["right"] if "right" in row else CHOICES.index(row["final_decision"])


def show(dtype: str, results: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Print a table of one number format."""
    ours = results["meditune"]
    print(f"\n{dtype}: side, accuracy, agreement, largest difference of log-likelihoods, ties, items/s, ratio")
    for side, result in results.items():
        facts = told(result, rows)
        items = facts["items"]
        pairs = list(zip(ours["scores"], result["scores"], strict=False))
        same = sum(one == other for one, other in zip(choices(ours), choices(result), strict=False))
        apart = max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
        ties = sum(scores.count(max(scores)) > 1 for scores in result["scores"])
        speeds, ratios = [], []
        for clock in ("cpu", "wall"):
            speed = items / result[clock]
            speeds.append(f"{speed:.2f} ({clock})")
            ratios.append(f"{len(ours['scores']) / ours[clock] / speed:.2f} ({clock})")
        print(f"{side:<14} {facts['accuracy']:5.1f}  {same}/{items}  {apart:.1e}  {ties:3}  {speeds}  {ratios}")


if __name__ == "__main__":
    main()
