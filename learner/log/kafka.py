"""The log on Kafka, by kafka-python."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from learner.log import Entry, LogUnavailable, Message
from learner.record import Partition, Position

DELIVERY_TIMEOUT_MS = 10_000
FETCH_MAX_WAIT_MS = 100


class KafkaLog:
    """See `learner.log.EventLog`. Connects at the first append, so that its owner can start while Kafka is away."""

    def __init__(self, servers: str, options: Mapping[str, Any]) -> None:
        self._servers = servers
        self._options = options
        self._lock = threading.Lock()
        self._producer: Any = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Send all entries and wait until every in-sync replica has them."""
        try:
            producer = self._connected()
            sent = [
                producer.send(entry.topic, key=entry.key, value=entry.value, headers=list(entry.headers))
                for entry in entries
            ]
            for future in sent:
                future.get(timeout=DELIVERY_TIMEOUT_MS / 1000)
        except KafkaError as exc:
            raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}") from exc

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
                    linger_ms=0,
                    # A dead letter may be an event larger than any that is taken.
                    max_request_size=16 << 20,
                    max_block_ms=DELIVERY_TIMEOUT_MS // 2,
                    delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                    request_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    bootstrap_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    **self._options,
                )
            return self._producer


class KafkaReader:
    """See `learner.log.Reader`."""

    def __init__(self, servers: str, topics: Sequence[str], group: str, options: Mapping[str, Any]) -> None:
        try:
            self._consumer: Any = KafkaConsumer(
                *topics,
                bootstrap_servers=servers.split(","),
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
                max_partition_fetch_bytes=4 << 20,
                # A topic made while we run is found this soon.
                metadata_max_age_ms=30_000,
                **options,
            )
        except KafkaError as exc:
            raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}") from exc

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        """Fetch; also takes part in rebalances."""
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_messages)
        except KafkaError as exc:
            raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}") from exc
        messages = []
        for partition, records in fetched.items():
            place = Partition(self._topic_id(partition.topic), partition.partition)
            messages += [
                Message(record.topic, Position(place, record.offset), record.key, record.value or b"", record.timestamp)
                for record in records
            ]
        return messages

    def commit(self, messages: Sequence[Message]) -> bool:
        """Commit the group's offsets; fails when the partitions have gone to another member, which is harmless."""
        ends = {
            TopicPartition(message.topic, message.position.partition.number): message.position.offset + 1
            for message in messages
        }
        try:
            self._consumer.commit({place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()})
        except KafkaError:
            return False
        return True

    def lag(self) -> int:
        """Messages behind the last known ends of this member's partitions."""
        lag = 0
        for place in self._consumer.assignment():
            end = self._consumer.highwater(place)
            if end is not None:
                lag += max(0, end - self._consumer.position(place))
        return lag

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the session's timeout."""
        self._consumer.close(autocommit=False)

    def _topic_id(self, topic: str) -> bytes:
        # kafka-python keeps the id with its metadata and shows it nowhere else.
        topic_id = self._consumer._client.cluster.topic_id(topic)
        if topic_id is None:
            raise RuntimeError(f"topic {topic!r}: the broker tells no topic id; Kafka 2.8 or newer is needed")
        return bytes(topic_id.bytes)
