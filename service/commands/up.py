"""`freshet up`: learner and service in one process on one SQLite file, until a signal ends it."""

from __future__ import annotations

import argparse
import threading
from contextlib import ExitStack

from learner.model.spec import Model
from service.commands.command import Arguments
from service.commands.imports import imports
from service.commands.ports import require_free
from service.commands.process import logged
from service.settings import Settings
from service.shadows import declare_shadow, open_shadows, read_shadows

FILE = "freshet.db"
"""Where log and store are, unless something else is said."""


class UpArguments(Arguments):
    """What was typed."""

    file: str
    port: int | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Learner and service in one process. One SQLite file is both the log and the store; no servers."
    )
    parser.add_argument("--file", default=FILE, help="the SQLite file, made if missing (default: %(default)s)")
    declare_shadow(parser)
    parser.add_argument("--port", type=int, help="where to listen (default: FRESHET_PORT, else 8000)")


def run(arguments: UpArguments, settings: Settings, model: Model) -> int:
    """Learn and serve until a signal."""
    shadows = read_shadows(settings, model)
    require_free(settings.host, settings.port, "--port or FRESHET_PORT")
    with imports():
        import structlog
        from prometheus_client import CollectorRegistry

        from learner.log import open_log, open_reader
        from learner.model_check import ModelMismatch
        from learner.store import open_store
        from learner.store.owner import claim, owner_of
        from learner.store.versions import IndistinctVersions, ModelReplaced
        from service.measuring import measuring
        from service.metrics import QualityMetrics
        from service.monitor import Monitor
        from service.telling import telling
        from service.web.app import create_app
        from service.web.server import make_server, run_until_signal
        from service.worker import claimed, make_learner
    log = structlog.get_logger("freshet")

    def up() -> int:
        registry = CollectorRegistry()
        # No progress line: this terminal shows the service's log too.
        monitor = Monitor(registry, False, settings.stalled_after_s)
        stop = threading.Event()
        # The service closes its own when it stops, while the learner may still finish its microbatch.
        learner_store, store = (open_store(settings.store_url, **settings.store_options) for _ in range(2))
        claim(learner_store, owner_of(model, settings.group))
        learnt, scored = (open_shadows(settings, shadows) for _ in range(2))
        learnt = claimed(settings, learnt, monitor)
        reader = open_reader(settings.log, settings.topics, settings.group)
        # Nobody else learns into this file.
        learner = make_learner(settings, model, learner_store, reader, monitor, stop, take_over=True, shadows=learnt)
        app = create_app(
            settings, model, store, open_log(settings.log), registry, lambda: monitor.trouble(learner_store), scored
        )
        server = make_server(app, settings, settings.port)
        failed = threading.Event()

        def learn() -> None:
            try:
                learner.run()
            except (ModelMismatch, ModelReplaced, IndistinctVersions) as exc:
                log.error("stopped", error=str(exc))
            finally:
                # However the loop ended, a service whose posteriors no longer move must not look alive.
                if not stop.is_set():
                    failed.set()
                    server.should_exit = True

        thread = threading.Thread(target=learn, name="learner")
        thread.start()
        log.info("up", address=f"http://{settings.host}:{settings.port}", file=settings.store, model=model.name)
        try:
            metrics = QualityMetrics(registry)
            with ExitStack() as stack:
                stack.enter_context(telling(learner_store, monitor, settings.group))
                for one, its_store in ((model, learner_store), *learnt):
                    stack.enter_context(measuring(its_store, metrics, one))
                run_until_signal(server)
        finally:
            stop.set()
            thread.join()
        return 1 if failed.is_set() else 0

    return logged(settings, up)
