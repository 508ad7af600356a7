"""A learner reads how good scores are, now and then, for its metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from learner.model.spec import Model
from learner.store import Store, StoreUnavailable
from service.guardrail import verdict
from service.metrics import QualityMetrics
from service.quality import windows_of

INTERVAL_S = 30.0

log = structlog.get_logger("freshet.learner")


@contextmanager
def measuring(store: Store, metrics: QualityMetrics, model: Model) -> Iterator[None]:
    """Read it from a thread, where the model has it measured."""
    stop = threading.Event()

    def read() -> None:
        was_worse, interval = False, 1.0
        while not stop.wait(interval):
            try:
                sums = store.sums()
            except StoreUnavailable:
                continue  # Readiness asks for that itself.
            found = verdict(sums)
            is_worse = found.is_worse and model.guardrail != "off"
            metrics.observe(model.name, windows_of(sums, model.item is not None), is_worse)
            if is_worse and not was_worse:
                log.error(
                    "what is served is worse than the fixed effect", slates=found.slates, log_loss_more=found.worse,
                    means="features, offsets or clicks may not be what they were; see /quality",
                )  # fmt: skip
            elif was_worse and not is_worse:
                log.info("what is served is no longer worse than the fixed effect")
            was_worse, interval = is_worse, INTERVAL_S if sums else 1.0

    thread = threading.Thread(target=read, name="measuring", daemon=True)
    if model.quality > 0:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if model.quality > 0:
            thread.join()
