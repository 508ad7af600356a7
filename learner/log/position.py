"""Where in the log an event stands."""

from __future__ import annotations

from typing import NamedTuple


class Partition(NamedTuple):
    """A log partition, by the id of its topic: one that was deleted and made again is another one."""

    topic_id: bytes
    number: int


class Mark(NamedTuple):
    """How far something is in a partition: the leader epoch and offset of the last event it has. In the log's order.

    A log that has lost its end goes on at lower offsets, under a later epoch.
    """

    epoch: int
    offset: int

    @property
    def data(self) -> bytes:
        """What a store keeps of it: nothing of `NOTHING`."""
        return b"" if self == NOTHING else b"%d/%d" % self

    @classmethod
    def of(cls, data: bytes) -> Mark:
        """The mark that a store has kept."""
        return cls(*map(int, data.split(b"/"))) if data else NOTHING


NOTHING = Mark(-(2**31), -1)
"""Before every event."""


class Position(NamedTuple):
    """Where in the log an event stands; `epoch` is that of the leader that took it, 0 where a log has no leaders."""

    partition: Partition
    offset: int
    epoch: int = 0

    @property
    def mark(self) -> Mark:
        """How far one is who has this event."""
        return Mark(self.epoch, self.offset)
