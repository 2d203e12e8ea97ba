"""`meditune init` looks at a file and a machine, and writes a recipe that runs."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from meditune.config.load_recipe import load_recipe
from meditune.errors import RecipeError
from meditune.train import init_recipe
from meditune.train.init_recipe import choose, inspect_data
from meditune.train.machine_speed import Target
from meditune.train.resource_plan import Estimate, Memory
from tests import tiny
from tests.commands import Bench, meditune

LAPTOP = Target("a laptop", 16.0, 1e12, "cpu", torch.bfloat16, "assumed")
SLOW = Target("a slow laptop", 16.0, 2e9, "cpu", torch.bfloat16, "assumed")
SMALL_GPU = Target("a card", 8.0, 40e12, "cuda", torch.bfloat16, "assumed")
BASES = ("qwen2.5-coder-0.5b", "smollm2-135m")


@pytest.fixture(scope="module")
def place(place: Bench) -> Bench:
    """A machine without a network, on which two bases are."""
    for name in BASES:
        folder = Path(place.environment["MEDITUNE_CACHE"]) / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
    return place


def pairs(path: Path, count: int = 60, names: tuple[str, ...] = ("question", "answer", "context", "verdict")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(names)
        for number in range(count):
            decision = "maybe" if number % 10 == 0 else "yes" if number % 2 else "no"
            context = f"Study {number} followed {number + 50} patients for a year. " * 3
            table.writerow([f"Does drug {number} help?", f"Drug {number} helped {number} patients.", context, decision])
    return path


def test_the_written_recipe_is_the_chosen_one_and_runs(
    place: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: LAPTOP)
    data, output = pairs(tmp_path / "my pairs.csv"), tmp_path / "new" / "mine.yaml"
    done = meditune("init", data, "--output", output).ok()
    assert "60 questions: 60 with an answer, 60 with a decision" in done.out
    assert "Machine: a laptop, 16.0 GB of free memory; settings from the recipe laptop." in done.out
    recipe = load_recipe(str(output)).recipe
    assert recipe == choose(inspect_data(data)).recipe
    assert recipe.model.base == "qwen2.5-coder-0.5b"
    assert recipe.data.sources[0].fields == {"decision": "verdict"}
    assert (recipe.train.batch_size, recipe.train.decision_share, recipe.train.class_balance) == (4, 0.8, 0.9)
    assert 128 <= recipe.prompt.max_tokens <= 256
    assert "# Rare decisions get a higher weight: 10% of decisions are maybe." in output.read_text(encoding="utf-8")

    meditune("init", data, "--output", output).refused(2, "already exists", "--force")
    meditune("init", data, "--output", output, "--force").ok()
    small = {"model.base": place.base, "model.top_layers": "null", "train.epochs": 1, "evaluate.max_new_tokens": 8}
    small |= {"evaluate.choices": 8, "evaluate.resamples": 100, "evaluate.similarity": "false"}
    words = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    meditune("run", output, "--output", place.folder / "mine", *words).ok()
    assert (place.folder / "mine" / "report.html").is_file()


@pytest.mark.usefixtures("place")
def test_a_slow_machine_gets_a_smaller_base_and_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: SLOW)
    data, output = pairs(tmp_path / "pairs.csv", 400), tmp_path / "mine.yaml"
    initial = choose(inspect_data(data))
    assert initial.recipe.model.base == "smollm2-135m"
    assert "qwen2.5-coder-0.5b would train for" in initial.passed_over[0]
    init_recipe.write(initial, output)
    recipe = load_recipe(str(output)).recipe
    assert recipe == initial.recipe
    assert recipe.data.sources[0].limit is not None
    assert 20 <= recipe.data.sources[0].limit < 400


def prediction(speed: float) -> Estimate:
    return Estimate("lora", "none", 1, 2, Memory(1, 1, 1, 1), speed, "fits", 1024, False, 5000.0, 0.1, 0.001, 10_000)


def test_a_sample_trains_for_as_long_as_its_comment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: SLOW)
    monkeypatch.setattr(init_recipe, "estimate", lambda *_: prediction(speed=20.0))
    data = replace(inspect_data(pairs(tmp_path / "pairs.csv", 400)), total=25_000)
    initial = choose(data)
    assert initial.limit is not None
    init_recipe.write(initial, tmp_path / "mine.yaml")
    recipe = initial.recipe
    train_rows = initial.limit * (1 - recipe.data.test_share) * (1 - recipe.data.dev_share)
    tokens = train_rows * recipe.train.epochs * initial.data.mean_tokens(recipe.prompt.max_tokens)
    assert initial.prediction.seconds(round(tokens)) == pytest.approx(init_recipe.SECONDS_ON_CPU, rel=0.01)
    assert recipe.train.epochs == 3
    assert "evaluate.answers" not in (tmp_path / "mine.yaml").read_text(encoding="utf-8")


def test_huge_files_keep_test_and_dev_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_recipe, "estimate", lambda *_: prediction(speed=50_000.0))
    initial = choose(replace(inspect_data(pairs(tmp_path / "pairs.csv", 400)), total=20_000_000), "gpu-80gb")
    assert initial.recipe.data.test_share == initial.recipe.data.dev_share == 0.0001
    init_recipe.write(initial, tmp_path / "mine.yaml")
    assert load_recipe(str(tmp_path / "mine.yaml")).recipe == initial.recipe


def long_answers(path: Path, count: int = 60) -> Path:
    """Half of the answers have about 1,900 tokens, which is more than a row may have on a laptop."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer"])
        for number in range(count):
            table.writerow([f"What is disease {number}?", "It is common. " * (500 if number % 2 else 20)])
    return path


@pytest.mark.usefixtures("place")
def test_the_evaluation_is_predicted_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = long_answers(tmp_path / "pairs.csv", 400), tmp_path / "mine.yaml"
    written = {}
    for seconds in (0.001, 0.2):
        slow = replace(LAPTOP, layer_seconds=seconds)
        monkeypatch.setattr(init_recipe, "target_of", lambda *_, slow=slow: slow)
        done = meditune("init", data, "--output", output, "--force").ok()
        assert "Predicted time of `meditune run`" in done.out
        assert "evaluating the base model" in done.out
        written[seconds] = load_recipe(str(output)).recipe.evaluate, choose(inspect_data(data))
    fast, slow = (written[seconds][0] for seconds in (0.001, 0.2))
    assert (fast.answers, fast.max_new_tokens) == (200, 256)
    assert slow.answers == 20
    assert slow.max_new_tokens < 256
    assert "# Number of test answers to measure, out of about 80" in output.read_text(encoding="utf-8")
    initial = written[0.2][1]
    allowed = max(initial.seconds, init_recipe.SECONDS_OF_WRITING)
    assert 2 * initial.measuring.writing <= allowed or slow.max_new_tokens == init_recipe.MIN_WRITTEN


@pytest.mark.usefixtures("place")
def test_comments_say_how_many_answers_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: LAPTOP)
    output = tmp_path / "mine.yaml"
    meditune("init", long_answers(tmp_path / "pairs.csv"), "--output", output).ok()
    text = output.read_text(encoding="utf-8")
    assert "# 50% of the rows are longer: 50% of the answers are cut." in text
    assert "50% of the answers fit; the others are cut." in text
    assert "context" not in text


@pytest.mark.usefixtures("place")
def test_answers_of_one_character_have_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: LAPTOP)
    data, output = tmp_path / "choices.csv", tmp_path / "mine.yaml"
    lines = (f"Which of A to D is the right dose of drug {number}?,{'ABCD'[number % 4]}\n" for number in range(40))
    data.write_text("question,answer\n" + "".join(lines), encoding="utf-8")
    meditune("init", data, "--output", output).ok()
    assert inspect_data(data).answer_tokens == [1] * 40
    assert "so all answers fit." in output.read_text(encoding="utf-8")


def tokenizer_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a base with a tokenizer on this machine, a laptop."""
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: LAPTOP)
    folder = tmp_path / "cache" / "models" / "qwen2.5-coder-0.5b"
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return tokenizer


def test_rows_are_counted_in_the_whole_file_and_their_number_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_here(tmp_path, monkeypatch)
    monkeypatch.setattr(init_recipe, "MAX_COUNTED", 50)
    data, output = tmp_path / "pairs.csv", tmp_path / "mine.yaml"
    lines = [f"What is disease {number}?,It is {'very ' * (number // 4)}common.\n" for number in range(120)]
    data.write_text("question,answer\n" + "".join(lines), encoding="utf-8")
    initial = choose(inspect_data(data))
    assert len(initial.data.lengths) == 50
    assert initial.data.answer_tokens[-1] == len(tokenizer(f"It is {'very ' * 29}common.")["input_ids"])
    tokens = initial.data.summary()[1]
    assert "counted by the tokenizer of qwen2.5-coder-0.5b in 50 of 120 rows: half of these rows have" in tokens
    assert "the longest row" not in tokens
    init_recipe.write(initial, output)
    text = output.read_text(encoding="utf-8")
    assert "# Long enough for all 50 counted rows." in text
    assert "so all answers in 50 counted rows fit." in text
    assert "of the answers in 50 counted rows." in text


def test_nothing_is_said_about_answers_if_no_counted_row_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_here(tmp_path, monkeypatch)
    monkeypatch.setattr(init_recipe, "MAX_COUNTED", 30)
    data, output = tmp_path / "pairs.csv", tmp_path / "mine.yaml"
    lines = (f"Does drug {number} help?,{'' if number < 59 else 'Yes it does.'},yes\n" for number in range(60))
    data.write_text("question,answer,decision\n" + "".join(lines), encoding="utf-8")
    initial = choose(inspect_data(data))
    assert (initial.data.answers, initial.data.answer_tokens) == (1, [])
    init_recipe.write(initial, output)
    text = output.read_text(encoding="utf-8")
    assert "answers fit" not in text
    assert "of the answers" not in text


def test_a_tokenizer_on_this_machine_counts_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_here(tmp_path, monkeypatch)
    initial = choose(inspect_data(long_answers(tmp_path / "pairs.csv")))
    short = len(tokenizer("It is common. " * 20)["input_ids"])
    assert initial.data.answer_tokens[0] == pytest.approx(short, abs=3)
    assert "counted by the tokenizer of qwen2.5-coder-0.5b" in initial.data.summary()[1]


def test_conversations_that_the_assistant_begins_get_fitting_advice(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Is it flu?"}]}
    file.write_text("\n".join([json.dumps(row)] * 30), encoding="utf-8")
    done = meditune("init", file, "--output", tmp_path / "out.yaml")
    done.refused(3, "starts with the assistant", "a conversation must begin with the user")
    assert "--field" not in done.err


def test_bases_that_cant_be_downloaded_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setattr(init_recipe, "target_of", lambda *_: SMALL_GPU)
    data = inspect_data(pairs(tmp_path / "pairs.csv"))
    with pytest.raises(RecipeError, match="qwen3-4b isn't on this machine, and MEDITUNE_OFFLINE forbids") as refused:
        choose(data)
    assert "Unset MEDITUNE_OFFLINE" in str(refused.value)
    assert "Free some memory" not in str(refused.value)


@pytest.mark.parametrize(
    ("memory", "recipe"), [(6.0, "gpu-8gb"), (17.0, "gpu-8gb"), (25.3, "gpu-24gb"), (85.0, "gpu-80gb")]
)
def test_the_memory_of_a_gpu_decides_the_recipe(memory: float, recipe: str) -> None:
    assert init_recipe.machine_recipe(replace(SMALL_GPU, memory_gb=memory)) == recipe


def test_claims_conversations_and_long_files_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = tmp_path / "claims.jsonl"
    rows: list[dict[str, Any]] = [
        {"claim": f"Drug {n} helps.", "evidence": f"Trial {n}.", "label": "true" if n % 2 else "false"}
        for n in range(30)
    ]
    claims.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = inspect_data(claims)
    assert (found.kind, found.decisions) == ("claims", {"supported": 15, "refuted": 15})

    chats = tmp_path / "chats.json"
    turns = [{"role": "user", "content": "Is it flu, and what helps?"}, {"role": "assistant", "content": "Rest " * 100}]
    chats.write_text(json.dumps([{"messages": turns}] * 30), encoding="utf-8")
    found = inspect_data(chats)
    assert (found.kind, found.total) == ("conversations", 30)
    assert 100 < found.answer_tokens[0] < found.row_tokens[0] < 250

    monkeypatch.setattr(init_recipe, "MAX_ROWS", 50)
    renamed = pairs(tmp_path / "long.csv", 200, ("Patient question", "Final answer", "notes", "label"))
    found = inspect_data(renamed)
    assert found.fields == {"answer": "Final answer", "question": "Patient question"}
    assert found.rows == 50
    assert found.total == pytest.approx(200, abs=3)
    assert found.summary()[0].startswith(f"About {found.total} questions. Of the first 50: 50 with an answer")


@pytest.mark.parametrize(
    ("columns", "guessed"),
    [
        ({"answer": "It does.", "verified": "yes no"}, {}),
        ({"answer": "It does.", "smoker": "yes no", "pregnant": "no yes"}, {}),
        ({"smoker": "yes no", "pregnant": "no yes", "answer": "It does."}, {}),
        ({"answer": "It does.", "final_verdict": "yes no", "smoker": "no yes"}, {"decision": "final_verdict"}),
        ({"helps": "yes no"}, {"decision": "helps"}),
        ({"answer": "It does.", "evidence_level": "A"}, {}),
        ({"answer": "It does.", "evidence_text": "We followed 120 adults for a year."}, {"context": "evidence_text"}),
    ],
)
def test_only_columns_that_fit_are_guessed(tmp_path: Path, columns: dict[str, str], guessed: dict[str, str]) -> None:
    path = tmp_path / "own.jsonl"
    rows = []
    for number in range(30):
        halves = {name: text.split() if " no" in text or "no " in text else [text] for name, text in columns.items()}
        cells = {name: half[number % len(half)] for name, half in halves.items()}
        rows.append({"question": f"Does drug {number} help?"} | cells)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = inspect_data(path)
    assert found.fields == guessed
    assert any(line.startswith("Columns: ") for line in found.summary()) == bool(guessed)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, (), "no such file. Specify a CSV"),
        ("", (), "no rows"),
        ("question,answer\nWhy?,Because.\n", (), "1 usable rows, but training and testing need at least 20"),
        ("quesiton,answer\nWhy?,Because.\n", (), "line 1 (the header): no column for the question"),
        ("quesiton,answer\nWhy?,Because.\n", (), "Did you mean 'quesiton' as the question?"),
        ("Patient,Doctor\nWhy?,Because.\n", (), "--field question=COLUMN --field answer=COLUMN"),
        ("Patient,Doctor\nWhy?,Because.\n", ("--field", "question=Patiens"), "Did you mean 'Patient'?"),
        ("question,answer\n", ("--field", "question"), "write it as FIELD=COLUMN"),
        ("question,answer,label\n" + "Why?,So.,cancer\n" * 30, (), "unknown decision (not yes, no or maybe)"),
    ],
)
def test_unusable_input_gets_a_sentence(
    tmp_path: Path, text: str | None, options: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "data.csv"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    done = meditune("init", file, "--output", tmp_path / "out.yaml", *options)
    assert done.code != 0
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out.yaml").exists()


def test_folders_and_unknown_machines_are_refused(tmp_path: Path) -> None:
    meditune("init", tmp_path, "--output", tmp_path / "out.yaml").refused(3, "this is a folder")
    data = pairs(tmp_path / "pairs.csv")
    meditune("init", data, "--output", tmp_path).refused(2, "is a folder. Specify a file")
    meditune("init", data, "--output", tmp_path / "out.yaml", "--machine", "gpu").refused(2, "gpu-8gb, gpu-24gb")
