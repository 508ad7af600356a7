"""What a learner tells of itself: health, metrics, a progress line on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from prometheus_client import CollectorRegistry
from tqdm import tqdm

from freshet.answers import LearnerStatus
from learner.log.health import HEALTHY, Health
from learner.progress import Progress
from learner.store import Store, StoreUnavailable
from service.clock import now_ms
from service.metrics import LearnerMetrics
from service.shares import Shares

REPORT_INTERVAL_S = 10.0

log = structlog.get_logger("freshet.learner")


class Monitor:
    """Takes the progress of a learning loop, from its thread, and answers for it, from others.

    Parameters
    ----------
    registry
        Where the metrics are kept.
    line
        Whether to keep a progress line on standard error.
    stalled_after_s
        How long the loop may take for a turn, how long it may take nothing from a log that has something for it, and
        how long a topic may be missing.
    clock
        Seconds that never step back.
    loss_acknowledged
        Events lost to retention that were found up to then, epoch ms, are known.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        line: bool,
        stalled_after_s: float,
        clock: Callable[[], float] = time.monotonic,
        loss_acknowledged: int = 0,
    ) -> None:
        self._clock = clock
        self._stalled_after_s = stalled_after_s
        self._loss_acknowledged = loss_acknowledged
        self._metrics = LearnerMetrics(registry)
        self._shares = Shares()
        self._health: Health = HEALTHY
        self._missing_since: dict[str, float] = {}
        self._bar = tqdm(unit=" events", file=sys.stderr, desc="learning", smoothing=0.1) if line else None
        # None before the first turn: only that makes it ready.
        self._turned_at: float | None = None
        self._progressed_at = clock()
        self._lag = 0
        self._lags: dict[str, int] = {}
        self._started_at = now_ms()
        self._reported_at = clock()
        self._store_trouble: str | None = None
        self._difference: str | None = None
        self._dropped: dict[str, str] = {}
        self._messages = 0
        self._batches = 0
        self._freshness_ms = 0.0
        self._counts: Counter[str] = Counter()

    def observe(self, progress: Progress) -> None:
        """Take one turn of the loop."""
        now = self._clock()
        self._turned_at = now
        if progress.messages or not progress.lag or not self._lag:
            self._progressed_at = now
        self._lag = progress.lag
        self._lags = dict(progress.lags)
        self._metrics.observe(progress)
        self._health = progress.health
        self._dropped.update(progress.dropped)
        self._missing_since = {topic: self._missing_since.get(topic, now) for topic in progress.health.missing}
        self._watch_shares(progress, now)
        if vanished := progress.counts["vanished"]:
            log.error(
                "records vanished", users=vanished,
                means="the store no longer has what was learnt of these users; expected maxmemory-policy noeviction, "
                "and keys that nobody else deletes or lets expire",
            )  # fmt: skip
        self._messages += progress.messages
        self._batches += progress.messages > 0
        self._freshness_ms = max(self._freshness_ms, progress.freshness_ms or 0.0)
        self._counts += progress.counts
        self._counts += Counter({f"bad_{reason}": count for reason, count in progress.bad.items()})
        if self._bar is not None:
            fresh = "-" if progress.freshness_ms is None else f"{progress.freshness_ms:.0f} ms"
            self._bar.set_postfix_str(f"lag {progress.lag}, fresh {fresh}", refresh=False)
            self._bar.update(progress.messages)
        elapsed = now - self._reported_at
        if elapsed >= REPORT_INTERVAL_S and (self._messages or progress.lag):
            self._report(progress.lag, elapsed)

    def trouble(self, store: Store) -> str | None:
        """Why the learner is not ready; None if it is."""
        if self._turned_at is None:
            # It waits for the store, or for the log.
            return _trouble_of(store) or "the loop has not polled yet"
        if self._store_trouble is not None:
            return self._store_trouble
        now = self._clock()
        if (idle := now - self._turned_at) > self._stalled_after_s:
            return f"the loop has finished no turn for {idle:.0f} s"
        if (trouble := self._trouble_of_log(now)) is not None:
            return trouble
        # As long as messages are taken it is only busy, however many are left.
        if (idle := now - self._progressed_at) > self._stalled_after_s:
            return f"{self._lag} messages are to be learnt, and for {idle:.0f} s none came"
        return _trouble_of(store)

    def status(self, name: str, group: str, store: Store) -> LearnerStatus:
        """What the learner tells of itself, under a name."""
        messages, freshness, letters = self._metrics.totals()
        return LearnerStatus(
            name=name, group=group, started_at=self._started_at, at=now_ms(), trouble=self.trouble(store),
            messages=messages, lags=self._lags, freshness=freshness, dead_letters=letters,
        )  # fmt: skip

    def take_store(self, trouble: str | None, difference: str | None) -> None:
        """Take what was found of the store: why it is not one to learn into, and how others of the group learn."""
        if trouble and trouble != self._store_trouble:
            log.error("the store", error=trouble)
        if difference and difference != self._difference:
            log.warning(
                "the group's learner that started last has other settings", difference=difference,
                means="what is learnt of users depends on who learns it; expected the same model file for all, but for "
                "the time of a change from one to another",
            )  # fmt: skip
        elif self._difference and not difference:
            log.info("the group's learner that started last has the same settings again")
        self._store_trouble, self._difference = trouble, difference
        self._metrics.differs.set(difference is not None)

    def take_members(self, members: int) -> None:
        """Take how many learners of the group tell of themselves; one that does not yet is one all the same."""
        self._metrics.members.set(max(1, members))

    def without(self, model: str, why: str) -> None:
        """The learner goes on without a shadow."""
        self._dropped[model] = why
        self._metrics.dropped.labels(model).set(1)

    @property
    def note(self) -> str | None:
        """What one should know of a learner that is ready: which shadows were dropped, and why."""
        return "; ".join(f"shadow {name!r} is dropped: {why}" for name, why in self._dropped.items()) or None

    def close(self) -> None:
        """End the progress line."""
        if self._bar is not None:
            self._bar.close()

    def _trouble_of_log(self, now: float) -> str | None:
        """What of the log cannot be read; first what can still be put right."""
        if self._health.unreadable:
            return "; ".join(map(str, self._health.unreadable))
        missing = [topic for topic, since in self._missing_since.items() if now - since > self._stalled_after_s]
        if missing:
            return f"topic {', '.join(map(repr, missing))} does not exist, for more than {self._stalled_after_s:.0f} s"
        if lost := [one for one in self._health.lost if one.at > self._loss_acknowledged]:
            until = datetime.fromtimestamp(max(one.at for one in lost) // 1000 + 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return f"{'; '.join(map(str, lost))}. FRESHET_LOSS_ACKNOWLEDGED={until} acknowledges it"
        return None

    def _watch_shares(self, progress: Progress, now: float) -> None:
        self._shares.add(progress.counts, now)
        for kind, (share, above) in self._shares.above().items():
            self._metrics.share.labels(kind).set(share)
            self._metrics.warning.labels(kind).set(above)

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
        self._reported_at = self._clock()
        self._messages = self._batches = 0
        self._freshness_ms = 0.0
        self._counts = Counter()


def _trouble_of(store: Store) -> str | None:
    try:
        store.ping()
    except StoreUnavailable as exc:
        return str(exc)
    return None
