"""Likelihoods equal those of a plain transformers loop, and the protocol of lm-evaluation-harness is kept.

Likelihoods with and without the question, and figures that don't depend on how a tokenizer cuts text. Answers by chance
are seeded, as many as asked for, and a run without them writes none.
"""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.config.training_options import ModelSpec
from meditune.data.example import DECISIONS, Example, Passage
from meditune.errors import DataError, ModelError, RecipeError
from meditune.evaluate.evaluator import API, Evaluator
from meditune.evaluate.likelihood import (
    asked_text,
    decisions,
    general_rows,
    prompt_text,
    score,
    scored_bytes,
    unconditional_rows,
)
from meditune.evaluate.metrics import statistics_of, summarize
from meditune.evaluate.predictions import Predictions, path_of
from meditune.evaluate.weights_backend import Scoring, WeightsBackend, generate_answers
from meditune.files import read_jsonl
from meditune.models.load import load
from meditune.models.shared_prefix_batch import rows_of
from meditune.prompts import Encoded
from tests import tiny
from tests.commands import meditune
from tests.models.test_forward import EXAMPLES as ROW_EXAMPLES
from tests.waiting import output_of

FORM = PromptFormat(max_tokens=256, answer_tokens=32)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_perplexity_and_decisions_equal_a_plain_loop(architecture):
    loaded = tiny.loaded(architecture)
    encoder = loaded.encoder(FORM)
    labels = encoder.label_ids()
    encoded = [encoder.supervised(example, task) for example in ROW_EXAMPLES for task in ("decision", "answer")]
    scores = score(loaded, rows_of(encoded), 512, "Scoring", labels)
    for item in encoded:
        ids = torch.tensor([item.prompt + item.target])
        with torch.no_grad():
            logits = loaded.model(input_ids=ids).logits[0].float()
        if item.task == "decision":
            plain = {label: logits[len(item.prompt) - 1, token].item() for label, token in labels.items()}
            assert scores.decisions[item.id] == pytest.approx(plain, abs=1e-4)
        else:
            found = logits.log_softmax(-1)
            nll = -sum(
                found[len(item.prompt) - 1 + offset, token].item() for offset, token in enumerate(item.target[:-1])
            )
            assert scores.answers[item.id].tokens == len(item.target) - 1
            assert scores.answers[item.id].nll == pytest.approx(nll, rel=1e-4)


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [
        ("cohere", {"logit_scale": 0.1}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("granite", {"logits_scaling": 8}),
    ],
)
def test_a_decisions_logits_are_scaled_and_capped_as_in_the_architecture(architecture, setting):
    shape = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    tokens = {"pad_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(architecture, **shape, **tokens, initializer_range=0.3, **setting)
    torch.manual_seed(0)
    loaded = tiny.with_model(tiny.loaded(), AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    encoder = loaded.encoder(FORM)
    labels, item = encoder.label_ids(), encoder.supervised(ROW_EXAMPLES[0], "decision")
    (found,) = score(loaded, rows_of([item]), None, "Scoring", labels).decisions.values()
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([item.prompt])).logits[0, -1]
    assert found == pytest.approx({label: logits[token].item() for label, token in labels.items()}, abs=1e-4)


def test_labels_that_tie_in_bf16_are_told_apart():
    loaded = tiny.loaded()
    loaded.model.to(torch.bfloat16)
    with torch.no_grad():
        head = loaded.model.get_output_embeddings().weight
        labels = loaded.encoder(FORM).label_ids()
        head[labels["no"]] = head[labels["yes"]]
        head[labels["no"], 0] += 2**-9
    row = rows_of([loaded.encoder(FORM).supervised(ROW_EXAMPLES[0], "decision")])
    logits = score(loaded, row, 512, "Scoring", labels).decisions["e0"]
    assert logits["yes"] != logits["no"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_general_text_is_scored_once_from_its_second_token(architecture):
    loaded = tiny.loaded(architecture)
    text = tiny.WORDS * 3
    rows = general_rows(loaded, text, tokens=100, window=40)
    scores = score(loaded, rows, 512, "General")
    begin = len(loaded.start_ids())
    assert sum(tokens for _, tokens in scores.answers.values()) == 100 - (0 if begin else len(rows))
    assert math.exp(sum(s.nll for s in scores.answers.values()) / 100) > 10


def test_generation_equals_one_prompt_at_a_time_and_stops_at_the_end_token():
    loaded = tiny.loaded()
    encoder = loaded.encoder(FORM)
    prompts = [encoder.prompt(example, "answer") for example in ROW_EXAMPLES]
    together = generate_answers(loaded, prompts, 12, "Writing")
    for prompt in prompts:
        ids = torch.tensor([prompt.prompt])
        with torch.no_grad():
            for _ in range(12):
                token = loaded.model(input_ids=ids).logits[0, -1].argmax()
                if token == loaded.tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, token.view(1, 1)], dim=1)
        alone = loaded.tokenizer.decode(ids[0, len(prompt.prompt) :], skip_special_tokens=True).strip()
        assert together[prompt.id] == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_answers_without_questions_are_scored_as_texts_of_their_own(architecture):
    loaded = tiny.loaded(architecture)
    encoded = [loaded.encoder(FORM).supervised(example, "answer") for example in ROW_EXAMPLES]
    rows = unconditional_rows(loaded, encoded)
    scores = score(loaded, rows, 512, "Alone")
    start = loaded.start_ids()
    assert bool(start) == (architecture == "gemma3")
    for item in encoded:
        ids = torch.tensor([[*start, *item.target[:-1]]])
        with torch.no_grad():
            found = loaded.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        nll = -float(found.gather(1, ids[0, 1:, None]).sum())
        assert scores.answers[item.id].tokens == ids.shape[1] - 1
        assert scores.answers[item.id].nll == pytest.approx(nll, rel=1e-4)


def test_an_answer_of_one_token_has_nothing_to_score_where_no_token_begins_a_text():
    encoded = [Encoded("a", "answer", prompt=[7, 8, 9], target=[10, 1])]
    assert unconditional_rows(tiny.loaded("llama"), encoded) == []
    assert len(unconditional_rows(tiny.loaded("gemma3"), encoded)) == 1


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bytes_are_those_of_the_text_that_is_scored(architecture):
    loaded = tiny.loaded(architecture)
    text = "The drug — très bien — helps 3 of 4 adults. " * 20
    rows = general_rows(loaded, text, tokens=10_000, window=64)
    counted = sum(scored_bytes(loaded.tokenizer, row.encoded[0]) for row in rows)
    unscored = [] if loaded.start_ids() else [loaded.tokenizer.decode(row.encoded[0].prompt) for row in rows]
    exact = len(text.encode()) - sum(len(piece.encode()) for piece in unscored)
    # A character that a window's border cuts is counted on both sides.
    assert counted == pytest.approx(exact, abs=4 * len(rows))


def test_bytes_of_an_answer_leave_out_what_was_cut_off():
    loaded = tiny.loaded()
    long = ROW_EXAMPLES[0].model_copy(update={"answer": "The drug helps with pain in adults. " * 60})
    whole, cut = (Scoring(loaded.encoder(form), [], [long]) for form in (PromptFormat(max_tokens=2048), FORM))
    assert whole.bytes[long.id] == len(long.answer.strip())
    assert 0 < cut.bytes[long.id] < whole.bytes[long.id]
    kept = cut.rows[0].encoded[0].target
    assert cut.bytes[long.id] == len(loaded.tokenizer.decode(kept))


def test_bits_per_byte_dont_depend_on_how_a_text_was_cut_into_tokens():
    fine = [{"id": "a", "nll": 8 * math.log(2), "tokens": 16, "bytes": 16}]
    coarse = [{"id": "a", "nll": 8 * math.log(2), "tokens": 4, "bytes": 16}]
    for rows in (fine, coarse):
        figures = summarize(Predictions(likelihood=rows, general=rows))
        assert figures["bits_per_byte"] == figures["general_bits_per_byte"] == pytest.approx(0.5)
    assert (
        summarize(Predictions(likelihood=fine))["perplexity"] < summarize(Predictions(likelihood=coarse))["perplexity"]
    )


def test_a_measurement_stores_both_with_their_bytes(tmp_path):
    recipe = load_recipe("quickstart", ["evaluate.general_tokens=0", "evaluate.max_new_tokens=2"]).recipe
    loaded = tiny.loaded()
    measuring = Evaluator(recipe, ROW_EXAMPLES, tmp_path)
    measuring.measure(WeightsBackend(loaded, recipe), "model")
    assert measuring.is_done("model")
    alone, given = (read_jsonl(tmp_path / f"model-{kind}.jsonl") for kind in ("unconditional", "likelihood"))
    answers = {example.id: example.answer for example in ROW_EXAMPLES}
    assert [row["bytes"] for row in given] == [len(answers[row["id"]].encode()) for row in given]
    assert all(0 < row["bytes"] <= full["bytes"] for row, full in zip(alone, given, strict=True))
    (tmp_path / "model-unconditional.jsonl").unlink()
    assert not measuring.is_done("model")
    found = statistics_of(Predictions(unconditional=alone))["unconditional_perplexity"]
    assert found.ids == tuple(answers)


EXAMPLES = [
    Example(id=f"t:{n}", source="test", question=f"Does drug {n} help?", answer="It helps.", group=str(n))
    for n in range(4)
]


def measured(folder, seed=17, **spec):
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "prompt": {"max_tokens": 64, "answer_tokens": 8},
            "evaluate": {"max_new_tokens": 4, "general_tokens": 0, "choices": 0, "answers": 3, **spec},
        }
    )
    measuring = Evaluator(recipe, EXAMPLES, folder)
    assert not measuring.is_done("base")
    measuring.measure(WeightsBackend(tiny.loaded(), recipe), "base")
    assert measuring.is_done("base")
    path = path_of(folder, "base", "samples")
    return read_jsonl(path) if path.is_file() else None


def test_samples_of_the_answered_items(tmp_path):
    rows = measured(tmp_path / "one", samples=3)
    assert [len(row["predictions"]) for row in rows] == [3, 3, 3]
    answered = [row["id"] for row in read_jsonl(path_of(tmp_path / "one", "base", "answer"))]
    assert [row["id"] for row in rows] == answered
    assert rows == measured(tmp_path / "again", samples=3)
    assert len({text for row in rows for text in row["predictions"]}) > 2


def test_no_samples_unless_asked_for(tmp_path):
    assert measured(tmp_path) is None


def test_virtual_tokens_are_refused_with_samples():
    with pytest.raises(RecipeError, match=r"evaluate\.samples doesn.t work with the virtual tokens of prefix"):
        load_recipe("quickstart", ["model.strategy=prefix", "model.top_layers=null", "evaluate.samples=2"])


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
    example = ROW_EXAMPLES[0].model_copy(update={"context": (Passage(text="A b.", label="AIM"), Passage(text="C."))})
    assert prompt_text(example) == "Abstract: A b.\nC.\nQuestion: Does the drug help with pain?\nAnswer:"


def asked(loaded, example):
    return asked_text(loaded, example.id, prompt_text(example), DECISIONS)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("several", [False, True], ids=["one token", "several tokens"])
def test_log_likelihoods_equal_one_forward_pass_for_each_choice(architecture, several):
    loaded = tiny.loaded(architecture)
    if several:
        loaded.tokenizer = of_bytes()
    assert len(asked(loaded, ROW_EXAMPLES[0]).row.encoded) == (3 if several else 1)
    for row, example in zip(decisions(loaded, ROW_EXAMPLES, 900, "Scoring"), ROW_EXAMPLES, strict=True):
        expected = plain(loaded, example)
        assert row["id"] == example.id
        assert row["logits"] == pytest.approx(expected, abs=1e-4)
        assert row["prediction"] == max(expected, key=lambda choice: expected[choice])


def test_a_text_longer_than_the_model_reads_is_cut_on_the_left():
    loaded = tiny.loaded()
    loaded.model.config.max_position_embeddings = 40
    row = asked(loaded, ROW_EXAMPLES[2]).row
    assert row.tokens == loaded.tokenizer.encode(prompt_text(ROW_EXAMPLES[2]))[-40:]


def test_what_can_t_be_scored_is_refused():
    loaded = tiny.loaded()
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="llama computes infinite or NaN values on e0"):
        list(decisions(loaded, ROW_EXAMPLES[:1], 900, "Scoring"))
    recipe = Recipe(name="x", evaluate=EvaluateSpec(protocol="lm-eval"))
    with pytest.raises(DataError, match="an API doesn't return"):
        Evaluator(recipe, ROW_EXAMPLES, Path("nowhere"), can=API)
    with pytest.raises(DataError, match="Set it to null"):
        Evaluator(Recipe(name="x", evaluate=EvaluateSpec(no_repeat=6)), ROW_EXAMPLES, Path("nowhere"), can=API)


def test_the_command_measures_decisions_only(tmp_path):
    model = tiny.save(tmp_path / "model")
    folder = tmp_path / "measured"
    meditune(
        *("evaluate", model, "--protocol", "lm-eval", "--output", folder),
        *("--set", "data.sources=[{name: sample, limit: 30}]", "--set", "data.split=group"),
    ).ok()
    assert [path.name for path in (folder / "predictions").iterdir()] == ["model-decision.jsonl"]
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    assert {"accuracy", "macro_f1"} <= figures.keys()
    assert "perplexity" not in figures


@pytest.mark.parametrize("path", sorted(TASKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_tasks_for_the_harness_read_what_the_script_writes(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    from jinja2 import Environment, StrictUndefined

    import export
    from meditune.data.example import write_records

    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert task["task"] == path.stem
    assert task["output_type"] == "multiple_choice"
    assert task["doc_to_choice"] == list(DECISIONS)
    assert task["dataset_kwargs"]["data_files"] == {task["test_split"]: export.FILE.name}
    write_records(tmp_path / "data" / "test.jsonl", ROW_EXAMPLES)
    model = tiny.save(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    row = export.rows(tmp_path, "test", str(model))[0]
    text = Environment(undefined=StrictUndefined).from_string(task["doc_to_text"]).render(**row)
    own = path.stem.endswith("_prompt")
    assert text == (row["meditune_prompt"] if own else prompt_text(ROW_EXAMPLES[0]))
    assert text.endswith("Question: Does the drug help with pain?\nAnswer:") or own
    assert row[task["doc_to_target"]] == "yes"


# Without the harness's own tasks, whose listing takes longer than all else.
HARNESS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

model, tasks = sys.argv[1:]
found = simple_evaluate(
    "hf", f"pretrained={model},dtype=float32", ["meditune_pubmedqa"], device="cpu", batch_size=2, bootstrap_iters=0,
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
)
json.dump(found["samples"]["meditune_pubmedqa"], open("samples.json", "w"), default=str)
"""


@pytest.mark.slow
def test_the_harness_itself_says_the_same_of_every_item(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(TASKS))
    import export
    from meditune.data.example import write_records
    from meditune.files import write_jsonl

    write_records(tmp_path / "data" / "test.jsonl", ROW_EXAMPLES)
    model = tiny.save(tmp_path / "model")
    decided = [example for example in ROW_EXAMPLES if example.decision]
    write_jsonl(tmp_path / export.FILE, export.rows(tmp_path, "test"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    output_of(sys.executable, "-c", HARNESS, model, TASKS, cwd=tmp_path, env=environment)
    theirs = {sample["doc"]["id"]: sample for sample in json.loads((tmp_path / "samples.json").read_text())}
    ours = list(decisions(load(str(model), ModelSpec(base=str(model), dtype="float32")), decided, 900, "Scoring"))
    assert len(ours) == len(theirs) == len(decided)
    for row in ours:
        scored = [float(answer[0]) for answer in theirs[row["id"]]["filtered_resps"]]
        assert list(row["logits"].values()) == pytest.approx(scored, abs=1e-4)
        assert theirs[row["id"]]["acc"] == (row["prediction"] == row["reference"])
