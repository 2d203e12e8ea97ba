"""A server as an AWS Lambda function, behind a function URL or an HTTP API of API Gateway (payload format 2.0).

    Handler: aws_lambda.handler, with Meditune and mangum in the image or a layer
    MEDITUNE_MODEL: the model's folder, by default /opt/model
    MEDITUNE_INDEX: an index's folder, if answers are to be based on an index
    MEDITUNE_STORE: a folder, by default /tmp/meditune, or the URL of a PostgreSQL database

Callers have the same rights as with `meditune serve --allow-anonymous`: they can ask questions and give feedback, but
they can't see metrics or the server's status. If the store holds keys, every request needs a key. Restrict the function
URL, too, with auth type AWS_IAM or an authorizer of the API. A store in /tmp is lost when the function ends, so keys
and feedback need the database. Answers older than 30 days are deleted at the first event and then every six hours.
Mangum returns each response as a whole, so a stream arrives all at once when it is complete.
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
from meditune.serve.http_server import ListenConfig
from meditune.serve.service import Service
from meditune.serve.settings import Settings
from meditune.serve.startup import ServerOptions, open_service, safe
from meditune.store import open_store
from meditune.store.api_keys import Keys

STORE = os.environ.get("MEDITUNE_STORE", "/tmp/meditune")


class Server:
    """The application, which deletes old answers during events, because Mangum runs no background work between them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answer = Mangum(app_for(service), lifespan="off")
        self.pruned_at = 0.0

    def prune(self) -> None:
        """Delete answers past their retention time, at most every PRUNE_EVERY_S seconds. Log failures of the store."""
        if self.pruned_at and time.time() - self.pruned_at < PRUNE_EVERY_S:
            return
        self.pruned_at = time.time()
        try:
            # Use a separate loop: asyncio.run would replace the loop that Mangum runs in.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self.service.prune())
        except MedituneError as error:
            LOGGER.error("pruning failed", extra={"why": str(error)})


@cache
def server() -> Server:
    """Return the application, which is opened at the first event and kept while the function is warm."""
    set_up_logging()
    wanted = ServerOptions(os.environ.get("MEDITUNE_MODEL", "/opt/model"), os.environ.get("MEDITUNE_INDEX"))
    # Lambda sends one event at a time to each instance of a function.
    settings = Settings(concurrency=1, queue_size=0)
    anywhere = ListenConfig(host="0.0.0.0")
    settings = safe(settings, anywhere, Keys(open_store(STORE)), allow_anonymous=True)
    return Server(open_service(wanted, settings, STORE))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return the response to one event of a function URL or of API Gateway."""
    opened = server()
    opened.prune()
    return dict(opened.answer(event, context))
