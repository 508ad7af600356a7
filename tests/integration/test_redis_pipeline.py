"""The short way to a record says what the store says, or that the store is to be asked, and keeps nobody waiting."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from learner.record.header import IDENTITY
from learner.store import NotNow, Pipeline, Pipelined, StoreUnavailable, Write, open_store, write_alone
from learner.store.redis_keys import record_key
from tests.servers import RedisServer

TIMEOUT_S = 1.0


@pytest.fixture
def server(tmp_path: Path, redis_server: RedisServer) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path)
    one.start()
    yield one
    one._process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    one.stop()


def value(i: int) -> bytes:
    return bytes(IDENTITY.start) + i.to_bytes(8, "little") + bytes(i)


@asynccontextmanager
async def pipelined(url: str) -> AsyncIterator[Pipeline]:
    store = open_store(url, 60, TIMEOUT_S)
    assert isinstance(store, Pipelined)
    pipeline = store.pipeline()
    assert pipeline is not None
    await connected(pipeline)
    yield pipeline
    pipeline.close()
    store.close()


async def connected(pipeline: Pipeline) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            await pipeline.load(["nobody"])
        except NotNow:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("the pipeline is not connected")


def test_everybody_who_asks_at_once_is_told_of_their_own_user(server: RedisServer) -> None:
    store = open_store(server.url(2), 60)
    write_alone(store, [Write(f"u{i}", None, value(i)) for i in range(500)])
    store.close()

    async def ask() -> list[list[bytes | None]]:
        async with pipelined(server.url(2)) as pipeline:
            return await asyncio.gather(
                *(pipeline.load([f"u{i}"]) for i in range(501)), pipeline.load(["u7", "u", "u9"])
            )

    assert asyncio.run(ask()) == [*([value(i)] for i in range(500)), [None], [value(7), None, value(9)]]


def test_a_request_that_is_given_up_does_not_shift_the_answers_of_others(server: RedisServer) -> None:
    store = open_store(server.url(), 60)
    write_alone(store, [Write(f"u{i}", None, value(i)) for i in range(3)])
    store.close()

    async def ask() -> list[list[bytes | None]]:
        async with pipelined(server.url()) as pipeline:
            asked = [asyncio.ensure_future(pipeline.load([f"u{i}"])) for i in range(3)]
            await asyncio.sleep(0)
            asked[0].cancel()
            return await asyncio.gather(*asked[1:])

    assert asyncio.run(ask()) == [[value(1)], [value(2)]]


def test_an_answer_that_is_an_error_is_left_to_the_store_and_others_are_told(server: RedisServer) -> None:
    client = redis.Redis(port=server.port)
    client.rpush(record_key("list"), 1)
    client.set(record_key("u"), b"x")
    client.close()

    async def ask() -> None:
        async with pipelined(server.url()) as pipeline:
            asked = map(pipeline.load, (["u"], ["list"], ["u"]))
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert answers[::2] == [[b"x"], [b"x"]]
            assert isinstance(answers[1], NotNow)

    asyncio.run(ask())


def test_while_redis_hangs_all_are_told_in_time_and_the_next_at_once(server: RedisServer) -> None:
    async def ask() -> None:
        async with pipelined(server.url()) as pipeline:
            server._process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
            began = time.monotonic()
            answers = await asyncio.gather(*(pipeline.load([f"u{i}"]) for i in range(100)), return_exceptions=True)
            assert {type(one) for one in answers} == {StoreUnavailable}
            assert TIMEOUT_S <= time.monotonic() - began < 2 * TIMEOUT_S
            again = time.monotonic()
            with pytest.raises(NotNow):
                await pipeline.load(["u"])
            assert time.monotonic() - again < TIMEOUT_S / 2
            server._process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
            await connected(pipeline)

    asyncio.run(ask())


def test_a_redis_that_restarts_is_found_again(server: RedisServer) -> None:
    async def ask() -> None:
        async with pipelined(server.url()) as pipeline:
            server.stop()
            for _ in range(20):
                with pytest.raises(NotNow):
                    await pipeline.load(["u"])
                await asyncio.sleep(0.01)
            server.start()
            await connected(pipeline)

    asyncio.run(ask())


def test_however_often_redis_was_away_the_store_keeps_its_room_for_connections(server: RedisServer) -> None:
    store: Any = open_store(server.url(), 60, TIMEOUT_S)
    server.stop()
    for _ in range(150):
        with pytest.raises(StoreUnavailable):
            store._socket()
    server.start()
    for _ in range(150):
        store._socket().close()
    assert store.load(["u"]) == [None]
    store.close()


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:1", "rediss://127.0.0.1:1"])
def test_a_cluster_and_tls_have_no_pipeline(url: str) -> None:
    store = open_store(url, 60)
    assert isinstance(store, Pipelined)
    assert store.pipeline() is None
    store.close()
