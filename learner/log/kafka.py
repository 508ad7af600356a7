"""The log on Kafka, by kafka-python."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from learner.log import Entry, EntryTooLarge, LogUnavailable, Message
from learner.log.position import NOTHING, Mark, Partition, Position

DELIVERY_TIMEOUT_MS = 10_000
# With the brokers away a reader gives up after this long, so that it can be told to stop; it may ask again.
ANSWER_TIMEOUT_MS = 5_000

_CLIENT_OPTIONS = {
    # A broker that is back is found this soon; kafka-python would wait up to 30 s.
    "reconnect_backoff_max_ms": 1_000,
}
_READER_OPTIONS = {
    **_CLIENT_OPTIONS,
    "fetch_max_wait_ms": 100,
    "max_partition_fetch_bytes": 4 << 20,
    "bootstrap_timeout_ms": ANSWER_TIMEOUT_MS,
    # A topic or partition made while we run is found this soon.
    "metadata_max_age_ms": 30_000,
}


class KafkaLog:
    """See `learner.log.EventLog`. Connects at the first append, so that its owner can start while Kafka is away."""

    def __init__(self, servers: str, options: Mapping[str, Any]) -> None:
        self._servers = servers
        self._options = options
        self._lock = threading.Lock()
        self._producer: Any = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Send all entries and wait until every in-sync replica has them."""
        with _translated():
            producer = self._connected()
            sent = [
                producer.send(entry.topic, key=entry.key, value=entry.value, headers=list(entry.headers))
                for entry in entries
            ]
            for future in sent:
                future.get(timeout=DELIVERY_TIMEOUT_MS / 1000)

    def close(self) -> None:
        """Close the producer, if one was made."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=DELIVERY_TIMEOUT_MS / 1000)

    def _connected(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=self._servers.split(","),
                    acks="all",
                    # An idempotent producer of kafka-python is done for after any refusal, one event too large
                    # included. Repeats change nothing here; one request at a time keeps the order.
                    enable_idempotence=False,
                    max_in_flight_requests_per_connection=1,
                    linger_ms=0,
                    # A dead letter may be an event larger than any that is taken.
                    max_request_size=16 << 20,
                    max_block_ms=DELIVERY_TIMEOUT_MS // 2,
                    delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                    request_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    bootstrap_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    **{**_CLIENT_OPTIONS, **self._options},
                )
            return self._producer


class KafkaReader:
    """See `learner.log.Reader`.

    Kafka knows a topic by its name; a topic that was deleted and made again starts at offset 0 under the same name. So
    each commit carries the topic's id, the id is asked for anew whenever a partition becomes ours or an offset steps
    back, and where it has changed the new topic is read from its beginning.
    """

    def __init__(self, servers: str, topics: Sequence[str], group: str, options: Mapping[str, Any]) -> None:
        with _translated():
            self._consumer: Any = KafkaConsumer(
                # Named here as well as below: then the first metadata already has them.
                *topics,
                bootstrap_servers=servers.split(","),
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                **{**_READER_OPTIONS, **options},
            )
        self._ids: dict[str, bytes] = {}
        self._next: dict[TopicPartition, int] = {}
        # Learnt, and not known to be committed.
        self._owed: dict[TopicPartition, Position] = {}
        self._under_way = False
        self._failed = False
        # Partitions whose topic id and committed offset are still to be looked at.
        self._unchecked: set[TopicPartition] = set()
        self._shared_out = _Assigned(self._unchecked)
        # Those that were looked at, until `assigned` tells them.
        self._gained: dict[Partition, Mark | None] = {}
        self._lag = 0
        self._consumer.subscribe(list(topics), listener=self._shared_out)
        with _translated():
            # Before the first poll joins the group: a leader that has not heard of a topic's partitions gives them to
            # nobody, and kafka-python does not always notice when it hears of them in that moment.
            for topic in topics:
                self._consumer.partitions_for_topic(topic)

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        """Fetch; also takes part in rebalances."""
        with _translated():
            self._keep_joining()
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_messages)
            self._unchecked &= self._consumer.assignment()
            for place in self._consumer.assignment():
                # Without a record too: kafka-python may go on at the end of a topic that was made again.
                stepped_back = place in fetched and fetched[place][0].offset < self._next.get(place, 0)
                if stepped_back or self._current_id(place) != self._ids.get(place.topic):
                    self._unchecked.add(place)
            if self._unchecked:
                self._put_back({place: fetched.pop(place) for place in self._unchecked & fetched.keys()})
                try:
                    self._check()
                except KafkaError:
                    # What came from other partitions must come again: the consumer believes that we have it.
                    self._put_back(fetched)
                    raise
        messages = []
        for place, records in fetched.items():
            self._next[place] = records[-1].offset + 1
            partition = Partition(self._ids[place.topic], place.partition)
            messages += [_message(one, partition) for one in records]
        return messages

    def assigned(self) -> dict[Partition, Mark | None]:
        """Partitions that were looked at since; nothing was polled of them before."""
        gained, self._gained = self._gained, {}
        return gained

    def held(self) -> Set[Partition]:
        """The partitions of the last poll."""
        ours = self._consumer.assignment() - self._unchecked
        return {Partition(self._ids[place.topic], place.partition) for place in ours}

    def seek(self, partition: Partition, mark: Mark) -> None:
        """Go on behind a mark; where the log was cut before it, kafka-python goes on there."""
        for place in self._consumer.assignment() - self._unchecked:
            if Partition(self._ids[place.topic], place.partition) == partition:
                if mark == NOTHING:
                    self._consumer.seek_to_beginning(place)
                else:
                    self._go_to(place, mark.offset + 1, mark.epoch)
                self._next.pop(place, None)
                self._owed.pop(place, None)

    def _go_to(self, place: TopicPartition, offset: int, epoch: int) -> None:
        """Seek to behind an event of that leader epoch, which kafka-python compares with the broker's log (KIP-320)."""
        self._consumer.seek(place, offset)
        # `seek` takes no leader epoch.
        self._consumer._subscription.assignment[place].seek(OffsetAndMetadata(offset, "", epoch))

    def idle(self, timeout_ms: int) -> None:
        """Take part in rebalances for so long; heartbeats go on by themselves.

        By kafka-python's own half of a poll: where partitions were paused and moved at the same time, it would keep
        what it had fetched of one for good, and read no more of it.
        """
        until = time.monotonic() + timeout_ms / 1000
        with _translated():
            self._keep_joining()
            self._consumer._coordinator.poll(timeout_ms=timeout_ms)
        time.sleep(max(0.0, until - time.monotonic()))

    def commit(self, messages: Sequence[Message]) -> bool:
        """Commit the group's offsets, but for partitions that have gone to another member, which is harmless.

        It is sent and not waited for: Kafka gathers commits for some milliseconds, in which the stream goes on. What
        comes while one is under way goes with the next.
        """
        for last in {message.position.partition: message for message in messages}.values():
            self._owed[TopicPartition(last.topic, last.position.partition.number)] = last.position
        complete = self._disown()
        if self._owed and not self._under_way:
            try:
                self._consumer.commit_async(self._offsets(), self._committed)
                # Told by the callback alone: the future may be that of a look for the group's coordinator.
                self._under_way = True
            except KafkaError:
                self._failed = True
        return complete and not self._failed

    def lag(self) -> int:
        """Messages behind the last known ends of this member's partitions.

        Counted from where kafka-python would go on, which is also behind the markers of producers' transactions: they
        have offsets, and never come as messages. While partitions are being shared out, which may be for as long as
        Kafka is away, it is what it last was.
        """
        if not self._shared_out.complete:
            return self._lag
        lag = 0
        for place, state in self._consumer._subscription.assignment.items():
            end = self._consumer.highwater(place)
            if end is not None and state.position is not None:
                lag += max(0, end - state.position.offset)
        self._lag = lag
        return lag

    def close(self) -> None:
        """Commit what is left, and leave the group, so that others need not wait for the session's timeout."""
        try:
            self._disown()
            if self._owed:
                # What cannot be committed any more is read again, and skipped.
                with suppress(KafkaError):
                    self._consumer.commit(self._offsets(), timeout_ms=ANSWER_TIMEOUT_MS)
        finally:
            self._consumer.close(autocommit=False, timeout_ms=ANSWER_TIMEOUT_MS)

    def _keep_joining(self) -> None:
        if not self._shared_out.complete:
            # kafka-python forgets that it is joining where it began to because partitions had changed, and they change
            # back before it has joined, as those of a topic that is deleted and made again do. It would never join.
            self._consumer._coordinator.request_rejoin()

    def _disown(self) -> bool:
        """Owe no place in a partition that is not ours, or no longer the same; say whether there was none.

        One that became ours since the last poll is not the same: another member may have had it meanwhile, and have
        committed more.
        """
        owned = self._consumer.assignment() - self._unchecked
        ours = {
            place: position
            for place, position in self._owed.items()
            if place in owned and self._ids.get(place.topic) == position.partition.topic_id
        }
        complete = len(ours) == len(self._owed)
        self._owed = ours
        return complete

    def _offsets(self) -> dict[TopicPartition, OffsetAndMetadata]:
        return {
            place: OffsetAndMetadata(position.offset + 1, position.partition.topic_id.hex(), position.epoch)
            for place, position in self._owed.items()
        }

    def _committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], answer: object) -> None:
        """What has become of a commit; kafka-python calls it in our thread, at the next poll or commit."""
        self._under_way = False
        self._failed = isinstance(answer, Exception)
        if self._failed:
            return
        # The places that nothing was learnt of since.
        for place, offset in self._offsets().items():
            if offsets.get(place) == offset:
                del self._owed[place]

    def _put_back(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        for place, records in fetched.items():
            self._go_to(place, records[0].offset, _epoch(records[0]))

    def _check(self) -> None:
        """See which topics are behind newly gained partitions; begin anew on those that are not what they were."""
        self._consumer.topics()  # Always asks the broker, and so renews the ids.
        for place in list(self._unchecked):
            topic_id = self._current_id(place)
            if topic_id is None:
                continue  # Deleted, and not made again yet.
            committed = self._consumer.committed(place, metadata=True, timeout_ms=ANSWER_TIMEOUT_MS)
            known = self._ids.get(place.topic, topic_id)
            behind = None
            if topic_id != known or (committed is not None and committed.metadata not in ("", topic_id.hex())):
                others = {one for one in self._consumer.assignment() if one.topic == place.topic}
                self._consumer.seek_to_beginning(*others if topic_id != known else (place,))
                for one in others:
                    self._next.pop(one, None)
            elif committed is not None:
                behind = Mark(committed.leader_epoch, committed.offset - 1)
                # kafka-python has left the leader epoch away: a log that was cut and went on would not be noticed.
                self._go_to(place, committed.offset, committed.leader_epoch)
            self._gained[Partition(topic_id, place.partition)] = behind
            self._ids[place.topic] = topic_id
            self._next.pop(place, None)
            self._owed.pop(place, None)
            self._unchecked.discard(place)

    def _current_id(self, place: TopicPartition) -> bytes | None:
        # kafka-python keeps the id with its metadata and shows it nowhere else.
        topic_id = self._consumer._client.cluster.topic_id(place.topic)
        return None if topic_id is None else bytes(topic_id.bytes)


def read_kafka_to_end(servers: str, topics: Sequence[str], options: Mapping[str, Any]) -> Iterator[list[Message]]:
    """See `learner.log.read_to_end`."""
    with _translated():
        consumer: Any = KafkaConsumer(
            bootstrap_servers=servers.split(","),
            group_id=None,
            auto_offset_reset="earliest",
            max_poll_records=10_000,
            **{**_READER_OPTIONS, **options},
        )
    try:
        with _translated():
            known = consumer.topics()
            ids = {topic: consumer._client.cluster.topic_id(topic).bytes for topic in topics if topic in known}
            places = [TopicPartition(topic, n) for topic in ids for n in consumer.partitions_for_topic(topic)]
            consumer.assign(places)
            ends = consumer.end_offsets(places)
        while True:
            with _translated():
                left = [place for place in places if consumer.position(place) < ends[place]]
                fetched = consumer.poll(timeout_ms=1_000) if left else {}
            if not left:
                return
            messages = [
                _message(one, Partition(ids[place.topic], place.partition))
                for place, records in fetched.items()
                for one in records
                if one.offset < ends[place]
            ]
            if messages:
                yield messages
    finally:
        consumer.close(autocommit=False)


def _message(record: Any, partition: Partition) -> Message:
    return Message(
        record.topic,
        Position(partition, record.offset, _epoch(record)),
        record.key,
        record.value or b"",
        record.timestamp,
        record.headers,
    )


def _epoch(record: Any) -> int:
    """The leader epoch of a record; -1 if the broker does not say."""
    return -1 if record.leader_epoch is None else int(record.leader_epoch)


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes the partitions that became ours, and whether all now are shared out.

    One that was ours before has been nobody else's: kafka-python goes on in it where it was.
    """

    complete = False

    def __init__(self, gained: set[TopicPartition]) -> None:
        self._gained = gained
        self._ours: set[TopicPartition] = set()

    def on_partitions_revoked(self, revoked: Set[TopicPartition]) -> None:
        self.complete = False

    def on_partitions_lost(self, lost: Set[TopicPartition]) -> None:
        self._ours = set()
        self.complete = False

    def on_partitions_assigned(self, assigned: Set[TopicPartition]) -> None:
        self._gained.update(assigned - self._ours)
        self._ours = set(assigned)
        self.complete = True


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (MessageSizeTooLargeError, RecordListTooLargeError) as exc:
        raise EntryTooLarge(f"Kafka: {type(exc).__name__}: {exc}") from exc
    except KafkaError as exc:
        raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}") from exc
