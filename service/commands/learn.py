"""`freshet learn`: a learner, until a signal ends it."""

from __future__ import annotations

import argparse

from learner.model.spec import Model
from service.commands.command import Arguments
from service.commands.imports import imports
from service.commands.ports import require_free
from service.commands.process import logged
from service.settings import Settings


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Read impressions and clicks from the log, update users' records in the store, commit. Run as many "
        "as there are partitions, at most. SIGTERM finishes the microbatch in hand and leaves the group. Bad events go "
        "to <topic>.dlq."
    )


def run(arguments: Arguments, settings: Settings, model: Model) -> int:
    """Learn until a signal."""
    require_free(settings.host, settings.learner_port, "FRESHET_LEARNER_PORT, 0 for none")
    with imports():
        from service import worker
    return logged(settings, lambda: worker.learn(settings, model))
