"""What a reader tells of its partitions: how much is left of them, what is missing, what is gone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.cluster import ClusterMetadata
from structlog.testing import capture_logs

from learner.log import Entry, open_log, open_reader
from learner.log.health import HEALTHY, Lost
from learner.log.kafka_fetcher import InTimeOrder
from tests.servers import KafkaServer, eventually
from tests.topics import make_topic, read

AT = 1_700_000_000_000


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex}"


@pytest.fixture
def admin(kafka_server: KafkaServer) -> Iterator[KafkaAdminClient]:
    one = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    yield one
    one.close()


def test_lag_counts_every_partition_from_the_first_messages_on_also_those_not_fetched_yet(
    kafka_server: KafkaServer, topic: str
) -> None:
    topics = [topic, f"{topic}-clicks"]
    for name in topics:
        make_topic(kafka_server, name, partitions=200)
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap, linger_ms=50) as producer:
        for name in topics:
            for i in range(6_400):
                producer.send(name, b"x" * 500, partition=i % 200)
    reader = open_reader(kafka_server.url, topics, "lag")
    first: list[int] = []

    def polled() -> bool:
        first.append(len(reader.poll(200, 50)))
        return reader.lag() > 0 or first[-1] > 0

    eventually(polled, 30, "something is told of the backlog")
    assert reader.lag() == 12_800 - sum(first)
    assert reader.lags().keys() == {f"{name}/{i}" for name in topics for i in range(200)}
    for left in (12_750, 12_700):
        if reader.lag() > left:
            read(reader, reader.lag() - left, max_messages=50)
        assert reader.lag() == left
    assert len(read(reader, 12_700)) == 12_700
    assert reader.lag() == 0
    reader.close()


def test_a_topic_that_does_not_exist_is_told_by_its_name_is_not_made_and_does_not_hold_the_other(
    kafka_server: KafkaServer, topic: str, admin: KafkaAdminClient
) -> None:
    make_topic(kafka_server, topic)
    misspelt = f"{topic}-clikcs"
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", b"1")])
    reader = open_reader(kafka_server.url, [topic, misspelt], "missing", metadata_max_age_ms=500)
    assert [one.value for one in read(reader, 1)] == [b"1"]
    assert reader.health().missing == (misspelt,)
    assert misspelt not in admin.list_topics()
    make_topic(kafka_server, misspelt)
    log.append([Entry(misspelt, b"k", b"2")])
    assert [one.value for one in read(reader, 1)] == [b"2"]
    assert reader.health() == HEALTHY
    reader.close()
    log.close()


def test_topics_with_different_numbers_of_partitions_are_warned_of_once(kafka_server: KafkaServer, topic: str) -> None:
    make_topic(kafka_server, topic, partitions=2)
    make_topic(kafka_server, f"{topic}-clicks", partitions=3)
    reader = open_reader(kafka_server.url, [topic, f"{topic}-clicks"], "counts")
    with capture_logs() as logs:
        eventually(lambda: reader.poll(100, 10) or logs, 10, "it is warned")
    assert [one["partitions"] for one in logs if one["log_level"] == "warning"] == [{topic: 2, f"{topic}-clicks": 3}]
    reader.close()


def test_a_topic_of_items_may_have_any_number_of_partitions(kafka_server: KafkaServer, topic: str) -> None:
    make_topic(kafka_server, topic, partitions=2)
    make_topic(kafka_server, f"{topic}-items", partitions=3)
    topics = [topic, f"{topic}-items"]
    reader = open_reader(kafka_server.url, topics, "counts", items_topic=f"{topic}-items")
    with capture_logs() as logs:
        eventually(lambda: reader.poll(100, 10) or len(reader.held()) == 5, 30, "all partitions are ours")
        reader._watch._compare_topics()  # type: ignore[attr-defined]
    assert not [one for one in logs if one["log_level"] == "warning" and "partitions" in one]
    reader.close()


def test_what_retention_took_before_it_was_read_is_told_with_its_range_and_known_to_the_next(
    kafka_server: KafkaServer, topic: str, admin: KafkaAdminClient
) -> None:
    make_topic(kafka_server, topic)
    place = TopicPartition(topic, 0)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(20)])
    reader = open_reader(kafka_server.url, [topic], "retention")
    assert reader.commit(read(reader, 5, max_messages=5))
    reader.close()
    # As retention does, only that it waits for whole segments.
    admin.delete_records({place: 12})
    reader = open_reader(kafka_server.url, [topic], "retention")
    with capture_logs() as logs:
        messages = read(reader, 8)
    assert messages[0].value == b"12"
    (lost,) = reader.health().lost
    assert lost == Lost(topic, 0, 5, 11, 7, lost.at)
    (told,) = (one for one in logs if one["event"] == "events lost")
    assert (told["topic"], told["partition"], told["first"], told["last"], told["count"]) == (topic, 0, 5, 11, 7)
    # While it runs, too.
    reader.idle(300)
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(20, 40)])
    admin.delete_records({place: 30})
    messages += read(reader, 10)
    assert messages[-1].value == b"39"
    (lost,) = reader.health().lost
    assert lost == Lost(topic, 0, 5, 29, 10, lost.at)
    assert reader.commit(messages)
    reader.close()
    again = open_reader(kafka_server.url, [topic], "retention")
    log.append([Entry(topic, b"k", b"40")])
    assert [one.value for one in read(again, 1)] == [b"40"]
    assert again.health().lost == (Lost(topic, 0, 5, 29, 25, lost.at, here=False),)
    again.close()
    log.close()


def test_what_was_gone_before_the_group_began_is_no_loss_of_its(
    kafka_server: KafkaServer, topic: str, admin: KafkaAdminClient
) -> None:
    make_topic(kafka_server, topic)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(20)])
    admin.delete_records({TopicPartition(topic, 0): 12})
    reader = open_reader(kafka_server.url, [topic], "begins")
    assert read(reader, 8)[0].value == b"12"
    assert reader.health() == HEALTHY
    reader.close()
    log.close()


def test_a_broker_without_topic_ids_is_read(
    kafka_server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As kafka-python has it of brokers before 2.8.
    monkeypatch.setattr(ClusterMetadata, "topic_id", lambda self, topic: None)
    monkeypatch.setattr(ClusterMetadata, "_topic_ids", property(lambda self: {}, lambda self, ids: None), raising=False)
    make_topic(kafka_server, topic)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", b"1"), Entry(topic, b"k", b"2")])
    reader = open_reader(kafka_server.url, [topic], "no ids")
    first = read(reader, 1, max_messages=1)
    assert reader.commit(first)
    reader.close()
    reader = open_reader(kafka_server.url, [topic], "no ids")
    (second,) = read(reader, 1)
    assert second.value == b"2"
    assert second.position.partition == first[0].position.partition
    assert len(second.position.partition.topic_id) == 16
    reader.close()
    log.close()


def test_a_partition_that_is_behind_and_of_which_nothing_comes_is_not_waited_for_without_end(
    kafka_server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.log.kafka_queue.WAIT_S", 1.0)
    make_topic(kafka_server, topic, partitions=2)
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap) as producer:
        producer.send(topic, b"earlier", partition=1, timestamp_ms=AT)
        producer.send(topic, b"later", partition=0, timestamp_ms=AT + 3_600_000)
    reader = open_reader(kafka_server.url, [topic], "away")
    fetchable = InTimeOrder._fetchable_partitions
    with monkeypatch.context() as patch, capture_logs() as logs:
        # As with its broker away.
        patch.setattr(
            InTimeOrder, "_fetchable_partitions", lambda self: [one for one in fetchable(self) if one.partition == 0]
        )
        assert [one.value for one in read(reader, 1)] == [b"later"]
    assert [one["event"] for one in logs] == ["no longer waiting for a partition"]
    assert [one.value for one in read(reader, 1)] == [b"earlier"]
    reader.close()


def test_nobody_waits_for_a_transaction_that_is_open(
    kafka_server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.log.kafka_queue.WAIT_S", 1e9)
    make_topic(kafka_server, topic, partitions=2)
    with (
        KafkaProducer(bootstrap_servers=kafka_server.bootstrap, transactional_id=topic) as slow,
        KafkaProducer(bootstrap_servers=kafka_server.bootstrap) as producer,
    ):
        slow.init_transactions()
        slow.begin_transaction()
        slow.send(topic, b"open", partition=1, timestamp_ms=AT).get(10)
        producer.send(topic, b"later", partition=0, timestamp_ms=AT + 3_600_000).get(10)
        reader = open_reader(kafka_server.url, [topic], "open")
        assert [one.value for one in read(reader, 1)] == [b"later"]
        assert reader.lag() == 0
        slow.commit_transaction()
        assert [one.value for one in read(reader, 1)] == [b"open"]
        reader.close()
