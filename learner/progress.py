"""What a turn of the learning loop tells of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from learner.log.health import HEALTHY, Health


@dataclass(frozen=True)
class Progress:
    """What one turn of the loop did.

    Attributes
    ----------
    messages
        Polled in this turn.
    counts
        As in `learner.step.apply.Applied`, with ``conflicts`` (writes that another learner had beaten) and ``retries``.
    bad
        Dead letters by reason.
    lags
        Messages still to be polled of each partition, named ``topic/number``.
    freshness_ms
        Age of the oldest message of the batch when its record was stored; None if there is none with a timestamp.
    seconds
        From poll to commit.
    health
        What keeps the log from being read, and what of it is lost.
    """

    messages: int
    counts: Counter[str]
    bad: Counter[str]
    lags: Mapping[str, int]
    freshness_ms: float | None
    seconds: float
    health: Health = HEALTHY

    @property
    def lag(self) -> int:
        """Messages still to be polled."""
        return sum(self.lags.values())
