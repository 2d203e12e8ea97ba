"""What is rehearsed, how much of it, and that none of it is what the model is measured on.

A model that knows some text, is tuned on something else, and forgets; less so with each protection.
"""

import json
import math
import random
import re

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.training_options import LoraSpec, ReplaySpec, TrainSpec
from meditune.data.prepare import stored_data
from meditune.models.adapters import add_lora
from meditune.models.load import load
from meditune.models.shared_prefix_batch import PROMPT, rows_of, windows
from meditune.train import finetune, replay
from meditune.train.dataset import TokenWeights, marked
from meditune.train.replay import plan_replay
from meditune.train.trainer import TrainingRows, plan_steps, train
from meditune.train.training_plan import plan
from tests import layouts, tiny
from tests.commands import bench, meditune, read_rows, stopped_after
from tests.models.test_forward import EXAMPLES

FORMAT = PromptFormat(max_tokens=256, answer_tokens=32)


@pytest.fixture(scope="module")
def place(place):
    """A bench with WikiText-2 (two texts that share no word) and MedQuAD at hand."""
    data = place.folder.parent / "data"
    (data / "wikitext-2").mkdir()
    (data / "wikitext-2" / "valid.txt").write_text("".join(f"alpha{n} beta gamma .\n" for n in range(300)), "utf-8")
    (data / "wikitext-2" / "test.txt").write_text("".join(f"omega{n} psi chi .\n" for n in range(300)), "utf-8")
    documents = {}
    for n in range(30):
        pairs = [("information", f"What is ailment {n}?", f"Ailment {n} is mild. " * (60 if n == 7 else 1))]
        pairs += [("treatment", f"How is ailment {n} treated?", f"Rest helps with ailment {n}.")]
        pairs += [("symptoms", "What are the symptoms?", f"Ailment {n} hurts.")] if n % 5 == 0 else []
        documents[f"1_CancerGov_QA/{n:07}.xml"] = layouts.medquad_document(f"{n:07}", f"Ailment {n}", pairs)
    layouts.medquad(data / "medquad", documents)
    return place


# How much.


def dummy_rows(count, loaded):
    ids = loaded.tokenizer(tiny.WORDS * 3, add_special_tokens=False)["input_ids"]
    return windows("text", ids, 16)[:count]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 8])
def test_the_share_of_replay_rows_is_the_one_asked_for(share, size):
    rows = dummy_rows(7, tiny.loaded())
    steps = plan_steps(101, TrainSpec(batch_size=size, accumulation=1, epochs=2), 1)
    replay = plan_replay(rows, steps, None, ReplaySpec(share=share), 1)
    examples = rehearsed = 0
    for step, again in zip(steps, replay.steps, strict=True):
        examples += len(step)
        rehearsed += len(again)
        assert abs(rehearsed - examples * share / (1 - share)) <= 0.5
    order = [index for step in replay.steps for index in step]
    passes = [order[start : start + 7] for start in range(0, len(order), 7)]
    assert all(sorted(each) == list(range(7)) for each in passes[:-1])
    if len(passes) > 2:
        assert passes[0] != passes[1]
    assert plan_replay(rows, steps, None, ReplaySpec(share=share), 1) == replay
    assert plan_replay(rows[:5], steps, None, ReplaySpec(share=share, rows=3), 1).rows == rows[:3]


def test_facts_of_a_run_that_stopped_early_are_those_of_its_steps():
    loaded = tiny.loaded()
    encoder = loaded.encoder(FORMAT)
    rows = rows_of([encoder.supervised(each, "answer") for each in EXAMPLES])
    spec = TrainSpec(batch_size=1, accumulation=1, epochs=2, replay={"share": 0.5})
    weights = TokenWeights(EXAMPLES, rows, spec)
    steps = plan_steps(len(rows), spec, 1)
    replay = plan_replay(dummy_rows(4, loaded), steps, weights, spec.replay, 1)
    whole, half = replay.facts(1.0), replay.facts(1.0, len(steps) // 2)
    assert whole["visits"] == len(steps)
    assert half["visits"] == len(steps) // 2
    assert half["tokens"] < whole["tokens"]


def test_a_step_minimizes_the_weighted_mean_over_answers_and_replay():
    """The gradient of the first step against autograd through transformers' own logits, row by row."""
    loaded = tiny.loaded()
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1)
    encoder = loaded.encoder(FORMAT)
    rows = rows_of([encoder.supervised(e, task) for e in EXAMPLES for task in ("decision", "answer")])
    spec = TrainSpec(batch_size=3, accumulation=1, epochs=1, decision_share=0.5, replay={"share": 0.4})
    weights = TokenWeights(EXAMPLES, rows, spec)
    again = dummy_rows(2, loaded)
    replay = plan_replay(again, plan_steps(3, spec, 1), weights, spec.replay, 1)
    assert sorted(replay.steps[0]) == [0, 1]
    parts = {"decision": [], "answer": [], "replay": []}
    for item in [*(item for row in rows for item in row.encoded), *(row.encoded[0] for row in again)]:
        ids = torch.tensor([item.prompt + item.target])
        scores = model(input_ids=ids).logits[0, len(item.prompt) - 1 : -1].log_softmax(-1)
        kind = "replay" if item.id.startswith("text") else item.task
        parts[kind].append(-scores.gather(1, torch.tensor(item.target)[:, None])[:, 0])
    losses = {kind: torch.cat(values) for kind, values in parts.items()}
    each = (len(losses["decision"]) + len(losses["answer"])) / 2  # what both tasks weigh at decision_share 0.5
    answer_weight = each / len(losses["answer"])
    own = each * losses["decision"].mean() + each * losses["answer"].mean()
    whole = own + answer_weight * losses["replay"].sum()
    mean = whole / (2 * each + answer_weight * len(losses["replay"]))
    slopes = torch.autograd.grad(mean, [p for p in model.parameters() if p.requires_grad])
    norm = torch.cat([slope.flatten() for slope in slopes]).norm().item()
    (step,) = train(tiny.with_model(loaded, model), TrainingRows(rows, weights, replay=replay), spec, 1)
    assert step.loss == pytest.approx((own / (2 * each)).item(), rel=1e-4)
    assert step.replay_loss == pytest.approx(losses["replay"].mean().item(), rel=1e-4)
    assert step.grad_norm == pytest.approx(norm, rel=1e-3)
    assert step.tokens == sum(map(len, [*rows, *again]))
    assert step.supervised_tokens == sum(len(row.targets) for row in rows)


# Of what.


def planned(place, name, tmp_path, **changes):
    """The plan of a run whose data were prepared by the command."""
    settings = place.settings(**changes)
    meditune("data", "prepare", "quickstart", "--output", tmp_path / name, *settings).ok()
    recipe = load_recipe("quickstart", [word for word in settings if word != "--set"]).recipe
    splits = stored_data(tmp_path / name / "data").splits
    loaded = load(str(place.base), recipe.model)
    return plan(loaded, splits, recipe, tmp_path / name), splits, loaded


def test_general_text_is_the_validation_text_and_never_the_test_text(place, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "ROW_TOKENS", 24)
    made, _, loaded = planned(place, "general", tmp_path, train__replay__share=0.5, train__replay__source="general")
    valid = (place.folder.parent / "data" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    assert len(made.pool) == len({row.encoded[0].id for row in made.pool}) == 200
    for row in made.pool:
        text = loaded.tokenizer.decode(row.encoded[0].prompt + row.encoded[0].target)
        assert text in valid
    assert sum(len(row.targets) != 23 for row in made.pool) <= 1  # the last window of the text
    assert len({tuple(row.tokens) for row in made.pool}) > 150


def test_a_last_window_with_a_single_target_is_replayed(place, tmp_path, monkeypatch):
    text = (place.folder.parent / "data" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    count = len(tiny.tokenizer()(text)["input_ids"])
    monkeypatch.setattr(replay, "ROW_TOKENS", next(size for size in range(24, count) if count % size == 2))
    made, *_ = planned(place, "last-window", tmp_path, train__replay__share=0.5, train__replay__source="general")
    assert min(len(row.targets) for row in made.pool) == 1


def test_medical_replay_has_no_row_of_the_runs_own_data(place, tmp_path, capsys):
    sources = "[{name: medquad, limit: 24}]"
    made, splits, loaded = planned(
        place,
        "medical",
        tmp_path,
        data__sources=sources,
        data__sources__0__limit=None,
        train__replay__share=0.5,
        train__replay__source="medical",
    )
    ids = {row.encoded[0].id for row in made.pool}
    assert len(ids) == len(made.pool) >= 10
    held = [*splits.dev, *splits.test]
    assert not ids & {example.id for example in (*held, *splits.train)}
    prompts = [loaded.tokenizer.decode(row.encoded[0].prompt) for row in made.pool]
    texts = [
        prompt + loaded.tokenizer.decode(row.encoded[0].target) for prompt, row in zip(prompts, made.pool, strict=True)
    ]
    for example in held:
        assert not any(f"Question: {example.question}\n" in text for text in texts)
        assert not any(re.search(rf"\b{example.group}\b", text, re.IGNORECASE) for text in texts)
    assert all(prompt.endswith("Conclusion:") for prompt in prompts)
    assert all(row.targets[-1] == loaded.tokenizer.eos_token_id for row in made.pool if not row.encoded[0].answer_cut)
    message = capsys.readouterr().err
    assert f"{66 - len(ids)} of 66 pairs left out" in message


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_the_model_writes_is_sampled_from_its_own_distribution(architecture):
    """Token for token what sampling without a cache, one whole forward pass a token, gives with the same numbers."""
    loaded = tiny.loaded(architecture)
    loaded.model.generation_config.update(top_k=3, repetition_penalty=2.0, temperature=0.1)
    written = list(replay.write_replay_text(loaded, 5, 20, seed=3))
    assert written == list(replay.write_replay_text(loaded, 5, 20, seed=3))
    assert written != list(replay.write_replay_text(loaded, 5, 20, seed=4))
    torch.manual_seed(3)
    ids = torch.tensor([each["prompt"] for each in written])
    start = ids.shape[1]
    while ids.shape[1] < 20:
        with torch.no_grad():
            chances = loaded.model(input_ids=ids).logits[:, -1].softmax(-1)
        if ids.shape[1] == start:
            chances[:, 1] = 0
        ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
    for each, expected in zip(written, ids[:, start:].tolist(), strict=True):
        assert each["target"] == expected[: expected.index(1) + 1 if 1 in expected else None]
        row = replay.replay_row(each)
        assert row.targets == each["target"]
        assert row.tokens == [*each["prompt"], *each["target"][:-1]]
        assert len(row.targets) >= 2


@pytest.mark.parametrize(("source", "removed"), [("general", "wikitext-2/valid.txt"), ("medical", "medquad")])
def test_missing_text_is_said_before_anything_is_computed(place, tmp_path, source, removed):
    path = place.folder.parent / "data" / removed
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        settings = place.settings(train__replay__share=0.2, train__replay__source=source)
        result = meditune("run", "quickstart", "--output", tmp_path / "run", *settings)
    finally:
        aside.rename(path)
    result.refused(3, removed.partition("/")[0])
    assert not (tmp_path / "run" / "predictions").exists()


# In a run.


def test_what_is_rehearsed_is_shown_and_recorded(place, tmp_path):
    settings = place.settings(train__replay__share=0.25, train__replay__source="general", train__epochs=1)
    result = meditune("train", "quickstart", "--output", tmp_path / "run", *settings).ok()
    folder = tmp_path / "run"
    steps = read_rows(folder / "training.jsonl")
    facts = json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))
    replay = facts["replay"]
    assert replay["visits"] == round(facts["rows"] / 3)
    assert f"Replay: {replay['visits']} rows in total (25%" in result.err
    assert f"{replay['loss_share']:.0%} of the loss" in result.err
    assert f"{replay['visits']} rows of WikiText-2" in (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert all(step["replay_loss"] > 0 for step in steps)
    assert sum(step["tokens"] for step in steps) == facts["tokens"] + replay["tokens"]
    assert not (folder / "replay.jsonl").exists()


def test_prompts_are_in_the_plan_where_a_share_of_the_loss_is_theirs(place, tmp_path):
    usual, _, _ = planned(place, "usual", tmp_path)
    made, _, loaded = planned(place, "prompts", tmp_path, train__prompt_share=0.5)
    assert not any(PROMPT in row.of for row in usual.rows)
    assert all(PROMPT in row.of for row in made.rows)
    assert sum(len(row.targets) for row in made.rows) > sum(len(row.targets) for row in usual.rows)
    shown = marked(made.rows[0], loaded.tokenizer)
    assert shown.startswith("«")
    assert shown.count("«") == 2 * len(made.rows[0].encoded)


OFF = {"train__replay__share": 0, "train__replay__source": "medical", "train__l2_sp": 0, "train__ewc__strength": 0}
PROTECTIONS = {
    "general": {"train__replay__share": 0.3, "train__replay__source": "general"},
    "self": {"train__replay__share": 0.3, "train__replay__source": "self"},
    "l2_sp": {"train__l2_sp": 0.2},
    "ewc": {"train__ewc__strength": 50_000, "train__replay__source": "general"},
}


def chatter(seed, sentences=400):
    """Sentences of a small grammar, in words that the tiny tokenizer knows."""
    pick = random.Random(seed).choice
    return "".join(
        f"{pick(['Sleep', 'Exercise', 'The diet'])} {pick(['fell', 'helps', 'were measured'])} in the "
        f"{pick(['study', 'group', 'drug'])} of {pick(['adults', 'hearts', 'patients'])}. "
        for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A bench whose base model has learnt the chatter."""
    with bench(tmp_path_factory.mktemp("forgetting")) as made:
        folder = made.folder.parent / "data" / "wikitext-2"
        folder.mkdir()
        (folder / "valid.txt").write_text(chatter(1), encoding="utf-8")
        (folder / "test.txt").write_text(chatter(2), encoding="utf-8")
        loaded = tiny.loaded()
        rows = windows("text", loaded.tokenizer(chatter(3))["input_ids"], 64)
        spec = TrainSpec(batch_size=8, accumulation=1, epochs=12, learning_rate=1e-2)
        list(train(loaded, TrainingRows(rows, TokenWeights([], [], spec)), spec, 1))
        loaded.model.set_attn_implementation("sdpa")
        loaded.model.save_pretrained(made.base)
        yield made


def journey(taught, name, **changes):
    """Report of a run that measures little but general text."""
    settings = {"train__epochs": 3, "evaluate__general_tokens": 2000, "evaluate__answers": 2}
    settings |= {"evaluate__max_new_tokens": 1, "model__dtype": "float32"}
    taught.run(name, **(settings | changes)).ok()
    return taught.report(name)


def trained(taught, name, **changes):
    """What `meditune train` printed; many steps with a checkpoint after each third."""
    steps = {"train__batch_size": 1, "train__checkpoint_steps": 3, "train__epochs": 1}
    return meditune("train", "quickstart", "--output", taught.folder / name, *taught.settings(**(steps | changes)))


@pytest.fixture(scope="module")
def unprotected(taught):
    return journey(taught, "unprotected")


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protected_model_forgets_less(taught, unprotected, name):
    """Less than half of the rise in nats, and the answers are learnt all the same."""
    report = journey(taught, name, **PROTECTIONS[name])
    assert report["base"] == unprotected["base"]
    forgot, remembered = (math.log(r["tuned"]["general_perplexity"]) for r in (unprotected, report))
    known = math.log(report["base"]["general_perplexity"])
    assert forgot > known + 1
    assert remembered < known + 0.5 * (forgot - known)
    assert report["tuned"]["perplexity"] < 0.2 * report["base"]["perplexity"]


def test_what_is_off_changes_nothing_and_needs_nothing(taught):
    """Not even the data that it names; the weights are those of a recipe that says nothing of it."""
    trained(taught, "silent").ok()
    trained(taught, "off", **OFF).ok()
    assert taught.adapter("off") == taught.adapter("silent")
    assert not (taught.folder / "off" / "replay.jsonl").exists()


def test_a_stopped_run_goes_on_with_the_same_replay_and_the_same_pull(taught, monkeypatch):
    monkeypatch.setattr(replay, "ROW_TOKENS", 32)
    for module in (replay, finetune):
        monkeypatch.setattr(module, "EWC_ROWS", 12)
    both = {"train__replay__share": 0.4, "train__replay__rows": 9, "train__ewc__strength": 500, "train__l2_sp": 0.02}
    trained(taught, "whole", **both).ok()
    written = taught.folder / "stopped" / "replay.jsonl"
    with stopped_after(11):
        assert trained(taught, "stopped", **both).code == 130
    before = written.stat()
    resumed = trained(taught, "stopped", **both).ok()
    assert "after step 9" in resumed.err
    assert "Writing replay text" not in resumed.err
    assert (written.stat().st_mtime_ns, written.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(read_rows(written)) == 12
    assert written.read_bytes() == (taught.folder / "whole" / "replay.jsonl").read_bytes()
    assert taught.adapter("stopped") == taught.adapter("whole")
    logs = [read_rows(taught.folder / name / "training.jsonl") for name in ("whole", "stopped")]
    for whole, stopped in zip(*logs, strict=True):
        assert whole | {"seconds": 0} == stopped | {"seconds": 0}
    assert logs[0][-1]["penalty"] > 0
    assert any(step["replay_loss"] for step in logs[0])
