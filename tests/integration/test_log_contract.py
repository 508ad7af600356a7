"""The laws of every log, on the real ones."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaConnectionError
from kafka.future import Future

from learner.batch.reading import read_events
from learner.events.wire import impression_json
from learner.log import (
    Entry,
    EntryTooLarge,
    EventLog,
    LogUnavailable,
    Message,
    Reader,
    open_log,
    open_reader,
    read_to_end,
)
from learner.log.kafka import KafkaReader
from learner.log.position import NOTHING, Mark, Partition
from learner.model.spec import load_model
from tests.outcomes import collected, rows_in
from tests.servers import KafkaServer, eventually
from tests.topics import WAIT_MS, make_topic, read


class Logs:
    """Writing and reading ends of one log, closed with the test."""

    def __init__(self, url: str, create: Callable[[str], None]) -> None:
        self.url = url
        self.create = create
        self._open: list[EventLog | Reader] = []

    def log(self) -> EventLog:
        self._open.append(open_log(self.url))
        return self._open[-1]  # type: ignore[return-value]

    def reader(self, *topics: str, group: str = "g") -> Reader:
        self._open.append(open_reader(self.url, topics, group))
        return self._open[-1]  # type: ignore[return-value]

    def close(self) -> None:
        for end in self._open:
            end.close()


@pytest.fixture(params=["sqlite", "kafka"])
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Logs]:
    if request.param == "kafka":
        server = request.getfixturevalue("kafka_server")
        logs = Logs(server.url, lambda topic: make_topic(server, topic))
    else:
        logs = Logs(f"sqlite:///{tmp_path / 'log.db'}", lambda topic: None)
    yield logs
    logs.close()


@pytest.fixture
def topic(logs: Logs) -> str:
    name = f"t-{uuid.uuid4().hex}"
    logs.create(name)
    return name


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Call side by side: kafka-python takes up what the group answers in a poll, and not what came before it."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [called.result() for called in [pool.submit(call) for call in calls]]


def test_a_partition_that_becomes_ours_is_told_once_with_what_the_group_has_committed(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", b"0"), Entry(topic, b"k", b"1")])
    first = logs.reader(topic)
    messages = read(first, 2)
    partition = messages[0].position.partition
    assert first.assigned() == {partition: None}
    assert first.assigned() == {}
    assert first.held() == {partition}
    first.commit(messages[:1])
    first.close()
    second = logs.reader(topic)
    (message,) = read(second, 1)
    assert message.position == messages[1].position
    assert second.assigned() == {partition: messages[0].position.mark}


def test_a_reader_goes_on_behind_the_mark_that_it_is_told(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", str(i).encode()) for i in range(5)])
    reader = logs.reader(topic)
    messages = read(reader, 5)
    reader.assigned()
    reader.commit(messages)
    for behind, mark in ((3, messages[2].position.mark), (0, NOTHING)):
        reader.seek(messages[0].position.partition, mark)
        assert read(reader, 5 - behind) == messages[behind:]
    # No step back of the log: nothing is looked at anew.
    assert reader.assigned() == {}
    reader.commit(messages[:2])
    reader.close()
    assert read(logs.reader(topic), 3) == messages[2:]


def test_a_reader_that_is_sent_back_to_the_beginning_has_all_of_it_still_to_poll(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", str(i).encode()) for i in range(5)])
    first = logs.reader(topic)
    messages = read(first, 5)
    first.commit(messages)
    first.close()
    second = logs.reader(topic)
    eventually(lambda: second.poll(WAIT_MS, 1) == [] and bool(second.assigned()), 30, "the second has the partition")
    assert second.lag() == 0
    second.seek(messages[0].position.partition, NOTHING)
    # At once: a learner that takes 0 for the end of the log ends the windows of its users.
    assert second.lag() == 5
    assert read(second, 5) == messages


def test_a_partition_that_is_not_ours_is_not_sought(logs: Logs, topic: str) -> None:
    reader = logs.reader(topic)
    reader.poll(WAIT_MS, 1)
    reader.seek(Partition(b"n" * 16, 7), Mark(0, 5))
    assert reader.poll(WAIT_MS, 1) == []


def test_messages_come_in_the_order_they_were_appended(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", str(i).encode()) for i in range(50)])
    messages = read(logs.reader(topic), 50)
    assert [message.value for message in messages] == [str(i).encode() for i in range(50)]
    assert [message.position.offset for message in messages] == list(range(50))
    assert {message.key for message in messages} == {b"k"}
    assert {message.topic for message in messages} == {topic}


def test_a_poll_has_all_that_came_since_the_one_that_came_to_the_end(logs: Logs, topic: str) -> None:
    log, reader = logs.log(), logs.reader(topic)

    def append(*values: bytes) -> None:
        for value in values:
            log.append([Entry(topic, None, value)])
            # A reader that has asked for what is next has an answer.
            time.sleep(0.05)

    append(b"0")
    read(reader, 1)
    # It asks for what is next, and does not wait.
    assert reader.poll(0, 100) == []
    append(b"1")
    assert [message.value for message in reader.poll(WAIT_MS, 100)] == [b"1"]
    append(b"2", b"3")
    assert [message.value for message in reader.poll(WAIT_MS, 100)] == [b"2", b"3"]


def test_bytes_and_missing_keys_come_back_as_they_were(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, None, b"\x00\xff\xfe"), Entry(topic, b"\xff", b"", [("reason", b"why")])])
    first, second = read(logs.reader(topic), 2)
    assert (first.key, first.value) == (None, b"\x00\xff\xfe")
    assert (second.key, second.value) == (b"\xff", b"")


def test_a_group_that_committed_goes_on_behind_it(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", str(i).encode()) for i in range(10)])
    reader = logs.reader(topic)
    first = read(reader, 3, max_messages=3)
    assert len(first) == 3
    assert reader.commit(first)
    reader.close()
    again = read(logs.reader(topic), 7)
    assert [message.value for message in again] == [str(i).encode() for i in range(3, 10)]


def test_what_was_not_committed_is_read_again(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", b"1")])
    reader = logs.reader(topic)
    first = read(reader, 1)
    reader.close()
    assert read(logs.reader(topic), 1) == first


def test_groups_do_not_see_each_others_commits(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", b"1")])
    one = logs.reader(topic, group="one")
    one.commit(read(one, 1))
    assert [message.value for message in read(logs.reader(topic, group="two"), 1)] == [b"1"]


def test_a_new_group_starts_at_the_beginning_and_sees_what_comes_later(logs: Logs, topic: str) -> None:
    log = logs.log()
    log.append([Entry(topic, b"k", b"before")])
    reader = logs.reader(topic)
    assert [message.value for message in read(reader, 1)] == [b"before"]
    log.append([Entry(topic, b"k", b"after")])
    assert [message.value for message in read(reader, 1)] == [b"after"]


def test_lag_counts_what_is_still_to_be_polled(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", str(i).encode()) for i in range(10)])
    reader = logs.reader(topic)
    read(reader, 4, max_messages=4)
    assert reader.lag() == 6
    # `make_topic` makes one partition.
    assert reader.lags() == {f"{topic}/0": 6}
    read(reader, 6)
    assert reader.lag() == 0


def test_one_reader_reads_several_topics(logs: Logs, topic: str) -> None:
    other = topic + "-other"
    logs.create(other)
    logs.log().append([Entry(topic, b"k", b"1"), Entry(other, b"k", b"2")])
    messages = read(logs.reader(topic, other), 2)
    assert {(message.topic, message.value) for message in messages} == {(topic, b"1"), (other, b"2")}
    assert len({message.position.partition for message in messages}) == 2


def test_what_was_appended_to_several_topics_at_once_comes_in_the_order_it_was_given(logs: Logs, topic: str) -> None:
    other = topic + "-other"
    logs.create(other)
    logs.log().append([Entry(topic if i % 3 else other, b"k", str(i).encode()) for i in range(60)])
    for topics in ((topic, other), (other, topic)):
        reader = logs.reader(*topics, group=topics[0])
        assert [int(message.value) for message in read(reader, 60, max_messages=7)] == list(range(60))
    offline = [int(message.value) for batch in read_to_end(logs.url, [topic, other]) for message in batch]
    assert offline == list(range(60))


def test_readers_agree_on_the_id_of_a_topic(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", b"1")])
    one, two = (read(logs.reader(topic, group=group), 1)[0].position.partition for group in ("one", "two"))
    assert one == two
    assert len(one.topic_id) == 16


def test_an_empty_poll_returns_in_time(logs: Logs, topic: str) -> None:
    assert logs.reader(topic).poll(50, 10) == []


def test_a_topic_that_is_made_again_has_another_id(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    seen = []
    for group in ("before", "after"):
        make_topic(kafka_server, topic)
        log, reader = open_log(kafka_server.url), open_reader(kafka_server.url, [topic], group)
        log.append([Entry(topic, b"k", group.encode())])
        (message,) = read(reader, 1)
        assert message.value == group.encode()
        assert message.position.offset == 0
        seen.append(message.position.partition.topic_id)
        log.close()
        reader.close()
        admin.delete_topics([topic])
        eventually(lambda: topic not in admin.list_topics(), 20, "the topic is gone")
    admin.close()
    assert seen[0] != seen[1]


def test_a_kafka_that_is_away_is_unavailable() -> None:
    log = open_log("kafka://127.0.0.1:1")
    with pytest.raises(LogUnavailable):
        log.append([Entry("t", None, b"x")])
    with pytest.raises(LogUnavailable):
        open_reader("kafka://127.0.0.1:1", ["t"], "g", bootstrap_timeout_ms=500)


@pytest.mark.parametrize("url", ["amqp://x", "kafka://", "sqlite:///", "kafka"])
def test_an_unknown_log_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected kafka://"):
        open_log(url)


def test_a_reader_that_idles_takes_nothing_and_afterwards_misses_nothing(logs: Logs, topic: str) -> None:
    log, reader = logs.log(), logs.reader(topic)
    log.append([Entry(topic, b"k", b"1")])
    read(reader, 1)
    log.append([Entry(topic, b"k", b"2")])
    for _ in range(3):
        reader.idle(100)
    assert [message.value for message in read(reader, 1)] == [b"2"]


def test_a_reader_that_idles_keeps_its_place_in_the_group(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic, partitions=2)
    options = {"session_timeout_ms": 2_000, "heartbeat_interval_ms": 300, "max_poll_interval_ms": 3_000}
    log, reader = open_log(kafka_server.url), open_reader(kafka_server.url, [topic], "idle", **options)
    log.append([Entry(topic, b"k", b"1")])
    messages = read(reader, 1)
    for _ in range(20):
        reader.idle(200)
    assert reader.commit(messages)
    log.close()
    reader.close()


def test_a_reader_that_idles_while_it_gains_a_partition_misses_nothing_afterwards(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic, partitions=2)
    log = open_log(kafka_server.url)
    reader, other = (
        open_reader(kafka_server.url, [topic], "gains", heartbeat_interval_ms=100, client_id=name) for name in "ab"
    )
    assert isinstance(reader, KafkaReader)

    def shared_out() -> bool:
        together(lambda: reader.poll(500, 5), lambda: other.poll(500, 5))
        return reader._consumer.assignment() == {TopicPartition(topic, 0)}

    def gained() -> bool:
        reader.idle(500)
        return len(reader._consumer.assignment()) == 2

    eventually(shared_out, 20, "the partitions are shared out")
    log.append([Entry(topic, str(i).encode(), b"") for i in range(40)])
    # The rest of what was fetched waits in the client.
    messages = read(reader, 1, max_messages=1)
    other.close()
    eventually(gained, 20, "the other's partition is gained")
    messages += read(reader, 39)
    assert sorted(int(message.key or b"") for message in messages) == list(range(40))
    log.close()
    reader.close()


def test_what_was_fetched_while_another_partition_could_not_be_checked_comes_again(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = f"t-{uuid.uuid4().hex}", f"t-{uuid.uuid4().hex}"
    for topic in (one, other):
        make_topic(kafka_server, topic)
    log, reader = open_log(kafka_server.url), open_reader(kafka_server.url, [one, other], "checks")
    assert isinstance(reader, KafkaReader)
    log.append([Entry(one, b"k", b"1"), Entry(other, b"k", b"1")])
    read(reader, 2)
    log.append([Entry(one, b"k", b"2")])

    def away() -> None:
        raise KafkaConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(reader, "_check", away)
        reader._unchecked.add(TopicPartition(other, 0))
        for _ in range(5):
            with pytest.raises(LogUnavailable):
                reader.poll(WAIT_MS, 10)
    assert [message.value for message in read(reader, 1)] == [b"2"]
    log.close()
    reader.close()


def test_a_commit_arrives_without_a_close_and_none_overtakes_another(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic)
    log, reader = open_log(kafka_server.url), open_reader(kafka_server.url, [topic], "arrives")
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(50)])
    for message in read(reader, 50):
        assert reader.commit([message])
    watcher = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="arrives", enable_auto_commit=False)
    seen = [0]

    def arrived() -> bool:
        # As the loop does when nothing comes.
        assert reader.poll(10, 1) == []
        assert reader.commit([])
        seen.append(watcher.committed(TopicPartition(topic, 0)) or 0)
        return seen[-1] == 50

    eventually(arrived, 10, "the last place is committed")
    assert seen == sorted(seen)
    for end in (watcher, log, reader):
        end.close()


def commit_refused(reader: KafkaReader, messages: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    away = KafkaConnectionError("away")
    with monkeypatch.context() as patch:
        patch.setattr(reader._consumer, "commit_async", lambda offsets, callback: Future().failure(away))
        assert reader.commit(messages)
    # As kafka-python does at the next poll.
    reader._committed(reader._offsets(), away)


def test_a_place_that_kafka_refused_is_committed_with_the_next(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic)
    log, reader = open_log(kafka_server.url), open_reader(kafka_server.url, [topic], "refused")
    assert isinstance(reader, KafkaReader)
    log.append([Entry(topic, b"k", b"1")])
    messages = read(reader, 1)
    commit_refused(reader, messages, monkeypatch)
    assert not reader.commit([])
    watcher = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="refused", enable_auto_commit=False)

    def arrived() -> bool:
        assert reader.poll(10, 1) == []
        return watcher.committed(TopicPartition(topic, 0)) == 1 and reader.commit([])

    eventually(arrived, 10, "the place is committed, and the reader knows")
    for end in (watcher, log, reader):
        end.close()


def test_what_was_read_before_a_partition_went_and_came_back_does_not_move_the_group_back(
    kafka_server: KafkaServer,
) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic)
    log = open_log(kafka_server.url)
    # The only partition goes to the first by name.
    reader, other = (
        open_reader(kafka_server.url, [topic], "back", heartbeat_interval_ms=100, client_id=name) for name in "ba"
    )
    assert isinstance(reader, KafkaReader)
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(20)])
    old = read(reader, 10, max_messages=10)
    learnt = 0

    def other_learns() -> bool:
        nonlocal learnt
        found, _ = together(lambda: other.poll(500, 20), lambda: reader.idle(500))
        learnt += len(found)
        other.commit(found)
        return learnt == 20

    def is_back() -> bool:
        reader.idle(500)
        return bool(reader._consumer.assignment())

    eventually(other_learns, 20, "another member has the partition and learns more")
    other.close()
    eventually(is_back, 20, "the partition is back")
    assert not reader.commit(old)
    assert reader.poll(WAIT_MS, 20) == []
    reader.close()
    watcher = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="back", enable_auto_commit=False)
    assert watcher.committed(TopicPartition(topic, 0)) == 20
    watcher.close()
    log.close()


def test_a_place_that_kafka_refused_is_committed_though_partitions_are_shared_out_anew(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic, partitions=2)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, str(i).encode(), b"") for i in range(40)])
    # The first partition goes to the first by name, and stays with it.
    reader = open_reader(kafka_server.url, [topic], "shared", heartbeat_interval_ms=100, client_id="a")
    assert isinstance(reader, KafkaReader)
    messages = read(reader, 40)
    in_first = sum(message.position.partition.number == 0 for message in messages)
    commit_refused(reader, messages, monkeypatch)
    other = open_reader(kafka_server.url, [topic], "shared", client_id="b")

    def shared_out() -> bool:
        together(lambda: reader.idle(500), lambda: other.idle(500))
        return reader._consumer.assignment() == {TopicPartition(topic, 0)}

    watcher = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="shared", enable_auto_commit=False)

    def arrived() -> bool:
        assert reader.poll(10, 40) == []
        reader.commit([])
        return watcher.committed(TopicPartition(topic, 0)) == in_first

    eventually(shared_out, 20, "the partitions are shared out")
    eventually(arrived, 10, "the place is committed")
    for end in (watcher, log, reader, other):
        end.close()


def test_a_member_joins_also_when_the_partitions_change_back_meanwhile(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic, partitions=2)
    leader, member = (open_reader(kafka_server.url, [topic], "joins", heartbeat_interval_ms=100) for _ in range(2))
    assert isinstance(leader, KafkaReader)
    assert isinstance(member, KafkaReader)
    leads, joined = leader._shared_out, member._shared_out

    def both() -> bool:
        together(lambda: leader.poll(500, 10), lambda: member.poll(500, 10))
        return leads.complete and joined.complete

    # Who comes first leads, and joins anew where it hears of other partitions.
    eventually(lambda: leader.poll(50, 10) == [] and leads.complete, 20, "the first has joined")
    eventually(both, 20, "the second has joined")
    coordinator = leader._consumer._coordinator
    known = coordinator._metadata_snapshot
    coordinator._metadata_snapshot = {}
    # It waits for the other, who does not poll.
    eventually(lambda: leader.poll(50, 10) == [] and not leads.complete, 20, "the first joins anew")
    coordinator._metadata_snapshot = known
    eventually(both, 20, "both have joined")
    for end in (leader, member):
        end.close()


def test_an_entry_larger_than_its_topic_takes_is_told_from_a_kafka_that_is_away(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "1000"})])
    admin.close()
    log = open_log(kafka_server.url)
    with pytest.raises(EntryTooLarge):
        log.append([Entry(topic, b"k", bytes(2_000))])
    log.append([Entry(topic, b"k", b"small")])
    log.close()
    assert [message.value for batch in read_to_end(kafka_server.url, [topic]) for message in batch] == [b"small"]


def test_headers_come_back_with_the_message(logs: Logs, topic: str) -> None:
    logs.log().append([Entry(topic, b"k", b"1", [("reason", b"not_json")])])
    (message,) = read(logs.reader(topic), 1)
    assert list(message.headers) == [("reason", b"not_json")]


def test_a_topic_made_again_under_a_running_reader_is_read_from_its_beginning(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    make_topic(kafka_server, topic)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", b"old")] * 20)
    reader = open_reader(kafka_server.url, [topic], "stays", metadata_max_age_ms=2_000)
    old = read(reader, 20)
    admin.delete_topics([topic])
    eventually(lambda: topic not in admin.list_topics(), 20, "the topic is gone")
    make_topic(kafka_server, topic)
    writer = open_log(kafka_server.url)
    writer.append([Entry(topic, b"k", str(i).encode()) for i in range(5)])
    new = read(reader, 5)
    assert [message.value for message in new] == [b"0", b"1", b"2", b"3", b"4"]
    assert {message.position.partition.topic_id for message in new}.isdisjoint(
        message.position.partition.topic_id for message in old
    )
    # What was read of the old topic must not move the group's place in the new one.
    assert not reader.commit(old)
    reader.close()
    again = open_reader(kafka_server.url, [topic], "stays")
    assert [message.value for message in read(again, 5)] == [b"0", b"1", b"2", b"3", b"4"]
    for end in (again, log, writer):
        end.close()
    admin.close()


def test_a_place_committed_in_a_deleted_topic_does_not_count_in_the_new_one(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic)
    log = open_log(kafka_server.url)
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(5)])
    consumer = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="late", enable_auto_commit=False)
    # As a learner would have left it that committed by the topic's name just after it was made again.
    consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(3, "00" * 16, -1)})
    consumer.close()
    reader = open_reader(kafka_server.url, [topic], "late")
    assert [message.value for message in read(reader, 5)] == [b"0", b"1", b"2", b"3", b"4"]
    reader.close()
    log.close()


def test_what_a_transaction_leaves_in_a_log_besides_messages_is_no_lag(kafka_server: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    make_topic(kafka_server, topic)
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap, transactional_id=topic)
    producer.init_transactions()
    for i in range(3):
        producer.begin_transaction()
        producer.send(topic, str(i).encode())
        producer.commit_transaction()
    producer.close()
    reader = open_reader(kafka_server.url, [topic], "lag", metadata_max_age_ms=500)
    assert [message.value for message in read(reader, 3, max_messages=1)] == [b"0", b"1", b"2"]
    # Each commit of a transaction has an offset of its own: the end is 6.
    eventually(lambda: reader.poll(50, 1) == [] and reader.lag() == 0, 10, "nothing is left")
    reader.close()


def test_a_place_that_a_locked_file_did_not_take_is_committed_with_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log, reader = open_log(url), open_reader(url, ["t"], "g")
    log.append([Entry("t", b"k", b"1")])
    messages = read(reader, 1)
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not reader.commit(messages)
    other.execute("ROLLBACK")
    other.close()
    assert reader.commit([])
    reader.close()
    again = open_reader(url, ["t"], "g")
    assert again.lag() == 0
    again.close()
    log.close()


def test_a_log_is_read_offline_from_the_beginning_and_no_group_notices(logs: Logs, topic: str) -> None:
    model = load_model('name = "m"\n[features]\nx = { kind = "numeric" }\n')
    shown = impression_json("r", "u", 1_700_000_000_000, [{"item_id": "a", "features": {"x": 1.0}}])
    click = b'{"type": "click", "request_id": "r", "user_id": "u", "item_id": "a", "timestamp": 1700000000004}'
    logs.log().append([Entry(topic, b"u", shown), Entry(topic, b"u", click)])
    for _ in range(2):
        outcomes = collected(read_events([logs.url], model, [topic]), model)
        assert rows_in(outcomes)["y"].tolist() == [1.0]
    assert len(read(logs.reader(topic), 2)) == 2


def test_reading_to_the_end_does_not_wait_for_what_comes_later(logs: Logs, topic: str) -> None:
    log = logs.log()
    log.append([Entry(topic, b"k", str(i).encode()) for i in range(5)])
    found = []
    for batch in read_to_end(logs.url, [topic]):
        found += [message.value for message in batch]
        log.append([Entry(topic, b"k", b"later")])
    assert found == [b"0", b"1", b"2", b"3", b"4"]


def test_a_topic_that_does_not_exist_has_nothing_to_read_to_the_end(logs: Logs) -> None:
    assert list(read_to_end(logs.url, ["never-made"])) == []
