"""Half of a Kafka log in Parquet, with the offsets that a sink has added: rebuilt into Redis, and learners go on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from learner.log import Entry, Message, open_log, read_to_end
from learner.log.kafka_ends import NoSuchEnd, ends_of_offsets
from learner.log.position import Mark
from learner.model.spec import Model, load_model
from learner.positions import marks_by_shard
from learner.record import decode_record
from learner.store import Store, open_store
from learner.store.models import registered
from tests.chaos.stream import (
    MODEL,
    SHADOW,
    Logged,
    differences,
    effect_of,
    entry_differences,
    events,
    expect,
    item_differences,
)
from tests.chaos.sums import sum_differences
from tests.freshet import ROOT, Freshet
from tests.rig import without_revision
from tests.servers import KafkaServer, RedisServer, eventually
from tests.topics import make_topic
from tests.unit.test_side_by_side import SPEC, stream

PLAIN = SPEC.format(name="m", half_life="7d", variance=1.0, more="")
COLUMNS = "kafka_topic", "kafka_partition", "kafka_offset"
N = 2_000


class Deployment:
    """Topics of impressions and clicks, three partitions each, and stores by prefix."""

    def __init__(
        self, folder: Path, kafka: KafkaServer, redis: RedisServer, kinds: tuple[str, ...] = ("one",) * 5
    ) -> None:
        self.folder, self.kafka, self.redis = folder, kafka, redis
        self.model = load_model(MODEL)
        (folder / "model.toml").write_text(MODEL)
        name = uuid.uuid4().hex
        self.topics = [f"{name}.impressions", f"{name}.clicks"]
        for topic in self.topics:
            make_topic(kafka, topic, 3)
            make_topic(kafka, f"{topic}.dlq", 1)
        self.name, self._sent = name, events(random.Random(11), 60, kinds)

    def send(self, n: int) -> None:
        producer = KafkaProducer(bootstrap_servers=self.kafka.bootstrap)
        for _, one in zip(range(n), self._sent, strict=False):
            producer.send(self.topics[one.topic], key=one.key, value=one.value)
        producer.close()

    def log(self) -> list[Message]:
        with closing(read_to_end(self.kafka.url, self.topics)) as read:  # type: ignore[type-var]
            return [message for some in read for message in some]

    def settings(self, prefix: str) -> dict[str, Any]:
        return {
            "store": self.redis.url(), "log": self.kafka.url, "impressions_topic": self.topics[0],
            "clicks_topic": self.topics[1], "model": self.folder / "model.toml", "max_batch": 50,
            "key_prefix": f"{self.name}.{prefix}", "group": f"{self.name}.{prefix}",
        }  # fmt: skip

    def run(self, prefix: str, *typed: object) -> subprocess.CompletedProcess[str]:
        environ = {f"FRESHET_{one.upper()}": str(value) for one, value in self.settings(prefix).items()}
        return subprocess.run(
            [sys.executable, "-m", "service", *map(str, typed)], cwd=self.folder, text=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}, check=False, timeout=120,
        )  # fmt: skip

    def start(self, prefix: str, **more: object) -> Freshet:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        return Freshet(folder, "learn", **self.settings(prefix) | more)

    def store(self, prefix: str, shadow: str = "") -> Store:
        return open_store(self.redis.url(), 10**6, key_prefix=f"{self.name}.{prefix}", shadow=shadow)


def write_parquet(folder: Path, messages: list[Message]) -> None:
    """As a sink does: a file for some offsets of each partition, and one of them twice, as after its crash."""
    folder.mkdir()
    partitions = sorted({(one.topic, one.position.partition.number) for one in messages})
    for topic, number in partitions:
        mine = [one for one in messages if (one.topic, one.position.partition.number) == (topic, number)]
        for first in range(0, len(mine), 100):
            some = mine[first : first + 100]
            places = [topic] * len(some), [number] * len(some), [one.position.offset for one in some]
            table = pa.table({"value": [one.value for one in some], **dict(zip(COLUMNS, places, strict=True))})
            # Not in the order of offsets by name.
            for copy in range(1 + (first == 0)):
                pq.write_table(table, folder / f"{9_999 - first}-{copy}+{topic}+{number}.parquet")


def everything(store: Store, model: Model) -> dict[str, dict[str, bytes]]:
    ids = sorted(id for part in store.scan() for id, _ in part)
    return {"user": without_revision(store, ids, model)}


def eventually_equal(one: Store, other: Store, model: Model) -> None:
    """Each learner has swept what was due, at a moment of its own."""
    eventually(lambda: everything(one, model) == everything(other, model), 30, "records are equal")


def is_learnt(store: Store, ends: dict[Any, int]) -> bool:
    marks = marks_by_shard(store, list(ends))
    return all(min(marks[one]).offset >= end for one, end in ends.items())


def judged(model: Model, store: Store, log: list[Message]) -> dict[str, list[str]]:
    """What is wrong with a store, by the oracle of the chaos runs: what the pure core makes of the log alone."""
    logged = [Logged(0, one.topic, one.position, one.value) for one in log]
    expected, effect = expect(logged, model), effect_of(model)
    found = {id: decode_record(value, model, id) for part in store.scan() for id, value in part}
    items = {id: decode_record(value, effect, id) for part in store.scan("item") for id, value in part}
    entries = {id: value for part in store.scan("catalog") for id, value in part}
    return (
        differences(expected, found, model)
        | item_differences(effect, expected.items, items)
        | entry_differences(expected.entries, entries)
        | sum_differences(expected.sums, expected.ordered, found, store.sums(), model)
    )


@pytest.mark.parametrize("kinds", [("one",) * 5, ("one", "one", "one", "two", "odd")], ids=["one partition", "several"])
def test_a_learner_goes_on_where_a_rebuilt_half_of_the_log_ends_and_is_one_that_read_it_all(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    rig = Deployment(tmp_path, kafka_server, redis_server, kinds)
    rig.send(N // 2)
    write_parquet(tmp_path / "lake", rig.log())
    typed = ["rebuild", tmp_path / "lake", "--offsets", ",".join(COLUMNS), "--skip-bad"]
    done = rig.run("rebuilt", *typed)
    assert done.returncode == 0, done.stderr
    assert "learners go on in partition 0 behind offset" in done.stdout
    again = rig.run("rebuilt", *typed)
    assert "rebuilt already, from this log: nothing to do" in again.stdout
    rig.send(N // 2)
    log = rig.log()
    ends = {one.position.partition: one.position.offset for one in log}
    learners = [rig.start(prefix) for prefix in ("rebuilt", "read-all")]
    with closing(rig.store("rebuilt")) as rebuilt, closing(rig.store("read-all")) as read_all:
        for store in (rebuilt, read_all):
            eventually(lambda store=store: is_learnt(store, ends), 120, "all is learnt")
        eventually(lambda: judged(rig.model, rebuilt, log) == {}, 30, lambda: str(judged(rig.model, rebuilt, log)))
        if len(set(kinds)) == 1:
            eventually_equal(rebuilt, read_all, rig.model)
    for learner in learners:
        learner.stop()


def test_a_model_that_is_rebuilt_beside_the_first_learns_on_with_it_and_is_promoted(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    rig = Deployment(tmp_path, kafka_server, redis_server)
    (tmp_path / "other.toml").write_text(SHADOW)
    other = load_model(SHADOW)
    rig.send(N // 2)
    first = rig.start("d")
    done = rig.run("d", "rebuild", kafka_server.url, "--model", tmp_path / "other.toml", "--beside", "--skip-bad")
    assert done.returncode == 0, done.stderr
    first.stop()
    rig.send(N // 4)
    both = rig.start("d", shadow=tmp_path / "other.toml")
    log = rig.log()
    ends = {one.position.partition: one.position.offset for one in log}
    with closing(rig.store("d")) as its, closing(rig.store("d", other.name)) as beside:
        for store, model in ((its, rig.model), (beside, other)):
            eventually(lambda store=store: is_learnt(store, ends), 120, "all is learnt")
            eventually(lambda store=store, model=model: judged(model, store, log) == {}, 30, "it is what the log says")
        done = rig.run("d", "promote", other.name)
        assert done.returncode == 0, done.stderr
        assert registered(its).served == other.name
    both.stop()


def test_learners_go_on_from_a_time_that_the_broker_finds(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    rig = Deployment(tmp_path, kafka_server, redis_server)
    model = load_model(PLAIN)
    (tmp_path / "model.toml").write_text(PLAIN)
    topic, sent = f"{rig.name}.timed", stream(400)
    make_topic(kafka_server, topic, 2, **{"retention.ms": "-1"})
    make_topic(kafka_server, f"{topic}.dlq", 1)
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap)
    for one in sent:
        key, value = one["user_id"].encode(), json.dumps(one).encode()
        producer.send(topic, key=key, value=value, timestamp_ms=one["timestamp"])
    producer.close()
    rig.topics = [topic, topic]
    (tmp_path / "all.ndjson").write_bytes(b"\n".join(json.dumps(one).encode() for one in sent))
    done = rig.run("timed", "rebuild", tmp_path / "all.ndjson", "--from-time", sent[250]["timestamp"])
    assert done.returncode == 0, done.stderr
    with closing(rig.store("timed")) as rebuilt, closing(rig.store("read-all")) as read_all:
        places = [message.position.partition for message in rig.log()]
        marks = marks_by_shard(rebuilt, sorted(set(places)))
        assert sum(its[0].offset + 1 for its in marks.values()) == 250
        learners = [rig.start(prefix) for prefix in ("timed", "read-all")]
        ends = {one: places.count(one) - 1 for one in places}
        for store in (rebuilt, read_all):
            eventually(lambda store=store: is_learnt(store, ends), 60, "all is learnt")
        eventually_equal(rebuilt, read_all, model)
    for learner in learners:
        learner.stop()


def test_history_that_the_topic_cannot_go_on_from_is_refused(kafka_server: KafkaServer) -> None:
    topic = uuid.uuid4().hex
    make_topic(kafka_server, topic, 1)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", b"{}")] * 5)
    log.close()
    found = ends_of_offsets(kafka_server.url, {(topic, 0): 2})
    assert list(found.values()) == [Mark(0, 2)]
    with pytest.raises(NoSuchEnd, match=r"has offset 7 of .*/0, which ends before 5: expected the topic that history"):
        ends_of_offsets(kafka_server.url, {(topic, 0): 7})
    with pytest.raises(NoSuchEnd, match="/3, which Kafka lacks"):
        ends_of_offsets(kafka_server.url, {(topic, 3): 0})
    with pytest.raises(NoSuchEnd, match="Kafka has no topic absent"):
        ends_of_offsets(kafka_server.url, {("absent", 0): 0})
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    admin.delete_records({TopicPartition(topic, 0): 4})
    admin.close()
    with pytest.raises(NoSuchEnd, match=r"begins at 4: Kafka has removed what is between.*up to offset 3"):
        ends_of_offsets(kafka_server.url, {(topic, 0): 2})
    assert list(ends_of_offsets(kafka_server.url, {(topic, 0): 3}).values()) == [Mark(0, 3)]
