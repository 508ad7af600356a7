"""What is asked of every request before a route sees it: the key, a body as it is, and room to work."""

from __future__ import annotations

import hmac
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from service.web.api import ApiError
from service.web.http import RETRY_AFTER_S, error_response

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
"""What an orchestrator asks: without a key, and however busy the process is."""


class Guard:
    """ASGI middleware: refuses requests without the key, with an encoded body, or too many at a time.

    uvicorn's own `limit_concurrency` counts connections, idle ones and those of health probes too, and answers in plain
    text. Here each route (the first segment of its path) has its own allowance: where the log is away and
    `POST /events` waits for it, `POST /score` still finds room.

    Parameters
    ----------
    app
        What to protect.
    api_key
        What `X-API-Key` must be, compared in constant time; empty asks for none.
    max_concurrency
        Requests of one route in progress at a time, from their first body byte to the last of the answer.
    """

    def __init__(self, app: ASGIApp, api_key: str, max_concurrency: int) -> None:
        self._app = app
        self._key = api_key.encode()
        self._max_concurrency = max_concurrency
        self._in_progress: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        route = scope["path"].split("/", 2)[1] if "/" in scope["path"] else ""
        if (refusal := self._refusal(scope, route)) is not None:
            await error_response(refusal)(scope, receive, send)
            return
        self._in_progress[route] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_progress[route] -= 1
            if not self._in_progress[route]:
                # Paths come from outside: what is no longer needed must not pile up.
                del self._in_progress[route]

    def _refusal(self, scope: Scope, route: str) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._key:
            given = next((value for name, value in headers if name == b"x-api-key"), b"")
            if not hmac.compare_digest(given, self._key):
                return ApiError(401, "unauthorized", "the header X-API-Key is missing or wrong")
        for name, value in headers:
            # A few kB can be made to decompress to gigabytes.
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return ApiError(
                    415,
                    "unsupported_encoding",
                    "Content-Encoding: expected none; send the body as it is",
                    {"field": "Content-Encoding"},
                )
        if self._in_progress[route] >= self._max_concurrency:
            return ApiError(
                503,
                "overloaded",
                f"/{route} has {self._max_concurrency} requests in progress; try again",
                {"limit": self._max_concurrency},
                retry_after=RETRY_AFTER_S,
            )
        return None
