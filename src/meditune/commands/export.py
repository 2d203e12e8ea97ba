"""`meditune export`: a tuned model in a form that other programs run. Heavy libraries are imported by what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder, catalogue name, or hub id.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="merged, openvino, gguf, onnx, ollama, or hub to send it.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the exported model; else MODEL/export/FORM.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", metavar="OWNER/NAME", help="With hub: where the merged model goes.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With hub: let everyone see it; else only you.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With hub: send it without asking.")] = False,
) -> None:
    """Export a model, and check it against the original: a drift over the tolerance fails the export."""
    if to == "hub":
        _to_hub(model, output, repository, public, yes)
        return
    from meditune.engines.exported import EXPORTS
    from meditune.export.stage import export as make

    facts = make(model, to, output)
    typer.echo(facts["drift"]["said"])
    typer.echo(f"Model: {(output or Path(model).expanduser() / EXPORTS / to).resolve()}")


def _to_hub(model: str, output: Path | None, repository: str | None, public: bool, yes: bool) -> None:
    from meditune.engines.exported import EXPORTS
    from meditune.errors import ModelError
    from meditune.export import hub
    from meditune.export.stage import export as make
    from meditune.terminal.console import approval, refuse_upload

    run = Path(model).expanduser()
    if not repository:
        raise ModelError("Where is it to go? Name the model at the hub: --repo OWNER/NAME")
    hub.refuse_without_data(run)
    make(model, "merged", output)
    upload = hub.planned(run, output or run / EXPORTS / "merged", repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    typer.echo(f"Sent: {hub.push(upload)}")
