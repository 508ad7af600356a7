"""How far shards of items are in the feeds of shards of users, as arrays and as the bytes that a store keeps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from learner.log.position import NOTHING, Mark, Partition

Marks = NDArray[np.int64]
"""A mark for each feed, of each of some shards: shape (shards, feeds, 2)."""

CURSORS = Partition(b"feeds".ljust(16, b"\0"), 0)
"""What a shard of items calls its position in the feeds: a mark for each, of a block's number."""


@lru_cache
def source(partition: Partition) -> Partition:
    """What a shard of items calls its position in a log partition, as feeds tell it: a mark for each feed."""
    return Partition(blake2b(partition.topic_id, digest_size=16, key=b"feeds").digest(), partition.number)


def pack(marks: Marks) -> list[bytes]:
    """What a store keeps for each shard; nothing where there are no marks."""
    packed, is_there = marks.astype("<i8").tobytes(), (marks != NOTHING).any(axis=(1, 2)).tolist()
    size = len(packed) // len(marks)
    return [packed[i * size : (i + 1) * size] if there else b"" for i, there in enumerate(is_there)]


def unpack(held: Sequence[bytes], feeds: int) -> Marks:
    """What a store has kept for each shard."""
    nothing = np.full((feeds, 2), NOTHING, "<i8").tobytes()
    packed = bytearray().join(one or nothing for one in held)
    return np.frombuffer(packed, "<i8").reshape(len(held), feeds, 2)


def is_before(marks: Marks, mark: Mark) -> NDArray[np.bool_]:
    """Which of some marks, shape (..., 2), are before one."""
    epoch, offset = marks[..., 0], marks[..., 1]
    found: NDArray[np.bool_] = (epoch < mark.epoch) | ((epoch == mark.epoch) & (offset < mark.offset))
    return found


def least(cursors: Marks) -> dict[int, int]:
    """By feed the number of the block up to which all of some shards have it."""
    return dict(enumerate(np.maximum(cursors[..., 1].min(axis=0), 0).tolist()))
