"""What was prepared, its terms, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from meditune.data.leakage import said
from meditune.data.prepare import Prepared
from meditune.data.terms import Terms, demands, warning
from meditune.terminal.console import console

DONE = {"report": "left as they are", "mask": "masked", "surrogate": "replaced by invented ones"}


def print_leakage(*checks: dict[str, Any]) -> None:
    """What the check for leakage found, in red; nothing where it found nothing."""
    for checked in checks:
        for sentence in said(checked):
            console().print(f"[bold red]LEAKAGE (allowed by the recipe):[/] {escape(sentence)}")


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
