"""Models that judge support: kinds behind one protocol, the judge, and what is said where one can't be used."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import meditune
from meditune.assistant.answer_filter import SentenceChecker
from meditune.config.data_options import PromptFormat
from meditune.data.example import LABEL, Example, Passage
from meditune.engines.evidence_judge import DOUBTED, EvidenceJudge, TorchLabelModel, load_support_model, open_judge
from meditune.errors import ModelError
from meditune.evidence.lexical_detector import Sentence, Sources, evidence, placed, sentence_logit
from meditune.evidence.support_model import ClaimCorrection, SupportQuestion, SupportScore, load_correction
from meditune.models.nli import BATCH, check
from meditune.retrieve.citations import Citer
from meditune.retrieve.context_packing import PackedPassage
from meditune.retrieve.documents.document import IndexedPassage
from meditune.retrieve.hybrid_search import Hit
from tests import tiny

SOURCES = ("Pain fell in 47 of 120 adults.", "Nobody died. " + "The rest was told at length. " * 40)
ANSWER = "Pain fell in adults. Bananas cure colds."


def judge(folder, labels, kind="Sequence"):
    # The prompt of LettuceDetect is longer than a few words.
    return tiny.classifier(folder, labels, (*SOURCES, ANSWER), kind, places=512 if kind == "Token" else 64)


def asked():
    return [
        SupportQuestion(SOURCES, "Does it help?", ANSWER, start, start + len(text)) for start, text in placed(ANSWER)
    ]


def test_an_nli_model_gives_the_probability_of_entailment_wherever_its_label_stands(tmp_path):
    model = judge(tmp_path / "nli", ["contradiction", "neutral", "ENTAILMENT"])
    tiny.sure(tmp_path / "nli", model, [0.0, 0.0, 2.0])
    found = list(load_support_model(str(tmp_path / "nli")).score(asked()))
    expected = float(torch.tensor([0.0, 0.0, 2.0]).softmax(0)[2])
    assert [each.score for each in found] == pytest.approx([expected, expected])
    assert all(each.spans == () for each in found)


def test_a_run_without_a_judge_is_named_with_what_is_missing(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("name: claims\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"contains no judge: .*model.claims.json is missing.*meditune run"):
        check(str(tmp_path / "run"))


def test_scores_depend_on_the_pair(tmp_path):
    judge(tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    found = [each.score for each in load_support_model(str(tmp_path / "nli")).score(asked())]
    assert len(set(found)) == 2
    assert all(0 < each < 1 for each in found)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("", ["entailment", "neutral", "contradiction"]),
        ("hhem:", ["LABEL_0"]),
        ("minicheck:", ["LABEL_0", "LABEL_1"]),
        ("lettucedetect:", ["supported", "hallucinated"]),
    ],
)
@pytest.mark.parametrize("words", [400, 480, 2_000])
def test_a_sentence_longer_than_the_model_reads_is_judged_in_parts(tmp_path, kind, labels, words):
    model = judge(tmp_path / "judge", labels, "Token" if kind == "lettucedetect:" else "Sequence")
    long = " ".join(["pain fell"] * (words // 2)) + "."
    question = SupportQuestion(SOURCES, "Does it help?", long, 0, len(long))
    found = load_support_model(f"{kind}{tmp_path / 'judge'}")
    parts = list(found._parts(long))
    assert "".join(text for _, text in parts) == long
    assert all(long[start:].startswith(text) for start, text in parts)
    assert min(len(text) for _, text in parts) > 0.8 * max(len(text) for _, text in parts)
    (score,) = found.score([question])
    alone = [next(found.score([replace(question, start=start, end=start + len(text))])) for start, text in parts]
    assert score.score == pytest.approx(min(each.score for each in alone), abs=1e-6)
    if kind == "lettucedetect:":
        tiny.sure(tmp_path / "judge", model, [0.0, 2.0])
        (doubtful,) = load_support_model(f"{kind}{tmp_path / 'judge'}").score([question])
        assert "".join(long[each.start : each.end] for each in doubtful.spans) == long


def test_an_nli_model_tells_what_the_sources_refute(tmp_path):
    model = judge(tmp_path / "nli", ["entailment", "neutral", "Contradiction"])
    tiny.sure(tmp_path / "nli", model, [0.0, 0.0, 2.0])
    (found, _) = load_support_model(str(tmp_path / "nli")).score(asked())
    assert found.refuted == pytest.approx(float(torch.tensor([0.0, 0.0, 2.0]).softmax(0)[2]))
    assert found.refuted > 0.5 > found.score


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        (["LABEL_0"], [1.0], 0.7311),
        (["hallucinated", "consistent"], [0.0, 1.0], 0.7311),
        (["LABEL_0", "LABEL_1"], [1.0, 0.0], 0.2689),
    ],
)
def test_hhem_gives_its_logit_or_its_last_label(tmp_path, labels, logits, expected):
    model = judge(tmp_path / "hhem", labels)
    tiny.sure(tmp_path / "hhem", model, logits)
    assert [each.score for each in load_support_model(f"hhem:{tmp_path / 'hhem'}").score(asked())] == pytest.approx(
        [expected] * 2, abs=1e-4
    )


def read_by(found, question):
    """The score of a question, and the rows of tokens that the model reads for it, without their padding."""
    rows = []

    def keep(_, __, given):
        assert len(given["input_ids"]) <= BATCH
        kept = zip(given["input_ids"], given["attention_mask"], strict=True)
        rows.extend(ids[mask.bool()].tolist() for ids, mask in kept)

    hook = found._model.register_forward_pre_hook(keep, with_kwargs=True)
    (score,) = found.score([question])
    hook.remove()
    return score.score, rows


def minicheck(folder, kind):
    """A tiny MiniCheck model, and how its publisher computes the probability of support from a row of tokens."""
    if kind == "encoder":
        made = judge(folder, ["LABEL_0", "LABEL_1"]).eval()
        return made, lambda row: made(input_ids=row).logits[0].softmax(0)[1]
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    made = T5ForConditionalGeneration(T5Config(vocab_size=500, **shape)).eval()
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    start = torch.zeros((1, 1), dtype=torch.long)
    return made, lambda row: made(input_ids=row, decoder_input_ids=start).logits[0, 0, [3, 209]].softmax(0)[1]


@pytest.mark.parametrize(("kind", "prefix", "end"), [("encoder", "", "[SEP]"), ("t5", "predict: ", "</s>")])
def test_minicheck_reads_source_and_sentence_as_its_publisher_wrote_them(tmp_path, kind, prefix, end):
    _, supported = minicheck(tmp_path / "mini", kind)
    found = load_support_model(f"minicheck:{tmp_path / 'mini'}")
    question = replace(asked()[0], sources=SOURCES[:1])
    score, rows = read_by(found, question)
    assert rows == [found._tokenizer(f"{prefix}{SOURCES[0]}{end}{question.sentence}")["input_ids"]]
    with torch.no_grad():
        assert score == pytest.approx(float(supported(torch.tensor(rows))), abs=1e-6)
    # Of a long source, each window stands between the same tokens, and the window with the most support counts.
    source = SOURCES[1] * (1 if kind == "encoder" else 3)
    score, rows = read_by(found, replace(question, sources=(source,)))
    ids = found._tokenizer(f"{prefix}{source}{end}{question.sentence}")["input_ids"]
    tail = found._tokenizer(f"{end}{question.sentence}")["input_ids"][kind == "encoder" :]
    assert len(rows) > 1
    assert all(row[-len(tail) :] == tail and row[0] == ids[0] for row in rows)
    assert {each for row in rows for each in row} == set(ids)
    assert len(rows[0]) == (62 if kind == "encoder" else 510)
    with torch.no_grad():
        assert score == pytest.approx(max(float(supported(torch.tensor([row]))) for row in rows), abs=1e-5)


def test_minicheck_s_t5_has_no_classifier_and_other_models_are_no_minicheck(tmp_path):
    minicheck(tmp_path / "t5", "t5")
    with pytest.raises(ModelError, match=r"no weights for classification_head.* minicheck:NAME"):
        check(f"hhem:{tmp_path / 't5'}")
    judge(tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    with pytest.raises(ModelError, match=r"two labels.* this model has 3 \(entailment, neutral, contradiction\)"):
        check(f"minicheck:{tmp_path / 'nli'}")


def test_lettucedetect_marks_the_tokens_that_it_doubts(tmp_path):
    folder = tmp_path / "lettuce"
    model = judge(folder, ["supported", "hallucinated"], "Token")
    tiny.sure(folder, model, [0.0, 2.0])
    first, second = load_support_model(f"lettucedetect:{folder}").score(asked())
    doubt = float(torch.tensor([0.0, 2.0]).softmax(0)[1])
    assert first.score == second.score == pytest.approx(1 - doubt)
    assert [ANSWER[span.start : span.end] for span in second.spans] == ["Bananas cure colds."]
    tiny.sure(folder, model, [2.0, 0.0])
    assert all(each.spans == () for each in load_support_model(f"lettucedetect:{folder}").score(asked()))


QUESTION_PROMPT = """Briefly answer the following question:
Does it help?
Bear in mind that your response should be strictly based on the following 2 passages:
passage 1: Pain fell in 47 of 120 adults.
passage 2: Nobody died.
In case the passages do not contain the necessary information to answer the question, please reply with: \
"Unable to answer based on given passages."
output:"""
SUMMARY_PROMPT = """Summarize the following text:
passage 1: Pain fell in 47 of 120 adults.
passage 2: Nobody died.
output:"""


def test_lettucedetect_reads_the_prompt_of_its_publisher_with_every_window_of_the_sources(tmp_path):
    texts = (QUESTION_PROMPT.replace(":", " "), SUMMARY_PROMPT, *SOURCES, ANSWER)
    tiny.classifier(tmp_path / "lettuce", ["supported", "hallucinated"], texts, "Token", places=512)
    found = load_support_model(f"lettucedetect:{tmp_path / 'lettuce'}")
    question = replace(asked()[0], sources=(SOURCES[0], "Nobody died."))
    for words, prompt in (("Does it help?", QUESTION_PROMPT), ("", SUMMARY_PROMPT)):
        _, rows = read_by(found, replace(question, question=words))
        assert rows == [found._tokenizer(prompt, question.sentence)["input_ids"]]
    long = "The rest was told at length. " * 1000
    _, rows = read_by(found, replace(question, sources=(long,), question="Does it help? " * 400))
    last = QUESTION_PROMPT.partition("died.\n")[2]
    tail = found._tokenizer(last, question.sentence)["input_ids"][1:]
    head = found._tokenizer(QUESTION_PROMPT.partition("\nBear")[0], add_special_tokens=False)["input_ids"]
    assert len(rows) > BATCH
    assert max(map(len, rows)) == 510
    assert all(row[-len(tail) :] == tail and row[1 : len(head) + 1] == head for row in rows)


def test_lettucedetect_gets_the_question_of_an_answer_whose_sentences_are_cited(tmp_path):
    judge(tmp_path / "lettuce", ["supported", "hallucinated"], "Token")
    found = open_judge(f"lettucedetect:{tmp_path / 'lettuce'}")
    asked_about = []
    found._model.score = lambda asked: asked_about.extend(each.question for each in asked) or [SupportScore(1.0)]
    hit = Hit(IndexedPassage("own:1#0", "own:1", "own", SOURCES[0]), 1.0, 1.0, 1.0)
    checker = SentenceChecker("Does it help?", [PackedPassage(hit, "Pain", SOURCES[0])], False, found)
    assert [each.text for each in checker.add("Pain fell in 47 of 120 adults. And")] == [SOURCES[0]]
    assert asked_about == ["Does it help?"]


def test_a_lettucedetect_model_that_is_too_short_for_its_prompt_is_refused(tmp_path):
    tiny.classifier(tmp_path / "short", ["supported", "hallucinated"], (ANSWER,), "Token", places=128)
    with pytest.raises(ModelError, match="reads at most 126 tokens, but a LettuceDetect model must read at least 500"):
        check(f"lettucedetect:{tmp_path / 'short'}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/at/all", "neither an existing folder nor a hub id"),
        ("hhem:nothing here", "neither an existing folder nor a hub id"),
        ("owner/some-nli-model", "offline: copy the model's folder"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_named_with_the_ways_to_get_one(monkeypatch, name, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"--judge.*Without this option[^$]*meditune run evidence"):
        open_judge(name)
    with pytest.raises(ModelError, match=said) as refused:
        check(name)
    assert "evaluate.faithfulness_model" in str(refused.value)


def test_labels_that_mean_something_else_are_refused(tmp_path):
    judge(tmp_path / "mood", ["happy", "sad"])
    with pytest.raises(ModelError, match=r"none of its labels \(happy, sad\) means entailment"):
        check(str(tmp_path / "mood"))
    judge(tmp_path / "three", ["a", "b", "c"], "Token")
    with pytest.raises(ModelError, match="this model has 3"):
        check(f"lettucedetect:{tmp_path / 'three'}")


@pytest.mark.parametrize("kind", ["", "hhem:", "lettucedetect:"])
def test_a_model_without_a_trained_classifier_is_refused_before_it_judges(tmp_path, kind):
    model = judge(tmp_path / "encoder", ["entailment", "other"], "Token" if kind == "lettucedetect:" else "Sequence")
    model.bert.save_pretrained(tmp_path / "encoder")  # the configuration keeps its labels
    for use in (check, open_judge):
        with pytest.raises(ModelError, match=r"no weights for classifier.bias, classifier.weight.* would be random"):
            use(f"{kind}{tmp_path / 'encoder'}")


@pytest.mark.parametrize(
    ("kind", "labels", "made", "supported"),
    [
        ("", ["contradiction", "neutral", "entailment"], "Sequence", [0.0, 0.0, 3.0]),
        ("hhem:", ["LABEL_0", "LABEL_1"], "Sequence", [0.0, 3.0]),
        ("minicheck:", ["LABEL_0", "LABEL_1"], "Sequence", [0.0, 3.0]),
        ("lettucedetect:", ["supported", "hallucinated"], "Token", [3.0, 0.0]),
    ],
)
def test_models_of_others_judge_the_sentences_of_answers(tmp_path, kind, labels, made, supported):
    folder = tmp_path / "judge"
    model = judge(folder, labels, made)
    passage = PackedPassage(
        Hit(IndexedPassage("own:1#0", "own:1", "own", SOURCES[0]), 1.0, 1.0, 1.0), "Pain", SOURCES[0]
    )
    for logits, cited in ((supported, (0,)), (supported[::-1], ())):
        tiny.sure(folder, model, logits)
        found = open_judge(f"{kind}{folder}")
        assert found.name == f"{kind}judge", "no path on this machine"
        (verdict,) = found.supports(["Pain fell."], SOURCES)
        assert (verdict.supported > 0.5) == bool(cited)
        assert verdict.supported + verdict.refuted + verdict.unclear == pytest.approx(1)
        assert Citer([passage], found).judge("Pain fell in 47 of 120 adults.").places == cited
    # No probability reaches the highest threshold.
    strict = open_judge(f"{kind}{folder}", 1.0)
    assert strict.name == f"{kind}judge, threshold 1"
    tiny.sure(folder, model, supported)
    assert Citer([passage], strict).judge("Pain fell in 47 of 120 adults.").places == ()


def test_programs_can_ask_any_judge(tmp_path):
    folder = tmp_path / "judge"
    tiny.sure(folder, judge(folder, ["contradiction", "neutral", "entailment"]), [3.0, 1.0, 0.0])
    passage, known = "Pain fell by 30 percent in the group with the drug.", "Pain fell by 30 percent in the group."
    # More claims than one batch, with different passages.
    claims = [("Pain rose.", [passage, "Sleep wasn't measured."]), ("Pain fell.", passage), ("It works.", [" "])] * 30
    opened = meditune.open_judge(folder)
    found = opened.supports_each(claims)
    assert (opened.name, len(found)) == ("judge", len(claims))
    assert found[0].refuted > found[0].unclear > found[0].supported
    assert [each.sentence for each in found[:3]] == [passage, passage, ""]
    assert (found[2].supported, found[2].refuted, found[2].unclear) == (0.0, 0.0, 1.0), "nothing was given to read"
    assert found[3:] == found[:3] * 29
    assert meditune.supports("Pain rose.", claims[0][1], judge=folder) == found[0]
    # Without a judge, the lexical detector compares the words.
    same, other = meditune.open_judge().supports_each([(known, passage), ("Zebras sleep at night.", passage)])
    assert same.supported > 0.8 > 0.3 > other.supported
    assert (same.refuted, same.sentence) == (0.0, passage)
    assert same.supported + same.unclear == pytest.approx(1)
    assert tiny_evidence_judge().verdicts([(known, (passage,))])[0].sentence == passage


PASSAGES = ("Pain fell by 30 percent in the group with the drug.", "Sleep was not measured in this study.")
STATEMENTS = ["The drug helps with pain.", "Sleep was measured.", "Exercise helps."]


def tiny_evidence_judge(correction=None, **changes):
    loaded = tiny.loaded("qwen2")
    form = PromptFormat(**({"max_tokens": 256, "answer_tokens": 32} | changes))
    return EvidenceJudge(TorchLabelModel(replace(loaded, form=form)), correction or ClaimCorrection(), "tiny")


def alone(made, statement, passages):
    """The probabilities by a plain forward pass of the model over the prompt's tokens."""
    context = tuple(Passage(text=text) for text in passages)
    example = Example(id="1", source="x", question=statement, context=context, group="1", meta={LABEL: "refuted"})
    item = made.model.encoder.supervised(example, "claim")
    with torch.no_grad():
        logits = made.model.loaded.model(torch.tensor([item.prompt])).logits[0, -1, list(item.choices)]
    return logits.softmax(0).tolist()


def test_without_a_passage_everything_is_unclear():
    (found,) = tiny_evidence_judge().supports(["The drug helps."], ["", " "])
    assert (found.supported, found.refuted, found.unclear, found.sentence) == (0.0, 0.0, 1.0, "")


def test_a_busy_judge_is_not_waited_for_longer_than_wanted_and_a_failing_one_is_named():
    made = tiny_evidence_judge()
    with made.model._lock, pytest.raises(TimeoutError):
        made.supports(STATEMENTS, PASSAGES, 0.05)
    assert len(made.supports(STATEMENTS, PASSAGES, 5.0)) == len(STATEMENTS)
    head = made.model.loaded.model.get_output_embeddings()
    for rows in (len(head.weight), 1):  # torch raises another error for missing rows than for a wrong width
        head.weight = torch.nn.Parameter(torch.zeros(rows, 3))
        with pytest.raises(ModelError, match="The judge tiny failed"):
            made.supports(STATEMENTS, PASSAGES)


def test_statements_judged_together_get_the_probabilities_of_each_alone():
    made = tiny_evidence_judge()
    for statement, verdict in zip(STATEMENTS, made.supports(STATEMENTS, PASSAGES), strict=True):
        found = [verdict.supported, verdict.refuted, verdict.unclear]
        assert found == pytest.approx(alone(made, statement, PASSAGES), abs=1e-5)
        assert verdict.sentence in PASSAGES


def logit(share):
    return math.log(share / (1 - share))


def test_a_sentence_of_an_answer_is_judged_alone_and_in_its_answer_and_doubted_if_its_words_are_strange():
    made = tiny_evidence_judge()
    true, strange = "Pain fell in the group with the drug.", "Zebras slept in 14 Lisbon hotels."
    answer = f"{true} {strange}"
    asked = [
        SupportQuestion(PASSAGES, "", answer, answer.index(text), answer.index(text) + len(text))
        for text in (true, strange)
    ]
    whole = alone(made, answer, PASSAGES)
    for text, score in zip((true, strange), made.score(asked), strict=True):
        own, doubt = alone(made, text, PASSAGES), 0.0
        if text == strange:
            doubt = sentence_logit(evidence(Sentence(text), Sources(PASSAGES))) - DOUBTED
            assert doubt < 0
        support = (logit(own[0]) + logit(whole[0]) + doubt) / 2
        assert logit(score.score) == pytest.approx(support, abs=1e-4)
        assert logit(score.refuted) == pytest.approx((logit(own[1]) + logit(whole[1])) / 2, abs=1e-4)
    # A single sentence is its own answer.
    (score,) = made.score([SupportQuestion(PASSAGES, "", f"{true}\n", 0, len(true))])
    assert score.score == pytest.approx(alone(made, true, PASSAGES)[0], abs=1e-5)
    # In an answer that is too long to be judged at once, a sentence is judged alone.
    small = tiny_evidence_judge(max_tokens=96)
    (score,) = small.score([SupportQuestion(PASSAGES, "", answer * 20, 0, len(true))])
    assert score.score == pytest.approx(small.supports([true], PASSAGES)[0].supported, abs=1e-5)


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("Allopurinol lowers uric acid.", False),
        ("Zyloric lowers uric acid.", False),
        ("Tylenol and paracetamol relieve pain.", False),
        ("Allupurinol lowers uric acid.", True),
        ("Febuxostat lowers uric acid.", True),
    ],
)
def test_a_wrong_name_is_not_supported_however_sure_the_judge_is(sentence, wrong):
    made = tiny_evidence_judge(ClaimCorrection(bias={"supported": 20.0}))
    passages = ("Allopurinol lowers uric acid.", "Acetaminophen relieves pain.")
    (verdict,) = made.supports([sentence], passages)
    (score,) = made.score([SupportQuestion(passages, "", sentence, 0, len(sentence))])
    for supported in (verdict.supported, score.score):
        assert supported <= 0.25 if wrong else supported > 0.9
    assert verdict.supported + verdict.refuted + verdict.unclear == pytest.approx(1)


def test_of_windows_the_strongest_support_and_the_strongest_refutation_count():
    made = tiny_evidence_judge(max_tokens=64)
    claim = STATEMENTS[0]
    texts = ["Nobody knew whether the drug or the placebo was given.", PASSAGES[0]]
    odds = [
        [p / unclear for p in (supported, refuted)]
        for supported, refuted, unclear in (alone(made, claim, [t]) for t in texts)
    ]
    (first, second) = odds
    assert (first[0] > second[0]) != (first[1] > second[1]), "each side is strongest in another window"
    weights = [max(first[0], second[0]), max(first[1], second[1]), 1.0]
    (verdict,) = made.supports([claim], texts)
    found = [verdict.supported, verdict.refuted, verdict.unclear]
    assert found == pytest.approx([each / sum(weights) for each in weights], abs=1e-5)
    long = tuple(f"Patient {number} was asked and answered at once." for number in range(40))
    (verdict,) = made.supports([claim], long)
    (same,) = made.supports([claim], (" ".join(long),))
    assert verdict.supported == same.supported
    unbroken = "group " * 150 + "with the drug"
    (read,) = made.supports([claim], [unbroken])
    assert read.supported != pytest.approx(alone(made, claim, ())[0], abs=1e-7)


def test_a_long_statement_is_judged_in_parts_of_which_the_least_supported_and_the_most_refuted_count():
    made = tiny_evidence_judge(max_tokens=128)
    parts = made.supports(STATEMENTS, PASSAGES[:1])
    (whole,) = made.supports([" ".join(STATEMENTS * 8)], PASSAGES[:1])
    assert whole.supported == pytest.approx(min(part.supported for part in parts), abs=1e-5)
    assert whole.refuted == pytest.approx(max(part.refuted for part in parts), abs=1e-5)
    assert whole.supported + whole.refuted + whole.unclear == pytest.approx(1)
    # One sentence without an end is read at its commas or between words, and a word without an end in pieces.
    for endless in ("sleep was measured, " * 80, "word " * 200, "acgt" * 300):
        asked = [SupportQuestion(PASSAGES, "", endless.strip(), 0, len(endless.strip()))]
        (score,) = made.score(asked)
        assert 0 < score.score < 1


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
