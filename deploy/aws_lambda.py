"""A server as an AWS Lambda function, behind a function URL or an HTTP API of API Gateway (payload format 2.0).

    Handler: aws_lambda.handler, with Meditune and mangum in the image or a layer
    MEDITUNE_MODEL: the model's folder, by default /opt/model
    MEDITUNE_INDEX: an index's folder, if answers are to rest on one

Who may call is AWS's business here: set the function URL's auth type to AWS_IAM, or an authorizer of the API. What is
kept lies in /tmp and ends with the function, so feedback needs another place. Mangum gives an answer as a whole; pieces
of a stream come together at its end.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from mangum import Mangum

from meditune.serve.app import app_for
from meditune.serve.logs import set_up
from meditune.serve.opening import Wanted, open_service
from meditune.serve.settings import Settings

STORE = Path(os.environ.get("MEDITUNE_STORE", "/tmp/meditune"))


@cache
def server() -> Mangum:
    """The application, opened with the first event and kept as long as the function is warm."""
    set_up()
    wanted = Wanted(os.environ.get("MEDITUNE_MODEL", "/opt/model"), os.environ.get("MEDITUNE_INDEX"))
    # One event at a time is all that Lambda hands to one function.
    service = open_service(wanted, Settings(at_once=1, waiting=0), STORE)
    return Mangum(app_for(service), lifespan="off")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """One event of a function URL or of API Gateway, and its response."""
    return dict(server()(event, context))
