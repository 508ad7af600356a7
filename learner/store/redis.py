"""The store on Redis: one string a user, one compare-and-set script a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from learner.store import StoreUnavailable, Write

SHARDS = 16
"""Hash tags that keys are spread over. Users of one shard can be read and written in one command on Redis Cluster."""
KEYS_PER_SCRIPT = 500

# KEYS: users. ARGV: seconds to live, then for each key the revision expected (none: no record) and the new value.
# GETRANGE, unlike MGET, fails on a key that is not a string instead of calling it absent.
_COMPARE_AND_SET = """
local done = {}
for i, key in ipairs(KEYS) do
  if redis.call('GETRANGE', key, 8, 15) == ARGV[2 * i] then
    redis.call('SET', key, ARGV[2 * i + 1], 'EX', ARGV[1])
    done[i] = 1
  else
    done[i] = 0
  end
end
return done
"""

# Redis is there but cannot serve yet, or not any more: it may later.
_TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)


class RedisStore:
    """See `learner.store.Store`."""

    def __init__(self, url: str, ttl_s: int, timeout_s: float) -> None:
        # One retry of a broken connection: pooled ones die when Redis restarts. It is safe because reads are reads and
        # the only write is a compare-and-set, which reports a conflict where its first try had been applied.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            health_check_interval=30,
            decode_responses=False,
        )
        self._script = self._redis.register_script(_COMPARE_AND_SET)
        self._ttl_s = ttl_s

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Read records, in one round trip."""
        found: list[bytes | None] = [None] * len(user_ids)
        shards = list(_by_shard(user_ids))
        if not shards:
            return found
        with _translated():
            if len(shards) == 1:
                replies: list[Any] = [self._redis.mget([record_key(user_ids[i]) for i in shards[0]])]
            else:
                pipeline = self._redis.pipeline(transaction=False)
                for places in shards:
                    pipeline.mget([record_key(user_ids[i]) for i in places])
                replies = pipeline.execute()
        for places, values in zip(shards, replies, strict=True):
            for i, value in zip(places, values, strict=True):
                found[i] = value
        return found

    def commit(self, writes: Sequence[Write]) -> list[bool]:
        """Store what is still expected, in one round trip."""
        done = [False] * len(writes)
        calls = [
            places[start : start + KEYS_PER_SCRIPT]
            for places in _by_shard([write.user_id for write in writes])
            for start in range(0, len(places), KEYS_PER_SCRIPT)
        ]
        if not calls:
            return done
        with _translated():
            pipeline = self._redis.pipeline(transaction=False)
            for places in calls:
                chosen = [writes[i] for i in places]
                self._script(
                    keys=[record_key(write.user_id) for write in chosen],
                    args=[self._ttl_s, *(part for write in chosen for part in (write.expected_revision, write.value))],
                    client=pipeline,
                )
            replies = pipeline.execute()
        for places, flags in zip(calls, replies, strict=True):
            for i, flag in zip(places, flags, strict=True):
                done[i] = flag == 1
        return done

    def ping(self) -> None:
        """Return if Redis answers."""
        with _translated():
            self._redis.ping()

    def close(self) -> None:
        """Close the pool."""
        self._redis.close()


def record_key(user_id: str) -> str:
    """The Redis key of a user's record."""
    return f"freshet:{{{crc32(user_id.encode()) % SHARDS:02d}}}:user:{user_id}"


def _by_shard(user_ids: Sequence[str]) -> Iterator[list[int]]:
    """The places of the users of each shard in turn."""
    shards: dict[int, list[int]] = {}
    for i, user_id in enumerate(user_ids):
        shards.setdefault(crc32(user_id.encode()) % SHARDS, []).append(i)
    yield from shards.values()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _TRANSIENT as exc:
        raise StoreUnavailable(f"Redis: {type(exc).__name__}: {exc}") from exc
