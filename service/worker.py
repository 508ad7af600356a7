"""A learner's own process: the loop, and what it answers over HTTP."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import structlog
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_when_event_set
from tenacity.nap import sleep_using_event
from tenacity.wait import wait_random_exponential

from learner.log import LogUnavailable, Reader, open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model
from learner.patience import MAX_BACKOFF_S
from learner.store import Store, StoreUnavailable
from learner.store.owner import WrongStore, claim, difference, owner_of
from learner.store.recent import RecentStore
from service.eviction import StoreEvicts, keeping
from service.measuring import measuring
from service.metrics import QualityMetrics, exposition
from service.monitor import Monitor
from service.settings import DAY_S, Settings
from service.shadows import Shadow, open_shadows, open_store_of
from service.store_watch import watch
from service.telling import telling
from service.web import api
from service.web.guard import Guard
from service.web.http import add_error_handlers, json_response
from service.web.readiness import Readiness
from service.web.server import end_in_time, make_server

T = TypeVar("T")

log = structlog.get_logger("freshet")


def learn(settings: Settings, model: Model, shadows: Sequence[Model] = (), catch_up: str = "") -> int:
    """Learn until a signal; returns the exit status.

    With `catch_up` one shadow of that name alone, into its store, by a consumer group of its own: nothing waits for it,
    and it writes no dead letters.
    """
    stop = threading.Event()

    def drain(*_: object) -> None:
        end_in_time()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    registry = CollectorRegistry()
    monitor = Monitor(
        registry,
        sys.stderr.isatty(),
        settings.stalled_after_s,
        loss_acknowledged=int(settings.loss_acknowledged.timestamp() * 1000),
    )
    group = settings.group
    if catch_up:
        (model,) = (one for one in shadows if one.name == catch_up)
        shadows, group = (), f"{group}.{catch_up}"
    store = open_store_of(settings, model, bool(catch_up))
    try:
        with _answering(settings, _monitor_app(settings, monitor, store, registry)):
            owner = owner_of(model, settings.group)
            before = _patiently("store", stop, lambda: claim(store, owner))
            if before is None:
                return 0
            keeps = _patiently("store", stop, lambda: keeping(settings))
            if keeps is None:
                return 0
            if keeps.forgets:
                raise StoreEvicts(keeps.forgets)
            if keeps.in_memory:
                log.warning("the store loses all at a restart", node=keeps.in_memory, expected="appendonly yes")
            if changed := difference(before, owner):
                log.warning("the model has other settings than the group's last learner had", difference=changed)
            watch(settings, store, owner, stop, monitor)
            opened = open_shadows(settings, shadows)
            beside = _patiently("store", stop, lambda: claimed(settings, opened, monitor))
            if beside is None:
                return 0
            metrics = QualityMetrics(registry)
            with ExitStack() as stack:
                stack.enter_context(telling(store, monitor, group))
                for one, its_store in ((model, store), *beside):
                    stack.enter_context(measuring(its_store, metrics, one))
                reader = _patiently("log", stop, lambda: _open_reader(settings, group))
                if reader is None:
                    return 0
                names = [one.model.name for one in beside]
                log.info("learning", topics=settings.topics, group=group, model=model.name, shadows=names)
                make_learner(
                    settings, model, store, reader, monitor, stop, shadows=beside, has_letters=not catch_up
                ).run()
    finally:
        monitor.close()
    log.info("stopped")
    return 0


def make_learner(
    settings: Settings,
    model: Model,
    store: Store,
    reader: Reader,
    monitor: Monitor,
    stop: threading.Event,
    take_over: bool = False,
    shadows: Sequence[Shadow] = (),
    has_letters: bool = True,
) -> Learner:
    """A learner; it runs when it is told to."""
    return Learner(
        model,
        _recent(settings, model, store),
        reader,
        open_log(settings.log, **settings.kafka_options) if has_letters else None,
        monitor.observe,
        settings.max_batch,
        settings.poll_timeout_ms,
        stop,
        max_slates_per_minute=settings.max_slates_per_minute,
        take_over=take_over,
        items_topic=settings.items_topic,
        shadows=[(one, _recent(settings, one, its_store)) for one, its_store in shadows],
    )


def claimed(settings: Settings, shadows: Sequence[Shadow], monitor: Monitor) -> list[Shadow]:
    """The shadows whose stores are theirs; the learner goes on without one whose is not, and says so."""
    found = []
    for one in shadows:
        owner = owner_of(one.model, settings.group)
        try:
            before = claim(one.store, owner)
        except WrongStore as exc:
            log.error("a shadow is dropped", model=one.model.name, error=str(exc))
            monitor.without(one.model.name, str(exc))
            continue
        if changed := difference(before, owner):
            name = one.model.name
            log.warning("a shadow has other settings than it last had", model=name, difference=changed)
        found.append(one)
    return found


def _recent(settings: Settings, model: Model, store: Store) -> Store:
    """A store that remembers what was written last, for no longer than the model's records are kept."""
    ages = [one.ttl_s for one in (model, model.item) if one is not None and one.ttl_s]
    return RecentStore(store, ttl_s=min([settings.ttl_days * DAY_S, *ages]))


def _patiently(what: str, stop: threading.Event, get: Callable[[], T]) -> T | None:
    """What `get` gets, as soon as the log or the store is there; None if told to stop before."""

    def waiting(state: RetryCallState) -> None:
        log.error(f"waiting for the {what}", error=str(state.outcome.exception() if state.outcome else ""))

    retrying = Retrying(
        retry=retry_if_exception_type((LogUnavailable, StoreUnavailable)),
        wait=wait_random_exponential(multiplier=0.1, max=MAX_BACKOFF_S),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=waiting,
    )
    try:
        return retrying(get)
    except RetryError:
        return None


def _open_reader(settings: Settings, group: str) -> Reader:
    return open_reader(settings.log, settings.topics, group, **settings.reader_options)


def _monitor_app(settings: Settings, monitor: Monitor, store: Store, registry: CollectorRegistry) -> FastAPI:
    """What a learner answers over HTTP."""
    app = FastAPI(title="Freshet learner", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, settings=settings)
    add_error_handlers(app)

    readiness = Readiness(lambda: monitor.trouble(store), lambda: monitor.note)

    @app.head("/health/live")
    @app.get("/health/live")
    async def live() -> Response:
        return json_response(api.Health("ok"))

    @app.head("/health/ready")
    @app.get("/health/ready")
    async def ready() -> Response:
        return await readiness.response()

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return app


@contextmanager
def _answering(settings: Settings, app: FastAPI) -> Iterator[None]:
    """Serve an app from a thread of its own, if a port is set."""
    if settings.learner_port == 0:
        yield
        return
    server = make_server(app, settings, settings.learner_port)
    thread = threading.Thread(target=server.run, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
