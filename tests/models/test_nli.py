"""Models that judge support: three kinds behind one protocol, and what is said where one can't be used."""

import pytest
import torch

from meditune.errors import ModelError
from meditune.evidence.detector import placed
from meditune.models.nli import SupportQuestion, check, load_support_model

SOURCES = ("Pain fell in 47 of 120 adults.", "Nobody died. " + "The rest was told at length. " * 40)
ANSWER = "Pain fell in adults. Bananas cure colds."


def judge(folder, labels, kind="Sequence"):
    """A tiny BERT with random weights and a vocabulary of its own."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        BertConfig,
        BertTokenizer,
    )

    words = sorted({word.strip(".").lower() for word in " ".join((*SOURCES, ANSWER)).split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label=dict(enumerate(labels)),
        label2id={each: number for number, each in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(0)
    maker = AutoModelForTokenClassification if kind == "Token" else AutoModelForSequenceClassification
    model = maker.from_config(config)
    model.save_pretrained(folder)
    return model


def asked():
    return [
        SupportQuestion(SOURCES, "Does it help?", ANSWER, start, start + len(text)) for start, text in placed(ANSWER)
    ]


@pytest.fixture
def sure(monkeypatch):
    """Makes a stored model give the same logits whatever it reads."""

    def write(folder, model, logits):
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(logits))
        model.save_pretrained(folder)

    return write


def test_an_nli_model_gives_the_probability_of_entailment_wherever_its_label_stands(tmp_path, sure):
    model = judge(tmp_path / "nli", ["contradiction", "neutral", "ENTAILMENT"])
    sure(tmp_path / "nli", model, [0.0, 0.0, 2.0])
    found = list(load_support_model(str(tmp_path / "nli")).score(asked()))
    expected = float(torch.tensor([0.0, 0.0, 2.0]).softmax(0)[2])
    assert [each.score for each in found] == pytest.approx([expected, expected])
    assert all(each.spans == () for each in found)


def test_scores_depend_on_the_pair(tmp_path):
    judge(tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    found = [each.score for each in load_support_model(str(tmp_path / "nli")).score(asked())]
    assert len(set(found)) == 2
    assert all(0 < each < 1 for each in found)


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        (["LABEL_0"], [1.0], 0.7311),
        (["hallucinated", "consistent"], [0.0, 1.0], 0.7311),
        (["LABEL_0", "LABEL_1"], [1.0, 0.0], 0.2689),
    ],
)
def test_hhem_gives_its_logit_or_its_last_label(tmp_path, sure, labels, logits, expected):
    model = judge(tmp_path / "hhem", labels)
    sure(tmp_path / "hhem", model, logits)
    assert [each.score for each in load_support_model(f"hhem:{tmp_path / 'hhem'}").score(asked())] == pytest.approx(
        [expected] * 2, abs=1e-4
    )


def test_lettucedetect_marks_the_tokens_that_it_doubts(tmp_path, sure):
    folder = tmp_path / "lettuce"
    model = judge(folder, ["supported", "hallucinated"], "Token")
    sure(folder, model, [0.0, 2.0])
    first, second = load_support_model(f"lettucedetect:{folder}").score(asked())
    doubt = float(torch.tensor([0.0, 2.0]).softmax(0)[1])
    assert first.score == second.score == pytest.approx(1 - doubt)
    assert [ANSWER[span.start : span.end] for span in second.spans] == ["Bananas cure colds."]
    sure(folder, model, [2.0, 0.0])
    assert all(each.spans == () for each in load_support_model(f"lettucedetect:{folder}").score(asked()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/at/all", "neither an existing folder nor a hub id"),
        ("hhem:nothing here", "neither an existing folder nor a hub id"),
        ("owner/some-nli-model", "offline: copy its folder"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_named_with_the_ways_to_get_one(monkeypatch, name, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=said) as refused:
        check(name)
    assert "evaluate.faithfulness_model" in str(refused.value)


def test_labels_that_mean_something_else_are_refused(tmp_path):
    judge(tmp_path / "mood", ["happy", "sad"])
    with pytest.raises(ModelError, match=r"none of its labels \(happy, sad\) means entailment"):
        check(str(tmp_path / "mood"))
    judge(tmp_path / "three", ["a", "b", "c"], "Token")
    with pytest.raises(ModelError, match="this one has 3"):
        check(f"lettucedetect:{tmp_path / 'three'}")
