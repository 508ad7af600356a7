"""A learner reads how good scores are, now and then, for its metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from learner.model.spec import Model
from learner.store import Store, StoreUnavailable
from service.guardrail import judged
from service.metrics import QualityMetrics
from service.quality import windows_of

INTERVAL_S = 30.0

log = structlog.get_logger("freshet.learner")


@contextmanager
def measuring(store: Store, metrics: QualityMetrics, model: Model) -> Iterator[None]:
    """Read it from a thread, where the model has it measured."""
    stop = threading.Event()

    def read() -> None:
        was_worse, interval = set[str](), 1.0
        segments = [one.name for one in model.segments]
        while not stop.wait(interval):
            try:
                sums = store.sums()
            except StoreUnavailable:
                continue  # Readiness asks for that itself.
            found = judged(sums, segments)
            worse = {name for name, one in found.items() if one.is_worse and model.guardrail != "off"}
            windows = windows_of(sums, model.item is not None, segments)
            metrics.observe(model.name, windows, {name: name in worse for name in found})
            for name in sorted(worse - was_worse):
                log.error(
                    "what is served is worse than the fixed effect", model=model.name, segment=name,
                    slates=found[name].slates, log_loss_more=found[name].worse,
                    means="features, offsets or clicks may not be what they were; see /quality",
                )  # fmt: skip
            for name in sorted(was_worse - worse):
                log.info("what is served is no longer worse than the fixed effect", model=model.name, segment=name)
            was_worse, interval = worse, INTERVAL_S if sums else 1.0

    thread = threading.Thread(target=read, name="measuring", daemon=True)
    if model.quality > 0:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if model.quality > 0:
            thread.join()
