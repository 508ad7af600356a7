"""The order in which a reader of several partitions takes their records: that of the records' times.

Kafka says nothing of the order of records in different partitions. One that is read far ahead of another gives up
clicks whose impressions are still to be read there. So the oldest head is taken first, and while a partition that
has more to read has nothing at hand, the others wait for it: as the tasks of Kafka Streams do (KIP-353, KIP-695).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush, merge
from typing import Any, Protocol, TypeVar

from learner.log import Entry, Message

MAX_SKEW_MS = 1_000
"""How far a partition may be read ahead of one that is behind and has nothing at hand."""

NEVER = float("-inf")


class Queue(Protocol):
    """What is at hand of a partition."""

    def head(self) -> float | None:
        """The time of the next record, whole ms, `NEVER` for one without; None if nothing is at hand."""
        ...

    def take(self, until: float, limit: int) -> list[Any]:
        """Take records up to the first that is later than a time, at least one; fewer, if there are fewer decoded."""
        ...

    def is_behind(self) -> bool:
        """Whether the others have to wait for it while nothing is at hand."""
        ...

    def reached(self) -> float:
        """The time of the record that was taken last, `NEVER` before the first."""
        ...


Q = TypeVar("Q", bound=Queue)


def take_in_time_order(queues: Sequence[Q], limit: int) -> Iterator[tuple[Q, list[Any]]]:
    """Take up to `limit` records, the oldest head first; of equally old ones that of the earlier queue.

    They come in runs of one queue. Within a queue their order is never changed. Ends sooner where nothing may be taken
    before a queue that is behind has something at hand.
    """
    heads: list[tuple[float, int]] = []
    until = float("inf")
    for rank, queue in enumerate(queues):
        if (head := queue.head()) is not None:
            heappush(heads, (head, rank))
        elif queue.is_behind():
            until = min(until, queue.reached() + MAX_SKEW_MS)
    while limit > 0 and heads and heads[0][0] <= until:
        _, rank = heappop(heads)
        queue = queues[rank]
        # Of a time that another queue's head has too, only what comes before it.
        following = heads[0][0] - (heads[0][1] < rank) if heads else until
        run = queue.take(min(until, following), limit)
        yield queue, run
        limit -= len(run)
        if (head := queue.head()) is not None:
            heappush(heads, (head, rank))
        elif queue.is_behind():
            until = min(until, queue.reached() + MAX_SKEW_MS)


def in_time_order(by_partition: Iterable[Sequence[Message]]) -> list[Message]:
    """The messages of several partitions as one sequence: the oldest head first."""
    return list(merge(*by_partition, key=lambda message: message.timestamp))


def times(entries: Sequence[Entry], now: int) -> list[int]:
    """When entries count as appended, epoch ms: such that those of different topics are read in the order given."""
    stamped = []
    for before, entry in zip([None, *entries], entries, strict=False):
        if before is not None and before.topic != entry.topic:
            now += 1
        stamped.append(now)
    return stamped
