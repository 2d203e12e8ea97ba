"""What the commands show in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meditune.ask import Answer
from meditune.data.leakage import said
from meditune.data.prepare import Prepared
from meditune.data.terms import Terms, demands, warning
from meditune.errors import MedituneError
from meditune.evaluate.changes import counted
from meditune.evaluate.compare import survives
from meditune.evaluate.metrics import METRICS, summarise
from meditune.evaluate.predictions import Predictions
from meditune.limits import LIMITS
from meditune.planning.plan import Planned
from meditune.planning.target import UTILIZATION
from meditune.progress import clock
from meditune.recipe import Recipe
from meditune.remote.estimate import Approve, refuse

if TYPE_CHECKING:
    from meditune.retrieve.cited import CitedAnswer

WIDE = 200
DONE = {"report": "left as they are", "mask": "masked", "surrogate": "replaced by invented ones"}
SHOWN_WITH = {"closed": "closed book", "given": "given context", "retrieved": "retrieved"}
VERDICTS = {True: "[green]better[/]", False: "[red]worse[/]", None: "not shown"}


def console() -> Console:
    """Standard output; plain text where it isn't a terminal, and wide, because nothing there needs wrapping."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def refuse_upload(text: str) -> None:
    """Approve of no upload."""
    raise MedituneError(f"Nothing was sent. Data would leave this machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve = refuse) -> Approve:
    """What answers for the user before anything is sent: --yes, or an answer typed into a terminal, else `refusal`."""

    def approve(text: str) -> None:
        if not yes and not sys.stdin.isatty():
            refusal(text)
        print(text, file=sys.stderr)
        if not yes:
            print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise MedituneError("Nothing was sent.")

    return approve


def print_side_by_side(result: dict[str, Any], changed: int) -> None:
    """Each model beside the first, what moved the wrong way, and `changed` items of either direction."""
    out, (first, *others) = console(), result["models"]
    short = _short_names(result["models"])
    for name in others:
        pair = {"base": result["figures"][first], "tuned": result["figures"][name], **result["comparisons"][name]}
        print_comparison(pair, short[first], short[name])
        _print_changes(result["changes"][name], changed)
        print_worse(pair)
    print_remarks(result["remarks"])
    print_leakage(*result["leakage"])
    for name, checks in result.get("gate", {}).items():
        for each in checks:
            mark = "[green]met[/]" if each["passed"] else "[bold red]NOT MET[/]"
            rule = each["rule"].replace("_", " ")
            out.print(f"{mark} {escape(name)}: {METRICS[each['metric']].title} {rule} ({each['why']})")


def _short_names(names: list[str]) -> dict[str, str]:
    """The last part of each path, where that tells them apart."""
    last = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    return last if len(set(last.values())) == len(names) else {name: name for name in names}


def _print_changes(rows: list[dict[str, Any]], shown: int) -> None:
    out = console()
    for kind, counts in counted(rows).items():
        what = "decisions" if kind == "decision" else "written answers (by ROUGE-L)"
        out.print(f"Changed {what}: {counts['gained']} gained, {counts['lost']} lost, {counts['neither']} neither.")
    lost = [row for row in rows if row["change"] == "lost"][:shown]
    gained = [row for row in rows[::-1] if row["change"] == "gained"][:shown]
    for row in (*lost, *gained):
        said = f"{_short(row['base'])} -> {_short(row['tuned'])} (reference: {_short(row['reference'])})"
        out.print(f"  {row['change']}  {row['id']}  {_short(row['question'], 80)}", markup=False)
        out.print(f"        {said}", markup=False, style="dim")


def _short(text: str | None, most: int = 60) -> str:
    plain = " ".join((text or "none of the three").split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def print_seeds(result: dict[str, Any]) -> None:
    """How base, tuned and their difference spread over runs with other seeds."""
    table = Table(box=None, pad_edge=False)
    titles = ("metric", "base", "tuned", "mean difference", "sd", "range", "95 % interval", "right way", "verdict")
    for title in titles:
        table.add_column(title, justify="left" if title in {"metric", "verdict"} else "right")
    for name, row in result["metrics"].items():
        digits = METRICS[name].digits
        spans = [f"{min(row[side]):.{digits}f} to {max(row[side]):.{digits}f}" for side in ("base", "tuned")]
        low, high = (f"{bound:+.{digits}f}" for bound in row["range"])
        table.add_row(
            METRICS[name].title,
            *spans,
            f"{row['mean']:+.{digits}f}",
            f"{row['sd']:.{digits}f}",
            f"{low} to {high}",
            f"{row['ci95'][0]:+.{digits}f} to {row['ci95'][1]:+.{digits}f}",
            f"{row['agree']} of {len(row['delta'])}",
            VERDICTS[row["better"]],
        )
    console().print(table)
    console().print(f"Seeds: {', '.join(map(str, result['seeds']))}. Intervals: Student's t over the seeds.")


def print_comparison(result: dict[str, Any], first: str = "base", second: str = "tuned") -> None:
    """Both models' figures with the interval of their difference."""
    table = Table(box=None, pad_edge=False)
    titles = ("metric", "items", first, second, "difference", "95 % interval", "effect", "p", "p, Holm", "verdict")
    for title in titles:
        table.add_column(title, justify="left" if title in {"metric", "verdict"} else "right")
    for name, row in result["comparison"].items():
        digits = METRICS[name].digits
        low, high = row["ci95"]
        table.add_row(
            METRICS[name].title,
            f"{row['items']:,}",
            f"{result['base'][name]:.{digits}f}",
            f"{result['tuned'][name]:.{digits}f}",
            f"{row['delta']:+.{digits}f}" + (" (distance from 1)" if METRICS[name].direction == "one" else ""),
            f"{low:+.{digits}f} to {high:+.{digits}f}",
            "" if row["effect"] is None else f"{row['effect']:+.2f}",
            _p(row["p"]),
            _p(row["p_holm"]),
            VERDICTS[row["better"]] + ("?" if row["better"] and not survives(row) else ""),
        )
    console().print(table)
    if any(row["better"] and not survives(row) for row in result["comparison"].values()):
        console().print(
            "better?: the interval excludes 0, but among so many metrics that may be chance (Holm's correction)."
        )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def print_crossval(result: dict[str, Any]) -> None:
    """Mean and standard deviation over the folds, and the figures of all their items together."""
    table = Table(box=None, pad_edge=False)
    for title in ("metric", "base, mean ± SD", "tuned, mean ± SD", "base, pooled", "tuned, pooled", "difference"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for title in ("95 % interval", "p", "verdict"):
        table.add_column(title, justify="left" if title == "verdict" else "right")
    for name, found in result["figures"].items():
        digits, row = METRICS[name].digits, found["difference"]["pooled"]
        spread = [
            f"{found[model]['mean']:.{digits}f}"
            + ("" if found[model]["sd"] is None else f" ± {found[model]['sd']:.{digits}f}")
            for model in ("base", "tuned")
        ]
        if row is None:
            table.add_row(METRICS[name].title, *spread, "–", "–", "–", "–", "–", "not pooled")
            continue
        table.add_row(
            METRICS[name].title,
            *spread,
            *(f"{found[model]['pooled']:.{digits}f}" for model in ("base", "tuned")),
            f"{row['delta']:+.{digits}f}",
            f"{row['ci95'][0]:+.{digits}f} to {row['ci95'][1]:+.{digits}f}",
            "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
            VERDICTS[row["better"]],
        )
    out = console()
    out.print(table)
    for model, (low, high) in result["accuracy_ci95"].items():
        out.print(f"Pooled accuracy of the {model} model: 95 % interval {low:.1f} to {high:.1f} (Wilson).")


def print_crossval_worse(result: dict[str, Any]) -> None:
    """The last line, as after a run, of the pooled figures."""
    figures = {name: result["figures"][name] for name in result["worse"]}
    models = {model: {name: row[model]["pooled"] for name, row in figures.items()} for model in ("base", "tuned")}
    comparison = {name: row["difference"]["pooled"] for name, row in figures.items()}
    print_worse({"worse": result["worse"], "comparison": comparison, **models})


def print_ratings(ratings: dict[str, list[dict[str, Any]]]) -> None:
    """The figures of each model's ratings."""
    table = Table(box=None, pad_edge=False)
    for title in ("", *(model or "all ratings" for model in ratings)):
        table.add_column(title, justify="right" if title else "left")
    every = [summarise(Predictions(rating=rows)) for rows in ratings.values()]
    counts = [(len(rows), sum(row["score"] is not None for row in rows)) for rows in ratings.values()]
    table.add_row("questions", *(str(questions) for questions, _ in counts))
    table.add_row("answered", *(str(answered) for _, answered in counts))
    for name in every[0]:
        table.add_row(METRICS[name].title, *(f"{figures[name]:.{METRICS[name].digits}f}" for figures in every))
    console().print(table)


def print_remarks(remarks: list[str]) -> None:
    """What one must know of the predictions before believing their figures."""
    for remark in remarks:
        console().print(f"[yellow]{escape(remark)}[/]")


def print_leakage(*checks: dict[str, Any]) -> None:
    """What the check for leakage found, in red; nothing where it found nothing."""
    for checked in checks:
        for sentence in said(checked):
            console().print(f"[bold red]LEAKAGE (allowed by the recipe):[/] {escape(sentence)}")


def print_worse(result: dict[str, Any]) -> None:
    """The last line: which metrics moved the wrong way, in red, or that none did."""
    if not result["worse"]:
        console().print("[green]No metric got worse.[/]")
        return
    shown: list[str] = []
    noise: list[str] = []
    for name in result["worse"]:
        digits = METRICS[name].digits
        moved = f"{METRICS[name].title} {result['base'][name]:.{digits}f} -> {result['tuned'][name]:.{digits}f}"
        (shown if result["comparison"][name]["better"] is False else noise).append(moved)
    parts = [f"GOT WORSE: {'; '.join(shown)}"] if shown else []
    parts += [f"MOVED THE WRONG WAY, within noise: {'; '.join(noise)}"] if noise else []
    console().print(f"[bold red]{'. '.join(parts)}[/]")


def print_figures(evaluation: dict[str, Any]) -> None:
    """One model's figures."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column(evaluation["model"], justify="right")
    table.add_column("meaning")
    for name, value in evaluation["figures"].items():
        table.add_row(METRICS[name].title, f"{value:.{METRICS[name].digits}f}", METRICS[name].meaning)
    console().print(table)


def print_conditions(result: dict[str, Any]) -> None:
    """Each model closed book, with the given context and with retrieved passages; nothing where only one is there."""
    out, models = console(), result.get("conditions", {})
    for title, found in models.items():
        table = Table(box=None, pad_edge=False)
        table.add_column(f"{title}, by what it is shown")
        for name in found:
            table.add_column(SHOWN_WITH[name], justify="right")
            if "comparison" in found[name]:
                table.add_column("less given (95 % interval)", justify="right")
        for metric in found["given"]["figures"]:
            digits, cells = METRICS[metric].digits, []
            for each in found.values():
                figure = each["figures"].get(metric)
                cells.append("" if figure is None else f"{figure:.{digits}f}")
                if "comparison" in each:
                    row = each["comparison"].get(metric)
                    cells.append(
                        f"{row['delta']:+.{digits}f} ({row['ci95'][0]:+.{digits}f} to {row['ci95'][1]:+.{digits}f})"
                        if row
                        else ""
                    )
            table.add_row(METRICS[metric].title, *cells)
        out.print(table)
    searched = result.get("retrieval")
    if searched and "share" in searched:
        low, high = searched["ci95"]
        out.print(
            f"Retrieval: an item's own document is among the {searched['k']} found for {searched['share']:.1f} % of "
            f"{searched['own']['items']:,} items (95 % interval {low:.1f} to {high:.1f})."
        )


def print_pruning(facts: dict[str, Any]) -> None:
    """What pruning did to quality, size and speed."""
    out, table = console(), Table(box=None, pad_edge=False)
    for title in ("", "before", "after", "change"):
        table.add_column(title, justify="right" if title else "left")
    rows = [
        (f"perplexity, {name}", value, facts["perplexity"]["after"][name], ".2f")
        for name, value in facts["perplexity"]["before"].items()
    ]
    for title, key, form in (
        ("layers", "layers", ",d"),
        ("parameters", "parameters", ",d"),
        ("bytes", "bytes", ",d"),
        ("weights that aren't zero", "nonzero_share", ".1%"),
        ("zeros in the linear layers", "zeros_in_layers", ".1%"),
        ("tokens/s, forward", "tokens_per_s", ",.0f"),
    ):
        rows.append((title, facts[key]["before"], facts[key]["after"], form))
    for title, before, after, form in rows:
        change = f"{after / before - 1:+.1%}" if before and form != ".1%" else ""
        table.add_row(title, format(before, form), format(after, form), change)
    out.print(table)
    if "removed_layers" in facts:
        shown = ", ".join(f"{number} ({facts['block_influence'][number]:.3f})" for number in facts["removed_layers"])
        out.print(f"Layers taken out, counted from 0, with their influence: {shown}.")
    for remark in facts["remarks"]:
        out.print(remark)


def print_plan(planned: Planned, recipe: Recipe, examples: int) -> None:
    """What each strategy would take, the recipe's own way first, and the changes with which the recipe fits."""
    out, target = console(), planned.target
    tokens = round(examples * recipe.train.epochs * planned.example_tokens)
    out.print(
        f"{recipe.model.base} on {target.name}: {target.memory_gb:.1f} GB, {target.flops / 1e12:,.2f} TFLOP/s "
        f"({target.source}), of which training is taken to reach {UTILIZATION[target.device]:.0%}."
    )
    table = Table(box=None, pad_edge=False)
    titles = ("strategy", "base", "trained", "weights", "training", "piece", "peak GB", "", "tokens/s", "time")
    for title in titles:
        table.add_column(title, justify="left" if title in {"strategy", "base", ""} else "right")
    colours = {"fits": "green", "tight": "yellow", "no": "red"}
    for each in [planned.own, *planned.others]:
        memory = each.memory
        parts = (f"{part / 1e9:,.2f}" for part in (memory.weights, memory.training, memory.piece))
        most = "" if each.quantize == "none" else "<= "
        least = "" if each.quantize == "none" else ">= "
        table.add_row(
            each.strategy + (" *" if each is planned.own else ""),
            {"none": str(target.dtype).removeprefix("torch.")}.get(each.quantize, each.quantize),
            *(f"{each.trained:,}", *parts, f"{memory.total / 1e9:,.2f}"),
            f"[{colours[each.verdict]}]{each.verdict}[/]",
            f"{most}{each.tokens_per_s:,.0f}",
            f"{least}{clock(each.seconds(tokens))}",
        )
    out.print(table)
    out.print(
        f"* the recipe as it is. Time: {recipe.train.epochs:g} epochs of {examples:,} examples with "
        f"{planned.example_tokens} tokens each, the most that prompt.max_tokens allows. "
        "Memory is that of training; measuring before and after can take more of it, and time of its own."
    )
    for line in planned.advice:
        out.print(f"The recipe would fit with {line}", markup=False)
    if planned.own.verdict != "fits" and not planned.advice:
        out.print("No change that is known here makes the recipe fit: take a smaller model.base.")


def print_data(data: Prepared, folder: Path) -> None:
    """What the data stage read, left out and split."""
    from meditune.data.quality.table import print_audit

    out = console()
    print_synthetic(data.synthetic)
    for name, row in data.quality["sources"].items():
        refused = ", ".join(f"{count:,} {reason}" for reason, count in row["rejected"].items()) or "nothing"
        out.print(f"{name}: {row['read']:,} examples read ({row['licence']}); left out: {refused}")
    print_audit(data.quality, out)
    for name, row in data.quality["splits"].items():
        decisions = ", ".join(f"{count} {label}" for label, count in row["decisions"].items())
        out.print(
            f"{name}: {row['examples']:,} examples in {row['groups']:,} groups {f'({decisions})' if decisions else ''}"
        )
    if "decisions" in data.quality:
        done = ", ".join(f"{count:,} {action}" for action, count in data.quality["decisions"]["actions"].items())
        missing = data.quality["decisions"]["not_in_the_data"]
        out.print(f"decisions of people: {done or 'none'}; {missing:,} about rows that aren't here")
    looked_at = data.quality.get("phi", {})
    for name, row in looked_at.get("sources", {}).items():
        if row["with_identifiers"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["kinds"].items())
            what = DONE[looked_at["action"]]
            out.print(f"{name}: identifiers in {row['with_identifiers']:,} examples, {what} ({kinds})")
    print_leakage(data.quality["leakage"])
    if found := data.quality.get("rebalanced"):
        rules = "; ".join(f"{rule} {sum(by_source.values()):,}" for rule, by_source in found["rules"].items())
        out.print(f"Rebalanced: {found['before']:,} to {found['after']:,} training examples ({rules})")
    remarks = data.quality.get("diversity", {}).get("remarks", [])
    for remark in remarks:
        out.print(f"Coverage: {escape(remark['said'])}")
    if remarks:
        out.print(f"What that means and what to do: meditune data diversity {folder.parent} --output DIR", markup=False)
    print_terms(data.quality.get("terms", {}))
    out.print(f"Data: {folder.resolve()}")


def print_terms(terms: Terms) -> None:
    """What the licences ask for together where there are several, and a warning where rows are restricted."""
    if len(terms) > 1:
        for sentence in demands(terms):
            console().print(sentence, markup=False)
    if warning(terms):
        console().print(warning(terms), style="bold yellow", markup=False)


def print_synthetic(synthetic: bool) -> None:
    """A line that says so where the data are invented."""
    if synthetic:
        console().print("[bold yellow]SYNTHETIC sample: invented studies, figures say nothing about medicine.[/]")


def print_cited(answer: CitedAnswer, as_json: bool) -> None:
    """An answer with its sources, or the sources alone, and what every medical answer carries."""
    from meditune.retrieve import cited

    if as_json:
        print(json.dumps(cited.as_dict(answer), ensure_ascii=False))
        return
    out = console()
    for line in cited.as_text(answer):
        out.print(line, markup=False)


def print_answer(answer: Answer, has_sources: bool, as_json: bool = False) -> None:
    """The answer, the decision, and what every medical answer carries."""
    if as_json:
        print(json.dumps(asdict(answer) | {"limits": LIMITS}, ensure_ascii=False))
        return
    out = console()
    out.print(answer.text or "(the model wrote nothing)", markup=False)
    shares = ", ".join(f"{label} {share:.0%}" for label, share in answer.probabilities.items())
    decision = answer.decision or "neither yes, no nor maybe"
    out.print(f"\nAs a yes/no question: {decision}{f' ({shares})' if shares else ''}", style="dim")
    if not has_sources:
        out.print("No source was given (--source FILE): this answer rests on the model's memory alone.", style="yellow")
    out.print(LIMITS, style="dim")
