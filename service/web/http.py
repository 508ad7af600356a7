"""The plumbing of HTTP: bodies in, JSON out, errors in their envelope, requests counted."""

from __future__ import annotations

import time
from codecs import BOM_UTF8
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, TypeVar, get_args

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from learner.events.wire_errors import explain
from learner.limits import UNREADABLE
from learner.log import EntryTooLarge, LogUnavailable
from learner.model.kinds import ItemError
from learner.model.spec import Model
from learner.policy.rule import Policy
from learner.record import DamagedRecord, ForeignRecord
from learner.store import StoreUnavailable
from service.web.api import ApiError
from service.web.metrics import ServiceMetrics

RETRY_AFTER_S = 1
MAX_EVENTS_BYTES = 8 << 20
"""The body of one `POST /events`."""
MAX_EVENTS = 10_000
"""Events, or lines, in one body."""

T = TypeVar("T")

log = structlog.get_logger("freshet.service")


class CountRequests:
    """ASGI middleware: counts and times requests by the pattern of their route."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            requests, latency = self._counted(_route(scope), status)
            requests.inc()
            latency.observe(time.perf_counter() - started)

    def _counted(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """What counts requests of a route and a status: few, and kept, since to find them by labels takes longer."""
        found = self._children.get((route, status))
        if found is None:
            found = self._metrics.requests.labels(route, str(status)), self._metrics.latency.labels(route)
            self._children[route, status] = found
        return found


class RouteAsSent:
    """ASGI middleware: routes match the path as it was sent, so that an encoded slash stays inside a user's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "http":
            scope["path"] = scope["raw_path"].decode("ascii", "replace")
        await self._app(scope, receive, send)


def _route(scope: Scope) -> str:
    """The pattern of a request's route, which names no user."""
    return getattr(scope.get("route"), "path_format", "(none)")


def json_response(content: msgspec.Struct, status: int = 200) -> Response:
    """A struct as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error in its envelope."""
    response = json_response(error.body, error.status)
    response.headers.update(error.headers)
    return response


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, if it is not longer than `limit` bytes; it comes in time by `service.web.guard`."""
    # What it says of itself, before any of it is read; llhttp has made sure that these are digits.
    if int(request.headers.get("content-length", 0)) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "too_large", f"body: expected at most {limit} bytes", {"field": "body", "limit": limit})


def decode_body(quick: msgspec.json.Decoder[T], decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A typed request from its body; errors name the field.

    What `quick` does not take is left to `decoder`, which takes it after all or says why not.
    """
    body = body.removeprefix(BOM_UTF8)
    with suppress(*UNREADABLE):
        return quick.decode(body)
    try:
        return decoder.decode(body)
    except UNREADABLE as exc:
        flaw = explain(body, exc, {"policy": " or ".join(map(repr, get_args(Policy)))})
        if not flaw.is_json:
            raise ApiError(400, "invalid_json", f"body: {flaw}") from exc
        raise ApiError(422, "invalid_field", f"{flaw.field or 'body'}: {flaw.expected}", {"field": flaw.field}) from exc


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with the envelope."""

    def handler(request: Request, exc: Exception) -> Response:
        error = _as_api_error(exc)
        if error.status == 405:
            # Starlette names the methods of the first route alone that has the path.
            error.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return error_response(error)

    for kind in (
        ApiError,
        HTTPException,
        ClientDisconnect,
        StoreUnavailable,
        LogUnavailable,
        EntryTooLarge,
        ItemError,
        DamagedRecord,
        ForeignRecord,
    ):
        app.add_exception_handler(kind, handler)

    def bug(request: Request, exc: Exception) -> Response:
        # The route, not the path: that may name a user.
        log.error("bug", route=_route(request.scope), exc_info=exc)
        return error_response(ApiError(500, "internal", "an error in the service; its log says more"))

    app.add_exception_handler(Exception, bug)


def _as_api_error(exc: Exception) -> ApiError:
    match exc:
        case ApiError():
            return exc
        case ItemError(reason=reason, field=field):
            return ApiError(422, reason, str(exc), {"field": field})
        case StoreUnavailable():
            log.warning("store unavailable", error=str(exc))
            return ApiError(503, "store_unavailable", "the store is away; try again", retry_after=RETRY_AFTER_S)
        case EntryTooLarge():
            # The topic takes less than we do; of several events the others may be in the log.
            log.warning("an event is larger than the log takes", error=str(exc))
            return ApiError(413, "too_large", "an event is larger than the log takes")
        case LogUnavailable():
            log.warning("log unavailable", error=str(exc))
            return ApiError(503, "log_unavailable", "the log is away; try again", retry_after=RETRY_AFTER_S)
        case ForeignRecord():
            log.error("foreign record", error=str(exc))
            return ApiError(500, "model_mismatch", str(exc))
        case DamagedRecord():
            log.error("damaged record", error=str(exc))
            return ApiError(500, "damaged_record", str(exc))
        case HTTPException(status_code=status, detail=detail, headers=headers):
            codes = {404: "not_found", 405: "method_not_allowed"}
            return ApiError(status, codes.get(status, "http_error"), str(detail), headers=headers)
        case ClientDisconnect():
            return ApiError(400, "disconnected", "the client went away")
        case _:
            raise exc


def _methods(request: Request) -> set[str]:
    """What may be done with a path, by all routes that have it."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found


def split_events(body: bytes) -> list[bytes]:
    """The events of a body: one event, an array of them, or one a line."""
    body = body.removeprefix(BOM_UTF8)
    try:
        whole = msgspec.json.decode(body, type=msgspec.Raw)
    except UNREADABLE as exc:
        broken = ApiError(400, "invalid_json", f"body: {explain(body, exc, {})}")
        if body.lstrip().startswith(b"["):
            raise broken from exc
        # No more than is needed to see that there are too many.
        lines = body.split(b"\n", MAX_EVENTS)
        if len(lines) > MAX_EVENTS and lines[-1].strip():
            raise _too_many_events() from None
        if body.strip() and not any(map(_could_be_event, lines)):
            # One event that breaks somewhere, maybe over many lines.
            raise broken from exc
        return [line for line in lines if line.strip()]
    if bytes(whole).lstrip().startswith(b"["):
        try:
            return [bytes(raw) for raw in msgspec.json.decode(body, type=_Events)]
        except msgspec.ValidationError as exc:
            raise _too_many_events() from exc
    return [body]


def headers_of_events(sent: Mapping[str, str], model: Model) -> list[tuple[str, bytes]]:
    """The headers of a request that `[events]` reads, named as those of records: ``ce-type`` is ``ce_type``."""
    names = model.record.headers if model.record else frozenset()
    found = ((name, sent.get(name.replace("_", "-"))) for name in sorted(names))
    return [(name, value.encode()) for name, value in found if value is not None]


def _could_be_event(line: bytes) -> bool:
    line = line.strip()
    return line.startswith(b"{") and line.endswith(b"}")


_Events = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_EVENTS)]


def _too_many_events() -> ApiError:
    return ApiError(
        413, "too_many_events", f"body: expected at most {MAX_EVENTS} events", {"field": "body", "limit": MAX_EVENTS}
    )
