"""Terminal tables of metrics, comparisons and ratings, and the line that lists the metrics that got worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.text import Text

from meditune.cli.data import print_leakage
from meditune.cli.tables import VERDICTS, Cell, console, interval, number, p_value, print_remarks, print_table
from meditune.evaluate.compare import count_changes, is_significant, survives_correction
from meditune.evaluate.metrics import METRICS, summarize
from meditune.evaluate.predictions import Predictions

Row = dict[str, Any]
SHOWN_WITH = {"closed": "closed book", "given": "given context", "retrieved": "retrieved"}
MANY_SEEDS = 10  # With fewer seeds, a note explains what so few seeds can't show
CHANGES = {"gained": "improved", "lost": "worsened", "neither": "neither"}
HINTED = "no significant change (better before correction)"


def print_side_by_side(result: dict[str, Any], changed: int) -> None:
    """Print how each model compares with the first: the metrics, those that got worse, and changed items.

    At most `changed` worsened items and `changed` improved items are printed.
    """
    out, (first, *others) = console(), result["models"]
    last = {name: name.rstrip("/").rpartition("/")[2] for name in result["models"]}
    short = last if len(set(last.values())) == len(last) else {name: name for name in last}
    for name in others:
        pair = {"base": result["figures"][first], "tuned": result["figures"][name], **result["comparisons"][name]}
        print_comparison(pair, short[first], short[name])
        _print_changes(result["changes"][name], changed)
        print_worse(pair)
    print_remarks(result["remarks"])
    print_leakage(*result["leakage"])
    for name, checks in result.get("gate", {}).items():
        for each in checks:
            mark = ("met", "green") if each["passed"] else ("NOT MET", "bold red")
            rule = each["rule"].replace("_", " ")
            out.print(Text.assemble(mark, f" {name}: {METRICS[each['metric']].title} {rule} ({each['why']})"))


def _print_changes(rows: list[dict[str, Any]], limit: int) -> None:
    def short(text: str | None, width: int = 60) -> str:
        # A decision without a label is None; only a written answer can be empty.
        text = "neither yes, no nor maybe" if text is None else text
        return shorten(text, width, placeholder="…") or "(empty answer)"

    out = console()
    for kind, counts in count_changes(rows).items():
        what = "decisions" if kind == "decision" else "written answers (by ROUGE-L)"
        changes = ", ".join(f"{counts[change]} {word}" for change, word in CHANGES.items())
        out.print(f"Changed {what}: {changes}.")
    lost = [row for row in rows if row["change"] == "lost"][:limit]
    gained = [row for row in rows[::-1] if row["change"] == "gained"][:limit]
    for row in (*lost, *gained):
        out.print(f"  {CHANGES[row['change']]}  {row['id']}  {short(row['question'], 80)}")
        answers = f"{short(row['base'])} -> {short(row['tuned'])} (reference: {short(row['reference'])})"
        out.print(f"        {answers}", style="dim")


def _print_metrics(titles: Sequence[str], rows: Mapping[str, Row], cells: Mapping[str, Sequence[str]]) -> None:
    """Print a row for each metric: number of items, the given cells, references, corrected p-value and verdict."""
    beside = any(row.get("references") for row in rows.values())
    table: list[tuple[Cell, ...]] = []
    for name, row in rows.items():
        references = [_references(row, METRICS[name].digits)] if beside else []
        verdict = HINTED if _is_unsure(row) else VERDICTS[row["better"]]
        base, tuned, *others = cells[name]
        shared = (METRICS[name].title, f"{row['items']:,}", base, tuned, *references)
        table.append((*shared, *others, p_value(row["p_holm"]), verdict))
    titles = ("metric", "items", *titles[:2], *(["references"] if beside else []), *titles[2:], "p, Holm", "verdict")
    print_table(titles, table, left_aligned=["verdict"])
    if any(map(_is_unsure, rows.values())):
        console().print(
            f"{HINTED}: the interval excludes 0, but the change isn't significant after correction for the number of "
            "metrics (Holm's procedure)."
        )


def _is_unsure(row: Row) -> bool:
    return bool(row["better"]) and not survives_correction(row)


def _references(row: Row, digits: int) -> str:
    """Return the detector's value for the reference answers; empty for metrics without a detector."""
    return number(row["references"]["figure"], digits) if row.get("references") else ""


def print_seeds(result: dict[str, Any]) -> None:
    """Print how both models and their difference vary over seeds, and what a small number of seeds can't show."""
    metrics, count, cells = result["metrics"], len(result["seeds"]), {}
    for name, row in metrics.items():
        digits, (low, high) = METRICS[name].digits, row["range"]
        cells[name] = (
            *(f"{number(min(row[side]), digits)} to {number(max(row[side]), digits)}" for side in ("base", "tuned")),
            number(row["mean"], digits, "+"),
            number(row["sd"], digits),
            f"{low:+.{digits}f} to {high:+.{digits}f}",
            interval(row, digits),
            f"{row['agree']} of {len(row['delta'])}",
        )
    titles = ("base", "tuned", "mean difference", "sd", "range", "95% interval", "improved")
    _print_metrics(titles, metrics, cells)
    out = console()
    out.print(
        f"Seeds: {', '.join(map(str, result['seeds']))}. Intervals: two-level bootstrap of the mean over seeds and "
        f"items. p: corrected for {len(metrics)} metrics by Holm's procedure."
    )
    if count < MANY_SEEDS:
        out.print(
            f"{count} seeds show whether the mean difference, over seeds and over items like these, is above or below "
            f"0. The variance between seeds is estimated with {count - 1} degree{'s' if count > 2 else ''} of freedom, "
            "so the interval can't show how far one more seed may deviate, whether training fails for a rare seed, or "
            f"which of two recipes varies less. For that, run {MANY_SEEDS} or more seeds."
        )


def print_comparison(result: dict[str, Any], first: str = "base", second: str = "tuned") -> None:
    """Print the verdict, and for each metric both models' values and the interval of their difference."""
    from meditune.evaluate.report.before_after import rows, verdict

    console().print(" ".join(verdict(result, rows(result))))
    cells = {}
    for name, row in result["comparison"].items():
        digits = METRICS[name].digits
        cells[name] = (
            number(result["base"][name], digits),
            number(result["tuned"][name], digits),
            number(row["delta"], digits, "+") + (" (distance from 1)" if METRICS[name].direction == "one" else ""),
            interval(row, digits),
            number(row["effect"], 2, "+"),
            p_value(row["p"]),
        )
    _print_metrics((first, second, "difference", "95% interval", "effect", "p"), result["comparison"], cells)


def print_crossval(result: dict[str, Any]) -> None:
    """Print the mean and standard deviation over the folds, and the metrics of the pooled items."""
    rows: list[tuple[Cell, ...]] = []
    for name, found in result["figures"].items():
        digits, row, models = METRICS[name].digits, found["difference"]["pooled"], (found["base"], found["tuned"])
        spread = [
            number(each["mean"], digits) + ("" if each["sd"] is None else f" ± {number(each['sd'], digits)}")
            for each in models
        ]
        if row is None:
            rows.append((METRICS[name].title, *spread, *"–––––", "not pooled"))
            continue
        references = f" (references {_references(row, digits)})" if row.get("references") else ""
        pooled = (number(each["pooled"], digits) for each in models)
        difference = (number(row["delta"], digits, "+"), interval(row, digits), p_value(row["p"]))
        rows.append(
            (METRICS[name].title, *spread, *pooled, *difference, Text.assemble(VERDICTS[row["better"]], references))
        )
    titles = ("metric", "base, mean ± SD", "tuned, mean ± SD", "base, pooled", "tuned, pooled", "difference")
    print_table((*titles, "95% interval", "p", "verdict"), rows, left_aligned=["verdict"])
    for model, (low, high) in result["accuracy_ci95"].items():
        console().print(f"Pooled accuracy of the {model} model: 95% interval {low:.1f} to {high:.1f} (Wilson).")
    worse = {name: result["figures"][name] for name in result["worse"]}
    sides = {
        model: {name: row[model]["pooled" if row["difference"]["pooled"] else "mean"] for name, row in worse.items()}
        for model in ("base", "tuned")
    }
    comparison = {name: row["difference"]["pooled"] for name, row in worse.items()}
    print_worse({"worse": result["worse"], "comparison": comparison, **sides})


def print_ratings(ratings: dict[str, list[dict[str, Any]]]) -> None:
    """Print the metrics of each model's ratings."""
    every = [summarize(Predictions(rating=rows)) for rows in ratings.values()]
    counts = [
        ("questions", *(str(len(rows)) for rows in ratings.values())),
        ("answered", *(str(sum(row["score"] is not None for row in rows)) for rows in ratings.values())),
    ]
    metrics = [
        (METRICS[name].title, *(number(figures[name], METRICS[name].digits) for figures in every)) for name in every[0]
    ]
    print_table(("", *(model or "all ratings" for model in ratings)), counts + metrics)


def print_worse(result: dict[str, Any]) -> None:
    """Print the metrics that got worse, in red, or that no metric got worse."""
    if not result["worse"]:
        console().print("No metric got worse.", style="green")
        return
    parts: dict[str, list[str]] = {
        "SIGNIFICANTLY WORSE": [],
        "WORSE, but not significantly worse than the references": [],
        "WORSE, but no significant change": [],
        "WORSE in the mean of the folds, not tested": [],
    }
    significant, within, noise, untested = parts.values()
    for name in result["worse"]:
        digits, row = METRICS[name].digits, result["comparison"][name]
        moved = f"{METRICS[name].title} {result['base'][name]:.{digits}f} -> {result['tuned'][name]:.{digits}f}"
        if row is None:
            untested.append(moved)
        elif row["better"] is False:
            significant.append(moved)
        elif is_significant(row) is False:
            within.append(f"{moved} (references {_references(row, digits) or 'not graded'})")
        else:
            noise.append(moved)
    sentences = (f"{title}: {'; '.join(names)}" for title, names in parts.items() if names)
    console().print(". ".join(sentences), style="bold red")


def print_figures(evaluation: dict[str, Any]) -> None:
    """Print one model's metrics."""
    references = evaluation.get("references") or {}
    rows = []
    for name, value in evaluation["figures"].items():
        figures = [value, references.get(name)] if references else [value]
        cells = (number(each, METRICS[name].digits) for each in figures)
        rows.append((METRICS[name].title, *cells, METRICS[name].meaning))
    titles = ("metric", evaluation["model"], *(["references"] if references else []), "meaning")
    print_table(titles, rows, left_aligned=["meaning"])


def print_conditions(result: dict[str, Any]) -> None:
    """Print each model's metrics without context, with the given context and with retrieved passages."""
    for title, found in result.get("conditions", {}).items():
        titles = [f"{title}, by context"]
        for name in found:
            titles += [SHOWN_WITH[name], *(["minus given (95% interval)"] if "comparison" in found[name] else [])]
        rows = []
        for metric in found["given"]["figures"]:
            digits, cells = METRICS[metric].digits, []
            for each in found.values():
                cells.append(number(each["figures"].get(metric), digits))
                if "comparison" in each:
                    row = each["comparison"].get(metric)
                    cells.append(f"{row['delta']:+.{digits}f} ({interval(row, digits)})" if row else "")
            rows.append((METRICS[metric].title, *cells))
        print_table(titles, rows)
    searched = result.get("retrieval")
    if searched and "share" in searched:
        low, high = searched["ci95"]
        console().print(
            f"Retrieval: the top {searched['k']} documents contain the item's own document for "
            f"{searched['share']:.1f}% of {searched['own']['items']:,} items (95% interval {low:.1f} to {high:.1f})."
        )
