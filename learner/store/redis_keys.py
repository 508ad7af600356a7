"""Keys in Redis: those of a shard have its number as their hash tag."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

from learner.record.sums import GROUPS, place_of
from learner.store import KEY_PREFIX

SHARDS = GROUPS
"""Hash tags that keys are spread over. Users of one shard can be read and written in one command on Redis Cluster."""


def shard_of(id: str) -> int:
    """Which shard a user or an item is in."""
    return crc32(id.encode()) % SHARDS


def record_key(id: str, prefix: str = KEY_PREFIX, effect: str = "user", shard: int | None = None) -> str:
    """The Redis key of a user's or an item's record; whoever knows its shard need not have it worked out again."""
    return f"{prefix}:{{{shard_of(id) if shard is None else shard:02d}}}:{effect}:{id}"


def record_keys(ids: Sequence[str], prefix: str, effect: str) -> list[str]:
    """As `record_key`, of many: a third of the time."""
    heads = _heads(prefix, effect)
    return [heads[crc32(one.encode()) % SHARDS] + one for one in ids]


@lru_cache
def _heads(prefix: str, effect: str) -> list[str]:
    return [record_key("", prefix, effect, shard) for shard in range(SHARDS)]


def feed_key(shard: int, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of a shard's feed: a stream of blocks."""
    return f"{prefix}:{{{shard:02d}}}:feed"


def positions_key(shard: int, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of a shard's positions: a hash, ``<topic id>/<partition>`` to ``<leader epoch>/<offset>``."""
    return f"{prefix}:{{{shard:02d}}}:positions"


def versions_key(shard: int, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of the versions of models that a shard knows: a hash, by name."""
    return f"{prefix}:{{{shard:02d}}}:versions"


def sums_key(shard: int, hour: int, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of sums of a shard's users, of an hour or all of an experiment; see `learner.store.redis_sums`."""
    return f"{prefix}:{{{shard:02d}}}:sums:{place_of(hour)}"
