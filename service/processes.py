"""The processes behind the command: a learner, a service, or both in one."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_when_event_set
from tenacity.nap import sleep_using_event
from tenacity.wait import wait_random_exponential

from learner.consumer import MAX_BACKOFF_S, Learner
from learner.log import LogUnavailable, Reader, open_log, open_reader
from learner.model import Model
from learner.record import RecordError
from learner.store import Store, StoreUnavailable, open_store
from learner.store.recent import RecentStore
from service import api
from service.app import create_app
from service.guard import Guard
from service.http import add_error_handlers, json_response
from service.logging import configure_logging
from service.metrics import exposition
from service.monitor import Monitor
from service.server import end_in_time, make_server
from service.settings import Settings

log = structlog.get_logger("freshet")


def run(command: str, settings: Settings, model: Model) -> int:
    """Run `learn`, `serve` or `up` until a signal ends it; returns the exit status."""
    configure_logging(settings.log_format, settings.log_level)
    try:
        return {"learn": _learn, "serve": _serve, "up": _up}[command](settings, model)
    except (LogUnavailable, StoreUnavailable, RecordError) as exc:
        log.error("stopped", error=str(exc))
        return 1


def _serve(settings: Settings, model: Model) -> int:
    store = open_store(settings.store_url, **settings.store_options)
    app = create_app(settings, model, store, open_log(settings.log, **settings.kafka_options))
    log.info("serving", address=f"http://{settings.host}:{settings.port}", model=model.name)
    _run_until_signal(make_server(app, settings, settings.port))
    return 0


def _learn(settings: Settings, model: Model) -> int:
    stop = threading.Event()

    def drain(*_: object) -> None:
        end_in_time()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    registry = CollectorRegistry()
    monitor = Monitor(registry, sys.stderr.isatty(), settings.stalled_after_s)
    store = open_store(settings.store_url, **settings.store_options)
    try:
        with _answering(settings, _monitor_app(settings, monitor, store, registry)):
            reader = _join(settings, stop)
            if reader is None:
                return 0
            log.info("learning", topics=settings.topics, group=settings.group, model=model.name)
            _learner(settings, model, store, reader, monitor, stop).run()
    finally:
        monitor.close()
    log.info("stopped")
    return 0


def _up(settings: Settings, model: Model) -> int:
    registry = CollectorRegistry()
    # No progress line: this terminal shows the service's log too.
    monitor = Monitor(registry, False, settings.stalled_after_s)
    stop = threading.Event()
    # The service closes its own when it stops, while the learner may still finish its microbatch.
    learner_store, store = (open_store(settings.store_url, **settings.store_options) for _ in range(2))
    reader = open_reader(settings.log, settings.topics, settings.group)
    learner = _learner(settings, model, learner_store, reader, monitor, stop)
    app = create_app(settings, model, store, open_log(settings.log), registry, lambda: monitor.trouble(learner_store))
    server = make_server(app, settings, settings.port)
    failed = threading.Event()

    def learn() -> None:
        try:
            learner.run()
        finally:
            # However the loop ended, a service whose posteriors no longer move must not look alive.
            if not stop.is_set():
                failed.set()
                server.should_exit = True

    thread = threading.Thread(target=learn, name="learner")
    thread.start()
    log.info("up", address=f"http://{settings.host}:{settings.port}", file=settings.store, model=model.name)
    try:
        _run_until_signal(server)
    finally:
        stop.set()
        thread.join()
    return 1 if failed.is_set() else 0


def _learner(
    settings: Settings, model: Model, store: Store, reader: Reader, monitor: Monitor, stop: threading.Event
) -> Learner:
    # Now, for its first use would be at the first event.
    import scipy.special  # noqa: F401

    return Learner(
        model,
        RecentStore(store),
        reader,
        open_log(settings.log, **settings.kafka_options),
        monitor.observe,
        settings.max_batch,
        settings.poll_timeout_ms,
        stop,
    )


def _join(settings: Settings, stop: threading.Event) -> Reader | None:
    """A reader, as soon as the log is there; None if told to stop before."""

    def waiting(state: RetryCallState) -> None:
        log.warning("waiting for the log", error=str(state.outcome.exception() if state.outcome else ""))

    retrying = Retrying(
        retry=retry_if_exception_type(LogUnavailable),
        wait=wait_random_exponential(multiplier=0.1, max=MAX_BACKOFF_S),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=waiting,
    )
    try:
        return retrying(open_reader, settings.log, settings.topics, settings.group, **settings.reader_options)
    except RetryError:
        return None


def _run_until_signal(server: uvicorn.Server) -> None:
    """Serve until SIGTERM or SIGINT; what is open is answered first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # Once it has shut down, uvicorn raises the signal again for the handler that was there before it; the default
        # one would end the process before the learner has finished its microbatch.
        signal.signal(number, lambda *_: None)
    server.run()


def _monitor_app(settings: Settings, monitor: Monitor, store: Store, registry: CollectorRegistry) -> FastAPI:
    """What a learner answers over HTTP."""
    app = FastAPI(title="Freshet learner", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, api_key=settings.api_key, max_concurrency=settings.max_concurrency)
    add_error_handlers(app)

    @app.get("/health/live")
    def live() -> Response:
        return json_response(api.Health("ok"))

    @app.get("/health/ready")
    def ready() -> Response:
        if (detail := monitor.trouble(store)) is not None:
            raise api.ApiError(503, "not_ready", detail)
        return json_response(api.Health("ok"))

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
