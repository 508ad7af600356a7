"""The store on Redis or Redis Cluster: a string a record, a hash of positions and a stream a shard."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import redis

from learner.log.position import Partition
from learner.record import DamagedRecord
from learner.record.sums import HourSums, hours_of
from learner.store import KEY_PREFIX, SCANNED_TOGETHER, Block, Lifetimes, Transaction, Write
from learner.store.redis_client import connect, is_cluster
from learner.store.redis_errors import translated
from learner.store.redis_feed import read_feeds, stream_id
from learner.store.redis_keys import (
    SHARDS,
    feed_key,
    positions_key,
    record_key,
    record_keys,
    shard_of,
    sums_key,
    versions_key,
)
from learner.store.redis_pipeline import RedisPipeline, kept_alive
from learner.store.redis_scripts import CLAIM, COMPARE_AND_SET, COMPARE_AND_SET_SHA, TELL
from learner.store.redis_sums import cells_added, read_sums


class RedisStore:
    """See `learner.store.Store`."""

    def __init__(self, url: str, lifetimes: Lifetimes, timeout_s: float, key_prefix: str = KEY_PREFIX) -> None:
        self._url = url
        self._prefix = key_prefix
        self._timeout_s = timeout_s
        self._lifetimes = lifetimes
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def shards(self) -> int:
        """As many as there are hash tags."""
        return SHARDS

    @staticmethod
    def shard_of(id: str) -> int:
        """By a checksum of the id."""
        return shard_of(id)

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        """Read records, in one round trip."""
        found: list[bytes | None] = [None] * len(ids)
        shards = _by_shard(ids)
        if not shards:
            return found
        with translated():
            if len(ids) == 1:
                # GET, unlike MGET, does not call a key absent that holds something else.
                return [self._get(ids[0], effect)]
            pipeline = self._redis.pipeline(transaction=False)
            for shard, places in shards.items():
                # Not `mget`, which redis-py does not let into a cluster's pipeline: these keys share their slot.
                head = record_key("", self._prefix, effect, shard)
                pipeline.execute_command("MGET", *[head + ids[i] for i in places])
            replies = pipeline.execute()
        for places, values in zip(shards.values(), replies, strict=True):
            for i, value in zip(places, values, strict=True):
                found[i] = value
        return found

    def scan(self, effect: str = "user") -> Iterator[list[tuple[str, bytes]]]:
        """Walk over the keys, of a cluster those of node after node, and read some records at a time."""
        with translated():
            keys = self._redis.scan_iter(match=f"{self._prefix}:{{*}}:{effect}:*", count=SCANNED_TOGETHER)
        begin = len(record_key("", self._prefix, effect))
        while True:
            with translated():
                found: list[bytes] = list(islice(keys, SCANNED_TOGETHER))
            if not found:
                return
            ids = [key[begin:].decode(errors="replace") for key in found]
            # A pattern also fits keys that are none of ours.
            ours = [one for one, key in zip(ids, found, strict=True) if self._key(one, effect).encode() == key]
            values = zip(ours, self.load(ours, effect), strict=True)
            yield [(one, value) for one, value in values if value is not None]

    def positions(self, partitions: Sequence[Partition]) -> list[list[bytes]]:
        """Read positions, in one round trip."""
        replies = self._of_each_shard("HMGET", positions_key, *map(_field, partitions)) if partitions else [[]] * SHARDS
        return [[held or b"" for held in reply] for reply in replies]

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Store what is still expected, in one round trip."""
        if not transactions:
            return []
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            script = ["EVAL", COMPARE_AND_SET]
            for shard, writes, moves, feed, sums in transactions:
                head = {write.effect: record_key("", self._prefix, write.effect, shard) for write in writes}
                pipeline.execute_command(
                    *script,
                    2 + len(writes) + len(sums),
                    positions_key(shard, self._prefix),
                    feed_key(shard, self._prefix),
                    *[head[write.effect] + write.id for write in writes],
                    *[sums_key(shard, one.hour, self._prefix) for one in sums],
                    len(moves),
                    len(writes),
                    feed,
                    *(part for move in moves for part in (_field(move.partition), move.held, move.reached)),
                    *[
                        part
                        for write in writes
                        for part in (write.expected_identity, write.value or b"", self._lifetimes.of(write))
                    ],
                    *[part for one in sums for part in (one.hour, cells_added(one.cells))],
                )
                if not is_cluster(self._url):
                    # A Redis that restarted has forgotten the script, so it comes once a round trip, and its hash after
                    # that: 0.77 of Redis's processor time for a write a shard, 0.88 for four, the same for thirty.
                    script = ["EVALSHA", COMPARE_AND_SET_SHA]
            replies = pipeline.execute()
        for transaction, reply in zip(transactions, replies, strict=True):
            if reply < 0:
                raise self._wrong_type(transaction.writes[-reply - 1])
        return [reply == 1 for reply in replies]

    def read_feed(self, behind: Mapping[int, int], limit: int) -> dict[int, list[Block]]:
        """Read feeds, in one round trip."""
        if not behind:
            return {}
        keys = {feed_key(shard, self._prefix): number for shard, number in behind.items()}
        with translated():
            found = read_feeds(self._redis, keys, limit, together=not is_cluster(self._url))
        return dict(zip(behind, found.values(), strict=True))

    def trim_feed(self, shard: int, number: int) -> None:
        """Drop blocks; the stream remembers the id of the last one."""
        with translated():
            self._redis.execute_command("XTRIM", feed_key(shard, self._prefix), "MINID", stream_id(number + 1))

    def sums(self, experiment: int | None = None) -> list[HourSums]:
        """Read sums, in one round trip."""
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.execute_command("MGET", *[sums_key(shard, one, self._prefix) for one in hours_of(experiment)])
            replies = pipeline.execute()
        return [read_sums(shard, held) for shard, reply in enumerate(replies) for held in reply if held]

    def forget(self) -> None:
        """Do nothing: nothing is remembered."""

    def owner(self, claim: bytes = b"", instead_of: bytes = b"") -> bytes | None:
        """Read the owner, or become it."""
        with translated():
            held: bytes | None = self._redis.eval(CLAIM, 1, self._owner_key, claim, instead_of)
        return held

    def keep_version(self, name: str, data: bytes) -> None:
        """Keep it, in one round trip."""
        self._of_each_shard("HSET", versions_key, name, data)

    def versions(self) -> list[dict[str, bytes]]:
        """Read them, in one round trip."""
        replies = self._of_each_shard("HGETALL", versions_key)
        return [{name.decode(): data for name, data in reply.items()} for reply in replies]

    def keep_model(self, name: str, data: bytes) -> None:
        """Keep it in a hash."""
        with translated():
            self._redis.hset(f"{self._prefix}:models", name, data)

    def models(self) -> dict[str, bytes]:
        """Read them, in one round trip."""
        with translated():
            held: dict[bytes, bytes] = self._redis.hgetall(f"{self._prefix}:models")
        return {name.decode(): data for name, data in held.items()}

    def tell(self, name: str, status: bytes, ttl_s: int) -> None:
        """Keep a status, and no others that are over, in one script; without learners the keys expire."""
        now = time.time()
        with translated():
            self._redis.eval(TELL, 2, *self._told_keys, name, status, now, now + ttl_s, ttl_s)

    def told(self) -> list[bytes]:
        """Read statuses, in the order of their names."""
        with translated():
            held: dict[bytes, bytes] = self._redis.hgetall(self._told_keys[0])
        return [held[name] for name in sorted(held)]

    def pipeline(self) -> RedisPipeline | None:
        """One connection for an event loop; None for a cluster, and by TLS, whose sockets a loop has to open."""
        if is_cluster(self._url) or self._url.startswith("rediss://"):
            return None
        return RedisPipeline(self._socket, self._keys, self._timeout_s)

    def ping(self) -> None:
        """Return if Redis answers, and lets us run a script on our keys, of each shard."""
        with translated():
            # PING says, too, whether what is written can be kept; a script that only reads does not.
            self._redis.ping()
            self._redis.eval("return redis.call('EXISTS', KEYS[1])", 1, self._owner_key)
            self._of_each_shard("EXISTS", versions_key)  # a node of a cluster, at a plain URL, has some alone

    def close(self) -> None:
        """Close the pool."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    @property
    def _redis(self) -> Any:
        """The client; a cluster's asks the servers for their slots as soon as it is made."""
        with self._lock:
            if self._client is None:
                self._client = connect(self._url, self._timeout_s)
            return self._client

    def _of_each_shard(self, command: str, key: Callable[[int, str], str], *arguments: object) -> list[Any]:
        """What a command answers on a key of each shard, in one round trip."""
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.execute_command(command, key(shard, self._prefix), *arguments)
            replies: list[Any] = pipeline.execute()
        return replies

    @property
    def _owner_key(self) -> str:
        return f"{self._prefix}:owner"

    @property
    def _told_keys(self) -> tuple[str, str]:
        """In one slot of a cluster."""
        return f"{self._prefix}:{{told}}:status", f"{self._prefix}:{{told}}:until"

    def _key(self, id: str, effect: str) -> str:
        return record_key(id, self._prefix, effect)

    def _keys(self, ids: Sequence[str], effect: str) -> list[str]:
        return record_keys(ids, self._prefix, effect)

    def _socket(self) -> socket.socket:
        """A socket that redis-py has connected and logged in, and does not keep."""
        with translated():
            pool = self._redis.connection_pool
            # Not of the pool, which has room for a hundred and would never have it back.
            connection = pool.connection_class(**pool.connection_kwargs)
            connection.connect()
        connected: socket.socket = connection._sock
        connection._sock = None
        return kept_alive(connected)

    def _wrong_type(self, write: Write) -> DamagedRecord:
        key = self._key(write.id, write.effect)
        return DamagedRecord(write.id, f"the Redis key {key!r} does not hold a string", write.effect)

    def _get(self, id: str, effect: str) -> bytes | None:
        try:
            value: bytes | None = self._redis.get(self._key(id, effect))
        except redis.ResponseError as exc:
            if str(exc).startswith("WRONGTYPE"):
                raise self._wrong_type(Write(id, None, None, effect=effect)) from exc
            raise
        return value


def _field(partition: Partition) -> str:
    return f"{partition.topic_id.hex()}/{partition.number}"


def _by_shard(ids: Sequence[str]) -> dict[int, list[int]]:
    """The places of those of each shard."""
    shards: dict[int, list[int]] = {}
    for i, one in enumerate(ids):
        shards.setdefault(shard_of(one), []).append(i)
    return shards
