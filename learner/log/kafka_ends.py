"""Where history ends in a Kafka topic: marks with the topic's id and leader epochs, as learners have them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from kafka import TopicPartition
from kafka.protocol.consumer import OffsetSpec

from learner.log import LogUnavailable, servers_of
from learner.log.kafka_client import ANSWER_TIMEOUT_MS, epoch_of, make_consumer, topic_id_of, translated
from learner.log.position import NOTHING, Mark, Partition


class NoSuchEnd(ValueError):
    """The topic cannot go on where history ends."""


def ends_of_offsets(url: str, last: Mapping[tuple[str, int], int], **kafka: Any) -> dict[Partition, Mark]:
    """The marks of the last offsets that history has, by topic and partition.

    The leader epoch of a mark is that of the first record from there on. Records before it have no later one, and those
    behind it no earlier one: so exactly the records up to the offset are at or before the mark.

    Raises
    ------
    NoSuchEnd
        If the topic does not exist, ends before the offset, or no longer has what follows it.
    LogUnavailable
        If Kafka does not answer.
    """
    with closing(_Kafka(url, sorted({topic for topic, _ in last}), kafka)) as log:
        return dict(log.mark(TopicPartition(*place), offset) for place, offset in last.items())


def ends_of_time(url: str, topics: Sequence[str], at_ms: int, **kafka: Any) -> dict[Partition, Mark]:
    """The marks before the first record from a time on (epoch ms), as the broker finds it, of each partition.

    Raises
    ------
    NoSuchEnd, LogUnavailable
        As of `ends_of_offsets`.
    """
    with closing(_Kafka(url, topics, kafka)) as log:
        found = log.first_at(at_ms)
        return dict(log.mark(place, offset - 1) for place, offset in found.items())


class _Kafka:
    """Topics, of which single records are read."""

    def __init__(self, url: str, topics: Sequence[str], options: Mapping[str, Any]) -> None:
        self._consumer, self._fetcher = make_consumer(servers_of(url), topics, True, {"group_id": None, **options})
        try:
            with translated():
                known = self._consumer.topics()
                if absent := [topic for topic in topics if topic not in known]:
                    raise NoSuchEnd(f"Kafka has no topic {', '.join(absent)}: expected those that history is of")
                self._ids = {topic: topic_id_of(self._consumer, topic) or b"" for topic in topics}
                self.places = [
                    TopicPartition(topic, n) for topic in topics for n in self._consumer.partitions_for_topic(topic)
                ]
            self._first = self._offsets(OffsetSpec.EARLIEST)
            self._end = self._offsets(OffsetSpec.LATEST)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up the connection."""
        self._consumer.close(autocommit=False)

    def first_at(self, at_ms: int) -> dict[TopicPartition, int]:
        """The offset of the first record from a time on, of each partition; its end if there is none."""
        found = self._ask(at_ms)
        return {place: self._end[place] if one is None else int(one.offset) for place, one in found.items()}

    def mark(self, place: TopicPartition, offset: int) -> tuple[Partition, Mark]:
        """The mark of an offset in a partition."""
        name = f"{place.topic}/{place.partition}"
        if place not in self._end:
            raise NoSuchEnd(f"history has offset {offset} of {name}, which Kafka lacks: expected one of its partitions")
        partition = Partition(self._ids[place.topic], place.partition)
        if offset < 0:
            return partition, NOTHING
        first, end = self._first[place], self._end[place]
        if offset >= end:
            raise NoSuchEnd(
                f"history has offset {offset} of {name}, which ends before {end}: expected the topic that history is "
                "of, and none that was made again under its name"
            )
        if offset + 1 < first:
            raise NoSuchEnd(
                f"history ends at offset {offset} of {name}, which begins at {first}: Kafka has removed what is "
                f"between; expected a history up to offset {first - 1} at least"
            )
        return partition, Mark(self._epoch_from(place, max(offset, first), end), offset)

    def _epoch_from(self, place: TopicPartition, offset: int, end: int) -> int:
        """The leader epoch of the first record from an offset on."""
        if offset >= end:
            # There is none, before it or behind; those to come have this epoch, of old brokers, or a later one.
            return -1
        with translated():
            self._consumer.assign([place])
            self._consumer.seek(place, offset)
        deadline = time.monotonic() + ANSWER_TIMEOUT_MS / 1000
        while time.monotonic() < deadline:
            with translated():
                records = self._consumer.poll(timeout_ms=500).get(place, ())
                if records:
                    return epoch_of(records[0])
                if self._consumer.position(place) >= end:
                    break
        name = f"{place.topic}/{place.partition}"
        raise LogUnavailable(f"Kafka: no record of {name} from offset {offset} on, where history ends: expected one")

    def _offsets(self, spec: Any) -> dict[TopicPartition, int]:
        found = self._ask(spec)
        if leaderless := [f"{place.topic}/{place.partition}" for place, one in found.items() if one is None]:
            raise LogUnavailable(f"Kafka: no leader for {', '.join(leaderless)}")
        return {place: int(one.offset) for place, one in found.items()}

    def _ask(self, when: Any) -> Mapping[TopicPartition, Any]:
        with translated():
            self._consumer.assign(self.places)
            found: Mapping[TopicPartition, Any] = self._fetcher.offsets_by_times(
                dict.fromkeys(self.places, when), ANSWER_TIMEOUT_MS
            )
        return found
