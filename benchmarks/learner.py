"""From real Kafka to committed in real Redis, against a bare poll and decode of the same records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import redis
from kafka import KafkaConsumer, TopicPartition

from benchmarks.harness import Context, Figure, interleave, ratios
from benchmarks.workload import fill_topic, freshet_environ, model, shared
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.store import open_store
from learner.store.recent import RecentStore
from tests.servers import KafkaServer, RedisServer, eventually

USERS = 5_000
MAX_BATCH = 1_000


def measure(context: Context) -> list[Figure]:
    """One learner on records of ten items and of one; then two learners on two partitions."""
    figures = []
    for n_items, aim in ((10, 0.5), (1, 0.7)):
        topic = f"impressions-of-{n_items}"
        n = {10: 15_000, 1: 30_000}[n_items] // (3 if context.quick else 1)
        fill_topic(shared(context, KafkaServer), topic, n, n_items, USERS)
        values = interleave(
            {
                "freshet": partial(freshet, context, topic, n),
                "json": partial(bare_poll, context, topic, n, json.loads),
                "msgspec": partial(bare_poll, context, topic, n, msgspec.json.decode),
            },
            context.repetitions,
        )
        what = "10 items" if n_items == 10 else "1 item"
        ours = values["freshet"]
        figures += [
            Figure(f"learner: impressions of {what}, Kafka to Redis", "events/s", ours, higher_is_better=True),
            Figure(f"learner: over bare poll + json.loads, {what}", "x", ratios(ours, values["json"]), at_least=aim),
            Figure(
                f"learner: over bare poll + msgspec decode, {what}",
                "x",
                ratios(ours, values["msgspec"]),
                higher_is_better=True,
            ),
        ]
    return [*figures, *_scaling(context)]


def bare_poll(context: Context, topic: str, n: int, decode: Callable[[bytes], object]) -> float:
    """Records a second that kafka-python hands out and `decode` reads; from the first batch on."""
    consumer = KafkaConsumer(
        bootstrap_servers=shared(context, KafkaServer).bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
    )
    consumer.assign([TopicPartition(topic, 0)])
    seen, first, started = 0, 0, 0.0
    while seen < n:
        for records in consumer.poll(timeout_ms=1_000, max_records=MAX_BATCH).values():
            for record in records:
                decode(record.value)
            seen += len(records)
            if not started:
                first, started = seen, time.perf_counter()
    rate = (n - first) / (time.perf_counter() - started)
    consumer.close()
    return rate


def freshet(context: Context, topic: str, n: int) -> float:
    """Records a second learnt, stored and committed by one learner into an empty Redis; from the first batch on."""
    server = shared(context, RedisServer)
    client = redis.Redis.from_url(server.url())
    client.flushdb()
    log_url = shared(context, KafkaServer).url
    learner = Learner(
        model(),
        RecentStore(open_store(server.url(), 86_400)),
        open_reader(log_url, [topic], f"group-{uuid.uuid4().hex}"),
        open_log(log_url),
        max_messages=MAX_BATCH,
    )
    seen, first, started = 0, 0, 0.0
    while seen < n:
        seen += learner.turn().messages
        if seen and not started:
            first, started = seen, time.perf_counter()
    rate = (n - first) / (time.perf_counter() - started)
    learner.reader.close()
    client.close()
    return rate


def _scaling(context: Context) -> list[Figure]:
    """Two learner processes on two partitions over one on both.

    Where cores are short, events a second say how many there are; processor time an event says what learners cost each
    other.
    """
    topic = "two-partitions"
    n = 10_000 if context.quick else 30_000
    fill_topic(shared(context, KafkaServer), topic, n, 10, USERS, n_partitions=2)
    used_by_one: list[float] = []
    used_by_two: list[float] = []
    values = interleave(
        {
            "one": partial(_processes, context, topic, n, 1, used_by_one),
            "two": partial(_processes, context, topic, n, 2, used_by_two),
        },
        1 if context.quick else context.repetitions,
    )
    return [
        Figure(
            "learner: two processes on two partitions over one",
            "x",
            ratios(values["two"], values["one"]),
            at_least=1.6,
            note="with Kafka and Redis on the same cores",
        ),
        Figure("learner: processor time an event, two processes over one", "x", ratios(used_by_two, used_by_one)),
    ]


def _processes(context: Context, topic: str, n: int, count: int, processor_s: list[float]) -> float:
    """Records a second that `count` learners commit, from the first fifth to the last.

    Adds the seconds of processor time for each to `processor_s`.
    """
    server = shared(context, RedisServer)
    client = redis.Redis.from_url(server.url())
    client.flushdb()
    client.close()
    group = f"group-{uuid.uuid4().hex}"
    environ = {
        **freshet_environ(context, server.url(), shared(context, KafkaServer).url, topic, group),
        "FRESHET_LEARNER_PORT": "0",
    }
    watcher = KafkaConsumer(
        bootstrap_servers=shared(context, KafkaServer).bootstrap, group_id=group, enable_auto_commit=False
    )
    places = [TopicPartition(topic, number) for number in range(2)]

    def committed() -> int:
        return sum(watcher.committed(place) or 0 for place in places)

    processes = [subprocess.Popen([sys.executable, "-m", "service", "learn"], env=environ) for _ in range(count)]
    try:
        eventually(lambda: committed() >= n // 5, 120, "a fifth is learnt")
        start, started = committed(), time.perf_counter()
        used = sum(_processor_seconds(process.pid) for process in processes)
        eventually(lambda: committed() >= n, 300, "all is learnt")
        elapsed = time.perf_counter() - started
        used = sum(_processor_seconds(process.pid) for process in processes) - used
        processor_s.append(used / (n - start))
        return (n - start) / elapsed
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
        watcher.close()


def _processor_seconds(pid: int) -> float:
    """What a process has used so far, in user and kernel mode."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
