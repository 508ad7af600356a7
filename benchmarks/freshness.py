"""From the producer's send to the changed answer of `POST /score`, while other users' events flow."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from kafka import KafkaConsumer, KafkaProducer

from benchmarks.harness import Context, Figure, percentile, ratios
from benchmarks.http_process import Client, PythonProcess
from benchmarks.workload import REVISIT_MS, START_MS, freshet_environ, impressions, items, make_topic, shared
from learner.events.wire import impression_json
from tests.servers import KafkaServer, RedisServer

EVENTS_PER_S = 2_000
USERS = 20_000
# Between looks at the answer: an idle client, not a second load.
LOOK_S = 0.0005


def measure(context: Context) -> list[Figure]:
    """Probes of users of their own, one after another."""
    kafka = shared(context, KafkaServer)
    topic = "freshness"
    make_topic(kafka, topic)
    environ = freshet_environ(context, shared(context, RedisServer).url(2), kafka.url, topic)
    context.start(PythonProcess(["service", "learn"], environ))
    client = Client(context.start(PythonProcess(["service", "serve"], environ)).port)
    repetitions = context.repetitions
    seconds = 5.0 if context.quick else 15.0
    rounds, floors = [], []
    with flowing(kafka, topic, 1.5 * seconds * repetitions) as producer:
        for _ in range(repetitions):
            rounds.append(percentiles(probe_for(seconds, client, producer, topic)))
            floors.append(percentiles(polls_for(seconds / 2, kafka, producer, topic)))
    note = f"impressions of one item, {EVENTS_PER_S:,} a second"
    p50, p99 = zip(*rounds, strict=True)
    floor = [one for one, _ in floors]
    return [
        Figure("freshness: send to visible, p50", "ms", list(p50), 15, note=note),
        Figure("freshness: send to visible, p99", "ms", list(p99), 100),
        Figure("freshness: send to the poll of a bare consumer, p50", "ms", floor, note="beside the learner"),
        Figure("freshness: send to visible over the poll of a bare consumer, p50", "x", ratios(p50, floor)),
    ]


def percentiles(taken: list[float]) -> tuple[float, float]:
    """The median, and what one in a hundred is above."""
    return percentile(taken, 0.5), percentile(taken, 0.99)


@contextmanager
def flowing(kafka: KafkaServer, topic: str, seconds: float) -> Iterator[KafkaProducer]:
    """A producer of one's own, while others' events flow for so long."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=0)
    load = subprocess.Popen([sys.executable, "-m", "benchmarks.freshness", kafka.bootstrap, topic, str(seconds + 3)])
    try:
        time.sleep(2)
        yield producer
    finally:
        load.terminate()
        load.wait()
        producer.close()


def probe_for(seconds: float, client: Client, producer: KafkaProducer, topic: str) -> list[float]:
    """Milliseconds from send to visible, of as many probes as fit."""
    generator = random.Random()
    taken = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        time.sleep(generator.uniform(0.005, 0.05))
        user = f"probe-{uuid.uuid4().hex}"
        shown = items(generator, 1)
        event = impression_json("r", user, time.time_ns() // 1_000_000, shown)
        request = msgspec.json.encode({"user_id": user, "items": shown})
        started = time.perf_counter()
        producer.send(topic, key=user.encode(), value=event)
        while b'"n_events":0' in client.call("POST", "/score", request)[1]:
            time.sleep(LOOK_S)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def polls_for(seconds: float, kafka: KafkaServer, producer: KafkaProducer, topic: str) -> list[float]:
    """Milliseconds from send to the poll of a consumer that does nothing with what it reads: the floor."""
    consumer = KafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="latest")
    generator = random.Random()
    taken = []
    try:
        consumer.poll(timeout_ms=2_000)
        until = time.perf_counter() + seconds
        due, started, key = time.perf_counter(), 0.0, b""
        while time.perf_counter() < until:
            if not key and time.perf_counter() >= due:
                key, started = f"floor-{uuid.uuid4().hex}".encode(), time.perf_counter()
                shown = items(generator, 1)
                producer.send(
                    topic, key=key, value=impression_json("r", key.decode(), time.time_ns() // 1_000_000, shown)
                )
            polled = consumer.poll(timeout_ms=5)
            if any(record.key == key for records in polled.values() for record in records):
                now = time.perf_counter()
                taken.append((now - started) * 1e3)
                key, due = b"", now + generator.uniform(0.005, 0.05)
    finally:
        consumer.close()
    return taken


def _load(bootstrap: str, topic: str, seconds: float) -> None:
    """Send `EVENTS_PER_S`, evenly, from events made beforehand."""
    made = list(impressions(USERS, 1, USERS))
    # It shares the processors with what is measured, and waits as Kafka's own producer does since 4.0.
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
    started = time.perf_counter()
    sent = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for i in range(sent, int(elapsed * EVENTS_PER_S)):
            key, value = made[i % USERS]
            # A request and a time of its own each time round: a repeat would change nothing, and without time passing
            # nothing would ever settle.
            at = START_MS + i % USERS * REVISIT_MS // USERS
            value = value.replace(b'"request-', b'"request-%d-' % (i // USERS))
            value = value.replace(b'"timestamp":%d' % at, b'"timestamp":%d' % (at + i // USERS * REVISIT_MS))
            producer.send(topic, key=key, value=value)
            sent = i + 1
        time.sleep(0.002)
    producer.close()


if __name__ == "__main__":
    _load(sys.argv[1], sys.argv[2], float(sys.argv[3]))
