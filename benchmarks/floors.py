"""What `POST /score` is measured against: an empty FastAPI route, and an ASGI application that only reads the body."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from service.web import api

_TYPED = msgspec.json.Decoder(api.ScoreRequest)

fastapi_app = FastAPI()


@fastapi_app.post("/score")
async def empty(body: dict[str, Any]) -> Response:
    """Decode the body as FastAPI does, answer nothing."""
    return Response(b"{}", media_type="application/json")


@fastapi_app.post("/typed")
async def typed(request: Request) -> Response:
    """Decode the body with msgspec, answer nothing."""
    _TYPED.decode(await request.body())
    return Response(b"{}", media_type="application/json")


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body and send it back."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
