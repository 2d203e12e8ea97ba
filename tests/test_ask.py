"""One question to one model."""

import pytest

from meditune.assistant.cited_answers import ask
from meditune.config.data_options import PromptFormat
from meditune.data.example import Example, Passage
from meditune.errors import DataError, ModelError
from meditune.prompts import save_format
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("ask") / "model")


def test_the_decision_is_the_likeliest_and_the_shares_add_up(folder):
    answer = ask(str(folder), "Does the drug help?", [], max_new_tokens=4)
    assert answer.decision == max(answer.probabilities, key=answer.probabilities.get)
    assert answer.probabilities.keys() == {"yes", "no", "maybe"}
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_sources_are_read(folder):
    without = ask(str(folder), "Does the drug help?", [], max_new_tokens=4)
    resting = ask(str(folder), "Does the drug help?", ["Results: pain fell by 30 percent."], max_new_tokens=4)
    assert resting.probabilities != without.probabilities


def test_the_models_own_format_is_used(folder, tmp_path):
    own = tiny.save(tmp_path / "model")
    save_format(PromptFormat(question_cue="Exercise:", decision_cue="Hearts:"), own)
    plain = ask(str(folder), "Does the drug help?", [], max_new_tokens=4)
    assert ask(str(own), "Does the drug help?", [], max_new_tokens=4).probabilities != plain.probabilities


def test_a_cue_for_plain_words_is_used_where_the_model_has_one(folder, tmp_path):
    own = tiny.save(tmp_path / "model")
    save_format(PromptFormat(plain_cue="In plain words:"), own)

    def said(model, style):
        return ask(str(model), "Does the drug help?", [], max_new_tokens=8, style=style).text

    assert said(own, "expert") == said(folder, "expert") == said(folder, "plain")
    assert said(own, "plain") != said(own, "expert")


def test_asking_shows_the_prompt_that_evaluation_shows(folder):
    """The same likelihoods as scoring a test item with this question and context."""
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.models.load import load
    from meditune.models.shared_prefix_batch import rows_of

    example = Example(
        id="t:1", source="t", group="1", question="Does it help?", context=(Passage(text="It did."),), decision="no"
    )
    loaded = load(str(folder))
    encoder = loaded.encoder(PromptFormat())
    scores = score(loaded, rows_of([encoder.supervised(example, "decision")]), 2048, "", encoder.label_ids())
    asked = ask(str(folder), "Does it help?", ["It did."], max_new_tokens=2)
    assert asked.probabilities == pytest.approx(probabilities(scores.decisions["t:1"]), abs=1e-6)


def test_a_long_source_loses_its_beginning_not_the_question(folder):
    long = " ".join(f"We saw {number} hearts." for number in range(80))
    answer = ask(str(folder), "Does the drug help?", [long], max_new_tokens=2)
    other = ask(str(folder), "Does sleep help?", [long], max_new_tokens=2)
    assert answer.probabilities != other.probabilities


@pytest.mark.parametrize(("question", "text"), [("", "no question"), ("  ", "no question"), ("why " * 900, "too long")])
def test_no_question_or_one_too_long(folder, question, text):
    with pytest.raises(DataError, match=text):
        ask(str(folder), question, [])


def test_a_model_that_is_not_there():
    with pytest.raises(ModelError, match="Three ways"):
        ask("/no/model", "Does it help?", [])
