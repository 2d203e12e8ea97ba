"""A tuned model is tuned further on pairs, and the usual report says which answers both models prefer, too.

KTO does this with a server's feedback. The losses: what they are at the start, and that they are TRL's and the papers'.
"""

import json
import math
import shutil

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import LoraSpec, TrainSpec
from meditune.data.example import Example
from meditune.data.preference_pairs import Pair
from meditune.data.splits import Splits
from meditune.models.adapters import add_lora
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.load import load
from meditune.models.shared_prefix_batch import rows_of_pairs
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.database import SQLiteDatabase
from meditune.train import finetune, replay
from meditune.train.losses import PairLoss, SingleAnswerLoss, dpo, log_likelihoods, mismatched, weights_of_thumbs
from meditune.train.trainer import TrainingRows, train
from meditune.train.training_plan import check
from tests import corpus, tiny
from tests.assistants import index_of
from tests.commands import jsonl, meditune, read_rows, stopped_after
from tests.data.test_preference_pairs import pair_rows
from tests.models.test_forward import EXAMPLES

REJECTED = ("The drug does not help.", "Exercise was not measured in this study of hearts.", "Diet helps with sleep.")
PAIRS = [
    Pair(
        id=f"{example.id}/own",
        question=example.question,
        context=example.context,
        chosen=example.answer,
        rejected=rejected,
        group=example.group,
        kind="own",
    )
    for example, rejected in zip(EXAMPLES, REJECTED, strict=True)
]


QUICK = {
    "data__sources__0__limit": 24,
    "evaluate__answers": 4,
    "evaluate__max_new_tokens": 4,
    "evaluate__resamples": 100,
    "model__lora__r": 4,
    "model__top_layers": 1,
}


@pytest.fixture(scope="module")
def place(place):
    """A bench with a run of supervised fine-tuning in `sft`, and a file of pairs."""
    place.run("sft", **QUICK, train__epochs=1).ok()
    jsonl(place.folder.parent / "pairs.jsonl", pair_rows(60))
    return place


def prefer(place, name, base="sft", pairs=True, **changes):
    """`meditune run preference` on the model of another run."""
    more = {"train__preference__path": place.folder.parent / "pairs.jsonl"} if pairs else {}
    words = place.settings(**QUICK | {"model__base": place.folder / base} | more | changes)
    return meditune("run", "preference", "--output", place.folder / name, *words)


@pytest.fixture(scope="module")
def preferred(place):
    """A run of DPO on the file's pairs, and what it printed."""
    result = prefer(place, "dpo").ok()
    return place.folder / "dpo", result


def test_held_out_pairs_are_preferred_more_than_before(place, preferred):
    folder, result = preferred
    report = place.report("dpo")
    margin, accuracy = (report["comparison"][f"preference_{name}"] for name in ("margin", "accuracy"))
    assert margin["better"] is True
    assert report["tuned"]["preference_margin"] > report["base"]["preference_margin"] + 1
    assert accuracy["delta"] >= 0
    kinds = report["preference"]
    held_out = read_rows(folder / "pairs" / "held_out.jsonl")
    assert kinds["tuned"]["own"]["pairs"] == report["items"]["preference"] == len(held_out)
    measured = read_rows(folder / "predictions" / "tuned-preference.jsonl")
    assert {row["id"]: row["group"] for row in measured} == {row["id"]: row["group"] for row in held_out}
    assert kinds["tuned"]["own"]["preference_margin"] == report["tuned"]["preference_margin"]
    assert "Preference margin" in result.out
    assert "Preference margin" in (folder / "report.html").read_text(encoding="utf-8")
    assert "held-out pairs" in (folder / "report.html").read_text(encoding="utf-8")
    assert "Preference" not in (place.folder / "sft" / "report.html").read_text(encoding="utf-8")
    assert report["training"]["objective"] == "dpo"
    assert report["training"]["preference"]["train"] == {"own": 60 - len(held_out)}
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "Experimental: preference tuning with DPO, beta 0.1" in card


def test_kto_learns_from_the_feedback_that_a_server_exports(place, monkeypatch):
    monkeypatch.setattr("meditune.retrieve.index.load_encoder", lambda _: corpus.TINY)
    folder = place.folder.parent
    (passage,) = index_of(folder).passages("clinic:lice.txt")
    answers = Answers(SQLiteDatabase(folder / "store"))
    for number in range(48):
        up, facts = number % 3 > 0, {"passages": [passage["id"]]} if number == 5 else {}
        texts = {
            "question": f"Does own treatment {number} help?",
            "answer": f"Own treatment {number} {'helps' if up else 'harms'}, said an expert.",
        }
        answers.keep(Answer(f"a{number}", "k", "ask", "m v1", facts=facts, **texts))
        answers.add_feedback(Feedback(f"a{number}", "k", "up" if up else "down"))
    answers.keep(Answer("b", "k", "ask", "m v1", question="Does anything else help?", answer="Nobody rated this."))
    exported, store = folder / "answers.jsonl", folder / "store"
    words = ("--output", exported, "--store", store, "--index", folder / "index")
    meditune("answers", "export", *words).ok()
    changes = {"train__objective": "kto", "train__preference__path": exported, "train__batch_size": 16}
    result = prefer(place, "kto", **changes, train__epochs=2).ok()
    report = place.report("kto")
    margin, trained = report["comparison"]["preference_margin"], report["training"]["preference"]
    assert margin["better"] is True
    assert report["tuned"]["preference_margin"] > report["base"]["preference_margin"] + 0.5
    assert "preference_accuracy" not in report["tuned"]
    up, down = trained["train"]["up"], trained["train"]["down"]
    assert up + down + sum(trained["held_out"].values()) == 48
    assert set(trained["held_out"]) == {"up", "down"}
    assert trained["left_out"] == {"answers without feedback": 1}
    assert trained["weights"] == {"up": 1.0, "down": pytest.approx(0.75 * up / down)}
    assert (
        f"Rated answers (experimental) from {exported}: {up + down} for training ({down} down, {up} up)" in result.err
    )
    assert f"Training on {up + down} rated answers" in result.err
    # With equal models, every answer's loss is half its weight.
    first = read_rows(place.folder / "kto" / "training.jsonl")[0]["loss"]
    assert 0.5 < first < 0.5 * trained["weights"]["down"]
    rows = [
        row for part in ("train", "held_out") for row in read_rows(place.folder / "kto" / "pairs" / f"{part}.jsonl")
    ]
    (with_passage,) = [row for row in rows if row["context"]]
    assert with_passage["question"] == "Does own treatment 5 help?"
    assert "Combing with a fine comb" in with_passage["context"][0]["text"]
    card = (place.folder / "kto" / "model" / "README.md").read_text(encoding="utf-8")
    assert "preference tuning with KTO, beta 0.1, on answers with thumbs up or down from" in card


def test_the_base_is_the_tuned_model_with_its_adapter_merged(place, preferred):
    folder, _ = preferred
    for kind in ("decision", "likelihood", "answer"):
        before = place.folder / "sft" / "predictions" / f"tuned-{kind}.jsonl"
        assert read_rows(folder / "predictions" / f"base-{kind}.jsonl") == read_rows(before)
    assert (folder / "start" / "config.json").is_file()
    adapter = json.loads((folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == str((folder / "start").resolve())
    assert "merged into its own base model" in (folder / "model" / "README.md").read_text(encoding="utf-8")


def test_the_first_step_is_at_ln_2_and_later_ones_below(preferred):
    losses = [step["loss"] for step in read_rows(preferred[0] / "training.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.9 * losses[0]


def test_the_preflight_shows_a_pair_and_says_that_this_is_experimental(preferred):
    folder, result = preferred
    first = read_rows(folder / "pairs" / "train.jsonl")[0]
    shown = result.err.partition("the preferred answer, then with the rejected answer")[2]
    assert f"« {first['chosen']}</s>»" in shown
    assert f"« {first['rejected']}</s>»" in shown
    assert shown.index(first["chosen"]) < shown.index(first["rejected"])
    assert "Pairs (experimental) from" in result.err
    assert " pairs: " in result.err.partition("Training on ")[2][:12]


def test_a_moved_run_still_finds_what_it_started_from(preferred, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(preferred[0], moved)
    config = moved / "model" / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"base_model_name_or_path": "/nowhere/start"}), encoding="utf-8")
    assert load(str(moved)).model.config.num_hidden_layers == 2


def test_a_stopped_run_goes_on_to_the_same_weights_and_figures(place):
    changes = {"train__batch_size": 8, "train__checkpoint_steps": 3}
    prefer(place, "whole", **changes).ok()
    with stopped_after(5):
        assert prefer(place, "stopped", **changes).code == 130
    resumed = prefer(place, "stopped", **changes).ok()
    assert "after step 3" in resumed.err
    whole, stopped = (place.folder / name for name in ("whole", "stopped"))
    for path in [*whole.glob("model/*.safetensors"), *whole.glob("predictions/*.jsonl"), *whole.glob("pairs/*")]:
        assert path.read_bytes() == (stopped / path.relative_to(whole)).read_bytes(), path


def test_ewc_measures_on_texts_that_are_longer_than_any_pair(place, monkeypatch):
    monkeypatch.setattr(replay, "ROW_TOKENS", 800)
    for module in (replay, finetune):
        monkeypatch.setattr(module, "EWC_ROWS", 4)
    prefer(place, "ewc", train__ewc__strength=1, train__replay__rows=4).ok()


def test_pairs_of_corrupted_answers_are_built_and_measured_by_kind(place):
    changes = {"train__preference__per_example": 2, "model__strategy": "full"}
    prefer(place, "built", pairs=False, **changes).ok()
    report = place.report("built")
    assert report["tuned"]["preference_margin"] > report["base"]["preference_margin"]
    assert len(report["preference"]["tuned"]) >= 2
    questions = {row["question"] for row in read_rows(place.folder / "built" / "pairs" / "held_out.jsonl")}
    assert questions <= {row["question"] for row in read_rows(place.folder / "built" / "data" / "test.jsonl")}
    evaluated = place.folder / "evaluated"
    words = place.settings(**QUICK | changes)
    meditune("evaluate", place.folder / "built", "--recipe", "preference", "-o", evaluated, *words).ok()
    figures = json.loads((evaluated / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures["preference_margin"] == pytest.approx(report["tuned"]["preference_margin"], rel=1e-4)


@pytest.mark.parametrize(
    ("code", "changes", "texts"),
    [
        (3, {"seed": 5}, ("in the training data of", "Leakage")),
        (4, {"prompt__answer_cue": "Say:"}, ("tuned with another prompt", "prompt.answer_cue is 'Conclusion:' there")),
        (4, {"model__base": "./runs/none"}, ("runs/none: no such folder", "finish that run first")),
        (4, {"model__base": "api:some-model", "model__api__key_variable": "null"}, ("only train.objective sft",)),
        (3, {"train__preference__path": "none.jsonl"}, ("none.jsonl: no such file",)),
        (2, {"train__end_weight": "0.5"}, ("train.end_weight has no effect with train.objective dpo",)),
        (2, {"train__replay__share": "0.2"}, ("train.replay.share has no effect with train.objective dpo",)),
        (2, {"train__objective": "kto", "train__batch_size": 1}, ("a step needs at least two rows",)),
    ],
)  # fmt: skip
def test_what_cant_work_is_refused_before_anything_is_trained(place, code, changes, texts):
    result = prefer(place, f"refused-{code}-{len(str(changes))}", **changes)
    result.refused(code, *texts)


def test_changed_settings_make_other_pairs_until_something_is_measured(place):
    words = place.settings(**QUICK | {"model__base": place.folder / "sft"})
    folder = place.folder / "changing"
    meditune("data", "prepare", "preference", "--output", folder, *words).ok()
    first = read_rows(folder / "pairs" / "train.jsonl")
    more = ["--set", "train.preference.per_example=3"]
    meditune("data", "prepare", "preference", "--output", folder, *words, *more).ok()
    assert len(first) < len(read_rows(folder / "pairs" / "train.jsonl"))


FORMAT = PromptFormat(max_tokens=256, answer_tokens=32)


def start(architecture="llama", trained_head=False, pairs=PAIRS):
    """A tiny model to be trained, rows of pairs, and their log-likelihoods before that."""
    loaded = tiny.loaded(architecture)
    rows, _ = rows_of_pairs(pairs, loaded.encoder(FORMAT))
    model = loaded.model if trained_head else add_lora(loaded.model, LoraSpec(r=4), seed=1)
    return loaded, model, rows, likelihoods_of(loaded, model, rows)


def likelihoods_of(loaded, model, rows):
    with torch.no_grad():
        before, _ = log_likelihoods(model, HiddenStateCache(model, 0), rows, loaded.pad_id)
    return {row.encoded[0].id: each for row, each in zip(rows, before.tolist(), strict=True)}


def move(model):
    """Let what is trained leave its start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def plain_likelihoods(model, rows):
    """(R, 2) sums by transformers' own logits, an answer at a time."""
    found = []
    for row in rows:
        for item in row.encoded:
            logits = model(input_ids=torch.tensor([item.prompt + item.target])).logits[0, len(item.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(item.target)[:, None]).sum())
    return torch.stack(found).view(-1, 2)


def gradients(model, loss):
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize(("architecture", "trained_head"), [("llama", False), ("llama", True), ("gemma3", False)])
def test_both_answers_in_one_row_give_the_loss_and_gradients_of_separate_ones(architecture, trained_head):
    loaded, model, rows, reference = start(architecture, trained_head)
    move(model)
    shares = [1 / len(rows)] * len(rows)
    loss, batch = PairLoss(0.3, reference)(model, HiddenStateCache(model, 0), rows, shares, loaded.pad_id)
    sums = plain_likelihoods(model, rows)
    expected = dpo(sums, torch.tensor(list(reference.values())), 0.3).mean()
    assert batch.real_tokens < 0.75 * sum(len(item.prompt + item.target) for row in rows for item in row.encoded)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = gradients(model, expected)
    for name, slope in gradients(model, loss).items():
        torch.testing.assert_close(slope, plain[name], atol=1e-5, rtol=1e-3)


def test_where_nothing_has_moved_dpo_is_ln_2():
    now = torch.tensor([[-3.0, -7.0], [-9.0, -2.0]])
    assert dpo(now, now, 0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_equals_trls_loss_and_gradients(tmp_path, monkeypatch):
    """TRL's own trainer computes its loss on the same tokens with the same adapter, its reference the start."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl", reason="trl is in the dependency group dev")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    loaded, model, rows, reference = start()
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    settings = {"beta": 0.3, "use_cpu": True, "report_to": [], "bf16": False}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(output_dir=str(tmp_path), loss_type="sigmoid", **settings),
        train_dataset=Dataset.from_list(texts),
        processing_class=loaded.tokenizer,
    )
    move(model)  # the trainer has kept a copy of the adapter as its reference
    tokens = [
        {
            "prompt_ids": row.encoded[0].prompt,
            "chosen_ids": row.encoded[0].target,
            "rejected_ids": row.encoded[1].target,
        }
        for row in rows
    ]
    loaded.model.set_attn_implementation("sdpa")  # TRL's masks are two-dimensional
    theirs = trainer.compute_loss(model, trainer.data_collator(tokens))
    their_slopes = gradients(model, theirs)
    loaded.model.set_attn_implementation("eager")
    ours, _ = PairLoss(0.3, reference)(
        model, HiddenStateCache(model, 0), rows, [1 / len(rows)] * len(rows), loaded.pad_id
    )
    assert abs(theirs.item() - math.log(2)) > 0.01
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, slope in gradients(model, ours).items():
        torch.testing.assert_close(slope, their_slopes[name], atol=1e-5, rtol=1e-3)


def test_kto_equals_trls_loss_and_gradients(tmp_path, monkeypatch):
    """As for DPO. One move of the weights gives a reference point above 0, an opposite one is clamped to 0."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl", reason="trl is in the dependency group dev")
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    singles = [single for pair in PAIRS for single in pair.single_answers()][1:]  # two up, three down
    loaded, model, rows, reference = start(pairs=singles)
    others = mismatched(rows, FORMAT.max_tokens)
    desirable = {pair.id: bool(pair.chosen) for pair in singles}
    loss_of = SingleAnswerLoss(0.3, reference | likelihoods_of(loaded, model, others), desirable, FORMAT.max_tokens)
    assert loss_of.weights == (1.5, 1.0)
    texts = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    settings = {"beta": 0.3, "desirable_weight": 1.5, "use_cpu": True, "report_to": [], "bf16": False}
    trainer = KTOTrainer(
        model,
        args=KTOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=Dataset.from_list(texts),
        processing_class=loaded.tokenizer,
    )
    tokens = [
        {
            "prompt_ids": row.encoded[0].prompt,
            "completion_ids": row.encoded[0].target,
            "KL_completion_ids": other.encoded[0].target,
            "label": desirable[row.encoded[0].id],
        }
        for row, other in zip(rows, others, strict=True)
    ]
    move(model)  # the trainer has kept a copy of the adapter as its reference
    points = []
    for _ in range(2):
        loaded.model.set_attn_implementation("sdpa")  # TRL's masks are two-dimensional
        theirs = trainer.compute_loss(model, trainer.data_collator(tokens))
        their_slopes = gradients(model, theirs)
        loaded.model.set_attn_implementation("eager")
        cache = HiddenStateCache(model, 0)
        loss_of.prepare_step(model, cache, rows, loaded.pad_id, 128)
        parts = [loss_of(model, cache, part, [1 / 5] * len(part), loaded.pad_id)[0] for part in (rows[:2], rows[2:])]
        ours = sum(parts)
        points.append(loss_of.kl)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        for name, slope in gradients(model, ours).items():
            torch.testing.assert_close(slope, their_slopes[name], atol=1e-5, rtol=1e-3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-2)
    assert min(points) == 0 < max(points)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_model_with_dropout_begins_at_its_reference(objective):
    pairs = [single for pair in PAIRS for single in pair.single_answers()] if objective == "kto" else PAIRS
    loaded, model, rows, reference = start("gpt2", pairs=pairs)
    tiny.blocks_drop_out(model, 0.3)
    if objective == "kto":
        loss_of = SingleAnswerLoss(0.3, reference, {pair.id: bool(pair.chosen) for pair in pairs}, FORMAT.max_tokens)
    else:
        loss_of = PairLoss(0.3, reference)
    data = TrainingRows(rows, loss_of, loss_of=loss_of)
    spec = TrainSpec.model_validate({"objective": objective, "epochs": 1, "batch_size": 2, "accumulation": 1})
    first = next(iter(train(tiny.with_model(loaded, model), data, spec, 1)))
    assert first.loss == pytest.approx(math.log(2) if objective == "dpo" else 0.5, rel=1e-4)


def test_next_answers_are_cut_to_the_budget_and_a_single_row_has_none():
    _, _, rows, _ = start(pairs=[PAIRS[0].single_answers()[0], PAIRS[1].single_answers()[1]])
    limit = len(rows[0].encoded[0].prompt) + 2
    (cut, _) = mismatched(rows, limit)
    assert cut.encoded[0].prompt == rows[0].encoded[0].prompt
    assert cut.targets == rows[1].targets[:2]
    assert mismatched(rows[:1], limit) == []


@pytest.mark.parametrize(
    ("up", "down", "weights"), [(50, 50, (1, 1)), (4, 3, (1, 1)), (10, 100, (10, 1)), (100, 10, (1, 7.5))]
)
def test_the_rarer_thumb_weighs_more(up, down, weights):
    """Eq. 8 of the paper: weight times number of the desirable answers is 1 to 4/3 of that of the others."""
    assert weights_of_thumbs(up, down) == pytest.approx(weights)


def test_preference_tuning_needs_no_examples_for_the_tasks():
    settings = {"objective": "dpo", "tasks": ["answer"], "preference": {"path": "pairs.jsonl"}}
    example = Example(id="a", source="own", group="a", question="Does exercise help?", decision="yes")
    check(Splits([example], [], [example], ""), Recipe.model_validate({"name": "pairs", "train": settings}))
