"""Learners that catch up: what comes of a long backlog is what would have come of it live."""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from learner.log import read_to_end
from learner.model.spec import Model, load_model
from learner.record import Record, decode_record, encode_record, fresh_record
from tests.chaos.run import Learners
from tests.servers import KafkaServer, RedisServer, eventually
from tests.stepping import apply, parsed
from tests.topics import make_topic

MODEL = """\
name = "backlog"
half_life = "30d"
attribution_window = "1h"
[prior]
variance = 0.5
[features]
price = { kind = "numeric" }
"""
START_MS, DAY_MS, DAYS = 1_700_000_000_000, 86_400_000, 10
USERS, PARTITIONS = 150, 4


class Event(NamedTuple):
    at: int
    user: str
    is_click: bool
    value: bytes


def backlog(rng: random.Random) -> list[Event]:
    """Ten days of slates, and clicks up to half an hour behind them, by time."""
    events = []
    for number in range(USERS * 30):
        user, at = f"u{rng.randrange(USERS)}", START_MS + rng.randrange(DAYS * DAY_MS)
        ids = {"user_id": user, "request_id": f"r{number}"}
        items = [{"item_id": item, "features": {"price": rng.gauss(0, 1)}} for item in "abc"]
        shown = {"type": "impression", **ids, "timestamp": at, "items": items}
        events.append(Event(at, user, False, json.dumps(shown).encode()))
        if rng.random() < 0.5:
            at += rng.randrange(2_000, 1_800_000)
            clicked = {"type": "click", **ids, "item_id": rng.choice("abc"), "timestamp": at}
            events.append(Event(at, user, True, json.dumps(clicked).encode()))
    return sorted(events)


def comparable(record: Record, model: Model) -> bytes:
    """What must be the same: not which outcomes are still in the window, since learners sweep users who have gone."""
    bare = record._replace(revision=0, outcomes=record.outcomes[:0], rows=record.rows[:0], clicks=record.clicks[:0])
    return encode_record(bare, model)


def expected(events: list[Event]) -> dict[str, bytes]:
    """Each user by the pure core, one event at a time in the order of time."""
    model = load_model(MODEL)
    records: dict[str, Record] = {}
    for event in events:
        record = records.get(event.user, fresh_record(model))
        ((records[event.user],), _) = apply(model, [record], [[parsed(event.value, model)]])
    return {user: comparable(one, model) for user, one in records.items()}


def found(url: str) -> Iterator[tuple[str, bytes]]:
    model = load_model(MODEL)
    client = redis.Redis.from_url(url)
    for key in client.scan_iter("freshet:*:user:*"):
        user = key.decode().rpartition(":")[2]
        if user.startswith("u"):
            record = decode_record(client.get(key), model, user)
            yield user, comparable(record, model)
    client.close()


def test_a_backlog_of_ten_days_in_two_topics_is_learnt_as_it_would_have_been_live_though_learners_are_killed(
    tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer
) -> None:
    name = uuid.uuid4().hex[:8]
    topics = {False: f"impressions-{name}", True: f"clicks-{name}"}
    for topic in topics.values():
        make_topic(kafka_server, topic, PARTITIONS, **{"retention.ms": "-1"})
    events = backlog(random.Random(7))
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, linger_ms=20) as producer:
        for event in events:
            producer.send(topics[event.is_click], event.value, key=event.user.encode(), timestamp_ms=event.at)
    (tmp_path / "model.toml").write_text(MODEL)
    url = redis_server.url(9)
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    learners = Learners(
        tmp_path,
        {
            **os.environ,
            "FRESHET_STORE": url,
            "FRESHET_LOG": kafka_server.url,
            "FRESHET_MODEL": str(tmp_path / "model.toml"),
            "FRESHET_IMPRESSIONS_TOPIC": topics[False],
            "FRESHET_CLICKS_TOPIC": topics[True],
            "FRESHET_GROUP": name,
            "FRESHET_MAX_BATCH": "100",
            "FRESHET_KAFKA_SESSION_TIMEOUT_MS": "2000",
            "FRESHET_TTL_DAYS": "36500",
        },
    )
    watcher = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id=name, enable_auto_commit=False)
    places = [TopicPartition(topic, n) for topic in topics.values() for n in range(PARTITIONS)]

    def is_at(share: float) -> bool:
        learners.count()
        return sum(watcher.committed(place) or 0 for place in places) >= share * len(events)

    try:
        for seed in ("1", "2"):
            # Which topic is fetched first depends on it.
            learners._environ["PYTHONHASHSEED"] = seed
            learners.start()
        for share, seed in ((0.2, "3"), (0.5, "4")):
            eventually(lambda share=share: is_at(share), 120, f"{share} of it is learnt")  # type: ignore[misc]
            learners.kill(next(iter(learners.alive)))
            learners._environ["PYTHONHASHSEED"] = seed
            learners.start()
        eventually(lambda: is_at(1), 120, lambda: f"all of it is learnt: {[watcher.committed(one) for one in places]}")
        counts = learners.count()
        # What an attempt found counts also where its shard refused it.
        assert counts["unmatched_clicks"] <= 0.005 * sum(event.is_click for event in events)
        assert dict(found(url)) == expected(events)
        for port in list(learners.alive):
            learners.leave(port)
    finally:
        for process in learners.alive.values():
            process.kill()
            process.wait()
        watcher.close()


def test_a_log_at_rest_in_two_topics_is_read_in_the_order_of_time(kafka_server: KafkaServer) -> None:
    name = uuid.uuid4().hex[:8]
    topics = [f"impressions-{name}", f"clicks-{name}"]
    for topic in topics:
        make_topic(kafka_server, topic, PARTITIONS, **{"retention.ms": "-1"})
    rng = random.Random(3)
    sent = sorted(START_MS + rng.randrange(DAYS * DAY_MS) for _ in range(8_000))
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, linger_ms=20) as producer:
        for at in sent:
            producer.send(rng.choice(topics), b"x" * 200, key=str(at).encode(), timestamp_ms=at)
    read = [one.timestamp for batch in read_to_end(kafka_server.url, topics) for one in batch]
    assert read == sent
