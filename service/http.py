"""The plumbing of HTTP: bodies in, JSON out, errors in their envelope, requests counted."""

from __future__ import annotations

import hmac
import re
import time
from typing import TypeVar

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from learner.features import FeatureError
from learner.log import LogUnavailable
from learner.record import DamagedRecord, ForeignRecord
from learner.store import StoreUnavailable
from service.api import ApiError
from service.metrics import ServiceMetrics

RETRY_AFTER_S = 1

T = TypeVar("T")

log = structlog.get_logger("freshet.service")


class CountRequests:
    """ASGI middleware: counts and times requests by the pattern of their route."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

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
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)


def json_response(content: msgspec.Struct, status: int = 200) -> Response:
    """A struct as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error in its envelope."""
    response = json_response(error.body, error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, if it is not longer than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, "too_large", f"the body has more than {limit} bytes", {"limit": limit})
    return bytes(body)


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A typed request from its body; errors name the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        what, _, path = str(exc).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        if not field and (missing := re.search(r"missing required field `(.*)`", what)):
            field = missing[1]
        raise ApiError(422, "invalid_field", f"{field or 'body'}: {what}", {"field": field}) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {exc}") from exc


def check_key(request: Request, expected: str) -> None:
    """Refuse a request without the API key, in constant time; `expected` empty asks for none."""
    if expected and not hmac.compare_digest(request.headers.get("x-api-key", "").encode(), expected.encode()):
        raise ApiError(401, "unauthorized", "the header X-API-Key is missing or wrong")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with the envelope."""

    def handler(request: Request, exc: Exception) -> Response:
        return error_response(_as_api_error(exc))

    for kind in (
        ApiError,
        HTTPException,
        RequestValidationError,
        StoreUnavailable,
        LogUnavailable,
        FeatureError,
        DamagedRecord,
        ForeignRecord,
    ):
        app.add_exception_handler(kind, handler)

    def bug(request: Request, exc: Exception) -> Response:
        log.error("bug", path=request.url.path, exc_info=exc)
        return error_response(ApiError(500, "internal", "an error in the service; its log says more"))

    app.add_exception_handler(Exception, bug)


def _as_api_error(exc: Exception) -> ApiError:
    match exc:
        case ApiError():
            return exc
        case FeatureError(reason=reason, index=index, feature=feature):
            return ApiError(422, reason, str(exc), {"field": f"items[{index}].features.{feature}"})
        case RequestValidationError():
            first = exc.errors()[0]
            field = str(first["loc"][-1])
            return ApiError(422, "invalid_field", f"{field}: {first['msg']}", {"field": field})
        case StoreUnavailable():
            log.warning("store unavailable", error=str(exc))
            return ApiError(503, "store_unavailable", "the store is away; try again", retry_after=RETRY_AFTER_S)
        case LogUnavailable():
            log.warning("log unavailable", error=str(exc))
            return ApiError(503, "log_unavailable", "the log is away; try again", retry_after=RETRY_AFTER_S)
        case ForeignRecord():
            log.error("foreign record", error=str(exc))
            return ApiError(500, "model_mismatch", str(exc))
        case DamagedRecord():
            log.error("damaged record", error=str(exc))
            return ApiError(500, "damaged_record", str(exc))
        case HTTPException(status_code=status, detail=detail):
            codes = {404: "not_found", 405: "method_not_allowed"}
            return ApiError(status, codes.get(status, "http_error"), str(detail))
        case _:
            raise exc


def split_events(body: bytes) -> list[bytes]:
    """The events of a body: one event, an array of them, or one a line."""
    try:
        whole = msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [line for line in body.splitlines() if line.strip()]
    if bytes(whole).lstrip().startswith(b"["):
        return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
    return [body]
