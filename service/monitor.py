"""What a learner tells of itself: health, metrics, a progress line on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter

import structlog
from prometheus_client import CollectorRegistry
from tqdm import tqdm

from learner.consumer import Progress
from learner.store import Store, StoreUnavailable
from service.metrics import LearnerMetrics

REPORT_INTERVAL_S = 10.0
STALLED_AFTER_S = 30.0

log = structlog.get_logger("freshet.learner")


class Monitor:
    """Takes the progress of a learning loop, from its thread, and answers for it, from others.

    Parameters
    ----------
    registry
        Where the metrics are kept.
    line
        Whether to keep a progress line on standard error.
    """

    def __init__(self, registry: CollectorRegistry, line: bool) -> None:
        self._metrics = LearnerMetrics(registry)
        self._bar = tqdm(unit=" events", file=sys.stderr, desc="learning", smoothing=0.1) if line else None
        self._polled_at = time.monotonic()
        self._reported_at = time.monotonic()
        self._messages = 0
        self._batches = 0
        self._freshness_ms = 0.0
        self._counts: Counter[str] = Counter()

    def observe(self, progress: Progress) -> None:
        """Take one turn of the loop."""
        self._polled_at = time.monotonic()
        self._metrics.observe(progress)
        self._messages += progress.messages
        self._batches += progress.messages > 0
        self._freshness_ms = max(self._freshness_ms, progress.freshness_ms or 0.0)
        self._counts += progress.counts
        self._counts += Counter({f"bad_{reason}": count for reason, count in progress.bad.items()})
        if self._bar is not None:
            fresh = "-" if progress.freshness_ms is None else f"{progress.freshness_ms:.0f} ms"
            self._bar.set_postfix_str(f"lag {progress.lag}, fresh {fresh}", refresh=False)
            self._bar.update(progress.messages)
        elapsed = self._polled_at - self._reported_at
        if elapsed >= REPORT_INTERVAL_S and (self._messages or progress.lag):
            self._report(progress.lag, elapsed)

    def trouble(self, store: Store) -> str | None:
        """Why the learner is not ready; None if it is."""
        idle = time.monotonic() - self._polled_at
        if idle > STALLED_AFTER_S:
            return f"the loop has not polled for {idle:.0f} s"
        try:
            store.ping()
        except StoreUnavailable as exc:
            return str(exc)
        return None

    def close(self) -> None:
        """End the progress line."""
        if self._bar is not None:
            self._bar.close()

    def _report(self, lag: int, elapsed: float) -> None:
        if self._bar is None:
            log.info(
                "learning",
                lag=lag,
                events_per_s=round(self._messages / elapsed, 1),
                batch_size=round(self._messages / max(1, self._batches), 1),
                freshness_ms=round(self._freshness_ms, 1),
                **self._counts,
            )
        self._reported_at = self._polled_at
        self._messages = self._batches = 0
        self._freshness_ms = 0.0
        self._counts = Counter()
