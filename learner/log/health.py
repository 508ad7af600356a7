"""What keeps a reader from reading, and what it can no longer read."""

from __future__ import annotations

from typing import NamedTuple


class Unreadable(NamedTuple):
    """A partition that stands still at an offset that cannot be read; others go on."""

    topic: str
    partition: int
    offset: int
    cause: str

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition} cannot be read at offset {self.offset}: {self.cause}"


class Lost(NamedTuple):
    """Messages that the log dropped before they were read.

    Attributes
    ----------
    first, last
        Their offsets, from the first that was ever lost to the last.
    events
        How many were found lost this time.
    at
        When that was found, epoch ms.
    here
        Whether this reader found it; otherwise the group knew.
    """

    topic: str
    partition: int
    first: int
    last: int
    events: int
    at: int
    here: bool = True

    def __str__(self) -> str:
        return (
            f"{self.topic}/{self.partition}: events up to offset {self.last}, from {self.first} on, were dropped by "
            "retention before they were read"
        )


class Health(NamedTuple):
    """How a reader is.

    `missing` are topics that do not exist; `unreadable` and `lost` are of its partitions.
    """

    unreadable: tuple[Unreadable, ...] = ()
    missing: tuple[str, ...] = ()
    lost: tuple[Lost, ...] = ()


HEALTHY = Health()
