"""The functions of `import meditune`: the tutorial notebook runs, errors are sentences, nothing is printed unasked."""

import ast
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import meditune
from meditune.errors import DataError, ModelError, RecipeError
from meditune.progress import Progress, report_to
from tests import tiny

pytest.importorskip("lancedb")
pytest.importorskip("pandas")
NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorials" / "csv-to-assistant.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook's variables, and by source what each code cell shows, after all cells ran with tiny models."""
    folder = tmp_path_factory.mktemp("notebook")
    settings = {
        "base": str(tiny.save(folder / "base")),
        "folder": folder / "work",
        "evaluate": {"max_new_tokens": 8, "choices": 4, "resamples": 200, "general_tokens": 300},
    }
    names: dict = {}
    shown: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDITUNE_OFFLINE", "1")
        encoder = tiny.sentence_model(folder / "encoder")
        patch.setattr("meditune.models.package_download.fetch_folder", lambda _: encoder)
        patch.setattr("meditune.assistant.assistant.triage_classifier", lambda: None)
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                shown[source] = executed(source, names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names.update(settings)
        yield SimpleNamespace(names=names, shown=shown)


def executed(source, names):
    """Run a cell, and return the value of its last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def html_of(notebook, start):
    """The HTML of the cell whose source starts so."""
    (value,) = [value for source, value in notebook.shown.items() if source.startswith(start)]
    return value._repr_html_()


def test_the_notebook_goes_from_a_csv_to_an_assistant(notebook):
    run, names = notebook.names["run"], notebook.names
    assert run.report_path.is_file()
    html = html_of(notebook, "run = ")
    assert "significantly" in html
    assert "<th>base</th>" in html
    assert f"<td>{run.metrics().loc['perplexity', 'title']}</td>" in html
    assert f"<h4>{run.folder}:base → {run.folder}</h4>" in html_of(notebook, "meditune.compare")
    answer = html_of(notebook, "assistant = ")
    assert "[1] What is osteoporosis?" in answer
    assert "thin and brittle" in answer
    assert "replaces no doctor" in answer
    assert "emergency" in html_of(notebook, "assistant.ask")
    assert len(names["index"].search("gout", k=3).hits) == 3
    assert (run.folder / "export" / "merged" / "model.safetensors").is_file()


def test_an_opened_run_has_the_metrics_and_predictions_of_its_report(notebook):
    first = notebook.names["run"]
    run = meditune.open_run(str(first.folder))
    metrics = run.metrics()
    assert run.report == json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    assert metrics.loc["perplexity", "tuned"] == run.report["tuned"]["perplexity"]
    assert (
        metrics.loc["perplexity", "low"] <= metrics.loc["perplexity", "difference"] <= metrics.loc["perplexity", "high"]
    )
    rows = run.prediction_rows("answer", "base")
    stored = (run.folder / "predictions" / "base-answer.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows == [json.loads(line) for line in stored]
    assert list(run.predictions("answer", "base")["prediction"]) == [row["prediction"] for row in rows]
    compared = meditune.compare(run, f"{run.folder}:base", resamples=200).metrics()
    difference = compared.loc[(f"{run.folder}:base", "perplexity"), "difference"]
    assert difference == pytest.approx(-metrics.loc["perplexity", "difference"])
    with pytest.raises(meditune.MedituneError, match=r"no 'decision' predictions of the base model\. Kinds: "):
        run.prediction_rows("decision", "base")


def test_nothing_is_printed_unless_asked_and_a_callback_gets_each_stage(notebook, tmp_path, capfd):
    recipe = notebook.names["recipe"]
    updates = []
    meditune.run(recipe, notebook.names["run"].folder, progress=updates.append)
    assert "── compare and report" in [str(update) for update in updates]
    meditune.run(recipe, notebook.names["run"].folder)
    with meditune.open_assistant(notebook.names["run"], max_new_tokens=4) as assistant:
        answer = assistant.ask("What is gout?")
    assert any("memory alone" in notice.text for notice in answer.notices)
    assert capfd.readouterr() == ("", "")
    meditune.run(recipe, notebook.names["run"].folder, progress=True)
    assert "── compare and report" in capfd.readouterr().err


def test_a_tilde_is_the_home_folder(notebook, tmp_path, monkeypatch):
    run = notebook.names["run"]
    monkeypatch.setenv("HOME", str(notebook.names["folder"]))
    monkeypatch.chdir(tmp_path)
    place = f"~/{run.folder.relative_to(notebook.names['folder'])}"
    assert meditune.run(notebook.names["recipe"], place).folder == run.folder
    assert meditune.open_run(place).folder == run.folder
    assert meditune.open_index("~/library").manifest == notebook.names["index"].manifest
    assert meditune.export_model(place, "merged", "~/merged") == notebook.names["folder"] / "merged"
    assert (notebook.names["folder"] / "merged" / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_the_callback_stops_a_run(notebook, tmp_path):
    def stop(update):
        raise InterruptedError(str(update))

    with pytest.raises(InterruptedError, match="prepare"):
        meditune.run(notebook.names["recipe"], tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "report.json").exists()


def test_threads_report_to_their_own_callbacks(capsys):
    before = sys.stderr
    seen: dict = {"a": [], "b": []}

    def work(name):
        def receive(update):
            print(f"{name} heard it", file=sys.stderr)  # a callback may print
            seen[name].append(update)

        with report_to(receive):
            print(f"{name}, ", end="", file=sys.stderr)
            time.sleep(0.05)
            print("line", file=sys.stderr)
            with Progress(name, 2, "rows") as progress:
                progress.advance(2)

    threads = [threading.Thread(target=work, args=(name,)) for name in seen]
    with report_to(lambda _: None):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, updates in seen.items():
        assert updates[0].text == f"{name}, line"
        assert [(each.label, each.done, each.total, each.unit) for each in updates[1:]] == [(name, 2, 2, "rows")]
    assert sys.stderr is before
    assert sorted(capsys.readouterr().err.splitlines()) == ["a heard it"] * 2 + ["b heard it"] * 2


def test_a_recipe_comes_from_a_name_values_or_another_recipe(tmp_path):
    csv = tmp_path / "pairs.csv"
    csv.write_text("question,answer\nWhy?,Because.\n", encoding="utf-8")
    values = {"name": "mine", "data": {"sources": [{"name": "own", "path": csv}]}, "train": {"epochs": 2}}
    recipe = meditune.load_recipe(values, train={"batch_size": 4})
    assert (recipe.name, recipe.train.epochs, recipe.train.batch_size) == ("mine", 2, 4)
    assert recipe.data.sources[0].path == str(csv)
    changed = meditune.load_recipe(recipe, **{"train.epochs": 5, "data.sources.0.limit": 7})
    assert (changed.train.epochs, changed.train.batch_size, changed.data.sources[0].limit) == (5, 4, 7)
    with pytest.raises(RecipeError) as caught:
        meditune.load_recipe({"data": {"sources": []}, "model": {"bas": "x"}}, train={"epochs": "two"}, seed=None)
    text = str(caught.value)
    assert text.startswith("The recipe has ")
    for line in (
        "the recipe: name: missing",
        "given model.bas: no such key; did you mean model.base?",
        "given train.epochs: expected a number above 0, found 'two'",
        "given seed: expected a whole number",
    ):
        assert line in text
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        meditune.load_recipe(values, **{"data.sources.0.path": tmp_path / "nowhere.csv"})


def test_errors_are_the_sentences_of_the_command_line(tmp_path, monkeypatch, notebook):
    with pytest.raises(DataError, match=r"contains no run: recipe\.yaml is missing"):
        meditune.open_run(tmp_path)
    with pytest.raises(DataError, match="contains no index"):
        meditune.open_index(tmp_path)
    with pytest.raises(ModelError, match="Unknown export format 'zip'"):
        meditune.export_model(notebook.names["run"], "zip")
    with pytest.raises(meditune.MedituneError, match="needs two or more models"):
        meditune.compare(notebook.names["run"])
    for options in ({"resamples": 0}, {"seed": -1}):
        with pytest.raises(meditune.MedituneError, match="resamples must be at least 100, and seed at least 0"):
            meditune.compare(notebook.names["run"], notebook.names["run"], **options)
    for options in ({"judge_threshold": 0.4}, {"judge_threshold": 2, "judge": "judge"}, {"max_new_tokens": 0}):
        with pytest.raises(meditune.MedituneError, match=f"{next(iter(options))} must be"):
            meditune.open_assistant(notebook.names["run"], **options)
    (tmp_path / "file").touch()
    with pytest.raises(meditune.MedituneError, match=r"hoose another"):
        meditune.run(notebook.names["recipe"], tmp_path / "file" / "run")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(meditune.MedituneError, match=r"needs pandas.*pip install.*Run\.report"):
        notebook.names["run"].metrics()


def test_importing_the_package_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'numpy', 'pandas', 'pydantic', 'yaml', 'scipy'}"
    code = f"import sys, meditune; print(sorted({heavy} & set(sys.modules))); meditune.load_recipe('quickstart'); "
    code += "print('torch' in sys.modules); assert set(meditune.__all__) <= set(dir(meditune)); meditune.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\nFalse\n"
    assert "has no attribute 'nothing'" in done.stderr
