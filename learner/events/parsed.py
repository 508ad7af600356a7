"""What comes of reading records: events, and what is wrong with others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from learner.events.microbatch import BAD, Microbatch
from learner.events.wire import BadEvent


class Parsed(NamedTuple):
    """Events as read: a microbatch, and by the number of its record what is wrong with each one that is bad."""

    batch: Microbatch
    bad: dict[int, BadEvent]

    def refuse(self, record: int, why: BadEvent) -> None:
        """Make what came in a record a bad event: of a slate that says what was clicked, the clicks too."""
        source, rewards = self.batch.source, self.batch.rewards
        for place in [record] if source is None else np.flatnonzero(source == record).tolist():
            self.batch.user[place] = ""
            self.batch.events.event["kind"][place] = BAD
            if place in rewards:
                rewards.pop(place)
        self.bad[record] = why

    def passed_over(self) -> int:
        """How many records are nothing to learn from, and not bad."""
        nobodys = [place for place, user in enumerate(self.batch.user) if not user and place not in self.batch.rewards]
        records = set(map(self.batch.record, nobodys))
        return len(records) - len(self.bad)
