"""Functions for Python programs and notebooks: recipes, runs, comparisons, assistants, judges, indexes, exports.

The functions run the same code as the commands, and raise the same errors. The package exports all functions:
`import meditune; meditune.run(...)`. Nothing is printed unless the argument `progress` asks for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from markupsafe import Markup

from meditune.config.data_options import Style
from meditune.config.recipe import Recipe
from meditune.errors import MedituneError, install_command, os_error_sentence
from meditune.models.quiet_libraries import no_telemetry
from meditune.progress import ProgressUpdate, report_to

if TYPE_CHECKING:
    from pandas import DataFrame

    from meditune.assistant import assistant as internal
    from meditune.assistant.events import Answer, Event
    from meditune.engines.evidence_judge import EvidenceJudge, LexicalJudge, SupportJudge
    from meditune.evaluate.predictions import Kind
    from meditune.evidence.support_model import ClaimVerdict
    from meditune.hosted_pipeline import Approve
    from meditune.retrieve.index import Index

Place = str | Path
RecipeLike = str | Mapping[str, Any] | Recipe
Progress = bool | Callable[[ProgressUpdate], object]
"""False: nothing is shown. True: lines and bars on stderr, as on the command line. A function is called with each
update: `print` shows the lines, and an exception that the function raises stops the task."""
Consent = bool | Callable[[str], bool]
"""For models behind an API: True agrees to send data and spend money. A function is called with the estimate."""

no_telemetry()


def load_recipe(source: RecipeLike = "quickstart", /, **changes: Any) -> Recipe:
    """Return a recipe with changes, after checking it.

    `source` is the name of a shipped recipe, the path of a recipe file, a dict with a recipe's keys, or another recipe.
    A change is a group with some of its keys, such as `train={"epochs": 2}`, or one dotted key, such as
    `**{"train.epochs": 2}`. Raises RecipeError, which lists every problem, and DataError if a data source is unknown or
    the user's file is missing.
    """
    from meditune.config import load_recipe as loading
    from meditune.data.read_sources import check_sources

    if isinstance(source, Recipe):
        source = source.model_dump(mode="json")
    with _call():
        recipe = loading.load_recipe(source, changes).recipe
        check_sources(recipe.data)
    return recipe


def run(recipe: RecipeLike, output: Place, *, progress: Progress = False, approve: Consent = False) -> Run:
    """Run the whole pipeline in the folder `output`, or resume it there, like `meditune run`.

    Call the function again with the same arguments to resume an interrupted run. For a model behind an API, `approve`
    permits sending data and spending money. It is True, or a function that gets the estimate and returns True or False.
    Raises MedituneError if the folder contains another run, and RecipeError, DataError or ModelError if the recipe, the
    data or the model can't be used.
    """
    from meditune import pipeline
    from meditune.run_folder import RECIPE

    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(output).expanduser()
    command = shlex.join(["meditune", "run", str(folder / RECIPE), "--output", str(folder)])
    with _call(progress):
        pipeline.run(chosen, folder, command, _approval(approve))
    return Run(folder)


def open_run(folder: Place) -> Run:
    """Return a finished run. Raises DataError if the run is unfinished; the error names the command to finish it."""
    from meditune.evaluate.predictions import seed_of
    from meditune.run_folder import refuse_unfinished

    place = Path(folder).expanduser()
    with _call():
        refuse_unfinished(place)
        seed_of(place)
    return Run(place)


@dataclass(frozen=True)
class Run:
    """A finished run. A notebook displays a summary of the run in words, and a table of its metrics."""

    folder: Path

    @cached_property
    def report(self) -> dict[str, Any]:
        """Return the content of report.json; docs/reference/report.md describes its keys."""
        from meditune.files import read_json

        report: dict[str, Any] = read_json(self.folder / "report.json")
        return report

    @property
    def report_path(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    def metrics(self) -> DataFrame:
        """Return a DataFrame with a row for each metric.

        A row contains the values of both models, their difference (tuned - base) and its 95% interval.
        """
        return _frame(_metric_rows(self.report), index="metric")

    def predictions(self, kind: Kind = "answer", model: str = "tuned") -> DataFrame:
        """Return a DataFrame with the stored predictions of `model` (base or tuned), one row per item."""
        return _frame(self.prediction_rows(kind, model))

    def prediction_rows(self, kind: Kind = "answer", model: str = "tuned") -> list[dict[str, Any]]:
        """Return the stored predictions as dicts; docs/reference/report.md describes the kinds and the keys.

        Raises DataError if there are no predictions of the model, and MedituneError if there are none of this kind.
        """
        from meditune.evaluate.predictions import KINDS, read

        with _call():
            stored = read(self.folder / "predictions", model)
        found: dict[str, list[dict[str, Any]]] = {name: getattr(stored, name) for name in KINDS}
        if not found.get(kind):
            measured = [name for name, rows in found.items() if rows]
            raise MedituneError(
                f"{self.folder} has no {kind!r} predictions of the {model} model. Kinds: {', '.join(measured)}."
            )
        return found[kind]

    def _repr_html_(self) -> str:
        notes = _notes_html([*self.report["remarks"], f"Report: {self.report_path}"], [self.report["leakage"]])
        return f"<div>{_comparison_html(self.report)}{notes}</div>"


def compare(*models: Place | Run, resamples: int = 10_000, seed: int = 17) -> Comparison:
    """Compare the first model with each of the others, using paired statistics, like `meditune compare`.

    A model is a run (its tuned model is compared), the output folder of `meditune run` or `meditune evaluate`, or a
    name as on the command line, such as "runs/quickstart:base". Raises DataError if the models were evaluated on
    different items.
    """
    from meditune.evaluate import quality_gate

    if resamples < 100 or seed < 0:
        raise MedituneError(f"resamples must be at least 100, and seed at least 0, not {resamples} and {seed}.")
    with _call():
        return Comparison(quality_gate.compare([_name(model) for model in models], resamples, seed, None))


@dataclass(frozen=True)
class Comparison:
    """A comparison of the first model with each of the others. A notebook displays a table for each of the others."""

    result: dict[str, Any] = field(repr=False)
    """The content of the file of `meditune compare --json-file`, plus the items with changed answers under `changes`"""

    def metrics(self) -> DataFrame:
        """Return a DataFrame with a row for each metric of each model that is compared with the first model.

        A row contains the values of both models, their difference and its 95% interval.
        """
        rows = ({"model": name} | row for name, pair in self._pairs() for row in _metric_rows(pair))
        return _frame(rows, index=["model", "metric"])

    def _pairs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (name, comparison) for each further model. The comparison has the keys of a run's report."""
        figures, (first, *others) = self.result["figures"], self.result["models"]
        for name in others:
            yield name, {"base": figures[first], "tuned": figures[name], **self.result["comparisons"][name]}

    def _repr_html_(self) -> str:
        first = self.result["models"][0]
        parts = [
            Markup("<h4>{} → {}</h4>{}").format(first, name, _comparison_html(pair, first, name))
            for name, pair in self._pairs()
        ]
        return f"<div>{''.join(parts)}{_notes_html(self.result['remarks'], self.result['leakage'])}</div>"


def open_assistant(
    model: Place | Run,
    index: Place | Index | None = None,
    *,
    sources: Sequence[str] | None = None,
    judge: Place | Run | None = None,
    judge_threshold: float | None = None,
    max_new_tokens: int | None = None,
    api: Mapping[str, Any] | None = None,
) -> Assistant:
    """Open a model to ask it questions, like `meditune ask`. With an index, answers cite passages of the index.

    `model` is a run, a model folder, a catalogue name, a hub id, or api:NAME. `sources` are the sources of the index to
    search, by default all. `judge` is an evidence judge's run, the folder or hub id of an NLI model, or minicheck:NAME,
    hhem:NAME or lettucedetect:NAME; a sentence is shown if the judge's probability of support is at least
    `judge_threshold` (None: 0.85; for models that others trained 0.5). `api` sets keys of `model.api`, such as `url`.
    Raises ModelError or DataError if the model, the index or the judge can't be used.
    """
    from meditune.assistant import assistant as opening
    from meditune.config.load_recipe import load_recipe as load

    if judge_threshold is not None and (not judge or not 0 <= judge_threshold <= 1):
        raise MedituneError("judge_threshold must be from 0 to 1, and it needs a judge: name it with judge=RUN.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise MedituneError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    with _call():
        given = {f"model.api.{key}": value for key, value in (api or {}).items()}
        spec = load("quickstart", given).recipe.model.api if given else None
        settings = opening.AssistantSettings()
        settings = replace(settings, max_new_tokens=max_new_tokens) if max_new_tokens else settings
        place = str(index) if isinstance(index, str | Path) else index
        named = _name(judge) if judge else None
        opened = opening.load_assistant(_name(model), place, sources, settings, spec, named, judge_threshold)
    return Assistant(opened, sources)


class Assistant:
    """A model with triage of the questions and checks of the answers. Close it after use, or use a `with` block."""

    def __init__(self, opened: internal.Assistant, sources: Sequence[str] | None = None) -> None:
        self._assistant, self._sources = opened, sources

    def ask(self, question: str, *, style: Style = "plain", k: int | None = None) -> Answer:
        """Return the answer. It has the fields of the HTTP API's event `answer`; `print` and notebooks show it as text.

        `k` is the number of passages to retrieve, 5 by default. Raises DataError if the question is empty or too long.
        """
        *_, last = self.stream(question, style=style, k=k)
        return cast("Answer", last)

    def stream(self, question: str, *, style: Style = "plain", k: int | None = None) -> Iterator[Event]:
        """Yield the events of an answer while it is written; the last event is the answer.

        `event.kind` is sources, text, sentence, notice or answer. A text event contains text to show: complete
        sentences that passed the checks.
        """
        events = self._assistant.ask(question, style=style, k=k, sources=self._sources)
        while True:
            with _call():
                event = next(events, None)
            if event is None:
                return
            yield event

    def close(self) -> None:
        """Free the model's memory and threads."""
        self._assistant.writer.close()

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def supports(sentence: str, passages: str | Sequence[str], *, judge: Place | Run | None = None) -> ClaimVerdict:
    """Return the probabilities that passages support or refute a sentence, as `open_judge(judge).supports` does.

    For many sentences, open the judge once with `open_judge`.
    """
    return open_judge(judge).supports(sentence, passages)


def open_judge(judge: Place | Run | None = None) -> Judge:
    """Open an evidence judge, to check sentences against passages.

    `judge` is what `--judge` takes: an evidence judge's run, the folder or hub id of an NLI model, minicheck:NAME,
    lettucedetect:NAME or hhem:NAME. By default, the lexical detector is used, which needs no model but compares only
    words. Raises ModelError if the judge can't be used.
    """
    from meditune.engines import evidence_judge

    with _call():
        return Judge(evidence_judge.LexicalJudge() if judge is None else evidence_judge.open_judge(_name(judge)))


class Judge:
    """An evidence judge. `name` is its name, or "lexical detector"."""

    def __init__(self, opened: EvidenceJudge | SupportJudge | LexicalJudge) -> None:
        self._judge, self.name = opened, opened.name

    def supports(self, sentence: str, passages: str | Sequence[str]) -> ClaimVerdict:
        """Return the verdict on whether the passages, read together, support the sentence.

        Without any text in the passages, the verdict is unclear.
        """
        return self.supports_each([(sentence, passages)])[0]

    def supports_each(self, claims: Iterable[tuple[str, str | Sequence[str]]]) -> list[ClaimVerdict]:
        """Return a verdict for each pair of a sentence and its passages, in order. The pairs are judged in batches.

        An evidence judge reads the passages only once for adjacent pairs with the same passages. Raises ModelError if
        the judge fails.
        """
        from meditune.engines.evidence_judge import BATCH_SENTENCES

        asked = [(text, (given,) if isinstance(given, str) else tuple(given)) for text, given in claims]
        with _call():
            batches = (asked[start : start + BATCH_SENTENCES] for start in range(0, len(asked), BATCH_SENTENCES))
            return [verdict for batch in batches for verdict in self._judge.verdicts(batch)]


def build_index(
    output: Place,
    *,
    documents: Place | Sequence[Place] = (),
    sources: str | Sequence[str] = (),
    pubmed: Place | Sequence[Place] = (),
    embedding: str | None = None,
    replace: bool = False,
    progress: Progress = False,
) -> Index:
    """Build an index of documents to cite from, and open it, like `meditune index build`.

    `documents` are folders of text, Markdown, HTML, PDF and DOCX files, or files of questions and answers (CSV, JSON
    Lines). `sources` are names of built-in sources, and `pubmed` are PubMed files. Raises DataError if `output` already
    contains an index, unless `replace` is true.
    """
    from meditune.models.sentence_encoder import DEFAULT, load_encoder
    from meditune.retrieve import collections
    from meditune.retrieve.build_index import build
    from meditune.retrieve.index import Index
    from meditune.retrieve.storage import index_storage

    with _call(progress):
        chosen = [
            *map(collections.collection_named, _names(sources)),
            *map(collections.documents, _names(documents)),
            *map(collections.pubmed_files, _names(pubmed)),
        ]
        encoder = load_encoder(embedding or DEFAULT)
        build(index_storage(str(output)), chosen, encoder, replace)
        return Index.open(str(output), encoder)


def open_index(place: Place, embedding: str | None = None, cross_encoder: str | None = None) -> Index:
    """Open an index in a folder or in object storage, to search it: `open_index("library").search("gout", k=3)`.

    `cross_encoder` is the folder or hub id of a cross-encoder, which scores the best passages of a search again.
    Raises DataError if there is no index, and ModelError if its embedding model or the cross-encoder is unavailable.
    """
    from meditune.retrieve.index import Index

    with _call():
        return Index.open(str(place), embedding, cross_encoder)


def export_model(model: Place | Run, to: str, output: Place | None = None, *, progress: Progress = False) -> Path:
    """Export a model, verify that the export gives the same answers, and return its folder, like `meditune export`.

    `to` is merged, openvino, gguf, onnx, ollama or vllm. The file export.json in the folder contains the measured
    deviation of the export from the model. Raises ModelError, and leaves no files behind, if the model can't be
    exported or the export deviates too much.
    """
    from meditune.engines.exported_model import EXPORTS
    from meditune.export.export import export

    folder = Path(output).expanduser() if output else None
    with _call(progress):
        export(_name(model), to, folder)
    return folder or Path(_name(model)).expanduser() / EXPORTS / to


@contextmanager
def _call(progress: Progress = False) -> Iterator[None]:
    """Show only what `progress` asks for, and turn OSErrors about files into MedituneErrors with a full sentence."""
    receive = progress if callable(progress) else lambda _: None
    with nullcontext() if progress is True else report_to(receive):
        try:
            yield
        except OSError as error:
            sentence = os_error_sentence(error)
            if sentence is None:
                raise
            raise MedituneError(sentence) from error


def _approval(approve: Consent) -> Approve:
    def check(text: str) -> None:
        if approve is True or (callable(approve) and approve(text)):
            return
        hint = "" if callable(approve) else "\nTo agree, pass approve=True."
        raise MedituneError(f"Nothing was sent. This would send data to another machine and cost money:\n{text}{hint}")

    return check


def _name(model: Place | Run) -> str:
    return str(model.folder if isinstance(model, Run) else model)


def _names(given: Place | Sequence[Place]) -> list[str]:
    return [str(each) for each in ([given] if isinstance(given, str | Path) else given)]


def _metric_rows(pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from meditune.evaluate.metrics import METRICS

    for name, row in pair["comparison"].items():
        low, high = row["ci95"]
        yield {
            "metric": name,
            "title": METRICS[name].title,
            "base": pair["base"][name],
            "tuned": pair["tuned"][name],
            "difference": row["delta"],
            "low": low,
            "high": high,
            "p_holm": row["p_holm"],
            "better": row["better"],
            "items": row["items"],
        }


def _frame(rows: Iterable[Mapping[str, Any]], index: str | list[str] | None = None) -> DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise MedituneError(
            f"A DataFrame needs pandas. Install it with {install_command('pandas')}. Without pandas, the same values "
            "are available as dicts and lists: Run.report, Run.prediction_rows and Comparison.result."
        ) from error
    frame = pandas.DataFrame(list(rows))
    return frame.set_index(index) if index else frame


def _comparison_html(pair: dict[str, Any], first: str = "base", second: str = "tuned") -> Markup:
    """Return the verdict and the compared metrics of a report or of a pair of models."""
    from meditune.evaluate.report.before_after import rows, verdict

    table = rows(pair)
    titles = ("metric", first, second, "difference", "95% interval", "p, Holm", "verdict")
    body = [
        (row.metric.title, row.base, row.tuned, row.delta, row.interval, row.p_holm, row.mark)
        for row in table
        if row.compared
    ]
    rendered = Markup("")
    for tag, cells in [("th", titles), *(("td", row) for row in body)]:
        row = Markup("").join(Markup(f"<{tag}>{{}}</{tag}>").format(cell) for cell in cells)
        rendered += Markup("<tr>{}</tr>").format(row)
    return Markup("<p>{}</p><table>{}</table>").format(" ".join(verdict(pair, table)), rendered)


def _notes_html(remarks: Iterable[str], checks: Iterable[dict[str, Any]]) -> Markup:
    """Return the remarks, and the leakage that the checks found, as paragraphs."""
    from meditune.data.leakage import described

    leaks = [f"LEAKAGE (allowed by the recipe): {sentence}" for checked in checks for sentence in described(checked)]
    return Markup("").join(Markup("<p>{}</p>").format(text) for text in (*leaks, *remarks))
