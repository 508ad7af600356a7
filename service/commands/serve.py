"""`freshet serve`: the HTTP service, until a signal ends it."""

from __future__ import annotations

import argparse

from learner.model.spec import Model
from service.commands.command import Subparsers
from service.commands.ports import require_free
from service.commands.process import imports, logged
from service.settings import Settings


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add `serve` to the command."""
    return commands.add_parser(
        "serve", help="answer POST /score from the store",
        description="Serve scores over HTTP. Stateless: run as many as you like. /docs explains the API.",
    )  # fmt: skip


def run(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Serve until a signal."""
    require_free(settings.host, settings.port, "FRESHET_PORT")
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
        app = create_app(settings, model, store, events, trouble=lambda: trouble(store, model.name))
        log.info("serving", address=f"http://{settings.host}:{settings.port}", model=model.name)
        run_until_signal(make_server(app, settings, settings.port))
        return 0

    return logged(settings, serve)
