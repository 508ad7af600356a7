"""What is asked of every request before a route sees it: the key, a body as it is and in time, and room to work."""

from __future__ import annotations

import asyncio
import hmac
from collections import defaultdict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings
from service.web.api import ApiError
from service.web.http import RETRY_AFTER_S, error_response

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
"""What an orchestrator asks: without a key, and however busy the process is."""
PAGES = frozenset({"/", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"})
"""What a browser opens, which can send no key: nothing in them is of this service. They ask for the key themselves."""
CLIENT_ROUTES = frozenset({"score", "events", "metrics", "learners", "quality", "docs", "openapi.json"})
"""First segments of the paths that the client's key opens too: scoring, ingest, and what tells of no user nor item. All
others take the admin's, where there is one: users, model, and what is added without a thought of this."""


class _Route:
    """What goes on in one route: requests worked on, and bodies on their way, oldest first.

    A body's timeout is None where it is not waited for in this moment.
    """

    def __init__(self) -> None:
        self.working = 0
        self.coming: dict[object, asyncio.Timeout | None] = {}


class Guard:
    """ASGI middleware: refuses requests without the key, with an encoded body, or too many at a time.

    uvicorn's own `limit_concurrency` counts connections, idle ones and those of health probes too, and answers in plain
    text. Here each route (the first segment of its path) has its own allowance: where the log is away and
    `POST /events` waits for it, `POST /score` still finds room. A request counts from when its body is whole. While
    bodies are on their way there may be as many again; then the one gives way that has been coming longest, so that
    clients who send a body slowly, or never, take no room from those who do not.

    Parameters
    ----------
    app
        What to protect.
    settings
        Of which `api_key` and `admin_key` are what `X-API-Key` must be, compared in constant time, but for `PAGES`;
        `max_concurrency` is how many requests of one route may be worked on, `request_timeout_s` how long a body may
        take.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = settings.api_key.encode()
        self._admin_key = settings.admin_key.encode()
        self._max_concurrency = settings.max_concurrency
        self._timeout_s = settings.request_timeout_s
        self._routes: defaultdict[str, _Route] = defaultdict(_Route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        name = scope["path"].split("/", 2)[1] if "/" in scope["path"] else ""
        if (refusal := self._refusal(scope, name)) is not None:
            await error_response(refusal)(scope, receive, send)
            return
        route = self._routes[name]
        visit = _Visit(route, name, self._max_concurrency, self._timeout_s, receive)
        try:
            if scope["method"] not in ("POST", "PUT"):
                # No route reads a body of these.
                visit.work()
            await self._app(scope, visit.receive, send)
        finally:
            visit.end()
            if not route.working and not route.coming:
                # Paths come from outside: what is no longer needed must not pile up.
                self._routes.pop(name, None)

    def _refusal(self, scope: Scope, name: str) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._key and not (scope["path"] in PAGES and scope["method"] in ("GET", "HEAD")):
            given = next((value for name, value in headers if name == b"x-api-key"), b"")
            is_client = hmac.compare_digest(given, self._key)
            is_admin = bool(self._admin_key) and hmac.compare_digest(given, self._admin_key)
            if not is_client and not is_admin:
                return ApiError(401, "unauthorized", "the header X-API-Key is missing or wrong")
            if self._admin_key and not is_admin and name not in CLIENT_ROUTES:
                return ApiError(403, "forbidden", "this route takes the admin's key")
        for header, value in headers:
            # A few kB can be made to decompress to gigabytes.
            if header == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return ApiError(
                    415,
                    "unsupported_encoding",
                    "Content-Encoding: expected none; send the body as it is",
                    {"field": "Content-Encoding"},
                )
        # Before its body is read; another may be quicker until it has come.
        if name in self._routes and self._routes[name].working >= self._max_concurrency:
            return _overloaded(name, self._max_concurrency)
        return None


class _Visit:
    """One request to a route: first its body comes, then it is worked on."""

    def __init__(self, route: _Route, name: str, at_most: int, timeout_s: float, receive: Receive) -> None:
        self._route = route
        self._name = name
        self._at_most = at_most
        self._timeout_s = timeout_s
        self._receive = receive
        self._until: float | None = None
        self._is_working = False

    async def receive(self) -> Message:
        """Receive on behalf of the app; raises `ApiError` where a body takes too long, or too many have come."""
        if self._is_working:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._timeout_s
            self._route.coming[self] = None
            if len(self._route.coming) > self._at_most:
                self._displace(now)
        try:
            async with asyncio.timeout_at(self._until) as patience:
                self._route.coming[self] = patience
                message = await self._receive()
        except TimeoutError as exc:
            waited = asyncio.get_running_loop().time() - self._until + self._timeout_s
            others = "" if waited >= self._timeout_s else ", and others wait"
            raise ApiError(408, "request_timeout", f"body: not whole within {waited:.3g} s{others}") from exc
        self._route.coming[self] = None
        if not message.get("more_body"):
            self.work()
        return message

    def work(self) -> None:
        """Count as worked on, if there is room."""
        self._route.coming.pop(self, None)
        if self._route.working >= self._at_most:
            raise _overloaded(self._name, self._at_most)
        self._route.working += 1
        self._is_working = True

    def end(self) -> None:
        """Count no more."""
        self._route.coming.pop(self, None)
        self._route.working -= self._is_working
        self._is_working = False

    def _displace(self, now: float) -> None:
        """Have the body that has been coming longest come no more."""
        for other, patience in self._route.coming.items():
            if patience is not None:
                patience.reschedule(now)
                del self._route.coming[other]
                return


def _overloaded(name: str, at_most: int) -> ApiError:
    return ApiError(
        503,
        "overloaded",
        f"/{name} has {at_most} requests in progress; try again",
        {"limit": at_most},
        retry_after=RETRY_AFTER_S,
    )
