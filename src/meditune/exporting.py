"""`meditune export`: a tuned model in a form that other programs run. Heavy libraries are imported by what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder, catalogue name, or hub id.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="merged, openvino, gguf or ollama.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the exported model; else MODEL/export/FORM.")
    ] = None,
) -> None:
    """Export a model, and check it against the original: a drift over the tolerance fails the export."""
    from meditune.engines.exported import EXPORTS
    from meditune.export.stage import export as make

    facts = make(model, to, output)
    typer.echo(facts["drift"]["said"])
    typer.echo(f"Model: {(output or Path(model).expanduser() / EXPORTS / to).resolve()}")
