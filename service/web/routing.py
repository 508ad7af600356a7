"""Routes of FastAPI without what none of them needs, and what they share."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from learner.limits import MAX_ID_LENGTH
from service.web import api

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class PlainRoute(APIRoute):
    """A route of FastAPI, for the document, whose function is called with the request and nothing else.

    What FastAPI would do in between, to find out parameters that no route here has, takes longer than scoring a slate.
    Errors are answered once, by the application's handlers.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **more: Any) -> None:
        super().__init__(path, endpoint, **more)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = answer


def id_in_path(request: Request, name: str) -> str:
    """The user or item whom the path names."""
    # Not a parameter of the route: for a single one FastAPI loads Pydantic's version 1 beside version 2.
    sent = request.path_params[name]
    try:
        if _BROKEN_ESCAPE.search(sent):
            raise ValueError
        found = unquote(sent, errors="strict")
    except ValueError:
        # Bytes that stand for nothing must not stand for somebody.
        raise api.ApiError(
            400, "invalid_path", f"{name}: expected UTF-8, other characters as %XX", {"field": name}
        ) from None
    if len(found) > MAX_ID_LENGTH:
        raise api.invalid_field(name, f"expected at most {MAX_ID_LENGTH} characters")
    return found
