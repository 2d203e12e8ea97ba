"""The judge says what its model's answers say, whatever is judged beside a statement, and reads long passages whole."""

from dataclasses import replace

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.data.example import LABEL, Example, Passage
from meditune.errors import ModelError
from meditune.evidence.support_model import ClaimCorrection, SupportQuestion, load_correction
from meditune.models.evidence_judge import EvidenceJudge
from tests import tiny

PASSAGES = ("Pain fell by 30 percent in the group with the drug.", "Sleep was not measured in this study.")
STATEMENTS = ["The drug helps with pain.", "Sleep was measured.", "Exercise helps."]


def judge(correction=None, **changes):
    loaded = tiny.loaded("qwen2")
    form = PromptFormat(**({"max_tokens": 256, "answer_tokens": 32} | changes))
    return EvidenceJudge(replace(loaded, form=form), correction or ClaimCorrection())


def alone(made, statement, passages):
    """The probabilities by a plain forward pass of the model over the prompt's tokens."""
    context = tuple(Passage(text=text) for text in passages)
    example = Example(id="1", source="x", question=statement, context=context, group="1", meta={LABEL: "refuted"})
    item = made.loaded.encoder(made.loaded.form).supervised(example, "claim")
    with torch.no_grad():
        logits = made.loaded.model(torch.tensor([item.prompt])).logits[0, -1, list(item.choices)]
    return logits.softmax(0).tolist()


def test_statements_judged_together_get_the_probabilities_of_each_alone():
    made = judge()
    for statement, verdict in zip(STATEMENTS, made.supports(STATEMENTS, PASSAGES), strict=True):
        found = [verdict.supported, verdict.refuted, verdict.unclear]
        assert found == pytest.approx(alone(made, statement, PASSAGES), abs=1e-5)
        assert verdict.sentence in PASSAGES
    asked = [SupportQuestion(PASSAGES[:1], "", STATEMENTS[0], 0, len(STATEMENTS[0]))]
    (score,) = made.score(asked)
    assert score.score == pytest.approx(alone(made, STATEMENTS[0], PASSAGES[:1])[0], abs=1e-5)


def test_passages_that_dont_fit_are_read_in_windows_and_the_one_that_supports_most_decides():
    made = judge(max_tokens=64)
    long = tuple(f"Patient {number} was asked and answered at once." for number in range(40))
    (verdict,) = made.supports(STATEMENTS[:1], long)
    (same,) = made.supports(STATEMENTS[:1], (" ".join(long),))
    assert verdict.supported == same.supported
    assert verdict.supported >= alone(made, STATEMENTS[0], long[:1])[0] - 0.2
    with pytest.raises(ModelError, match="too long for the judge"):
        made.supports(["word " * 80], PASSAGES)


def test_the_correction_changes_probabilities_and_travels_with_the_model(tmp_path):
    correction = ClaimCorrection(2.0, {"supported": 0.0, "refuted": 1.0, "not_enough_information": 0.0}, 0.4)
    correction.save(tmp_path)
    assert load_correction(tmp_path) == correction
    assert load_correction(tmp_path / "elsewhere") is None
    plain = correction.probabilities({"supported": 2.0, "refuted": 0.0})
    assert plain == pytest.approx({"supported": 0.5, "refuted": 0.5})
    (tmp_path / "claims.json").write_text('{"heat": 1}')
    with pytest.raises(ModelError, match=r"claims\.json"):
        load_correction(tmp_path)
