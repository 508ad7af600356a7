"""The HTTP service: scores from the posteriors in the store, events into the log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

import msgspec
from fastapi import FastAPI, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from learner.events import MAX_EVENT_BYTES, MAX_ID_LENGTH
from learner.log import EventLog
from learner.model import Model
from learner.store import Store
from service import api
from service.http import (
    RETRY_AFTER_S,
    CountRequests,
    add_error_handlers,
    check_key,
    decode_body,
    json_response,
    read_body,
)
from service.metrics import ServiceMetrics, exposition
from service.openapi import EVENT, body, install, reference, responses
from service.operations import Operations, describe_model
from service.settings import Settings

MAX_EVENTS_BYTES = 16 << 20

UserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]

_SCORE_REQUEST = msgspec.json.Decoder(api.ScoreRequest)


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

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        log.close()
        store.close()

    app = FastAPI(
        title="Freshet",
        version=version("freshet"),
        summary="Scores from per-user Bayesian click models that learn from every click.",
        lifespan=lifespan,
    )
    app.add_middleware(CountRequests, metrics=metrics)
    add_error_handlers(app)
    install(app, bool(settings.api_key))

    @app.post(
        "/score",
        responses=responses(api.ScoreResponse, 400, 401, 413, 422, 500, 503, says="The items, best first."),
        openapi_extra=body(("application/json", reference("ScoreRequest"))),
    )
    async def score(request: Request) -> Response:
        """Score and rank items for a user. An unknown user is scored with the prior.

        With `log_impression` the impression is in the log, with exactly these features, before the answer is sent.
        """
        started = time.perf_counter()
        check_key(request, settings.api_key)
        wanted = decode_body(_SCORE_REQUEST, await read_body(request, MAX_EVENT_BYTES))
        answer = await run_in_threadpool(operations.score, wanted, started)
        metrics.scored.labels(wanted.policy, str(answer.user_known).lower()).inc(len(answer.items))
        return json_response(answer)

    @app.post(
        "/events",
        status_code=202,
        responses=responses(
            api.EventsResponse, 400, 401, 413, 422, 503, status=202, says="The accepted events are in the log for good."
        ),
        openapi_extra=body(
            ("application/json", {"oneOf": [EVENT, {"type": "array", "items": EVENT}]}),
            ("application/x-ndjson", {"type": "string", "description": "One event a line."}),
        ),
    )
    async def events(request: Request) -> Response:
        """Append events to the log: one event, an array, or one a line. 422 if there are events and none is good."""
        check_key(request, settings.api_key)
        raw = await read_body(request, MAX_EVENTS_BYTES)
        answer, topics = await run_in_threadpool(operations.append, raw)
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
        "/users/{user_id}/posterior", responses=responses(api.PosteriorResponse, 401, 422, 500, 503, says="The belief.")
    )
    async def posterior(user_id: UserId, request: Request) -> Response:
        """The belief of a user, relaxed to now; for an unknown user the prior."""
        check_key(request, settings.api_key)
        return json_response(await run_in_threadpool(operations.posterior, user_id))

    @app.delete(
        "/users/{user_id}", responses=responses(api.Erasure, 401, 422, 500, 503, says="Nothing is known of the user.")
    )
    async def erase(user_id: UserId, request: Request) -> Response:
        """Erase a user: all that was learnt, and all that is pending."""
        check_key(request, settings.api_key)
        return json_response(await run_in_threadpool(operations.erase, user_id))

    @app.get("/model", responses=responses(api.ModelResponse, 401, says="The model."))
    async def describe(request: Request) -> Response:
        """The model that scores."""
        check_key(request, settings.api_key)
        return json_response(describe_model(model))

    @app.get("/health/live", responses=responses(api.Health, says="The process answers."))
    async def live() -> Response:
        """Whether the process answers; asks nothing of others."""
        return json_response(api.Health("ok"))

    @app.get("/health/ready", responses=responses(api.Health, 503, says="Ready to score."))
    async def ready() -> Response:
        """Whether the store answers."""
        await run_in_threadpool(store.ping)
        if (detail := trouble()) is not None:
            raise api.ApiError(503, "not_ready", detail, retry_after=RETRY_AFTER_S)
        return json_response(api.Health("ok"))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def scrape(request: Request) -> Response:
        """Metrics for Prometheus."""
        check_key(request, settings.api_key)
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return app
