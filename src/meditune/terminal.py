"""What the commands show in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from meditune.ask import Answer
from meditune.data.prepare import Prepared
from meditune.errors import MedituneError
from meditune.evaluate.metrics import METRICS
from meditune.limits import LIMITS
from meditune.remote.estimate import Approve, refuse

WIDE = 200
VERDICTS = {True: "[green]better[/]", False: "[red]worse[/]", None: "not shown"}


def console() -> Console:
    """Standard output; plain text where it isn't a terminal, and wide, because nothing there needs wrapping."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def approval(yes: bool) -> Approve:
    """What answers for the user before anything is sent to an API: --yes, or an answer typed into a terminal."""

    def approve(text: str) -> None:
        if not yes and not sys.stdin.isatty():
            refuse(text)
        print(text, file=sys.stderr)
        if not yes:
            print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise MedituneError("Nothing was sent.")

    return approve


def print_comparison(result: dict[str, Any], first: str = "base", second: str = "tuned") -> None:
    """Both models' figures with the interval of their difference."""
    table = Table(box=None, pad_edge=False)
    for title in ("metric", first, second, "difference", "95 % interval", "p", "verdict"):
        table.add_column(title, justify="left" if title in {"metric", "verdict"} else "right")
    for name, row in result["comparison"].items():
        digits = METRICS[name].digits
        low, high = row["ci95"]
        table.add_row(
            METRICS[name].title,
            f"{result['base'][name]:.{digits}f}",
            f"{result['tuned'][name]:.{digits}f}",
            f"{row['delta']:+.{digits}f}" + (" (distance from 1)" if METRICS[name].direction == "one" else ""),
            f"{low:+.{digits}f} to {high:+.{digits}f}",
            "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
            VERDICTS[row["better"]],
        )
    console().print(table)


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


def print_data(data: Prepared, folder: Path) -> None:
    """What the data stage read, left out and split."""
    out = console()
    print_synthetic(data.synthetic)
    for name, row in data.quality["sources"].items():
        refused = ", ".join(f"{count:,} {reason}" for reason, count in row["rejected"].items()) or "nothing"
        out.print(f"{name}: {row['read']:,} examples read ({row['licence']}); left out: {refused}")
    for name, row in data.quality["splits"].items():
        decisions = ", ".join(f"{count} {label}" for label, count in row["decisions"].items())
        out.print(
            f"{name}: {row['examples']:,} examples in {row['groups']:,} groups {f'({decisions})' if decisions else ''}"
        )
    out.print(f"Data: {folder.resolve()}")


def print_synthetic(synthetic: bool) -> None:
    """A line that says so where the data are invented."""
    if synthetic:
        console().print("[bold yellow]SYNTHETIC sample: invented studies, figures say nothing about medicine.[/]")


def print_answer(answer: Answer, has_sources: bool) -> None:
    """The answer, the decision, and what every medical answer carries."""
    out = console()
    out.print(answer.text or "(the model wrote nothing)", markup=False)
    shares = ", ".join(f"{label} {share:.0%}" for label, share in answer.probabilities.items())
    decision = answer.decision or "neither yes, no nor maybe"
    out.print(f"\nAs a yes/no question: {decision}{f' ({shares})' if shares else ''}", style="dim")
    if not has_sources:
        out.print("No source was given (--source FILE): this answer rests on the model's memory alone.", style="yellow")
    out.print(LIMITS, style="dim")
