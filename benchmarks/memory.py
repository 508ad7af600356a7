"""Bytes of one user in Redis."""

from __future__ import annotations

import redis

from benchmarks.harness import Context, Figure
from benchmarks.score import known_user
from benchmarks.workload import model, shared
from learner.record import decode_record, encode_record
from learner.store import Write, open_store, write_alone
from learner.store.redis_keys import record_key
from tests.servers import RedisServer

D = 16
FLOOR = 8 * (D + D * (D + 1) // 2)


def measure(context: Context) -> list[Figure]:
    """MEMORY USAGE of a record with nothing pending, and of one with ten open impressions, over the bare numbers."""
    url = shared(context, RedisServer).url(3)
    pending = known_user(10, D - 1)
    spec = model(D - 1)
    record = decode_record(pending, spec, "")
    settled = encode_record(record._replace(outcomes=record.outcomes[:0], rows=record.rows[:0]), spec)
    client = redis.Redis.from_url(url)
    figures = []
    for what, value, aim in (("nothing pending", settled, 1.3), ("ten open impressions", pending, None)):
        user = "0b4c1f6e-8d43-4d0f-9b0a-7f8f3c2a6e51"
        client.flushdb()
        store = open_store(url, 86_400)
        write_alone(store, [Write(user, None, value)])
        store.close()
        used = int(client.memory_usage(record_key(user)) or 0)
        figures.append(Figure(f"memory: Redis over 8 (d + d (d + 1) / 2), d = 16, {what}", "x", [used / FLOOR], aim))
    client.close()
    return figures
