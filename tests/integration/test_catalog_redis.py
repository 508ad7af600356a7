"""The catalog on real Redis: entries stay, are read in one go, and are written together with their positions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from learner.log.position import Mark, Partition
from learner.model.catalog import removed
from learner.store import CATALOG, FOR_EVER, Move, Store, Transaction, Write, open_store
from learner.store.redis_keys import positions_key, record_key
from tests.integration.test_redis_pipeline import connected
from tests.servers import RedisServer

DB = 8
TTL_S, TOMBSTONE_S = 1_000, 5_000
PLACE = Partition(b"t" * 16, 0)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    one = redis.Redis.from_url(redis_server.url(DB))
    one.flushdb()
    yield one
    one.close()


@pytest.fixture
def store(redis_server: RedisServer, client: Any) -> Iterator[Store]:
    one = open_store(redis_server.url(DB), TTL_S, tombstone_ttl_s=TOMBSTONE_S)
    yield one
    one.close()


def entry(at: int, body: bytes = b"\x80") -> bytes:
    return removed(at) + body


def put(store: Store, item: str, expected: bytes | None, value: bytes, held: Mark | None, reached: Mark) -> bool:
    write = Write(item, expected, value, len(value) == len(removed(0)), CATALOG, FOR_EVER)
    move = Move(PLACE, held.data if held else b"", reached.data)
    return store.commit([Transaction(store.shard_of(item), [write], [move])]) == [True]


def test_an_entry_stays_for_ever_and_one_that_was_removed_as_long_as_a_tombstone(store: Store, client: Any) -> None:
    assert put(store, "item:a", None, entry(5), None, Mark(0, 1))
    assert client.ttl(record_key("item:a", effect=CATALOG)) == -1
    assert put(store, "item:a", entry(5), removed(6), Mark(0, 1), Mark(0, 2))
    assert TTL_S < client.ttl(record_key("item:a", effect=CATALOG)) <= TOMBSTONE_S


def test_an_entry_and_its_shards_position_are_written_together_or_not_at_all(store: Store, client: Any) -> None:
    assert put(store, "item:a", None, entry(5), None, Mark(0, 1))
    # Of one time, but of an event that the shard has had: the position tells it, where the entry could not.
    assert not put(store, "item:a", entry(5), entry(5, b"\x81\xa1x\x01"), None, Mark(0, 1))
    # Of the position that it should be, but not the entry.
    assert not put(store, "item:a", entry(4), entry(6), Mark(0, 1), Mark(0, 2))
    assert store.load(["item:a", "item:b"], CATALOG) == [entry(5), None]
    assert client.hlen(positions_key(store.shard_of("item:a"))) == 1
    assert store.positions([PLACE])[store.shard_of("item:a")] == [Mark(0, 1).data]


def test_a_pipeline_reads_the_entries_of_a_slate_in_one_go(store: Store, redis_server: RedisServer) -> None:
    items = [f"item:{i}" for i in range(100)]
    for i, item in enumerate(items):
        if i % 2:
            write = Write(item, None, entry(i + 1), effect=CATALOG, ttl_s=FOR_EVER)
            assert store.commit([Transaction(store.shard_of(item), [write])]) == [True]

    async def read() -> list[bytes | None]:
        pipeline = store.pipeline()  # type: ignore[attr-defined]
        await connected(pipeline)
        found: list[bytes | None] = await pipeline.load(items, CATALOG)
        pipeline.close()
        return found

    expected = [entry(i + 1) if i % 2 else None for i in range(100)]
    assert asyncio.run(read()) == expected == store.load(items, CATALOG)
