"""The HTTP service: scores from the posteriors in the store, events into the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypeVar, TypeVarTuple
from urllib.parse import unquote

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from learner.limits import MAX_EVENT_BYTES, MAX_ID_LENGTH
from learner.log import EventLog
from learner.model.spec import Model
from learner.store import Store
from service.metrics import exposition
from service.settings import Settings
from service.web import api
from service.web.guard import Guard
from service.web.http import (
    MAX_EVENTS,
    MAX_EVENTS_BYTES,
    RETRY_AFTER_S,
    CountRequests,
    RouteAsSent,
    add_error_handlers,
    decode_body,
    json_response,
    read_body,
)
from service.web.metrics import ServiceMetrics
from service.web.openapi import EVENT, OF_A_USER, body, install, reference, responses
from service.web.operations import Operations, describe_model

THREADS = 32

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_SCORE_REQUEST = api.score_decoder(None)


def create_app(
    settings: Settings,
    model: Model,
    store: Store,
    log: EventLog,
    registry: CollectorRegistry | None = None,
    trouble: Callable[[], str | None] = lambda: None,
) -> FastAPI:
    """Build the service.

    Parameters
    ----------
    settings, model
        Nothing else is read from the environment.
    store, log
        Closed when the app shuts down.
    registry
        Where the metrics are kept; a new one by default.
    trouble
        What else, beside the store, keeps the process from being ready; None if nothing.
    """
    operations = Operations(settings, model, store, log)
    registry = registry or CollectorRegistry()
    metrics = ServiceMetrics(registry)
    # Threads that may wait for the store, for the log, and on behalf of a health probe: with one pool for all, a slow
    # server would stop what needs only the other, and the probes that ought to tell.
    with_store, with_log, for_health = (ThreadPoolExecutor(n) for n in (THREADS, THREADS, 2))
    for_model = api.score_decoder(model.item_struct)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for pool in (with_store, with_log, for_health):
            pool.shutdown(wait=False)
        log.close()
        store.close()

    app = FastAPI(
        title="Freshet",
        version=version("freshet"),
        summary="Scores from per-user Bayesian click models that learn from every click.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(RouteAsSent)
    app.add_middleware(Guard, api_key=settings.api_key, max_concurrency=settings.max_concurrency)
    app.add_middleware(CountRequests, metrics=metrics)
    add_error_handlers(app)
    install(app, model, bool(settings.api_key))

    @app.post(
        "/score",
        responses=responses(api.ScoreResponse, 400, 408, 413, 422, 500, says="The items, best first."),
        openapi_extra=body(("application/json", reference("ScoreRequest"))),
    )
    async def score(request: Request) -> Response:
        """Score and rank items for a user. An unknown user is scored with the prior.

        With `log_impression` the impression is in the log, with exactly these features, before the answer is sent.
        """
        started = time.perf_counter()
        raw = await read_body(request, MAX_EVENT_BYTES, settings.request_timeout_s)
        wanted = decode_body(for_model, _SCORE_REQUEST, raw)
        answer = await _in(with_store, operations.score, wanted, started)
        metrics.scored.labels(wanted.policy, str(answer.user_known).lower()).inc(len(answer.items))
        return json_response(answer)

    @app.post(
        "/events",
        status_code=202,
        responses=responses(
            api.EventsResponse, 400, 408, 413, 422, status=202, says="The accepted events are in the log for good."
        ),
        openapi_extra=body(
            (
                "application/json",
                {"oneOf": [EVENT, {"type": "array", "items": EVENT, "minItems": 1, "maxItems": MAX_EVENTS}]},
            ),
            ("application/x-ndjson", {"type": "string", "description": "One event a line."}),
        ),
    )
    async def events(request: Request) -> Response:
        """Append events to the log: one event, an array, or one a line. 422 if there are events and none is good."""
        raw = await read_body(request, MAX_EVENTS_BYTES, settings.request_timeout_s)
        answer, topics = await _in(with_log, operations.append, raw)
        for error in answer.errors:
            metrics.rejected.labels(error.reason.value).inc()
        for topic in topics:
            metrics.accepted.labels(topic).inc()
        if answer.errors and not answer.accepted:
            first = answer.errors[0]
            raise api.ApiError(
                422, "no_event_accepted", f"events[{first.index}]: {first.message}", msgspec.to_builtins(answer)
            )
        return json_response(answer, 202)

    @app.get(
        "/users/{user_id}/posterior",
        responses=responses(api.PosteriorResponse, 422, 500, says="The belief."),
        openapi_extra=OF_A_USER,
    )
    async def posterior(request: Request) -> Response:
        """The belief of a user, relaxed to now; for an unknown user the prior."""
        return json_response(await _in(with_store, operations.posterior, _user_id(request)))

    @app.delete(
        "/users/{user_id}",
        responses=responses(api.Erasure, 422, 500, says="Nothing is known of the user."),
        openapi_extra=OF_A_USER,
    )
    async def erase(request: Request) -> Response:
        """Erase a user: all that was learnt, and all that is pending. The erasure is in the log before the answer."""
        return json_response(await _in(with_log, operations.erase, _user_id(request)))

    @app.get("/model", responses=responses(api.ModelResponse, says="The model."))
    async def describe() -> Response:
        """The model that scores."""
        return json_response(describe_model(model))

    @app.get("/health/live", responses=responses(api.Health, says="The process answers."))
    async def live() -> Response:
        """Whether the process answers; asks nothing of others."""
        return json_response(api.Health("ok"))

    @app.get("/health/ready", responses=responses(api.Health, 503, says="Ready to score."))
    async def ready() -> Response:
        """Whether the store answers."""
        await _in(for_health, store.ping)
        if (detail := await _in(for_health, trouble)) is not None:
            raise api.ApiError(503, "not_ready", detail, retry_after=RETRY_AFTER_S)
        return json_response(api.Health("ok"))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def scrape() -> Response:
        """Metrics for Prometheus."""
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _in(pool: ThreadPoolExecutor, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call in a thread of the pool, as soon as one is free. By anyio's threads `POST /score` took 5 % longer."""
    return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


def _user_id(request: Request) -> str:
    """The user whom the path names."""
    # Not a parameter of the route: for a single one FastAPI loads Pydantic's version 1 beside version 2.
    user_id = unquote(request.path_params["user_id"])
    if len(user_id) > MAX_ID_LENGTH:
        raise api.ApiError(
            422, "invalid_field", f"user_id: expected at most {MAX_ID_LENGTH} characters", {"field": "user_id"}
        )
    return user_id
