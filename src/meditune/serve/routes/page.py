"""The chat page: three kinds of static files, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse

from meditune.serve.errors import ApiError
from meditune.serve.service import Service

PAGES = Path(__file__).parents[1] / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FILES = {path.name: KINDS[path.suffix] for path in PAGES.iterdir() if path.suffix in KINDS}
router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request) -> HTMLResponse:
    """The page itself, which speaks of sources where there are any, and knows how long a question may be."""
    html = (PAGES / "index.html").read_text(encoding="utf-8")
    service: Service = request.app.state.service
    if not service.served.index:
        html = html.replace('data-sources="yes"', 'data-sources="no"', 1)
    html = html.replace('data-characters="4000"', f'data-characters="{service.settings.message_characters}"', 1)
    return HTMLResponse(html)


@router.get("/page/{name}")
def part(name: str) -> FileResponse:
    """What it is made of. Raises ApiError 404 for any other name."""
    if name not in FILES:
        raise ApiError(404, "The page has no such file.", "not_found")
    return FileResponse(PAGES / name, media_type=FILES[name])
