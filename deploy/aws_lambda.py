"""A server as an AWS Lambda function, behind a function URL or an HTTP API of API Gateway (payload format 2.0).

    Handler: aws_lambda.handler, with Meditune and mangum in the image or a layer
    MEDITUNE_MODEL: the model's folder, by default /opt/model
    MEDITUNE_INDEX: an index's folder, if answers are to rest on one
    MEDITUNE_STORE: a folder, by default /tmp/meditune, or the URL of a PostgreSQL database

Callers get what `meditune serve --open` gives: they may ask and give feedback, and nobody sees how the server is run.
If the store holds keys, every request needs one. Restrict the function URL itself too: auth type AWS_IAM, or an
authorizer of the API. A store in /tmp ends with the function, so keys and feedback need the database. Answers older
than 30 days are deleted with the first event and then every six hours. Mangum gives an answer as a whole; pieces of a
stream come together at its end.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import cache
from typing import Any

from mangum import Mangum

from meditune.errors import MedituneError
from meditune.observability import LOGGER, set_up_logging
from meditune.serve.app import PRUNE_EVERY_S, app_for
from meditune.serve.http_server import Place
from meditune.serve.service import Service
from meditune.serve.settings import Settings
from meditune.serve.startup import ServerOptions, open_service, safe
from meditune.store.api_keys import Keys
from meditune.store.open_store import open_store

STORE = os.environ.get("MEDITUNE_STORE", "/tmp/meditune")


class Server:
    """The application, and when it last deleted what is too old: Mangum runs no background work between events."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answer = Mangum(app_for(service), lifespan="off")
        self.pruned_at = 0.0

    def prune(self) -> None:
        """Delete what is older than the settings want, if that was long ago. A store that fails is logged."""
        if self.pruned_at and time.time() - self.pruned_at < PRUNE_EVERY_S:
            return
        self.pruned_at = time.time()
        try:
            # A loop of its own: asyncio.run would take away the one that Mangum runs in.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self.service.prune())
        except MedituneError as error:
            LOGGER.error("pruning failed", extra={"why": str(error)})


@cache
def server() -> Server:
    """The application, opened with the first event and kept as long as the function is warm."""
    set_up_logging()
    wanted = ServerOptions(os.environ.get("MEDITUNE_MODEL", "/opt/model"), os.environ.get("MEDITUNE_INDEX"))
    # One event at a time is all that Lambda hands to one function.
    settings = Settings(at_once=1, waiting=0)
    anywhere = Place(host="0.0.0.0")
    settings = safe(settings, anywhere, Keys(open_store(STORE)), open_to_all=True)
    return Server(open_service(wanted, settings, STORE))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """One event of a function URL or of API Gateway, and its response."""
    opened = server()
    opened.prune()
    return dict(opened.answer(event, context))
