"""How far the rebuilding of a store from a log has come: positions of its shards, as those in the log are.

A shard that is being rebuilt has records of all that the log told, and no position in it yet: a learner would apply the
log a second time. So each shard says from the first record on that it is not whole, and no more in the transaction that
gives it its positions. What takes a shard back takes this back too (docs/adr/0044-records-from-a-log-at-rest.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from learner.log.position import NOTHING, Mark, Partition

USERS, ITEMS = (Partition(b"rebuild".ljust(16, b"\0"), number) for number in range(2))
"""What a shard calls how far its users, and its items, are rebuilt: a mark whose epoch stands for what from, and whose
offset is the hash of the last one that is stored, -1 before the first."""
WHOLE = 1 << 64
"""The offset of a shard that has all, and its positions in the log."""


class UnfinishedRebuild(ValueError):
    """A store has records of a log, and does not say yet how far in the log that is: nobody may learn into it."""


def goal(partition: Partition) -> Partition:
    """What a shard calls how far history goes in a partition, while it is rebuilt from that."""
    return Partition(blake2b(partition.topic_id, digest_size=16, key=b"rebuild").digest(), partition.number)


def require_whole(model: str, marks: Iterable[Mark]) -> None:
    """See that no shard is being rebuilt.

    Parameters
    ----------
    marks
        What shards have for `USERS`.

    Raises
    ------
    UnfinishedRebuild
        If one is.
    """
    if any(mark != NOTHING and mark.offset != WHOLE for mark in marks):
        raise UnfinishedRebuild(
            f"the store of model {model!r} is being rebuilt from a log, and holds a part of that: expected a "
            "`freshet rebuild` that has come to its end; started again with the same arguments it goes on"
        )
