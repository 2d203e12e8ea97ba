"""The protocol of lm-evaluation-harness: its prompt, its choices, its log-likelihoods."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.config.training_options import ModelSpec
from meditune.data.example import DECISIONS, Example, Passage
from meditune.errors import DataError, ModelError
from meditune.evaluate.evaluator import API, Evaluator
from meditune.evaluate.likelihood import asked, decisions, prompt_text
from meditune.models.load import load
from tests import tiny
from tests.commands import meditune
from tests.models.test_forward import EXAMPLES

TASKS = Path(__file__).parents[2] / "integrations" / "lm-eval"


def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer of which every byte is a token, so that a choice has several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1} | {one: i + 2 for i, one in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def plain(loaded, example: Example) -> dict[str, float]:
    """Each choice's log-likelihood, one forward pass for each."""
    found = {}
    for choice in DECISIONS:
        before = loaded.tokenizer.encode(prompt_text(example))
        ids = loaded.tokenizer.encode(f"{prompt_text(example)} {choice}")
        with torch.no_grad():
            chances = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found[choice] = sum(chances[place - 1, ids[place]].item() for place in range(len(before), len(ids)))
    return found


def test_the_prompt_is_the_harness_s():
    example = EXAMPLES[0].model_copy(update={"context": (Passage(text="A b.", label="AIM"), Passage(text="C."))})
    assert prompt_text(example) == "Abstract: A b.\nC.\nQuestion: Does the drug help with pain?\nAnswer:"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("several", [False, True], ids=["one token", "several tokens"])
def test_log_likelihoods_equal_one_forward_pass_for_each_choice(architecture, several):
    loaded = tiny.loaded(architecture)
    if several:
        loaded.tokenizer = of_bytes()
    assert len(asked(loaded, EXAMPLES[0]).row.encoded) == (3 if several else 1)
    for row, example in zip(decisions(loaded, EXAMPLES, 900, "Scoring"), EXAMPLES, strict=True):
        expected = plain(loaded, example)
        assert row["id"] == example.id
        assert row["logits"] == pytest.approx(expected, abs=1e-4)
        assert row["prediction"] == max(expected, key=lambda choice: expected[choice])


def test_a_text_longer_than_the_model_reads_is_cut_on_the_left():
    loaded = tiny.loaded()
    loaded.model.config.max_position_embeddings = 40
    row = asked(loaded, EXAMPLES[2]).row
    assert row.tokens == loaded.tokenizer.encode(prompt_text(EXAMPLES[2]))[-40:]


def test_what_can_t_be_scored_is_refused():
    loaded = tiny.loaded()
    with pytest.raises(DataError, match="e0 has no decision"):
        asked(loaded, EXAMPLES[0].model_copy(update={"decision": None}))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="llama computes numbers that aren't finite on e0"):
        list(decisions(loaded, EXAMPLES[:1], 900, "Scoring"))
    recipe = Recipe(name="x", evaluate=EvaluateSpec(protocol="lm-eval"))
    with pytest.raises(DataError, match="an API doesn't return"):
        Evaluator(recipe, EXAMPLES, Path("nowhere"), can=API)
    with pytest.raises(DataError, match="Set it to null"):
        Evaluator(Recipe(name="x", evaluate=EvaluateSpec(no_repeat=6)), EXAMPLES, Path("nowhere"), can=API)


def test_the_command_measures_decisions_only(tmp_path):
    model = tiny.save(tmp_path / "model")
    folder = tmp_path / "measured"
    done = meditune(
        *("evaluate", model, "--protocol", "lm-eval", "--output", folder),
        *("--set", "data.sources=[{name: sample, limit: 30}]", "--set", "data.split=group"),
    )
    assert done.code == 0, done
    assert [path.name for path in (folder / "predictions").iterdir()] == ["model-decision.jsonl"]
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    assert {"accuracy", "macro_f1"} <= figures.keys()
    assert "perplexity" not in figures


@pytest.mark.parametrize("path", sorted(TASKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_tasks_for_the_harness_read_what_the_script_writes(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    from jinja2 import Environment, StrictUndefined

    import export
    from meditune.data.example import write_examples

    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert task["task"] == path.stem
    assert task["output_type"] == "multiple_choice"
    assert task["doc_to_choice"] == list(DECISIONS)
    assert task["dataset_kwargs"]["data_files"] == {task["test_split"]: export.FILE.name}
    write_examples(tmp_path / "data" / "test.jsonl", EXAMPLES)
    model = tiny.save(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    row = export.rows(tmp_path, "test", str(model))[0]
    text = Environment(undefined=StrictUndefined).from_string(task["doc_to_text"]).render(**row)
    own = path.stem.endswith("_prompt")
    assert text == (row["meditune_prompt"] if own else prompt_text(EXAMPLES[0]))
    assert text.endswith("Question: Does the drug help with pain?\nAnswer:") or own
    assert row[task["doc_to_target"]] == "yes"


@pytest.mark.slow
def test_the_harness_itself_says_the_same_of_every_item(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(TASKS))
    import export
    from meditune.data.example import write_examples
    from meditune.files import write_jsonl

    write_examples(tmp_path / "data" / "test.jsonl", EXAMPLES)
    model = tiny.save(tmp_path / "model")
    decided = [example for example in EXAMPLES if example.decision]
    write_jsonl(tmp_path / export.FILE, export.rows(tmp_path, "test"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "2"),
            *("--model_args", f"pretrained={model},dtype=float32", "--include_path", str(TASKS)),
            *("--tasks", "meditune_pubmedqa", "--log_samples", "--output_path", "found"),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = next((tmp_path / "found").rglob("samples_meditune_pubmedqa_*.jsonl")).read_text().splitlines()
    theirs = {sample["doc"]["id"]: sample for sample in map(json.loads, lines)}
    ours = list(decisions(load(str(model), ModelSpec(base=str(model), dtype="float32")), decided, 900, "Scoring"))
    assert len(ours) == len(theirs) == len(decided)
    for row in ours:
        scored = [float(answer[0]) for answer in theirs[row["id"]]["filtered_resps"]]
        assert list(row["logits"].values()) == pytest.approx(scored, abs=1e-4)
        assert theirs[row["id"]]["acc"] == (row["prediction"] == row["reference"])
