"""Recipes: read, checked, changed by settings."""

from pathlib import Path

import pytest

from meditune.config.data_options import DataSpec
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import what_counts
from meditune.config.recipe_keys import Document, UnreadableError, flow
from meditune.errors import RecipeError
from tests.commands import meditune


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(name: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """The error's lines, each without the folder of the file."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    lines = str(caught.value).splitlines()
    return [line.strip().replace(f"{Path(name).parent}/", "") for line in (lines[1:] or lines)]


def test_a_file_only_says_what_it_changes(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "name: mine\ntrain:\n  epochs: 2\nmodel:\n")).recipe
    assert recipe.name == "mine"
    assert recipe.train.epochs == 2.0
    assert recipe.train.batch_size == 8
    assert recipe.data.sources[0].name == "pubmedqa"


def test_every_value_knows_its_origin(tmp_path: Path) -> None:
    path = write(
        tmp_path, "# mine\nname: mine\ntrain:\n  epochs: 2\n  batch_size: 4\ndata:\n  sources:\n    - name: liveqa\n"
    )
    origin = load_recipe(path, ["train.batch_size=2", "data.sources.0.fields.question=prompt"]).origin
    assert origin["name"] == "mine.yaml, line 2"
    assert origin["train.epochs"] == "mine.yaml, line 4"
    assert origin["train.batch_size"] == "--set"
    assert origin["data.sources.0.name"] == "mine.yaml, line 8"
    assert origin["data.sources.0.fields"] == "--set"
    assert origin["data.sources.0.path"] == "default"
    assert origin["model.lora.r"] == "default"
    assert "train" not in origin


def test_all_problems_are_reported_at_once_with_file_line_key_and_remedy(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: mine\n"
        "train:\n"
        "  learnig_rate: 1e-4\n"
        "  epochs: three\n"
        "  accumulation: 0\n"
        "  schedule: Cosine\n"
        "model:\n"
        "  learning_rate: 1\n"
        "data:\n"
        "  sources:\n"
        "    - path: here\n"
        "  dev_share: 0.5\n",
    )
    assert problems(path, ("train.epoch=1",)) == [
        "mine.yaml, line 3: train.learnig_rate: no such key; did you mean train.learning_rate?",
        "mine.yaml, line 4: train.epochs: expected a number above 0, found 'three'.",
        "mine.yaml, line 5: train.accumulation: expected a whole number of at least 1, found 0.",
        "mine.yaml, line 6: train.schedule: expected one of linear, cosine, constant, found 'Cosine'; "
        "did you mean cosine?",
        "mine.yaml, line 8: model.learning_rate: no such key; did you mean train.learning_rate?",
        "mine.yaml, line 11: data.sources.0.name: missing; expected text that isn't empty.",
        "mine.yaml, line 12: data.dev_share: expected a number of at least 0 and below 0.5, found 0.5.",
        "--set train.epoch: no such key; did you mean train.epochs?",
    ]


def test_a_rule_between_keys_is_reported_beside_other_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\nprompt:\n  max_tokens: 64\ntrain:\n  epochs: three\n")
    found = problems(path)
    assert found[0].startswith("mine.yaml, line 3: ")
    assert "prompt.answer_tokens must be smaller than prompt.max_tokens" in found[0]
    assert found[1].startswith("mine.yaml, line 5: train.epochs")
    assert problems("quickstart", ("prompt.max_tokens=64",)) == [
        "--set prompt.max_tokens: prompt.answer_tokens must be smaller than prompt.max_tokens."
    ]


@pytest.mark.parametrize("key", ["patience=2", "keep_best=true"])
def test_only_one_option_chooses_the_weights_that_training_ends_with(key: str) -> None:
    chosen = f"train.dev.{key}"
    [found] = problems("quickstart", (chosen,))
    assert "set train.average_last to 0" in found
    assert load_recipe("quickstart", (chosen, "train.average_last=0")).recipe.train.dev.is_on


@pytest.mark.parametrize(
    ("option", "also"),
    [
        ("train.dev.every_steps=5", "train.dev.patience=2"),
        ("train.dev.metric=accuracy", "train.dev.keep_best=true"),
        ("train.preference.path=pairs.jsonl", "train.objective=dpo"),
        ("train.retrieve.index=library", "train.retrieve.share=0.5"),
        ("model.prune.sparsity=0.3", "model.prune.method=wanda"),
        ("model.prune.pattern=2-of-4", "model.prune.method=magnitude"),
    ],
)
def test_an_option_without_the_option_that_gives_it_an_effect_is_refused(option: str, also: str) -> None:
    (problem,) = problems("distilgpt2", (option,))
    key = option.partition("=")[0]
    assert problem.startswith(f"--set {key}: {key} ")
    assert also.partition("=")[0] in problem
    assert load_recipe("distilgpt2", (option, also)).recipe


@pytest.mark.parametrize("tasks", ["[decision, answer]", "[claim]"])
def test_claims_get_a_share_of_the_loss_only_beside_other_tasks(tasks: str) -> None:
    [found] = problems("quickstart", ("train.claim_share=0.3", f"train.tasks={tasks}"))
    assert f"but train.tasks is {tasks}" in found
    recipe = load_recipe("quickstart", ("train.claim_share=0.3", "train.tasks=[claim, decision, answer]")).recipe
    assert recipe.train.claim_share == 0.3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('batch_size: "8"', "expected a whole number of at least 1, found '8', which is text; remove the quotes"),
        ("batch_size: true", "expected a whole number of at least 1, found true"),
        ("batch_size: 8.0", "expected a whole number of at least 1, found 8.0"),
        ("batch_size:", "expected a whole number of at least 1, found nothing"),
        ("l2_sp: true", "expected a number of at least 0, found true"),
        ("epochs: .inf", "expected a number above 0, found .inf"),
        ("gradient_checkpointing: 1", "expected true or false or null, found 1"),
        ("gradient_checkpointing: 'true'", "expected true or false or null, found 'true', which is text"),
        ("tasks: decision", "found 'decision'; write a list as [decision]"),
        ("tasks: []", "expected a list that isn't empty, each item one of answer, decision, claim, found []"),
        ("decision_share: 1", "expected a number above 0 and below 1 or null, found 1"),
    ],
)
def test_a_value_of_another_kind_is_told_in_plain_words(tmp_path: Path, line: str, message: str) -> None:
    (problem,) = problems(write(tmp_path, f"name: mine\ntrain:\n  {line}\n"))
    assert problem.startswith(f"mine.yaml, line 3: train.{line.partition(':')[0]}: ")
    assert message in problem


def test_a_source_alone_is_told_how_a_list_of_groups_is_written(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "name: mine\ndata:\n  sources: sample\n"))
    assert "[{name: sample}]" in problem


def test_text_where_a_number_stands_asks_for_quotes(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "name: 2024\n")) == [
        "mine.yaml, line 1: name: expected text that isn't empty, found 2024; put it in quotes."
    ]


@pytest.mark.parametrize(
    ("written", "value"), [("5e-5", 5e-5), ("1", 1.0), ("1.E-3", 1e-3), (".5", 0.5), ("5.0e-05", 5e-5)]
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, written: str, value: float) -> None:
    path = write(tmp_path, f"name: mine\ntrain:\n  learning_rate: {written}\nevaluate:\n  resamples: 20_000\n")
    recipe = load_recipe(path).recipe
    assert recipe.train.learning_rate == value
    assert recipe.evaluate.resamples == 20_000


def test_yes_and_no_are_words(tmp_path: Path) -> None:
    path = write(tmp_path, "name: no\ndata:\n  sources:\n    - name: own\n      fields: {decision: yes}\n")
    recipe = load_recipe(path).recipe
    assert recipe.name == "no"
    assert recipe.data.sources[0].fields == {"decision": "yes"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("train.num_train_epochs", "train.epochs"),
        ("train.gradient_accumulation_steps", "train.accumulation"),
        ("model.r", "model.lora.r"),
        ("batch_size", "train.batch_size"),
        ("sede", "seed"),
    ],
)
def test_near_keys_are_found(typed: str, meant: str) -> None:
    assert problems("quickstart", (f"{typed}=1",)) == [f"--set {typed}: no such key; did you mean {meant}?"]


def test_a_key_like_no_other_gets_the_list_of_keys() -> None:
    (problem,) = problems("quickstart", ("data.zzz=1",))
    there = ", ".join(f"data.{name}" for name in DataSpec.model_fields)
    assert problem == f"--set data.zzz: no such key; the keys are {there}."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\ntrain:\n\tepochs: 1\n", "mine.yaml, line 3: not valid YAML: indented with a tab; use spaces."),
        ("name: a: b\n", "mine.yaml, line 1: not valid YAML: a second ':'"),
        ("name: mine\nname: yours\n", "mine.yaml, line 2: name: given twice, first on line 1."),
        ("train: {epochs: 1, epochs: 2}\nname: x", "mine.yaml, line 1: train.epochs: given twice, first on line 1."),
        ("name: mine\n---\nname: x\n", "mine.yaml, line 2: not valid YAML"),
        ("name: \x07\n", "mine.yaml, line 1: the character '\\x07' isn't allowed in YAML."),
        ("name: mine\ntrain: &t\n  tasks: [*t]\n", "mine.yaml, line 2: train.tasks.0: the value contains itself."),
        ("name: !!python/name:os.system x\n", "mine.yaml, line 1: name: x can't be read as python/name:os.system."),
        ("", "mine.yaml: the file is empty."),
        ("# nothing yet\n", "mine.yaml: the file is empty."),
        ("- name: mine\n", "mine.yaml: expected keys with values (name: my-recipe)"),
        ("train: 3\nname: mine\n", "mine.yaml, line 1: train: expected a group with tasks, batch_size"),
        ("train:\n  epochs: 1\n", "mine.yaml: name: missing; expected text that isn't empty."),
    ],
)
def test_files_that_cant_be_used_say_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    assert problems(write(tmp_path, text))[0].startswith(message)


def test_a_file_that_isnt_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "not UTF-8 text at byte 6" in problems(str(tmp_path / "mine.yaml"))[0]
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"), [("own.csv", "question,answer\nWhy?,So.\n"), ("own.json", '[{"answer": "x"}]')]
)
def test_a_data_file_in_place_of_a_recipe_gets_the_command_that_makes_one(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8-sig")
    for words in (["run"], ["data", "prepare"]):
        done = meditune(*words, file, "--output", tmp_path / "run")
        done.refused(2, f"{file} is a data file, not a recipe", f"meditune init {file} --output mine.yaml")
    done = meditune("index", "build", file, "--output", tmp_path / "index")
    done.refused(3, f"{file} is a data file, not a recipe. Pass it with --documents {file}")


@pytest.mark.parametrize("asked", ["quikstart", "quickstart.yaml", "recipes/Quickstart.yml"])
def test_a_recipe_that_isnt_there_gets_the_shipped_ones(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = problems(asked)
    assert "gemma3-270m, gpu-24gb" in problem
    assert problem.endswith("Did you mean quickstart?")


class TestSet:
    """`--set KEY=VALUE`"""

    def test_a_number_a_list_a_group_and_null(self) -> None:
        recipe = load_recipe(
            "quickstart",
            ["train.learning_rate=1e-4", "train.tasks=[decision]", "model.lora={r: 4}", "train.decision_share=null"],
        ).recipe
        assert recipe.train.learning_rate == 1e-4
        assert recipe.train.tasks == ["decision"]
        assert (recipe.model.lora.r, recipe.model.lora.alpha) == (4, 32.0)
        assert recipe.train.decision_share is None

    def test_a_group_keeps_the_keys_it_isnt_given(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: mine\ntrain:\n  epochs: 7\n  batch_size: 2\n")
        train = load_recipe(path, ["train={batch_size: 3}"]).recipe.train
        assert (train.epochs, train.batch_size) == (7.0, 3)

    def test_the_last_one_counts(self) -> None:
        assert load_recipe("quickstart", ["seed=1", "seed=2"]).recipe.seed == 2

    @pytest.mark.parametrize("text", ["Question:", "Say: it", "2024", "yes", "# one", "null and void", "a=b"])
    def test_text_is_taken_as_it_is(self, text: str) -> None:
        assert load_recipe("quickstart", [f"prompt.answer_cue={text}"]).recipe.prompt.answer_cue == text

    def test_quoted_text_is_unquoted(self) -> None:
        assert load_recipe("quickstart", ["prompt.answer_cue='Q: '"]).recipe.prompt.answer_cue == "Q: "

    def test_one_source_of_a_list(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: mine\n")
        sources = load_recipe(path, ["data.sources.0.path=/x", "data.sources.1.name=liveqa"]).recipe.data.sources
        assert [(source.name, source.path) for source in sources] == [("pubmedqa", "/x"), ("liveqa", None)]

    def test_a_suite_that_is_named_without_a_group(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: mine\nevaluate:\n  suites: [medqa]\n")
        suites = load_recipe(path, ["evaluate.suites.0.limit=10", "evaluate.suites.1=medmcqa"]).recipe.evaluate.suites
        assert [(suite.name, suite.limit) for suite in suites] == [("medqa", 10), ("medmcqa", None)]

    def test_an_item_of_a_value_that_isnt_a_list(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: mine\nmodel:\n  lora: {targets: auto}\n")
        (problem,) = problems(path, ("model.lora.targets.0=q_proj",))
        assert problem == (
            "--set model.lora.targets.0: model.lora.targets is auto, not a list; set model.lora.targets to a list "
            "instead."
        )

    def test_an_empty_path_is_none(self) -> None:
        overrides = ["data.sources.0.path=/x", "data.sources.0.path="]
        assert load_recipe("quickstart", overrides).recipe.data.sources[0].path is None

    def test_a_list_replaces_the_files_list_and_its_origins(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: mine\ndata:\n  sources:\n    - name: liveqa\n      limit: 5\n")
        resolved = load_recipe(path, ["data.sources=[{name: medquad}]"])
        assert [source.name for source in resolved.recipe.data.sources] == ["medquad"]
        assert resolved.recipe.data.sources[0].limit is None
        assert resolved.origin["data.sources.0.name"] == "--set"
        assert resolved.origin["data.sources.0.limit"] == "default"

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("train.epochs", "--set train.epochs: write it as --set KEY=VALUE, for example --set train.epochs=2."),
            ("=3", "--set =3: write it as --set KEY=VALUE"),
            ("train=3", "--set train: expected a group with tasks,"),
            ("train={epoch: 3}", "--set train.epoch: no such key; did you mean train.epochs?"),
            ("train.tasks=[decision", "--set train.tasks: not valid YAML"),
            ("train.epochs=three", "--set train.epochs: expected a number above 0, found 'three'."),
            (
                "data.sources.path=/x",
                "--set data.sources.path: data.sources is a list; give a position in it: data.sources.0.path.",
            ),
            (
                "data.sources.5.path=/x",
                "--set data.sources.5: no such position; the next free position is data.sources.1.",
            ),
            ("data.sources.1.path=/x", "--set data.sources.1.name: missing;"),
            ("name.first=x", "--set name.first: no such key; name takes text that isn't empty."),
            ("model.lora.targets=q_proj", "--set model.lora.targets: expected auto or a list, each item text"),
            (
                "model.lora.targets=[]",
                "--set model.lora.targets: model.lora.targets must name at least one linear layer",
            ),
        ],
    )
    def test_what_cant_be_set(self, option: str, message: str) -> None:
        (problem,) = problems("quickstart", (option,))
        assert problem.startswith(message)


def test_strategies_and_what_they_dont_go_with_are_reported_at_once() -> None:
    options = ("model.strategy=full", "model.quantize=nf4", "prompt.answer_tokens=512")
    found = problems("distilgpt2", options)
    assert len(found) == 2
    assert found[0].startswith("--set prompt.answer_tokens: prompt.answer_tokens must be smaller")
    assert found[1].startswith("--set model.quantize: model.quantize nf4 freezes the base model")
    found = problems("distilgpt2", ("model.strategy=prefix", "model.top_layers=2"))
    assert len(found) == 2
    assert "model.top_layers has no effect with model.strategy prefix" in found[0] + found[1]
    assert "train.gradient_checkpointing drops the cache" in found[0] + found[1]
    assert problems("quickstart", ("model.strategy=prompt",))[0].startswith("--set model.strategy: model.top_layers")


def test_top_layers_was_a_key_of_lora_once() -> None:
    (problem,) = problems("quickstart", ("model.lora.top_layers=2",))
    assert problem == "--set model.lora.top_layers: no such key; did you mean model.top_layers?"


def test_lines_are_those_of_the_keys_and_items() -> None:
    document = Document("a:\n  b: 1\n  c:\n    - x\n    - y: [1, 2]\n")
    assert document.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "y"): 5,
        ("a", "c", 1, "y", 0): 5,
        ("a", "c", 1, "y", 1): 5,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("-1.5", -1.5),
        ("010", 10),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("-", [None]),
        ("'8'", "8"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = Document(text).value
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["yes", "1e5", "01", "1_000", "12:30", "a: b", "[", "x\ny", "\u2028", "-", "?", " "])
def test_flow_is_one_line_that_reads_back(value: str) -> None:
    text = flow({"k": [value]})
    assert len(text.splitlines()) == 1
    assert Document(text).value == {"k": [value]}
    assert Document(flow(value)).value == value


def test_a_broken_text_names_its_line() -> None:
    with pytest.raises(UnreadableError) as caught:
        Document("a: 1\nb: [1\nc: 2\n")
    assert caught.value.line == 3


def test_a_run_with_fixed_batch_sizes_goes_on_with_automatic_ones():
    fixed = ["train.micro_batch_tokens=1024", "train.gradient_checkpointing=false"]
    fixed_sizes, automatic = (load_recipe("quickstart", changes).recipe for changes in (fixed, []))
    assert what_counts(fixed_sizes) == what_counts(automatic)
    longer = load_recipe("quickstart", ["train.epochs=4"]).recipe
    assert what_counts(longer) != what_counts(automatic)


def test_an_interrupted_run_can_be_resumed_with_more_frequent_checkpoints():
    seldom, often = (load_recipe("quickstart", [f"train.checkpoint_steps={steps}"]).recipe for steps in (50, 5))
    assert what_counts(seldom) == what_counts(often)


@pytest.mark.parametrize("group", ["model.api", "evaluate.suite_judge_api"])
def test_a_run_can_be_resumed_with_fewer_requests_at_once_and_with_prices(group: str) -> None:
    changes = [f"{group}.concurrency=1", f"{group}.prices={{input: 2}}"]
    assert what_counts(load_recipe("quickstart", changes).recipe) == what_counts(load_recipe("quickstart").recipe)
    elsewhere = load_recipe("quickstart", [f"{group}.url=https://api.example.org/v1"]).recipe
    assert what_counts(elsewhere) != what_counts(load_recipe("quickstart").recipe)
