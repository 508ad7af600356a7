"""Where in the log an event stands."""

from __future__ import annotations

from typing import NamedTuple


class Partition(NamedTuple):
    """A log partition, by the id of its topic: one that was deleted and made again is another one."""

    topic_id: bytes
    number: int


class Position(NamedTuple):
    """Where in the log an event stands."""

    partition: Partition
    offset: int
