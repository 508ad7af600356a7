"""A broker that gives topics no ids, and whose log has records in format v1, as of before Kafka 0.11."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource
from structlog.testing import capture_logs

from learner.events.wire import Reason
from learner.log import open_reader, read_to_end
from learner.model.spec import load_model
from service.settings import Settings
from service.verification import Finding, verify
from tests.servers import OldKafkaServer, eventually
from tests.topics import learning, make_topic, read

MODEL = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000


@pytest.fixture
def topic(old_kafka: OldKafkaServer) -> str:
    name = f"t-{uuid.uuid4().hex}"
    for one in (name, f"{name}.dlq"):
        make_topic(old_kafka, one, partitions=2, **{"retention.ms": "-1"})
    return name


def segment(server: OldKafkaServer, topic: str) -> Path:
    return server.folder / "old-kafka-data" / f"{topic}-0" / f"{0:020}.log"


def put(server: OldKafkaServer, topic: str, values: Sequence[bytes], partition: int = 0, **options: Any) -> None:
    with KafkaProducer(bootstrap_servers=server.bootstrap, enable_idempotence=False, **options) as producer:
        for value in values:
            producer.send(topic, value, key=b"k", partition=partition, timestamp_ms=AT)


def take_headers(server: OldKafkaServer, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
    admin.alter_configs([ConfigResource("TOPIC", topic, {"message.format.version": "2.7"})])
    admin.close()


def event(kind: str, user: str, **more: Any) -> bytes:
    body = {"type": kind, "user_id": user, "request_id": "r", "timestamp": AT, **more}
    return json.dumps(body).encode()


def shown(user: str) -> bytes:
    return event("impression", user, items=[{"item_id": "a", "features": {"x": 1.0}}])


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4"])
def test_batches_of_the_old_format_are_read_with_their_times_whatever_their_codec(
    old_kafka: OldKafkaServer, topic: str, codec: str | None
) -> None:
    sent = [f"{i} ".encode() * 2_000 for i in range(300)]
    put(old_kafka, topic, sent, linger_ms=500, batch_size=512 << 10, compression_type=codec)
    magic = segment(old_kafka, topic).read_bytes()[16]
    assert magic == 1
    reader = open_reader(old_kafka.url, [topic], "codecs")
    found = read(reader, 300)
    reader.close()
    assert [(one.value, one.key, one.timestamp) for one in found] == [(value, b"k", AT) for value in sent]
    assert [one.position.offset for one in found] == list(range(300))


def test_without_ids_topics_are_told_apart_by_their_names_and_a_group_goes_on_where_it_was(
    old_kafka: OldKafkaServer, topic: str
) -> None:
    topics = [topic, f"{topic}.dlq"]
    for one in topics:
        put(old_kafka, one, [b"1", b"2"])
    reader = open_reader(old_kafka.url, topics, "names")
    first = read(reader, 4)
    assert len({(one.topic, one.position.partition.topic_id) for one in first}) == 2
    assert len({one.position.partition.topic_id for one in first}) == 2
    assert reader.commit(first)
    reader.close()
    put(old_kafka, topic, [b"3"])
    again = open_reader(old_kafka.url, topics, "names")
    (third,) = read(again, 1)
    again.close()
    assert (third.value, third.position.partition) == (b"3", first[0].position.partition)


def test_a_learner_learns_from_it_and_writes_letters_once_their_topic_takes_headers(
    old_kafka: OldKafkaServer, topic: str, tmp_path: Path
) -> None:
    letters = f"{topic}.dlq"
    put(old_kafka, topic, [shown("ann"), event("click", "ann", item_id="a"), b"not JSON", shown("bob")])

    def looked_at() -> list[Finding]:
        settings = Settings(
            log=old_kafka.url, impressions_topic=topic, clicks_topic=topic, store=f"sqlite:///{tmp_path / 'store.db'}"
        )
        return [one for one in verify(settings, MODEL) if one.subject == "dead letters"]

    (refused,) = looked_at()
    assert refused.verdict == "FAILED"
    assert f"{letters} has message.format.version 0.10.2" in refused.text
    with learning(MODEL, old_kafka, topic, tmp_path) as learn, capture_logs() as logs:
        idle = learn.reader.idle

        def mend_once_it_is_told(timeout_ms: int) -> None:
            if any("message.format.version" in one.get("error", "") for one in logs):
                take_headers(old_kafka, letters)
            idle(timeout_ms)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learn.reader, "idle", mend_once_it_is_told)
            assert learn(4) == {Reason.NOT_JSON: 1}
        assert None not in learn.store.load(["ann", "bob"])
    (letter,) = (one for batch in read_to_end(old_kafka.url, [letters]) for one in batch)
    assert (letter.value, dict(letter.headers)["reason"]) == (b"not JSON", b"not_json")
    assert "message.format" not in str(looked_at())


@pytest.mark.parametrize("skip", [False, True])
def test_a_damaged_message_stops_its_partition_alone_or_is_skipped_with_a_letter(
    old_kafka: OldKafkaServer, topic: str, tmp_path: Path, skip: bool
) -> None:
    take_headers(old_kafka, f"{topic}.dlq")
    for value in (shown("ann"), b"corrupt-me", shown("bob")):
        put(old_kafka, topic, [value])
    put(old_kafka, topic, [shown("cy")], partition=1)
    file = segment(old_kafka, topic)
    eventually(lambda: b"corrupt-me" in file.read_bytes(), 10, "the message is in the segment")
    with file.open("r+b") as opened:
        opened.seek(file.read_bytes().index(b"corrupt-me"))
        opened.write(b"C")
    with learning(MODEL, old_kafka, topic, tmp_path, skip) as learn:
        bad = learn(4 if skip else 2)
        known = [user for user in ("ann", "bob", "cy") if learn.store.load([user]) != [None]]
        unreadable = learn.reader.health().unreadable
    if skip:
        assert (bad, known) == ({Reason.UNREADABLE: 1}, ["ann", "bob", "cy"])
    else:
        assert (bad, known) == ({}, ["ann", "cy"])
        assert [(one.topic, one.partition, one.offset) for one in unreadable] == [(topic, 0, 1)]
