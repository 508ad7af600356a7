"""The store on Redis or Redis Cluster: a string a user and a hash of positions a shard, one script a transaction."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from zlib import crc32

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from learner.log.position import NOTHING, Mark, Partition
from learner.record import DamagedRecord
from learner.store import KEY_PREFIX, SCANNED_TOGETHER, Lifetimes, Transaction
from learner.store.redis_errors import translated

SHARDS = 16
"""Hash tags that keys are spread over. Users of one shard can be read and written in one command on Redis Cluster."""

# KEYS: positions, users. ARGV: the number of moves; for each of them its partition, the mark expected (none: no such
# field) and the new one; for each user the identity expected (none: no record), the new value (none: as it is), and
# seconds to live (0: for ever). Answers 1 if all is done, 0 if something else was held, -i if the key of the i-th user
# does not hold a string. All is read before anything is written: Redis may refuse a script's first write, and no other.
_COMPARE_AND_SET = """
local n = tonumber(ARGV[1])
for i = 2, 3 * n - 1, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
for i = 2, #KEYS do
  local held = redis.pcall('GETRANGE', KEYS[i], 4, 15)
  if type(held) == 'table' then
    return 1 - i
  elseif held ~= ARGV[3 * (n + i) - 4] then
    return 0
  end
end
for i = 2, 3 * n - 1, 3 do
  if ARGV[i + 1] ~= ARGV[i + 2] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  end
end
for i = 2, #KEYS do
  local at = 3 * (n + i) - 4
  if ARGV[at + 1] == '' then
    -- Only compared.
  elseif ARGV[at + 2] == '0' then
    redis.call('SET', KEYS[i], ARGV[at + 1])
  else
    redis.call('SET', KEYS[i], ARGV[at + 1], 'EX', ARGV[at + 2])
  end
end
return 1
"""

# KEYS: the owner's key. ARGV: who claims it, or nothing. Answers who has it.
_CLAIM = """
local held = redis.call('GET', KEYS[1])
if not held and ARGV[1] ~= '' then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return held
"""


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

    def shard_of(self, user_id: str) -> int:
        """By a checksum of the id."""
        return shard_of(user_id)

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Read records, in one round trip."""
        found: list[bytes | None] = [None] * len(user_ids)
        shards = list(_by_shard(user_ids))
        if not shards:
            return found
        with translated():
            if len(user_ids) == 1:
                # GET, unlike MGET, does not call a key absent that holds something else.
                return [self._get(user_ids[0])]
            pipeline = self._redis.pipeline(transaction=False)
            for places in shards:
                # Not `mget`, which redis-py does not let into a cluster's pipeline: these keys share their slot.
                pipeline.execute_command("MGET", *(self._key(user_ids[i]) for i in places))
            replies = pipeline.execute()
        for places, values in zip(shards, replies, strict=True):
            for i, value in zip(places, values, strict=True):
                found[i] = value
        return found

    def scan(self) -> Iterator[list[tuple[str, bytes]]]:
        """Walk over the keys, of a cluster those of node after node, and read the records of some users at a time."""
        with translated():
            keys = self._redis.scan_iter(match=f"{self._prefix}:{{*}}:user:*", count=SCANNED_TOGETHER)
        begin = len(record_key("", self._prefix))
        while True:
            with translated():
                found: list[bytes] = list(islice(keys, SCANNED_TOGETHER))
            if not found:
                return
            user_ids = [key[begin:].decode(errors="replace") for key in found]
            # A pattern also fits keys that are none of ours.
            ours = [one for one, key in zip(user_ids, found, strict=True) if self._key(one).encode() == key]
            values = zip(ours, self.load(ours), strict=True)
            yield [(user_id, value) for user_id, value in values if value is not None]

    def positions(self, partitions: Sequence[Partition]) -> list[list[Mark]]:
        """Read positions, in one round trip."""
        if not partitions:
            return [[]] * SHARDS
        fields = [_field(partition) for partition in partitions]
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.execute_command("HMGET", positions_key(shard, self._prefix), *fields)
            replies = pipeline.execute()
        return [[_read_mark(held) for held in reply] for reply in replies]

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Store what is still expected, in one round trip."""
        if not transactions:
            return []
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for shard, writes, moves in transactions:
                # The script itself and not its hash: a Redis that restarted does not know the hash.
                pipeline.execute_command(
                    "EVAL",
                    _COMPARE_AND_SET,
                    1 + len(writes),
                    positions_key(shard, self._prefix),
                    *(self._key(write.user_id) for write in writes),
                    len(moves),
                    *(
                        part
                        for move in moves
                        for part in (_field(move.partition), _write_mark(move.held), _write_mark(move.reached))
                    ),
                    *(
                        part
                        for write in writes
                        for part in (write.expected_identity, write.value or b"", self._lifetimes.of(write))
                    ),
                )
            replies = pipeline.execute()
        for transaction, reply in zip(transactions, replies, strict=True):
            if reply < 0:
                raise self._wrong_type(transaction.writes[-reply - 1].user_id)
        return [reply == 1 for reply in replies]

    def forget(self) -> None:
        """Do nothing: nothing is remembered."""

    def owner(self, claim: bytes | None = None) -> bytes | None:
        """Read the owner, or become it."""
        with translated():
            held: bytes | None = self._redis.eval(_CLAIM, 1, self._owner_key, claim or b"")
        return held

    def ping(self) -> None:
        """Return if Redis answers, and lets us run a script on our keys."""
        with translated():
            # It says, too, whether what is written can be kept; a script that only reads does not.
            self._redis.ping()
            self._redis.eval("return redis.call('EXISTS', KEYS[1])", 1, self._owner_key)

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

    @property
    def _owner_key(self) -> str:
        return f"{self._prefix}:owner"

    def _key(self, user_id: str) -> str:
        return record_key(user_id, self._prefix)

    def _wrong_type(self, user_id: str) -> DamagedRecord:
        return DamagedRecord(user_id, f"the Redis key {self._key(user_id)!r} does not hold a string")

    def _get(self, user_id: str) -> bytes | None:
        try:
            value: bytes | None = self._redis.get(self._key(user_id))
        except redis.ResponseError as exc:
            if str(exc).startswith("WRONGTYPE"):
                raise self._wrong_type(user_id) from exc
            raise
        return value


def shard_of(user_id: str) -> int:
    """Which shard a user is in."""
    return crc32(user_id.encode()) % SHARDS


def record_key(user_id: str, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of a user's record."""
    return f"{prefix}:{{{shard_of(user_id):02d}}}:user:{user_id}"


def positions_key(shard: int, prefix: str = KEY_PREFIX) -> str:
    """The Redis key of a shard's positions: a hash, ``<topic id>/<partition>`` to ``<leader epoch>/<offset>``."""
    return f"{prefix}:{{{shard:02d}}}:positions"


def _field(partition: Partition) -> str:
    return f"{partition.topic_id.hex()}/{partition.number}"


def _write_mark(mark: Mark) -> str:
    return "" if mark == NOTHING else f"{mark.epoch}/{mark.offset}"


def _read_mark(held: bytes | None) -> Mark:
    return Mark(*map(int, held.split(b"/"))) if held else NOTHING


def _by_shard(user_ids: Sequence[str]) -> Iterator[list[int]]:
    """The places of the users of each shard in turn."""
    shards: dict[int, list[int]] = {}
    for i, user_id in enumerate(user_ids):
        shards.setdefault(shard_of(user_id), []).append(i)
    yield from shards.values()


def connect(url: str, timeout_s: float) -> Any:
    """A client; a cluster's URL may name several nodes, and its client asks them for their slots at once."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # One retry of a broken connection: pooled ones die when Redis restarts. It is safe because reads are reads and
        # the only write is a compare-and-set, which reports a conflict where its first try had been applied.
        "retry": Retry(NoBackoff(), 1, (redis.ConnectionError,)),
        "health_check_interval": 30,
        "protocol": 3,
    }
    if not is_cluster(url):
        return redis.Redis.from_url(url, **options)
    parts = urlsplit(url.replace("+cluster", "", 1))
    account, _, places = parts.netloc.rpartition("@")
    first, *others = places.split(",")
    # A few nodes may be named, in case one of them is away when we start.
    named = (one.rpartition(":") for one in others)
    nodes = [ClusterNode(host, int(port)) for host, _, port in named]  # type: ignore[no-untyped-call]
    one = urlunsplit(parts._replace(netloc=f"{account}@{first}" if account else first))
    return redis.RedisCluster.from_url(one, startup_nodes=nodes, **options)


def is_cluster(url: str) -> bool:
    """Whether a URL names a Redis Cluster."""
    return url.partition("://")[0] in {"redis+cluster", "rediss+cluster"}
