"""The HTTP service: scores from the posteriors in the store, events into the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from learner.laps import Laps
from learner.limits import MAX_EVENT_BYTES
from learner.log import Entry, EventLog, LogUnavailable
from learner.model.spec import Model
from learner.store import Store
from service import DISTRIBUTION
from service.metrics import exposition
from service.settings import Settings
from service.web import api
from service.web.answers import describe_model
from service.web.arms import assigned
from service.web.beside import Beside
from service.web.catalog import add_catalog
from service.web.guard import Guard
from service.web.http import (
    CountRequests,
    RouteAsSent,
    add_error_handlers,
    decode_body,
    json_response,
    read_body,
)
from service.web.impressions import Impressions
from service.web.ingest import Ingest, add_ingest
from service.web.learners import Learners, add_learners
from service.web.metrics import ServiceMetrics
from service.web.openapi import OF_A_USER, OF_AN_ITEM, body, install, of_a_model, reference, responses
from service.web.pages import add_pages
from service.web.quality_route import add_quality
from service.web.readiness import Readiness
from service.web.routing import PlainRoute, id_in_path
from service.web.scorers import Scorer, Scorers
from service.web.threads import in_thread

THREADS = 32
EXPLAINING_THREADS = 2
"""Explanations of large slates compute for so long that more of them at a time would slow everybody down."""

service_log = structlog.get_logger("freshet.service")

_SCORE_REQUEST = api.score_decoder(None)


def create_app(
    settings: Settings,
    model: Model,
    store: Store,
    log: EventLog,
    registry: CollectorRegistry | None = None,
    trouble: Callable[[], str | None] = lambda: None,
    shadows: Sequence[tuple[Model, Store]] = (),
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
    shadows
        Models beside the first, targets of all models among them, and their stores, which are closed too. Those that
        learn clicks may be promoted.
    """
    registry = registry or CollectorRegistry()
    metrics = ServiceMetrics(registry)
    # Threads that may wait for the store, for the log, and on behalf of a health probe: with one pool for all, a slow
    # server would stop what needs only the other, and the probes that ought to tell.
    with_store, with_log, explaining = (ThreadPoolExecutor(n) for n in (THREADS, THREADS, EXPLAINING_THREADS))
    # Half of the requests may wait for the log; the other half still scores.
    waiting = max(1, settings.max_concurrency // 2)
    impressions = Impressions(log, THREADS, waiting, settings.impression_timeout_s)

    def look() -> str | None:
        store.ping()
        return trouble()

    stores = {one.name: its_store for one, its_store in shadows}

    def scorer_of(one: Model, its_store: Store) -> Scorer:
        targets = [scorer_of(target, stores[target.name]) for target in one.targets.values()]
        return Scorer(settings, one, its_store, with_store, explaining, targets)

    served = [(model, store), *(some for some in shadows if not some[0].is_target)]
    all_models = [scorer_of(*some) for some in served]
    scorers, beside = Scorers(all_models, with_store, metrics), Beside(metrics)
    ingest, readiness = Ingest(settings, model, log), Readiness(look)
    learners = Learners(model.name, store, with_store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What is wrong is in the log before anybody asks.
        first_look = asyncio.create_task(readiness.check())
        await scorers.begin()
        watching = [asyncio.create_task(one.guardrail.watch()) for one in scorers.with_targets]
        watching.append(asyncio.create_task(scorers.watch()))
        yield
        for one in watching:
            one.cancel()
        await first_look
        for pool in (with_store, with_log, explaining):
            pool.shutdown(wait=False)
        impressions.close()
        readiness.close()
        beside.close()
        log.close()
        scorers.close()

    app = FastAPI(
        title="Freshet",
        version=version(DISTRIBUTION),
        summary="Scores from per-user Bayesian click models that learn from every click.",
        lifespan=lifespan,
        redirect_slashes=False,
        # Those of FastAPI ask another host for their scripts.
        docs_url=None,
        redoc_url=None,
        # Asked of OpenTelemetry anew for each request, whether anybody listens.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.router.route_class = PlainRoute
    app.add_middleware(RouteAsSent)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(CountRequests, metrics=metrics)
    if settings.allowed_origins:
        # Outermost: a browser asks first without the key, and reads no answer, not even a refusal, without the headers.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Content-Type", "X-API-Key"],
            expose_headers=["Retry-After"],
        )
    add_error_handlers(app)
    install(app, model, bool(settings.api_key))

    @app.post(
        "/score",
        responses=responses(api.ScoreResponse, 400, 408, 413, 422, 500, says="The items, best first."),
        openapi_extra=body(("application/json", reference("ScoreRequest"))),
    )
    async def score(request: Request) -> Response:
        """Score and rank items for a user. An unknown user is scored with the prior.

        With `log_impression` the impression is in the log, with exactly these features, before the answer is sent;
        `logged` says so. It has the items that are shown: the best `top_k`, or those that `shown` names; without either
        all of them. A log that does not take it in time means 503, or by a setting an answer with `logged` false:
        then it may, or may not, be in the log later.
        """
        laps = Laps()
        raw = await read_body(request, MAX_EVENT_BYTES)
        scorer = scorers.served
        wanted = decode_body(scorer.decoder, _SCORE_REQUEST, raw)
        arm = assigned(model.experiment, wanted)
        if arm is not None and scorer is not (own := scorers.of_arm(arm.arm)):
            # Its features may be others.
            scorer, wanted = own, decode_body(own.decoder, _SCORE_REQUEST, raw)
        laps.lap("body")
        answer, impression = await scorer.scoring.score(wanted, len(raw), laps, arm)
        if impression is not None:
            answer = msgspec.structs.replace(answer, logged=await logged(impression))
            laps.lap("log")
        metrics.took(laps.seconds)
        if scorer.model.catalog is not None:
            metrics.unknown_items.inc(sum(item.known is False for item in answer.items))
        metrics.scored.labels(answer.policy, str(answer.user_known).lower()).inc(len(answer.items))
        beside.score(raw, answer, scorers.beside(scorer))
        return json_response(answer)

    async def logged(impression: Entry) -> bool:
        """Whether an impression is in the log; an error where that was to be."""
        try:
            await impressions.append(impression)
        except LogUnavailable as exc:
            metrics.unlogged.inc()
            if not settings.score_unlogged:
                raise
            service_log.warning("scored, but not logged", error=str(exc))
            return False
        return True

    @app.get(
        "/users/{user_id}/posterior",
        responses=responses(api.PosteriorResponse, 400, 404, 422, 500, says="The belief."),
        openapi_extra=of_a_model(OF_A_USER),
    )
    async def posterior(request: Request) -> Response:
        """The belief of a user, relaxed to now; for an unknown user the prior."""
        operations, user_id = scorers.asked(request).operations, id_in_path(request, "user_id")
        return json_response(await in_thread(with_store, operations.posterior, user_id))

    @app.get(
        "/items/{item_id}/posterior",
        responses=responses(api.ItemPosteriorResponse, 400, 404, 422, 500, says="The belief."),
        openapi_extra=of_a_model(OF_AN_ITEM),
    )
    async def item_posterior(request: Request) -> Response:
        """The belief of an item, relaxed to now; of an unknown item the prior. 404 if the model learns no items."""
        operations, item_id = scorers.asked(request).operations, id_in_path(request, "item_id")
        return json_response(await in_thread(with_store, operations.item_posterior, item_id))

    @app.delete(
        "/users/{user_id}",
        responses=responses(api.Erasure, 400, 422, 500, says="Nothing is known of the user."),
        openapi_extra=OF_A_USER,
    )
    async def erase(request: Request) -> Response:
        """Erase a user: all that was learnt, by whatever model, and all that is pending.

        The erasure is in the log before the answer is sent. Whatever fails, ask again: nothing is undone.
        """
        user_id = id_in_path(request, "user_id")
        # Each with its own threads: those who score need not wait for the log.
        at = await in_thread(with_log, ingest.log_erasure, user_id)
        return json_response(await in_thread(with_store, scorers.erase, user_id, at))

    @app.delete(
        "/items/{item_id}",
        responses=responses(api.ItemErasure, 400, 404, 422, 500, says="Nothing is known of the item."),
        openapi_extra=OF_AN_ITEM,
    )
    async def erase_item(request: Request) -> Response:
        """Erase an item: it begins again from its prior, and learns nothing of what was shown until now.

        The catalog has it no more as soon as learners have read the erasure, which is in the log before the answer is
        sent. Scorers may remember it for `FRESHET_ITEM_CACHE_MS`. Whatever fails, ask again: nothing is undone. 404 if
        the model knows nothing of items.
        """
        item_id = id_in_path(request, "item_id")
        at = await in_thread(with_log, ingest.log_item_erasure, item_id)
        return json_response(await in_thread(with_store, scorers.erase_item, item_id, at))

    @app.get("/model", responses=responses(api.ModelResponse, 404, says="The model."), openapi_extra=of_a_model())
    async def describe(request: Request) -> Response:
        """The model that scores."""
        return json_response(describe_model(scorers.asked(request).model))

    @app.get("/models", responses=responses(api.ModelsResponse, says="The models."))
    async def models(request: Request) -> Response:
        """The models side by side, and which of them is served: see `freshet promote`."""
        return json_response(scorers.answer())

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live", responses=responses(api.Health, says="The process answers."))
    async def live(request: Request) -> Response:
        """Whether the process answers; asks nothing of others."""
        return json_response(api.Health("ok"))

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready", responses=responses(api.Health, 503, says="Ready to score."))
    async def ready(request: Request) -> Response:
        """Whether the store answers, and can be used."""
        return await readiness.response()

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def scrape(request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    add_ingest(app, ingest, metrics, with_log)
    add_pages(app)
    add_learners(app, learners)
    add_quality(app, scorers)
    add_catalog(app, scorers, with_store)
    app.state.end = learners.end
    # Routes are tried in turn: the one that is asked for most comes first.
    app.router.routes.sort(key=lambda route: getattr(route, "path", "") != "/score")
    return app
