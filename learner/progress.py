"""What a turn of the learning loop tells of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from learner.log.health import HEALTHY, Health

STAGES = ("parse", "read", "apply", "dead_letters", "store", "items", "commit")
"""Of a turn: messages to events; records, and positions, from the store; the learning step; what is bad into its topic;
records into the store by compare-and-set; items' own turn; positions compared, now and then, and offsets committed.

While the store or the log is away, the stage that waits for it is the one that takes long."""


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
        By stage, from poll to commit: see `STAGES`; only those that there was something to do in.
    health
        What keeps the log from being read, and what of it is lost.
    """

    messages: int
    counts: Counter[str]
    bad: Counter[str]
    lags: Mapping[str, int]
    freshness_ms: float | None
    seconds: Mapping[str, float]
    health: Health = HEALTHY

    @property
    def lag(self) -> int:
        """Messages still to be polled."""
        return sum(self.lags.values())
