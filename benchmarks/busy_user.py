"""What one bot, with 20 slates of 1,000 items a second, costs everybody else: freshness beside it and without it."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from kafka import KafkaProducer

from benchmarks.freshness import probe_for
from benchmarks.harness import Context, Figure, percentile, ratios
from benchmarks.http_process import Client, PythonProcess
from benchmarks.workload import freshet_environ, items, make_topic, shared
from learner.events.wire import impression_json
from tests.servers import KafkaServer, RedisServer

EVENTS_PER_S, SLATES_PER_S, ITEMS = 200, 20, 1_000


def measure(context: Context) -> list[Figure]:
    """Probes of users of their own, in turns without the bot and beside it."""
    kafka = shared(context, KafkaServer)
    topic = "busy"
    make_topic(kafka, topic)
    environ = freshet_environ(context, shared(context, RedisServer).url(5), kafka.url, topic, "busy")
    context.start(PythonProcess(["service", "learn"], environ))
    client = Client(context.start(PythonProcess(["service", "serve"], environ)).port)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=0)
    seconds = 5.0 if context.quick else 15.0
    without: list[float] = []
    beside: list[float] = []
    try:
        for _ in range(context.repetitions):
            for slates, rounds in ((0, without), (SLATES_PER_S, beside)):
                load = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.busy_user", kafka.bootstrap, topic, str(slates)]
                )
                try:
                    time.sleep(3)
                    rounds.append(percentile(probe_for(seconds, client, producer, topic), 0.5))
                finally:
                    load.terminate()
                    load.wait()
                time.sleep(2)
    finally:
        producer.close()
    note = (
        f"{EVENTS_PER_S} other events a second; the bot shows itself {SLATES_PER_S} slates of {ITEMS:,} items a second"
    )
    return [
        Figure("busy user: others' send to visible without the bot, p50", "ms", without, note=note),
        Figure("busy user: others' send to visible beside the bot, p50", "ms", beside),
        Figure("busy user: beside the bot over without", "x", ratios(beside, without), 3),
    ]


def _load(bootstrap: str, topic: str, slates_per_s: int) -> None:
    """Send other users' impressions and the bot's, evenly, until ended."""
    generator = random.Random(1)
    others = [items(generator, 10) for _ in range(50)]
    bots = [items(generator, ITEMS) for _ in range(5)]
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=0, max_request_size=4 << 20)
    started, others_sent, bots_sent = time.perf_counter(), 0, 0
    while True:
        elapsed, now = time.perf_counter() - started, time.time_ns() // 1_000_000
        for i in range(others_sent, int(elapsed * EVENTS_PER_S)):
            user = f"user-{i % 5_000}"
            producer.send(topic, key=user.encode(), value=impression_json(f"r{started}-{i}", user, now, others[i % 50]))
        for i in range(bots_sent, int(elapsed * slates_per_s)):
            producer.send(topic, key=b"bot", value=impression_json(f"b{started}-{i}", "bot", now, bots[i % 5]))
        others_sent, bots_sent = int(elapsed * EVENTS_PER_S), int(elapsed * slates_per_s)
        time.sleep(0.002)


if __name__ == "__main__":
    _load(sys.argv[1], sys.argv[2], int(sys.argv[3]))
