"""What the brokers say of a reader's partitions: how far they go, and what of them is gone."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.protocol.consumer import OffsetSpec

from learner.log.health import Health, Lost
from learner.log.kafka_fetcher import InTimeOrder

LOOK_INTERVAL_S = 5.0
"""How often the ends are asked for, of partitions also that nothing was fetched of."""
LOOK_TIMEOUT_MS = 1_000

_LOST = re.compile(r";lost=(\d+)-(\d+)@(\d+)")

log = structlog.get_logger("freshet.log")


class Watch:
    """Counts what is still to be read, and notes what cannot be any more. For the reader's thread.

    All topics but that of items are keyed by user.
    """

    def __init__(self, consumer: Any, fetcher: InTimeOrder, topics: Sequence[str], items_topic: str = "") -> None:
        self._consumer, self._fetcher, self._topics, self._items_topic = consumer, fetcher, topics, items_topic
        self._looked_at = 0.0
        # Where to read on, of partitions that kafka-python has not come to yet.
        self._begins: dict[TopicPartition, int] = {}
        self._lost: dict[TopicPartition, Lost] = {}
        # Where reading will go on; a reset to behind it has lost what is between.
        self._expected: dict[TopicPartition, int] = {}
        self._warned = False

    def look(self) -> None:
        """Ask for the ends, now and then; without an answer the last ones hold."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_INTERVAL_S:
            return
        self._looked_at = now
        self._fetcher.ends.update(self._ask(OffsetSpec.LATEST, self._consumer.assignment()))
        self._compare_topics()

    def gained(self, places: Collection[TopicPartition]) -> None:
        """Ask how far partitions go that became ours, and where they begin."""
        self._fetcher.ends.update(self._ask(OffsetSpec.LATEST, places))
        self._begins.update(self._ask(OffsetSpec.EARLIEST, places))

    def _ask(self, spec: OffsetSpec, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets of those partitions that have a leader; one without must not keep the others from being read.

        Not by `KafkaConsumer.end_offsets`, which raises `KeyError` where one has none.
        """
        try:
            found = self._fetcher.offsets_by_times(
                {place: spec for place in places if self._exists(place)}, LOOK_TIMEOUT_MS
            )
        except KafkaError as exc:
            log.debug("offsets are not known", error=str(exc))
            return {}
        return {place: int(at.offset) for place, at in found.items() if at is not None}

    def begin(self, place: TopicPartition, committed: int | None, metadata: str = "") -> None:
        """Note where a partition is read from: behind what the group has committed there, if anything."""
        self._lost.pop(place, None)
        self.expect(place, committed)
        if committed is None:
            return
        self._begins[place] = max(committed, self._begins.get(place, 0))
        if found := _LOST.search(metadata):
            first, last, at = map(int, found.groups())
            self._lost[place] = Lost(place.topic, place.partition, first, last, last - first + 1, at, here=False)

    def expect(self, place: TopicPartition, offset: int | None) -> None:
        """Note where a partition will be read on; None: at its beginning, wherever that is."""
        if offset is None:
            self._expected.pop(place, None)
        else:
            self._expected[place] = offset

    def restart(self, place: TopicPartition) -> None:
        """Note that a partition is read from its beginning again: at offset 0, until kafka-python has found where."""
        self.expect(place, None)
        self._begins[place] = 0

    def took(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Note how far partitions were read, and find what retention took before."""
        for place in list(self._fetcher.resets):
            offset = self._fetcher.resets.pop(place)
            expected = self._expected.get(place)
            if expected is not None and offset > expected:
                self._note_lost(place, expected, offset - 1)
            if expected is not None:
                self._expected[place] = offset
        for place, records in fetched.items():
            self._expected[place] = records[-1].offset + 1

    def lags(self) -> dict[str, int]:
        """By ``topic/number``, messages behind where each partition of ours will be read on.

        Counted from where kafka-python would go on, which is also behind the markers of producers' transactions: they
        have offsets, and never come as messages.
        """
        lags = {}
        for place, state in self._consumer._subscription.assignment.items():
            begin = self._begins.get(place) if state.position is None else state.position.offset
            if begin is not None:
                lags[f"{place.topic}/{place.partition}"] = max(0, self._fetcher.ends.get(place, begin) - begin)
        return lags

    def health(self) -> Health:
        """See `learner.log.health`."""
        ours = self._consumer.assignment()
        missing = tuple(
            topic for topic in self._topics if not self._consumer._client.cluster.partitions_for_topic(topic)
        )
        lost = tuple(one for place, one in self._lost.items() if place in ours)
        return Health(tuple(self._fetcher.unreadable), missing, lost)

    def metadata(self, place: TopicPartition, topic_id: bytes) -> str:
        """What is committed beside an offset: which topic it is of, and what was lost."""
        lost = self._lost.get(place)
        return topic_id.hex() + (f";lost={lost.first}-{lost.last}@{lost.at}" if lost else "")

    def _note_lost(self, place: TopicPartition, first: int, last: int) -> None:
        before = self._lost.get(place)
        lost = Lost(place.topic, place.partition, first, last, last - first + 1, time.time_ns() // 1_000_000)
        log.error(
            "events lost", reason="retention", topic=place.topic, partition=place.partition, first=first, last=last,
            count=lost.events,
        )  # fmt: skip
        self._lost[place] = lost if before is None else lost._replace(first=min(first, before.first))

    def _exists(self, place: TopicPartition) -> bool:
        return place.partition in (self._consumer._client.cluster.partitions_for_topic(place.topic) or ())

    def _compare_topics(self) -> None:
        """Say so once if a user's impressions and clicks may be read by different members."""
        counts = {
            topic: len(self._consumer._client.cluster.partitions_for_topic(topic) or ())
            for topic in self._topics
            if topic != self._items_topic
        }
        if not counts or 0 in counts.values() or len(set(counts.values())) == 1 or self._warned:
            return
        self._warned = True
        log.warning(
            "topics with different numbers of partitions: a user's impressions and clicks may come to different "
            "learners, in any order, and clicks stay unmatched; expected equal numbers, or better one topic for both "
            "(FRESHET_IMPRESSIONS_TOPIC and FRESHET_CLICKS_TOPIC may name the same)",
            partitions=counts,
        )
