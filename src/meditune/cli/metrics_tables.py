"""Tables of metrics, comparisons and ratings in the terminal, and the line with what got worse."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from meditune.cli.data import print_leakage
from meditune.cli.tables import console, print_table
from meditune.evaluate.compare import count_changes, survives_correction
from meditune.evaluate.compare import is_significant as is_shown
from meditune.evaluate.metrics import METRICS, summarise
from meditune.evaluate.predictions import Predictions

SHOWN_WITH = {"closed": "closed book", "given": "given context", "retrieved": "retrieved"}
MANY_SEEDS = 10
"""With fewer seeds, a note says what they can't show"""
VERDICTS = {True: "[green]significantly better[/]", False: "[red]significantly worse[/]", None: "no significant change"}
HINTED = "no significant change (better before correction)"


def print_side_by_side(result: dict[str, Any], changed: int) -> None:
    """Print each model beside the first, metrics that got worse, and up to `changed` lost and gained items."""
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
    """Return the last part of each path if these differ, else the whole paths."""
    last = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    return last if len(set(last.values())) == len(names) else {name: name for name in names}


def _print_changes(rows: list[dict[str, Any]], limit: int) -> None:
    out = console()
    for kind, counts in count_changes(rows).items():
        what = "decisions" if kind == "decision" else "written answers (by ROUGE-L)"
        out.print(f"Changed {what}: {counts['gained']} gained, {counts['lost']} lost, {counts['neither']} neither.")
    lost = [row for row in rows if row["change"] == "lost"][:limit]
    gained = [row for row in rows[::-1] if row["change"] == "gained"][:limit]
    for row in (*lost, *gained):
        comparison = f"{_short(row['base'])} -> {_short(row['tuned'])} (reference: {_short(row['reference'])})"
        out.print(f"  {row['change']}  {row['id']}  {_short(row['question'], 80)}", markup=False)
        out.print(f"        {comparison}", markup=False, style="dim")


def _short(text: str | None, max_length: int = 60) -> str:
    plain = " ".join((text or "none of yes, no and maybe").split())
    return plain if len(plain) <= max_length else plain[: max_length - 1] + "…"


def print_seeds(result: dict[str, Any]) -> None:
    """Print how base, tuned and their difference vary over seeds, and what the number of seeds can't show."""
    metrics = result["metrics"]
    beside = any(row.get("references") for row in metrics.values())
    titles = ["metric", "items", "base", "tuned", *(["references"] if beside else []), "mean difference", "sd", "range"]
    rows = []
    for name, row in metrics.items():
        digits = METRICS[name].digits
        low, high = (f"{bound:+.{digits}f}" for bound in row["range"])
        rows.append(
            (
                METRICS[name].title,
                f"{row['items']:,}",
                *(f"{min(row[side]):.{digits}f} to {max(row[side]):.{digits}f}" for side in ("base", "tuned")),
                *([_references(row, digits)] if beside else []),
                f"{row['mean']:+.{digits}f}",
                f"{row['sd']:.{digits}f}",
                f"{low} to {high}",
                _interval(row, digits),
                _p(row["p_holm"]),
                f"{row['agree']} of {len(row['delta'])}",
                _verdict(row),
            )
        )
    print_table((*titles, "95 % interval", "p, Holm", "improved", "verdict"), rows, left_aligned=["verdict"])
    out, count = console(), len(result["seeds"])
    out.print(
        f"Seeds: {', '.join(map(str, result['seeds']))}. Intervals: two-level bootstrap of the mean over seeds and "
        f"items. p: corrected for {len(metrics)} metrics by Holm's procedure."
    )
    _print_unsure(metrics)
    if count < MANY_SEEDS:
        out.print(
            f"{count} seeds show whether the mean difference, over seeds and over items like these, is above or below "
            f"0. The variance between seeds is estimated with {count - 1} degree{'s' if count > 2 else ''} of freedom, "
            "so the interval can't show how far one more seed may deviate, whether a rare seed fails, or which of two "
            f"recipes varies less. Run {MANY_SEEDS} or more seeds for that."
        )


def print_comparison(result: dict[str, Any], first: str = "base", second: str = "tuned") -> None:
    """Print the verdict, and both models' metrics with the interval of their difference."""
    from meditune.evaluate.report.before_after import rows, verdict

    console().print(" ".join(verdict(result, rows(result))), markup=False, highlight=False)
    beside = any(row.get("references") for row in result["comparison"].values())
    titles = ["metric", "items", first, second, *(["references"] if beside else []), "difference", "95 % interval"]
    cells = []
    for name, row in result["comparison"].items():
        digits = METRICS[name].digits
        cells.append(
            (
                METRICS[name].title,
                f"{row['items']:,}",
                f"{result['base'][name]:.{digits}f}",
                f"{result['tuned'][name]:.{digits}f}",
                *([_references(row, digits)] if beside else []),
                f"{row['delta']:+.{digits}f}" + (" (distance from 1)" if METRICS[name].direction == "one" else ""),
                _interval(row, digits),
                "" if row["effect"] is None else f"{row['effect']:+.2f}",
                _p(row["p"]),
                _p(row["p_holm"]),
                _verdict(row),
            )
        )
    print_table((*titles, "effect", "p", "p, Holm", "verdict"), cells, left_aligned=["verdict"])
    _print_unsure(result["comparison"])


def _verdict(row: dict[str, Any]) -> str:
    return HINTED if row["better"] and not survives_correction(row) else VERDICTS[row["better"]]


def _print_unsure(rows: dict[str, dict[str, Any]]) -> None:
    """Explain the verdict HINTED if a row has it."""
    if any(row["better"] and not survives_correction(row) for row in rows.values()):
        console().print(
            f"{HINTED}: the interval excludes 0, but the change isn't significant after correction for the number of "
            "metrics (Holm's procedure)."
        )


def _references(row: dict[str, Any], digits: int) -> str:
    """Return the detector's result for the reference answers; empty for metrics without a detector."""
    found = row.get("references")
    return f"{found['figure']:.{digits}f}" if found else ""


def _interval(row: dict[str, Any], digits: int) -> str:
    low, high = row["ci95"]
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def print_crossval(result: dict[str, Any]) -> None:
    """Print the mean and standard deviation over the folds, and the metrics of the pooled items."""
    rows = []
    for name, found in result["figures"].items():
        digits, row = METRICS[name].digits, found["difference"]["pooled"]
        spread = [
            f"{found[model]['mean']:.{digits}f}"
            + ("" if found[model]["sd"] is None else f" ± {found[model]['sd']:.{digits}f}")
            for model in ("base", "tuned")
        ]
        if row is None:
            rows.append((METRICS[name].title, *spread, *"–––––", "not pooled"))
            continue
        references = f" (references {_references(row, digits)})" if row.get("references") else ""
        rows.append(
            (
                METRICS[name].title,
                *spread,
                *(f"{found[model]['pooled']:.{digits}f}" for model in ("base", "tuned")),
                f"{row['delta']:+.{digits}f}",
                _interval(row, digits),
                _p(row["p"]),
                VERDICTS[row["better"]] + references,
            )
        )
    titles = ("metric", "base, mean ± SD", "tuned, mean ± SD", "base, pooled", "tuned, pooled", "difference")
    print_table((*titles, "95 % interval", "p", "verdict"), rows, left_aligned=["verdict"])
    out = console()
    for model, (low, high) in result["accuracy_ci95"].items():
        out.print(f"Pooled accuracy of the {model} model: 95 % interval {low:.1f} to {high:.1f} (Wilson).")


def print_crossval_worse(result: dict[str, Any]) -> None:
    """Print which pooled metrics got worse, as after a run."""
    figures = {name: result["figures"][name] for name in result["worse"]}
    models = {model: {name: row[model]["pooled"] for name, row in figures.items()} for model in ("base", "tuned")}
    comparison = {name: row["difference"]["pooled"] for name, row in figures.items()}
    print_worse({"worse": result["worse"], "comparison": comparison, **models})


def print_ratings(ratings: dict[str, list[dict[str, Any]]]) -> None:
    """Print the metrics of each model's ratings."""
    every = [summarise(Predictions(rating=rows)) for rows in ratings.values()]
    print_table(
        ("", *(model or "all ratings" for model in ratings)),
        [
            ("questions", *(str(len(rows)) for rows in ratings.values())),
            ("answered", *(str(sum(row["score"] is not None for row in rows)) for rows in ratings.values())),
            *(
                (METRICS[name].title, *(f"{figures[name]:.{METRICS[name].digits}f}" for figures in every))
                for name in every[0]
            ),
        ],
    )


def print_remarks(remarks: list[str]) -> None:
    """Print warnings about the predictions."""
    for remark in remarks:
        console().print(f"[yellow]{escape(remark)}[/]")


def print_worse(result: dict[str, Any]) -> None:
    """Print which metrics got worse, in red, or that none did."""
    if not result["worse"]:
        console().print("[green]No metric got worse.[/]")
        return
    significant: list[str] = []
    noise: list[str] = []
    within: list[str] = []
    for name in result["worse"]:
        digits = METRICS[name].digits
        moved = f"{METRICS[name].title} {result['base'][name]:.{digits}f} -> {result['tuned'][name]:.{digits}f}"
        row = result["comparison"][name]
        if row["better"] is not False and is_shown(row) is False:
            within.append(f"{moved} (references {_references(row, digits) or 'not graded'})")
        else:
            (significant if row["better"] is False else noise).append(moved)
    parts = [f"SIGNIFICANTLY WORSE: {'; '.join(significant)}"] if significant else []
    parts += [f"WORSE, but not beyond the references: {'; '.join(within)}"] if within else []
    parts += [f"WORSE, but no significant change: {'; '.join(noise)}"] if noise else []
    console().print(f"[bold red]{'. '.join(parts)}[/]")


def print_figures(evaluation: dict[str, Any]) -> None:
    """Print one model's metrics."""
    references = evaluation.get("references") or {}
    rows = []
    for name, value in evaluation["figures"].items():
        digits = METRICS[name].digits
        figures = [f"{value:.{digits}f}"]
        if references:
            figures.append(f"{references[name]:.{digits}f}" if name in references else "")
        rows.append((METRICS[name].title, *figures, METRICS[name].meaning))
    titles = ("metric", evaluation["model"], *(["references"] if references else []), "meaning")
    print_table(titles, rows, left_aligned=["meaning"])


def print_conditions(result: dict[str, Any]) -> None:
    """Print each model's metrics closed book, with the given context and with retrieved passages."""
    for title, found in result.get("conditions", {}).items():
        titles = [f"{title}, by context"]
        for name in found:
            titles += [SHOWN_WITH[name], *(["minus given (95 % interval)"] if "comparison" in found[name] else [])]
        rows = []
        for metric in found["given"]["figures"]:
            digits, cells = METRICS[metric].digits, []
            for each in found.values():
                figure = each["figures"].get(metric)
                cells.append("" if figure is None else f"{figure:.{digits}f}")
                if "comparison" in each:
                    row = each["comparison"].get(metric)
                    cells.append(f"{row['delta']:+.{digits}f} ({_interval(row, digits)})" if row else "")
            rows.append((METRICS[metric].title, *cells))
        print_table(titles, rows)
    searched = result.get("retrieval")
    if searched and "share" in searched:
        low, high = searched["ci95"]
        console().print(
            f"Retrieval: the top {searched['k']} documents contain the item's own document for "
            f"{searched['share']:.1f} % of {searched['own']['items']:,} items (95 % interval {low:.1f} to {high:.1f})."
        )
