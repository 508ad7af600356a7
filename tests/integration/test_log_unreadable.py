"""What producers and disks put into a log: codecs, transactions, nulls, bytes that cannot be read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer, codec

from learner.events.wire import Reason
from learner.log import REPLAYS_HEADER, Message, Reader, open_log, open_reader, read_to_end
from learner.model.spec import load_model
from service.dead_letters import Request, replay
from tests.servers import KafkaServer, eventually
from tests.topics import learning, make_topic, read

MODEL = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000


class BadKey(str):
    """A header key of bytes that are no UTF-8, which kafka-python would not send otherwise."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


@pytest.fixture
def topic(kafka_server: KafkaServer) -> str:
    name = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, name, partitions=2)
    return name


@pytest.fixture
def producer(kafka_server: KafkaServer) -> Iterator[KafkaProducer]:
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, linger_ms=50) as one:
        yield one


def segment(server: KafkaServer, topic: str, partition: int) -> Path:
    return server.folder / "kafka-data" / f"{topic}-{partition}" / f"{0:020}.log"


def flip(server: KafkaServer, topic: str, partition: int, marker: bytes) -> None:
    """Change one byte of a stored batch, as a disk does."""
    file = segment(server, topic, partition)
    eventually(lambda: marker in file.read_bytes(), 10, "the batch is in the segment")
    place = file.read_bytes().index(marker)
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(bytes([marker[0] ^ 1]))


def put(producer: KafkaProducer, topic: str, values: list[bytes], partition: int = 0, headers: object = None) -> None:
    """Append values one by one, each in a batch of its own."""
    for value in values:
        producer.send(topic, value, partition=partition, headers=headers).get(10)


def values(messages: list[Message]) -> list[bytes]:
    return [message.value for message in messages]


def shown(user: str) -> bytes:
    items = [{"item_id": "a", "features": {"x": 1.0}}]
    event = {"type": "impression", "user_id": user, "request_id": "r", "timestamp": AT, "items": items}
    return json.dumps(event).encode()


@pytest.mark.parametrize("name", ["gzip", "snappy", "lz4", "zstd"])
def test_batches_of_every_codec_are_read(kafka_server: KafkaServer, topic: str, name: str) -> None:
    sent = [f"{i} ".encode() * 2_000 for i in range(300)]  # Decompressed more than the 1 MiB that zstd is read by.
    with KafkaProducer(
        bootstrap_servers=kafka_server.bootstrap, compression_type=name, linger_ms=500, batch_size=4 << 20
    ) as one:
        for value in sent:
            one.send(topic, value, partition=0)
    reader = open_reader(kafka_server.url, [topic], "codecs")
    assert values(read(reader, 300)) == sent
    reader.close()


def stands_still(reader: Reader, others: list[bytes], topic: str, offset: int) -> str:
    """See that the other partition goes on while partition 0 waits at an offset; returns the cause it tells."""
    found: list[bytes] = []

    def polled() -> bool:
        found.extend(values(reader.poll(100, 10)))
        return len(found) >= len(others) and bool(reader.health().unreadable)

    eventually(polled, 20, "the other partition is read, and it is told that this one is not")
    for _ in range(5):
        found.extend(values(reader.poll(100, 10)))
    assert sorted(found) == sorted(others)
    (bad,) = reader.health().unreadable
    assert (bad.topic, bad.partition, bad.offset) == (topic, 0, offset)
    return bad.cause


def test_a_corrupt_batch_stops_its_partition_alone_and_a_restart_changes_nothing(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str
) -> None:
    put(producer, topic, [b"good", b"corrupt-me", b"behind"])
    put(producer, topic, [b"other-1", b"other-2"], partition=1)
    flip(kafka_server, topic, 0, b"corrupt-me")
    reader = open_reader(kafka_server.url, [topic], "crc")
    assert "crc" in stands_still(reader, [b"good", b"other-1", b"other-2"], topic, 1)
    put(producer, topic, [b"other-3"], partition=1)
    assert values(read(reader, 1)) == [b"other-3"]
    reader.close()
    again = open_reader(kafka_server.url, [topic], "crc")
    stands_still(again, [b"good", b"other-1", b"other-2", b"other-3"], topic, 1)
    assert again.lag() == 2
    again.close()


def test_a_partition_that_can_be_read_again_goes_on_where_it_stood(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.log.kafka_fetcher.RETRY_S", 0.5)
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, compression_type="lz4") as one:
        put(one, topic, [b"packed" * 100])
    put(producer, topic, [b"other"], partition=1)
    reader = open_reader(kafka_server.url, [topic], "back")
    with monkeypatch.context() as patch:
        patch.setattr(codec, "lz4", None)
        assert "lz4" in stands_still(reader, [b"other"], topic, 0)
    assert values(read(reader, 1)) == [b"packed" * 100]
    assert reader.health().unreadable == ()
    reader.close()


def test_a_header_key_that_is_not_utf8_stops_its_partition_alone(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str
) -> None:
    put(producer, topic, [b"good"])
    put(producer, topic, [b"bad"], headers=[(BadKey("k"), b"v")])
    put(producer, topic, [b"other"], partition=1)
    reader = open_reader(kafka_server.url, [topic], "header")
    assert "UnicodeDecodeError" in stands_still(reader, [b"good", b"other"], topic, 1)
    reader.close()


def test_skipping_gives_the_bad_record_or_batch_as_a_message_that_says_why_and_all_others(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str
) -> None:
    put(producer, topic, [b"1"])
    # One batch of three, of which one record is bad.
    sent = [
        producer.send(topic, v, partition=0, headers=h)
        for v, h in [(b"2", []), (b"3", [(BadKey("k"), b"v")]), (b"4", [])]
    ]
    assert [one.get(10).offset for one in sent] == [1, 2, 3]
    # One batch of two that is bad as a whole.
    assert [one.get(10).offset for one in [producer.send(topic, b"corrupt-us", partition=0) for _ in range(2)]] == [
        4,
        5,
    ]
    put(producer, topic, [b"6"])
    flip(kafka_server, topic, 0, b"corrupt-us")
    reader = open_reader(kafka_server.url, [topic], "skips", skip_unreadable=True)
    messages = read(reader, 6)
    assert [(one.position.offset, one.value, bool(one.unreadable)) for one in messages] == [
        (0, b"1", False), (1, b"2", False), (2, b"", True), (3, b"4", False), (5, b"", True), (6, b"6", False),
    ]  # fmt: skip
    assert "offsets 4 to 5" in messages[4].unreadable
    assert reader.health().unreadable == ()
    reader.close()
    offline = [one for batch in read_to_end(kafka_server.url, [topic]) for one in batch]
    assert [one.position.offset for one in offline if one.unreadable] == [2, 5]


def test_what_was_not_said_in_the_end_is_not_read(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str
) -> None:
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, transactional_id=topic) as one:
        one.init_transactions()
        for value, commits in [(b"aborted", False), (b"committed", True), (b"aborted too", False)]:
            one.begin_transaction()
            for _ in range(3):
                one.send(topic, value, partition=0)
            if commits:
                one.commit_transaction()
            else:
                one.abort_transaction()
    put(producer, topic, [b"after"])
    reader = open_reader(kafka_server.url, [topic], "transactions")
    assert values(read(reader, 4)) == [b"committed"] * 3 + [b"after"]
    eventually(lambda: reader.poll(50, 10) == [] and reader.lag() == 0, 10, "nothing is left")
    reader.close()
    offline = [one.value for batch in read_to_end(kafka_server.url, [topic]) for one in batch]
    assert offline == [b"committed"] * 3 + [b"after"]


class NullHeader(bytes):
    """A header value that is null, which kafka-python would not send otherwise."""


@pytest.fixture
def null_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kafka-python's producer write null for a `NullHeader`."""
    from kafka.record.default_records import DefaultRecordBatchBuilder

    append = DefaultRecordBatchBuilder.append

    def appended(self: object, offset: int, timestamp: int, key: object, value: object, headers: list, **more: object):  # type: ignore[no-untyped-def, type-arg]
        headers = [(name, None if isinstance(one, NullHeader) else one) for name, one in headers]
        return append(self, offset, timestamp, key, value, headers, **more)

    monkeypatch.setattr(DefaultRecordBatchBuilder, "append", appended)


@pytest.mark.usefixtures("null_headers")
def test_nulls_anywhere_are_dead_lettered_or_learnt_and_end_no_process(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str, tmp_path: Path
) -> None:
    nulls = [(REPLAYS_HEADER, NullHeader()), ("reason", NullHeader())]
    for value, headers in [(None, []), (b"", []), (b"not JSON", nulls), (None, nulls), (shown("ann"), nulls)]:
        # kafka-python refuses to send a record without both.
        producer.send(topic, value, key=b"k" if value is None else None, partition=0, headers=headers).get(10)
    with learning(MODEL, kafka_server, topic, tmp_path) as learn:
        assert learn(5) == {Reason.NOT_JSON: 4}
        assert learn.store.load(["ann"]) != [None]
    letters = [one for batch in read_to_end(kafka_server.url, [topic + ".dlq"]) for one in batch]
    assert sorted(letter.value for letter in letters) == [b"", b"", b"", b"not JSON"]
    # Letters of others may have nulls too.
    producer.send(topic + ".dlq", shown("bob"), headers=[("reason", NullHeader()), (REPLAYS_HEADER, NullHeader())])
    producer.flush(10)
    log = open_log(kafka_server.url)
    rows = replay(kafka_server.url, Request([topic]), MODEL, log)
    log.close()
    assert rows[topic, "(none)"].fates.total() == 1
    assert rows[topic, "(none)"].positions != []


@pytest.mark.parametrize("skip", [False, True])
def test_a_learner_goes_on_beside_what_it_cannot_read(
    kafka_server: KafkaServer, producer: KafkaProducer, topic: str, tmp_path: Path, skip: bool
) -> None:
    put(producer, topic, [shown("ann")])
    put(producer, topic, [b"corrupt-me"])
    put(producer, topic, [shown("bob")])
    put(producer, topic, [shown("cy")], partition=1)
    flip(kafka_server, topic, 0, b"corrupt-me")
    with learning(MODEL, kafka_server, topic, tmp_path, skip) as learn:
        bad = learn(4 if skip else 2)
        known = [user for user in ("ann", "bob", "cy") if learn.store.load([user]) != [None]]
    letters = [one for batch in read_to_end(kafka_server.url, [topic + ".dlq"]) for one in batch]
    if not skip:
        assert (bad, known, letters) == ({}, ["ann", "cy"], [])
        return
    assert (bad, known) == ({Reason.UNREADABLE: 1}, ["ann", "bob", "cy"])
    (letter,) = letters
    headers = dict(letter.headers)
    assert (letter.value, headers["reason"], headers["offset"]) == (b"", b"unreadable", b"1")
    # The group is behind it.
    reader = open_reader(kafka_server.url, [topic], "learning")
    assert reader.poll(2_000, 10) == []
    reader.close()
