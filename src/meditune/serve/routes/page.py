"""The chat page: three kinds of static files, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from meditune.serve.errors import ApiError

PAGES = Path(__file__).parents[1] / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FILES = {path.name: KINDS[path.suffix] for path in PAGES.iterdir() if path.suffix in KINDS}
router = APIRouter(include_in_schema=False)


@router.get("/")
def page() -> FileResponse:
    """The page itself."""
    return FileResponse(PAGES / "index.html", media_type="text/html")


@router.get("/page/{name}")
def part(name: str) -> FileResponse:
    """What it is made of. Raises ApiError 404 for any other name."""
    if name not in FILES:
        raise ApiError(404, "The page has no such file.", "not_found")
    return FileResponse(PAGES / name, media_type=FILES[name])
