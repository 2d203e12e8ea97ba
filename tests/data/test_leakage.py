"""Leakage: what is found, what it is called, and what is refused or owned up to and then marked everywhere.

Which questions and passages count as the same: light rewrites do, other questions of the same form don't.
"""

import json
import random
import shutil
import time
import tracemalloc
import unicodedata

import pytest

from meditune.data import leakage
from meditune.data.example import Passage
from meditune.data.leakage import check, find, in_prompt, known_test_items, refuse
from meditune.data.near_duplicates import near_passages, near_questions, share_within
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, same_questions, split
from meditune.errors import DataError
from tests.commands import jsonl, meditune, read_rows, rows
from tests.data import test_splits

WORDS = "The trial gave {} to adults who had pain in the lower back and could not sleep, and measured it for a year."
DRUGS = "aspirin ibuprofen codeine morphine tramadol ketorolac naproxen celecoxib diclofenac etoricoxib".split()  # noqa: SIM905


def example(number, source="own", **changes):
    question = f"Does {DRUGS[number % 10]} number {number} help adults who have pain in the lower back?"
    return test_splits.example(number, source, **{"question": question} | changes)


def context(text):
    return (Passage(text=text),)


TEST = [example(number) for number in range(5)]


ASKED = [
    "Does early treatment with metformin lower the risk of heart failure in older adults with diabetes?",
    "Is laparoscopic surgery safe in patients with cirrhosis of the liver and a low platelet count?",
    "Do children with asthma sleep worse at night than their healthy peers of the same age?",
]
DIFFERENT = [example(number, question=question) for number, question in enumerate(ASKED)]


def rewritten(number):
    """A question of DIFFERENT with one word replaced."""
    text = ASKED[number]
    return text.replace("lower", "reduce").replace("safe", "wise").replace("worse", "less")


def kinds(leaks):
    return {(leak.kind, leak.test, leak.train) for leak in leaks}


def test_a_clean_split_has_no_leak():
    assert find([example(number) for number in range(5, 30)], TEST) == []


def test_items_are_found_by_group_question_and_context_and_named():
    assert kinds(find([example(9, group="group-3")], TEST)) == {("group", "own:3", "own:9")}
    assert find([example(9, "other", group="group-3")], TEST) == [], "groups of other sources are others"
    same = example(9, "other", question=TEST[2].question.upper() + "!")
    assert kinds(find([same], TEST)) == {("question", "own:2", "other:9")}
    (leak,) = find([example(9, "other", question=rewritten(2))], DIFFERENT)
    assert (leak.kind, leak.test) == ("question", "own:2")
    assert 0.65 <= leak.alike < 1
    abstract = WORDS.format("aspirin")
    test = [example(1, context=context(abstract))]
    article = example(7, "other", context=context(f"Of others. {abstract.replace('adults', 'grown-ups')} And so on."))
    (leak,) = find([article], test)
    assert (leak.kind, leak.train) == ("context", "other:7")
    assert leak.alike < 1


@pytest.mark.parametrize(
    "question", ["Quels sont les symptômes précoces de la sclérose en plaques ?", "당뇨병의 초기 증상은 무엇입니까?"]
)
def test_composed_and_decomposed_letters_are_the_same(question):
    train, test = (example(n, question=unicodedata.normalize(form, question)) for n, form in ((1, "NFC"), (2, "NFD")))
    (leak,) = leakage.find([train], [test])
    assert (leak.kind, leak.alike) == ("question", 1)
    assert leakage.keys(train)["questions"] == leakage.keys(test)["questions"]
    assert len(set(same_questions([train, test]).values())) == 1


def test_an_instruction_that_every_item_has_is_no_leak():
    """Discharge summaries are all asked "What is the diagnosis?"."""
    asked = "What is the diagnosis at discharge?"
    items = [example(n, question=asked, context=context(f"{DRUGS[n % 10]} {n}")) for n in range(40)]
    assert find(items[:30], items[30:]) == []
    parts = split({"own": items}, official=False, test_share=0.2, dev_share=0.2, seed=1)
    assert min(map(len, parts.named().values())) > 4
    assert leakage.record(items)["questions"] == []


def test_questions_that_are_nearly_the_same_are_split_together():
    twins = []
    for number in range(40):
        one = example(
            number, question=f"Does {DRUGS[number % 10]} lower mortality in ward {number} after a stroke at night?"
        )
        twins += [one, example(number, "two", question=one.question.replace("lower", "reduce"))]  # fmt: skip
    for seed in range(4):
        parts = split({s: [e for e in twins if e.source == s] for s in ("own", "two")}, True, 0.3, 0.2, seed)
        assert find([*parts.train, *parts.dev], parts.test) == []


def test_questions_about_one_passage_are_split_together():
    items = [example(number, context=context(WORDS.format(f"drug {number // 4}"))) for number in range(80)]
    for seed in range(4):
        parts = split({"own": items}, False, 0.3, 0.2, seed)
        assert not {e.context for e in parts.test} & {e.context for e in (*parts.train, *parts.dev)}


def test_a_background_that_most_items_have_is_no_leak():
    items = [example(number, context=context(WORDS.format("a drug"))) for number in range(40)]
    parts = split({"own": items}, False, 0.3, 0.2, 1)
    assert find([*parts.train, *parts.dev], parts.test) == []
    assert leakage.record(items)["contexts"] == []


def test_the_answer_in_the_prompt():
    answer = "Among adults with back pain the drug shortened sick leave by two days, but nobody slept any better."
    clear = example(1, answer=answer, context=context("Sick leave was shorter, and sleep was the same as before."))
    quoted = example(2, answer=answer, context=context(f"Results were mixed. {answer}"))
    half = example(3, answer=answer, context=context(answer[: len(answer) * 3 // 4]))
    other = example(4, answer="No.", meta={"references": [{"answer": answer}]}, question=f"True? {answer}")
    short = example(5, answer="two days", context=context("It was two days."))
    assert {leak.test for leak in in_prompt([clear, quoted, half, other, short])} == {"own:2", "own:3", "own:4"}


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("Pain fell. Answer: yes", True),
        ("Final decision = 'YES'.", True),
        ("The conclusion is yes.", True),
        ("Answer: no", False),
        ("Patients had to answer yes or no.", False),
        ("The answer is yes for some and no for others.", False),
        ("Answer: yesterday", False),
    ],
)
def test_the_decision_in_the_prompt(text, leaks):
    item = example(3, decision="yes", context=context(text))
    assert [leak.kind for leak in in_prompt([item])] == ["decision_in_prompt"] * leaks


def checked(train, test):
    return check(Splits(train, [], test, "mine"), "test", "base")


def test_a_refusal_names_what_how_many_how_near_and_what_to_do(tmp_path):
    train = [example(n, "other", question=rewritten(n) if n else ASKED[0]) for n in range(3)]
    found = checked(train, DIFFERENT)
    with pytest.raises(DataError) as raised:
        refuse(found, False, tmp_path)
    said = str(raised.value)
    assert "3 of 3 test items: same or nearly the same question as a training item, 1 exactly" in said
    assert "own:0 = other:0" in said
    assert "own:1 ~ other:1 (0." in said
    assert "Remove these items from the training source" in said
    assert "evaluate.allow_leakage=[question]" in said
    stored = json.loads((tmp_path / "leakage.json").read_text(encoding="utf-8"))
    assert [leak["test"] for leak in stored["found"]["question"]["leaks"]] == ["own:0", "own:1", "own:2"]
    with pytest.raises(DataError):
        refuse(found, ["context"], tmp_path)
    refuse(found, ["question"], tmp_path)
    refuse(found, True, tmp_path)


def test_a_refusal_quotes_the_questions_and_says_what_the_ids_of_own_rows_are(tmp_path):
    train = [
        example(n, id=f"own:qa-{n}", question=ASKED[n].upper(), meta={"restricted": n == 2}, group=f"row-{n}")
        for n in range(3)
    ]
    test = [each.model_copy(update={"id": f"own:qa-{n + 7}"}) for n, each in enumerate(DIFFERENT)]
    parts = Splits(train, [], test, "mine")
    texts = leakage.question_texts(parts, hidden={"own:qa-1"})
    with pytest.raises(DataError) as raised:
        refuse(check(parts, "test", "base"), False, tmp_path, texts)
    said = str(raised.value)
    assert 'own:qa-7 asks "Does early treatment with metformin lower the risk of heart failure in older ..."' in said
    assert 'own:qa-0 asks "DOES EARLY TREATMENT' in said
    assert "IS LAPAROSCOPIC" not in said, "it may contain identifiers"
    assert "DO CHILDREN" not in said, "it is restricted"
    assert "own:qa-7 is row 7 of qa" in said
    assert "column `group`" in said


def topics(count=40):
    """Rows about topics with long names; a list of resources names the topics of other rows in its answer."""
    names = [" ".join(f"{drug}{place}{n}" for drug in DRUGS for place in "ab") for n in range(count)]
    forms = ["What are the treatments for {}?", "Who is at risk for the many known kinds of {} and why is that so?"]
    rows = [form.format(name) for name in names for form in forms]
    found = [example(n, question=question, decision=None) for n, question in enumerate(rows)]
    for n in range(0, count, 4):
        text = f"For more, read the pages about {names[n]} of the library."
        found.append(example(1000 + n, question=f"Resource list {n}?", answer=text, decision=None))
    return found


@pytest.mark.parametrize("newest", [False, True])
def test_rows_that_the_check_would_report_are_split_together(newest):
    rows = [e.model_copy(update={"meta": {"year": 1990 + n % 7}}) for n, e in enumerate(topics())]
    reported = 0
    for seed in range(6):
        alone = split({"own": rows}, False, 0.2, 0.2, seed, newest=newest)
        reported += len(leakage.straddling(alone))
        parts = split({"own": rows}, False, 0.2, 0.2, seed, newest=newest, leaks=leakage.straddling)
        assert find([*parts.train, *parts.dev], parts.test) == []
        assert find(parts.train, parts.dev, parts.test) == []
        assert len(parts.test) == pytest.approx(0.2 * len(rows), abs=4)
        assert sorted(e.id for part in parts.named().values() for e in part) == sorted(e.id for e in rows)
    assert reported, "the rows show nothing unless some of them would be reported"


def test_the_group_of_a_row_that_goes_to_training_goes_there_too():
    """A row that asks a question of a fixed training source can't be tested, and nor can the rows of its group."""
    known = [example(n, "own/train") for n in range(20)]
    rows = [example(n + 20, "own/free", group=f"patient-{n // 4}") for n in range(60)]
    rows = [e.model_copy(update={"question": known[n // 4].question}) if n % 4 == 0 else e for n, e in enumerate(rows)]
    rows += [example(n, "own/free") for n in range(100, 130)]
    for seed in range(4):
        sources, fixed = {"own/train": known, "own/free": rows}, {"own/train": "train"}
        parts = split(sources, False, 0.3, 0.2, seed, fixed=fixed, leaks=leakage.straddling)
        assert find([*parts.train, *parts.dev], parts.test) == []
        assert len(parts.test) > 4


def test_rows_that_a_fixed_split_separates_are_still_reported():
    test = [example(n, "own/test") for n in range(10)]
    rows = [example(n, "own/free") for n in range(60)]
    sources, fixed = {"own/free": rows, "own/test": test}, {"own/test": "test"}
    parts = split(sources, False, 0.2, 0.2, 1, fixed=fixed, leaks=leakage.straddling)
    found = {leak.test for leak in find([*parts.train, *parts.dev], parts.test) if leak.kind == "question"}
    assert found == {each.id for each in test}


def test_a_record_recognizes_what_was_trained_on_and_holds_no_text():
    trained = [example(n, context=context(WORDS.format(DRUGS[n]))) for n in range(4)]
    record = leakage.record(trained)
    assert record["examples"] == 4
    assert "pain" not in json.dumps(record)
    test = [
        example(11, question=trained[0].question.upper()),
        example(12, context=trained[1].context),
        example(13, group="group-2"),
        example(14),
    ]
    assert [leak.test for leak in known_test_items([record], [], test)] == ["own:11", "own:12", "own:13"]
    further = leakage.record([example(14)], [record])
    assert further["examples"] == 5
    assert [leak.test for leak in known_test_items([further], [], test)] == ["own:11", "own:12", "own:13", "own:14"]


def test_a_record_recognizes_an_exam_question_between_an_instruction_and_its_choices():
    asked = "A man of 61 has had a cough since his return from the lake. He has smoked two packs a day since school."
    last = "Which of the following is the most likely diagnosis in this patient?"
    row = example(1, question=f"Answer the exam question.\n{asked} {last}\nA. flu\nB. cancer")
    test = [
        example(2, "medqa", question=f"{asked} {last}"),
        example(3, "medqa", question=f"A boy of 5 has a rash. {last}"),
    ]
    assert [leak.test for leak in known_test_items([leakage.record([row])], [], test)] == ["medqa:2"]


def test_restricted_examples_are_counted_and_not_listed():
    record = leakage.record([example(1, meta={"restricted": True}), example(2)])
    assert (record["examples"], record["unlisted"], len(record["questions"])) == (2, 1, 1)
    assert known_test_items([record], [], [example(1)]) == []


def test_a_record_that_cant_be_read_isnt_taken_for_none(tmp_path):
    (tmp_path / "trained_on.json").write_text('{"version": 99}', encoding="utf-8")
    with pytest.raises(DataError, match=r"trained_on\.json.*update Meditune"):
        leakage.read_record(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("source", ["pubmedqa", "liveqa"])
def test_the_publishers_splits_are_clean(real_data, source):
    reader = {"pubmedqa": pubmedqa.read, "liveqa": liveqa.read}[source]
    examples = list(reader(real_data / source, Rejects()))
    parts = split({source: examples}, official=True, test_share=0.2, dev_share=0.1, seed=17)
    assert find([*parts.train, *parts.dev], parts.test) == []


@pytest.mark.real
def test_medquad_is_split_so_that_no_focus_and_no_near_question_straddles(real_data):
    examples = list(medquad.read(real_data / "medquad", Rejects()))
    parts = split({"medquad": examples}, official=True, test_share=0.2, dev_share=0.1, seed=17)
    assert len(parts.test) == pytest.approx(0.2 * len(examples), rel=0.02)
    assert not {e.group for e in parts.test} & {e.group for e in (*parts.train, *parts.dev)}
    assert find([*parts.train, *parts.dev], parts.test) == []


@pytest.fixture(scope="module")
def planted(place):
    """Settings of a run in which twelve training rows of the user's own ask test questions."""
    path = jsonl(place.folder / "own.jsonl", rows(12, question=lambda n: f"does TREATMENT {n} help"))
    sources = f"[{{name: pubmedqa}}, {{name: own, path: '{path}'}}]"
    return {
        "data__split": "official",
        "data__sources": sources,
        "data__sources__0__limit": None,
        "train__epochs": 0.1,
        "evaluate__answers": 5,
    }


@pytest.fixture(scope="module")
def tuned(place):
    """A run of 40 items, of which some are trained on and some tested on."""
    place.run("tuned").ok()
    return place.folder / "tuned"


def elsewhere(place, **changes):
    """Settings that test on items which the run `tuned` was trained on."""
    return place.settings(**{"data__sources__0__limit": 200, "seed": 5, "evaluate__answers": 5} | changes)


def test_leaked_items_stop_a_run_before_anything_is_measured(place, planted):
    result = place.run("refused", **planted)
    result.refused(3, "Leakage: ", "of 500 test items: same or nearly the same question", "leakage.json")
    assert not (place.folder / "refused" / "predictions").exists()
    again = place.run("refused", **planted, evaluate__allow_leakage="[context]")
    again.refused(3, "evaluate.allow_leakage=[question]")


def test_owned_up_leakage_marks_everything_that_shows_figures(place, planted):
    result = place.run("owned", **planted, evaluate__allow_leakage="[question]").ok()
    found = place.report("owned")["leakage"]["found"]["question"]
    asked = {row["question"].casefold().strip("?") for row in read_rows(place.folder / "owned" / "data" / "test.jsonl")}
    assert found["items"] == found["exact"] == sum(f"does treatment {n} help" in asked for n in range(12)) > 0
    said = f"{found['items']} of 500 test items"
    assert f"LEAKAGE (allowed by the recipe): {said}" in result.out
    page = (place.folder / "owned" / "report.html").read_text(encoding="utf-8")
    assert page.index("results were not measured on unseen questions") < page.index("Did tuning help?")
    assert said in page
    assert "unseen examples" not in page
    for card in ("model/README.md", "data/README.md"):
        assert "**Leakage" in (place.folder / "owned" / card).read_text(encoding="utf-8"), card
    again = meditune("report", place.folder / "owned")
    assert said in again.out


def test_a_clean_run_says_that_it_was_checked(place, tuned):
    checked = place.report("tuned")["leakage"]
    assert checked["found"] == {}
    assert checked["items"] == place.report("tuned")["data"]["test"]
    assert checked["model"] == {"name": str(place.base), "recorded": None, "run": 0}
    page = (tuned / "report.html").read_text(encoding="utf-8")
    assert "the model has no record of them. No leakage was found." in page
    assert "Leakage" not in page


@pytest.mark.parametrize("way", ["merge", "prune"])
def test_a_derived_model_remembers_what_it_was_trained_on(place, tuned, way):
    """Even where the run is gone: its record goes with the model."""
    moved = shutil.copytree(tuned, place.folder / f"moved-{way}")
    derived = place.folder / way
    meditune("merge", moved, "--output", derived).ok()
    if way == "prune":
        derived = place.folder / "pruned"
        words = ["--recipe", "quickstart", "--method", "magnitude", *place.settings()]
        meditune("prune", place.folder / way, "--output", derived, *words).ok()
    shutil.rmtree(moved)
    out = place.folder / f"of-{way}"
    meditune("evaluate", derived, "-o", out, *elsewhere(place)).refused(
        3, f"in the training data of {derived}", "Evaluate on other"
    )
    assert not (out / "predictions").exists()
    fine = meditune("evaluate", derived, "-o", out, *elsewhere(place, evaluate__allow_leakage=True)).ok()
    assert "LEAKAGE (allowed by the recipe)" in fine.out
    assert "trained_on" in json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["leakage"]["found"]


def test_a_model_is_measured_on_its_own_runs_test_items(place, tuned):
    result = meditune("evaluate", tuned, "-o", place.folder / "own-test", *place.settings()).ok()
    assert "LEAKAGE" not in result.out


def test_tuning_further_keeps_the_first_record(place, tuned):
    words = place.settings(model__base=tuned, train__epochs=0.1)
    meditune("train", "quickstart", "-o", place.folder / "further", *words).ok()
    first, both = (
        json.loads((folder / "model" / "trained_on.json").read_text(encoding="utf-8"))
        for folder in (tuned, place.folder / "further")
    )
    assert set(first["questions"]) <= set(both["questions"])
    assert both["examples"] == 2 * first["examples"]


QUESTION = "Does early treatment with metformin lower the risk of heart failure in older adults with diabetes?"
OTHERS = [
    "Is laparoscopic surgery safe in patients with cirrhosis of the liver?",
    "Do children with asthma sleep worse than their healthy peers?",
    "Can a simple blood test predict who will develop sepsis after surgery?",
]


@pytest.mark.parametrize(
    "rewritten",
    [
        QUESTION.upper().replace("?", " ..."),
        "In older adults with diabetes, does early treatment with metformin lower the risk of heart failure?",
        QUESTION.replace("metformin", "metfromin"),
        QUESTION.replace("diabetes", "diabetis").replace("failure", "failures"),
        QUESTION.replace("lower", "reduce"),
        QUESTION.replace("early ", ""),
        QUESTION.replace("with diabetes", "with severe diabetes"),
    ],
    ids=["case", "order", "swapped letters", "two slips", "word replaced", "word left out", "word added"],
)
def test_a_light_rewrite_is_the_same_question(rewritten):
    found = near_questions([QUESTION], [*OTHERS, rewritten])
    assert [pair[:2] for pair in found] == [(0, 3)]
    assert 0.65 <= found[0][2] <= 1


@pytest.mark.parametrize(
    ("form", "one", "other"),
    [
        ("What are the symptoms of Duane syndrome type {} ?", "1", "2"),
        ("What are the symptoms of Cockayne syndrome type {} ?", "II", "III"),
        ("What is the outlook for {} lymphoma in children?", "Hodgkin", "non-Hodgkin"),
        ("What are the symptoms of {}?", "asthma", "sepsis"),
        ("{} Crohn's disease?", "Is it", "What is"),
        ("Does treatment {} help adults with pain in the back?", "17", "71"),
    ],
)
def test_other_questions_of_the_same_form_are_others(form, one, other):
    assert near_questions([form.format(one)], [*OTHERS, form.format(other)]) == []


def test_a_template_with_many_fillings_makes_no_rewrites():
    form = "What research or clinical trials are being done at this time for people with {}?"
    diseases = ["chorea", "syncope", "ataxia", "stroke", "headache", "hydrocephalus", "narcolepsy"]
    questions = [form.format(disease) for disease in diseases]
    assert near_questions(questions, questions) == []
    assert near_questions(questions[:1], [*OTHERS, questions[1]], questions[2:]) == []
    assert near_questions(questions[:1], [*OTHERS, questions[1]]), "without the others it looks like a rewrite"


def abstract(seed, count=150):
    chance = random.Random(seed)
    return [f"w{chance.randrange(3000)}" for _ in range(count)]


def test_a_passage_is_found_inside_another_and_with_words_replaced():
    known, stranger = abstract(1), abstract(2)
    article = [*abstract(3, 400), *known, *abstract(4, 400)]
    changed = [word if place % 8 else "other" for place, word in enumerate(known)]
    rewritten = [word if place % 2 else "other" for place, word in enumerate(known)]
    texts = [" ".join(words) for words in (stranger, article, changed, rewritten)]
    assert {pair[:2] for pair in near_passages([" ".join(known)], texts)} == {(0, 1), (0, 2)}


def test_a_short_phrase_that_many_rows_share_is_no_match():
    assert near_passages(["Background: none was given."], ["Background: none was given."]) == []


def test_long_questions_take_little_memory():
    chance = random.Random(1)
    vocabulary = ["".join(chance.choices("abcdefghilmnoprstu", k=6)) for _ in range(3000)]
    questions = [" ".join(chance.choices(vocabulary, k=300)) for _ in range(300)]
    questions.append(questions[7].replace(questions[7].split()[3], "other"))
    tracemalloc.start()
    found = near_questions(questions, questions, lenient=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [pair[:2] for pair in found] == [(7, 300)]
    assert peak < 150_000_000


def test_thousands_of_rows_take_seconds():
    chance = random.Random(1)
    vocabulary = [f"{chance.choice('bcdfgklmnprst')}{number:x}o" for number in range(4000)]
    questions = [" ".join(chance.sample(vocabulary, 12)) for _ in range(20_000)]
    passages = [" ".join(chance.choices(vocabulary, k=100)) for _ in range(20_000)]
    started = time.monotonic()
    assert len(near_questions(questions[:500], questions)) == 500
    assert len(near_passages(passages[:500], passages)) == 500
    assert time.monotonic() - started < 30, "about 5 s on an idle core"


def test_the_share_of_an_answer_that_stands_in_a_text():
    answer = "one two three four five six seven eight nine ten"
    assert share_within(answer, f"Before. {answer.upper()}! After.", 8) == 1
    assert share_within(answer, "one two three four five six seven eight", 8) == pytest.approx(1 / 3)
    assert share_within("one two", answer, 8) == 0


def study(number):
    """An abstract and its conclusion, with words of its own in each sentence."""
    words = random.Random(number).sample([f"{drug}{place}" for drug in DRUGS for place in "abcdefghij"], 60)
    lines = [f"We gave {words[n]} with {words[n + 1]} to adults with {words[n + 2]}." for n in range(0, 57, 3)]
    return " ".join(lines), f"Our {words[57]} suggests that {words[58]} may lower {words[59]} in such adults."


def contaminated():
    """Test items in PubMedQA's form, and rows of other sources that hold some of them under other names."""
    test = []
    for number in range(8):
        abstract, conclusion = study(number)
        fields = {"question": f"Does {DRUGS[number]} lower the risk of stroke number {number}?", "answer": conclusion}
        test.append(example(number, "pubmedqa", context=context(abstract), **fields))
    abstracts = [each.context_text for each in test]
    rewritten = "Which answer is right about the following abstract?"
    claim = {"question": test[0].answer, "answer": "", "decision": None}
    rows = [
        # A row of MedHallu's labelled part: the conclusion as a claim, the abstract as its evidence.
        example(100, "medhallu", context=context(abstracts[0]), meta={"meditune_label": "supported"}, **claim),
        example(101, "own/instructions", question=f"{rewritten} {abstracts[1]} Does it help?", answer="Yes."),
        example(
            102, "own/articles", question="What did they find?", answer=f"Methods. {abstracts[2]} {test[2].answer}"
        ),
        example(103, "own/twisted", context=context(abstracts[3].replace("adults", "grown persons"))),
        example(104, "own/other", context=context(study(50)[0]), answer=study(50)[1]),
        example(105, "own/other", question=f"{rewritten} {study(51)[0]} Does it help?", answer="No."),
    ]
    return test, rows


def test_test_abstracts_are_found_in_any_field_whatever_the_source_calls_them(tmp_path):
    test, rows = contaminated()
    found = {(leak.test, leak.train) for leak in find(rows, test) if leak.kind == "context"}
    assert found == {
        ("pubmedqa:0", "medhallu:100"),
        ("pubmedqa:1", "own/instructions:101"),
        ("pubmedqa:2", "own/articles:102"),
        ("pubmedqa:3", "own/twisted:103"),
    }
    checked = check(Splits(rows, [], test, "pubmedqa-official-8"), "test", "smollm2-135m")
    with pytest.raises(DataError) as error:
        refuse(checked, allowed=False, folder=tmp_path)
    for name in ("4 of 8 test items", "medhallu:100", "own/instructions:101", "own/articles:102", "own/twisted:103"):
        assert name in str(error.value)


def test_an_exam_question_is_found_with_its_choices_in_one_field():
    choices = [f"{drug} twice a day for ten days" for drug in DRUGS[:4]]
    asked = "A man of 61 has had a cough and a fever since his return from the lake; what do you give him first?"
    exam = example(1, "medqa", question=asked, decision=None, meta={"choices": choices})
    row = example(7, "own/chat", question=f"Exam: {asked} Choose: {' or '.join(choices)}", answer="The first.")
    other = example(8, "own/chat", question=f"Exam: how long is a day? Choose: {' or '.join(choices[:1])}")
    assert [(leak.kind, leak.train) for leak in find([row, other], [exam])] == [("question", "own/chat:7")]


def test_a_short_exam_question_is_found_word_for_word_with_all_its_choices_in_any_order():
    exam = example(
        1, "medmcqa", question="Koplik's spots are seen in:", decision=None,
        meta={"choices": ["Measles", "Mumps", "Rubella", "Chickenpox"]},
    )  # fmt: skip
    asked = "Koplik's spots are seen in: "
    lettered = example(7, "own/chat", question=f"{asked}(b) mumps (a) measles (d) chickenpox (c) rubella", answer="a")
    fewer = example(8, "own/chat", question=f"{asked}A. Measles B. Mumps C. Rubella", answer="A")
    assert [(leak.kind, leak.train) for leak in find([fewer, lettered], [exam])] == [("question", "own/chat:7")]


def test_a_long_instruction_that_many_items_have_is_no_leak():
    told = "Read the following question of a patient with care and write what a good and patient doctor would write:"
    items = [example(number, question=f"{told} is {DRUGS[number % 10]} {number} safe?") for number in range(60)]
    assert find(items[:30], items[30:]) == []
