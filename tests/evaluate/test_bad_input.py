"""Models and items that can't be measured, or only in part, are named in a sentence."""

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.data.preference.pairs import Pair
from meditune.errors import ModelError
from meditune.evaluate import likelihood
from meditune.evaluate.evaluator import Evaluator
from meditune.evaluate.likelihood import decisions, score
from meditune.evaluate.predictions import Predictions, read
from meditune.evaluate.summary import empty_answers
from meditune.evaluate.weights_backend import WeightsBackend, generate_answers
from meditune.models.shared_prefix_batch import rows_of
from tests import tiny
from tests.commands import meditune
from tests.models.test_forward import EXAMPLES

FORM = PromptFormat(max_tokens=256, answer_tokens=32)
RECIPE = Recipe.model_validate({"name": "x", "prompt": FORM, "evaluate": {"max_new_tokens": 4, "general_tokens": 0}})


def broken():
    """A model that gives NaN on the second of two examples, the only one with an omega."""
    loaded = tiny.loaded()
    example = EXAMPLES[1].model_copy(update={"id": "odd", "question": "Ω?"})
    token = loaded.tokenizer("Ω")["input_ids"][0]
    with torch.no_grad():
        weight = loaded.model.get_input_embeddings().weight
        loaded.model.get_output_embeddings().weight = torch.nn.Parameter(weight.detach().clone())
        weight[token] = float("nan")
    return loaded, [EXAMPLES[0], example]


def says(where: str) -> str:
    return rf"llama computes numbers that aren't finite on {where} \(in float32\), so it can't be evaluated"


@pytest.mark.parametrize("task", ["decision", "answer"])
def test_likelihoods_that_are_no_numbers_name_the_item_and_the_model(task):
    loaded, examples = broken()
    encoder = loaded.encoder(FORM)
    rows = rows_of([encoder.supervised(example, task) for example in examples])
    with pytest.raises(ModelError, match=says("odd")):
        score(loaded, rows, 512, "Scoring", encoder.label_ids())


def test_answers_are_never_chosen_among_what_is_no_number():
    loaded, examples = broken()
    prompts = [loaded.encoder(FORM).prompt(example, "answer") for example in examples]
    with pytest.raises(ModelError, match=says("odd")):
        generate_answers(loaded, prompts, 4, "Writing")


def test_pairs_that_can_t_be_compared_are_named():
    loaded, examples = broken()
    pair = Pair(
        id="odd-pair",
        question=examples[1].question,
        context=(),
        chosen="The drug helps.",
        rejected="The drug hurts.",
        kind="own",
        group="g",
    )
    with pytest.raises(ModelError, match=says("odd-pair")):
        list(likelihood.score_pairs(loaded, [pair], loaded.encoder(FORM), 512, "Pairs"))


def test_a_model_in_a_small_number_format_is_to_be_tried_in_a_larger_one():
    loaded, examples = broken()
    loaded.model.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"--set model\.dtype=float32"):
        list(decisions(loaded, examples, 512, "Scoring"))


def test_neither_chat_template_nor_padding_token_is_needed(tmp_path):
    loaded = tiny.loaded()
    loaded.tokenizer.pad_token = None
    assert loaded.tokenizer.chat_template is None
    assert loaded.pad_id == loaded.tokenizer.eos_token_id
    Evaluator(RECIPE, EXAMPLES, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    assert len(read(tmp_path, "model").answer) == len(EXAMPLES)


def test_without_an_end_token_only_the_protocol_without_one_works(tmp_path):
    loaded = tiny.loaded()
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Evaluator(RECIPE, EXAMPLES, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    assert len(list(decisions(loaded, EXAMPLES, 512, "Scoring"))) == len(EXAMPLES)


def test_empty_answers_and_missing_references_are_said(tmp_path, capsys):
    loaded = tiny.loaded()
    with torch.no_grad():
        # The final norm leaves no hidden state: all logits are equal, and the first token, a special one, is likeliest.
        loaded.model.model.norm.weight.zero_()
    examples = [*EXAMPLES, Example(id="bare", source="t", question="Is it?", decision="no", group="bare")]
    Evaluator(RECIPE, examples, tmp_path).measure(WeightsBackend(loaded, RECIPE), "model")
    said = capsys.readouterr().err
    assert "1 of 4 items have no reference answer and are measured by their decision only, such as bare." in said
    assert "model gave empty answers to 3 items, such as e0: it stopped at once, or wrote only whitespace." in said
    assert empty_answers(read(tmp_path, "model")) == 3
    assert empty_answers(Predictions(answer=[{"prediction": "Yes."}, {"prediction": " "}])) == 1


def test_the_command_ends_with_a_sentence(tmp_path):
    folder = tiny.save(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("norm.weight"))
    weights[name].fill_(float("inf"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    given = ("--set", "data.sources=[{name: sample, limit: 20}]", "--set", "data.split=group")
    done = meditune("evaluate", folder, "--output", tmp_path / "out", *given, "--set", "model.dtype=float32")
    done.refused(4, str(folder), "aren't finite on sample:synthetic-", "can't be evaluated")
    assert not list((tmp_path / "out" / "predictions").glob("*.jsonl"))
