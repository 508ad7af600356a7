"""A learner's memory is bounded however large the records are, and however much a batch holds."""

from __future__ import annotations

import json
import random
import re
import uuid
from pathlib import Path

import redis
from kafka import KafkaProducer

from learner.log import Entry, open_log
from tests.freshet import Freshet
from tests.servers import KafkaServer, RedisServer, eventually
from tests.topics import make_topic

USERS = 1_500
PARTITIONS = 3


def peak_kb(learner: Freshet) -> int:
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{learner.process.pid}/status").read_text())
    assert peak is not None
    return int(peak[1])


def test_a_backlog_of_many_users_of_385_coefficients_is_learnt_in_600_mib(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A record is 298 kB: those of 1,000 users, with a copy for each thing done with them, would be above 1 GiB."""
    (tmp_path / "model.toml").write_text('name = "m"\n[features]\nf = { kind = "multi", buckets = 384 }\n')
    client = redis.Redis.from_url(redis_server.url(10))
    client.flushdb()
    rng = random.Random(1)
    log = open_log(f"sqlite:///{tmp_path / 'f.db'}")
    for user in range(USERS):
        items = [{"item_id": "a", "features": {"f": [f"t{rng.randrange(2_000)}" for _ in range(6)]}}]
        shown = {"type": "impression", "request_id": "r", "user_id": f"u{user}", "timestamp": 1_700_000_000_000}
        log.append([Entry("events", b"k", json.dumps({**shown, "items": items}).encode())])
    log.close()
    learner = Freshet(tmp_path, "learn", store=redis_server.url(10), model="model.toml", store_timeout_s=20)
    try:
        learnt = f"freshet_learner_messages_total {USERS}.0".encode()
        eventually(lambda: learnt in learner.request("/metrics")[1], 120, "all is learnt")
        assert peak_kb(learner) < 600 << 10
    finally:
        learner.stop()
        client.flushdb()
        client.close()


def test_batches_that_hold_three_hundred_megabytes_each_are_taken_in_less_than_a_containers_memory(
    tmp_path: Path, kafka_server: KafkaServer
) -> None:
    """In three partitions, of some 300 kB each; docker-compose.yml gives a learner 1 GiB."""
    topic = f"bomb-{uuid.uuid4().hex}"
    for name in (topic, f"{topic}.dlq"):
        make_topic(kafka_server, name, PARTITIONS, **{"max.message.bytes": str(2 << 20)})
    with KafkaProducer(
        bootstrap_servers=kafka_server.bootstrap, compression_type="gzip", linger_ms=60_000, batch_size=320 << 20,
        max_request_size=320 << 20,
    ) as producer:  # fmt: skip
        for partition in range(PARTITIONS):
            sent = [producer.send(topic, b"x" * 900_000, partition=partition) for _ in range(334)]
            producer.flush()
            assert sent[-1].get(10).offset == 333
    options = {"log": kafka_server.url, "impressions_topic": topic, "clicks_topic": topic}
    learner = Freshet(tmp_path, "learn", **options)
    try:
        buried = b'freshet_learner_dead_letters_total{reason="not_json"} %d.0' % (334 * PARTITIONS)
        eventually(lambda: buried in learner.request("/metrics")[1], 120, "all of it is dead-lettered")
        assert peak_kb(learner) < 900 << 10
    finally:
        learner.stop()
