"""The server's routes as tools of the Model Context Protocol, for programs that use a language model.

https://modelcontextprotocol.io. A call of `ask` or `search` becomes a request, within this process, to the route of
that name, with the caller's key and address. So triage, limits, scopes, metrics, the log and the store work as for the
HTTP API. Over stdio, the caller is the user of this machine, who needs no key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
import mcp_types as types
from fastapi import Depends, FastAPI, Request, Response
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import TypeAdapter
from starlette.types import Message, Receive, Scope, Send

from meditune import __version__
from meditune.assistant.events import Answer
from meditune.errors import DataError, MedituneError, Stopped
from meditune.files import read_json
from meditune.model_registry import is_registry
from meditune.prompts import LIMITS
from meditune.run_folder import EVALUATION, RECIPE
from meditune.serve.api_errors import ApiError, as_api_error
from meditune.serve.app import app_for
from meditune.serve.auth import Caller, allowed
from meditune.serve.routes.questions import FOR_OTHER_MODELS
from meditune.serve.schema import AskBody, Body, SearchBody
from meditune.serve.service import Service

PATH = "/mcp"
DESCRIPTIONS = {
    "ask": "Ask a question about health. The answer cites passages of the server's sources if it has any, and says if "
    "the message sounds like an emergency. Always pass on urgent advice and the note on limits.",
    "search": "Search the server's sources for passages about a health topic, without writing an answer. Urgent advice "
    "replaces the passages if the query sounds like an emergency; always pass it on.",
    "evaluate": "Measure the served model on the test items of the server's recipe, and return the metrics. This takes "
    "minutes. If a call is cut off, the evaluation continues, and the same call later returns its result.",
}
BODIES: Mapping[str, type[Body]] = {"ask": AskBody, "search": SearchBody}
_ANSWER = TypeAdapter(Answer)


@dataclass(eq=False)
class Evaluation:
    """The evaluation that the tool `evaluate` runs in a separate process. At most one runs at a time."""

    model: str
    recipe: str
    """The name of a recipe, or a YAML file"""
    folder: Path
    """The folder for predictions and metrics, from which an interrupted evaluation is resumed"""
    _running: asyncio.Task[dict[str, Any]] | None = None

    async def result(self) -> dict[str, Any]:
        """Return the metrics, from an earlier or running evaluation if there is one.

        The evaluation continues if the caller disconnects. Raises ApiError 500, with the evaluation's own error
        message, if the evaluation fails; the next call then starts it again.
        """
        if self._running is None or (self._running.done() and (self._running.cancelled() or self._running.exception())):
            self._running = asyncio.ensure_future(self._run())
        return await asyncio.shield(self._running)

    async def _run(self) -> dict[str, Any]:
        words = ["evaluate", self.model, "--recipe", self.recipe, "--output", str(self.folder)]
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meditune", *words, stdin=nothing, stdout=nothing, stderr=pipe
        )
        try:
            _, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            _, _, reason = stderr.decode(errors="replace").rpartition("Error: ")
            raise ApiError(500, f"The evaluation failed. {reason.strip()[-2000:]}", "evaluation_failed")
        result = read_json(self.folder / EVALUATION)
        return {"model": self.model} | {name: result[name] for name in ("data", "figures", "remarks")}


def evaluation_of(model: str, recipe: str | None, folder: Path, url: str | None) -> Evaluation:
    """Return the evaluation of a model with `recipe`; if None, with the recipe of the model's run, or with quickstart.

    Raises DataError if this machine can't load the model by its name.
    """
    place = Path(model).expanduser()
    if url or is_registry(place):
        raise DataError(
            "--evaluate needs a model that this machine can load by its name: a run, a model's folder or a name from "
            "`meditune models`, neither a registry nor a model behind --url."
        )
    own = place / RECIPE
    return Evaluation(model, recipe or (str(own) if own.is_file() else "quickstart"), folder)


class _Tools:
    """The tools of one application."""

    def __init__(self, app: FastAPI, evaluation: Evaluation | None) -> None:
        self.app, self.evaluation = app, evaluation
        self.service: Service = app.state.service

    @property
    def _index(self) -> Any:
        return self.service.assistant.index if self.service.assistant else None

    def server(self) -> Server[Any]:
        """Return the MCP server with these tools."""
        # The SDK's log messages could quote people's questions.
        logging.getLogger("mcp").setLevel(logging.CRITICAL)
        return Server(
            "meditune", version=__version__, instructions=LIMITS, on_list_tools=self._list, on_call_tool=self._call
        )

    async def _list(self, _: Any, __: Any) -> types.ListToolsResult:
        names = ["ask", *(["search"] if self._index else []), *(["evaluate"] if self.evaluation else [])]
        return types.ListToolsResult(tools=[_tool(name) for name in names])

    async def _call(
        self, context: ServerRequestContext[Any, Request], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            text, result = await self._result(params.name, params.arguments or {}, context.request)
        except (ApiError, MedituneError, OSError) as error:
            failure = as_api_error(error)
            after = failure.headers.get("retry-after") if failure.headers else None
            text = failure.message + (f" Try again in {after} seconds." if after else "")
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)
        content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
        return types.CallToolResult(content=content, structured_content=result)

    async def _result(
        self, name: str, arguments: dict[str, Any], request: Request | None
    ) -> tuple[str, dict[str, Any]]:
        """Return a tool's result as text and as JSON. Raises ApiError."""
        if name == "evaluate" and self.evaluation:
            if request is not None:
                await self.service.access.caller(request, "admin")
            if arguments:
                raise ApiError(400, "evaluate takes no arguments: the operator of the server chose what to evaluate.")
            result = await self.evaluation.result()
            return json.dumps(result, indent=1), result
        if name not in BODIES:
            raise ApiError(404, f"There is no tool {name[:100]!r} here. Call tools/list for a list of the tools.")
        if name == "ask":
            arguments = arguments | {"stream": False}
        result = await _post(self.app, f"/v1/{name}", arguments, request)
        return str(_ANSWER.validate_python(result)) if name == "ask" else _search_text(result), result


def _tool(name: str) -> types.Tool:
    schema: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    if name in BODIES:
        schema = BODIES[name].model_json_schema()
        schema["properties"].pop("stream", None)
    hints = types.ToolAnnotations(read_only_hint=name != "evaluate", open_world_hint=False, destructive_hint=False)
    return types.Tool(name=name, description=DESCRIPTIONS[name], input_schema=schema, annotations=hints)


def _search_text(found: Mapping[str, Any]) -> str:
    """Return the passages found by a search, as text."""
    parts = [found["notice"]] if found["notice"] else []
    for each in found["passages"]:
        facts = (each["section"], each["source"], each["url"], each["date"], each["licence"])
        parts.append(f"[{each['number']}] {each['title']} ({' · '.join(filter(None, facts))})\n{each['text']}")
    if found["outcome"] == "found" and not found["passages"]:
        parts.append("No passages were found. Try other words.")
    return "\n\n".join([*parts, *found["remarks"], found["limits"]])


async def _post(app: FastAPI, path: str, body: Any, request: Request | None) -> dict[str, Any]:
    """Post a body to a route of the application as the caller of `request`, and return the response's JSON.

    Raises ApiError if the route returns an error. If this call is cancelled, the route sees a client that disconnects.
    """
    given = request.headers if request else {}
    kept = {"host", "authorization", "x-request-id", "traceparent"} & {*given}
    headers = {"host": "127.0.0.1"} | {name: given[name] for name in kept} | {"content-type": "application/json"}
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]}
    scope[FOR_OTHER_MODELS] = True
    scope |= {"client": tuple(request.client) if request and request.client else None, "server": None}
    messages: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    answer: dict[str, Any] = {"body": b""}
    gone = asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer["body"] += message.get("body", b"")
        answer.update({name: message[name] for name in ("status", "headers") if name in message})

    work = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        gone.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({work})
        raise
    content: dict[str, Any] = json.loads(answer["body"])
    if answer["status"] != 200:
        sent = {name.decode(): value.decode("latin-1") for name, value in answer["headers"]}
        raise ApiError(answer["status"], content["error"]["message"], headers=sent)
    return content


class _Exchange(Response):
    """The response of the MCP endpoint, which the SDK writes."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        super().__init__()
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one message of the protocol."""
        await self._manager.handle_request(scope, receive, send)


def add_endpoint(app: FastAPI, evaluation: Evaluation | None = None) -> None:
    """Add the endpoint /mcp (streamable HTTP) to an application. Its callers need the scope `generate`."""
    # No request depends on an earlier one, so any server behind a load balancer can answer it.
    manager = StreamableHTTPSessionManager(_Tools(app, evaluation).server(), stateless=True)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state, manager.run():
            yield state

    app.router.lifespan_context = lifespan

    @app.post(PATH, include_in_schema=False)
    async def exchange(_: Annotated[Caller, Depends(allowed("generate"))]) -> Response:
        return _Exchange(manager)


def run_stdio(open_service: Callable[[], Service], evaluation: Evaluation | None = None) -> None:
    """Serve the tools on stdin and stdout until stdin is closed. Only the protocol's messages go to stdout."""
    # The SDK redirects stdout, too, but it is started after the model is loaded: it couldn't report a failed load.
    with _stdout_to_stderr():
        service = open_service()
    print(f"The tools of {service.served.name} are served on stdin and stdout.", file=sys.stderr)
    app = app_for(service)

    asyncio.run(_serve_stdio(app, _Tools(app, evaluation).server()))


async def _serve_stdio(app: FastAPI, server: Server[Any]) -> None:
    """Serve until stdin is closed or a signal arrives, and close the model. After a signal, end the process."""

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with app.router.lifespan_context(app):
        serving, stopping = asyncio.ensure_future(serve()), asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    if stop.is_set():
        sys.stderr.flush()
        # A thread that waits for the next line of stdin would keep the process alive.
        os._exit(Stopped.exit_code)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """During the block, redirect this process's stdout, including the output of compiled code, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
