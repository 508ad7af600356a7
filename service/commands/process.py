"""What the commands have in common that run until a signal ends them."""

from __future__ import annotations

import os
from collections.abc import Callable

from learner.log import LogUnavailable
from learner.model_check import ModelMismatch
from learner.record import RecordError
from learner.store import StoreUnavailable
from learner.store.owner import WrongStore
from learner.store.versions import IndistinctVersions, ModelReplaced
from service.environment import service_links
from service.eviction import StoreEvicts
from service.settings import Settings


def logged(settings: Settings, process: Callable[[], int]) -> int:
    """Run a process, and say in its log what stopped it; returns the exit status."""
    import structlog

    from service.logging import configure_logging

    configure_logging(settings.log_format, settings.log_level)
    log = structlog.get_logger("freshet")
    if links := service_links(os.environ):
        log.warning("passed over variables that are Kubernetes' service links", variables=links)
    try:
        return process()
    except (
        LogUnavailable,
        StoreUnavailable,
        WrongStore,
        StoreEvicts,
        RecordError,
        ModelMismatch,
        ModelReplaced,
        IndistinctVersions,
    ) as exc:
        log.error("stopped", error=str(exc))
        return 1
