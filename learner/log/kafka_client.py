"""What Kafka's readers and writers have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError, UnknownError

from learner.log import EntryTooLarge, LogUnavailable, Message
from learner.log.kafka_batches import Cause
from learner.log.kafka_fetcher import InTimeOrder, replace_fetcher
from learner.log.position import Partition, Position

# With the brokers away a reader gives up after this long, so that it can be told to stop; it may ask again.
ANSWER_TIMEOUT_MS = 5_000

CLIENT_OPTIONS = {
    # A broker that is back is found this soon; kafka-python would wait up to 30 s.
    "reconnect_backoff_max_ms": 1_000,
}
_READER_OPTIONS = {
    **CLIENT_OPTIONS,
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    # What an aborted transaction wrote was never said.
    "isolation_level": "read_committed",
    # The same partitions of all topics go to the same member: a user's impressions and clicks.
    "partition_assignment_strategy": (RangePartitionAssignor,),
    # A topic with a misspelt name must not come into being by that.
    "allow_auto_create_topics": False,
    "fetch_max_wait_ms": 100,
    "bootstrap_timeout_ms": ANSWER_TIMEOUT_MS,
    # A topic or partition made while we run is found this soon.
    "metadata_max_age_ms": 30_000,
}


def make_consumer(
    servers: str, topics: Sequence[str], skip_unreadable: bool, options: Mapping[str, Any]
) -> tuple[Any, InTimeOrder]:
    """A consumer that reads in the order of time, and its fetcher."""
    # Topics of a group are named here as well as in `subscribe`: then the first metadata already has them.
    named = topics if options.get("group_id") else ()
    consumer = KafkaConsumer(*named, bootstrap_servers=servers.split(","), **{**_READER_OPTIONS, **options})
    if consumer.config["group_id"] is not None:
        # A thread of its own sends heartbeats. As of kafka-python 3.0.12 a poll does not wait at all while the answer
        # to one is overdue: with a broker that accepts and does not answer it took 84 % of a core.
        consumer._coordinator.time_to_next_poll = lambda: math.inf
    return consumer, replace_fetcher(consumer, topics, skip_unreadable)


def messages_in_order(
    fetcher: InTimeOrder, fetched: Mapping[TopicPartition, Sequence[Any]], ids: Mapping[str, bytes]
) -> list[Message]:
    """The records of a poll, or those of some of its partitions, as the log has them, in the order they were taken."""
    left = {place: (Partition(ids[place.topic], place.partition), iter(records)) for place, records in fetched.items()}
    messages = []
    for place, n in fetcher.runs:
        if place in left:
            partition, records = left[place]
            messages += [_message(record, partition) for record in islice(records, n)]
    return messages


def _message(record: Any, partition: Partition) -> Message:
    headers = record.headers
    return Message(
        record.topic,
        Position(partition, record.offset, epoch_of(record)),
        record.key,
        record.value or b"",
        record.timestamp,
        [(name, value or b"") for name, value in headers] if headers else (),
        headers.why if isinstance(headers, Cause) else "",
    )


def epoch_of(record: Any) -> int:
    """The leader epoch of a record; -1 if the broker does not say."""
    return -1 if record.leader_epoch is None else int(record.leader_epoch)


def topic_id_of(consumer: Any, topic: str) -> bytes | None:
    """The id of a topic; None if it does not exist. Brokers before 2.8 have no ids: there its name stands for it."""
    # kafka-python keeps the id with its metadata and shows it nowhere else.
    cluster = consumer._client.cluster
    if (topic_id := cluster.topic_id(topic)) is not None:
        return bytes(topic_id.bytes)
    if cluster._topic_ids or not cluster.partitions_for_topic(topic):
        return None
    return blake2b(topic.encode(), digest_size=16).digest()


@contextmanager
def translated() -> Iterator[None]:
    """Kafka's errors as the log's."""
    try:
        yield
    except (MessageSizeTooLargeError, RecordListTooLargeError) as exc:
        raise EntryTooLarge(f"Kafka: {type(exc).__name__}: {exc}") from exc
    except UnknownError as exc:
        # All that a broker says of it.
        hint = "does a topic have a message.format.version before 0.11.0? Then it takes no headers, and no dead letters"
        raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}; {hint}") from exc
    except KafkaError as exc:
        raise LogUnavailable(f"Kafka: {type(exc).__name__}: {exc}") from exc
