"""A log on Kafka that is read from its beginning to now, as no member of any group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.protocol.consumer import OffsetSpec

from learner.log import LogUnavailable, Message
from learner.log.kafka_client import ANSWER_TIMEOUT_MS, make_consumer, messages_in_order, topic_id_of, translated


def read_kafka_to_end(
    servers: str, topics: Sequence[str], expect: Callable[[int], object], options: Mapping[str, Any]
) -> Iterator[list[Message]]:
    """See `learner.log.read_to_end`."""
    with translated():
        consumer, fetcher = make_consumer(
            servers, topics, True, {"group_id": None, "max_poll_records": 10_000, **options}
        )
    try:
        with translated():
            known = consumer.topics()
            ids = {topic: topic_id_of(consumer, topic) or b"" for topic in topics if topic in known}
            places = [TopicPartition(topic, n) for topic in ids for n in consumer.partitions_for_topic(topic)]
            consumer.assign(places)
            asked = fetcher.offsets_by_times(dict.fromkeys(places, OffsetSpec.LATEST), ANSWER_TIMEOUT_MS)
        if leaderless := [f"{place.topic}/{place.partition}" for place, end in asked.items() if end is None]:
            raise LogUnavailable(f"Kafka: no leader for {', '.join(leaderless)}")
        ends = {place: int(end.offset) for place, end in asked.items()}
        fetcher.ends.update(ends)
        with translated():
            expect(sum(ends[place] - consumer.position(place) for place in places))
        while True:
            with translated():
                left = [place for place in places if consumer.position(place) < ends[place]]
                fetched = consumer.poll(timeout_ms=1_000) if left else {}
            if not left:
                return
            messages = [
                message
                for message in messages_in_order(fetcher, fetched, ids)
                if message.position.offset < ends[TopicPartition(message.topic, message.position.partition.number)]
            ]
            if messages:
                yield messages
    finally:
        consumer.close(autocommit=False)
