"""What becomes of a model: the plan for it, and what pruning took."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from meditune.planning.plan import Planned
from meditune.planning.target import UTILIZATION
from meditune.progress import clock
from meditune.recipe import Recipe
from meditune.terminal.console import console


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
