"""A bound on what one user may have learnt: a bot that shows itself slates all day must not keep others waiting."""

from __future__ import annotations

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from learner.events.microbatch import IMPRESSION
from learner.events.parsed import Parsed
from learner.events.wire import BadEvent, Reason

USERS = 100_000
"""Of whom slates are counted; those seen longest ago are forgotten."""


class BusyUsers:
    """Counts slates by user and minute of the log; what is more than the bound is refused.

    Parameters
    ----------
    per_minute
        How many slates are learnt; 0: all.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: LRUCache[str, tuple[int, int]] = LRUCache(USERS)

    def forget(self) -> None:
        """Count anew, since slates that were counted may come again: those that were learnt must not be refused now."""
        self._counts.clear()

    def refuse(self, parsed: Parsed, came_at: NDArray[np.int64]) -> None:
        """Make the surplus slates bad; `came_at` are the times of the records in the log, epoch ms."""
        if not self._per_minute:
            return
        why = BadEvent(
            Reason.TOO_BUSY,
            f"user_id: expected at most {self._per_minute} slates of a user a minute (max_slates_per_minute)",
        )
        minutes = (came_at // 60_000).tolist()
        for place in np.flatnonzero(parsed.batch.events.event["kind"] == IMPRESSION).tolist():
            user, record = parsed.batch.user[place], parsed.batch.record(place)
            minute = minutes[record]
            counted, n = self._counts.get(user, (minute, 0))
            n = n + 1 if counted == minute else 1
            self._counts[user] = minute, n
            if n > self._per_minute:
                parsed.refuse(record, why)
