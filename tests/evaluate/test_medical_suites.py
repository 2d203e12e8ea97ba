"""Public medical tests: the publishers' layouts, the harness's prompts and scores, and a run from files to report."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import EvaluateSpec, Recipe, SuiteSpec
from meditune.data.example import CHOICES
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.suites import load_suites
from meditune.evaluate.suites.load_suites import SUITES, read_labels, read_suite
from meditune.evaluate.suites.multiple_choice_scoring import letters_prompt, options_prompt, score_suite
from meditune.evaluate.suites.suite_readers import CORRECT, STATEMENTS
from meditune.files import write_jsonl
from tests import layouts, tiny
from tests.commands import bench, jsonl, meditune, read_rows

STEMS = (
    "A man of 40 has pain in his chest after a long walk",
    "A woman of 30 can't sleep in the summer",
    "A child of 5 has a rash on both arms after a picnic",
)
OPTIONS = ("rest and water", "a drug", "an operation of the heart", "none of these")


def medqa(count=3):
    """Rows as in MedQA's `phrases_no_exclude_test.jsonl`."""
    return [
        {
            "question": f"{STEMS[number % 3]}. Case {number}. What helps?",
            "answer": OPTIONS[number % 4],
            "options": dict(zip("ABCD", OPTIONS, strict=True)),
            "meta_info": f"step{number % 2 + 1}",
            "answer_idx": "ABCD"[number % 4],
            "metamap_phrases": ["pain"],
        }
        for number in range(count)
    ]


def medmcqa(count=3, first=1):
    """Rows as in MedMCQA's `dev.json`, where `cop` counts from 1; on the hub it counts from 0."""
    options = dict(zip(("opa", "opb", "opc", "opd"), OPTIONS, strict=True))
    return [
        {"id": f"q{number}", "question": f"{STEMS[number % 3]} {number}: what helps", "cop": number % 4 + first}
        | options
        | {"choice_type": "single", "exp": None, "subject_name": ("Skin", "Surgery")[number % 2], "topic_name": None}
        for number in range(count)
    ]


def mmlu(folder, count=2):
    """Files as in MMLU's `data/test`, without headers, and one of a subject that isn't medical."""
    folder.mkdir(parents=True)
    for subject in ("anatomy", "college_medicine", "astronomy"):
        with (folder / f"{subject}_test.csv").open("w", newline="", encoding="utf-8") as stream:
            rows = [(f"{STEMS[n]} ({subject} {n})\nWhat helps?", *OPTIONS, "ABCD"[n]) for n in range(count)]
            csv.writer(stream).writerows(rows)
    return folder.parent


def bioasq(count=4):
    """A file as in BioASQ's golden sets, whose second question isn't a yes/no question."""
    questions = [
        {
            "id": f"5e{number}",
            "body": f"Does drug {number} help with pain?",
            "type": "factoid" if number == 1 else "yesno",
            "exact_answer": ["Yes", "no"][number % 2] if number % 3 else [["yes", "no"][number % 2]],
            "ideal_answer": [f"Drug {number} helps."],
            "snippets": [{"text": f"Drug {number} lowered pain.", "document": "http://x", "offsetInBeginSection": 1}],
        }
        for number in range(count)
    ]
    return {"questions": questions}


def medhallu(count=3):
    """Rows as in MedHallu's `pqa_labeled`."""
    return [
        {
            "Question": f"Does drug {number} help with pain?",
            "Knowledge": [f"We gave drug {number} to 120 adults.", "Pain fell in the group with the drug."],
            "Ground Truth": f"Drug {number} helps with pain.",
            "Difficulty Level": ("easy", "hard")[number % 2],
            "Hallucinated Answer": f"Drug {number} was withdrawn after 12 deaths.",
            "Category of Hallucination": "Incomplete Information",
        }
        for number in range(count)
    ]


def pubmedqa(folder, official):
    """PubMedQA's two files, with the ids in `official` as the official test."""
    items = {str(number): layouts.pubmedqa_item(number) for number in range(9)}
    layouts.pubmedqa(folder, items)
    truth = {str(number): items[str(number)]["final_decision"] for number in official}
    (folder / "test_ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return folder


def read(name, path, **more):
    return read_suite(SuiteSpec(name=name, path=str(path), **more), 1, Rejects())[0]


def test_medqa_is_read_from_the_publisher_s_folder_and_the_hub_s_rows(tmp_path):
    folder = tmp_path / "data_clean" / "questions" / "US" / "4_options"
    folder.mkdir(parents=True)
    jsonl(folder / "phrases_no_exclude_test.jsonl", medqa())
    found = read("medqa", tmp_path)
    assert [example.meta[CORRECT] for example in found] == [0, 1, 2]
    assert [example.answer for example in found] == list(OPTIONS[:3])
    assert found[1].meta["exam_subject"] == ["step2"]
    sent1 = found[2].question
    hub = [{"id": "test-00002", "sent1": sent1, "sent2": ""} | {f"ending{n}": OPTIONS[n] for n in range(4)}]
    (same,) = read("medqa", jsonl(tmp_path / "test.jsonl", [row | {"label": 2} for row in hub]))
    assert (same.question, same.meta[CHOICES], same.meta[CORRECT]) == (sent1, found[2].meta[CHOICES], 2)


@pytest.mark.parametrize("first", [0, 1], ids=["hub", "publisher"])
def test_medmcqa_counts_options_from_1_in_the_publisher_s_file_and_from_0_on_the_hub(tmp_path, first):
    path = jsonl(tmp_path / "dev.json", medmcqa(4, first))
    assert [example.meta[CORRECT] for example in read("medmcqa", path)] == [0, 1, 2, 3]


def test_an_excerpt_of_medmcqa_that_doesn_t_show_how_it_counts_is_refused_unless_it_is_parquet(tmp_path):
    with pytest.raises(DataError, match=r"no row has 0 or 4 in `cop`.*complete file"):
        read("medmcqa", jsonl(tmp_path / "dev.json", medmcqa(3)))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(medmcqa(3)), tmp_path / "validation-0.parquet")
    found = read("medmcqa", tmp_path / "validation-0.parquet")
    assert [example.meta[CORRECT] for example in found] == [1, 2, 3], "on the hub, options are counted from 0"


def test_medqa_with_five_options_is_refused(tmp_path):
    rows = [row | {"options": row["options"] | {"E": "surgery"}} for row in medqa()]
    with pytest.raises(DataError, match="3 rows: more than four choices"):
        read("medqa", jsonl(tmp_path / "test.jsonl", rows))


def test_medmcqa_from_two_publishers_in_one_file_is_refused(tmp_path):
    path = jsonl(tmp_path / "dev.json", [*medmcqa(4, 0), *medmcqa(4, 1)])
    with pytest.raises(DataError, match="both 0 and 4"):
        read("medmcqa", path)


def test_only_the_medical_subjects_of_mmlu_are_read(tmp_path):
    found = read("mmlu-medical", mmlu(tmp_path / "data" / "test"))
    assert [example.id for example in found] == [
        *("mmlu-medical:anatomy-000", "mmlu-medical:anatomy-001"),
        *("mmlu-medical:college_medicine-000", "mmlu-medical:college_medicine-001"),
    ]
    assert [example.meta[CORRECT] for example in found] == [0, 1, 0, 1]
    (tmp_path / "broken_test.csv").write_text("question,A,B\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken_test\.csv:1: 3 columns instead of question, four choices and letter"):
        read("mmlu-medical", tmp_path / "broken_test.csv")


def test_pubmedqa_s_official_items_are_the_suite(tmp_path):
    found = read("pubmedqa", pubmedqa(tmp_path, (4, 2, 8)))
    assert [example.group for example in found] == ["4", "2", "8"]
    assert [example.meta[CHOICES][example.meta[CORRECT]] for example in found] == ["no", "maybe", "maybe"]


def test_bioasq_s_yes_no_questions_are_read_with_their_snippets(tmp_path):
    path = tmp_path / "11B1_golden.json"
    path.write_text(json.dumps(bioasq()), encoding="utf-8")
    found = read("bioasq-yesno", tmp_path)
    assert [(example.id, example.decision) for example in found] == [
        *(("bioasq-yesno:5e0", "yes"), ("bioasq-yesno:5e2", "yes"), ("bioasq-yesno:5e3", "no"))
    ]
    assert found[0].context_text == "Drug 0 lowered pain."


@pytest.mark.parametrize("name", ["training11b.json", "trainining7b.json", "BioASQ-trainingDataset6b.json"])
def test_bioasq_s_training_files_are_found_and_an_answer_can_end_in_a_full_stop(name, tmp_path):
    questions = [each | {"exact_answer": "Yes."} for each in bioasq()["questions"]]
    (tmp_path / "BioASQ-training").mkdir()
    (tmp_path / "BioASQ-training" / name).write_text(json.dumps({"questions": questions}), encoding="utf-8")
    assert [example.decision for example in read("bioasq-yesno", tmp_path)] == ["yes"] * 3


def test_medhallu_s_rows_are_pairs_of_a_true_and_a_hallucinated_answer(tmp_path):
    (tmp_path / "pqa_labeled").mkdir()
    (tmp_path / "pqa_artificial").mkdir()
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(medhallu()), tmp_path / "pqa_labeled" / "train-0.parquet")
    jsonl(tmp_path / "pqa_artificial" / "pqa_artificial.jsonl", medhallu(9))
    found = read("medhallu", tmp_path)
    assert len(found) == 3, "generated items aren't measured beside labelled ones"
    assert found[1].context_text.startswith("We gave drug 1")
    assert found[1].question == "Does drug 1 help with pain?"
    assert found[1].meta[CHOICES] == ["Drug 1 helps with pain.", "Drug 1 was withdrawn after 12 deaths."]
    assert "difficulty: hard" in found[1].meta["question_type"]


def test_open_answers_are_read_with_the_statements_that_they_are_graded_by(tmp_path):
    row = {"Question": "What is Lexapro?", "Free_form_answer": "An SSRI.", "Must_have": ["It is an SSRI."]}
    path = jsonl(tmp_path / "questions_w_answers.jsonl", [row | {"Nice_to_have": ["It is well tolerated."]}, {}])
    (k_qa,) = read("k-qa", path)
    (single,) = read("k-qa", jsonl(tmp_path / "single.jsonl", [row | {"Must_have": "It is an SSRI."}]))
    assert single.meta[STATEMENTS] == k_qa.meta[STATEMENTS][:1]
    assert [(each["kind"], each["text"]) for each in k_qa.meta[STATEMENTS]] == [
        ("must", "It is an SSRI."),
        ("nice", "It is well tolerated."),
    ]
    table = "Question,Focus (Drug),Question Type,Answer,Section Title,URL\n"
    table += 'how much tylenol?,Tylenol,Dosage,"Take one. Do not take more than eight.",Dosage,http://x\n'
    table += "is it safe?,Tylenol,Safety,No answers,,\nwhat is it?,Tylenol,Other,Unanswerable,,\n"
    (tmp_path / "MedInfo2019-QA-Medications.csv").write_text(table, encoding="utf-8")
    (drug,) = read("medicationqa", tmp_path / "MedInfo2019-QA-Medications.csv")
    assert [each["text"] for each in drug.meta[STATEMENTS]] == ["Take one.", "Do not take more than eight."]
    assert drug.meta["question_type"] == ["Dosage"]
    talk = [("user", "I have a rash."), ("assistant", "Since when?"), ("user", "Two days.")]
    rubric = [{"criterion": "Asks about fever", "points": 5, "tags": []}, {"criterion": "Rude", "points": -3}]
    bench_row = {"prompt_id": "p1", "prompt": [{"role": role, "content": text} for role, text in talk]}
    bench_row |= {"rubrics": rubric, "example_tags": ["theme:context_seeking", "physician_agreed_category:x"]}
    jsonl(tmp_path / "2025-05-07_oss_eval.jsonl", [bench_row])
    (asked,) = read("healthbench", tmp_path)
    assert asked.question == "Two days."
    assert [(turn.role, turn.text) for turn in asked.turns] == talk[:2]
    assert [each["points"] for each in asked.meta[STATEMENTS]] == [5, -3]
    assert asked.meta["question_type"] == ["context_seeking"]


def test_k_qa_and_healthbench_are_read_from_the_hub_s_folders(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr(load_suites, "_locate", lambda _, path: path)  # a path stands for an id on the hub
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "  - {split: questions_with_answers, path: questions_w_answers.jsonl}\n"
    card += "  - {split: questions, path: questions.jsonl}\n---\n"
    for folder in ("k-qa", "healthbench"):
        (tmp_path / folder).mkdir()
    (tmp_path / "k-qa" / "README.md").write_text(card, encoding="utf-8")
    row = {"Question": "What is it?", "Free_form_answer": "A drug.", "Must_have": ["A drug."], "Nice_to_have": []}
    jsonl(tmp_path / "k-qa" / "questions_w_answers.jsonl", [row])
    jsonl(tmp_path / "k-qa" / "questions.jsonl", [{"Question": "Is it contagious?", "entity_tag": ["problem"]}])
    assert [example.question for example in read("k-qa", tmp_path / "k-qa")] == ["What is it?"]
    prompt = [{"role": "user", "content": "What is it?"}]
    asked = {"prompt_id": "p1", "prompt": prompt, "rubrics": [{"criterion": "Says what", "points": 5, "tags": []}]}
    jsonl(tmp_path / "healthbench" / "2025_oss_eval.jsonl", [asked])
    graded = {"prompt_id": "p1", "prompt": prompt, "completion": "A", "rubric": "Says what", "binary_labels": [True]}
    jsonl(tmp_path / "healthbench" / "2025_oss_meta_eval.jsonl", [graded])
    jsonl(tmp_path / "healthbench" / "hard_2025.jsonl", [asked | {"prompt_id": "p2"}])
    assert [example.id for example in read("healthbench", tmp_path / "healthbench")] == ["healthbench:p1"]


def test_physicians_labels_are_read_beside_the_suite(tmp_path):
    head = ",Question,llm_x,answer,claim,category_x,majority_label,label_0,label_1,label_2\n"
    lines = ["0,Q?,m,An SSRI.,It is an SSRI.,Must_have,Entailment,Entailment,Entailment,Neutral"]
    lines += ["1,Q?,m,An SSRI.,It is new.,Nice_to_have,Neutral,Neutral,Neutral,Neutral", "2,Q?,m,,It.,Must_have,,,,"]
    (tmp_path / "NLI_medical_annotator.csv").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    found = read_labels(SUITES["k-qa"], str(tmp_path), 1, Rejects())
    assert [(row["statement"], row["label"]) for row in found] == [("It is an SSRI.", "yes"), ("It is new.", "maybe")]
    meta = {"prompt": [{"role": "user", "content": "Q"}], "completion": "A", "rubric": "Says A"}
    votes = [[True, True, False], [True, False], [False]]
    jsonl(tmp_path / "oss_meta_eval.jsonl", [meta | {"binary_labels": each} for each in votes])
    found = read_labels(SUITES["healthbench"], str(tmp_path), 1, Rejects())
    assert [row["label"] for row in found] == ["yes", "no"], "a tie of physicians is no label"


def test_a_limit_draws_the_same_items_each_time(tmp_path):
    path = jsonl(tmp_path / "test.jsonl", medqa(30))
    first, again = (read("medqa", path, limit=5) for _ in range(2))
    assert len(first) == 5
    assert first == again


def test_files_that_are_missing_or_unusable_are_told_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"no files of medqa in .*data/medqa.*data_clean.zip.*path: FOLDER"):
        read_suite(SuiteSpec(name="medqa"), 1, Rejects())
    path = jsonl(tmp_path / "test.jsonl", [{"question": "What?", "options": {"A": "x", "B": ""}, "answer_idx": "A"}])
    with pytest.raises(DataError, match=r"no usable rows of medqa .*1 row: a choice without text"):
        read("medqa", path)


def items_of(name, tmp_path):
    if name == "medqa":
        return read(name, jsonl(tmp_path / "test.jsonl", medqa()))
    if name == "medmcqa":
        return read(name, jsonl(tmp_path / "dev.json", medmcqa(4)))
    return read(name, mmlu(tmp_path / "data" / "test"))


def alone(loaded, text, choice):
    """A choice's log-likelihood by a forward pass of its own."""
    before, ids = loaded.tokenizer.encode(text), loaded.tokenizer.encode(f"{text} {choice}")
    with torch.no_grad():
        chances = loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(chances[place - 1, ids[place]].item() for place in range(len(before), len(ids)))


@pytest.mark.parametrize("name", ["medqa", "medmcqa", "mmlu-medical"])
def test_letters_and_options_score_as_texts_of_their_own(name, tmp_path):
    loaded, items = tiny.loaded(), items_of(name, tmp_path)
    rows = score_suite(loaded, loaded.encoder(PromptFormat()), SUITES[name].kind, items, 900, "Scoring")
    for row, item in zip(rows, items, strict=True):
        letters = [alone(loaded, letters_prompt(item), letter) for letter in "ABCD"]
        assert row["letters"] == pytest.approx(letters, abs=1e-4)
        assert row["options"] == pytest.approx(
            [alone(loaded, options_prompt(item), each) for each in OPTIONS], abs=1e-4
        )
        assert row["lengths"] == [len(each) for each in OPTIONS]


def test_a_prompt_shows_all_options_before_letters_and_none_before_full_options(tmp_path):
    (item, *_) = items_of("medmcqa", tmp_path)
    assert letters_prompt(item).splitlines() == [
        *(f"Question: {item.question}", "Choices:", "A. rest and water", "B. a drug"),
        *("C. an operation of the heart", "D. none of these", "Answer:"),
    ]
    assert options_prompt(item) == f"Question: {item.question}\nAnswer:"


def test_scores_are_what_the_likelihoods_say():
    row = {"id": "a", "letters": [-1, -1, -2, -3], "options": [-6.0, -4.0, -9.0, -8.0], "lengths": [10, 4, 10, 10]}
    words = [{"id": str(n), "reference": r, "words": w} for n, (r, w) in enumerate([(0, [2, 1]), (1, [2, 1])])]
    pairs = [{"id": "p", "margins": [1.0, 2.0], "nll": [1.0, 2.0]}, {"id": "q", "margins": [3.0, 2.0], "nll": None}]
    found = summarize(
        Predictions(
            suite_medqa=[row | {"reference": 0}, row | {"id": "b", "reference": 1}],
            suite_bioasq_yesno=words,
            suite_medhallu=pairs,
        )
    )
    assert found["medqa_letters"] == 50, "of equal letters the first counts"
    assert found["medqa_options"] == 50, "per character, the first option is likelier than the second"
    assert found["bioasq_yesno_accuracy"] == 50
    assert found["bioasq_yesno_macro_f1"] == pytest.approx((200 / 3 + 0) / 2)
    assert (found["medhallu_claims"], found["medhallu_perplexity"]) == (50, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medqa", "medmcqa", "mmlu-medical"])
def test_the_harness_s_own_tasks_score_every_item_the_same(name, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    items = items_of(name, tmp_path)
    dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    dataset |= {"test_split": "test", "output_type": "multiple_choice"}
    if name == "mmlu-medical":
        rows = [{"question": e.question, "choices": e.meta[CHOICES], "answer": e.meta[CORRECT]} for e in items]
        subject = "anatomy"
        items, rows = ([row for row, e in zip(each, items, strict=True) if "anatomy" in e.id] for each in (items, rows))
        configs = []
        for folder, template in (("default", "_default"), ("continuation", "_continuation")):
            suffix = "" if folder == "default" else "_continuation"
            made = yaml.safe_load((tasks / f"mmlu/{folder}/{template}_template_yaml").read_text())
            made |= yaml.safe_load((tasks / f"mmlu/{folder}/mmlu_{subject}.yaml").read_text())
            made["task"] = f"mmlu_{subject}{suffix}"
            made["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
            configs.append({k: v for k, v in made.items() if k not in {"include", "tag", "task_alias", "dataset_name"}})
    else:
        monkeypatch.syspath_prepend(str(tasks / name))
        if name == "medqa":
            import preprocess_medqa as module

            keys = [f"ending{n}" for n in range(4)]
            rows = [{"sent1": e.question, "label": e.meta[CORRECT]} | _named(keys, e) for e in items]
            target = module.doc_to_target
        else:
            import utils_medmcqa as module

            rows = [
                {"question": e.question, "cop": e.meta[CORRECT]} | _named(("opa", "opb", "opc", "opd"), e)
                for e in items
            ]
            target = "cop"
        configs = [{"task": name, "doc_to_text": module.doc_to_text, "doc_to_target": target}]
        configs[0] |= {"doc_to_choice": list("ABCD"), "metric_list": [{"metric": "acc"}]}
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for config in configs:
        for key in ("test_split", "fewshot_split", "training_split", "validation_split", "fewshot_config"):
            config.pop(key, None)
    loaded = tiny.loaded(attention="eager")
    found = lm_eval.evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2, device="cpu"),
        {config["task"]: ConfigurableTask(config=config | dataset) for config in configs},
        log_samples=True,
        bootstrap_iters=0,
    )
    ours = list(score_suite(tiny.loaded(), loaded.encoder(PromptFormat()), SUITES[name].kind, items, 900, "Scoring"))
    for config, way, metric in zip(configs, ("letters", "options"), ("acc", "acc_norm"), strict=False):
        samples = {each["doc_id"]: each for each in found["samples"][config["task"]]}
        assert len(samples) == len(ours) > 1
        for number, row in enumerate(ours):
            theirs = [float(answer[0]) for answer in samples[number]["filtered_resps"]]
            assert row[way] == pytest.approx(theirs, abs=1e-4)
            score = summarize(Predictions(**{SUITES[name].kind: [row]}))[f"{name.replace('-', '_')}_{way}"]
            assert score == 100 * samples[number][metric]
    sys.modules.pop("preprocess_medqa", None)


def _named(keys, example):
    return dict(zip(keys, example.meta[CHOICES], strict=True))


EXAM = {
    "id": "exam",
    "question": "Which vitamin is low in sailors whose gums bleed after months at sea without fruit?",
    "opa": "vitamin C from lemons",
    "opb": "vitamin D from sunlight",
    "opc": "vitamin K from cabbage",
    "opd": "vitamin A from carrots",
    "cop": 1,
    "subject_name": "Skin",
}
SMALL = "[{name: medmcqa, path: mc}, {name: medhallu, path: mh}, {name: bioasq-yesno, path: ba}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("suites")) as place:
        data = place.folder.parent / "data"
        for name in ("mc", "mh", "ba"):
            (data / name).mkdir(parents=True)
        jsonl(data / "mc" / "dev.json", [*medmcqa(24), EXAM])
        (data / "ba" / "1B_golden.json").write_text(json.dumps(bioasq(20)), encoding="utf-8")
        jsonl(data / "mh" / "pqa_labeled.jsonl", medhallu(12))
        place.run("run", *place.settings(evaluate__suites=SMALL)).ok()
        yield place, place.folder / "run"


def test_a_run_measures_suites_before_and_after_with_intervals_and_subgroups(run):
    place, folder = run
    report = place.report("run")
    names = {"medmcqa_letters", "medmcqa_options", "bioasq_yesno_accuracy", "medhallu_claims", "medhallu_perplexity"}
    assert names <= report["base"].keys() & report["tuned"].keys() & report["comparison"].keys()
    row = report["comparison"]["medmcqa_letters"]
    assert (row["items"], row["test"]) == (25, "McNemar, exact")
    rows = read_rows(folder / "predictions" / "tuned-suite_medmcqa.jsonl")
    right = [max(range(4), key=each["letters"].__getitem__) == each["reference"] for each in rows]
    assert report["tuned"]["medmcqa_letters"] == pytest.approx(100 * sum(right) / 25)
    subjects = {each["group"] for each in report["subgroups"]["metrics"]["medmcqa_letters"]}
    assert {"Skin", "Surgery"} <= subjects
    assert report["suites"]["medmcqa"]["items"] == 25
    assert report["suites"]["bioasq-yesno"]["rejected"] == {"not a yes/no question": 1}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "MedMCQA, full options" in page
    assert 'id="suites"' in page


def test_items_that_stand_in_the_training_data_stop_the_run_and_are_named(run):
    place, _ = run
    exam = f"{EXAM['question']}\nA. {EXAM['opa']}\nB. {EXAM['opb']}\nC. {EXAM['opc']}\nD. {EXAM['opd']}"
    from tests.commands import rows

    own = [*rows(40), {"id": "copied", "question": exam, "answer": "It is A, because rest helps."}]
    path = jsonl(place.folder / "own.jsonl", own)
    sources = f"[{{name: own, path: '{path}', split: train}}, {{name: pubmedqa, limit: 30}}]"
    words = place.settings(data__sources=sources, data__sources__0__limit=None, evaluate__suites=SMALL)
    place.run("leaky", *words).refused(
        3, "items of the suite medmcqa: same or nearly the same question", "medmcqa:exam ~ own:copied", "allow_leakage"
    )
    checked = json.loads((place.folder / "leaky" / "leakage.json").read_text(encoding="utf-8"))
    assert checked["suites"]["medmcqa"]["found"]["question"]["leaks"][0]["train"] == "own:copied"
    assert not (place.folder / "leaky" / "predictions").exists()


def test_a_suite_can_be_changed_until_a_model_is_measured(run):
    place, _ = run
    folder = place.folder / "prepared"
    for limit in (5, 3):
        suites = f"[{{name: medmcqa, path: mc, limit: {limit}}}]"
        meditune("data", "prepare", "quickstart", "-o", folder, *place.settings(evaluate__suites=suites)).ok()
        assert len(read_rows(folder / "suites" / "medmcqa.jsonl")) == limit


def test_wrong_settings_are_told_in_a_sentence():
    for spec, text in (
        ({"suites": ["medqa", "medqa"]}, "names medqa twice"),
        ({"suites": ["medqqa"]}, "did you mean medqa"),
        ({"suites": ["k-qa"]}, "k-qa needs a judge"),
        ({"suites": ["medqa"], "suite_judge": "runs/judge"}, "has no effect"),
        ({"suites": ["healthbench"], "suite_judge": "runs/judge"}, "must be api:NAME for healthbench"),
        ({"suites": ["k-qa", "medicationqa"]}, "k-qa, medicationqa need a judge"),
        ({"suites": ["medqa"], "protocol": "lm-eval"}, "always use the prompts of lm-evaluation-harness"),
    ):
        with pytest.raises(ValueError, match=text):
            Recipe(name="x", evaluate=EvaluateSpec.model_validate(spec))
