"""Shares of the last hour's events that went wrong: what single counters do not show."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

import structlog

HOUR_S, MINUTE_S = 3_600.0, 60.0
LEAST = 100
"""Of fewer events a share says nothing."""


class Share(NamedTuple):
    """A count, of which counts' sum it is a share, above which share it is a warning, and what that means."""

    kind: str
    of: tuple[str, ...]
    bound: float
    means: str


WATCHED = (
    Share(
        "unmatched_clicks", ("clicks", "waiting_clicks", "late_clicks"), 0.05,
        "clicks without an impression: events are missing, or topics are read far apart; expected one topic for both "
        "types, or two with equal partitions and keys",
    ),
    Share(
        "settled_early", ("outcomes",), 0.05,
        "outcomes learnt as \"no\" before their time, since users have more open ones than max_open",
    ),
    Share(
        "forgotten_early", ("outcomes",), 0.05,
        "outcomes forgotten inside the attribution window, since users have more than 3 max_open: their clicks and "
        "repeats are no longer recognised",
    ),
)  # fmt: skip

log = structlog.get_logger("freshet.learner")


class Shares:
    """Counts by the minute, of the last hour."""

    def __init__(self) -> None:
        self._minutes: deque[tuple[float, Counter[str]]] = deque()
        self._sum: Counter[str] = Counter()
        self._warned: set[str] = set()

    def add(self, counts: Mapping[str, int], now: float) -> None:
        """Take what became of some events; `now` in seconds, by any clock."""
        if not self._minutes or now >= self._minutes[-1][0] + MINUTE_S:
            self._minutes.append((now, Counter()))
        self._minutes[-1][1].update(counts)
        self._sum.update(counts)
        while self._minutes[0][0] <= now - HOUR_S:
            self._sum.subtract(self._minutes.popleft()[1])

    def above(self) -> dict[str, tuple[float, bool]]:
        """Each watched share, and whether it is above its bound; says so in the log when that changes."""
        found = {}
        for share in WATCHED:
            total = sum(self._sum[name] for name in share.of)
            part = self._sum[share.kind] / total if total else 0.0
            above = total >= LEAST and part > share.bound
            found[share.kind] = (part, above)
            if above and share.kind not in self._warned:
                self._warned.add(share.kind)
                log.warning(share.kind, share=round(part, 3), bound=share.bound, means=share.means)
            elif not above and share.kind in self._warned:
                self._warned.discard(share.kind)
                log.info("no longer above its bound", kind=share.kind, share=round(part, 3))
        return found
