"""How cost grows: with d, users, items of a request, open impressions and events of a microbatch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import redis

from benchmarks.harness import Context, Figure, exponent, interleave, seconds_of
from benchmarks.http_process import Client
from benchmarks.posterior import freshet
from benchmarks.score import body, known_user, processes
from benchmarks.workload import START_MS, Parsed, items, model, parsed, shared, step, visits
from learner.events.wire import impression_json
from learner.store import Store, Transaction, Write, open_store
from tests.servers import RedisServer


def measure(context: Context) -> list[Figure]:
    """Each axis: a figure a size, and the exponent of all of them."""
    sizes = (8, 16, 32, 64, 128)
    updates = interleave({str(d): freshet(d) for d in sizes}, context.repetitions)
    return [
        *_axis("update of 1,000 users over d", "us/event", sizes, list(updates.values())),
        *_items(context),
        *_open_impressions(context),
        *_microbatch(context),
        *_users(context),
    ]


def _axis(what: str, unit: str, sizes: tuple[int, ...], values: list[list[float]]) -> list[Figure]:
    figures = [Figure(f"growth: {what} = {n:,}", unit, mine) for n, mine in zip(sizes, values, strict=True)]
    exponents = [exponent(sizes, costs) for costs in zip(*values, strict=True)]
    steepest = [exponent(sizes[-2:], costs[-2:]) for costs in zip(*values, strict=True)]
    return [
        *figures,
        Figure(f"growth: {what}, exponent", "exponent", exponents),
        Figure(f"growth: {what}, exponent of the last two", "exponent", steepest),
    ]


def _milliseconds(call: Callable[[], object]) -> Callable[[], float]:
    return lambda: seconds_of(call, 0.2, time.perf_counter) * 1e3


def _microseconds_each(call: Callable[[], object], n: int) -> Callable[[], float]:
    return lambda: seconds_of(call) / n * 1e6


def _items(context: Context) -> list[Figure]:
    """`POST /score` over items of a request."""
    served = Client(processes(context)[0].port)
    sizes = (10, 30, 100, 300, 1_000)
    bodies = {str(n): body(n) for n in sizes}
    values = interleave(
        {n: _milliseconds(partial(served.seconds, "/score", one)) for n, one in bodies.items()},
        context.repetitions,
    )
    return _axis("POST /score over items", "ms", sizes, list(values.values()))


def _open_impressions(context: Context) -> list[Figure]:
    """One more impression of one item for each of 100 users, over how many they have open."""
    sizes = (0, 16, 64, 255)
    spec = model()
    generator = random.Random(4)

    def events(start: int, n: int) -> Parsed:
        raws = [
            impression_json(f"r{i}", f"user-{u}", START_MS + i, items(generator, 1))
            for i in range(start, start + n)
            for u in range(100)
        ]
        return parsed(spec, raws)

    contenders = {}
    for n in sizes:
        stored: Sequence[bytes | None] = [None] * 100
        if n:
            stored = step(spec, stored, events(0, n))
        contenders[str(n)] = _microseconds_each(partial(step, spec, stored, events(n, 1)), 100)
    values = interleave(contenders, context.repetitions)
    return _axis("learning step over open impressions", "us/event", sizes, list(values.values()))


def _microbatch(context: Context) -> list[Figure]:
    """The learning step of slates of ten with clicks of returning users, over events of a microbatch."""
    sizes = (1, 10, 100, 1_000, 10_000)[: 4 if context.quick else 5]
    spec = model()
    stored: dict[str, bytes | None] = {}
    events: list[bytes] = []
    # As many users as events, so that none comes twice, and a first round of which the second one's slates are open.
    for one in visits(sizes[-1], 2, 10):
        if one.round == 0:
            mine = parsed(spec, [one.value])
            stored |= zip(mine.user_ids, step(spec, [stored.get(user) for user in mine.user_ids], mine), strict=True)
        else:
            events.append(one.value)
    contenders = {}
    for n in sizes:
        batch = parsed(spec, events[:n])
        contenders[str(n)] = _microseconds_each(partial(step, spec, [stored[u] for u in batch.user_ids], batch), n)
    values = interleave(contenders, context.repetitions)
    return _axis("learning step over events of a microbatch", "us/event", sizes, list(values.values()))


def _by_shard(store: Store, writes: Sequence[Write]) -> list[Transaction]:
    """As a learner writes them."""
    shards: dict[int, list[Write]] = {}
    for write in writes:
        shards.setdefault(store.shard_of(write.id), []).append(write)
    return [Transaction(shard, mine) for shard, mine in shards.items()]


def _users(context: Context) -> list[Figure]:
    """Memory of Redis, and the time to read and to write the records of 1,000 random users, over users stored."""
    sizes = (1_000, 10_000, 100_000, 1_000_000)[: 3 if context.quick else 4]
    server = shared(context, RedisServer)
    client = redis.Redis.from_url(server.url(4))
    store = open_store(server.url(4), 86_400, 30.0)
    value = known_user()
    generator = np.random.default_rng(0)
    # What is asked here is how cost grows, not what the disk can take.
    client.config_set("appendonly", "no")
    empty = int(client.info("memory")["used_memory"])
    memory, read, write = [], [], []
    done = 0
    for size in sizes:
        for start in range(done, size, 2_000):
            new = [Write(f"user-{i}", None, value) for i in range(start, min(start + 2_000, size))]
            store.commit(_by_shard(store, new))
        done = size
        memory.append([(int(client.info("memory")["used_memory"]) - empty) / size])
        users = [f"user-{i}" for i in generator.choice(size, 1_000, replace=False)]
        writes = [Write(user, value, value) for user in users]
        both = {
            "read": _milliseconds(partial(store.load, users)),
            "write": _milliseconds(partial(store.commit, _by_shard(store, writes))),
        }
        values = interleave(both, context.repetitions)
        read.append(values["read"])
        write.append(values["write"])
    # A million keys take longer than a client waits.
    client.flushdb(asynchronous=True)
    client.config_set("appendonly", "yes")
    client.close()
    store.close()
    return [
        *_axis("bytes a user in Redis over users", "bytes", sizes, memory),
        *_axis("reading 1,000 users over users", "ms", sizes, read),
        *_axis("writing 1,000 users over users", "ms", sizes, write),
    ]
