"""`freshet serve`: the HTTP service, until a signal ends it."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from learner.model.spec import Model
from service.commands.command import Arguments
from service.commands.imports import imports
from service.commands.ports import require_free
from service.commands.process import logged
from service.settings import Settings, SettingsError
from service.shadows import declare_shadow, open_shadows, read_shadows

MAX_WORKERS = 256
LEAST_AGE_S = 10.0
"""A worker that dies sooner is not started again: see `service.workers`."""


class ServeArguments(Arguments):
    """What was typed."""

    workers: int


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Serve scores over HTTP. Stateless: run as many as you like. /docs explains the API; the page at / "
        "scores, clicks, and shows what learners do. Shadows score behind the answers, and are compared with them; "
        "`freshet promote` says which model answers."
    )
    declare_shadow(parser)
    parser.add_argument(
        "--workers", type=_n_workers, default=1, metavar="N",
        help="processes that share the port, one a core at most; one that dies is started again (default: %(default)s)",
    )  # fmt: skip


def run(arguments: ServeArguments, settings: Settings, model: Model) -> int:
    """Serve until a signal."""
    shadows = read_shadows(settings, model)
    require_free(settings.host, settings.port, "FRESHET_PORT")
    if arguments.workers == 1:
        return _serve(settings, model, shadows)
    try:
        shared = TemporaryDirectory(prefix="freshet-metrics-")
    except OSError as exc:
        raise SettingsError(
            f"--workers: for the files that they share metrics by: {exc}; TMPDIR names another"
        ) from exc
    with shared as folder:
        # By this variable prometheus-client keeps what each process counts in files, of which each tells the sum. It
        # looks when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        return _serve_with_workers(settings, model, shadows, arguments.workers)


def _serve_with_workers(settings: Settings, model: Model, shadows: Sequence[Model], n: int) -> int:
    with imports():
        import structlog

        # All that a worker needs: what is imported before it is forked is in memory once.
        import service.web.app  # noqa: F401
        from service.workers import listening, run_workers
    with listening(settings.host, settings.port) as listener:

        def serve() -> int:
            log = structlog.get_logger("freshet")
            log.info("serving", address=f"http://{settings.host}:{settings.port}", model=model.name, workers=n)
            return run_workers(n, lambda: _serve(settings, model, shadows, [listener]), LEAST_AGE_S)

        return logged(settings, serve)


def _serve(
    settings: Settings, model: Model, shadows: Sequence[Model], listeners: list[socket.socket] | None = None
) -> int:
    """Serve in this process: on the port of the settings, or where others listen too."""
    with imports():
        import structlog

        from learner.log import open_log
        from learner.store import open_store
        from learner.store.owner import trouble
        from service.web.app import create_app
        from service.web.server import make_server, run_until_signal
    log = structlog.get_logger("freshet")

    def serve() -> int:
        store = open_store(settings.store_url, **settings.store_options)
        events = open_log(settings.log, **settings.kafka_options)
        beside = open_shadows(settings, shadows)
        app = create_app(settings, model, store, events, trouble=lambda: trouble(store, model.name), shadows=beside)
        if listeners is None:
            log.info("serving", address=f"http://{settings.host}:{settings.port}", model=model.name)
        run_until_signal(make_server(app, settings, settings.port), listeners)
        return 0

    return logged(settings, serve)


def _n_workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {MAX_WORKERS}")
    return int(text)
