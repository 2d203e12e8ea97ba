"""The server of the rating page: serves blinded items, and stores ratings immediately.

Raters' names and texts are sent only in request bodies, never in URLs, and are not logged.
"""

import asyncio
import hmac
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meditune.errors import MedituneError
from meditune.files import read_text, write_bytes
from meditune.review.agreement import Dispute, disputed
from meditune.review.rating_set import CANNOT, RATE, TOKEN, Axis, Item, RatingSet, Task, read_set
from meditune.review.ratings_store import ADJUDICATION, RATING, Note, Rater, Rating, Store

PAGES = Path(__file__).parent / "pages"
LOCAL = {"127.0.0.1", "localhost", "::1"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_COMMENT_CHARACTERS, MAX_ANSWER_CHARACTERS = 20_000, 200_000
BODY_BYTES = 12 * (MAX_COMMENT_CHARACTERS + MAX_ANSWER_CHARACTERS) + 2**16
"""A character takes at most twelve bytes in JSON, as two escapes."""
TOO_LARGE = f"The body is larger than {BODY_BYTES:,} bytes."
DRAINED_BYTES, DRAIN_S = 16 * BODY_BYTES, 5.0
"""Limits for reading the rest of a refused body"""


class RaterBody(BaseModel, extra="forbid"):
    """A rater who signs in."""

    name: str = Field(min_length=1, max_length=80, pattern=r"\S")


class RatingBody(BaseModel, extra="forbid"):
    """An option by its number, or None for "can't judge"."""

    option: int | None
    seconds: float = Field(0.0, ge=0, le=86_400, allow_inf_nan=False)


class NoteBody(BaseModel, extra="forbid"):
    """A rater's texts about an item."""

    comment: str = Field("", max_length=MAX_COMMENT_CHARACTERS)
    better: str = Field("", max_length=MAX_ANSWER_CHARACTERS)


class ReviewApp:
    """A rating set, its store, and the current round: adjudication if `disputes` isn't None, otherwise rating."""

    def __init__(self, rating_set: RatingSet, store: Store, disputes: Sequence[Dispute] | None) -> None:
        self.set, self.store = rating_set, store
        self.adjudicating = disputes is not None
        self.round = ADJUDICATION if self.adjudicating else RATING
        self.disputes = {each.item: each for each in disputes or ()}

    def work(self, rater: Rater) -> list[dict[str, Any]]:
        """Return the rater's items in order: `id`, `axes`, and the number of axes already rated (`done`)."""
        asked = {each.item: list(each.votes) for each in self.disputes.values()}
        if self.round == RATING:
            asked = {item: self.set.axes_of(item) for item in self.set.work(rater.place or 0)}
        given = (rating for rating in self.store.ratings(rater=rater.id) if rating.round == self.round)
        done = Counter(rating.item for rating in given if rating.axis in asked.get(rating.item, ()))
        return [{"id": item, "axes": axes, "done": done[item]} for item, axes in asked.items()]

    def item_facts(self, item: Item, rater: Rater) -> dict[str, Any]:
        """Return the content of an item for the page, with this rater's ratings and texts."""
        ratings = [rating for rating in self.store.ratings(rater.id, item.id) if rating.round == self.round]
        notes = self.store.notes(item=item.id)
        own = next((note for note in notes if note.rater == rater.id and note.round == self.round), None)
        dispute = self.disputes.get(item.id)
        shown = item.model_dump(mode="json", exclude={"asked", "axes"})
        facts = {name: value for name, value in shown.items() if value or name in ("question", "context", "answer")}
        facts |= {
            "ratings": {rating.axis: rating.option for rating in ratings},
            "comment": own.comment if own else "",
            "better": own.better if own else "",
            "votes": dispute.votes if dispute else {},
        }
        if dispute and self.set.task.edits:
            # Texts of the first round, without raters' names
            facts["written"] = [{"comment": n.comment, "better": n.better} for n in notes if n.round == RATING]
        return facts

    def item(self, id: str) -> Item:
        """Return the item of that id. Raises a 404 error if there is none."""
        if id not in self.set.items:
            raise HTTPException(404, "This set has no such answer. Reload the page.")
        return self.set.items[id]

    def axis(self, name: str, option: int | None = None) -> Axis:
        """Return the axis of that name. Raises a 404 error if there is none, a 422 error if it lacks the option."""
        axis = self.set.axis(name)
        if axis is None:
            raise HTTPException(404, f"This set has no axis {name!r}. Reload the page.")
        if option is not None and not 1 <= option <= len(axis.options):
            raise HTTPException(422, f"{axis.title} has options 1 to {len(axis.options)}, not {option}.")
        return axis


def app_for(review: ReviewApp, hosts: set[str], token: str | None) -> FastAPI:
    """Return the application. Requests must name one of `hosts`, if any are given, and contain the `token`, if any."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    rating_set, store = review.set, review.store

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own response repeats the input, which may be text that cannot be encoded.
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return JSONResponse({"detail": "; ".join(wrong).encode("utf-8", "replace").decode()}, status_code=422)

    @app.exception_handler(MedituneError)
    async def failed(_: Request, error: MedituneError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    def rater(x_rater: Annotated[str, Header(max_length=64)]) -> Rater:
        found = store.raters().get(x_rater)
        if found is None:
            raise HTTPException(403, "The server doesn't know this rater. Enter your name again.")
        return found

    known = Annotated[Rater, Depends(rater)]

    @app.get("/api/set")
    def described() -> dict[str, Any]:
        return {
            "id": rating_set.settings.shuffle,
            "adjudicating": review.adjudicating,
            "cannot": CANNOT,
            "task": {name: getattr(rating_set.task, name) for name in ("words", "edits", "shows_sources")},
            "axes": [
                {
                    "name": axis.name,
                    "title": axis.title,
                    "question": axis.question,
                    "options": [{"label": option.label, "hint": option.hint} for option in axis.options],
                }
                for axis in rating_set.axes
            ],
        }

    @app.post("/api/raters")
    def begin(body: RaterBody) -> dict[str, str]:
        return {"rater": store.rater(body.name, takes_share=not review.adjudicating).id}

    @app.get("/api/work")
    def work(rater: known) -> list[dict[str, Any]]:
        return review.work(rater)

    @app.get("/api/items/{item}")
    def item(item: str, rater: known) -> dict[str, Any]:
        return review.item_facts(review.item(item), rater)

    @app.put("/api/items/{item}/ratings/{axis}", status_code=204)
    def rate(item: str, axis: str, body: RatingBody, rater: known) -> None:
        place = review.item(item).id, review.axis(axis, body.option).name
        store.save([Rating(rater.id, *place, body.option, body.seconds, round=review.round)])

    @app.delete("/api/items/{item}/ratings/{axis}", status_code=204)
    def remove_rating(item: str, axis: str, rater: known) -> None:
        store.remove(rater.id, review.item(item).id, review.axis(axis).name, review.round)

    @app.put("/api/items/{item}/notes", status_code=204)
    def write(item: str, body: NoteBody, rater: known) -> None:
        better = "" if rating_set.unchanged(review.item(item).id, body.better) else body.better
        store.save([], [Note(rater.id, item, body.comment, better, round=review.round)])

    app.mount("/", StaticFiles(directory=PAGES, html=True))
    app.add_middleware(Guard, hosts=hosts, token=token)
    return app


class Guard:
    """ASGI middleware that checks access, limits bodies to BODY_BYTES, and sets the headers of every response."""

    def __init__(self, app: ASGIApp, hosts: set[str], token: str | None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = _refusal(Request(scope), self.hosts, self.token)
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def out(message: Message) -> None:
            if message["type"] == "http.response.start":
                if refusal or message["status"] == 413:
                    # Closing a connection with unread bytes resets it, and the client may lose the response.
                    await _drain(receive)
                MutableHeaders(raw=message["headers"]).update(HEADERS)
            await send(message)

        if refusal:
            await refusal(scope, receive, out)
        else:
            await self.app(scope, bounded, out)


async def _drain(receive: Receive) -> None:
    left = DRAINED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])


def _refusal(request: Request, hosts: set[str], token: str | None) -> JSONResponse | None:
    """Return the refusal of a request (wrong host, other site, large body, no token); None if it may pass."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    length, given = request.headers.get("content-length", "0"), request.headers.get("x-review-token", "")
    is_api = request.url.path.startswith("/api/")
    try:
        named = urlsplit(f"//{host}").hostname or ""
        foreign = bool(origin) and urlsplit(origin).netloc != host
    except ValueError:
        return JSONResponse({"detail": "The Host or Origin header is not a valid address."}, status_code=400)
    if hosts and named not in hosts:
        return JSONResponse({"detail": "This server doesn't accept requests for that host name."}, status_code=421)
    if foreign:
        return JSONResponse({"detail": "Pages from other sites can't send requests to this server."}, status_code=403)
    if length.isdigit() and int(length) > BODY_BYTES:
        return JSONResponse({"detail": TOO_LARGE}, status_code=413)
    if token and is_api and not hmac.compare_digest(given.encode(), token.encode()):
        return JSONResponse(
            {
                "detail": "Open the page with the URL that the server printed when it started. If you don't have it, "
                "ask the person who sent you the link."
            },
            status_code=401,
        )
    return None


ALL_INTERFACES = {"0.0.0.0", "::"}
"""Addresses that mean all network interfaces; the printed URL then contains this machine's name"""


def serve(
    folder: Path,
    host: str,
    port: int,
    announce: Callable[[str], None],
    disputes: Sequence[Dispute] | None = None,
    task: Task = RATE,
) -> None:
    """Serve the set in `folder`, or only its `disputes`.

    Unless `host` is local, the printed URL contains a token. The set's folder keeps the token, so that raters' links
    stay valid after a restart.
    """
    import uvicorn

    review_app = ReviewApp(read_set(folder, task), Store(folder), disputes)
    if review_app.adjudicating and not review_app.disputes:
        raise MedituneError(f"Raters don't disagree on any answer in {folder}, so there is nothing to adjudicate.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise MedituneError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another --host or --port; --port 0 picks a "
            "free port."
        ) from error
    token = None if host in LOCAL else _token(folder / TOKEN)
    app = app_for(review_app, LOCAL if token is None else set(), token)
    named = socket.gethostname() if host in ALL_INTERFACES else host
    at = f"[{named}]" if ":" in named else named
    address = f"http://{at}:{listening.getsockname()[1]}/"
    announce(f"Rate here: {address}#token={token}" if token else f"Rate here: {address}")
    if token:
        announce(
            "Anyone with this URL can read the questions and answers. The server uses plain HTTP: for use between "
            "machines, put it behind TLS or a VPN."
        )
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def _token(path: Path) -> str:
    """Return the token in that file, or store a new one, readable by this user alone."""
    token = read_text(path).strip() if path.is_file() else ""
    if not token:
        token = secrets.token_urlsafe(16)
        write_bytes(path, f"{token}\n".encode(), private=True)
    return token


def in_dispute(folder: Path) -> list[Dispute]:
    """Return the disputes of a rating set. The key isn't read, so the adjudicator is blinded too."""
    return disputed(read_set(folder, RATE).axes, Store(folder).ratings())
