"""What a turn of the learning loop tells of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from learner.events.wire import BadEvent
from learner.log.health import HEALTHY, Health

STAGES = ("parse", "read", "apply", "dead_letters", "store", "items", "shadows", "commit")
"""Of a turn: messages to events; records, and positions, from the store; the learning step; what is bad into its topic;
records into the store by compare-and-set; items' own turn; all that shadows do; positions compared, now and then, and
offsets committed.

While the store or the log is away, the stage that waits for it is the one that takes long."""


@dataclass(frozen=True)
class Beside:
    """What a shadow did in a turn.

    Attributes
    ----------
    counts
        As those of `Progress`.
    refused
        Events that it could not learn, by reason: nobody else is told.
    """

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def refuse(self, refused: Mapping[int, BadEvent]) -> None:
        """Count some."""
        self.refused.update(why.reason for why in refused.values())


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
    beside
        What shadows did, by their names.
    dropped
        Why shadows learn no more, by their names.
    waiting
        Users of the first model with a window that has not ended, as far as is known: see `learner.sweeps`.
    """

    messages: int
    counts: Counter[str]
    bad: Counter[str]
    lags: Mapping[str, int]
    freshness_ms: float | None
    seconds: Mapping[str, float]
    health: Health = HEALTHY
    beside: Mapping[str, Beside] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    waiting: int = 0

    @property
    def lag(self) -> int:
        """Messages still to be polled."""
        return sum(self.lags.values())
