"""The routes of the chat page and of `/docs`, which shows the OpenAPI document without scripts.

Both pages load nothing from other servers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from meditune.serve.api_errors import ApiError
from meditune.serve.service import Service

PAGES = Path(__file__).parents[1] / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FILES = {path.name: KINDS[path.suffix] for path in PAGES.iterdir() if path.suffix in KINDS}
router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request) -> HTMLResponse:
    """Return the chat page, adapted to the server: with or without sources, and with its limit on question length."""
    html = (PAGES / "index.html").read_text(encoding="utf-8")
    service: Service = request.app.state.service
    if not service.served.index:
        html = html.replace('data-sources="yes"', 'data-sources="no"', 1)
    html = html.replace('data-characters="4000"', f'data-characters="{service.settings.message_characters}"', 1)
    return HTMLResponse(html)


@router.get("/admin")
def admin() -> FileResponse:
    """Return the operator's page. The page requests the metrics with the key that the user enters."""
    return FileResponse(PAGES / "admin.html", media_type="text/html")


@router.get("/page/{name}")
def part(name: str) -> FileResponse:
    """Return a script, style sheet or icon of the pages. Raises ApiError 404 for an unknown name."""
    if name not in FILES:
        raise ApiError(404, "The pages have no file of this name.", "not_found")
    return FileResponse(PAGES / name, media_type=FILES[name])


DOCS_PAGES = Path(__file__).parents[1] / "docs"


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """Return a page that describes every route and schema."""
    return HTMLResponse(_template().render(spec=request.app.openapi()))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(DOCS_PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["kind"] = kind_of
    return templates.get_template("docs.html")


@router.get("/docs/docs.css")
def style() -> Response:
    """Return the style sheet of /docs."""
    return Response((DOCS_PAGES / "docs.css").read_bytes(), media_type="text/css")


def kind_of(schema: dict[str, Any]) -> str:
    """Return a property's type in a few words; for a reference to a schema, the schema's name."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind_of(each) for each in schema[several]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
